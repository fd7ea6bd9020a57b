//! The thread that owns a running VM: its QEMU, its dirty tracking, its checkpoints.
//!
//! It copies the VM to any number of [target_states](crate::primary::target_state), each of which is first sent all of it while the guest runs and
//! then every checkpoint:
//!
//! ```text
//!            AddSink                      few pages left            acknowledged
//!   alone ───────────────► copying ─────────────────────► first checkpoint ──► checkpoint after checkpoint
//!     ▲                       │ rounds while the guest runs     (output held from here)      │
//!     └───────────────────────┴──────────── the last target is removed ────────────────────────┘
//! ```
//!
//! It waits in one `poll`: for the waker (commands, output that begins to wait), for QEMU's events, for QEMU's death.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_machine::{EventKind, Machine, MachineError, Patience, Tracker};
use ninefold_model::health::Failure;
use ninefold_model::spec::EpochPolicy;
use ninefold_model::{Activity, Epoch, GuestState, Term};
use ninefold_replica::pacing::{Due, EarlyCopy, MAX_IN_FLIGHT, Observation, Pacer};
use ninefold_replica::target::Target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::devices::cpu_clock::CpuClock;
use crate::devices::disks::Disks;
use crate::devices::guest_io::GuestIo;
use crate::error::{KeeperError, report};
use crate::health::watcher::{Order, Watcher};
use crate::msg::Msg;
use crate::primary::changed_blocks::ChangedBlocks;
use crate::primary::run_state::RunState;
use crate::primary::target::ReplicationTarget;
use crate::primary::target_state::{Copied, Held, TargetStates};
use crate::primary::waker::Waker;
use crate::runtime::priority::{self, Processors};

/// How long to wait when nothing is due.
const IDLE: Duration = Duration::from_millis(100);
/// A guest counts as quiet when QEMU used less than this share of one CPU since the last look.
const QUIET_SHARE: f64 = 0.35;
/// How long the core may take to hold all output. It takes microseconds.
const HOLD_LIMIT: Duration = Duration::from_secs(2);
/// A QEMU that has not answered for so long is said to be stuck, and then again and again.
const STUCK: Duration = Duration::from_secs(10);
const TELL_STUCK: Duration = Duration::from_secs(1);
/// How long the guest runs between two pauses in which more of its memory is trapped.
const BETWEEN_TRAPS: Duration = Duration::from_millis(10);
/// Why all copying begins anew.
const WOKE: &str = "the suspended guest woke while it was copied, which QEMU does not hinder before version 9.0";
/// A look after a shorter time than this says nothing.
const QUIET_WINDOW: Duration = Duration::from_micros(100);

/// What the core asks of the thread.
#[derive(Debug)]
pub enum Command {
    /// Copy the VM to this one, then give it every checkpoint.
    AddSink {
        target: Box<dyn ReplicationTarget>,
        /// Sync rounds that the volumes took.
        rounds: u32,
        /// What of the volumes goes with the first checkpoint.
        rest: ChangedBlocks,
        /// It holds a checkpoint already.
        held: Option<Held>,
    },
    /// It is not copied to any more. If it may come back, what it is missing is remembered.
    RemoveSink {
        target: Target,
        comes_back: bool,
    },
    /// The backup of this session does not come back.
    ForgetLeft(Term),
    /// No target comes any more that holds what the VM was resumed from.
    ForgetSurvivors,
    /// Take a last checkpoint and leave the guest paused.
    TakeFinal,
    /// Go on after a switchover that failed.
    GoOn,
    /// It holds all epochs up to this one.
    Acked {
        target: Target,
        epoch: Epoch,
    },
    Policy(EpochPolicy),
    /// About the guest's health.
    Health(Order),
    /// Its owner pauses the guest, or lets it go on.
    Pause(bool),
    /// Its owner wakes the guest.
    Wake,
    /// Its owner presses the power button.
    PowerButton,
    /// Kill QEMU and end.
    Kill,
}

