//! What owners ask over the control socket.

use ninefold_model::control::{Request, Response};
use ninefold_model::spec::Protection;
use ninefold_model::status::{BackupState, BackupStatus, ProtectionState, Role, VmStatus};
use ninefold_model::{HostName, Record};
use ninefold_replica::protocol::{Action, Input, Phase, Wanted};

use crate::core::{Core, QUIT_LIMIT};
use crate::effect::{Question, VmOrder};
use crate::event::{RequestId, Seen};
use crate::replica::Replica;
use crate::time::Monotonic;

/// SIGTERM has come.
pub(crate) struct Quitting {
    pub(crate) since: Monotonic,
    /// The VM was to be handed over.
    asked: bool,
}

impl Core {
    pub(crate) fn request(&mut self, id: RequestId, request: Request, seen: Seen) {
        let Some((request, seen)) = self.unless_removed(id, request, seen) else { return };
        let refuse = |message: &str| Response::Error { message: message.into(), help: None, try_host: None };
        let answer = match request {
            Request::Status => Response::Status { status: Box::new(self.status(&seen)) },
            Request::Start { force } => {
                if self.start_reply.is_some() {
                    refuse("the VM is being started")
                } else if self.restoring() {
                    refuse("the VM is being started from a snapshot")
                } else if self.snapshot.is_asked_of_log() {
                    // The witness has one question at a time, and one answer to it.
                    Response::Error {
                        message: "the VM's log is being looked at".into(),
                        help: Some("try again in a moment".into()),
                        try_host: None,
                    }
                } else if let Some(reason) = self.why_here() {
                    // Nor may the question take the place of one that is on its way to the witness.
                    // A backup may not have heard yet that the VM has ended: its primary knows.
                    let try_host = self.protocol.primary().filter(|p| **p != self.settings.host).cloned();
                    Response::Error { message: reason.into(), help: None, try_host }
                } else if let Some(why) = Self::is_mixture(seen.mixture, force) {
                    Response::Error {
                        message: why.into(),
                        help: Some(
                            "start it on another host, or restore a snapshot here: `ninefold vm restore`".into(),
                        ),
                        try_host: None,
                    }
                } else {
                    match self.may_start(force, &seen) {
                        Ok(now) => {
                            self.start_reply = Some(id);
                            if now {
                                self.ask(Question::Start { force });
                            }
                            return;
                        }
                        Err(message) => Response::Error {
                            message,
                            help: Some("`--force` boots it all the same, and what there is of it is lost".into()),
                            try_host: None,
                        },
                    }
                }
            }
            Request::Stop
            | Request::Shutdown { .. }
            | Request::Pause
            | Request::Resume
            | Request::Wake
            | Request::Switchover
            | Request::Reset
            | Request::Dump
            | Request::Snapshot { .. }
            | Request::Trial { .. }
            | Request::CommitImage
            | Request::FallBack
                if !self.has_vm =>
            {
                Response::Error {
                    message: format!("{} does not run on {}", self.settings.vm.name, self.settings.host),
                    help: Some("`ninefold vm status` shows where it runs".into()),
                    try_host: self.other().cloned(),
                }
            }
            Request::Stop => {
                self.input(Input::Stop { reason: "stopped by its owner".into() });
                return self.reply_when_stopped(id);
            }
            Request::Shutdown { .. } | Request::Pause | Request::Resume | Request::Wake => {
                self.standing_request(&request)
            }
            Request::Reset => {
                self.command(VmOrder::Reset);
                Response::Done
            }
            Request::Snapshot { name, parent, freeze } => return self.take_snapshot(id, name, parent, freeze),
            Request::Restore { name, force, clone } => {
                return self.restore(id, name, force, clone, &seen);
            }
            Request::Recover { force } => {
                return self.recover(id, force);
            }
            Request::Dump | Request::Trial { .. } | Request::CommitImage | Request::FallBack => {
                self.health_request(request, seen.unusable)
            }
            Request::Protect => {
                self.want(Protection::FaultTolerant);
                Response::Done
            }
            Request::Unprotect => {
                self.want(Protection::None);
                Response::Done
            }
            Request::Switchover if self.witness_error.is_some() => Response::Error {
                message: "the witness does not answer: the guest would stand still until it does".into(),
                help: Some("see to the witness first; `ninefold vm status` shows when it answers again".into()),
                try_host: None,
            },
            Request::Switchover => {
                let mut actions = Vec::new();
                self.protocol.handle(Input::Switchover { to: None, reason: "asked for".into() }, &mut actions);
                let refused = actions.iter().find_map(|a| match a {
                    Action::Refuse { reason } => Some(refuse(reason)),
                    _ => None,
                });
                for action in actions {
                    self.act(action);
                }
                refused.unwrap_or(Response::Done)
            }
            Request::SetEpochs { policy } => {
                self.epochs = policy;
                self.set_pace();
                Response::Done
            }
            // Answered where the histories are, without troubling the core.
            Request::Events { .. } | Request::Checkpoints { .. } => refuse("not for the core"),
        };
        self.reply(id, answer);
    }

    pub(crate) fn want(&mut self, protection: Protection) {
        let wanted = Wanted { protection, ..self.protocol.wanted() };
        self.input(Input::Want(wanted));
    }

