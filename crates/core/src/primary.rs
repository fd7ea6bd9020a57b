//! The primary's side: the VM, its session, its acknowledgements.

use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::difference::{Difference, differences};
use ninefold_model::event::EventKind;
use ninefold_model::{Epoch, GuestState, HostName, Term};
use ninefold_replica::protocol::{Input, Phase};
use ninefold_replica::stream::Hello;
use ninefold_replica::stream::Reign;
use ninefold_replica::target::Target;

use crate::core::{Core, RETRY_LAST};
use crate::effect::{Close, Effect, GuestIoOrder, Metric, ParkingOrder, SessionOrder, VmOrder};
use crate::event::Source;
use crate::replica::Replica;
use crate::time::{Monotonic, micros};

/// More checkpoints than can be unacknowledged.
const IN_BETWEEN: u64 = 16;

impl Core {
    pub(crate) fn acked(&mut self, session: Term, epoch: Epoch) {
        let Some(replica) = self.replica(session) else { return };
        match replica.acked(epoch) {
            Ok(true) => {
                let host = replica.backup.clone();
                // It holds this: what it had before is of no use to it any more.
                self.comes_no_more(&host);
                self.input(Input::Acked { session, epoch });
                self.command(VmOrder::Acked { target: Target::Session(session), epoch });
            }
            Ok(false) => {}
            Err(reason) => self.lose_session(session, reason),
        }
    }

