//! What is on disk: this host's log, going on from it, snapshots.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use ninefold_control::Refusal;
use ninefold_core::LogFailure;
use ninefold_core::effect::{Beginning, FreezePlan, JobOrder, LogOrder, RecoveryOrder};
use ninefold_core::event::{Event, JobNews, RecoveryNews, RequestId};
use ninefold_machine::QemuVersion;
use ninefold_model::{Record, SnapshotName, Term};
use ninefold_replica::stream::Hello;
use ninefold_snapshot::log::Log;

use super::Runtime;
use crate::backup::loaded::Wanted;
use crate::config::KeeperConfig;
use crate::durable::log::place::Kept;
use crate::durable::log::{self, Settings};
use crate::durable::recovery::{self, Place};
use crate::durable::rollback;
use crate::error::report;
use crate::msg::Msg;
use crate::primary::freeze::{Freezer, Freezing, Limits};
use crate::primary::snapshot::job::SnapshotTarget;
use crate::primary::snapshot::{self, Order};

/// A log that can be gone on with, found by the attempt of this number.
pub(super) struct Recovered {
    pub(super) id: u64,
    pub(super) log: Box<Log>,
    /// What it says last of the guest's health.
    pub(super) health: Vec<u8>,
}

/// A snapshot, or a log that a person goes back in, that is being loaded.
pub(super) struct Job {
    id: u64,
    /// Dropped, the thread that loads it touches no more.
    _wanted: Wanted,
    /// Of a log: it is kept, if the VM comes to go on from it.
    kept: Option<Kept>,
}

/// A snapshot that is ready for the VM.
pub(super) struct Snapshot {
    pub(super) id: u64,
    pub(super) target: SnapshotTarget,
}

impl Runtime {
    pub(super) fn log(&mut self, id: u64, order: LogOrder) {
        match order {
            LogOrder::Start { reign, beginning } => self.start_log(id, reign, beginning),
            LogOrder::Stand { ticket, standing } => {
                if let Some(log) = self.logs.get(&id) {
                    log.stand(ticket, standing);
                }
            }
            LogOrder::Reign(reign) => {
                if let Some(log) = self.logs.get(&id) {
                    log.reign(reign);
                }
            }
            LogOrder::Term(term) => {
                if let Some(log) = self.logs.get(&id) {
                    log.term(term);
                }
            }
            LogOrder::Remove => self.remove_log(id),
            LogOrder::Drop => drop(self.logs.remove(&id)),
        }
    }

    fn start_log(&mut self, id: u64, reign: Term, beginning: Beginning) {
        let beginning = match beginning {
            Beginning::New { hello, standing } => log::Beginning::New { hello, standing },
            Beginning::Awaited => log::Beginning::Awaited,
            Beginning::Continued { recovery } => match self.recovered.take_if(|r| r.id == recovery) {
                Some(Recovered { log, health, .. }) => log::Beginning::Continued { log, health },
                None => return self.no_log(id, "it is gone".into()),
            },
        };
        let parts = &self.parts;
        let settings = Settings::of(&parts.config, Arc::clone(&parts.disks), parts.waker.clone(), parts.core.clone());
        match log::start(id, reign, beginning, settings) {
            Ok(handle) => drop(self.logs.insert(id, handle)),
            Err(error) => self.no_log(id, report(&error)),
        }
    }

    fn no_log(&mut self, id: u64, reason: String) {
        tracing::error!(%reason, "the log cannot be kept");
        self.answer(Event::LogFailed { id, failure: LogFailure::from(reason) });
    }

    /// Has its files removed, and waits for that in a thread of its own.
    fn remove_log(&mut self, id: u64) {
        let Some(log) = self.logs.remove(&id) else {
            return self.answer(Event::LogRemoved { id, removed: false });
        };
        let (done, removed) = sync_channel(1);
        log.remove(done);
        let core = self.parts.core.clone();
        let wait = move || {
            let removed = removed.recv().is_ok();
            drop(log);
            let _ = core.send(Msg::LogRemoved { id, removed });
        };
        if thread::Builder::new().name("removal".into()).spawn(wait).is_err() {
            self.answer(Event::LogRemoved { id, removed: false });
        }
    }

    fn place(&self) -> Place {
        Place {
            guest_io: Arc::clone(&self.parts.guest_io),
            disks: Arc::clone(&self.parts.disks),
            images: Arc::clone(&self.parts.images),
        }
    }

