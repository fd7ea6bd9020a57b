//! One QEMU from launch to end.
//!
//! ```text
//!  launch(incoming: false) --> prelaunch --start()--> running <------------------ resume() -----------+
//!                                                      |   ^                                          |
//!                                                      |   +-- cont() -- paused <-- stop()            |
//!                                                      |                                              |
//!                                                 begin_pause() --> saving -- finish_save() --> saved |
//!                                                 guest is still;   QEMU writes          state_into() +
//!                                                 scan and copy     its devices
//!
//!  launch(incoming: true) --> waiting for state --load()--> paused --start()--> running
//!
//!  any --> ended: QEMU exits or is killed; `pidfd` becomes readable, calls answer `Exited` with the end of its stderr
//! ```
//!
//! The owner (the keeper's thread for this VM) moves it; QEMU moves by itself only from running to stopped (the guest
//! powers off: event SHUTDOWN), to suspended and back (SUSPEND, WAKEUP: see `suspension`), and to ended. `begin_pause`, `finish_save`, `state_into` and `resume` neither allocate nor
//! log.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_model::Uuid;
use ninefold_model::spec::{Accel, Boot, ClockGap, VmSpec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::blocks;
use crate::clock::{self, GuestClock};
use crate::command_line::{self, Descriptors, LaunchOptions};
use crate::device_state::{self, StateFile};
use crate::dirty::{Mechanism, PagemapScan, SoftDirty, Tracker, Userfaultfds, host};
use crate::error::{MachineError, Result};
use crate::memory::Memory;
use crate::preload;
use crate::process::{self, Child, Exit};
use crate::qmp::{Event, Patience, Qmp};
use crate::ram::Ram;
use crate::suspension::Suspension;
use crate::version::QemuVersion;

/// How long QEMU may take to start; reading a large initrd from a cold disk is part of it.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one step of a pause may take before the QEMU counts as hung.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Buffers of the sockets between QEMU and keeper, bytes: a full epoch's output should fit.
const SOCKET_BUFFER: usize = 8 << 20;

/// Ids of the pause path's preformatted commands.
const ID_STOP: u64 = 1;
const ID_SAVE: u64 = 2;
const ID_CONT: u64 = 3;
const CONT: &[u8] = b"{\"execute\":\"cont\",\"id\":3}\n";

/// What to launch.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// QEMU's program, such as `qemu-system-x86_64`.
    pub qemu: PathBuf,
    pub spec: VmSpec,
    /// What it boots from here, of the kind that its hardware wants.
    pub boot: Boot,
    pub accel: Accel,
    /// Start as a standby that waits for [`Machine::load`].
    pub incoming: bool,
    /// The generation id that the guest is shown (`vmgenid`). One that differs from what it knew tells it that it has been put
    /// back, or is a copy; so a standby has the same as the machine whose state it loads.
    pub generation: Uuid,
    /// A Unix socket for each of the spec's volumes, in its order, behind which an NBD server offers it under its name.
    pub volumes: Vec<PathBuf>,
    /// Further arguments for QEMU, as they are. For experiments; equal on both sides.
    pub extra_args: Vec<OsString>,
}

/// The keeper's ends of what leaves and enters the VM. All non-blocking stream sockets with large buffers.
#[derive(Debug)]
pub struct Ports {
    /// One for each NIC of the spec, in its order: frames, each after its length as a 32-bit big-endian number
    /// (QEMU's `-netdev stream`).
    pub nics: Vec<OwnedFd>,
    /// The serial console: bytes.
    pub console: OwnedFd,
    /// The guest agent's channel: bytes.
    pub agent: OwnedFd,
}

/// QEMU's run state (qapi/run-state.json).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    Running,
    Paused,
    /// Not started yet.
    Prelaunch,
    /// Waiting for, or loading, device state.
    Inmigrate,
    /// The guest powered off.
    Shutdown,
    /// The guest has suspended itself to memory.
    Suspended,
    #[serde(untagged)]
    Other(String),
}

