//! The thread that owns a running VM: its QEMU, its dirty tracking, its checkpoints.
//!
//! ```text
//!            StartSync                    few pages left            acknowledged
//!   alone ───────────────► copying ─────────────────────► first checkpoint ──► checkpoint after checkpoint
//!     ▲                       │ rounds while the guest runs     (output held from here)      │
//!     └───────────────────────┴──────────────── EndSession ─────────────────────────────────┘
//! ```
//!
//! It waits in one `poll`: for the bell (commands, output that begins to wait), for QEMU's events, for QEMU's death.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_machine::{DirtySet, EventKind, Machine, MachineError, PAGE_SIZE, PageRun, Tracker};
use ninefold_model::spec::EpochPolicy;
use ninefold_model::status::SyncProgress;
use ninefold_model::{Epoch, Term};
use ninefold_replica::pacing::{Due, EarlyCopy, Observation, Pacer};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::capture::Capture;
use crate::cpu_clock::CpuClock;
use crate::disks::Disks;
use crate::error::{KeeperError, report};
use crate::first_copy;
use crate::msg::Msg;
use crate::outlets::Outlets;
use crate::priority;
use crate::resync::Rest;
use crate::session::{Job, Piece};

/// Pages that one piece of a sync round carries: 4 MiB.
const PIECE_PAGES: u32 = 1024;
/// When a round leaves at most this much dirty, the rest goes with the first checkpoint.
const FEW_PAGES: u64 = 2048;
/// After so many rounds the first checkpoint is taken however much is dirty.
const MAX_ROUNDS: u32 = 12;
/// How long to wait when nothing is due.
const IDLE: Duration = Duration::from_millis(100);
/// A guest counts as quiet when QEMU used less than this share of one CPU since the last look.
const QUIET_SHARE: f64 = 0.35;
/// How long the core may take to hold all output. It takes microseconds.
const HOLD_LIMIT: Duration = Duration::from_secs(2);
/// A look after a shorter time than this says nothing.
const QUIET_WINDOW: Duration = Duration::from_micros(100);

/// What the core asks of the thread.
#[derive(Debug)]
pub enum Command {
    /// Copy the VM to this session's sender, then take checkpoints.
    StartSync {
        session: Term,
        jobs: SyncSender<Job>,
        /// Sync rounds that the volumes took.
        rounds: u32,
        /// What of the volumes goes with the first checkpoint.
        rest: Rest,
    },
    EndSession,
    /// Take a last checkpoint and leave the guest paused.
    TakeFinal,
    /// Go on after a switchover that failed.
    GoOn,
    /// The backup holds all epochs up to this one.
    Acked(Epoch),
    Recycle(Box<Capture>),
    Policy(EpochPolicy),
    Reset,
    /// Kill QEMU and end.
    Kill,
}

/// Rings the VM's thread out of its `poll`.
#[derive(Debug, Clone)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    pub fn new() -> Result<Self, KeeperError> {
        let fd =
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(|e| KeeperError::Thread(e.into()))?;
        Ok(Self(Arc::new(fd)))
    }

    pub fn ring(&self) {
        // It fails only when the counter is full, and then it has been rung.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn quieten(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0, &mut count);
    }
}

/// The core's hold on the thread.
#[derive(Debug)]
pub struct VmHandle {
    commands: Sender<Command>,
    bell: Bell,
    /// Not joined: it may have to wait for a QEMU that hangs, and the core waits for nobody.
    _thread: JoinHandle<()>,
}

impl VmHandle {
    /// Tells the thread something; a thread that has ended does not hear it.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
        self.bell.ring();
    }
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        self.send(Command::Kill);
    }
}

/// How the thread comes by its QEMU.
pub type Obtain = Box<dyn FnOnce() -> Result<Machine, String> + Send>;

