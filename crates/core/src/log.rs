//! The log of a non-volatile VM as the core sees it: when it begins, what waits for it, when the VM goes on from it.
//!
//! Nothing is proposed to the witness before the log has noted it: a host that finds the record that it proposed knows that it
//! had won it, and that it let nothing go since that is not in the log.

use std::time::Duration;

use ninefold_control::{Mixture, Refusal, Request};
use ninefold_model::event::EventKind;
use ninefold_model::spec::{EpochPolicy, NonVolatile};
use ninefold_model::status::{LogState, LogStatus, Role};
use ninefold_model::{Epoch, Record, Term};
use ninefold_replica::protocol::{Input, LogRole, LogStanding};
use ninefold_replica::stream::Hello;
use ninefold_replica::target::Target;

use crate::backup::{Origin, Takeover};
use crate::core::{Core, SHUT_DOWN};
use crate::effect::{Beginning, DisksOrder, Effect, LogOrder, Metric, RecoveryOrder, VmOrder, WitnessRequest};
use crate::event::{LogFailure, RecoveryNews, RequestId, Seen, Source};
use crate::former_backups::KEEP;
use crate::time::Monotonic;

/// After an attempt that failed; each further one doubles it.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between two attempts.
const RETRY_LAST: Duration = Duration::from_secs(60);

/// How long output may wait for a disk that does not answer. As long as for one that is too slow.
const DISK_LIMIT: Duration = Duration::from_secs(10);

/// How long a VM that has ended waits for its log to be removed.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// What a log says of itself.
#[derive(Clone)]
struct FoundLog {
    standing: LogStanding,
    /// Its last checkpoint.
    epoch: Epoch,
    /// The newest term that the witness has held, as far as the log shows.
    known: Term,
}

/// A log that was found and may be gone on from.
struct Recovery {
    id: u64,
    found: Option<FoundLog>,
    /// It is being loaded, or is.
    going: bool,
}

/// A VM has stopped, and that is told when its log is gone.
struct Removal {
    id: u64,
    since: Monotonic,
    /// `Stopped`.
    event: EventKind,
    /// What is asked meanwhile: it would find a log that goes.
    later: Vec<(RequestId, Request, Seen)>,
}

/// See the [module](self).
pub(crate) struct LogSide {
    /// The number of the log that is kept.
    pub(crate) id: Option<u64>,
    /// That of a backup's former session, for as long as its standby: the next one may go on with it. It has the directory.
    kept: Option<(u64, Monotonic)>,
    /// Numbers threads and attempts.
    last_id: u64,
    pub(crate) state: LogState,
    pub(crate) standing: Option<LogStanding>,
    /// The newest term that the log was told of.
    term: Term,
    /// Where the thread of this number stands, and since when that is known.
    at_work: Option<(u64, u64, Monotonic)>,
    /// A log has failed and not noted it, and is to be invalidated: it would be gone on from with the images as they were in this
    /// epoch, which therefore get no more.
    pub(crate) images_wait: Option<Epoch>,
    /// Why the log of a backup that takes the VM over has failed. What becomes of it follows from how the take-over ends.
    failed: Option<(u64, LogFailure)>,
    /// The newest epoch that is durable.
    pub(crate) durable: Epoch,
    last: LogStatus,
    recovery: Option<Recovery>,
    /// The record that the log being loaded speaks of.
    allowed: Option<Record>,
    /// That of a log which did not speak of the record that the witness has shown. It is looked at again when it speaks of another: that one
    /// may have been an old one, of which the log could not tell that it was.
    left: Option<LogStanding>,
    /// Of a VM that has ended: its files may have to go. With whether there was a log.
    parting: Option<(u64, bool)>,
    removal: Option<Removal>,
    /// Somebody waits for the VM to be booted, if there is no log.
    pub(crate) start_wanted: bool,
    /// When a standby looks for a log: once at first, then when there is a cause.
    look: Option<Monotonic>,
    /// When the next attempt may be made after one that failed, and the pause after that.
    retry: Option<(Monotonic, Duration)>,
}

