//! Operations: requests that take longer than their answer. Which there are is told by effects, whenever one begins, gets on or ends.
//!
//! An operation ends by an event of the journal, the one that tells people, too: what neither ends by an event nor is asked for has none.

use ninefold_control::operation::{Operation, OperationId, OperationKind, Progress, State, Unit};
use ninefold_control::{Answer, Refusal, Reply, Request};
use ninefold_model::Incarnation;
use ninefold_model::event::EventKind;
use ninefold_model::status::{ProtectionState, Role};

use crate::core::Core;
use crate::effect::Effect;
use crate::event::RequestId;
use crate::policy;

/// Operations that run at a time.
pub const MOST_RUNNING: usize = 32;
/// Operations that are remembered by their clients' tokens, the ended ones included.
pub const REMEMBERED: usize = 128;

/// Which operation a request begins, if it begins one.
pub(crate) fn kind_of(request: &Request) -> Option<OperationKind> {
    Some(match request {
        Request::Start { .. } => OperationKind::Start,
        Request::Restore { .. } => OperationKind::Restore,
        Request::Recover { force: true } => OperationKind::Recover,
        Request::Snapshot { .. } => OperationKind::Snapshot,
        Request::Dump => OperationKind::Dump,
        Request::Protect => OperationKind::Protect,
        Request::Switchover => OperationKind::Switchover,
        Request::Shutdown { .. } => OperationKind::Shutdown,
        Request::Trial { .. } => OperationKind::Trial,
        _ => return None,
    })
}

/// A request that is to become an operation, if it is not refused.
struct Asked {
    by: RequestId,
    kind: OperationKind,
    token: Option<String>,
}

/// The operations of one life of a keeper: those that run, and the latest that have ended. Pure.
pub(crate) struct Operations {
    incarnation: Incarnation,
    last: u64,
    asked: Vec<Asked>,
    /// The oldest first.
    all: Vec<Operation>,
    /// Where the VM is being handed to, as an event says it.
    handover: Option<EventKind>,
    /// Why a backup was last lost.
    backup_lost: Option<String>,
}

