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
        Request::Stop => OperationKind::Stop,
        Request::Shutdown { .. } => OperationKind::Shutdown,
        Request::Trial { .. } => OperationKind::Trial,
        Request::Retire { .. } => OperationKind::Retire,
        Request::Rename { .. } => OperationKind::Rename,
        _ => return None,
    })
}

/// A request that is to become an operation, if it is not refused.
struct Asked {
    by: RequestId,
    kind: OperationKind,
    /// What it was, where it may come again by its token.
    token: Option<(String, Request)>,
    /// It has come again meanwhile.
    again: Vec<RequestId>,
}

/// A token, and what was asked with it.
struct Token {
    text: String,
    request: Request,
    operation: OperationId,
}

/// An operation, as it is.
struct Known {
    operation: Operation,
    /// Of a trial its number.
    trial: Option<u64>,
}

/// What was done with this token before.
enum Before {
    /// Nothing, as far as is remembered.
    Nothing,
    /// The same was asked, and this has become of it.
    Begun(Operation),
    /// The same was asked, and is not answered yet: the answer is for this request, too.
    Asked,
    /// Another request was.
    Another { operation: Option<OperationId>, kind: OperationKind },
}

/// The operations of one life of a keeper: those that run, and the latest that have ended. Pure.
pub(crate) struct Operations {
    incarnation: Incarnation,
    last: u64,
    asked: Vec<Asked>,
    /// The oldest first.
    all: Vec<Known>,
    /// The oldest first.
    tokens: Vec<Token>,
    /// Where the VM is being handed to, as an event says it.
    handover: Option<EventKind>,
    /// Why a backup was last lost.
    backup_lost: Option<String>,
}