impl LogSide {
    pub(crate) fn new(now: Monotonic) -> Self {
        Self {
            id: None,
            kept: None,
            last_id: 0,
            state: LogState::Off,
            standing: None,
            term: Term(0),
            at_work: None,
            images_wait: None,
            failed: None,
            durable: Epoch(0),
            last: LogStatus { state: LogState::Off, epoch: Epoch(0), commit_bytes: 0, bytes: 0, commit_us: 0 },
            recovery: None,
            allowed: None,
            left: None,
            parting: None,
            removal: None,
            start_wanted: false,
            look: Some(now),
            retry: None,
        }
    }

    /// Whether a VM has stopped and its log is not gone yet.
    pub(crate) fn is_being_removed(&self) -> bool {
        self.removal.is_some()
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn again_later(&mut self, now: Monotonic) {
        let pause = self.retry.map_or(RETRY_FIRST, |(_, pause)| pause);
        self.retry = Some((now + pause, (pause * 2).min(RETRY_LAST)));
    }

    /// This host has stood still: how long its disk did is not known.
    pub(crate) fn stood_still(&mut self) {
        self.at_work = None;
    }

    /// Whether the thread has not got on for too long, while others wait for it. `seen`: where the threads of logs are.
    fn hangs(&mut self, seen: &[(u64, Option<u64>)], now: Monotonic) -> bool {
        let mine = self.id.filter(|_| self.state == LogState::On);
        let at_work = mine.and_then(|id| Some((id, seen.iter().find(|(of, _)| *of == id)?.1?)));
        match (at_work, self.at_work) {
            (Some((id, at)), Some((of, then, since))) if id == of && at == then => now.since(since) > DISK_LIMIT,
            _ => {
                self.at_work = at_work.map(|(id, at)| (id, at, now));
                false
            }
        }
    }

    pub(crate) fn is_mine(&self, id: u64) -> bool {
        self.id == Some(id)
    }
}

impl Core {
    pub(crate) fn non_volatile(&self) -> Option<NonVolatile> {
        self.settings.vm.policy.non_volatile
    }

    /// Whether output waits for the log.
    fn holds_for_log(&self) -> bool {
        self.non_volatile().is_some_and(|n| n.hold_output)
    }

    /// Whether the log has what it is given.
    pub(crate) fn log_is_on(&self) -> bool {
        self.log.state == LogState::On
    }

    pub(crate) fn log_status(&self) -> Option<LogStatus> {
        self.non_volatile().map(|_| {
            let recovering = self.log.recovery.as_ref().is_some_and(|r| r.found.is_some());
            let state = if recovering { LogState::Recovering } else { self.log.state };
            LogStatus { state, epoch: self.log.durable, ..self.log.last }
        })
    }

    /// The VM's record, its memory and what runs it, for a log that begins here.
    pub(crate) fn log_hello(&self) -> Option<(Hello, Record)> {
        let Some(LogRole::Primary { record }) = self.protocol.log_role() else { return None };
        let hello = self.hello(record.term)?;
        Some((hello, record))
    }

    fn log_order(&mut self, id: u64, order: LogOrder) {
        self.effect(Effect::Log { id, order });
    }

    fn start_log(&mut self, reign: Term, beginning: Beginning, standing: LogStanding) {
        self.drop_kept_log();
        let id = self.log.next_id();
        self.log_is(id, standing);
        self.log_order(id, LogOrder::Start { reign, beginning });
    }

    fn log_is(&mut self, id: u64, standing: LogStanding) {
        self.log.id = Some(id);
        self.log.standing = Some(standing);
        self.log.left = None;
        self.log.term = Term(0);
        self.log.durable = Epoch(0);
        self.log.state = LogState::Copying;
    }

    /// That of a backup's former session is of no use any more.
    pub(crate) fn drop_kept_log(&mut self) {
        if let Some((id, _)) = self.log.kept.take() {
            self.log_order(id, LogOrder::Drop);
        }
    }

    pub(crate) fn expire_kept_log(&mut self) {
        let now = self.now.monotonic;
        if self.log.kept.is_some_and(|(_, since)| now.since(since) > KEEP) {
            self.drop_kept_log();
        }
    }

    /// The VM has ended here: its log may have to go.
    pub(crate) fn part_log(&mut self) {
        self.drop_parting_log();
        let was_on = self.log.state == LogState::On;
        self.log.parting = self.log.id.take().map(|id| (id, was_on));
        self.drop_log();
    }

    /// It stays.
    pub(crate) fn drop_parting_log(&mut self) {
        if let Some((id, _)) = self.log.parting.take() {
            self.log_order(id, LogOrder::Drop);
        }
    }