/// How long the latest pause's steps took, microseconds of CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTimes {
    /// From before `stop` was sent until it was answered.
    pub stop_us: u64,
    /// From then until the answer to the save was taken. The caller's work in between runs in parallel and is in it.
    pub save_us: u64,
    /// Of `save_us`, how long [`Machine::finish_save`] had to wait.
    pub save_wait_us: u64,
    /// From before `cont` was sent until it was answered.
    pub cont_us: u64,
    /// From before `stop` to after `cont`.
    pub pause_us: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    /// `stop` is answered, the save is not.
    Saving,
    Saved,
}

#[derive(Debug, Deserialize)]
struct Status {
    status: RunState,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MigrationInfo {
    #[serde(default)]
    blocked_reasons: Vec<String>,
}

/// A QEMU process and all that belongs to it. Dropping it kills the process.
#[derive(Debug)]
pub struct Machine {
    pub(crate) qmp: Qmp,
    child: Child,
    version: QemuVersion,
    accel: Accel,
    generation: Uuid,
    memory: Arc<Memory>,
    /// The userfaultfds, or why there are none.
    uffds: Result<Arc<Userfaultfds>, String>,
    /// Whether QEMU was started with its memory locked, for soft-dirty bits, or why not.
    locked: Result<(), String>,
    /// The tracker at work has a copy.
    tracker: Arc<()>,
    clock: GuestClock,
    /// The guest has not run yet.
    unborn: bool,
    /// The guest has been loaded and has not run yet.
    loaded: bool,
    pub(crate) suspension: Suspension,
    state: StateFile,
    pause_commands: Vec<u8>,
    phase: Phase,
    times: StepTimes,
    pause_began: Option<Instant>,
}

impl Machine {
    /// Starts QEMU, its vCPUs standing still. `ram` has the spec's size.
    ///
    /// # Errors
    /// `Spawn`, `Exited` (with what QEMU said) and others.
    pub fn launch(config: &MachineConfig, ram: Arc<Ram>) -> Result<(Machine, Ports)> {
        Self::launch_as(config, ram, false)
    }