/// Starts the thread. `obtain` launches the QEMU or brings the loaded standby; the guest is then started.
pub fn start(
    generation: u64,
    obtain: Obtain,
    outlets: Arc<Outlets>,
    disks: Arc<Disks>,
    bell: Bell,
    policy: EpochPolicy,
    core: Sender<Msg>,
) -> Result<VmHandle, KeeperError> {
    let (commands, orders) = channel();
    let ring = bell.clone();
    let thread = std::thread::Builder::new()
        .name("vm".into())
        .spawn(move || {
            let machine = match obtain() {
                Ok(machine) => machine,
                Err(reason) => {
                    let _ = core.send(Msg::VmLost { generation, reason });
                    return;
                }
            };
            let cpu = CpuClock::of(machine.pid());
            let mut vm = Vm {
                generation,
                machine,
                outlets,
                disks,
                bell,
                core,
                orders,
                pacer: Pacer::new(policy),
                early_copy: EarlyCopy::default(),
                cpu,
                look: None,
                quiet: false,
                session: None,
                resumed: Instant::now(),
                paused: false,
                off: false,
            };
            if let Err(reason) = vm.run() {
                let _ = vm.core.send(Msg::VmLost { generation, reason });
            }
        })
        .map_err(KeeperError::Thread)?;
    Ok(VmHandle { commands, bell: ring, _thread: thread })
}

struct Vm {
    generation: u64,
    machine: Machine,
    outlets: Arc<Outlets>,
    disks: Arc<Disks>,
    bell: Bell,
    core: Sender<Msg>,
    orders: Receiver<Command>,
    pacer: Pacer,
    early_copy: EarlyCopy,
    cpu: Option<CpuClock>,
    /// QEMU's CPU time at the last look.
    look: Option<(Instant, Duration)>,
    quiet: bool,
    session: Option<Session>,
    resumed: Instant,
    /// The guest stands still after the last checkpoint of a switchover.
    paused: bool,
    /// The guest has powered off: QEMU would not let it run again.
    off: bool,
}

struct Session {
    name: Term,
    jobs: SyncSender<Job>,
    tracker: Tracker,
    #[expect(clippy::vec_box, reason = "a capture goes from thread to thread: boxed, only a pointer moves")]
    free: Vec<Box<Capture>>,
    /// Taken and acknowledged.
    taken: Epoch,
    acked: Arc<AtomicU64>,
    sync: Option<Sync>,
    rest: Rest,
    last: Last,
}

#[derive(PartialEq, Eq)]
enum Last {
    No,
    Wanted,
    Taken,
}

/// The initial copy.
struct Sync {
    round: u32,
    /// Rounds of the volumes.
    before: u32,
    /// What this round carries.
    runs: Vec<PageRun>,
    dirty: DirtySet,
    /// The place in `runs` that is next: run and page within it.
    run: usize,
    page: u32,
    pieces: Option<SyncSender<Piece>>,
    sent: u64,
    total: u64,
    told: Instant,
}

enum Flow {
    GoOn,
    End,
}