    pub(crate) fn drop_recovery(&mut self) {
        if let Some(Recovery { id, .. }) = self.log.recovery.take() {
            self.effect(Effect::Recovery { id, order: RecoveryOrder::Drop });
        }
    }

    /// A person looks at the log, or goes back in it: what was found of it is let go, unless it is being loaded. False: it is. With
    /// `wanted` it is not looked for either.
    pub(crate) fn leave_log_alone(&mut self, wanted: bool) -> bool {
        if self.log.recovery.as_ref().is_some_and(|r| r.going) {
            return false;
        }
        self.drop_recovery();
        (self.log.look, self.log.left) = (None, None);
        if wanted {
            self.drop_kept_log();
        }
        true
    }

    /// A primary whose VM is not logged begins a log.
    pub(crate) fn check_log(&mut self) {
        let now = self.now.monotonic;
        // One that has ended while it was being stopped may turn out to have stopped.
        if self.protocol.role() != Role::Primary && !self.is_ending() {
            self.drop_parting_log();
        }
        let Some(status) = self.log_status() else { return };
        self.measure(Metric::Log(status));
        // A backup that has not acknowledged is left by its primary; one that takes over has nothing else to go on with.
        if self.protocol.role() == Role::Primary && self.log.hangs(&self.observed.logs, now) {
            let id = self.log.id.unwrap_or_default();
            self.log_failed(id, format!("its disk has not answered for {} s", DISK_LIMIT.as_secs()).into());
        }
        match self.protocol.role() {
            Role::Primary if self.has_vm && self.log.id.is_none() && self.log.retry.is_none_or(|(at, _)| now >= at) => {
                let Some((hello, record)) = self.log_hello() else { return };
                let mut standing = LogStanding::new(LogRole::Primary { record: record.clone() });
                // It was asked for when there was no log that could note it.
                standing.proposed.extend(self.protocol.proposed().cloned());
                let beginning = Beginning::New { hello: Box::new(hello), standing: standing.clone() };
                self.start_log(record.term, beginning, standing);
            }
            Role::Standby
                if self.log.recovery.is_none()
                    && !self.restoring()
                    && !self.protocol.awaits_witness()
                    && !self.protocol.is_spare()
                    && !self.is_ending()
                    && !self.done
                    && self.log.look.is_some_and(|at| now >= at) =>
            {
                self.log.look = None;
                self.drop_kept_log();
                let id = self.log.next_id();
                self.log.recovery = Some(Recovery { id, found: None, going: false });
                self.effect(Effect::Recovery { id, order: RecoveryOrder::Look });
            }
            _ => {}
        }
    }

    /// The VM can be copied to its new log. Not before: what output does not wait for any more must not be in one that would be
    /// believed.
    pub(crate) fn log_begun(&mut self, id: u64) {
        if self.log.is_mine(id) && self.protocol.role() == Role::Primary {
            if self.log.images_wait.is_some() {
                // What the witness was to invalidate is gone: nothing waits for that any more.
                self.input(Input::LogLost { noted: true });
            }
            self.command(VmOrder::AddLog { id });
        }
    }

    /// What a primary's log gets from here on is of the term of the newest record that this host has won, as a backup's is of the newest that binds it:
    /// so it is seen which of them is the newer one, also when nobody can ask the witness.
    pub(crate) fn tell_log_term(&mut self) {
        let term = self.protocol.term();
        if let Some(id) = self.log.id
            && self.protocol.role() == Role::Primary
            && self.log.term < term
        {
            self.log_order(id, LogOrder::Term(term));
            self.log.term = term;
        }
    }

    /// A backup's session is over: the next one may go on with its log.
    pub(crate) fn keep_log(&mut self) {
        let backup = self.log.standing.as_ref().is_some_and(|s| matches!(s.role, LogRole::Backup { .. }));
        if self.backup.is_some() && backup {
            self.drop_kept_log();
            let now = self.now.monotonic;
            self.log.kept = self.log.id.take().map(|id| (id, now));
        }
    }

