//! When a switchover has ended, told by what this host's keeper says; the other host's need not be seen. Pure.
//!
//! ```text
//!            event: took_over, of another host ─────────────────────────────▶ Taken
//!  Under way ── event: stood_down, here ──▶ Gone ── status: backup of b ────▶ Moved
//!      │                                      └──── no more time ───────────▶ Moved
//!      └── event: backup_lost, here ──▶ Doubtful ── status: runs here still ▶ Stayed
//! ```

use ninefold_model::event::{Event, EventKind};
use ninefold_model::status::{ProtectionState, Role, VmStatus};

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// The other host's keeper says so.
    Taken(Box<Event>),
    /// The keeper here says so: another host has the VM.
    Moved { to: String },
    /// The VM runs where it ran.
    Stayed { reason: String },
    /// It runs nowhere any more.
    Ended { reason: String },
}

/// A switchover that is under way.
#[derive(Debug)]
pub struct Handover {
    from: String,
    /// Hosts whose keepers' events are followed: they will say so themselves.
    seen: Vec<String>,
    to: Option<String>,
    gone: bool,
    lost: Option<String>,
}

impl Handover {
    /// The keeper of `from` has been asked for one; events of the hosts in `seen` will be told.
    pub fn new(from: &str, seen: Vec<String>) -> Self {
        Self { from: from.to_owned(), seen, to: None, gone: false, lost: None }
    }

    /// Something has happened since.
    pub fn event(&mut self, event: &Event) -> Option<End> {
        if event.host.as_str() != self.from {
            let taken = matches!(event.kind, EventKind::TookOver { .. });
            return taken.then(|| End::Taken(Box::new(event.clone())));
        }
        match &event.kind {
            EventKind::SwitchoverStarted { to, .. } => self.to = Some(to.to_string()),
            EventKind::BackupLost { backup, reason }
                if self.to.is_some() && backup.as_ref().map(|b| b.to_string()).is_none_or(|b| self.to == Some(b)) =>
            {
                self.lost = Some(reason.clone());
            }
            EventKind::StoodDown { .. } => self.gone = true,
            EventKind::Retired { .. } => return Some(End::Ended { reason: "it was retired".into() }),
            EventKind::Lost { reason } | EventKind::Stopped { reason } => {
                return Some(End::Ended { reason: reason.clone() });
            }
            _ => {}
        }
        None
    }

    /// The keeper there says this of itself, after all events so far.
    pub fn status(&self, status: &VmStatus) -> Option<End> {
        let waits = status.protection == Some(ProtectionState::Waiting);
        match (status.role, &status.peer, &self.lost) {
            (Role::Primary, _, Some(reason)) if !self.gone && !waits => Some(End::Stayed { reason: reason.clone() }),
            (Role::Backup, Some(peer), _) if self.gone && !self.seen.iter().any(|s| s == peer.as_str()) => {
                Some(End::Moved { to: peer.to_string() })
            }
            _ => None,
        }
    }

    /// There is no more time. A host that has stood down knows that another has the VM.
    pub fn at_last(self) -> Option<End> {
        let to = self.to.filter(|to| self.gone && !self.seen.contains(to))?;
        Some(End::Moved { to })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use ninefold_model::{Epoch, Incarnation, Term};

    use super::*;

    pub fn event(host: &str, kind: EventKind) -> Event {
        let host = host.parse().unwrap();
        Event { incarnation: Incarnation(1), seq: 1, unix_us: 0, monotonic_us: 0, host, times: 1, first: None, kind }
    }

    pub fn status(role: &str, protection: Option<&str>, peer: Option<&str>) -> VmStatus {
        serde_json::from_value(serde_json::json!({
            "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "vm": "vm", "host": "a", "pid": 1,
            "role": role, "protection": protection, "wanted": "fault-tolerant", "term": 1,
            "committed": 1, "peer": peer, "epoch_policy": {"fixed": {"ms": 25}}, "witness_reachable": true, "sync": null,
            "machine": null, "pause_us": null,
            "counters": serde_json::to_value(ninefold_model::status::Counters::default()).unwrap(),
        }))
        .unwrap()
    }

    fn started() -> EventKind {
        EventKind::SwitchoverStarted { to: "b".parse().unwrap(), reason: "asked for".into() }
    }

    fn stood_down() -> EventKind {
        EventKind::StoodDown { term: Term(2), reason: "the witness names b in term 2".into() }
    }

    fn took_over() -> Event {
        event("b", EventKind::TookOver { term: Term(2), epoch: Epoch(9), phases: Default::default() })
    }

    #[test]
    fn the_keeper_of_this_host_alone_tells_the_end() {
        let mut handover = Handover::new("a", vec!["a".into()]);
        assert_eq!(handover.event(&event("a", started())), None);
        assert_eq!(handover.status(&status("primary", Some("protected"), Some("b"))), None);
        assert_eq!(handover.event(&event("a", stood_down())), None);
        assert_eq!(handover.status(&status("standby", None, None)), None);
        assert_eq!(handover.status(&status("backup", None, Some("b"))), Some(End::Moved { to: "b".into() }));
        // Nor does it matter whether this host becomes a backup.
        assert_eq!(handover.at_last(), Some(End::Moved { to: "b".into() }));
    }

    #[test]
    fn the_other_hosts_own_word_is_waited_for_if_it_will_be_heard() {
        let mut handover = Handover::new("a", vec!["a".into(), "b".into()]);
        handover.event(&event("a", started()));
        handover.event(&event("a", stood_down()));
        assert_eq!(handover.status(&status("backup", None, Some("b"))), None);
        assert_eq!(handover.event(&took_over()), Some(End::Taken(Box::new(took_over()))));
        assert_eq!(handover.at_last(), None);
    }

    #[test]
    fn what_comes_to_nothing_is_said() {
        let mut handover = Handover::new("a", vec!["a".into()]);
        handover.event(&event("a", started()));
        let other = EventKind::BackupLost { backup: Some("c".parse().unwrap()), reason: "another".into() };
        handover.event(&event("a", other));
        assert_eq!(handover.status(&status("primary", Some("protected"), Some("b"))), None);
        let lost = EventKind::BackupLost { backup: Some("b".parse().unwrap()), reason: "it is silent".into() };
        handover.event(&event("a", lost));
        // The witness has not spoken: the VM may be the other's.
        assert_eq!(handover.status(&status("primary", Some("waiting"), None)), None);
        let stayed = Some(End::Stayed { reason: "it is silent".into() });
        assert_eq!(handover.status(&status("primary", Some("unprotected"), None)), stayed);
        let ended = handover.event(&event("a", EventKind::Lost { reason: "QEMU died".into() }));
        assert_eq!(ended, Some(End::Ended { reason: "QEMU died".into() }));
        assert_eq!(handover.at_last(), None);
    }
}