    /// As [`Machine::launch`]; a rehearsal has an image of the memory that it cannot write, and empty volumes.
    pub(crate) fn launch_as(config: &MachineConfig, ram: Arc<Ram>, rehearsal: bool) -> Result<(Machine, Ports)> {
        if config.spec.hardware.memory_mib.checked_mul(1 << 20) != Some(ram.bytes()) {
            return Err(MachineError::Spec {
                vm: config.spec.name.to_string(),
                reason: format!(
                    "its memory has {} MiB, the given one {} bytes",
                    config.spec.hardware.memory_mib,
                    ram.bytes()
                ),
            });
        }
        let (qmp, qmp_theirs) = pair()?;
        let (uffd, uffd_theirs) = pair()?;
        let (console, console_theirs) = port()?;
        let (agent, agent_theirs) = port()?;
        let nics = config.spec.hardware.nics.iter().map(|_| port()).collect::<Result<Vec<_>>>()?;
        let state = StateFile::create()?;
        let library = preload::library()?;
        let log = rustix::fs::memfd_create(c"ninefold-log", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(MachineError::os("memfd_create for QEMU's log"))?;
        let fds = Descriptors {
            ram: ram.as_fd().as_raw_fd(),
            qmp: qmp_theirs.as_raw_fd(),
            console: console_theirs.as_raw_fd(),
            agent: agent_theirs.as_raw_fd(),
            log: log.as_raw_fd(),
            nics: nics.iter().map(|(_, theirs)| theirs.as_raw_fd()).collect(),
        };
        let options = LaunchOptions {
            accel: config.accel,
            incoming: config.incoming,
            generation: config.generation,
            fds,
            rehearsal,
            volumes: config.volumes.clone(),
        };
        let mut args = command_line::arguments(&config.spec, &config.boot, &options)?;
        args.extend(config.extra_args.iter().cloned());
        tracing::debug!(qemu = %config.qemu.display(), args = command_line::display(&args), "launch");
        let mut inherited = vec![
            ram.as_fd(),
            qmp_theirs.as_fd(),
            uffd_theirs.as_fd(),
            console_theirs.as_fd(),
            agent_theirs.as_fd(),
            state.as_fd(),
            library.as_fd(),
            log.as_fd(),
        ];
        inherited.extend(nics.iter().map(|(_, theirs)| theirs.as_fd()));
        let locked = match host::pagemap_scan() {
            // Locked, it would copy all of the memory.
            _ if rehearsal => Err("it is a rehearsal".to_owned()),
            Ok(()) => Err("not needed".to_owned()),
            Err(_) => host::soft_dirty(),
        };
        let environment = preload::environment(&library, &uffd_theirs, locked.is_ok());
        let child = process::spawn(&config.qemu, &args, &environment, &inherited)?;
        // Only QEMU holds the other ends from here on, so that its death closes them.
        drop((qmp_theirs, uffd_theirs, console_theirs, agent_theirs, library));
        let ports = Ports { nics: nics.into_iter().map(|(ours, _)| ours).collect(), console, agent };

        let (qmp, version) = Qmp::connect(qmp, START_TIMEOUT).map_err(|error| explain(&child, error))?;
        version.check()?;
        let (uffds, kvm_clock) = match preload::receive(&uffd, child.pid()) {
            Ok(received) => (received.uffds, received.kvm_clock.filter(|_| config.accel == Accel::Kvm)),
            Err(error) => (Err(error), None),
        };
        let uffds = uffds.and_then(Userfaultfds::new).map(Arc::new).map_err(|error| error.to_string());
        let mut qmp = qmp;
        let mut placed = prepare(&mut qmp).map_err(|error| explain(&child, error))?;
        if placed.iter().any(|p| p.address == 0) {
            locate(&mut placed, &log, &ram, child.pid())?;
        }
        let process = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{}/mem", child.pid()))
            .map_err(MachineError::io("opening QEMU's memory"))?;
        let memory = Arc::new(Memory::new(ram, &placed, process)?);
        let pause_commands = format!(
            "{{\"execute\":\"stop\",\"id\":{ID_STOP}}}\n\
             {{\"execute\":\"xen-save-devices-state\",\"arguments\":{{\"filename\":\"{}\",\"live\":false}},\"id\":{ID_SAVE}}}\n",
            state.path()
        )
        .into_bytes();
        let machine = Machine {
            clock: GuestClock::new(child.pid(), kvm_clock, config.spec.hardware.watchdog.is_some()),
            unborn: !config.incoming,
            loaded: false,
            suspension: Suspension::default(),
            qmp,
            child,
            version,
            accel: config.accel,
            generation: config.generation,
            memory,
            uffds,
            locked,
            tracker: Arc::default(),
            state,
            pause_commands,
            phase: Phase::Idle,
            times: StepTimes::default(),
            pause_began: None,
        };
        Ok((machine, ports))
    }

    /// From now on no step is given up after a time, as long as QEMU lives: `patience` is asked instead. A step that takes long
    /// may wait for a disk.
    pub fn set_patience(&mut self, patience: Patience) {
        self.qmp.set_patience(patience);
    }

    /// QEMU's process id. For display: signals go through [`Machine::kill`].
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// QEMU's version.
    pub fn version(&self) -> QemuVersion {
        self.version
    }

    /// The accelerator in use.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// The generation id that it shows the guest.
    pub fn generation(&self) -> Uuid {
        self.generation
    }

    /// All RAM blocks and their contents; may be kept and used from other threads.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Readable (poll(2), POLLIN) from QEMU's death on.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd()
    }

    /// Becomes readable when something arrives for [`Machine::poll_events`] to take. Not for what came along with the
    /// answer to a command, which has been read: call that once before waiting for this.
    pub fn qmp_fd(&self) -> BorrowedFd<'_> {
        self.qmp.as_fd()
    }

    /// Takes events that have arrived, without waiting; answers how many wait for [`Machine::next_event`].
    ///
    /// # Errors
    /// `Exited` when QEMU has ended.
    pub fn poll_events(&mut self) -> Result<usize> {
        if self.phase == Phase::Saving {
            // The save's answer is among the input; whoever finishes the save takes the events too.
            return Ok(0);
        }
        self.qmp.poll_events().map_err(|error| explain(&self.child, error))
    }

    /// The oldest event not yet taken; events met while waiting for answers are queued here too.
    pub fn next_event(&mut self) -> Option<Event> {
        self.qmp.next_event()
    }