    /// A backup's log begins with its session, or goes on.
    pub(crate) fn log_session(&mut self, hello: &Hello) {
        self.not_started(Refusal::RunsElsewhere { host: Some(hello.from.clone()) });
        self.drop_recovery();
        // What was here is of no use any more, and what comes is not to be gone on from when the session ends.
        (self.log.look, self.log.left) = (None, None);
        self.drop_log();
        if self.non_volatile().is_some() {
            let role = LogRole::Backup { session: hello.term, primary: hello.from.clone() };
            let standing = LogStanding::new(role);
            match self.log.kept.take() {
                Some((id, _)) => self.log_is(id, standing),
                None => self.start_log(hello.term, Beginning::Awaited, standing),
            }
        }
    }

    /// Lets go of the log; its files stay.
    pub(crate) fn drop_log(&mut self) {
        if let Some(id) = self.log.id.take() {
            self.log_order(id, LogOrder::Drop);
        }
        self.log.standing = None;
        self.log.state = LogState::Off;
    }

    /// This host has taken the VM over, and goes on without the log that it kept as a backup: that does not end with the checkpoint, or
    /// its disk does not answer. It would be believed after a loss of power, since it has noted what was asked for: nothing is let
    /// go before it is invalidated.
    pub(crate) fn leave_log(&mut self) {
        if self.log.id.is_some() {
            // As if it had gone on, and failed: the gate stays shut until the witness has invalidated it.
            self.log_first(Epoch(1));
            let failed = self.log.failed.take().map(|(_, failure)| failure);
            let ends = || "it does not end with the checkpoint that the VM goes on from".to_owned().into();
            self.log_ends(failed.unwrap_or_else(ends));
        }
    }

    /// The log that this host kept as a backup can be gone on with.
    pub(crate) fn log_lives(&self) -> bool {
        self.log.failed.is_none()
    }

    /// The take-over during which a log has failed has ended otherwise than by the VM's running here.
    pub(crate) fn check_failed_log(&mut self) {
        if self.takeover.is_none()
            && let Some((id, failure)) = self.log.failed.take()
        {
            self.log_failed(id, failure);
        }
    }

    /// The VM has ended for good: so does its log. Who is told that the VM has stopped may switch off this host: so that is told when
    /// the log is gone. There is nothing to wait for if it was no log yet.
    pub(crate) fn remove_log(&mut self, stopped: EventKind) {
        // Nothing is to be gone on from.
        (self.log.look, self.log.left) = (None, None);
        let Some((id, was_on)) = self.log.parting.take() else { return self.event(stopped) };
        self.log_order(id, LogOrder::Remove);
        if was_on {
            let since = self.now.monotonic;
            self.end_removal();
            self.log.removal = Some(Removal { id, since, event: stopped, later: Vec::new() });
        } else {
            self.event(stopped);
        }
    }

    pub(crate) fn log_removed(&mut self, id: u64, removed: bool) {
        if self.log.removal.as_ref().is_some_and(|r| r.id == id) {
            if !removed {
                tracing::error!("the log of a VM that has stopped is not removed: it might go on from it");
            }
            self.end_removal();
        }
    }

    pub(crate) fn check_removal(&mut self) {
        let now = self.now.monotonic;
        if self.log.removal.as_ref().is_some_and(|r| now.since(r.since) >= REMOVE_LIMIT) {
            tracing::error!("the log of a VM that has stopped is not removed yet: it might go on from it");
            self.end_removal();
        }
    }

    /// The VM has stopped, as far as can be said.
    fn end_removal(&mut self) {
        let Some(Removal { event, later, .. }) = self.log.removal.take() else { return };
        self.event(event);
        for (id, request, seen) in later {
            self.request(id, request, seen);
        }
    }

    /// While a log goes nothing begins that might find it. Answers what is asked if it is to be dealt with now.
    pub(crate) fn unless_removed(&mut self, id: RequestId, request: Request, seen: Seen) -> Option<(Request, Seen)> {
        match (&mut self.log.removal, &request) {
            (Some(removal), Request::Start { .. } | Request::Restore { .. } | Request::Recover { .. }) => {
                removal.later.push((id, request, seen));
                None
            }
            _ => Some((request, seen)),
        }
    }

    /// The first checkpoint for the log is being taken.
    pub(crate) fn log_first(&mut self, epoch: Epoch) {
        self.log.state = LogState::On;
        self.log.durable = Epoch(epoch.0.saturating_sub(1));
        if self.holds_for_log() {
            self.input(Input::LogFirst { epoch });
        } else {
            self.disks(DisksOrder::Hold);
        }
        self.set_pace();
    }

