//! Snapshots as the core sees them: one at a time is taken, or loaded.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use ninefold_machine::QemuVersion;
use ninefold_model::control::Response;
use ninefold_model::event::EventKind;
use ninefold_model::status::{SnapshotProgress, SnapshotStep, SyncProgress};
use ninefold_model::{Record, SnapshotName};
use ninefold_replica::protocol::Input;

use super::Core;
use super::backup::{Origin, Takeover};
use crate::arbiter::Question;
use crate::error;
use crate::recovery::Place;
use crate::resync::Rest;
use crate::sink::SNAPSHOT;
use crate::snapshot::{self, News, Order, Unfinished, Wanted};
use crate::vm::Command;

/// See the [module](self).
#[derive(Default)]
pub(super) struct SnapshotSide {
    last_id: u64,
    /// What is under way.
    job: Option<Running>,
}

struct Running {
    id: u64,
    name: SnapshotName,
    progress: SnapshotProgress,
    /// The VM is to be started from it.
    restore: bool,
    clone: bool,
    force: bool,
    /// The witness's record under which it is loaded, once that is known.
    found: Option<Option<Record>>,
    /// Dropped, the thread that loads it touches no more.
    wanted: Option<Wanted>,
}

impl Core {
    pub(super) fn snapshot_progress(&self) -> Option<SnapshotProgress> {
        self.snapshot.job.as_ref().map(|job| job.progress.clone())
    }

    fn begin_job(&mut self, name: &SnapshotName, restore: bool, clone: bool, force: bool) -> u64 {
        self.snapshot.last_id += 1;
        let doing = if restore { SnapshotStep::Verifying } else { SnapshotStep::Memory };
        let progress = SnapshotProgress { name: name.clone(), doing, done: 0, total: 0 };
        let id = self.snapshot.last_id;
        let name = name.clone();
        self.snapshot.job = Some(Running { id, name, progress, restore, clone, force, found: None, wanted: None });
        id
    }

    /// Begins to take a snapshot; the events tell the rest.
    pub(super) fn take_snapshot(&mut self, name: SnapshotName, parent: Option<SnapshotName>) -> Response {
        let refuse =
            |message: String, help: &str| Response::Error { message, help: Some(help.to_owned()), try_host: None };
        if let Some(job) = &self.snapshot.job {
            return refuse(format!("the snapshot '{}' is under way", job.name), "try again when it is done");
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
        let id = self.begin_job(&name, false, false, false);
        let order = Order { name, parent, hello, platform };
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
        self.begin_job(&name, true, clone, force);
        // Nothing is touched before the witness has been heard.
        let _ = self.parts.arbiter.send(Question::Start { force });
        answer(Response::Done);
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
        let started = snapshot::load(id, name, clone, Arc::clone(&parts.config), into, former, parts.core.clone());
        match (started, &mut self.snapshot.job) {
            (Ok(wanted), Some(job)) => job.wanted = Some(wanted),
            (Ok(_), None) => {}
            (Err(error), _) => self.drop_restore(&error::report(&error)),
        }
    }

    /// The VM is being started from a snapshot.
    pub(super) fn restoring(&self) -> bool {
        self.snapshot.job.as_ref().is_some_and(|job| job.restore)
    }

    /// What was under way is done.
    pub(super) fn drop_job(&mut self) {
        self.snapshot.job = None;
    }

    /// A session has come in between: what is being loaded is not wanted.
    pub(super) fn drop_restore(&mut self, why: &str) {
        if let Some(job) = self.snapshot.job.take_if(|job| job.restore) {
            self.event(EventKind::RestoreFailed { name: job.name, reason: why.into() });
            self.not_here();
        }
    }

    /// The VM is not here any more: nothing of it can be taken.
    pub(super) fn drop_snapshot(&mut self) {
        if let Some(job) = self.snapshot.job.take_if(|job| !job.restore) {
            self.event(EventKind::SnapshotFailed { name: job.name, reason: "the VM has ended here".into() });
        }
    }

    pub(super) fn snapshot_copied(&mut self, progress: SyncProgress) {
        if let Some(job) = &mut self.snapshot.job {
            (job.progress.done, job.progress.total) = (progress.bytes_sent, progress.bytes_total);
        }
    }

    pub(super) fn snapshot_failed(&mut self, reason: String) {
        self.command(Command::RemoveSink { session: SNAPSHOT, comes_back: false });
        if let Some(job) = self.snapshot.job.take_if(|job| !job.restore) {
            self.event(EventKind::SnapshotFailed { name: job.name, reason });
        }
    }

    pub(super) fn snapshot_news(&mut self, id: u64, news: News) {
        let Some(job) = self.snapshot.job.as_mut().filter(|job| job.id == id) else { return };
        match news {
            News::Ready { jobs, frozen } => {
                let (session, rest) = (SNAPSHOT, Rest::default());
                self.command(Command::AddSink { session, jobs, rounds: 0, rest, once: Some(frozen), held: None });
            }
            News::Progress(progress) => job.progress = progress,
            News::Taken(snapshot) => {
                let name = job.name.clone();
                self.snapshot.job = None;
                self.event(EventKind::SnapshotTaken { name, snapshot });
            }
            News::Failed(reason) => self.snapshot_failed(reason),
            News::NotLoaded(reason) => {
                let name = job.name.clone();
                self.snapshot.job = None;
                self.event(EventKind::RestoreFailed { name, reason });
                self.not_here();
            }
            News::Loaded(loaded) => {
                let (name, force, found) = (job.name.clone(), job.force, job.found.clone().flatten());
                job.progress.doing = SnapshotStep::Loading;
                let origin = Origin::Snapshot { name };
                let suspected = Instant::now();
                self.takeover =
                    Some(Takeover { suspected, detect_us: 0, won: None, loaded: Some(loaded), ready: true, origin });
                self.input(Input::StartLoaded { found, force });
            }
        }
    }

    /// The witness's record is here, for the VM that is to be started.
    pub(super) fn start_from(&mut self, found: Option<Record>, force: bool) {
        let Some(job) = self.snapshot.job.as_mut().filter(|job| job.restore && job.found.is_none()) else {
            // Another host that has more is what the witness knows of; this one knows of its own disks.
            if !force && self.protocol.may_start(found.as_ref(), force).is_ok() && self.is_behind(found.as_ref()) {
                return;
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
        self.takeover.take_if(|t| matches!(t.origin, Origin::Snapshot { .. }));
        self.drop_restore(reason);
    }
}