/// The core's hold on the thread.
#[derive(Debug)]
pub struct VmHandle {
    commands: Sender<Command>,
    waker: Waker,
    /// Not joined by the core: it may have to wait for a QEMU that hangs.
    thread: Option<JoinHandle<()>>,
    /// The thread waits for nothing any more.
    killed: Arc<AtomicBool>,
}

impl VmHandle {
    /// Tells the thread something; a thread that has ended does not hear it.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
        self.waker.ring();
    }

    /// Has QEMU killed. When the thread has ended, it is gone.
    pub fn end(mut self) -> Option<JoinHandle<()>> {
        self.thread.take()
    }
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        self.killed.store(true, Ordering::SeqCst);
        self.send(Command::Kill);
    }
}

/// What the VM is resumed from is elsewhere, too. The guest has not run since `tracker` began.
#[derive(Debug)]
pub struct Continued {
    pub tracker: Tracker,
    /// This host's log has it: it gets every checkpoint from the first on.
    pub log: Option<Box<dyn ReplicationTarget>>,
    /// Backups that did not take over have it. They come later, and are sent what was written since.
    pub former_backups: bool,
}

/// How the thread comes by its QEMU.
pub type Obtain = Box<dyn FnOnce() -> Result<Machine, String> + Send>;

/// What the thread shares with its keeper.
#[derive(Debug, Clone)]
pub struct Surroundings {
    pub guest_io: Arc<GuestIo>,
    pub disks: Arc<Disks>,
    pub waker: Waker,
    pub core: Sender<Msg>,
}

/// Starts the thread. `obtain` launches the QEMU or brings the loaded standby; the guest is then started, unless it is not to run:
/// `standing` says how it stands. Its checkpoints follow on `taken`.
///
/// # Errors
/// No thread can be started. Whatever happens to the VM later comes as a message.
pub fn start(
    watcher: Watcher,
    obtain: Obtain,
    policy: EpochPolicy,
    standing: GuestState,
    continued: Option<Continued>,
    taken: Epoch,
    surroundings: Surroundings,
) -> Result<VmHandle, KeeperError> {
    let Surroundings { guest_io, disks, waker, core } = surroundings;
    let (commands, orders) = channel();
    let ring = waker.clone();
    let killed = Arc::new(AtomicBool::new(false));
    let given_up = Arc::clone(&killed);
    let thread = std::thread::Builder::new()
        .name("vm".into())
        .spawn(move || {
            let generation = watcher.generation();
            let mut machine = match obtain() {
                Ok(machine) => machine,
                Err(reason) => {
                    let _ = core.send(Msg::VmLost { generation, reason });
                    return;
                }
            };
            machine.set_patience(patience(generation, given_up, core.clone()));
            disks.ring_when_calm(&waker);
            let cpu = CpuClock::of(machine.pid());
            let target_states = continued.map(|Continued { tracker, log, former_backups }| {
                let mut target_states = TargetStates::with(tracker, machine.memory(), waker.clone(), taken);
                if let Some(log) = log {
                    target_states.add_joined(log);
                }
                if former_backups {
                    target_states.remember(machine.memory());
                }
                target_states
            });
            let mut vm = Vm {
                generation,
                machine,
                watcher,
                guest_io,
                disks,
                waker,
                core,
                orders,
                pacer: Pacer::new(policy),
                early_copy: EarlyCopy::default(),
                addresses_told: 0,
                cpu,
                look: None,
                quiet: false,
                target_states,
                last: Last::No,
                epoch: taken,
                resumed: Instant::now(),
                paused: false,
                off: if standing.activity == Activity::Off { Off::Seen } else { Off::No },
                stance: RunState::of(standing),
            };
            if let Err(reason) = vm.run() {
                let _ = vm.core.send(Msg::VmLost { generation, reason });
            }
        })
        .map_err(KeeperError::Thread)?;
    Ok(VmHandle { commands, waker: ring, thread: Some(thread), killed })
}

