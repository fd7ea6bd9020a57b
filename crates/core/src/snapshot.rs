//! Snapshots as the core sees them: one at a time is taken, or loaded. So is a log that a person goes back in.

use ninefold_control::{Answer, FreezeChoice, OperationKind, Refusal, Work};
use ninefold_model::event::EventKind;
use ninefold_model::status::{SnapshotProgress, SnapshotStep, SyncProgress};
use ninefold_model::{Record, SnapshotName};
use ninefold_replica::protocol::Input;
use ninefold_replica::target::Target;

use crate::backup::{Origin, Takeover};
use crate::core::Core;
use crate::effect::{Effect, JobOrder, VmOrder, WitnessRequest};
use crate::event::{Behind, JobNews, RequestId, Seen, Source};
use crate::refusal;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct SnapshotSide {
    last_id: u64,
    /// What is under way.
    job: Option<Running>,
    /// Who wants to know what the log would be gone back to, when the witness has been asked.
    asks: Option<RequestId>,
}

impl SnapshotSide {
    pub(crate) fn asks_of_log(&mut self) -> Option<RequestId> {
        self.asks.take()
    }

    /// Somebody waits for that.
    pub(crate) fn is_asked_of_log(&self) -> bool {
        self.asks.is_some()
    }
}

struct Running {
    id: u64,
    /// The snapshot; none: the VM's log.
    name: Option<SnapshotName>,
    progress: Option<SnapshotProgress>,
    /// The VM is to be started from it.
    restore: bool,
    clone: bool,
    force: bool,
    /// It is not wanted any more.
    cancelled: bool,
    /// The witness's record under which it is loaded, once that is known.
    found: Option<Option<Record>>,
}

impl Running {
    /// What one is told who wants something else.
    fn work(&self) -> Work {
        match (&self.name, self.restore) {
            (None, _) => Work::Recover,
            (Some(_), true) => Work::Restore,
            (Some(_), false) => Work::Snapshot,
        }
    }

    /// As what it was asked for.
    fn operation(&self) -> OperationKind {
        match (&self.name, self.restore) {
            (None, _) => OperationKind::Recover,
            (Some(_), true) => OperationKind::Restore,
            (Some(_), false) => OperationKind::Snapshot,
        }
    }
}

impl Core {
    pub(crate) fn snapshot_progress(&self) -> Option<SnapshotProgress> {
        self.snapshot.job.as_ref().and_then(|job| job.progress.clone())
    }

    fn begin_job(&mut self, name: Option<&SnapshotName>, restore: bool, clone: bool, force: bool) -> u64 {
        self.snapshot.last_id += 1;
        let doing = if restore { SnapshotStep::Verifying } else { SnapshotStep::Memory };
        let progress = name.map(|name| SnapshotProgress { name: name.clone(), doing, done: 0, total: 0, waited_us: 0 });
        let id = self.snapshot.last_id;
        let name = name.cloned();
        self.snapshot.job = Some(Running { id, name, progress, restore, clone, force, cancelled: false, found: None });
        id
    }

    fn job_order(&mut self, id: u64, order: JobOrder) {
        self.effect(Effect::Job { id, order });
    }

    /// The job is over, and the VM does not go on from it. Whatever loads it touches no more.
    fn leave_job(&mut self, job: &Running) {
        self.job_order(job.id, JobOrder::End { gone_on: false });
    }

    /// Begins to take a snapshot; the events tell the rest.
    pub(crate) fn take_snapshot(
        &mut self,
        request: RequestId,
        name: SnapshotName,
        parent: Option<SnapshotName>,
        freeze: FreezeChoice,
    ) {
        if let Err(refusal) = self.begin_snapshot(request, name, parent, freeze) {
            self.reply(request, Err(refusal));
        }
    }

    fn begin_snapshot(
        &mut self,
        request: RequestId,
        name: SnapshotName,
        parent: Option<SnapshotName>,
        freeze: FreezeChoice,
    ) -> Result<(), Refusal> {
        if let Some(job) = &self.snapshot.job {
            return Err(Refusal::Busy { with: job.work() });
        }
        if self.off {
            return Err(Refusal::GuestOff);
        }
        if self.final_epoch.is_some() {
            return Err(Refusal::Busy { with: Work::Switchover });
        }
        let Some((hello, record)) = self.log_hello() else {
            return Err(Refusal::Busy { with: Work::Launch });
        };
        let plan = self.freezing(freeze)?;
        let id = self.begin_job(Some(&name), false, false, false);
        let (qemu, generation) = (hello.qemu.clone(), self.generation);
        let (hello, term) = (Box::new(hello), record.term);
        self.job_order(id, JobOrder::Take { request, name, parent, hello, term, qemu, freeze: plan, generation });
        Ok(())
    }