impl Operations {
    pub(crate) fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            last: 0,
            asked: Vec::new(),
            all: Vec::new(),
            tokens: Vec::new(),
            handover: None,
            backup_lost: None,
        }
    }

    fn get(&self, id: OperationId) -> Option<&Operation> {
        self.all.iter().map(|known| &known.operation).find(|o| o.id == id)
    }

    /// What was done with this token before; `by` asks for this with it now.
    fn before(&mut self, by: RequestId, token: &str, request: &Request) -> Before {
        if let Some(used) = self.tokens.iter().find(|t| t.text == token) {
            let Some(operation) = self.get(used.operation).cloned() else { return Before::Nothing };
            return match used.request == *request {
                true => Before::Begun(operation),
                false => Before::Another { operation: Some(operation.id), kind: operation.kind },
            };
        }
        let same = |asked: &&mut Asked| asked.token.as_ref().is_some_and(|(text, _)| text == token);
        match self.asked.iter_mut().find(same) {
            Some(asked) if asked.token.as_ref().is_some_and(|(_, first)| first == request) => {
                asked.again.push(by);
                Before::Asked
            }
            Some(other) => Before::Another { operation: None, kind: other.kind },
            None => Before::Nothing,
        }
    }

    /// Whether this is the operation of the trial of that number.
    fn is_of_trial(&self, id: OperationId, trial: u64) -> bool {
        self.all.iter().any(|known| known.operation.id == id && known.trial == Some(trial))
    }

    fn running(&self, kind: OperationKind) -> impl Iterator<Item = &Operation> {
        self.all.iter().map(|known| &known.operation).filter(move |o| o.kind == kind && !o.has_ended())
    }

    fn any_runs(&self) -> bool {
        self.all.iter().any(|known| !known.operation.has_ended())
    }

    /// Somebody asks for what is an operation, or will be told why it is none.
    fn asks(&mut self, by: RequestId, kind: OperationKind, token: Option<(String, Request)>) -> Result<(), Refusal> {
        let running = self.all.iter().filter(|known| !known.operation.has_ended()).count();
        if running + self.asked.len() >= MOST_RUNNING {
            return Err(Refusal::TooManyOperations { limit: MOST_RUNNING as u64 });
        }
        self.asked.push(Asked { by, kind, token, again: Vec::new() });
        Ok(())
    }

    /// What is asked for is done, or is being done; or it is refused. Answers the operation, and who else has asked for it.
    fn answered(&mut self, to: RequestId, accepted: bool, trial: Option<u64>) -> (Option<Operation>, Vec<RequestId>) {
        let Some(at) = self.asked.iter().position(|asked| asked.by == to) else { return (None, Vec::new()) };
        let Asked { kind, token, again, .. } = self.asked.remove(at);
        if !accepted {
            return (None, again);
        }
        self.last += 1;
        let id = OperationId { incarnation: self.incarnation, number: self.last };
        let text = token.as_ref().map(|(text, _)| text.clone());
        let operation = Operation { id, kind, token: text, state: State::Running { progress: None } };
        self.all.push(Known { operation: operation.clone(), trial: trial.filter(|_| kind == OperationKind::Trial) });
        if let Some((text, request)) = token {
            self.remember(text, request, id);
        }
        if self.all.len() > REMEMBERED
            && let Some(oldest) = self.all.iter().position(|known| known.operation.has_ended())
        {
            let gone = self.all.remove(oldest).operation.id;
            self.tokens.retain(|t| t.operation != gone);
        }
        (Some(operation), again)
    }

    /// What was asked with this token is this operation. Those of operations that have ended are forgotten first.
    fn remember(&mut self, text: String, request: Request, operation: OperationId) {
        self.tokens.push(Token { text, request, operation });
        if self.tokens.len() > REMEMBERED {
            let ended = |t: &Token| self.get(t.operation).is_none_or(Operation::has_ended);
            let oldest = self.tokens.iter().position(ended).unwrap_or(0);
            self.tokens.remove(oldest);
        }
    }

    /// All of this kind that run, or the one of this trial, have ended so. Answers them.
    fn end(
        &mut self,
        kind: OperationKind,
        trial: Option<u64>,
        outcome: &Result<Option<EventKind>, Refusal>,
    ) -> Vec<Operation> {
        let state = match outcome {
            Ok(event) => State::Done { outcome: event.clone().map(Box::new) },
            Err(refusal) => State::Failed { error: refusal.clone() },
        };
        let mut ended = Vec::new();
        for known in self.all.iter_mut().filter(|known| trial.is_none() || known.trial == trial) {
            let operation = &mut known.operation;
            if operation.kind == kind && !operation.has_ended() {
                operation.state = state.clone();
                ended.push(operation.clone());
            }
        }
        ended
    }

    /// How far all of this kind are, or the one of this trial. Answers those of which something else was known.
    fn gets_on(&mut self, kind: OperationKind, trial: Option<u64>, progress: Option<Progress>) -> Vec<Operation> {
        let mut changed = Vec::new();
        let these = self.all.iter_mut().filter(|known| known.operation.kind == kind && known.trial == trial);
        for operation in these.map(|known| &mut known.operation) {
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
        use OperationKind::{
            Dump, Protect, Recover, Restore, Retire, Shutdown, Snapshot, Start, Stop, Switchover, Trial,
        };
        let done = |kind| vec![(kind, Ok(Some(event.clone())))];
        let failed = |kind, refusal| vec![(kind, Err(refusal))];
        // What the VM's end here ends.
        let over = |reason: &String| {
            let kinds = [Start, Restore, Recover, Snapshot, Dump, Protect, Stop, Shutdown, Switchover, Trial];
            kinds.map(|kind| (kind, Err(Refusal::VmEnded { reason: reason.clone() }))).to_vec()
        };
        match event {
            EventKind::SnapshotTaken { .. } => done(Snapshot),
            EventKind::SnapshotFailed { reason, .. } => failed(Snapshot, Refusal::Failed { reason: reason.clone() }),
            EventKind::Restored { .. } => done(Restore),
            EventKind::RestoreFailed { reason, .. } => failed(Restore, Refusal::Failed { reason: reason.clone() }),
            EventKind::Recovered { .. } => done(Recover),
            EventKind::LogUnusable { reason } => failed(Recover, Refusal::LogUnusable { reason: reason.clone() }),
            EventKind::Protected { .. } => done(Protect),
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
                ended.extend(done(Stop));
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
            // Who wants it stopped has what he wants: nobody has it.
            EventKind::Lost { reason } | EventKind::StartFailed { reason } => {
                let mut ended = done(Stop);
                ended.extend(over(reason));
                ended
            }
            EventKind::Retired { .. } => {
                // Nobody has it now, whomever it was being handed to.
                self.handover = None;
                // Who wants it stopped has what he wants.
                let mut ended = done(Retire);
                ended.extend(done(Stop));
                ended
            }
            _ => Vec::new(),
        }
    }
}