    /// Starts following writes to all RAM blocks: every page counts as clean from now on. One tracker at a time. By
    /// userfaultfd where the kernel offers what that needs, else by soft-dirty bits.
    ///
    /// # Errors
    /// `Kernel` when this host cannot, `Untrackable` or `Blocked` when this VM cannot be protected.
    pub fn track(&mut self) -> Result<Tracker> {
        self.track_with(|| {})
    }

    /// As [`Machine::track`]. The guest waits at times for a thread of the tracker, which calls `begin` first: to raise its
    /// priority, for instance.
    ///
    /// # Errors
    /// As [`Machine::track`].
    pub fn track_with(&mut self, begin: fn()) -> Result<Tracker> {
        let info: MigrationInfo = self.command("query-migrate", None::<()>)?;
        if !info.blocked_reasons.is_empty() {
            return Err(MachineError::Blocked { reasons: info.blocked_reasons });
        }
        if Arc::strong_count(&self.tracker) > 1 {
            return Err(MachineError::Order { call: "track", reason: "another tracker is at work" });
        }
        let (memory, slot) = (Arc::clone(&self.memory), Arc::clone(&self.tracker));
        let tracker = match (&self.uffds, &self.locked) {
            (Ok(uffds), _) => {
                let pagemap = File::open(format!("/proc/{}/pagemap", self.child.pid()))
                    .map_err(MachineError::io("opening QEMU's pagemap"))?;
                Tracker::PagemapScan(PagemapScan::start(Arc::clone(uffds), pagemap, memory, slot, begin)?)
            }
            (Err(_), Ok(())) => {
                let pidfd = self.child.pidfd().try_clone_to_owned().map_err(MachineError::io("QEMU's descriptor"))?;
                Tracker::SoftDirty(SoftDirty::start(pidfd, self.child.pid(), memory, slot)?)
            }
            (Err(uffd), Err(soft)) => {
                return Err(MachineError::Kernel { reason: format!("{uffd}; soft-dirty bits: {soft}") });
            }
        };
        tracing::debug!(pid = self.child.pid(), mechanism = %tracker.mechanism(), "writes are followed");
        Ok(tracker)
    }

    /// What [`Machine::track`] goes by here; None when it cannot.
    pub fn mechanism(&self) -> Option<Mechanism> {
        match (&self.uffds, &self.locked) {
            (Ok(_), _) => Some(Mechanism::PagemapScan),
            (Err(_), Ok(())) => Some(Mechanism::SoftDirty),
            (Err(_), Err(_)) => None,
        }
    }

    /// Asks QEMU for its RAM blocks again; an error when they are no longer those of the launch (a device was added).
    ///
    /// # Errors
    /// `Layout`.
    pub fn check_layout(&mut self) -> Result<()> {
        let placed = read_blocks(&mut self.qmp).map_err(|error| explain(&self.child, error))?;
        let layout = blocks::BlockLayout { blocks: placed.iter().map(|p| p.block.clone()).collect() };
        self.memory.layout().check_same(&layout)?;
        if placed.iter().enumerate().any(|(n, p)| p.address != 0 && p.address != self.memory.address(n)) {
            return Err(MachineError::Layout { reason: "a block has moved".into() });
        }
        Ok(())
    }

    /// Stops the guest and lets QEMU save its devices. Returns when the guest stands still: memory can be scanned and
    /// copied while QEMU goes on saving. [`Machine::finish_save`] must follow.
    ///
    /// # Errors
    /// `Order`, `Exited`, `Refused`, `Timeout`.
    pub fn begin_pause(&mut self) -> Result<()> {
        if self.phase != Phase::Idle {
            return Err(MachineError::Order { call: "begin_pause", reason: "a pause is under way" });
        }
        let running = self.clock_step(|clock, process| clock.read(process))?;
        let began = Instant::now();
        self.times = StepTimes::default();
        self.pause_began = Some(began);
        let sent = self.qmp.send(&self.pause_commands, "stop");
        sent.map_err(|error| explain(&self.child, error))?;
        let stopped = self.qmp.reply(ID_STOP, "stop", STEP_TIMEOUT);
        self.times.stop_us = micros(began);
        // Also when `stop` was refused: the save has been sent.
        self.phase = Phase::Saving;
        stopped.map_err(|error| explain(&self.child, error))?;
        self.suspension.stopped(self.qmp.suspended(), self.version);
        self.clock_step(|clock, process| clock.stopped(process, running))
    }

