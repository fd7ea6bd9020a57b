//! What a command that waits for protection waits for, in words. Pure.

use ninefold_logging::likeness;
use ninefold_model::event::{Event, EventKind};
use ninefold_model::status::VmStatus;

/// What was last heard of why the VM is not protected yet.
#[derive(Debug, Default)]
pub struct Awaited {
    why: Option<String>,
    told: Option<String>,
}

impl Awaited {
    /// Something has happened.
    pub fn event(&mut self, event: &Event) {
        self.why = match &event.kind {
            EventKind::BackupLost { backup, reason } => {
                let host = backup.as_ref().map_or_else(String::new, |b| format!(" {b}"));
                Some(format!("no backup on host{host}: {reason}"))
            }
            EventKind::Refused { peer, reason } => Some(format!("host {} has refused {peer}: {reason}", event.host)),
            EventKind::WitnessUnreachable { reason } | EventKind::WitnessDoubted { reason } => {
                Some(format!("the witness, as host {} sees it: {reason}", event.host))
            }
            EventKind::WitnessReachable | EventKind::Protected { .. } => None,
            _ => return,
        }
    }

    /// The VM's keeper says this of itself.
    pub fn status(&mut self, status: &VmStatus) {
        if let Some(reason) = &status.no_backup {
            self.why = Some(format!("no backup: {reason}"));
        }
    }

    /// Why, if that is known.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// The reason, if it has not been told yet: a reason that only differs in its numbers has.
    pub fn news(&mut self) -> Option<&str> {
        let like = self.why.as_deref().map(likeness)?;
        if self.told.as_ref() == Some(&like) {
            return None;
        }
        self.told = Some(like);
        self.why.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::handover::tests::{event, status};
    use super::*;

    #[test]
    fn the_reason_is_told_once() {
        let mut awaited = Awaited::default();
        assert_eq!(awaited.news(), None);
        let lost = |n: u32| EventKind::BackupLost {
            backup: Some("b".parse().unwrap()),
            reason: format!("it refuses: no network bridge 'br0' on this host (attempt {n})"),
        };
        awaited.event(&event("a", lost(1)));
        assert_eq!(
            awaited.news(),
            Some("no backup on host b: it refuses: no network bridge 'br0' on this host (attempt 1)")
        );
        awaited.event(&event("a", lost(2)));
        awaited.event(&event("a", EventKind::SyncStarted { backup: "b".parse().unwrap() }));
        assert_eq!(awaited.news(), None, "the same again");
        assert!(awaited.why().unwrap().contains("attempt 2"));
        let mut nobody = status("primary", Some("unprotected"), None);
        nobody.no_backup = Some("b: no keeper answers".into());
        awaited.status(&nobody);
        assert_eq!(awaited.news(), Some("no backup: b: no keeper answers"));
    }
}