impl Core {
    /// Whether a request is to be carried out: not if it has been, by its token, or is one too many.
    pub(crate) fn unless_begun(&mut self, id: RequestId, request: &Request, token: Option<String>) -> bool {
        let Some(kind) = kind_of(request) else { return true };
        let token = token.map(|text| (text, request.clone()));
        if let Some((text, request)) = &token {
            let reply = match self.operations.before(id, text, request) {
                Before::Nothing => None,
                Before::Asked => return false,
                Before::Begun(operation) => Some(Ok(Answer::Begun { operation: Box::new(operation) })),
                Before::Another { operation, kind } => Some(Err(Refusal::TokenUsed { operation, kind })),
            };
            if let Some(reply) = reply {
                self.effect(Effect::Reply { to: id, reply });
                return false;
            }
        }
        // Whoever asks for protection, or for the end, while somebody waits for it waits with him: such a wait may be long.
        let is_shared = match kind {
            OperationKind::Protect => true,
            OperationKind::Stop => self.protocol.is_stopping() || self.log.is_being_removed(),
            _ => false,
        };
        let running = self.operations.running(kind).next().filter(|_| is_shared).cloned();
        if let Some(operation) = running {
            if kind == OperationKind::Protect {
                // A person may have mended what was wrong with a host; and he wants it however the one before him ends.
                self.resting.clear();
                self.before_protect = self.protocol.wanted().protection;
            }
            if let Some((text, request)) = token {
                self.operations.remember(text, request, operation.id);
            }
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
        let trial = self.health.policy.trial_number();
        let (operation, again) = self.operations.answered(to, reply.is_ok(), trial);
        let reply = match operation {
            Some(operation) => {
                self.effect(Effect::Operation(operation.clone()));
                Ok(Answer::Begun { operation: Box::new(operation) })
            }
            None => reply,
        };
        for to in again {
            self.effect(Effect::Reply { to, reply: reply.clone() });
        }
        reply
    }

    pub(crate) fn operation_ends(&mut self, kind: OperationKind, outcome: Result<Option<EventKind>, Refusal>) {
        for operation in self.operations.end(kind, None, &outcome) {
            self.effect(Effect::Operation(operation));
        }
    }

    /// The trial of this number has ended so. The one after it may have begun.
    pub(crate) fn trial_ends(&mut self, trial: u64, outcome: Result<Option<EventKind>, Refusal>) {
        for operation in self.operations.end(OperationKind::Trial, Some(trial), &outcome) {
            self.effect(Effect::Operation(operation));
        }
    }

    /// An event is told.
    pub(crate) fn operations_hear(&mut self, event: &EventKind) {
        // Whether the VM has stopped is still to be found out.
        let gone = self.is_ending() && matches!(event, EventKind::StoodDown { .. });
        let open = |kind| gone && matches!(kind, OperationKind::Stop | OperationKind::Shutdown);
        for (kind, outcome) in self.operations.ended_by(event).into_iter().filter(|(kind, _)| !open(*kind)) {
            self.operation_ends(kind, outcome);
        }
    }

    pub(crate) fn operations_tick(&mut self) {
        if !self.operations.any_runs() {
            return;
        }
        self.check_switchover();
        self.check_ended();
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
        let number = self.health.policy.trial_number();
        for (kind, progress) in far {
            let trial = number.filter(|_| kind == OperationKind::Trial);
            for operation in self.operations.gets_on(kind, trial, progress) {
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

    /// Nothing is waited for that cannot come any more: of a VM that is not here, and of what is not being loaded. As a rule an event has said
    /// so before, and why.
    fn check_ended(&mut self) {
        let here = self.protocol.role() == Role::Primary;
        let comes = here || self.is_ending() || self.protocol.awaits_witness();
        if !comes && !self.has_vm && !self.log.is_being_removed() {
            self.nothing_is_here();
        }
    }

    /// Ends what was asked of a VM of which nothing is here any more, nor comes.
    pub(crate) fn nothing_is_here(&mut self) {
        use OperationKind::{Dump, Protect, Recover, Restore, Shutdown, Snapshot, Stop, Switchover, Trial};
        let over = || Err(Refusal::VmEnded { reason: "nothing of it is here any more".into() });
        for kind in [Snapshot, Dump, Protect, Switchover, Stop, Shutdown, Trial] {
            self.operation_ends(kind, over());
        }
        if !self.restoring() {
            [Restore, Recover].into_iter().for_each(|kind| self.operation_ends(kind, over()));
        }
    }

    /// Ends an operation before its time, if that is possible.
    pub(crate) fn cancel(&mut self, id: OperationId) -> Reply {
        let Some(operation) = self.operations.get(id).cloned() else {
            return Err(Refusal::UnknownOperation { operation: id });
        };
        // Whoever cancels what has ended has what he wants, or learns that he is late.
        if !operation.has_ended() {
            let refusal = Refusal::NotCancellable { operation: id, kind: operation.kind };
            let cancelled = Err(Refusal::Cancelled);
            let kind = operation.kind;
            // A restore or a recovery is not given up half-way: volumes that are partly overwritten cannot be started from.
            match kind {
                OperationKind::Start if self.starting && self.cancel_start() => {}
                OperationKind::Protect => {
                    self.operation_ends(kind, cancelled);
                    // Whoever had it before keeps it.
                    self.want(self.before_protect);
                }
                OperationKind::Restore | OperationKind::Recover if self.cancel_restore() => {}
                OperationKind::Snapshot => {
                    self.operation_ends(kind, cancelled);
                    self.snapshot_failed("it was cancelled".into());
                }
                OperationKind::Shutdown => {
                    self.operation_ends(kind, cancelled);
                    self.forget_shutdown();
                }
                OperationKind::Trial => {
                    // One whose image is being put on record is over.
                    let number = self.health.policy.trial_number().filter(|n| self.operations.is_of_trial(id, *n));
                    let Some(number) = number else { return Err(refusal) };
                    self.trial_ends(number, cancelled);
                    self.health_input(policy::Input::FallBack);
                }
                _ => return Err(refusal),
            }
        }
        let now = self.operations.get(id).cloned().unwrap_or(operation);
        Ok(Answer::Operation { operation: Box::new(now) })
    }
}