    /// Waits until the devices are saved; the state's size in bytes.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn finish_save(&mut self) -> Result<u64> {
        if self.phase != Phase::Saving {
            return Err(MachineError::Order { call: "finish_save", reason: "no save was begun" });
        }
        let began = Instant::now();
        let saved = self.qmp.reply(ID_SAVE, "xen-save-devices-state", STEP_TIMEOUT);
        self.phase = Phase::Idle;
        self.times.save_wait_us = micros(began);
        if let Some(pause) = self.pause_began {
            self.times.save_us = micros(pause).saturating_sub(self.times.stop_us);
        }
        saved.map_err(|error| explain(&self.child, error))?;
        self.phase = Phase::Saved;
        self.suspension.saved(self.qmp.suspended(), self.version);
        self.state.bytes()
    }

    /// Replaces `out` by the saved state. Allocates only when `out`'s capacity is too small. Follows [`Machine::finish_save`] and
    /// comes before the end of the pause.
    ///
    /// # Errors
    /// `Order`, `Io`.
    pub fn state_into(&mut self, out: &mut Vec<u8>) -> Result<()> {
        if self.phase == Phase::Saving {
            return Err(MachineError::Order { call: "state_into", reason: "the save is not finished" });
        }
        self.state.read(out)?;
        if self.suspension.clocks_ran() {
            clock::settle(out)?;
        }
        if self.was_suspended() {
            self.suspension.note(out);
        }
        Ok(())
    }

    /// Lets the guest go on after a pause. Its clocks show as if it had run all the time. Whether it has stood still until then:
    /// [`Machine::woke_in_pause`].
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn resume(&mut self) -> Result<()> {
        if self.phase == Phase::Saving {
            return Err(MachineError::Order { call: "resume", reason: "the save is not finished" });
        }
        let began = Instant::now();
        self.clock_step(GuestClock::go_on)?;
        let sent = self.qmp.send(CONT, "cont").and_then(|()| self.qmp.reply(ID_CONT, "cont", STEP_TIMEOUT));
        self.times.cont_us = micros(began);
        if let Some(pause) = self.pause_began.take() {
            self.times.pause_us = micros(pause);
        }
        self.phase = Phase::Idle;
        sent.map_err(|error| explain(&self.child, error))?;
        self.suspension.resumed(self.qmp.suspended());
        Ok(())
    }

    /// Ends a pause of a guest that is not to run on: its owner has paused it, or it is handed over. Whether it has stood still:
    /// [`Machine::woke_in_pause`]; only where it could wake is QEMU asked.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn stay(&mut self) -> Result<()> {
        if self.phase == Phase::Saving {
            return Err(MachineError::Order { call: "stay", reason: "the save is not finished" });
        }
        self.times.cont_us = 0;
        if let Some(pause) = self.pause_began.take() {
            self.times.pause_us = micros(pause);
        }
        self.phase = Phase::Idle;
        if self.suspension.may_wake() {
            // The answer comes behind the event.
            self.query_status()?;
        }
        self.suspension.resumed(self.qmp.suspended());
        Ok(())
    }

    /// The latest pause's steps.
    pub fn times(&self) -> StepTimes {
        self.times
    }

    /// Loads device state into a QEMU launched as `incoming`, whose memory is already in place. Then [`Machine::start`].
    /// QEMU ends when it cannot: launch another.
    ///
    /// # Errors
    /// `Load` with what QEMU said.
    pub fn load(&mut self, state: &[u8]) -> Result<()> {
        self.load_devices(state)?;
        let found = self.clock.find_loaded(self.memory.process(), state);
        self.say_if_lost(found);
        self.loaded = true;
        self.suspension.note(state);
        Ok(())
    }

    /// As [`Machine::load`], of a machine that will not run.
    pub(crate) fn load_devices(&mut self, state: &[u8]) -> Result<()> {
        if state.is_empty() || state.len() as u64 > device_state::MAX_STATE {
            return Err(MachineError::Load { reason: format!("it has {} bytes", state.len()) });
        }
        device_state::load(&mut self.qmp, state).map_err(|error| match explain(&self.child, error) {
            MachineError::Exited { status, stderr } => {
                MachineError::Load { reason: format!("QEMU ended ({status}): {stderr}") }
            }
            other => other,
        })
    }

    /// Lets the guest run: after launch, or after [`Machine::load`]. One that runs already goes on.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn start(&mut self) -> Result<()> {
        self.start_after(Duration::ZERO, ClockGap::Lost)
    }

    /// As [`Machine::start`]. `gap` is the time since a guest that was loaded stood still.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn start_after(&mut self, gap: Duration, choice: ClockGap) -> Result<()> {
        if std::mem::take(&mut self.loaded) {
            let (gap, slewed) = match choice {
                ClockGap::Lost => (0, false),
                ClockGap::AtOnce | ClockGap::Slewed => {
                    (u64::try_from(gap.as_nanos()).unwrap_or(u64::MAX), choice == ClockGap::Slewed)
                }
            };
            self.clock_step(|clock, process| clock.begin(process, gap, slewed))?;
            return self.no_answer("cont");
        }
        let before = clock::now();
        self.no_answer("cont")?;
        if std::mem::take(&mut self.unborn) {
            let found = self.clock.find_started(self.memory.process(), before, clock::now());
            self.say_if_lost(found);
        }
        Ok(())
    }

    /// Whether the guest's clocks go on while a checkpoint is taken. When not, the log has said why.
    pub fn keeps_time(&self) -> bool {
        self.clock.found()
    }

    /// Whether the guest is to be given more of a gap that is slewed: in each pause it is given a part.
    pub fn owes_time(&self) -> bool {
        self.clock.owes()
    }

    fn say_if_lost(&self, found: Result<()>) {
        if let Err(error) = found {
            tracing::warn!(pid = self.child.pid(), %error, "the guest's clock loses the time of every pause");
        }
    }

    /// `cont` after [`Machine::stop`], or of a guest that was loaded: for the guest no time has passed.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn cont(&mut self) -> Result<()> {
        if self.loaded {
            return self.start();
        }
        self.clock_step(GuestClock::forget)?;
        self.no_answer("cont")?;
        self.suspension.resumed(self.qmp.suspended());
        Ok(())
    }

    /// `cont` after [`Machine::stop`]: the guest's clocks show as if it had run all the time.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn cont_in_time(&mut self) -> Result<()> {
        self.clock_step(GuestClock::go_on)?;
        self.no_answer("cont")?;
        self.suspension.resumed(self.qmp.suspended());
        Ok(())
    }

    /// `stop`, outside of a checkpoint's pause. Then [`Machine::cont`] or [`Machine::cont_in_time`], or [`Machine::stay`].
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn stop(&mut self) -> Result<()> {
        let running = self.clock_step(|clock, process| clock.read(process))?;
        self.no_answer("stop")?;
        self.suspension.stopped(self.qmp.suspended(), self.version);
        self.clock_step(|clock, process| clock.stopped(process, running))
    }

    fn clock_step<T>(&mut self, step: impl FnOnce(&mut GuestClock, &File) -> Result<T>) -> Result<T> {
        step(&mut self.clock, self.memory.process()).map_err(|error| explain(&self.child, error))
    }

    /// Resets the guest, as by its reset button.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn reset(&mut self) -> Result<()> {
        self.no_answer("system_reset")
    }

    /// Asks the guest to power off, as by its power button (ACPI).
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn powerdown(&mut self) -> Result<()> {
        self.no_answer("system_powerdown")
    }

    /// QEMU's run state.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn query_status(&mut self) -> Result<RunState> {
        self.command::<Status>("query-status", None::<()>).map(|s| s.status)
    }

    /// Ends QEMU in an orderly way, by force when it does not follow within five seconds.
    pub fn quit(&mut self) -> Exit {
        let _ = self.no_answer("quit");
        let limit = Duration::from_secs(5);
        self.child.wait(limit).unwrap_or_else(|| {
            self.child.kill();
            self.child.wait(limit).unwrap_or(Exit { code: None, signal: None, stderr: String::new() })
        })
    }

    /// Kills QEMU at once; its death shows at [`Machine::pidfd`].
    pub fn kill(&self) {
        self.child.kill();
    }

    /// How QEMU ended, once it has.
    pub fn exit(&self) -> Option<Exit> {
        self.child.exit()
    }

    /// Waits for QEMU's end.
    pub fn wait_exit(&self, timeout: Duration) -> Option<Exit> {
        self.child.wait(timeout)
    }

    /// Any other QMP command, outside of a pause.
    ///
    /// # Errors
    /// As [`Machine::begin_pause`].
    pub fn command<T: serde::de::DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Option<impl Serialize>,
    ) -> Result<T> {
        if self.phase == Phase::Saving {
            return Err(MachineError::Order { call: "command", reason: "the save is not finished" });
        }
        self.qmp.execute(command, arguments).map_err(|error| explain(&self.child, error))
    }

    /// As [`Machine::command`], with a descriptor for QEMU.
    pub(crate) fn command_with_fd<T: serde::de::DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: impl Serialize,
        fd: BorrowedFd<'_>,
    ) -> Result<T> {
        if self.phase == Phase::Saving {
            return Err(MachineError::Order { call: "command", reason: "the save is not finished" });
        }
        self.qmp.execute_with_fd(command, Some(arguments), fd).map_err(|error| explain(&self.child, error))
    }

    pub(crate) fn no_answer(&mut self, command: &str) -> Result<()> {
        self.command::<serde::de::IgnoredAny>(command, None::<()>).map(drop)
    }
}