impl Vm {
    /// Until the VM ends (an error) or is not wanted any more.
    fn run(&mut self) -> Result<(), String> {
        priority::raise();
        self.machine.start().map_err(|e| report(&e))?;
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
            Command::StartSync { session, jobs, rounds, rest } => {
                if let Err(error) = self.start_sync(session, jobs, rounds, rest) {
                    let _ = self.core.send(Msg::CannotReplicate { session, reason: report(&error) });
                }
            }
            Command::EndSession => self.session = None,
            Command::TakeFinal => {
                if let Some(s) = &mut self.session {
                    s.last = Last::Wanted;
                }
            }
            Command::GoOn => {
                self.session = None;
                if std::mem::take(&mut self.paused) {
                    self.machine.cont().map_err(|e| report(&e))?;
                }
            }
            Command::Acked(epoch) => {
                if let Some(s) = &mut self.session {
                    s.acked.fetch_max(epoch.0, Ordering::Relaxed);
                }
            }
            Command::Recycle(mut capture) => {
                if let Some(s) = &mut self.session {
                    capture.clear();
                    s.free.push(capture);
                }
            }
            Command::Policy(policy) => self.pacer.set_policy(policy),
            Command::Reset => self.machine.reset().map_err(|e| report(&e))?,
            Command::Kill => return Ok(Flow::End),
        }
        Ok(Flow::GoOn)
    }

    fn start_sync(&mut self, name: Term, jobs: SyncSender<Job>, before: u32, rest: Rest) -> Result<(), MachineError> {
        self.session = None;
        let tracker = self.machine.track()?;
        let layout = self.machine.memory().layout();
        let free = (0..2).map(|_| Capture::for_layout(layout).map(Box::new)).collect::<Result<_, _>>()?;
        // All that is tracked counts as clean from here on: so all of it has to be copied once.
        let runs = first_copy::runs(self.machine.memory())
            .map_err(|e| MachineError::Io { what: "looking for the memory in use", source: e.into() })?;
        let total = runs.iter().map(|r| r.bytes() as u64).sum();
        let sync = Sync {
            round: 0,
            before,
            runs,
            dirty: DirtySet::for_layout(layout),
            run: 0,
            page: 0,
            pieces: None,
            sent: 0,
            total,
            told: Instant::now(),
        };
        self.session = Some(Session {
            name,
            jobs,
            tracker,
            free,
            taken: Epoch(0),
            acked: Arc::default(),
            sync: Some(sync),
            rest,
            last: Last::No,
        });
        Ok(())
    }

    /// Does what is due; answers how long nothing will be.
    fn work(&mut self) -> Result<Duration, String> {
        let Some(s) = &mut self.session else { return Ok(IDLE) };
        if s.sync.is_some() {
            let name = s.name;
            return match self.copy_piece() {
                // The rest goes with the first checkpoint.
                Ok(true) => self.checkpoint().map(|()| Duration::ZERO),
                Ok(false) => Ok(Duration::ZERO),
                Err(reason) => {
                    self.session = None;
                    let _ = self.core.send(Msg::CannotReplicate { session: name, reason });
                    Ok(IDLE)
                }
            };
        }
        if s.last == Last::Taken || s.free.is_empty() || self.off {
            return Ok(IDLE);
        }
        if s.last == Last::Wanted {
            self.checkpoint()?;
            return Ok(Duration::ZERO);
        }
        let in_flight = s.taken.0.saturating_sub(s.acked.load(Ordering::Relaxed));
        let output_waits = self.outlets.output_waits();
        if output_waits {
            self.look();
        } else {
            self.look = None;
            self.quiet = false;
        }
        let seen = Observation {
            run: self.resumed.elapsed(),
            output_waits,
            urgent_for: self.outlets.urgent().map(|since| since.elapsed()),
            quiet: self.quiet,
            gate_half_full: self.outlets.wants_checkpoint() || self.disks.pressure(),
            in_flight: u32::try_from(in_flight).unwrap_or(u32::MAX),
        };
        match self.pacer.due(&seen) {
            Due::Now => {
                self.checkpoint()?;
                Ok(Duration::ZERO)
            }
            Due::In(wait) => Ok(wait.max(Duration::from_micros(50))),
        }
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

    fn checkpoint(&mut self) -> Result<(), String> {
        let Some(s) = &mut self.session else { return Ok(()) };
        let Some(mut capture) = s.free.pop() else { return Ok(()) };
        let first = s.taken == Epoch(0);
        let last = s.last == Last::Wanted;
        let epoch = s.taken.next();
        let ran = self.resumed.elapsed();
        capture.last = last;
        capture.early = self.early_copy.wanted();
        capture
            .take(epoch, ran, &mut self.machine, &mut s.tracker, &self.outlets, &self.disks)
            .map_err(|e| report(&e))?;
        let seen = &capture.record;
        self.early_copy.learned(seen.dirty_pages, seen.early_pages, seen.again_pages);
        s.taken = epoch;
        if first {
            capture.rest = s.rest.take();
            self.disks.unmark();
            // The guest must not run before all its output is held. The core answers at once.
            let (held, answer) = sync_channel(1);
            let _ = self.core.send(Msg::FirstCheckpoint { session: s.name, held });
            if answer.recv_timeout(HOLD_LIMIT).is_err() {
                let session = s.name;
                self.disks.go_through();
                capture.resume(&mut self.machine).map_err(|e| report(&e))?;
                self.session = None;
                let reason = "output is not held in time".into();
                let _ = self.core.send(Msg::CannotReplicate { session, reason });
                return Ok(());
            }
            capture.console = self.outlets.console_history();
        }
        if last {
            capture.note(&self.machine);
            capture.resumed = Instant::now();
            s.last = Last::Taken;
            self.paused = true;
            let _ = self.core.send(Msg::FinalTaken { session: s.name, epoch });
        } else if let Err(error) = capture.resume(&mut self.machine) {
            // A guest that has powered off does not run again; its last output is committed all the same.
            self.events()?;
            if !self.off {
                return Err(report(&error));
            }
        } else {
            self.pacer.paused(Duration::from_micros(capture.record.pause_us));
        }
        self.resumed = capture.resumed;
        self.look = None;
        self.quiet = false;
        if first || epoch.0 % 64 == 0 {
            capture.addresses = self.outlets.addresses();
        }
        let Some(s) = &mut self.session else { return Ok(()) };
        // The sender has room for as many checkpoints as there are captures.
        match s.jobs.try_send(Job::Checkpoint(capture)) {
            Ok(()) => {}
            // The session is ending; the core will say so.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                let session = s.name;
                let reason = "the sender has ended".into();
                let _ = self.core.send(Msg::CannotReplicate { session, reason });
                self.wait_out_session();
            }
        }
        Ok(())
    }

    /// No more checkpoints in this session. Output stays held until the core has decided.
    fn wait_out_session(&mut self) {
        if let Some(s) = &mut self.session {
            s.free.clear();
        }
    }

    /// Sends the next piece of the initial copy, or ends a round. True when the copy is done.
    fn copy_piece(&mut self) -> Result<bool, String> {
        let Some(Session { jobs, tracker, sync: Some(sync), .. }) = &mut self.session else { return Ok(false) };
        let gone = || "the sender has ended".to_owned();
        if sync.pieces.is_none() {
            if sync.round > 0 {
                sync.dirty.clear();
                tracker.scan(&mut sync.dirty).map_err(|e| report(&e))?;
                // What the scan reported counts as clean from now on: it must go out with this round.
                sync.runs.clear();
                sync.runs.extend_from_slice(sync.dirty.runs());
                sync.total += sync.dirty.pages() * PAGE_SIZE;
            }
            sync.round += 1;
            (sync.run, sync.page) = (0, 0);
            let (pieces, taken) = sync_channel(2);
            jobs.send(Job::Round { round: Epoch((sync.before + sync.round).into()), pieces: taken })
                .map_err(|_| gone())?;
            sync.pieces = Some(pieces);
        }
        let memory = self.machine.memory();
        let mut piece = Piece { runs: Vec::new(), bytes: Vec::new() };
        let mut room = PIECE_PAGES;
        while room > 0
            && let Some(run) = sync.runs.get(sync.run)
        {
            let count = (run.count - sync.page).min(room);
            piece.runs.push(PageRun { block: run.block, first: run.first + u64::from(sync.page), count });
            room -= count;
            sync.page += count;
            if sync.page == run.count {
                (sync.run, sync.page) = (sync.run + 1, 0);
            }
        }
        piece.bytes.resize((PIECE_PAGES - room) as usize * PAGE_SIZE as usize, 0);
        memory.read_runs(&piece.runs, &mut piece.bytes).map_err(|e| report(&e))?;
        sync.sent += piece.bytes.len() as u64;
        let round_ends = sync.run == sync.runs.len();
        if let Some(pieces) = &sync.pieces {
            pieces.send(piece).map_err(|_| gone())?;
        }
        if round_ends {
            sync.pieces = None;
        }
        if round_ends || sync.told.elapsed() > Duration::from_millis(100) {
            sync.told = Instant::now();
            let progress = SyncProgress { bytes_sent: sync.sent, bytes_total: sync.total, round: sync.round };
            let _ = self.core.send(Msg::SyncProgress(progress));
        }
        let few = sync.round > 1 && sync.dirty.pages() <= FEW_PAGES;
        let done = round_ends && (few || sync.round >= MAX_ROUNDS);
        if let (true, Some(s)) = (done, &mut self.session) {
            s.sync = None;
        }
        Ok(done)
    }

    fn wait(&mut self, wait: Duration) -> Result<(), String> {
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        let bell = self.bell.clone();
        let mut fds = [
            PollFd::new(&bell.0, PollFlags::IN),
            PollFd::from_borrowed_fd(self.machine.qmp_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.machine.pidfd(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("poll: {e}")),
        }
        let [rung, spoke, died] = fds.map(|fd| !fd.revents().is_empty());
        if rung {
            self.bell.quieten();
        }
        if died {
            let exit = self.machine.wait_exit(Duration::from_secs(1));
            return Err(exit.map_or("QEMU ended".into(), |e| report(&e.into_error())));
        }
        if spoke { self.events() } else { Ok(()) }
    }

    fn events(&mut self) -> Result<(), String> {
        self.machine.poll_events().map_err(|e| report(&e))?;
        while let Some(event) = self.machine.next_event() {
            match event.kind {
                EventKind::Shutdown { .. } => {
                    self.off = true;
                    let _ = self.core.send(Msg::VmShutdown { generation: self.generation });
                }
                EventKind::GuestPanicked => tracing::warn!("the guest panicked"),
                _ => {}
            }
        }
        Ok(())
    }
}