    /// The snapshot is being taken, or cannot be.
    pub(crate) fn snapshot_begun(&mut self, id: u64, request: RequestId, outcome: Result<(), Refusal>) {
        match outcome {
            Ok(()) => self.reply(request, Ok(Answer::Done)),
            Err(refusal) => {
                self.snapshot.job.take_if(|job| job.id == id);
                self.reply(request, Err(refusal));
            }
        }
    }

    /// Begins to load a snapshot; the witness is asked when it is loaded.
    pub(crate) fn restore(&mut self, request: RequestId, name: SnapshotName, force: bool, clone: bool, seen: &Seen) {
        let outcome = self.begin_restore(name, force, clone, seen);
        match outcome {
            Ok(()) => self.reply(request, Ok(Answer::Done)),
            Err(refusal) => self.reply(request, Err(refusal)),
        }
    }

    fn begin_restore(&mut self, name: SnapshotName, force: bool, clone: bool, seen: &Seen) -> Result<(), Refusal> {
        if let Some(refusal) = self.why_here(force) {
            return Err(refusal);
        }
        if self.starting {
            return Err(Refusal::Busy { with: Work::Start });
        }
        if let Some(job) = &self.snapshot.job {
            return Err(Refusal::Busy { with: job.work() });
        }
        if self.snapshot.is_asked_of_log() {
            return Err(Refusal::Busy { with: Work::LogLook });
        }
        // What another attempt has left is overwritten.
        let again = seen.unfinished.is_some();
        if !self.may_start(force || again, seen)? {
            self.log.start_wanted = false;
            return Err(Refusal::Busy { with: Work::LogLook });
        }
        self.begin_job(Some(&name), true, clone, force);
        // Nothing is touched before the witness has been heard.
        self.ask(WitnessRequest::Start { force });
        Ok(())
    }

    /// Tells what the VM's log here would be gone back to, or goes back in it.
    pub(crate) fn recover(&mut self, request: RequestId, force: bool) {
        if let Err(refusal) = self.begin_recover(request, force) {
            self.reply(request, Err(refusal));
        }
    }

    fn begin_recover(&mut self, request: RequestId, force: bool) -> Result<(), Refusal> {
        if self.non_volatile().is_none() {
            return Err(Refusal::NotLogged);
        }
        if let Some(refusal) = self.why_here(force) {
            return Err(refusal);
        }
        if self.starting {
            return Err(Refusal::Busy { with: Work::Start });
        }
        if self.snapshot.is_asked_of_log() {
            return Err(Refusal::Busy { with: Work::LogLook });
        }
        if let Some(job) = &self.snapshot.job {
            return Err(Refusal::Busy { with: job.work() });
        }
        if force {
            self.end_waiting();
        }
        if !self.leave_log_alone(force) {
            return Err(Refusal::LogGoesOn { epoch: None });
        }
        if force {
            self.begin_job(None, true, false, true);
            self.reply(request, Ok(Answer::Done));
        } else {
            self.snapshot.asks = Some(request);
        }
        self.ask(WitnessRequest::Start { force });
        Ok(())
    }

    /// The witness has been asked: what is on the disk is read.
    pub(crate) fn tell_of_log(&mut self, held: Result<Option<Record>, String>, to: RequestId) {
        self.effect(Effect::ReportLog { to, held });
        // It may be one that is gone on from without being told to.
        self.not_here();
    }

    /// The witness would let the VM start here: the snapshot is loaded.
    fn load_snapshot(&mut self) {
        let Some(job) = &self.snapshot.job else { return };
        let (id, name, clone) = (job.id, job.name.clone(), job.clone);
        let record = job.found.clone().flatten();
        self.drop_kept_log();
        self.job_order(id, JobOrder::Load { name, clone, record });
    }

    /// The VM is being started from a snapshot.
    pub(crate) fn restoring(&self) -> bool {
        self.snapshot.job.as_ref().is_some_and(|job| job.restore)
    }

    /// What was under way is done: the VM goes on from it.
    pub(crate) fn drop_job(&mut self) {
        if let Some(job) = self.snapshot.job.take() {
            self.job_order(job.id, JobOrder::End { gone_on: true });
        }
    }

    /// What is being loaded is not wanted, or not granted: why, in words, and as who has asked for it is told.
    pub(crate) fn drop_restore(&mut self, words: &str, refusal: Refusal) {
        if let Some(job) = self.snapshot.job.take_if(|job| job.restore) {
            self.leave_job(&job);
            let refusal = if job.cancelled { Refusal::Cancelled } else { refusal };
            self.operation_ends(job.operation(), Err(refusal));
            self.not_loaded(job.name, words.into());
        }
    }