impl Operations {
    pub(crate) fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, last: 0, asked: Vec::new(), all: Vec::new(), handover: None, backup_lost: None }
    }

    /// The operation that was begun with this token.
    fn of_token(&self, token: &str) -> Option<&Operation> {
        self.all.iter().find(|o| o.token.as_deref() == Some(token))
    }

    fn running(&self, kind: OperationKind) -> impl Iterator<Item = &Operation> {
        self.all.iter().filter(move |o| o.kind == kind && !o.has_ended())
    }

    /// Somebody asks for what is an operation, or will be told why it is none.
    fn asks(&mut self, by: RequestId, kind: OperationKind, token: Option<String>) -> Result<(), Refusal> {
        if self.all.iter().filter(|o| !o.has_ended()).count() + self.asked.len() >= MOST_RUNNING {
            return Err(Refusal::TooManyOperations { limit: MOST_RUNNING as u64 });
        }
        self.asked.push(Asked { by, kind, token });
        Ok(())
    }

    /// What is asked for is done, or is being done; or it is refused.
    fn answered(&mut self, to: RequestId, accepted: bool) -> Option<Operation> {
        let at = self.asked.iter().position(|asked| asked.by == to)?;
        let Asked { kind, token, .. } = self.asked.remove(at);
        if !accepted {
            return None;
        }
        self.last += 1;
        let id = OperationId { incarnation: self.incarnation, number: self.last };
        let operation = Operation { id, kind, token, state: State::Running { progress: None } };
        self.all.push(operation.clone());
        if self.all.len() > REMEMBERED
            && let Some(oldest) = self.all.iter().position(Operation::has_ended)
        {
            self.all.remove(oldest);
        }
        Some(operation)
    }

    /// All of this kind that run have ended so. Answers them.
    fn end(&mut self, kind: OperationKind, outcome: &Result<Option<EventKind>, Refusal>) -> Vec<Operation> {
        let state = match outcome {
            Ok(event) => State::Done { outcome: event.clone().map(Box::new) },
            Err(refusal) => State::Failed { error: refusal.clone() },
        };
        let mut ended = Vec::new();
        for operation in self.all.iter_mut().filter(|o| o.kind == kind && !o.has_ended()) {
            operation.state = state.clone();
            ended.push(operation.clone());
        }
        ended
    }

    /// How far all of this kind are. Answers those of which something else was known.
    fn gets_on(&mut self, kind: OperationKind, progress: Option<Progress>) -> Vec<Operation> {
        let mut changed = Vec::new();
        for operation in self.all.iter_mut().filter(|o| o.kind == kind) {
            if let State::Running { progress: known } = &mut operation.state
                && progress.is_some()
                && *known != progress
            {
                *known = progress;
                changed.push(operation.clone());
            }
        }
        changed
    }

    /// An event is told: what has ended by it, and how.
    fn ended_by(&mut self, event: &EventKind) -> Vec<(OperationKind, Result<Option<EventKind>, Refusal>)> {
        use OperationKind::{Dump, Protect, Recover, Restore, Shutdown, Snapshot, Start, Switchover, Trial};
        let done = |kind| vec![(kind, Ok(Some(event.clone())))];
        let failed = |kind, refusal| vec![(kind, Err(refusal))];
        // What the VM's end here ends.
        let over = |reason: &String| {
            let kinds = [Start, Restore, Recover, Snapshot, Dump, Protect, Shutdown, Switchover, Trial];
            kinds.map(|kind| (kind, Err(Refusal::VmEnded { reason: reason.clone() }))).to_vec()
        };
        match event {
            EventKind::SnapshotTaken { .. } => done(Snapshot),
            EventKind::SnapshotFailed { reason, .. } => failed(Snapshot, Refusal::Failed { reason: reason.clone() }),
            EventKind::Restored { .. } => done(Restore),
            EventKind::RestoreFailed { reason, .. } => failed(Restore, Refusal::Failed { reason: reason.clone() }),
            EventKind::Recovered { .. } => done(Recover),
            EventKind::LogUnusable { reason } => failed(Recover, Refusal::LogUnusable { reason: reason.clone() }),
            EventKind::Dumped { .. } => done(Dump),
            EventKind::DumpFailed { reason } => failed(Dump, Refusal::Failed { reason: reason.clone() }),
            EventKind::Protected { .. } => done(Protect),
            EventKind::ImageCommitted { .. } => done(Trial),
            EventKind::FellBack { reason, .. } => failed(Trial, Refusal::FellBack { reason: reason.clone() }),
            EventKind::ShutdownIgnored { within_ms, ended: false } => {
                failed(Shutdown, Refusal::ShutdownIgnored { within_ms: *within_ms })
            }
            EventKind::SwitchoverStarted { .. } => {
                (self.handover, self.backup_lost) = (Some(event.clone()), None);
                Vec::new()
            }
            EventKind::BackupLost { reason, .. } => {
                self.backup_lost = Some(reason.clone());
                Vec::new()
            }
            EventKind::Stopped { reason } => {
                let mut ended = done(Shutdown);
                ended.extend(over(reason));
                ended
            }
            EventKind::StoodDown { reason, .. } => {
                let mut ended = Vec::new();
                if let Some(handover) = self.handover.take() {
                    ended.push((Switchover, Ok(Some(handover))));
                }
                ended.extend(over(reason));
                ended
            }
            EventKind::Lost { reason } => over(reason),
            _ => Vec::new(),
        }
    }
}

impl Core {
    /// Whether a request is to be carried out: not if it has been, by its token, or is one too many.
    pub(crate) fn unless_begun(&mut self, id: RequestId, request: &Request, token: Option<String>) -> bool {
        let Some(kind) = kind_of(request) else { return true };
        if let Some(known) = token.as_deref().and_then(|token| self.operations.of_token(token)).cloned() {
            let reply = match known.kind == kind {
                true => Ok(Answer::Begun { operation: Box::new(known) }),
                false => Err(Refusal::TokenUsed { operation: known.id, kind: known.kind }),
            };
            self.effect(Effect::Reply { to: id, reply });
            return false;
        }
        // Whoever asks for protection while somebody waits for it waits with him: such a wait may be long.
        let shared = (kind == OperationKind::Protect).then(|| self.operations.running(kind).next().cloned()).flatten();
        if let Some(operation) = shared {
            self.effect(Effect::Reply { to: id, reply: Ok(Answer::Begun { operation: Box::new(operation) }) });
            return false;
        }
        match self.operations.asks(id, kind, token) {
            Ok(()) => true,
            Err(refusal) => {
                self.effect(Effect::Reply { to: id, reply: Err(refusal) });
                false
            }
        }
    }