/// First conversation: MIGRATION events on, and the RAM blocks.
fn prepare(qmp: &mut Qmp) -> Result<Vec<blocks::PlacedBlock>> {
    let events = json!({"capabilities": [{"capability": "events", "state": true}]});
    qmp.run("migrate-set-capabilities", Some(events))?;
    read_blocks(qmp)
}

/// For a QEMU that does not tell where its blocks are.
fn locate(placed: &mut [blocks::PlacedBlock], log: &OwnedFd, ram: &Ram, pid: u32) -> Result<()> {
    let text = |path: String| std::fs::read(path).map(|t| String::from_utf8_lossy(&t).into_owned());
    // Opened anew: the descriptor's own position is not at the beginning.
    let log = text(format!("/proc/self/fd/{}", log.as_raw_fd())).map_err(MachineError::io("reading QEMU's log"))?;
    let maps = text(format!("/proc/{pid}/maps")).map_err(MachineError::io("reading QEMU's mappings"))?;
    let file = rustix::fs::fstat(ram).map_err(MachineError::os("identity of guest memory"))?;
    blocks::locate(placed, &log, &maps, (file.st_dev, file.st_ino));
    Ok(())
}

fn read_blocks(qmp: &mut Qmp) -> Result<Vec<blocks::PlacedBlock>> {
    let text: String = qmp.execute("human-monitor-command", Some(json!({"command-line": "info ramblock"})))?;
    blocks::parse(&text)
}