/// How the thread waits for a QEMU that does not answer: as long as the core does not give it up. A QEMU that lives may be the
/// only one that has the VM, and may wait for a disk.
fn patience(generation: u64, killed: Arc<AtomicBool>, core: Sender<Msg>) -> Patience {
    let mut told = None;
    Box::new(move |step, waited| {
        if waited >= STUCK && told.is_none_or(|told: Instant| told.elapsed() >= TELL_STUCK) {
            told = Some(Instant::now());
            let _ = core.send(Msg::Stuck { generation, step: step.to_owned(), waited });
        }
        !killed.load(Ordering::SeqCst)
    })
}

struct Vm {
    generation: u64,
    machine: Machine,
    watcher: Watcher,
    guest_io: Arc<GuestIo>,
    disks: Arc<Disks>,
    waker: Waker,
    core: Sender<Msg>,
    orders: Receiver<Command>,
    pacer: Pacer,
    early_copy: EarlyCopy,
    /// The changes of the guest's addresses up to which the targets know them.
    addresses_told: u64,
    cpu: Option<CpuClock>,
    /// QEMU's CPU time at the last look.
    look: Option<(Instant, Duration)>,
    quiet: bool,
    /// There are some: the memory is tracked.
    target_states: Option<TargetStates>,
    last: Last,
    /// The newest checkpoint of this guest here, whoever it was for.
    epoch: Epoch,
    resumed: Instant,
    /// The guest stands still after the last checkpoint of a switchover.
    paused: bool,
    off: Off,
    stance: RunState,
}

/// Whether the guest has powered itself off: QEMU would not let it run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Off {
    No,
    /// What it did last is still to be taken to those that have joined.
    Seen,
    /// The core knows.
    Reported,
}

/// The last checkpoint before the guest stays paused.
#[derive(PartialEq, Eq)]
enum Last {
    No,
    Wanted,
    Taken,
}

enum Flow {
    GoOn,
    End,
}