    /// A checkpoint went to one of the sessions.
    pub(crate) fn sent(&mut self, session: Term, epoch: Epoch, resumed: Monotonic, record: CheckpointRecord) {
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
    pub(crate) fn measure_committed(&mut self) {
        let mut i = 0;
        while let Some(&(epoch, resumed, mut record)) = self.uncommitted.get(i) {
            if epoch > self.committed {
                i += 1;
                continue;
            }
            self.uncommitted.swap_remove(i);
            self.measured = self.measured.max(epoch);
            record.commit_us = micros(self.elapsed(resumed));
            self.measure(Metric::Checkpoint(record));
        }
    }

    /// A backup's file differs from the VM that runs: it follows that, and it is said before the VM is copied to it.
    pub(crate) fn configured_otherwise(&mut self, session: Term, found: Vec<Difference>) {
        let runner = self.settings.host.clone();
        let Some(replica) = self.replica(session).filter(|r| !r.ready && !found.is_empty()) else { return };
        let at = replica.backup.clone();
        let sentences = found.iter().map(|d| d.sentence(&runner, &at)).collect();
        replica.differs = found;
        self.event(EventKind::ConfiguredOtherwise { at, differences: sentences });
    }

    /// The VM came from elsewhere, or from an earlier time: says in what this host's file differs from it.
    pub(crate) fn say_what_differs(&mut self) {
        let host = &self.settings.host;
        let found = self.booted_otherwise();
        if !found.is_empty() {
            let differences = found.iter().map(|d| d.sentence(host, host)).collect();
            let at = host.clone();
            self.event(EventKind::ConfiguredOtherwise { at, differences });
        }
    }

    /// In what this host's file differs from the VM that is here.
    pub(crate) fn booted_otherwise(&self) -> Vec<Difference> {
        let held = self.backup.as_ref().map(|b| &b.spec);
        self.booted.as_ref().or(held).map_or_else(Vec::new, |booted| differences(booted, &self.settings.vm))
    }

    /// The backup has its QEMU and waits for the VM.
    pub(crate) fn session_ready(&mut self, session: Term) {
        let Some(replica) = self.replica(session).filter(|r| !r.ready) else { return };
        replica.ready = true;
        if self.settings.vm.hardware.volumes.is_empty() {
            return self.add_target(session, 0);
        }
        let known = self.differing(session);
        self.session(session, SessionOrder::Sync { known });
    }

    /// The witness holds a record that binds this session, since now when it is the first.
    pub(crate) fn bound(&mut self, session: Term, term: Term, first: bool) {
        if first {
            self.retry = None;
            let bound = self.replica(session).map(|r| r.backup.clone());
            self.resting.retain(|r| Some(&r.host) != bound.as_ref());
        }
        if self.replica(session).is_none() {
            return;
        }
        self.session(session, SessionOrder::Bound(term));
        let now = self.now.monotonic;
        if let (true, Some(replica)) = (first, self.replica(session)) {
            let event = EventKind::Protected {
                term,
                backup: replica.backup.clone(),
                sync_ms: u64::try_from(now.since(replica.began).as_millis()).unwrap_or(u64::MAX),
                bytes: replica.sync.map_or(0, |p| p.bytes_sent),
                volume_bytes: replica.volume_bytes,
                continued: replica.continued,
            };
            self.event(event);
            self.set_pace();
        }
    }

    /// A thread of the VM is about to begin: with which number its checkpoints follow on. `continued`: it gets on with what others, or the
    /// log, have.
    fn begin_vm(&mut self, standing: GuestState, continued: bool) -> Epoch {
        self.generation += 1;
        self.begins_to_stand(standing);
        self.reign = Reign { term: self.protocol.term(), generation: self.generation };
        self.retry = None;
        self.resting.clear();
        // Its checkpoints count from 1. But a VM that is launched anew while output of its former life is held counts on, from well
        // behind that: what waits for its epochs must not be taken for older, nor the former life's for newer.
        let counts_on = (self.holding || self.opening || self.log.images_wait.is_some()) && !continued;
        let newest = self.committed.max(self.log.durable).max(self.log.images_wait.unwrap_or_default());
        let taken = if counts_on { Epoch(newest.0 + IN_BETWEEN) } else { Epoch(0) };
        if !counts_on {
            (self.committed, self.measured) = (Epoch(0), Epoch(0));
        }
        self.has_vm = true;
        taken
    }

    /// Boots the VM's QEMU, once its former one is gone.
    pub(crate) fn boot(&mut self) {
        let image = self.health.policy.image().clone();
        // What a log has of it is of its former life.
        self.log_ends("the VM is booted anew".to_owned().into());
        self.guest_io(GuestIoOrder::ForgetAddresses);
        self.forget_holders();
        let taken = self.begin_vm(GuestState::default(), false);
        let (generation, policy) = (self.generation, self.epochs);
        // What is parked is not ended before: the new QEMU waits until it has let go of the volumes and its memory.
        self.effect(Effect::Vm(VmOrder::Boot { generation, image, policy, taken }));
    }

    /// Gives a loaded QEMU, whose guest has been started, to its thread.
    pub(crate) fn run_vm(
        &mut self,
        source: Source,
        standing: GuestState,
        log: Option<u64>,
        tracked: bool,
        former_backups: bool,
    ) {
        let continued = tracked && (log.is_some() || former_backups);
        self.parking(ParkingOrder::Clear);
        let taken = self.begin_vm(standing, continued);
        let (generation, policy) = (self.generation, self.epochs);
        let former_backups = former_backups && tracked;
        self.effect(Effect::Vm(VmOrder::Run { generation, source, policy, standing, log, former_backups, taken }));
    }

    /// What the VM is and runs in, as a session of this name begins or a log; none while there is no QEMU.
    pub(crate) fn hello(&self, session: Term) -> Option<Hello> {
        let (layout, machine) = (self.layout.clone()?, self.machine.as_ref()?);
        let settings = &self.settings;
        Some(Hello {
            session: session.0,
            from: settings.host.clone(),
            term: session,
            spec: self.booted.as_ref()?.for_others(),
            epoch_policy: self.epochs,
            qemu: machine.qemu.clone(),
            machine: settings.machine.clone(),
            cpu: settings.cpu.clone(),
            accel: machine.accel,
            layout,
            lanes: 1,
            health: self.health.health(),
            reign: None,
            origin: None,
            generation: machine.generation,
        })
    }

    pub(crate) fn open_session(&mut self, session: Term, peer: HostName) {
        let connected = self.peer.take();
        let (Some(_), Some(mut hello)) = (connected.filter(|p| *p == peer), self.hello(session)) else {
            self.effect(Effect::ForgetPeer);
            self.input(Input::SessionLost { session, reason: "the peer is gone".into() });
            return;
        };
        // What the owner wants of the VM travels with it.
        hello.spec.policy.protection = self.protocol.wanted().protection;
        let (origin, asked) = self.origin(&peer).unzip();
        (hello.reign, hello.origin) = (Some(self.reign), origin);
        self.replicas.push(Replica { asked, ..Replica::new(session, peer.clone(), self.now) });
        self.session(session, SessionOrder::Open { peer, hello: Box::new(hello) });
    }

    /// Ends a session, if it is there. Answers whether it was.
    fn close_session(&mut self, session: Term, close: Close) -> bool {
        let Some(at) = self.replicas.iter().position(|r| r.session == session) else { return false };
        if matches!(self.protocol.phase(session), Some(Phase::Syncing | Phase::Binding)) {
            let pause = self.retry.map_or_else(|| self.first_retry(), |(_, pause)| (pause * 2).min(RETRY_LAST));
            self.retry = Some((self.now.monotonic, pause));
        }
        let comes_back = self.goes_absent(session);
        let replica = self.replicas.remove(at);
        if close == Close::Cut {
            self.rests(&replica);
        }
        // A guest that a switchover has paused stays paused until the witness has spoken: see `Action::GoOn`.
        self.command(VmOrder::RemoveTarget { target: Target::Session(session), comes_back });
        self.set_pace();
        self.session(session, SessionOrder::Close(close));
        true
    }

    /// Closes a session on purpose: the witness has released its backup.
    pub(crate) fn part_session(&mut self, session: Term) {
        self.close_session(session, Close::Farewell);
    }

    /// Closes a session, if it is there, and tells the protocol.
    pub(crate) fn lose_session(&mut self, session: Term, reason: String) {
        if self.close_session(session, Close::Cut) {
            self.input(Input::SessionLost { session, reason });
        }
    }
}
