//! The primary's side: the VM, its session, its acknowledgements.

use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_machine::command_line::{CPU, MACHINE};
use ninefold_model::control::CheckpointRecord;
use ninefold_model::difference::{Difference, differences};
use ninefold_model::event::EventKind;
use ninefold_model::{Epoch, HostName, Standing, Term};
use ninefold_replica::continuation::Reign;
use ninefold_replica::protocol::{Input, Phase};
use ninefold_replica::stream::Hello;
use ninefold_replica::target::Target;

use super::replica::Replica;
use super::{Core, RETRY_LAST};
use crate::capture::micros;
use crate::error;
use crate::launch::launch;
use crate::msg::Msg;
use crate::resync::{self, Rest};
use crate::session::Settings;
use crate::standby;
use crate::vm::{self, Command};

/// More checkpoints than can be unacknowledged.
const IN_BETWEEN: u64 = 16;
/// How long a QEMU waits until its sockets are served. The core does that at once.
const ATTACH_LIMIT: Duration = Duration::from_secs(5);

impl Core {
    pub(super) fn acked(&mut self, session: Term, epoch: Epoch) {
        let Some(replica) = self.replica(session) else { return };
        match replica.acked(epoch) {
            Ok(true) => {
                let host = replica.backup.clone();
                // It holds this: what it had before is of no use to it any more.
                self.comes_no_more(&host);
                self.input(Input::Acked { session, epoch });
                self.command(Command::Acked { target: Target::Session(session), epoch });
            }
            Ok(false) => {}
            Err(reason) => self.lose_session(session, reason),
        }
    }

    /// A checkpoint went to one of the sessions.
    pub(super) fn sent(&mut self, session: Term, epoch: Epoch, resumed: Instant, record: CheckpointRecord) {
        let Some(replica) = self.replica(session) else { return };
        if replica.acked.is_none_or(|acked| acked < epoch) {
            replica.unacked.push((epoch, resumed));
        }
        self.counters.bytes_sent += record.wire_bytes;
        if let Some((.., same)) = self.uncommitted.iter_mut().find(|(e, ..)| *e == epoch) {
            same.wire_bytes += record.wire_bytes;
        } else if epoch > self.measured {
            self.counters.checkpoints += 1;
            self.counters.pages_sent += record.dirty_pages;
            self.uncommitted.push((epoch, resumed, record));
            // The acknowledgement may have overtaken this message.
            self.measure_committed();
        }
    }

    /// Records the checkpoints that all backups hold.
    pub(super) fn measure_committed(&mut self) {
        let mut i = 0;
        while let Some(&(epoch, resumed, mut record)) = self.uncommitted.get(i) {
            if epoch > self.committed {
                i += 1;
                continue;
            }
            self.uncommitted.swap_remove(i);
            self.measured = self.measured.max(epoch);
            record.commit_us = micros(resumed.elapsed());
            self.parts.board.checkpoint(&record);
            self.parts.journal.checkpoint(record);
        }
    }

    /// A backup's file differs from the VM that runs: it follows that, and it is said before the VM is copied to it.
    pub(super) fn configured_otherwise(&mut self, session: Term, found: Vec<Difference>) {
        let runner = self.parts.config.host.clone();
        let Some(replica) = self.replica(session).filter(|r| !r.ready && !found.is_empty()) else { return };
        let at = replica.backup.clone();
        let sentences = found.iter().map(|d| d.sentence(&runner, &at)).collect();
        replica.differs = found;
        self.event(EventKind::ConfiguredOtherwise { at, differences: sentences });
    }

    /// The VM came from elsewhere, or from an earlier time: says in what this host's file differs from it.
    pub(super) fn say_what_differs(&self) {
        let host = &self.parts.config.host;
        let found = self.booted_otherwise();
        if !found.is_empty() {
            let differences = found.iter().map(|d| d.sentence(host, host)).collect();
            self.event(EventKind::ConfiguredOtherwise { at: host.clone(), differences });
        }
    }

