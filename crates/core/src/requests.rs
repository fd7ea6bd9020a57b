//! What owners ask over the control socket.

use ninefold_control::{Answer, OperationKind, Refusal, Reply, Request, Work};
use ninefold_model::spec::Protection;
use ninefold_model::status::{BackupState, BackupStatus, ProtectionState, Role, VmStatus};
use ninefold_model::{HostName, Record};
use ninefold_replica::protocol::{Action, Input, Phase, Wanted};

use crate::core::{CANCELLED, Core, QUIT_LIMIT};
use crate::effect::{VmOrder, WitnessRequest};
use crate::event::{Behind, RequestId, Seen};
use crate::refusal;
use crate::replica::Replica;
use crate::time::Monotonic;

/// SIGTERM has come.
pub(crate) struct Quitting {
    pub(crate) since: Monotonic,
    /// The VM was to be handed over.
    asked: bool,
    /// The VM was being stopped.
    stops: bool,
}

impl Core {
    pub(crate) fn request(&mut self, id: RequestId, request: Request, seen: Seen) {
        let Some((request, seen)) = self.unless_removed(id, request, seen) else { return };
        let answer = match request {
            Request::Status => Ok(Answer::Status { status: Box::new(self.status(&seen)) }),
            Request::Start { force } => self.begin_start(force, &seen),
            Request::Retire { force } => self.begin_retire(force),
            Request::Rename { name } => return self.rename(id, name, seen.taken),
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
            | Request::Protect
            | Request::Unprotect
                if !self.has_vm =>
            {
                Err(Refusal::NotRunningHere { host: self.elsewhere().cloned() })
            }
            Request::Stop => {
                // Begun first: its end may be told at once.
                self.reply(id, Ok(Answer::Done));
                return self.input(Input::Stop { reason: "stopped by its owner".into() });
            }
            Request::Shutdown { .. } | Request::Pause | Request::Resume | Request::Wake => {
                self.standing_request(&request)
            }
            Request::Reset => {
                self.command(VmOrder::Reset);
                Ok(Answer::Done)
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
                // A person may have mended what was wrong with a host.
                self.resting.clear();
                self.before_protect = self.protocol.wanted().protection;
                self.want(Protection::FaultTolerant);
                self.reply(id, Ok(Answer::Done));
                // It may be protected already.
                if self.protocol.protection() == Some(ProtectionState::Protected) {
                    self.operation_ends(OperationKind::Protect, Ok(None));
                }
                return;
            }
            Request::Unprotect => {
                self.want(Protection::None);
                self.operation_ends(OperationKind::Protect, Err(Refusal::Cancelled));
                Ok(Answer::Done)
            }
            Request::Cancel { operation } => self.cancel(operation),
            Request::Switchover => self.begin_switchover(),
            Request::SetEpochs { policy } => {
                self.epochs = policy;
                self.set_pace();
                Ok(Answer::Done)
            }
            // Answered where the histories are, without troubling the core.
            Request::Events { .. } | Request::Checkpoints { .. } | Request::Operation { .. } | Request::Operations => {
                Err(Refusal::Failed { reason: "this is not for the core".into() })
            }
        };
        self.reply(id, answer);
    }

    /// Whether the witness may be asked for somebody: it has one question at a time, and one answer to it.
    pub(crate) fn may_ask(&self) -> Result<(), Refusal> {
        let with = if self.starting {
            Work::Start
        } else if self.restoring() {
            Work::Restore
        } else if self.snapshot.is_asked_of_log() {
            Work::LogLook
        } else {
            return Ok(());
        };
        Err(Refusal::Busy { with })
    }

    fn begin_start(&mut self, force: bool, seen: &Seen) -> Reply {
        self.may_ask()?;
        // Nor may the question take the place of one that is on its way to the witness.
        if let Some(refusal) = self.why_here(force) {
            return Err(refusal);
        }
        if let Some(refusal) = Self::is_mixture(seen.mixture, force).filter(|_| self.rules.refuse_mixtures) {
            return Err(refusal);
        }
        let now = self.may_start(force, seen)?;
        self.starting = true;
        self.start_forced = force;
        if now {
            self.ask(WitnessRequest::Start { force });
        }
        Ok(Answer::Done)
    }

    fn begin_switchover(&mut self) -> Reply {
        // The guest would stand still until the witness answers.
        if let Some(trouble) = &self.witness_trouble {
            return Err(trouble.refusal());
        }
        let mut actions = Vec::new();
        self.protocol.handle(Input::Switchover { to: None, reason: "asked for".into() }, &mut actions);
        let mut reply = Ok(Answer::Done);
        for action in actions {
            if let Action::Refuse(refused) = &action {
                reply = Err(refusal::of_protocol(refused.clone()));
            }
            self.act(action);
        }
        reply
    }

    pub(crate) fn want(&mut self, protection: Protection) {
        let wanted = Wanted { protection, ..self.protocol.wanted() };
        self.input(Input::Want(wanted));
    }