    /// What is to be loaded is not wanted any more. Answers whether it can be given up: not once its loading has begun. The witness has been asked
    /// what it holds, and its answer is waited for: it would be taken for that to the next question.
    pub(crate) fn cancel_restore(&mut self) -> bool {
        let unbegun = self.snapshot.job.as_mut().filter(|job| job.restore && job.found.is_none());
        unbegun.map(|job| job.cancelled = true).is_some()
    }

    /// The VM that was to be in it is not here any more: why, as for [`Core::drop_restore`].
    pub(crate) fn drop_snapshot(&mut self, words: &str, refusal: Refusal) {
        if let Some(job) = self.snapshot.job.take_if(|job| !job.restore) {
            self.operation_ends(job.operation(), Err(refusal));
            self.not_taken(job, words.into());
        }
    }

    fn not_taken(&mut self, job: Running, reason: String) {
        self.leave_job(&job);
        if let Some(name) = job.name {
            self.event(EventKind::SnapshotFailed { name, reason });
        }
    }

    fn not_loaded(&mut self, name: Option<SnapshotName>, reason: String) {
        self.event(match name {
            Some(name) => EventKind::RestoreFailed { name, reason },
            None => EventKind::LogUnusable { reason },
        });
        self.not_here();
    }

    pub(crate) fn snapshot_copied(&mut self, progress: SyncProgress) {
        if let Some(of) = self.snapshot.job.as_mut().and_then(|job| job.progress.as_mut()) {
            (of.done, of.total) = (progress.bytes_sent, progress.bytes_total);
        }
    }

    pub(crate) fn snapshot_failed(&mut self, reason: String) {
        self.command(VmOrder::RemoveTarget { target: Target::Snapshot, comes_back: false });
        if let Some(job) = self.snapshot.job.take_if(|job| !job.restore) {
            self.not_taken(job, reason);
        }
    }

    pub(crate) fn job_news(&mut self, id: u64, news: JobNews) {
        let Some(job) = self.snapshot.job.as_mut().filter(|job| job.id == id) else { return };
        match news {
            JobNews::Ready => self.command(VmOrder::AddSnapshot { job: id }),
            JobNews::Progress(progress) => job.progress = Some(progress),
            JobNews::Taken(snapshot, freeze) => {
                if let Some(job) = self.snapshot.job.take() {
                    self.leave_job(&job);
                    if let Some(name) = job.name {
                        let freeze = freeze.map(Box::new);
                        self.event(EventKind::SnapshotTaken { name, snapshot, freeze });
                    }
                }
            }
            JobNews::Failed(reason) => self.snapshot_failed(reason),
            JobNews::NotLoaded(reason) => {
                if let Some(job) = self.snapshot.job.take() {
                    self.leave_job(&job);
                    self.not_loaded(job.name, reason);
                }
            }
            JobNews::Loaded(loaded) => {
                let (name, force, found) = (job.name.clone(), job.force, job.found.clone().flatten());
                if let Some(progress) = &mut job.progress {
                    progress.doing = SnapshotStep::Loading;
                }
                let origin = name.map_or(Origin::Log, |name| Origin::Snapshot { name });
                let suspected = self.now.monotonic;
                let loaded = Some((Source::Job(id), loaded));
                self.takeover = Some(Takeover { suspected, detect_us: 0, won: None, loaded, ready: true, origin });
                self.input(Input::StartLoaded { found, force });
            }
        }
    }

    /// The witness's record is here, for the VM that is to be started.
    pub(crate) fn start_from(&mut self, found: Option<Record>, force: bool, behind: Option<&Behind>) {
        if let Some(reply) = self.snapshot.asks_of_log() {
            self.tell_of_log(Ok(found.clone()), reply);
        }
        let Some(job) = self.snapshot.job.as_mut().filter(|job| job.restore && job.found.is_none()) else {
            // Who has asked may have been refused meanwhile.
            if !self.starting {
                return;
            }
            if self.start_cancelled {
                return self.start_failed(Refusal::Cancelled);
            }
            // Another host that has more is what the witness knows of; this one knows of its own disks.
            if !force
                && self.rules.refuse_what_is_behind
                && self.protocol.may_start(found.as_ref(), force).is_ok()
                && self.is_behind(found.as_ref(), behind)
            {
                return;
            }
            return self.input(Input::Start { found, force });
        };
        if job.cancelled {
            return self.drop_restore("it was cancelled", Refusal::Cancelled);
        }
        match self.protocol.may_start(found.as_ref(), force) {
            Ok(_) => {
                job.found = Some(found);
                self.load_snapshot();
            }
            Err(refused) => self.drop_restore(&refused.to_string(), refusal::of_protocol(refused)),
        }
    }

    /// What was to be started is not.
    pub(crate) fn restore_refused(&mut self, words: &str, refusal: Refusal) {
        let restoring = self.restoring();
        self.takeover.take_if(|t| restoring && t.origin != Origin::Primary);
        self.drop_restore(words, refusal);
    }
}