    /// The answer to a request, which tells of the operation if it has begun one.
    pub(crate) fn begun(&mut self, to: RequestId, reply: Reply) -> Reply {
        match self.operations.answered(to, reply.is_ok()) {
            Some(operation) => {
                self.effect(Effect::Operation(operation.clone()));
                Ok(Answer::Begun { operation: Box::new(operation) })
            }
            None => reply,
        }
    }

    pub(crate) fn operation_ends(&mut self, kind: OperationKind, outcome: Result<Option<EventKind>, Refusal>) {
        for operation in self.operations.end(kind, &outcome) {
            self.effect(Effect::Operation(operation));
        }
    }

    /// An event is told.
    pub(crate) fn operations_hear(&mut self, event: &EventKind) {
        for (kind, outcome) in self.operations.ended_by(event) {
            self.operation_ends(kind, outcome);
        }
    }

    pub(crate) fn operations_tick(&mut self) {
        self.check_switchover();
        if self.operations.all.iter().all(Operation::has_ended) {
            return;
        }
        let bytes = |done, total| (total > 0).then_some(Progress { done, total, unit: Unit::Bytes });
        let snapshot = self.snapshot_progress().and_then(|p| bytes(p.done, p.total));
        let sync = self.replicas.iter().find(|r| r.first.is_none()).and_then(|r| r.sync);
        let (dump, trial) = (self.dump_so_far(), self.health.policy.trial());
        let millis = |done, total| Some(Progress { done, total, unit: Unit::Milliseconds });
        let far = [
            (OperationKind::Snapshot, snapshot),
            (OperationKind::Restore, snapshot),
            (OperationKind::Protect, sync.and_then(|p| bytes(p.bytes_sent, p.bytes_total))),
            (OperationKind::Dump, dump.and_then(|p| bytes(p.bytes_done, p.bytes_total))),
            (OperationKind::Trial, trial.and_then(|t| millis(t.within_ms.saturating_sub(t.left_ms), t.within_ms))),
            (OperationKind::Shutdown, self.shutdown_so_far().and_then(|(done, total)| millis(done, total))),
        ];
        for (kind, progress) in far {
            for operation in self.operations.gets_on(kind, progress) {
                self.effect(Effect::Operation(operation));
            }
        }
    }

    /// A switchover that is over, and the VM is here still.
    fn check_switchover(&mut self) {
        let here = self.protocol.role() == Role::Primary && !self.protocol.hands_over();
        // Until the witness has spoken the other host may have it.
        if here
            && self.protocol.protection() != Some(ProtectionState::Waiting)
            && self.operations.running(OperationKind::Switchover).next().is_some()
        {
            self.operations.handover = None;
            let reason = self.operations.backup_lost.take().unwrap_or_else(|| "the VM stays here".into());
            self.operation_ends(OperationKind::Switchover, Err(Refusal::Stayed { reason }));
        }
    }

    /// Ends an operation before its time, if that is possible.
    pub(crate) fn cancel(&mut self, id: OperationId) -> Reply {
        let Some(operation) = self.operations.all.iter().find(|o| o.id == id).cloned() else {
            return Err(Refusal::UnknownOperation { operation: id });
        };
        // Whoever cancels what has ended has what he wants, or learns that he is late.
        if !operation.has_ended() {
            let refusal = Refusal::NotCancellable { operation: id, kind: operation.kind };
            let cancelled = Err(Refusal::Cancelled);
            let kind = operation.kind;
            // A restore or a recovery is not given up half-way: volumes that are partly overwritten cannot be started from.
            match kind {
                OperationKind::Snapshot => {
                    self.operation_ends(kind, cancelled);
                    self.snapshot_failed("it was cancelled".into());
                }
                OperationKind::Shutdown => {
                    self.operation_ends(kind, cancelled);
                    self.forget_shutdown();
                }
                OperationKind::Trial if self.health.policy.trial().is_some() => {
                    self.operation_ends(kind, cancelled);
                    self.health_input(policy::Input::FallBack);
                }
                _ => return Err(refusal),
            }
        }
        let now = self.operations.all.iter().find(|o| o.id == id).cloned().unwrap_or(operation);
        Ok(Answer::Operation { operation: Box::new(now) })
    }
}