    pub(crate) fn log_holds(&mut self, id: u64, epoch: Epoch, first: Option<Duration>, status: LogStatus) {
        if !self.log.is_mine(id) {
            return;
        }
        self.log.durable = epoch;
        self.log.last = status;
        if self.protocol.role() == Role::Primary {
            self.measure(Metric::Logged { bytes: status.commit_bytes, us: status.commit_us });
        }
        self.command(VmOrder::Acked { target: Target::Log, epoch });
        // It has been running for a while.
        if epoch.0.is_multiple_of(256) {
            self.log.retry = None;
        }
        if let Some(took) = first {
            let log_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.event(EventKind::NonVolatile { epoch, log_ms });
            self.log.retry = None;
        }
        if self.holds_for_log() {
            self.input(Input::LogHolds { epoch });
        } else {
            self.commit_disks();
            self.stop_when_off();
        }
    }

    /// Whether the volumes may have what the guest did last, as far as the log goes.
    pub(crate) fn log_has_the_last(&self) -> bool {
        let durable = || self.final_epoch.is_some_and(|last| last <= self.log.durable);
        self.log.images_wait.is_none() && (!self.log_is_on() || durable())
    }

    /// The volumes may have what all have that output waits for, and what the log has.
    pub(crate) fn commit_disks(&mut self) {
        let epoch = match (self.holding, self.log_is_on()) {
            (true, true) => self.committed.min(self.log.durable),
            (true, false) => self.committed,
            (false, _) => self.log.durable,
        };
        self.disks(DisksOrder::Commit(self.log.images_wait.map_or(epoch, |limit| epoch.min(limit))));
    }

    /// The volumes may have what the guest does from now on, but for what a log has to have first, or must not be gone on from.
    pub(crate) fn let_volumes(&mut self) {
        if self.holding || self.log_is_on() || self.log.images_wait.is_some() {
            self.commit_disks();
        } else {
            self.disks(DisksOrder::GoThrough);
        }
    }

    /// When a log that had not noted its end is believed no more.
    pub(crate) fn check_invalidated(&mut self) {
        if self.log.images_wait.is_some() && !self.protocol.invalidates() {
            self.log.images_wait = None;
            if self.protocol.role() == Role::Primary && self.has_vm {
                self.let_volumes();
                self.stop_due = self.stop_due.or_else(|| self.is_off_and_done().then_some(SHUT_DOWN));
            }
        }
    }

    pub(crate) fn log_failed(&mut self, id: u64, failure: LogFailure) {
        if self.log.kept.is_some_and(|(kept, _)| kept == id) {
            self.drop_kept_log();
        }
        if !self.log.is_mine(id) {
            return;
        }
        let has_asked = self.protocol.may_have_won() || self.protocol.role() == Role::Primary;
        if self.takeover.is_some() && has_asked {
            // The VM is this host's, or may be. If its standby has all that it needs, it goes on without the log, which has noted what
            // was asked for and would be believed: it is left and invalidated first.
            tracing::error!(reason = %failure.reason, "the log fails while the VM comes here");
            self.log.failed = Some((id, failure));
            return;
        }
        let LogFailure { noted, reason } = failure;
        let was_on = self.log_is_on();
        self.drop_log();
        self.log.again_later(self.now.monotonic);
        self.measure(Metric::LogLost);
        self.event(EventKind::LogLost { reason: reason.clone() });
        match self.protocol.role() {
            Role::Primary => {
                if was_on && !noted {
                    let limit = self.log.images_wait.unwrap_or(self.log.durable);
                    self.log.images_wait = Some(limit.min(self.log.durable));
                }
                if was_on && !self.holds_for_log() && !self.holding {
                    self.let_volumes();
                }
                // A log that could not note that it is behind is to be invalidated, whether output waits for it or not.
                if was_on && (self.holds_for_log() || !noted) {
                    self.input(Input::LogLost { noted });
                }
                // It speaks of no record that comes from here on, and need not.
                self.noted();
                self.command(VmOrder::RemoveTarget { target: Target::Log, comes_back: false });
                self.set_pace();
                // Not when it is being launched anew.
                if self.has_vm {
                    self.stop_when_off();
                }
            }
            Role::Backup => {
                if let Some(session) = self.backup.as_ref().map(|b| b.session) {
                    self.load_failed(session, &format!("the log: {reason}"));
                }
            }
            // What a spare holds is whole without its log, but for volumes, which may lack what the log did not take.
            Role::Standby if self.protocol.is_spare() && self.settings.vm.hardware.volumes.is_empty() => {}
            // The VM was to go on from it. What is on the disk is as good as it was, and is looked at again.
            Role::Standby => {
                self.reset_protocol();
                self.log_after_loss();
            }
        }
    }