    /// In what this host's file differs from the VM that is here.
    pub(super) fn booted_otherwise(&self) -> Vec<Difference> {
        let held = self.backup.as_ref().map(|b| &b.spec);
        self.booted.as_ref().or(held).map_or_else(Vec::new, |booted| differences(booted, &self.parts.config.vm))
    }

    /// The backup has its QEMU and waits for the VM.
    pub(super) fn session_ready(&mut self, session: Term) {
        let disks = Arc::clone(&self.parts.disks);
        let Some(replica) = self.replica(session).filter(|r| !r.ready) else { return };
        replica.ready = true;
        let jobs = replica.session.jobs.clone();
        let Some(answers) = replica.session.comparison.take().filter(|_| !disks.is_empty()) else {
            self.add_sink(session, 0, Rest::default());
            return;
        };
        let differing = self.differing(session, answers);
        if let Err(error) = resync::start(session, disks, jobs, differing, self.parts.core.clone()) {
            self.lose_session(session, error::report(&error));
        }
    }

    /// The witness holds a record that binds this session, since now when it is the first.
    pub(super) fn bound(&mut self, session: Term, term: Term, first: bool) {
        if first {
            self.retry = None;
        }
        let Some(replica) = self.replica(session) else { return };
        replica.session.bound(term);
        if first {
            let event = EventKind::Protected {
                term,
                backup: replica.backup.clone(),
                sync_ms: u64::try_from(replica.began.elapsed().as_millis()).unwrap_or(u64::MAX),
                bytes: replica.sync.map_or(0, |p| p.bytes_sent),
                volume_bytes: replica.volume_bytes,
                continued: replica.continued,
            };
            self.event(event);
            self.set_pace();
        }
    }

    pub(super) fn start_vm(&mut self, obtain: vm::Obtain, standing: Standing, continued: Option<vm::Continued>) {
        self.generation += 1;
        self.begins_to_stand(standing);
        self.reign = Reign { term: self.protocol.term(), generation: self.generation };
        self.survivors = None;
        self.absent.clear();
        self.retry = None;
        self.parts.parking.clear();
        // Its checkpoints count from 1. But a VM that is launched anew while output of its former life is held counts on, from well
        // behind that: what waits for its epochs must not be taken for older, nor the former life's for newer.
        let counts_on =
            (self.holding || self.opening.is_some() || self.log.images_wait.is_some()) && continued.is_none();
        let newest = self.committed.max(self.log.durable).max(self.log.images_wait.unwrap_or_default());
        let taken = if counts_on { Epoch(newest.0 + IN_BETWEEN) } else { Epoch(0) };
        if !counts_on {
            (self.committed, self.measured) = (Epoch(0), Epoch(0));
        }
        let watcher = self.health.watcher(self.generation, self.parts.core.clone());
        let surroundings = vm::Surroundings {
            outlets: Arc::clone(&self.parts.outlets),
            disks: Arc::clone(&self.parts.disks),
            bell: self.parts.bell.clone(),
            core: self.parts.core.clone(),
        };
        let started = vm::start(watcher, obtain, self.epochs, standing, continued, taken, surroundings);
        match started {
            Ok(handle) => self.vm = Some(handle),
            Err(error) => {
                let reason = error::report(&error);
                self.start_failed(reason.clone());
                self.input(Input::MachineLost { reason });
            }
        }
    }

    /// Boots the VM's QEMU, once its former one is gone.
    pub(super) fn boot(&mut self, former: Option<JoinHandle<()>>) {
        let config = Arc::clone(&self.parts.config);
        let core = self.parts.core.clone();
        let generation = self.generation + 1;
        let volumes = self.parts.disks.sockets();
        let image = self.health.policy.image().clone();
        // Its QEMU has the volumes open.
        let parked = self.parts.parking.take();
        // What a log has of it is of its former life.
        self.log_ends("the VM is booted anew".to_owned().into());
        self.parts.outlets.forget_addresses();
        let obtain = Box::new(move || {
            // It may still write to the volumes.
            let _ = former.map(JoinHandle::join);
            drop(parked);
            let (machine, ports, reason) = launch(&config, image, volumes)?;
            let layout = standby::layout(&machine)?;
            let status = standby::status(&machine, &reason, "prelaunch");
            let (up, attached) = std::sync::mpsc::sync_channel(1);
            let _ = core.send(Msg::VmStarted { generation, status, layout, ports, up });
            // Its first frames must find the gate open.
            match attached.recv_timeout(ATTACH_LIMIT) {
                Err(RecvTimeoutError::Disconnected) => Err("it is not wanted any more".into()),
                Ok(()) | Err(RecvTimeoutError::Timeout) => Ok(machine),
            }
        });
        self.start_vm(obtain, Standing::default(), None);
    }