    pub(super) fn recover(&mut self, id: u64, order: &RecoveryOrder) {
        match order {
            RecoveryOrder::Look => {
                let (config, core) = (Arc::clone(&self.parts.config), self.parts.core.clone());
                match recovery::start(id, config, self.place(), core) {
                    Ok(recovery) => self.recovery = Some(recovery),
                    Err(error) => {
                        tracing::error!(error = %report(&error), "the log cannot be looked at");
                        self.answer(Event::Recovery { id, news: RecoveryNews::Nothing });
                    }
                }
            }
            RecoveryOrder::Load => {
                if let Some(recovery) = self.recovery.as_mut().filter(|r| r.id == id) {
                    recovery.go();
                }
            }
            RecoveryOrder::Drop => drop(self.recovery.take_if(|r| r.id == id)),
        }
    }

    pub(super) fn report_log(&mut self, to: RequestId, held: Result<Option<Record>, String>) {
        let Some(reply) = self.requests.remove(&to) else { return };
        let parts = &self.parts;
        if let Err(error) = rollback::ask(Arc::clone(&parts.config), Arc::clone(&parts.disks), held, reply) {
            tracing::error!(error = %report(&error), "the log cannot be looked at");
        }
    }

    pub(super) fn job(&mut self, id: u64, order: JobOrder) {
        match order {
            JobOrder::Take { request, name, parent, hello, term, qemu, freeze, generation } => {
                let outcome = self.take_snapshot(id, name, parent, *hello, term, &qemu, freeze, generation);
                self.answer(Event::SnapshotBegun { id, request, outcome });
            }
            JobOrder::Load { name, clone, record } => self.load(id, name, clone, record),
            JobOrder::End { gone_on } => {
                // Its thread gives it up.
                self.taking.take_if(|(taking, _)| *taking == id);
                if let Some(Job { kept: Some(kept), .. }) = self.job.take_if(|job| job.id == id)
                    && gone_on
                {
                    kept.stays();
                }
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are an effect's fields")]
    fn take_snapshot(
        &mut self,
        id: u64,
        name: SnapshotName,
        parent: Option<SnapshotName>,
        hello: Hello,
        term: Term,
        qemu: &str,
        freeze: FreezePlan,
        generation: u64,
    ) -> Result<(), Refusal> {
        let Some(version) = QemuVersion::parse(qemu) else {
            return Err(Refusal::Failed { reason: format!("the version of its QEMU is not known: {qemu}") });
        };
        let platform = snapshot::platform(hello.spec.hardware.arch, hello.accel, version);
        let hello = snapshot::hello(hello, term);
        let freezing = self.freezing(freeze, generation).map_err(|reason| Refusal::CannotFreeze { reason })?;
        let order = Order { name, parent, hello, platform, freezing };
        let (parts, place) = (&self.parts, snapshot::place(&self.parts.config));
        let (disks, waker, core) = (Arc::clone(&parts.disks), parts.waker.clone(), parts.core.clone());
        let wanted = snapshot::take(id, order, place, disks, waker, core)
            .map_err(|error| Refusal::Failed { reason: report(&error) })?;
        self.taking = Some((id, wanted));
        Ok(())
    }

    /// How a snapshot freezes the guest's file systems. While its memory is trapped it is found out whether there is an agent.
    ///
    /// # Errors
    /// They have to be frozen, and cannot be.
    fn freezing(&self, plan: FreezePlan, generation: u64) -> Result<Freezing, String> {
        let required = match plan {
            FreezePlan::Never => return Ok(Freezing::Never),
            FreezePlan::Cannot(reason) => return Ok(Freezing::Cannot(reason)),
            FreezePlan::Ask { required } => required,
        };
        let socket = KeeperConfig::agent_socket(&self.parts.config.vm_dir());
        match Freezer::begin(socket, Limits::default(), self.told.clone(), self.hears_end(generation)) {
            Ok(freezer) => Ok(Freezing::By { freezer, required }),
            Err(error) if required => Err(error.to_string()),
            Err(error) => Ok(Freezing::Cannot(error.to_string())),
        }
    }

    fn load(&mut self, id: u64, name: Option<SnapshotName>, clone: bool, record: Option<Record>) {
        let into = self.place();
        // Its QEMU has the volumes open.
        let former = self.parts.parking.take();
        let (config, core) = (Arc::clone(&self.parts.config), self.parts.core.clone());
        let started = match name {
            Some(name) => snapshot::load(id, name, clone, config, into, former, core).map(|wanted| (wanted, None)),
            None => rollback::load(id, config, into, record, former, core).map(|(wanted, kept)| (wanted, Some(kept))),
        };
        match started {
            Ok((wanted, kept)) => self.job = Some(Job { id, _wanted: wanted, kept }),
            Err(error) => self.answer(Event::Job { id, news: JobNews::NotLoaded(report(&error)) }),
        }
    }
}