impl Vm {
    /// Until the VM ends (an error) or is not wanted any more.
    fn run(&mut self) -> Result<(), String> {
        priority::raise();
        if self.stance.now().runs() {
            self.machine.start().map_err(|e| report(&e))?;
        }
        self.resumed = Instant::now();
        let _ = self.core.send(Msg::VmRunning { generation: self.generation });
        loop {
            while let Ok(command) = self.orders.try_recv() {
                match self.obey(command)? {
                    Flow::GoOn => {}
                    Flow::End => {
                        self.machine.kill();
                        return Ok(());
                    }
                }
            }
            let wait = self.work()?;
            if wait > Duration::ZERO {
                self.wait(wait)?;
            } else {
                self.events()?;
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<Flow, String> {
        match command {
            Command::AddSink { target, rounds, rest, held } => {
                let name = target.name();
                let added = match held {
                    Some(held) => self.add_holder(target, rounds, rest, &held),
                    None => self.add_sink(target, rounds, rest).map(|()| true),
                };
                match added {
                    Ok(true) => {}
                    // It must not be taken for an empty one: what it holds is not zero.
                    Ok(false) => drop(self.core.send(Msg::BaseForgotten { generation: self.generation, target: name })),
                    Err(error) => {
                        let (generation, reason) = (self.generation, report(&error));
                        let _ = self.core.send(Msg::CannotReplicate { generation, target: name, reason });
                    }
                }
            }
            Command::ForgetSurvivors => {
                if let Some(target_states) = &mut self.target_states {
                    target_states.forget();
                    self.drop_if_empty();
                }
            }
            Command::RemoveSink { target, comes_back } => {
                if let Some(target_states) = &mut self.target_states {
                    target_states.remove(target, comes_back, self.machine.memory());
                    self.drop_if_empty();
                }
            }
            Command::ForgetLeft(session) => {
                if let Some(target_states) = &mut self.target_states {
                    target_states.forget_left(session);
                    self.drop_if_empty();
                }
            }
            Command::TakeFinal => {
                if self.target_states.as_ref().is_some_and(TargetStates::any_joined) {
                    self.last = Last::Wanted;
                }
            }
            Command::GoOn => {
                self.last = Last::No;
                if std::mem::take(&mut self.paused) && self.off == Off::No {
                    // It is the end of the last checkpoint's pause.
                    let paused = self.stance.now().paused;
                    let ended = if paused { self.machine.stay() } else { self.machine.resume() };
                    self.unless_off(ended)?;
                    self.guest_io.let_input();
                    self.resumed = Instant::now();
                }
            }
            Command::Acked { target, epoch } => {
                if let Some(target_states) = &mut self.target_states {
                    target_states.acked(target, epoch);
                }
            }
            Command::Policy(policy) => self.pacer.set_policy(policy),
            Command::Health(order) => {
                // It may stop the guest, or reset it.
                self.guest_io.make_room();
                self.disks.pausing(true);
                let still = self.stays_still();
                let obeyed = self.watcher.obey(order, &mut self.machine, still);
                self.disks.pausing(false);
                self.unless_off(obeyed)?;
            }
            Command::Pause(paused) => self.pause(paused)?,
            Command::Wake => self.machine.wake().map_err(|e| report(&e))?,
            Command::PowerButton => self.machine.powerdown().map_err(|e| report(&e))?,
            Command::Kill => return Ok(Flow::End),
        }
        Ok(Flow::GoOn)
    }

    /// Whether the guest must not run, or cannot.
    fn stays_still(&self) -> bool {
        self.paused || self.stance.now().paused || self.off != Off::No
    }

    /// As the owner wants it. A guest that stands still for another reason is dealt with when that is over.
    fn pause(&mut self, paused: bool) -> Result<(), String> {
        if self.off != Off::No || !self.stance.pause(paused) {
            return Ok(());
        }
        if !self.paused && !self.watcher.busy() {
            self.guest_io.make_room();
            self.disks.pausing(true);
            let obeyed = if paused { self.machine.stop() } else { self.machine.cont() };
            self.disks.pausing(false);
            self.unless_off(obeyed)?;
            if !paused && self.stance.now().activity == Activity::Suspended {
                self.machine.stay_suspended().map_err(|e| report(&e))?;
            }
            self.resumed = Instant::now();
        }
        self.stands();
        self.events()
    }

    /// Tells the core how the guest stands, and which checkpoint says so, or will.
    fn stands(&self) {
        let joined = self.target_states.as_ref().is_some_and(TargetStates::any_joined);
        let epoch = joined.then(|| if self.stance.is_taken() { self.epoch } else { self.epoch.next() });
        let _ = self.core.send(Msg::Stands { generation: self.generation, standing: self.stance.now(), epoch });
    }

    /// What the guest does has changed.
    fn does(&mut self, activity: Activity) {
        if self.stance.does(activity) {
            self.stands();
        }
    }

    /// Wakes a guest whose alarm nobody has heard.
    fn wake_if_overslept(&mut self) -> Result<(), String> {
        let may = !self.stays_still() && !self.watcher.busy() && self.off == Off::No;
        if may && self.machine.is_suspended() && self.machine.has_overslept().map_err(|e| report(&e))? {
            self.machine.wake().map_err(|e| report(&e))?;
            self.events()?;
        }
        Ok(())
    }

    fn add_sink(
        &mut self,
        target: Box<dyn ReplicationTarget>,
        before: u32,
        rest: ChangedBlocks,
    ) -> Result<(), MachineError> {
        let mut target_states = match self.target_states.take() {
            Some(target_states) => target_states,
            None => TargetStates::new(&mut self.machine, self.waker.clone(), self.epoch)?,
        };
        let added = target_states.add(target, before, rest, self.machine.memory());
        self.target_states = Some(target_states);
        self.drop_if_empty();
        added
    }

    /// A backup that holds a checkpoint already; false when it is not known what was written since.
    fn add_holder(
        &mut self,
        target: Box<dyn ReplicationTarget>,
        before: u32,
        rest: ChangedBlocks,
        held: &Held,
    ) -> Result<bool, MachineError> {
        let Some(target_states) = &mut self.target_states else { return Ok(false) };
        target_states.add_holder(target, before, rest, held, self.machine.memory())
    }

    /// Without a target the memory need not be tracked.
    fn drop_if_empty(&mut self) {
        if self.target_states.as_ref().is_some_and(TargetStates::is_empty) {
            self.target_states = None;
        }
    }

    /// Does what is due; answers how long nothing will be.
    fn work(&mut self) -> Result<Duration, String> {
        if self.off == Off::Seen {
            self.switched_off()?;
        }
        self.watcher.look(&mut self.machine)?;
        // A moment that was held may have been read.
        self.drop_if_empty();
        self.wake_if_overslept()?;
        self.disks.brace(self.target_states.as_ref().is_some_and(TargetStates::any_ready));
        if self.target_states.is_none() && self.machine.owes_time() && self.resumed.elapsed() >= IDLE {
            self.catch_up()?;
        }
        let Some(target_states) = &mut self.target_states else { return Ok(IDLE) };
        if self.watcher.busy() || self.last == Last::Taken || self.off != Off::No {
            return Ok(IDLE);
        }
        if let Some(target) = target_states.joins_next() {
            self.disks.falls_behind(target);
        }
        let (joined, ready) = (target_states.any_joined(), target_states.any_ready());
        let wants_pauses = target_states.trapping();
        let trapping = wants_pauses && !joined;
        let in_flight = target_states.in_flight();
        let mut wait = IDLE;
        // A pause lets in what QEMU has outstanding, and must be short. The last one of a switchover helps, whatever is held.
        let may_pause = self.last == Last::Wanted || self.disks.allows_pause();
        let alone = !joined && target_states.only_once();
        if trapping {
            // Nobody gets checkpoints, in whose pauses it would be done.
            wait = BETWEEN_TRAPS.saturating_sub(self.resumed.elapsed()).max(Duration::from_micros(50));
        }
        if !may_pause {
            // What goes from memory makes room: nothing here can do more.
        } else if self.last == Last::Wanted || (ready && in_flight < MAX_IN_FLIGHT && self.disks.calm(alone)) {
            if self.checkpoint()? {
                return Ok(Duration::ZERO);
            }
        } else if joined && (!self.stance.rests() || wants_pauses || self.guest_io.output_waits()) {
            match self.due(in_flight) {
                Due::Now if self.checkpoint()? => return Ok(Duration::ZERO),
                // All captures are on their way: one that comes back rings.
                Due::Now => {}
                Due::In(time) => wait = time.max(Duration::from_micros(50)),
            }
        } else if trapping && self.resumed.elapsed() >= BETWEEN_TRAPS {
            self.trap_more()?;
            return Ok(Duration::ZERO);
        }
        Ok(match self.copy()? {
            Copied::Something => Duration::ZERO,
            Copied::NoRoom => wait,
        })
    }

    /// Lets more memory be trapped, in a pause of its own: nobody gets checkpoints.
    fn trap_more(&mut self) -> Result<(), String> {
        self.stand_still(|vm| vm.target_states.as_mut().map_or(Ok(()), TargetStates::look_stopped))
    }

    /// Gives a guest of which no checkpoints are taken a part of the time that it has lost: in a pause of its own.
    fn catch_up(&mut self) -> Result<(), String> {
        let runs = self.stance.now().runs() && !self.paused && self.off == Off::No;
        if self.watcher.busy() || !runs || !self.disks.allows_pause() {
            return Ok(());
        }
        self.stand_still(|_| Ok(()))
    }

    /// A pause that is no checkpoint's: the guest stands still for as long as `meanwhile` takes.
    fn stand_still(&mut self, meanwhile: impl FnOnce(&mut Self) -> Result<(), MachineError>) -> Result<(), String> {
        self.guest_io.make_room();
        self.disks.pausing(true);
        let stopped = self.machine.stop();
        self.disks.pausing(false);
        // One that its owner has paused stands still anyway.
        let paused = self.stance.now().paused;
        let goes_on = |vm: &mut Self| if paused { vm.machine.stay() } else { vm.machine.cont_in_time() };
        let went_on = stopped.and_then(|()| meanwhile(self)).and_then(|()| goes_on(self));
        self.resumed = Instant::now();
        self.unless_off(went_on)?;
        if self.machine.woke_in_pause() {
            self.begin_anew();
        }
        self.events()
    }

    /// The guest has woken in a pause in which it was to stand still. What was copied in it is of no moment, and a write to memory that changed
    /// hands may have been missed: all to whom it is copied are ended, and come anew with a copy of all of it.
    fn begin_anew(&mut self) {
        self.stance.forget_taken();
        if let Some(target_states) = self.target_states.take() {
            let (core, generation) = (&self.core, self.generation);
            target_states.end(&mut |target| {
                let _ = core.send(Msg::CannotReplicate { generation, target, reason: WOKE.into() });
            });
        }
        self.disks.go_through_if_alone();
    }

    /// What QEMU refuses to let run because the guest has powered itself off, right before it was stopped, has not failed.
    fn unless_off(&mut self, done: Result<(), MachineError>) -> Result<(), String> {
        let Err(error) = done else { return Ok(()) };
        self.events()?;
        if self.off == Off::No { Err(report(&error)) } else { Ok(()) }
    }

    /// The guest has powered itself off: takes what it did last to those that have joined, and tells the core.
    fn switched_off(&mut self) -> Result<(), String> {
        if self.target_states.as_ref().is_some_and(TargetStates::any_joined) && self.last != Last::Taken {
            self.last = Last::Wanted;
            // All captures are on their way: one that comes back rings.
            if !self.checkpoint()? {
                return Ok(());
            }
        }
        self.tell_off();
        Ok(())
    }

    fn tell_off(&mut self) {
        if self.off == Off::Seen {
            self.off = Off::Reported;
            let _ = self.core.send(Msg::VmShutdown { generation: self.generation });
        }
    }

    /// When the next checkpoint is due.
    fn due(&mut self, in_flight: u32) -> Due {
        let output_waits = self.guest_io.output_waits();
        if output_waits {
            self.look();
        } else {
            self.look = None;
            self.quiet = false;
        }
        self.pacer.due(&Observation {
            run: self.resumed.elapsed(),
            output_waits,
            urgent_for: self.guest_io.urgent().map(|since| since.elapsed()),
            more_to_come: self.guest_io.more_to_come(),
            quiet: self.quiet,
            gate_half_full: self.guest_io.wants_checkpoint() || self.disks.pressure(),
            in_flight,
        })
    }

    /// Goes on with the initial copies.
    fn copy(&mut self) -> Result<Copied, String> {
        let Some(target_states) = &mut self.target_states else { return Ok(Copied::NoRoom) };
        let (core, generation) = (&self.core, self.generation);
        let copied = target_states.copy(
            self.machine.memory(),
            &mut |target, progress| {
                let _ = core.send(Msg::SyncProgress { target, progress });
            },
            &mut |target, reason| {
                let _ = core.send(Msg::CannotReplicate { generation, target, reason });
            },
        );
        self.drop_if_empty();
        copied.map_err(|e| report(&e))
    }

    /// Whether QEMU has been using the CPU since the last look.
    fn look(&mut self) {
        let now = Instant::now();
        let Some(used) = self.cpu.as_ref().and_then(CpuClock::read) else { return };
        match self.look {
            Some((then, _)) if now - then < QUIET_WINDOW => {}
            Some((then, before)) => {
                let share = used.saturating_sub(before).as_secs_f64() / (now - then).as_secs_f64();
                self.quiet = share < QUIET_SHARE && !self.cpu.as_ref().is_some_and(CpuClock::runnable);
                self.look = Some((now, used));
            }
            None => {
                self.quiet = false;
                self.look = Some((now, used));
            }
        }
    }

    /// Takes a checkpoint for all that have joined or are ready to. False when there is no capture for it.
    fn checkpoint(&mut self) -> Result<bool, String> {
        let Some(target_states) = &mut self.target_states else { return Ok(false) };
        let Some(mut capture) = target_states.spare(self.machine.memory()).map_err(|e| report(&e))? else {
            return Ok(false);
        };
        let last = self.last == Last::Wanted;
        let epoch = self.epoch.next();
        if !last {
            target_states.line_up();
            // All output is held before the guest stands still, and so is what it does to its volumes: whatever it, or QEMU,
            // waits for at the disk is let go. The core answers at once.
            let (core, generation) = (&self.core, self.generation);
            target_states.hold(|target| {
                let (held, answer) = sync_channel(1);
                let _ = core.send(Msg::FirstCheckpoint { generation, target, epoch, held });
                let held = answer.recv_timeout(HOLD_LIMIT).is_ok();
                if !held {
                    let reason = "output is not held in time".into();
                    let _ = core.send(Msg::CannotReplicate { generation, target, reason });
                }
                held
            });
            if !target_states.any_joined() && !target_states.any_ready() {
                target_states.put_back(capture);
                self.disks.go_through_if_alone();
                self.drop_if_empty();
                return Ok(false);
            }
        }
        self.epoch = epoch;
        let ran = self.resumed.elapsed();
        let joining = !last && target_states.gather();
        capture.bare = joining && target_states.none_wants_memory();
        if capture.bare {
            target_states.settle().map_err(|e| report(&e))?;
        }
        // The guest of a switchover stands still until all is copied.
        capture.may_hold = !last && !capture.bare && target_states.may_hold();
        let many = capture.may_hold && target_states.holds_many();
        capture.early = self.early_copy.wanted();
        capture.busy = self.cpu.as_ref().map_or(Processors::NONE, CpuClock::processors);
        if capture.early || joining || many {
            // The guest runs while its pages are copied.
            priority::step_aside(&capture.busy);
        }
        let TargetStates { tracker, missing, .. } = target_states;
        let missing = (joining || many).then_some(missing);
        capture
            .take(epoch, ran, &mut self.machine, tracker, &self.guest_io, &self.disks, missing)
            .map_err(|e| report(&e))?;
        let standing = self.stance.checkpoint(self.machine.was_suspended());
        let seen = &capture.record;
        if !capture.bare && !capture.holds() {
            self.early_copy.learned(seen.dirty_pages, seen.early_pages, seen.again_pages);
        }
        target_states.taken(&capture);
        let joins = if joining { target_states.join(&self.guest_io, &self.disks) } else { Vec::new() };
        let nobody = !target_states.any_joined();
        // What the checkpoint has sealed is the guest's own again, if nobody is to have it: the core may have said so while the
        // checkpoint was taken.
        self.disks.go_through_if_alone();
        let paused = self.stance.now().paused;
        let stays = last || paused;
        let ended = if stays { capture.stay(&mut self.machine) } else { capture.resume(&mut self.machine) };
        if self.machine.woke_in_pause() {
            self.begin_anew();
            self.last = Last::No;
            if last && !paused {
                self.machine.cont_in_time().map_err(|e| report(&e))?;
            }
            self.guest_io.let_input();
            (self.resumed, self.look, self.quiet) = (Instant::now(), None, false);
            self.events()?;
            return Ok(true);
        }
        if last {
            ended.map_err(|e| report(&e))?;
            self.last = Last::Taken;
            self.paused = true;
            // Before the checkpoint's own message: nobody is to let run what has powered off.
            self.events()?;
            self.tell_off();
            let _ = self.core.send(Msg::FinalTaken { generation: self.generation, epoch });
        } else if let Err(error) = ended {
            // Its last output is committed all the same.
            self.unless_off(Err(error))?;
        } else {
            self.guest_io.let_input();
            self.pacer.paused(Duration::from_micros(capture.record.pause_us));
        }
        self.resumed = capture.resumed;
        self.look = None;
        self.quiet = false;
        let changes = self.guest_io.address_changes();
        if joining || changes != self.addresses_told || epoch.0.is_multiple_of(64) {
            self.guest_io.addresses(&mut capture.addresses);
            self.addresses_told = changes;
        }
        // A failure of the guest may be in it.
        self.take_events()?;
        self.watcher.fill(joining, standing, &mut capture.health);
        self.watcher.report();
        let Some(target_states) = &mut self.target_states else { return Ok(true) };
        if !nobody && capture.holds() {
            priority::step_aside(&capture.busy);
            capture.collect().map_err(|e| report(&e))?;
        }
        if nobody {
            target_states.give_to_nobody(capture);
        } else {
            let (core, generation) = (&self.core, self.generation);
            // Output stays held until the core has decided.
            target_states.give(capture, joins, self.machine.memory(), &mut |target, reason| {
                let _ = core.send(Msg::CannotReplicate { generation, target, reason });
            });
        }
        self.drop_if_empty();
        Ok(true)
    }

    fn wait(&mut self, wait: Duration) -> Result<(), String> {
        // An event that came along with the answer to a command is here already: nothing would wake us for it.
        if self.machine.poll_events().map_err(|e| report(&e))? > 0 {
            return self.events();
        }
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        let waker = self.waker.clone();
        let mut fds = [
            PollFd::new(&waker, PollFlags::IN),
            PollFd::from_borrowed_fd(self.machine.qmp_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.machine.pidfd(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("poll: {e}")),
        }
        let [rung, spoke, died] = fds.map(|fd| !fd.revents().is_empty());
        if rung {
            self.waker.quieten();
        }
        if died {
            let exit = self.machine.wait_exit(Duration::from_secs(1));
            return Err(exit.map_or("QEMU ended".into(), |e| report(&e.into_error())));
        }
        if spoke { self.events() } else { Ok(()) }
    }

    fn events(&mut self) -> Result<(), String> {
        self.take_events()?;
        self.watcher.report();
        Ok(())
    }

    fn take_events(&mut self) -> Result<(), String> {
        self.machine.poll_events().map_err(|e| report(&e))?;
        while let Some(event) = self.machine.next_event() {
            match event.kind {
                EventKind::Shutdown { .. } if self.off == Off::No => {
                    self.off = Off::Seen;
                    self.does(Activity::Off);
                }
                EventKind::Suspend => self.does(Activity::Suspended),
                EventKind::Wakeup | EventKind::Reset { .. } => {
                    self.does(Activity::Running);
                    // Before QEMU 9.0 it may wake although it was stopped.
                    if event.kind == EventKind::Wakeup && self.stays_still() {
                        self.machine.stop().map_err(|e| report(&e))?;
                    }
                }
                // A suspended guest does not pat it.
                EventKind::Watchdog if self.machine.is_suspended() => {}
                EventKind::Watchdog => self.watcher.failed(Failure::Watchdog),
                EventKind::GuestPanicked => self.watcher.failed(Failure::Panic),
                EventKind::DumpCompleted { ok } => {
                    let still = self.stays_still();
                    self.watcher.dumped(ok, &mut self.machine, still).map_err(|e| report(&e))?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}