    fn status(&self, seen: &Seen) -> VmStatus {
        let settings = &self.settings;
        VmStatus {
            id: settings.vm.id,
            vm: self.naming.label.name.clone(),
            host: settings.host.clone(),
            pid: settings.pid,
            role: self.protocol.role(),
            protection: self.protocol.protection(),
            wanted: self.protocol.wanted().protection,
            term: self.protocol.term(),
            committed: self.committed,
            peer: self.other().cloned(),
            epoch_policy: self.epochs,
            witness_reachable: self.witness_trouble.is_none(),
            sync: self.replicas.iter().find(|r| r.first.is_none()).and_then(|r| r.sync),
            no_backup: self.no_peer.clone().filter(|_| self.wants_peer()),
            retired: self.retirement.tombstone,
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

    /// The host that has the VM, as far as is known here: as the other side of a session, or by what the witness held when it was last read.
    fn elsewhere(&self) -> Option<&HostName> {
        let named = self.recorded.as_ref().filter(|host| **host != self.settings.host);
        self.other().or(named)
    }

    /// Why the VM cannot be started here now; `force`: whatever became of it before.
    pub(crate) fn why_here(&self, force: bool) -> Option<Refusal> {
        match self.protocol.role() {
            Role::Primary => Some(Refusal::RunsHere),
            // A backup may not have heard yet that the VM has ended: its primary knows.
            Role::Backup => {
                let host = self.protocol.primary().filter(|p| **p != self.settings.host).cloned();
                Some(Refusal::RunsElsewhere { host })
            }
            Role::Standby if self.protocol.awaits_witness() => Some(Refusal::Busy { with: Work::Start }),
            // The witness has still to say that nobody else may have it.
            Role::Standby if self.is_ending() && !force => Some(Refusal::Busy { with: Work::Stop }),
            Role::Standby if self.retirement.is_wanted() => Some(Refusal::Busy { with: Work::Retire }),
            Role::Standby => None,
        }
    }

    /// Whether the VM would go back here, behind what its clients were told; so a start comes to nothing. `found` is the
    /// witness's record, which allows the start.
    pub(crate) fn is_behind(&mut self, found: Option<&Record>, behind: Option<&Behind>) -> bool {
        let Some(Behind { volume, since }) = behind.cloned() else { return false };
        self.start_failed(Refusal::VolumesBehind { volume, since, record: found.cloned() });
        true
    }

    /// A start that somebody has asked for has come to nothing.
    pub(crate) fn start_failed(&mut self, refusal: Refusal) {
        if std::mem::take(&mut self.starting) {
            let cancelled = std::mem::take(&mut self.start_cancelled);
            self.operation_ends(OperationKind::Start, Err(if cancelled { Refusal::Cancelled } else { refusal }));
            self.not_here();
        }
    }

    /// The start is not wanted any more. Answers whether it can be given up: not a forced one for which the VM has been asked, as that may take it
    /// from where it runs, and ends what was known of volumes that are behind.
    ///
    /// What has been asked of the witness may be granted, and the VM ends then as it does when its owner stops it: the record stays this host's,
    /// so it is not asked for by halves. And while the record is being read its answer is waited for: it would be taken for the next start's.
    pub(crate) fn cancel_start(&mut self) -> bool {
        let runs = self.protocol.role() == Role::Primary;
        let asked_for = runs || self.protocol.awaits_witness();
        if asked_for && self.start_forced {
            return false;
        }
        self.start_cancelled = true;
        if runs {
            self.input(Input::Stop { reason: CANCELLED.into() });
        } else if std::mem::take(&mut self.log.start_wanted) {
            // A log is being looked for, and nothing has been asked yet.
            self.start_failed(Refusal::Cancelled);
        }
        true
    }

    pub(crate) fn quit(&mut self) {
        if self.quitting.is_some() {
            return;
        }
        let stops = self.off || self.protocol.is_stopping();
        self.quitting = Some(Quitting { since: self.now.monotonic, asked: false, stops });
        // The next keeper would go on with the VM from its log: that goes when the VM has stopped.
        if stops {
            tracing::warn!(
                "told to end while the VM is being stopped: that comes first, if it is done within {QUIT_LIMIT:?}"
            );
            return;
        }
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
        let Some(quitting) = self.quitting.as_mut().filter(|q| !q.asked && !q.stops) else { return false };
        // Without the witness nobody can take it: the guest would only stand still until the end.
        if !bound || self.witness_trouble.is_some() {
            return false;
        }
        quitting.asked = true;
        self.input(Input::Switchover { to: None, reason: "the keeper was told to end".into() });
        true
    }

    /// Whether a keeper that is to end has waited for long enough: for its VM to have stopped, or for another host to take it.
    pub(crate) fn has_waited_to_quit(&self) -> bool {
        let is_over = |q: &Quitting| self.elapsed(q.since) > QUIT_LIMIT;
        let has_stopped = |q: &Quitting| q.stops && !self.off && !self.protocol.is_stopping();
        self.quitting.as_ref().is_some_and(|q| is_over(q) || has_stopped(q))
    }
}
