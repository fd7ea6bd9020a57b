//! The QEMU that runs the VM, and those that wait for it.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_core::effect::{self, VmOrder};
use ninefold_core::event::{Event, Source};
use ninefold_machine::{Machine, PageRun, Ports, Tracker};
use ninefold_model::spec::{Boot, ClockGap, EpochPolicy};
use ninefold_model::status::MachineStatus;
use ninefold_model::{Activity, Epoch, GuestState};
use ninefold_replica::stream::Layout;

use super::Runtime;
use crate::backup::standby;
use crate::durable::log::job::LogTarget;
use crate::error::report;
use crate::health::watcher::{Order, Watcher};
use crate::msg::Msg;
use crate::primary::changed_blocks::ChangedBlocks;
use crate::primary::session::job::SessionTarget;
use crate::primary::target::ReplicationTarget;
use crate::primary::target_state::Held;
use crate::primary::vm::{self, Command, Continued, Obtain, Surroundings};
use crate::runtime::launch::launch;

/// How long a QEMU waits until its sockets are served. The core does that at once.
const ATTACH_LIMIT: Duration = Duration::from_secs(5);

/// A QEMU that waits with a checkpoint loaded.
pub(super) struct Waiting {
    pub(super) source: Source,
    pub(super) machine: Machine,
    pub(super) ports: Option<Ports>,
    pub(super) tracker: Option<Tracker>,
    /// When its guest stood still, by this host's clock and at the latest, and what becomes of the time since.
    pub(super) stopped: Option<(Instant, ClockGap)>,
}

impl Waiting {
    fn start(&mut self, run: bool) -> Result<(Layout, MachineStatus), String> {
        let layout = standby::layout(&self.machine)?;
        if run {
            match self.stopped.take() {
                Some((stopped, choice)) => self.machine.start_after(stopped.elapsed(), choice),
                None => self.machine.start(),
            }
            .map_err(|e| report(&e))?;
        }
        Ok((layout, standby::status(&self.machine, "as before the failover", "")))
    }
}

impl Runtime {
    pub(super) fn vm(&mut self, order: VmOrder) {
        let command = match order {
            VmOrder::Boot { generation, image, policy, taken } => return self.boot(generation, image, policy, taken),
            VmOrder::Start { source, run } => return self.start(source, run),
            VmOrder::Run { generation, source, policy, standing, log, former_backups, taken } => {
                return self.resume(generation, source, policy, standing, log, former_backups, taken);
            }
            VmOrder::End { relaunch } => {
                let former = self.vm.take().and_then(vm::VmHandle::end);
                self.former = former.filter(|_| relaunch);
                return;
            }
            VmOrder::AddSession { session, rounds, held } => {
                let Some(open) = self.sessions.get_mut(&session) else { return };
                let target = Box::new(SessionTarget { session, jobs: open.session.jobs.clone() });
                let rest = open.rest.take().unwrap_or_default();
                Command::AddSink { target, rounds, rest, held: held.map(held_by) }
            }
            VmOrder::AddLog { id } => {
                let Some(log) = self.logs.get(&id) else { return };
                let target = Box::new(LogTarget(log.jobs.clone()));
                Command::AddSink { target, rounds: 0, rest: ChangedBlocks::default(), held: None }
            }
            VmOrder::AddSnapshot { job } => {
                let Some(snapshot) = self.snapshot.take_if(|s| s.id == job) else { return };
                let target = Box::new(snapshot.target);
                Command::AddSink { target, rounds: 0, rest: ChangedBlocks::default(), held: None }
            }
            VmOrder::RemoveTarget { target, comes_back } => Command::RemoveSink { target, comes_back },
            VmOrder::ForgetLeft(session) => Command::ForgetLeft(session),
            VmOrder::ForgetSurvivors => Command::ForgetSurvivors,
            VmOrder::TakeFinal => Command::TakeFinal,
            VmOrder::GoOn => Command::GoOn,
            VmOrder::Acked { target, epoch } => Command::Acked { target, epoch },
            VmOrder::Policy(policy) => Command::Policy(policy),
            VmOrder::Reset => Command::Health(Order::Reset),
            VmOrder::Dump { keep } => Command::Health(Order::Dump { keep }),
            VmOrder::Pause(paused) => Command::Pause(paused),
            VmOrder::Wake => Command::Wake,
            VmOrder::PowerButton => Command::PowerButton,
        };
        if let Some(vm) = &self.vm {
            vm.send(command);
        }
    }