    /// The log that is kept, if one is, can go on no more.
    pub(crate) fn log_ends(&mut self, failure: LogFailure) {
        if let Some(id) = self.log.id {
            self.log_failed(id, failure);
            self.log.retry = None;
        }
    }

    /// While only the log gets checkpoints, they are as far apart as it wants.
    pub(crate) fn set_pace(&mut self) {
        let alone = self.log_is_on() && !self.protocol.sessions().iter().any(|s| s.acked().is_some());
        let policy = match self.non_volatile().filter(|_| alone) {
            Some(NonVolatile { interval_ms, hold_output: true }) => EpochPolicy::Adaptive { max_ms: interval_ms },
            Some(NonVolatile { interval_ms, hold_output: false }) => EpochPolicy::Fixed { ms: interval_ms },
            None => self.epochs,
        };
        self.command(VmOrder::Policy(policy));
    }

    // ---- going on from the log ----

    /// What was to start here has not. A log that was not looked for because of that may be looked for again.
    pub(crate) fn not_here(&mut self) {
        if self.non_volatile().is_some() && self.log.look.is_none() && self.log.recovery.is_none() {
            self.log.look = Some(self.now.monotonic + RETRY_FIRST);
        }
    }

    /// The VM is lost here, and perhaps its log can be gone on from.
    pub(crate) fn log_after_loss(&mut self) {
        if self.may_look_after_loss() {
            self.log.again_later(self.now.monotonic);
            self.log.look = self.log.retry.map(|(at, _)| at);
        }
    }

    /// The same of a VM that another host may have, if it is not looked at sooner.
    pub(crate) fn log_after_loss_in(&mut self, pause: Duration) {
        if self.may_look_after_loss() {
            self.log.look = Some(self.now.monotonic + pause);
        }
    }

    /// Whether there may be a log here, and no later look at it is intended already.
    fn may_look_after_loss(&self) -> bool {
        self.non_volatile().is_some() && self.log.look.is_none_or(|at| at <= self.now.monotonic)
    }

    /// Why the volumes are of no use to anybody, if they are: not even `--force` boots from them. What a snapshot or a log has left
    /// half done can be done to the end: [`Core::may_start`] knows.
    pub(crate) fn is_mixture(mixture: Option<Mixture>, force: bool) -> Option<Refusal> {
        match mixture? {
            by @ Mixture::Resync => Some(Refusal::VolumesMixed { by, snapshot: None }),
            by @ Mixture::Log if force => Some(Refusal::VolumesMixed { by, snapshot: None }),
            Mixture::Log | Mixture::Restore => None,
        }
    }

    /// Whether the VM is to be booted now: not while there may be a log to go on from.
    pub(crate) fn may_start(&mut self, force: bool, seen: &Seen) -> Result<bool, Refusal> {
        if let Some(name) = seen.unfinished.as_ref().filter(|_| !force) {
            return Err(Refusal::VolumesMixed { by: Mixture::Restore, snapshot: Some(name.clone()) });
        }
        if force {
            self.end_waiting();
        }
        if force && self.log.recovery.as_ref().is_some_and(|r| r.going) {
            // It is being loaded, and writes nothing more from here on.
            self.disks(DisksOrder::Used);
        }
        if let Some(look) = self.log.look.as_mut().filter(|_| !force) {
            // Not after the pause that follows a failure: somebody waits.
            *look = self.now.monotonic;
        }
        self.check_log();
        let Some(recovery) = self.log.recovery.as_ref().filter(|_| !force) else {
            // Nor is one to be looked for when the VM is on its way: see `not_here`.
            self.drop_recovery();
            (self.log.look, self.log.left) = (None, None);
            return Ok(true);
        };
        match &recovery.found {
            Some(FoundLog { epoch, .. }) => Err(Refusal::LogGoesOn { epoch: Some(*epoch) }),
            None => {
                self.log.start_wanted = true;
                Ok(false)
            }
        }
    }