/// When QEMU has ended, that is the error, with what it said.
fn explain(child: &Child, error: MachineError) -> MachineError {
    if !matches!(error, MachineError::Protocol { .. } | MachineError::Io { .. }) {
        return error;
    }
    // The socket closes a moment before the process is reaped. A QEMU that lives on answers nothing here, and the
    // error is the protocol's.
    match child.wait(Duration::from_millis(500)) {
        Some(exit) => exit.into_error(),
        None => error,
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn pair() -> Result<(UnixStream, UnixStream)> {
    UnixStream::pair().map_err(MachineError::io("socketpair"))
}

/// A socket pair for guest output: ours non-blocking, both with large buffers where the host allows.
fn port() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pair()?;
    for end in [&ours, &theirs] {
        enlarge(end).map_err(MachineError::io("socket buffer"))?;
    }
    ours.set_nonblocking(true).map_err(MachineError::io("non-blocking socket"))?;
    Ok((ours.into(), theirs.into()))
}

/// SO_SNDBUFFORCE and SO_RCVBUFFORCE (socket(7)) exceed the system's limit with CAP_NET_ADMIN; without it, what the
/// limit allows.
fn enlarge(socket: &UnixStream) -> io::Result<()> {
    use rustix::net::sockopt;
    let forced = sockopt::set_socket_send_buffer_size_force(socket, SOCKET_BUFFER)
        .and_then(|()| sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER));
    if forced.is_err() {
        sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER)?;
        sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER)?;
    }
    Ok(())
}
