//! Snapshots as the core sees them: one at a time is taken, or loaded. So is a log that a person goes back in.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use ninefold_machine::QemuVersion;
use ninefold_model::control::{FreezeChoice, Response};
use ninefold_model::event::EventKind;
use ninefold_model::status::{SnapshotProgress, SnapshotStep, SyncProgress};
use ninefold_model::{Record, SnapshotName};
use ninefold_replica::protocol::Input;
use ninefold_replica::target::Target;

use super::Core;
use super::backup::{Origin, Takeover};
use crate::arbiter::Question;
use crate::back::{self, Kept};
use crate::error;
use crate::recovery::Place;
use crate::resync::Rest;
use crate::snapshot::{self, News, Order, Unfinished, Wanted};
use crate::vm::Command;

/// See the [module](self).
#[derive(Default)]
pub(super) struct SnapshotSide {
    last_id: u64,
    /// What is under way.
    job: Option<Running>,
    /// Who wants to know what the log would be gone back to, when the witness has been asked.
    asks: Option<Sender<Response>>,
}

impl SnapshotSide {
    pub(super) fn asks_of_log(&mut self) -> Option<Sender<Response>> {
        self.asks.take()
    }

    /// Somebody waits for that.
    pub(super) fn is_asked_of_log(&self) -> bool {
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
    /// The witness's record under which it is loaded, once that is known.
    found: Option<Option<Record>>,
    /// Dropped, the thread that loads it touches no more.
    wanted: Option<Wanted>,
    /// Of a log: it is kept, if the VM comes to go on from it.
    kept: Option<Kept>,
}

impl Running {
    fn title(&self) -> String {
        match &self.name {
            Some(name) => format!("the snapshot '{name}' is under way"),
            None => "the VM is being started from its log".into(),
        }
    }
}

impl Core {
    pub(super) fn snapshot_progress(&self) -> Option<SnapshotProgress> {
        self.snapshot.job.as_ref().and_then(|job| job.progress.clone())
    }

    fn begin_job(&mut self, name: Option<&SnapshotName>, restore: bool, clone: bool, force: bool) -> u64 {
        self.snapshot.last_id += 1;
        let doing = if restore { SnapshotStep::Verifying } else { SnapshotStep::Memory };
        let progress = name.map(|name| SnapshotProgress { name: name.clone(), doing, done: 0, total: 0, waited_us: 0 });
        let id = self.snapshot.last_id;
        let name = name.cloned();
        self.snapshot.job =
            Some(Running { id, name, progress, restore, clone, force, found: None, wanted: None, kept: None });
        id
    }

    /// Begins to take a snapshot; the events tell the rest.
    pub(super) fn take_snapshot(
        &mut self,
        name: SnapshotName,
        parent: Option<SnapshotName>,
        freeze: FreezeChoice,
    ) -> Response {
        let refuse =
            |message: String, help: &str| Response::Error { message, help: Some(help.to_owned()), try_host: None };
        if let Some(job) = &self.snapshot.job {
            return refuse(job.title(), "try again when it is done");
        }
        if self.final_epoch.is_some() || self.off {
            return refuse("the guest stands still".into(), "try again when it runs");
        }
        let Some((hello, record)) = self.log_hello() else {
            return refuse("the VM does not run yet".into(), "`ninefold vm status` shows when it does");
        };
        let version = self.machine.as_ref().and_then(|m| QemuVersion::parse(&m.qemu));
        let Some(version) = version else {
            return refuse("the version of its QEMU is not known".into(), "`ninefold doctor` shows more");
        };
        let platform = snapshot::platform(hello.spec.arch, hello.accel, version);
        let hello = snapshot::hello(hello, record.term);
        let freezing = match self.freezing(freeze) {
            Ok(freezing) => freezing,
            Err(message) => return refuse(message, "`--freeze auto` takes the snapshot all the same"),
        };
        let id = self.begin_job(Some(&name), false, false, false);
        let order = Order { name, parent, hello, platform, freezing };
        let parts = &self.parts;
        let started = snapshot::take(
            id,
            order,
            snapshot::place(&parts.config),
            Arc::clone(&parts.disks),
            parts.bell.clone(),
            parts.core.clone(),
        );
        match started {
            Ok(()) => Response::Done,
            Err(error) => {
                self.snapshot.job = None;
                refuse(error::report(&error), "`ninefold doctor` shows more")
            }
        }
    }