    pub(crate) fn recovery_news(&mut self, id: u64, news: RecoveryNews) {
        if self.log.recovery.as_ref().is_none_or(|r| r.id != id) {
            return;
        }
        match news {
            RecoveryNews::Nothing => {
                self.drop_recovery();
                if std::mem::take(&mut self.log.start_wanted) {
                    self.ask(WitnessRequest::Start { force: false });
                }
            }
            RecoveryNews::Unusable(reason) => {
                self.drop_recovery();
                self.event(EventKind::LogUnusable { reason: reason.clone() });
                self.not_started(Refusal::LogUnusable { reason });
            }
            RecoveryNews::Found { standing, epoch, term } => {
                self.not_started(Refusal::LogGoesOn { epoch: Some(epoch) });
                tracing::info!(%epoch, ?standing, "there is a log");
                if let Some(recovery) = &mut self.log.recovery {
                    let known = term.max(standing.known_term());
                    recovery.found = Some(FoundLog { standing, epoch, known });
                }
                // The witness's next word decides.
                self.ask(WitnessRequest::Cancel);
            }
            RecoveryNews::Failed(reason) => {
                self.drop_recovery();
                self.event(EventKind::LogUnusable { reason });
                self.log_after_loss();
            }
            RecoveryNews::Loaded(loaded) => {
                let found = self.log.recovery.take().and_then(|r| r.found);
                let (Some(FoundLog { standing, epoch, .. }), Some(record)) = (found, self.log.allowed.take()) else {
                    return;
                };
                self.start_log(Term(0), Beginning::Continued { recovery: id }, standing.clone());
                self.takeover = Some(Takeover {
                    suspected: self.now.monotonic,
                    detect_us: 0,
                    won: None,
                    loaded: Some((Source::Log(id), loaded)),
                    ready: true,
                    origin: Origin::Log,
                });
                self.input(Input::Recover { standing, epoch, record });
            }
        }
    }

    fn not_started(&mut self, refusal: Refusal) {
        if std::mem::take(&mut self.log.start_wanted) {
            self.start_failed(refusal);
        }
    }

    /// Why this is not what the witness held, if there is a log here that waits to be gone on from.
    pub(crate) fn log_doubts(&self, held: Option<&Record>) -> Option<String> {
        let known = self.log.recovery.as_ref().and_then(|r| r.found.as_ref())?.known;
        match held {
            None => Some(format!("it has no record of the VM, of which there is a log of term {known} here")),
            Some(r) if r.term < known => {
                Some(format!("it names {} in term {}, and the log here is of term {known}", r.primary, r.term))
            }
            Some(_) => None,
        }
    }

    /// The witness holds this. If the log speaks of it, the VM is this host's to go on with.
    pub(crate) fn record_seen(&mut self, record: &Record) {
        let Some(recovery) = &mut self.log.recovery else { return self.look_again(record) };
        let Some(FoundLog { standing, epoch, known }) = recovery.found.clone() else { return };
        if recovery.going || record.term < known {
            return;
        }
        if self.protocol.may_recover(&standing, record) {
            self.log.allowed = Some(record.clone());
            recovery.going = true;
            let id = recovery.id;
            self.effect(Effect::Recovery { id, order: RecoveryOrder::Load });
            return;
        }
        self.drop_recovery();
        let who = &record.primary;
        // It says so itself; or it could not, and was invalidated at the witness.
        let is_behind = standing.behind || *who == self.settings.host;
        let why = if is_behind {
            format!("what the VM said after epoch {epoch} is not in the log")
        } else {
            format!("{who} has had the VM since (term {})", record.term)
        };
        tracing::info!(%why, "the log is left alone");
        self.log.left = Some(standing);
        if is_behind {
            self.event(EventKind::LogUnusable { reason: why });
        }
    }

    /// A log was left alone, and is looked at again if it speaks of what the witness holds now.
    fn look_again(&mut self, record: &Record) {
        let speaks = |left: &LogStanding| self.protocol.may_recover(left, record);
        if self.protocol.role() == Role::Standby && self.log.left.as_ref().is_some_and(speaks) {
            self.log.left = None;
            self.log.look = Some(self.now.monotonic);
        }
    }
}