    /// Finds out what a loaded QEMU is, and has its guest run. One that does not is gone.
    fn start(&mut self, source: Source, run: bool) {
        let started = match self.waiting(source) {
            Some(waiting) => waiting.start(run),
            None => Err("it is gone".into()),
        };
        let answer = match started {
            Ok((layout, status)) => Event::GuestStarted { layout, status },
            Err(reason) => {
                self.waiting.retain(|w| w.source != source);
                Event::GuestNotStarted { reason }
            }
        };
        self.answer(answer);
    }

    #[expect(clippy::too_many_arguments, reason = "they are an effect's fields")]
    fn resume(
        &mut self,
        generation: u64,
        source: Source,
        policy: EpochPolicy,
        standing: GuestState,
        log: Option<u64>,
        former_backups: bool,
        taken: Epoch,
    ) {
        let Some(at) = self.waiting.iter().position(|w| w.source == source) else {
            return self.answer(Event::VmLost { generation, reason: "the standby is gone".into() });
        };
        let Waiting { mut machine, tracker, .. } = self.waiting.remove(at);
        let log = log.and_then(|id| self.logs.get(&id)).map(|log| LogTarget(log.jobs.clone()));
        let (tracker, unneeded) = if log.is_some() || former_backups { (tracker, None) } else { (None, tracker) };
        let log = log.map(|log| Box::new(log) as Box<dyn ReplicationTarget>);
        let continued = tracker.map(|tracker| Continued { tracker, log, former_backups });
        let obtain = Box::new(move || {
            // It waits to be suspended, if QEMU has not kept that; and QEMU is not waited for where heartbeats are sent.
            if standing == (GuestState { activity: Activity::Suspended, paused: false }) {
                machine.stay_suspended().map_err(|e| report(&e))?;
            }
            // To end it takes a time in proportion to the memory: the guest runs already.
            drop(unneeded);
            Ok(machine)
        });
        self.begin(generation, obtain, policy, standing, continued, taken);
    }

    /// Boots the VM's QEMU, once its former one is gone.
    fn boot(&mut self, generation: u64, image: Boot, policy: EpochPolicy, taken: Epoch) {
        let former = self.former.take();
        let config = Arc::clone(&self.parts.config);
        let core = self.parts.core.clone();
        let volumes = self.parts.disks.sockets();
        // Its QEMU has the volumes open.
        let parked = self.parts.parking.take();
        let obtain = Box::new(move || {
            // It may still write to the volumes.
            let _ = former.map(JoinHandle::join);
            drop(parked);
            let (machine, ports, reason) = launch(&config, image, volumes)?;
            let layout = standby::layout(&machine)?;
            let status = standby::status(&machine, &reason, "prelaunch");
            let (up, attached) = sync_channel(1);
            let _ = core.send(Msg::VmStarted { generation, status, layout, ports, up });
            // Its first frames must find the gate open.
            match attached.recv_timeout(ATTACH_LIMIT) {
                Err(RecvTimeoutError::Disconnected) => Err("it is not wanted any more".into()),
                Ok(()) | Err(RecvTimeoutError::Timeout) => Ok(machine),
            }
        });
        self.begin(generation, obtain, policy, GuestState::default(), None, taken);
    }

    fn begin(
        &mut self,
        generation: u64,
        obtain: Obtain,
        policy: EpochPolicy,
        standing: GuestState,
        continued: Option<Continued>,
        taken: Epoch,
    ) {
        let parts = &self.parts;
        let watcher = Watcher::new(generation, self.dumps.clone(), self.told.clone(), parts.core.clone());
        let surroundings = Surroundings {
            guest_io: Arc::clone(&parts.guest_io),
            disks: Arc::clone(&parts.disks),
            waker: parts.waker.clone(),
            core: parts.core.clone(),
        };
        match vm::start(watcher, obtain, policy, standing, continued, taken, surroundings) {
            Ok(handle) => self.vm = Some(handle),
            Err(error) => self.answer(Event::VmLost { generation, reason: report(&error) }),
        }
    }
}

/// In the terms of guest memory.
fn held_by(held: effect::Held) -> Held {
    let run = |r: ninefold_replica::stream::PageRun| PageRun { block: r.block, first: r.first, count: r.count };
    Held { basis: held.basis, differs: held.differs.into_iter().map(run).collect() }
}