    fn status(&self, seen: &Seen) -> VmStatus {
        let settings = &self.settings;
        VmStatus {
            id: settings.vm.id,
            vm: settings.vm.name.clone(),
            host: settings.host.clone(),
            pid: settings.pid,
            role: self.protocol.role(),
            protection: self.protocol.protection(),
            wanted: self.protocol.wanted().protection,
            term: self.protocol.term(),
            committed: self.committed,
            peer: self.other().cloned(),
            epoch_policy: self.epochs,
            witness_reachable: self.witness_error.is_none(),
            sync: self.replicas.iter().find(|r| r.first.is_none()).and_then(|r| r.sync),
            no_backup: self.no_peer.clone().filter(|_| self.wants_peer()),
            backups: self.replicas.iter().map(|r| self.backup_status(r)).collect(),
            snapshot: self.snapshot_progress(),
            log: self.log_status(),
            volumes: self.volume_status(),
            machine: self.machine.clone(),
            differs: self.booted_otherwise(),
            // The control socket's thread knows it.
            certificate: None,
            counters: self.counters,
            pause_us: seen.pauses,
            health: Some(self.health_status()),
        }
    }

    fn backup_status(&self, replica: &Replica) -> BackupStatus {
        let state = match self.protocol.phase(replica.session) {
            Some(Phase::Syncing) | None => BackupState::Syncing,
            Some(Phase::Binding) => BackupState::Binding,
            Some(Phase::Bound) => BackupState::Bound,
            Some(Phase::Unbinding) => BackupState::Unbinding,
        };
        let host = replica.backup.clone();
        BackupStatus {
            host,
            session: replica.session,
            state,
            acked: replica.acked,
            sync: replica.sync,
            differs: replica.differs.clone(),
        }
    }

    /// Why the VM cannot be started here now.
    pub(crate) fn why_here(&self) -> Option<&'static str> {
        match self.protocol.role() {
            Role::Primary => Some("the VM runs here already"),
            Role::Backup => Some("the VM runs on another host, or this host is about to take it over"),
            Role::Standby if self.protocol.awaits_witness() => {
                Some("the VM is being started here: the witness is asked")
            }
            Role::Standby => None,
        }
    }

    /// Whether the VM would go back here, behind what its clients were told; who asked to start it is told so. `found` is the
    /// witness's record, which allows the start.
    pub(crate) fn is_behind(&mut self, found: Option<&Record>, behind: Option<&(String, String)>) -> bool {
        let Some((volume, when)) = behind else { return false };
        let reason = format!(
            "volume {volume} may be behind what clients were told {}: it was not all on this host's disk when the VM ended here",
            if when.is_empty() { "while it was protected" } else { when }
        );
        self.refuse_start(reason, &if_behind(found), None);
        true
    }

    pub(crate) fn start_failed(&mut self, reason: String) {
        self.refuse_start(reason, "`ninefold vm status` and `ninefold doctor` show more", None);
    }

    /// The VM is to be started on the host that had it last.
    pub(crate) fn start_elsewhere(&mut self, reason: String, host: HostName) {
        let help = format!(
            "ask the keeper on {host} to start it; if that host is gone for good, `ninefold vm start --host {} --force` boots it here, and what only \
             {host} had is lost",
            self.settings.host
        );
        self.refuse_start(reason, &help, Some(host));
    }

    fn refuse_start(&mut self, reason: String, help: &str, try_host: Option<HostName>) {
        if let Some(reply) = self.start_reply.take() {
            let help = Some(help.into());
            self.reply(reply, Response::Error { message: reason, help, try_host });
            self.not_here();
        }
    }

    pub(crate) fn quit(&mut self) {
        if self.quitting.is_some() {
            return;
        }
        self.quitting = Some(Quitting { since: self.now.monotonic, asked: false });
        // What has been asked for may be this host's already, and nobody else could go on with it. Nor could anybody, perhaps, with
        // what is about to be asked for: if the primary lives, the witness shows that soon. A log, though, is the safest place, and
        // what is asked for waits for its disk: the next keeper goes on from it.
        let claims = self.protocol.claims() && self.non_volatile().is_none();
        if self.protocol.may_have_won() || self.takeover.as_ref().is_some_and(|t| t.won.is_some()) || claims {
            tracing::warn!(
                "told to end while the VM comes here: that comes first, if it is decided within {QUIT_LIMIT:?}"
            );
        } else if !self.hand_over_and_quit() {
            self.done = true;
        }
    }

    /// A keeper that is to end hands its VM over when it can, once; answers whether it does.
    pub(crate) fn hand_over_and_quit(&mut self) -> bool {
        let bound = self.protocol.protection() == Some(ProtectionState::Protected);
        let Some(quitting) = self.quitting.as_mut().filter(|q| !q.asked) else { return false };
        // Without the witness nobody can take it: the guest would only stand still until the end.
        if !bound || self.witness_error.is_some() {
            return false;
        }
        quitting.asked = true;
        self.input(Input::Switchover { to: None, reason: "the keeper was told to end".into() });
        true
    }
}

/// What there is to do about images that may be behind here, on the host that the witness's record names, if there is one.
fn if_behind(found: Option<&Record>) -> String {
    let last = match found {
        Some(record) => format!(
            "by the witness's record (term {}) {} ran the VM last, alone: another host's disks are as they were when it was a backup",
            record.term, record.primary
        ),
        None => "the witness does not know which host ran the VM last: another host's disks may have more, or be hours older".into(),
    };
    format!(
        "{last}; compare them (`ninefold vm status` and `ninefold vm events` there) before you start the VM there with `--force`; \
         `--force` here starts it without what is missing"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody is sent to a host whose disks may be older without being told so.
    #[test]
    fn the_help_says_which_host_ran_the_vm_last() {
        let record = Record { term: ninefold_model::Term(9), primary: "a".parse().unwrap(), backups: Vec::new() };
        let (known, unknown) = (if_behind(Some(&record)), if_behind(None));
        assert!(known.contains("(term 9) a ran the VM last"), "{known}");
        assert!(unknown.contains("does not know which host"), "{unknown}");
        for help in [known, unknown] {
            assert!(help.contains("compare") && !help.contains("  "), "{help}");
        }
    }
}