    /// What the VM is and runs in, as a session of this name begins or a log; none while there is no QEMU.
    pub(super) fn hello(&self, session: Term) -> Option<Hello> {
        let (layout, machine) = (self.layout.clone()?, self.machine.as_ref()?);
        let config = &self.parts.config;
        Some(Hello {
            session: session.0,
            vm: config.vm.name.clone(),
            from: config.host.clone(),
            term: session,
            spec: self.booted.clone()?,
            epoch_policy: self.epochs,
            qemu: machine.qemu.clone(),
            machine: MACHINE.into(),
            cpu: CPU.into(),
            accel: machine.accel,
            layout,
            lanes: 1,
            health: self.health.health(),
            reign: None,
            origin: None,
            generation: machine.generation,
        })
    }

    pub(super) fn open_session(&mut self, session: Term, peer: HostName) {
        let link = self.link.take().filter(|link| *link.peer() == peer);
        let (Some(link), Some(mut hello)) = (link, self.hello(session)) else {
            self.input(Input::SessionLost { session, reason: "the peer is gone".into() });
            return;
        };
        // What the owner wants of the VM travels with it.
        hello.spec.protection = self.protocol.wanted().protection;
        let (origin, asked) = self.origin(&peer).unzip();
        (hello.reign, hello.origin) = (Some(self.reign), origin);
        let config = &self.parts.config;
        let settings = Settings {
            heartbeat: config.timing.heartbeat(),
            uplink: Arc::clone(&self.uplink),
            disks: Arc::clone(&self.parts.disks),
            bell: self.parts.bell.clone(),
        };
        match crate::session::open(link, hello, settings, self.parts.core.clone()) {
            Ok(opened) => self.replicas.push(Replica { asked, ..Replica::new(opened, peer) }),
            Err(error) => {
                let reason = error::report(&error);
                self.input(Input::SessionLost { session, reason });
            }
        }
    }

    /// Ends a session, if it is there; the connection is closed when what this answers is dropped.
    fn close_session(&mut self, session: Term) -> Option<Replica> {
        let at = self.replicas.iter().position(|r| r.name() == session)?;
        if matches!(self.protocol.phase(session), Some(Phase::Syncing | Phase::Binding)) {
            let pause = self.retry.map_or_else(|| self.first_retry(), |(_, pause)| (pause * 2).min(RETRY_LAST));
            self.retry = Some((Instant::now(), pause));
        }
        let comes_back = self.goes_absent(session);
        let replica = self.replicas.remove(at);
        // A guest that a switchover has paused stays paused until the witness has spoken: see `Action::GoOn`.
        self.command(Command::RemoveSink { target: Target::Session(session), comes_back });
        self.set_pace();
        Some(replica)
    }

    /// Closes a session on purpose: the witness has released its backup.
    pub(super) fn part_session(&mut self, session: Term) {
        let Some(replica) = self.close_session(session) else { return };
        replica.session.bye("the session has ended");
        replica.session.finish();
    }

    /// Closes a session, if it is there, and tells the protocol.
    pub(super) fn lose_session(&mut self, session: Term, reason: String) {
        if self.close_session(session).is_some() {
            self.input(Input::SessionLost { session, reason });
        }
    }

    pub(super) fn command(&self, command: Command) {
        if let Some(vm) = &self.vm {
            vm.send(command);
        }
    }
}