    /// Begins to load a snapshot; the witness is asked when it is loaded.
    pub(super) fn restore(&mut self, name: SnapshotName, force: bool, clone: bool, reply: &Sender<Response>) {
        let answer = |response| {
            let _ = reply.send(response);
        };
        let refuse = |message: &str, help: &str| Response::Error {
            message: message.into(),
            help: Some(help.into()),
            try_host: None,
        };
        if self.is_here().is_some() || self.start_reply.is_some() {
            return answer(refuse("the VM is here already", "stop it first: `ninefold vm stop`"));
        }
        if self.snapshot.job.is_some() {
            return answer(refuse("a snapshot is under way", "try again when it is done"));
        }
        if self.snapshot.is_asked_of_log() {
            return answer(refuse("the VM's log is being looked at", "try again in a moment"));
        }
        // What another attempt has left is overwritten.
        let again = Unfinished::left(&self.parts.config).is_some();
        match self.may_start(force || again) {
            Ok(true) => {}
            Ok(false) => {
                self.log.start_wanted = false;
                return answer(refuse("the VM's log is being looked at", "try again in a moment"));
            }
            Err(message) => return answer(refuse(&message, "`--force` starts from the snapshot, and the log is lost")),
        }
        self.begin_job(Some(&name), true, clone, force);
        // Nothing is touched before the witness has been heard.
        let _ = self.parts.arbiter.send(Question::Start { force });
        answer(Response::Done);
    }

    /// Tells what the VM's log here would be gone back to, or goes back in it.
    pub(super) fn recover(&mut self, force: bool, reply: Sender<Response>) {
        let refuse = |message: String, help: &str| {
            let _ = reply.send(Response::Error { message, help: Some(help.into()), try_host: None });
        };
        if self.non_volatile().is_none() {
            return refuse("the VM is not non-volatile: it has no log".into(), "`ninefold vm start` boots it");
        }
        if let Some(why) = self.is_here() {
            return refuse(why.into(), "`ninefold vm status` shows where it runs");
        }
        if self.start_reply.is_some() || self.snapshot.is_asked_of_log() {
            return refuse("the VM is being started, or its log looked at".into(), "try again in a moment");
        }
        if let Some(job) = &self.snapshot.job {
            return refuse(job.title(), "try again when it is done");
        }
        if force {
            self.end_spare();
        }
        if !self.log.leave_alone(force) {
            return refuse(
                "the VM is going on from its log by itself".into(),
                "`ninefold vm events --follow` shows how",
            );
        }
        if force {
            self.begin_job(None, true, false, true);
            let _ = reply.send(Response::Done);
        } else {
            self.snapshot.asks = Some(reply);
        }
        let _ = self.parts.arbiter.send(Question::Start { force });
    }

    /// The witness has been asked: what is on the disk is read.
    pub(super) fn tell_of_log(&mut self, held: back::Held, reply: Sender<Response>) {
        let parts = &self.parts;
        if let Err(error) = back::ask(Arc::clone(&parts.config), Arc::clone(&parts.disks), held, reply) {
            tracing::error!(error = %error::report(&error), "the log cannot be looked at");
        }
        // It may be one that is gone on from without being told to.
        self.not_here();
    }

    /// The witness would let the VM start here: the snapshot is loaded.
    fn load_snapshot(&mut self) {
        let Some(job) = &self.snapshot.job else { return };
        let (id, name, clone) = (job.id, job.name.clone(), job.clone);
        let parts = &self.parts;
        let into = Place {
            outlets: Arc::clone(&parts.outlets),
            disks: Arc::clone(&parts.disks),
            images: Arc::clone(&self.health.images),
        };
        // Its QEMU has the volumes open.
        let former = parts.parking.take();
        self.log.kept = None;
        let (config, core) = (Arc::clone(&parts.config), parts.core.clone());
        let started = match name {
            Some(name) => snapshot::load(id, name, clone, config, into, former, core).map(|wanted| (wanted, None)),
            None => back::load(id, config, into, job.found.clone().flatten(), former, core)
                .map(|(wanted, kept)| (wanted, Some(kept))),
        };
        match (started, &mut self.snapshot.job) {
            (Ok((wanted, kept)), Some(job)) => (job.wanted, job.kept) = (Some(wanted), kept),
            (Ok(_), None) => {}
            (Err(error), _) => self.drop_restore(&error::report(&error)),
        }
    }

    /// The VM is being started from a snapshot.
    pub(super) fn restoring(&self) -> bool {
        self.snapshot.job.as_ref().is_some_and(|job| job.restore)
    }

    /// What was under way is done: the VM goes on from it.
    pub(super) fn drop_job(&mut self) {
        if let Some(kept) = self.snapshot.job.take().and_then(|job| job.kept) {
            kept.stays();
        }
    }

    /// A session has come in between: what is being loaded is not wanted.
    pub(super) fn drop_restore(&mut self, why: &str) {
        if let Some(job) = self.snapshot.job.take_if(|job| job.restore) {
            self.not_loaded(job.name, why.into());
        }
    }

    /// The VM is not here any more: nothing of it can be taken.
    pub(super) fn drop_snapshot(&mut self) {
        if let Some(job) = self.snapshot.job.take_if(|job| !job.restore) {
            self.not_taken(job, "the VM has ended here".into());
        }
    }

    fn not_taken(&mut self, job: Running, reason: String) {
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

    pub(super) fn snapshot_copied(&mut self, progress: SyncProgress) {
        if let Some(of) = self.snapshot.job.as_mut().and_then(|job| job.progress.as_mut()) {
            (of.done, of.total) = (progress.bytes_sent, progress.bytes_total);
        }
    }

    pub(super) fn snapshot_failed(&mut self, reason: String) {
        self.command(Command::RemoveSink { target: Target::Snapshot, comes_back: false });
        if let Some(job) = self.snapshot.job.take_if(|job| !job.restore) {
            self.not_taken(job, reason);
        }
    }

    pub(super) fn snapshot_news(&mut self, id: u64, news: News) {
        let Some(job) = self.snapshot.job.as_mut().filter(|job| job.id == id) else { return };
        match news {
            News::Ready { jobs, frozen } => {
                let (target, rest) = (Target::Snapshot, Rest::default());
                self.command(Command::AddSink { target, jobs, rounds: 0, rest, once: Some(frozen), held: None });
            }
            News::Progress(progress) => job.progress = Some(progress),
            News::Taken(snapshot, freeze) => {
                if let Some(name) = self.snapshot.job.take().and_then(|job| job.name) {
                    self.event(EventKind::SnapshotTaken { name, snapshot, freeze: freeze.map(Box::new) });
                }
            }
            News::Failed(reason) => self.snapshot_failed(reason),
            News::NotLoaded(reason) => {
                let name = job.name.clone();
                self.snapshot.job = None;
                self.not_loaded(name, reason);
            }
            News::Loaded(loaded) => {
                let (name, force, found) = (job.name.clone(), job.force, job.found.clone().flatten());
                if let Some(progress) = &mut job.progress {
                    progress.doing = SnapshotStep::Loading;
                }
                let origin = name.map_or(Origin::Log, |name| Origin::Snapshot { name });
                let suspected = Instant::now();
                self.takeover =
                    Some(Takeover { suspected, detect_us: 0, won: None, loaded: Some(loaded), ready: true, origin });
                self.input(Input::StartLoaded { found, force });
            }
        }
    }

    /// The witness's record is here, for the VM that is to be started.
    pub(super) fn start_from(&mut self, found: Option<Record>, force: bool) {
        if let Some(reply) = self.snapshot.asks_of_log() {
            self.tell_of_log(Ok(found.clone()), reply);
        }
        let Some(job) = self.snapshot.job.as_mut().filter(|job| job.restore && job.found.is_none()) else {
            // Who has asked may have been refused meanwhile.
            if self.start_reply.is_none() {
                return;
            }
            // Another host that has more is what the witness knows of; this one knows of its own disks.
            if !force && self.protocol.may_start(found.as_ref(), force).is_ok() && self.is_behind(found.as_ref()) {
                return;
            }
            if !force
                && let Err(reason) = self.protocol.may_start(found.as_ref(), force)
                && let Some(host) = self.protocol.had_it_last(found.as_ref()).cloned()
            {
                return self.start_elsewhere(reason, host);
            }
            return self.input(Input::Start { found, force });
        };
        match self.protocol.may_start(found.as_ref(), force) {
            Ok(_) => {
                job.found = Some(found);
                self.load_snapshot();
            }
            Err(reason) => self.drop_restore(&reason),
        }
    }

    /// What was to be started is not.
    pub(super) fn restore_refused(&mut self, reason: &str) {
        let restoring = self.restoring();
        self.takeover.take_if(|t| restoring && t.origin != Origin::Primary);
        self.drop_restore(reason);
    }
}
