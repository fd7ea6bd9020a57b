//! One of those to whom a running VM is copied: first all of it, in rounds while the guest runs, then checkpoint after
//! checkpoint. Several share one dirty tracker.
//!
//! ```text
//!             a round was small                 a checkpoint, with all that is stale here
//!   Copying ────────────────────► Ready ──────────────────────────────────────────► Joined ──► every checkpoint
//!    │ │ ▲ a round: what is stale   ▲
//!    │ └─┘                          │ all memory is trapped
//!    └───────────────────────► Much ┘
//!       rounds get no smaller
//! ```
//!
//! A guest that writes faster than it is copied leaves as much after each round as before it. What is left then goes with the
//! checkpoint all the same, and is not copied in its pause: all memory is trapped, the pages are held as they are in the pause
//! ([`Capture::collect`]), and copied behind it. In the same way a checkpoint of a guest that writes very much between two of them
//! is taken, when its memory is trapped.
//!
//! *Stale* pages are those that the guest has written since this target was sent them. A scan reports a page once, whoever
//! asked for it, so what it finds is noted for every target that is not yet joined; a joined one gets it with the next
//! checkpoint.
//!
//! One that wants a single checkpoint and keeps all that it was sent, a snapshot, is sent nothing before: with its checkpoint the
//! memory is held as it is then ([`Moment`]), and read while the guest goes on. For that all memory has to be trapped first.
//!
//! ```text
//!         all memory is trapped                       a checkpoint
//!   Trapping ───────────► Prepared ─────► Ready ─────────────────────► gone; the tracker stays until all is read
//!                                   go
//! ```
//!
//! Who takes the snapshot says when its checkpoint may be taken: until then nothing but that is missing.
//!
//! A VM that was resumed from a checkpoint that other hosts hold too remembers what was written since: such a host is sent
//! that alone. In the same way a joined target that has gone is remembered with what was written since the last checkpoint that it
//! acknowledged: when it comes back with that or a later one, it is sent that alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

use ninefold_machine::{
    Block, BlockLayout, DirtySet, Machine, MachineError, Memory, Moment, PAGE_SIZE, PageMap, PageRun, Tracker,
};
use ninefold_model::status::SyncProgress;
use ninefold_model::{Epoch, Term};
use ninefold_replica::continuation::may_hold;
use ninefold_replica::pacing::MAX_IN_FLIGHT;
use ninefold_replica::target::{Basis, Target};

use crate::devices::disks::Disks;
use crate::devices::guest_io::GuestIo;
use crate::error::report;
use crate::primary::capture::{Capture, FEW_PAGES, Join, MOST_LOOKS, Taken};
use crate::primary::changed_blocks::ChangedBlocks;
use crate::primary::first_copy;
use crate::primary::target::{NotTaken, Piece, ReplicationTarget, SingleCheckpoint};
use crate::primary::waker::Waker;
use crate::runtime::priority;

/// Pages that one piece of a round carries: 4 MiB; while another target has joined 1 MiB, so that its checkpoints are not
/// held up.
const PIECE_PAGES: u32 = 1024;
const SMALL_PIECE: u32 = 256;
/// After so many rounds the first checkpoint is taken however much is stale.
const MAX_ROUNDS: u32 = 12;
/// A checkpoint with so many pages is one of very many, 128 MiB: to copy them takes tens of milliseconds. The next ones are held ...
const VERY_MANY: u64 = 32_768;
/// ... until one has no more than this.
const NOT_MANY: u64 = VERY_MANY / 4;
/// The same for a target that keeps all it was sent, where memory cannot be held: each further round makes it larger.
const FEW_ROUNDS: u32 = 3;
/// Checkpoints whose pages are remembered: as many as can be unacknowledged, a switchover's last among them.
const RECENT: usize = MAX_IN_FLIGHT as usize + 2;
/// TargetStates that have gone and are remembered: more than a VM has backups.
const MOST_LEFT: usize = 8;
/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// What came of an attempt to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// A piece went out, or a round ended.
    Something,
    /// Who sends has no room: it rings the waker when it has.
    NoRoom,
}

/// See the [module](self).
#[derive(Debug)]
pub struct TargetState {
    target: Box<dyn ReplicationTarget>,
    /// What of the volumes goes with the first checkpoint.
    rest: ChangedBlocks,
    /// The newest checkpoint that it holds.
    acked: Epoch,
    /// It has joined after this checkpoint: it holds one when it has acknowledged a later one.
    before: Epoch,
    stage: Stage,
    /// The memory is to be held for it.
    moment: Option<Moment>,
}

#[derive(Debug)]
enum Stage {
    Copying(Box<Copying>),
    /// Until all memory is trapped.
    Trapping,
    /// Until who takes the snapshot says so.
    Prepared {
        stale: PageMap,
        go: Arc<AtomicBool>,
    },
    /// Until all memory is trapped, and nobody else reads it as it was at another moment; with less than very many pages not for that.
    Much {
        stale: PageMap,
    },
    Ready {
        stale: PageMap,
        /// It is to be held in the pause.
        much: bool,
    },
    Joined,
}

/// The initial copy.
#[derive(Debug)]
struct Copying {
    stale: PageMap,
    round: u32,
    most_rounds: u32,
    /// Rounds of the volumes, which came before.
    before: u32,
    /// Pages of this round, and of the one before.
    size: u64,
    former: u64,
    /// What this round carries.
    runs: Vec<PageRun>,
    dirty: DirtySet,
    /// The place in `runs` that is next: run and page within it.
    run: usize,
    page: u32,
    pieces: Option<SyncSender<Piece>>,
    /// For which there was no room.
    waiting: Option<Piece>,
    sent: u64,
    total: u64,
    told: Instant,
}

impl Copying {
    /// One that begins with these pages, after `before` rounds of the volumes.
    fn new(runs: Vec<PageRun>, before: u32, most_rounds: u32, memory: &Memory) -> Self {
        let layout = memory.layout();
        Self {
            stale: PageMap::for_layout(layout),
            round: 0,
            most_rounds,
            before,
            size: runs.iter().map(|r| u64::from(r.count)).sum(),
            former: u64::MAX,
            total: runs.iter().map(|r| r.bytes() as u64).sum(),
            runs,
            dirty: DirtySet::for_layout(layout),
            run: 0,
            page: 0,
            pieces: None,
            waiting: None,
            sent: 0,
            told: Instant::now(),
        }
    }

    /// Opens the next round. False when the sender has no room for it.
    fn begin(&mut self, target: &dyn ReplicationTarget) -> Result<bool, String> {
        let (pieces, taken) = sync_channel(2);
        match target.round(Epoch((self.before + self.round + 1).into()), taken) {
            Ok(()) => {}
            Err(NotTaken::NoRoom) => return Ok(false),
            Err(NotTaken::Ended) => return Err(gone()),
        }
        if self.round > 0 {
            self.stale.drain_into(&mut self.dirty);
            self.runs.clear();
            self.runs.extend_from_slice(self.dirty.runs());
            self.total += self.dirty.pages() * PAGE_SIZE;
            (self.former, self.size) = (self.size, self.dirty.pages());
        }
        self.round += 1;
        (self.run, self.page) = (0, 0);
        self.pieces = Some(pieces);
        Ok(true)
    }

    /// The next piece of this round, of at most so many pages.
    fn piece(&mut self, memory: &Memory, most: u32) -> Result<Piece, String> {
        let mut piece = Piece { runs: Vec::new(), bytes: Vec::new() };
        let mut room = most;
        while room > 0
            && let Some(run) = self.runs.get(self.run)
        {
            let count = (run.count - self.page).min(room);
            piece.runs.push(PageRun { block: run.block, first: run.first + u64::from(self.page), count });
            room -= count;
            self.page += count;
            if self.page == run.count {
                (self.run, self.page) = (self.run + 1, 0);
            }
        }
        piece.bytes.resize((most - room) as usize * PAGE_SIZE as usize, 0);
        memory.read_runs(&piece.runs, &mut piece.bytes).map_err(|e| report(&e))?;
        Ok(piece)
    }

    /// Whether what this round did not carry goes with the first checkpoint.
    fn enough(&self) -> bool {
        (self.round > 1 && !worth_another(self.size, self.former)) || self.round >= self.most_rounds
    }
}

/// Whether another round follows one of so many pages, with so many before it. As long as each is smaller by a quarter at least, all of
/// them together carry less than four times the first, and one more.
fn worth_another(size: u64, former: u64) -> bool {
    size > FEW_PAGES && size <= former - former / 4
}

fn gone() -> String {
    "the sender has ended".into()
}

impl TargetState {
    fn name(&self) -> Target {
        self.target.name()
    }

    /// It wants one checkpoint alone.
    fn single(&self) -> bool {
        self.target.single().is_some()
    }

    fn joined(&self) -> bool {
        matches!(self.stage, Stage::Joined)
    }

    /// The guest has written these pages, and this target does not get them otherwise unless it has joined.
    fn note(&mut self, runs: &[PageRun]) {
        if self.reads_for_itself() {
            return;
        }
        match &mut self.stage {
            Stage::Copying(copying) => copying.stale.insert(runs),
            Stage::Prepared { stale, .. } | Stage::Much { stale } | Stage::Ready { stale, .. } => stale.insert(runs),
            Stage::Trapping | Stage::Joined => {}
        }
    }

    /// Whether it is about to join, and its checkpoint need not have the guest's memory.
    fn reads_for_itself(&self) -> bool {
        self.moment.is_some()
    }

    /// Sends the next piece of the copy, or ends a round.
    fn copy(
        &mut self,
        memory: &Memory,
        most: u32,
        can_hold: bool,
        tell: &mut dyn FnMut(Target, SyncProgress),
    ) -> Result<Copied, String> {
        let Stage::Copying(copying) = &mut self.stage else { return Ok(Copied::NoRoom) };
        if copying.pieces.is_none() && !copying.begin(&*self.target)? {
            return Ok(Copied::NoRoom);
        }
        let piece = match copying.waiting.take() {
            Some(piece) => piece,
            None => copying.piece(memory, most)?,
        };
        let bytes = piece.bytes.len() as u64;
        match copying.pieces.as_ref().map(|pieces| pieces.try_send(piece)) {
            Some(Ok(())) => copying.sent += bytes,
            Some(Err(TrySendError::Full(piece))) => {
                copying.waiting = Some(piece);
                return Ok(Copied::NoRoom);
            }
            Some(Err(TrySendError::Disconnected(_))) | None => return Err(gone()),
        }
        let round_ends = copying.run == copying.runs.len();
        if round_ends {
            copying.pieces = None;
        }
        if round_ends || copying.told.elapsed() > TELL {
            copying.told = Instant::now();
            let (bytes_sent, bytes_total) = (copying.sent, copying.total);
            tell(self.target.name(), SyncProgress { bytes_sent, bytes_total, round: copying.round });
        }
        if round_ends && copying.enough() {
            let Stage::Copying(copying) = std::mem::replace(&mut self.stage, Stage::Joined) else {
                return Ok(Copied::Something);
            };
            let much = can_hold && copying.size > FEW_PAGES;
            self.prepared(copying.stale, much)?;
        }
        Ok(Copied::Something)
    }

    /// Nothing but its checkpoint is missing, with what is stale here.
    fn prepared(&mut self, stale: PageMap, much: bool) -> Result<(), String> {
        let Some(single) = self.target.single() else {
            self.stage = if much { Stage::Much { stale } } else { Stage::Ready { stale, much } };
            return Ok(());
        };
        let go = Arc::new(AtomicBool::new(false));
        self.stage = Stage::Prepared { stale, go: Arc::clone(&go) };
        single.prepared(go).map_err(|_| gone())
    }

    /// Goes on with one that waits for memory to be trapped, or to be told so; answers whether it has. Memory is `free` when nobody reads
    /// it as it was at a moment, or is about to.
    fn step(&mut self, trapped: bool, free: bool, layout: &BlockLayout) -> Result<bool, String> {
        match &self.stage {
            // Who reads it may take long, or wait for a disk that hangs: it is not worth that to hold what checkpoints copy otherwise.
            Stage::Much { stale } if (free && trapped) || (!free && stale.pages() < VERY_MANY) => {
                if let Stage::Much { stale } = std::mem::replace(&mut self.stage, Stage::Joined) {
                    self.stage = Stage::Ready { stale, much: free };
                }
                Ok(true)
            }
            Stage::Trapping if trapped => {
                // The other blocks are small, and go with the checkpoint.
                let mut stale = PageMap::for_layout(layout);
                let whole = |(block, of): (u16, &Block)| PageRun { block, first: 0, count: of.pages() as u32 };
                let others: Vec<_> = (0..).zip(&layout.blocks).skip(1).map(whole).collect();
                stale.insert(&others);
                self.prepared(stale, false)?;
                Ok(true)
            }
            Stage::Prepared { go, .. } if go.load(Ordering::Acquire) => {
                if let Stage::Prepared { stale, .. } = std::mem::replace(&mut self.stage, Stage::Joined) {
                    self.stage = Stage::Ready { stale, much: false };
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether a round is about to begin, for which the newest scan is wanted.
    fn between_rounds(&self) -> bool {
        matches!(&self.stage, Stage::Copying(c) if c.pieces.is_none() && c.round > 0)
    }
}

/// What a new target holds already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub basis: Basis,
    /// Where it may be different from that, beside what was written since.
    pub differs: Vec<PageRun>,
}

/// A target that has gone, and what was written since the last checkpoint that it acknowledged.
#[derive(Debug)]
struct Left {
    session: Term,
    written: PageMap,
}

/// The targets of one VM with their tracker and the buffers of its checkpoints.
#[derive(Debug)]
pub struct TargetStates {
    pub tracker: Tracker,
    all: Vec<TargetState>,
    /// For scans between checkpoints.
    scan: DirtySet,
    /// What those that join are missing.
    pub missing: PageMap,
    /// What was written since the VM was resumed from a checkpoint that others hold, too.
    written: Option<PageMap>,
    left: Vec<Left>,
    /// The pages of the last few checkpoints, oldest first and without a gap.
    recent: VecDeque<(Epoch, Vec<PageRun>)>,
    #[expect(clippy::vec_box, reason = "a capture goes from thread to thread: boxed, only a pointer moves")]
    spare: Vec<Box<Capture>>,
    made: u32,
    back: Receiver<Box<Capture>>,
    home: Sender<Box<Capture>>,
    waker: Waker,
    /// Checkpoints are of very many pages.
    many: bool,
    /// The newest checkpoint.
    pub taken: Epoch,
}

impl TargetStates {
    /// Starts to track the VM's memory, for no target yet. `taken` is the newest checkpoint so far.
    ///
    /// # Errors
    /// The memory cannot be tracked.
    pub fn new(machine: &mut Machine, waker: Waker, taken: Epoch) -> Result<Self, MachineError> {
        let tracker = machine.track_with(priority::raise)?;
        Ok(Self::with(tracker, machine.memory(), waker, taken))
    }

    /// The same with a tracker that has begun.
    pub fn with(tracker: Tracker, memory: &Memory, waker: Waker, taken: Epoch) -> Self {
        let layout = memory.layout();
        let (home, back) = channel();
        Self {
            tracker,
            all: Vec::new(),
            scan: DirtySet::for_layout(layout),
            missing: PageMap::for_layout(layout),
            written: None,
            left: Vec::new(),
            recent: VecDeque::with_capacity(RECENT),
            spare: Vec::new(),
            made: 0,
            back,
            home,
            waker,
            many: false,
            taken,
        }
    }

    /// Adds a target that holds all of the VM as it was when the tracker began.
    pub fn add_joined(&mut self, target: Box<dyn ReplicationTarget>) {
        let (rest, stage) = (ChangedBlocks::default(), Stage::Joined);
        self.all.push(TargetState { target, rest, acked: self.taken, before: self.taken, stage, moment: None });
    }

    /// Remembers from now on what is written, for targets that hold the VM as it was when the tracker began.
    pub fn remember(&mut self, memory: &Memory) {
        self.written = Some(PageMap::for_layout(memory.layout()));
    }

    /// No such target comes any more.
    pub fn forget(&mut self) {
        self.written = None;
    }

    /// Adds a target that holds a checkpoint already. False when what was written since that is not remembered.
    ///
    /// # Errors
    /// The tracker's.
    pub fn add_holder(
        &mut self,
        target: Box<dyn ReplicationTarget>,
        before: u32,
        rest: ChangedBlocks,
        held: &Held,
        memory: &Memory,
    ) -> Result<bool, MachineError> {
        // How much it is decides how it is sent. While one has joined, its checkpoints bring what there is to know.
        if !self.any_joined() {
            self.look()?;
        }
        let written = match held.basis {
            Basis::Resumed => self.written.as_ref(),
            Basis::Left(session) => self.left.iter().find(|l| l.session == session).map(|l| &l.written),
        };
        let Some(written) = written else { return Ok(false) };
        let mut stale = PageMap::for_layout(memory.layout());
        stale.insert_all(written);
        stale.insert(&held.differs);
        let stage = if stale.pages() <= FEW_PAGES {
            Stage::Ready { stale, much: false }
        } else {
            let mut first = DirtySet::for_layout(memory.layout());
            stale.drain_into(&mut first);
            Stage::Copying(Box::new(Copying::new(first.runs().to_vec(), before, MAX_ROUNDS, memory)))
        };
        self.all.push(TargetState { target, rest, acked: Epoch(0), before: Epoch(0), stage, moment: None });
        Ok(true)
    }

    /// Notes what was written since the last scan, for all that have not joined; none has.
    fn look(&mut self) -> Result<(), MachineError> {
        self.look_with(Tracker::scan)
    }

    fn look_with(
        &mut self,
        scan: impl FnOnce(&mut Tracker, &mut DirtySet) -> Result<u64, MachineError>,
    ) -> Result<(), MachineError> {
        self.scan.clear();
        scan(&mut self.tracker, &mut self.scan)?;
        let runs = self.scan.runs();
        self.all.iter_mut().for_each(|s| s.note(runs));
        self.written.iter_mut().for_each(|w| w.insert(runs));
        self.left.iter_mut().for_each(|l| l.written.insert(runs));
        Ok(())
    }

    /// Begins to copy the VM to `target`, after `before` rounds of its volumes.
    ///
    /// # Errors
    /// It cannot be found out which memory is in use.
    pub fn add(
        &mut self,
        target: Box<dyn ReplicationTarget>,
        before: u32,
        rest: ChangedBlocks,
        memory: &Memory,
    ) -> Result<(), MachineError> {
        let single = target.single().is_some();
        let stage = Stage::Trapping;
        let mut target_state = TargetState { target, rest, acked: Epoch(0), before: Epoch(0), stage, moment: None };
        if single && self.tracker.can_hold() {
            self.tracker.trap_all(true);
            target_state.moment = Some(Moment::new(memory.ram()));
        } else {
            // What is written from here on is found by a scan: so all of it has to be copied once.
            let runs = first_copy::runs(memory)
                .map_err(|e| MachineError::Io { what: "looking for the memory in use", source: e.into() })?;
            let most_rounds = if single { FEW_ROUNDS } else { MAX_ROUNDS };
            target_state.stage = Stage::Copying(Box::new(Copying::new(runs, before, most_rounds, memory)));
        }
        self.all.push(target_state);
        Ok(())
    }

    /// Removes a target. One that may come back with a checkpoint that it has acknowledged is remembered.
    pub fn remove(&mut self, name: Target, comes_back: bool, memory: &Memory) {
        if name == Target::Log && self.all.iter().any(|s| s.name() == name) {
            // Its disk may hang: what it was given may come back late, or never.
            self.made = u32::try_from(self.spare.len()).unwrap_or(u32::MAX);
        }
        let Some(at) = self.all.iter().position(|s| s.name() == name) else {
            if let Target::Session(session) = name
                && !comes_back
            {
                self.forget_left(session);
            }
            return;
        };
        let target_state = self.all.swap_remove(at);
        if comes_back {
            self.remember_left(&target_state, memory);
        }
        self.trap_as_needed();
    }

    /// Memory need not be trapped for one that has gone.
    fn trap_as_needed(&mut self) {
        let wants =
            |s: &TargetState| s.reads_for_itself() || matches!(s.stage, Stage::Much { .. } | Stage::Ready { .. });
        self.tracker.trap_all(self.many || self.all.iter().any(wants));
    }

    /// Whether somebody waits for all memory to be trapped, and it is not; it becomes so in pauses.
    pub fn trapping(&self) -> bool {
        let waits = |s: &TargetState| matches!(s.stage, Stage::Trapping | Stage::Much { .. });
        self.all.iter().any(waits) && !self.tracker.traps_all()
    }

    /// Before a checkpoint: memory is held as it is at one moment for one reader at a time. While somebody reads it for itself, or is
    /// about to, nobody joins for whom much is to be held, unless it is little enough to be [copied](TargetState::step) as before.
    pub fn line_up(&mut self) {
        let waits = !self.may_hold();
        for target_state in self.all.iter_mut().filter(|_| waits) {
            if let Stage::Ready { stale, much: true } = &mut target_state.stage {
                let stale = std::mem::replace(stale, PageMap::empty());
                target_state.stage = Stage::Much { stale };
            }
        }
        self.trap_as_needed();
    }

    /// Whether what the next checkpoint has to copy may be held: nobody reads the memory as it was at another moment, or is about to.
    pub fn may_hold(&self) -> bool {
        !self.all.iter().any(TargetState::reads_for_itself) && !self.tracker.holds()
    }

    /// Whether the next checkpoint is likely to have very many pages, and memory is trapped for that.
    pub fn holds_many(&self) -> bool {
        self.many && self.tracker.traps_all()
    }

    /// Notes what is found in a pause of a guest of which nobody gets checkpoints.
    ///
    /// # Errors
    /// The tracker's.
    pub fn look_stopped(&mut self) -> Result<(), MachineError> {
        self.look_with(Tracker::scan_stopped)
    }

    /// Whether the next checkpoint is for nobody but those that read the memory for themselves.
    pub fn none_wants_memory(&self) -> bool {
        self.all.iter().all(|s| match s.stage {
            Stage::Joined => false,
            Stage::Prepared { .. } | Stage::Ready { .. } => s.reads_for_itself(),
            Stage::Copying(_) | Stage::Trapping | Stage::Much { .. } => true,
        })
    }

    /// Before a checkpoint that leaves the guest's memory out: takes what has been written, until there is little, so that little
    /// is left for the pause.
    ///
    /// # Errors
    /// The tracker's.
    pub fn settle(&mut self) -> Result<(), MachineError> {
        for _ in 0..MOST_LOOKS {
            self.look()?;
            if self.scan.pages() <= FEW_PAGES {
                break;
            }
        }
        Ok(())
    }

    /// From here on it is noted what this target is missing, which has gone: beginning with the last checkpoint that it has
    /// acknowledged, see [`may_hold`].
    fn remember_left(&mut self, target_state: &TargetState, memory: &Memory) {
        let known = self.recent.front().map_or(self.taken, |(oldest, _)| Epoch(oldest.0 - 1));
        let since = may_hold(target_state.before.next(), target_state.acked);
        // Only a backup comes back.
        let Target::Session(session) = target_state.name() else { return };
        if !target_state.joined() || target_state.acked <= target_state.before || since < known {
            return;
        }
        let mut written = PageMap::for_layout(memory.layout());
        let missed = self.recent.iter().filter(|(epoch, _)| *epoch > since);
        missed.for_each(|(_, runs)| written.insert(runs));
        self.left.push(Left { session, written });
        if self.left.len() > MOST_LEFT {
            self.left.remove(0);
        }
    }

    /// The backup of this session, which has gone, does not come back.
    pub fn forget_left(&mut self, session: Term) {
        self.left.retain(|l| l.session != session);
    }

    /// Nobody needs to know what is written.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty() && self.written.is_none() && self.left.is_empty() && !self.tracker.holds()
    }

    /// Whether one gets checkpoints.
    pub fn any_joined(&self) -> bool {
        self.all.iter().any(TargetState::joined)
    }

    /// Whether one waits for its first checkpoint.
    pub fn any_ready(&self) -> bool {
        self.all.iter().any(|s| matches!(s.stage, Stage::Ready { .. }))
    }

    /// A target holds all checkpoints up to `epoch`.
    pub fn acked(&mut self, name: Target, epoch: Epoch) {
        if let Some(target_state) = self.all.iter_mut().find(|s| s.name() == name) {
            target_state.acked = target_state.acked.max(epoch);
        }
    }

    /// Checkpoints that the slowest joined target does not hold yet.
    pub fn in_flight(&self) -> u32 {
        let behind = |s: &TargetState| self.taken.0.saturating_sub(s.acked.0);
        let most = self.all.iter().filter(|s| s.joined()).map(behind).max().unwrap_or(0);
        u32::try_from(most).unwrap_or(u32::MAX)
    }

    /// Sends a piece to each target that is being copied to; those that fail are left out and given to `lost`.
    ///
    /// # Errors
    /// The tracker's.
    pub fn copy(
        &mut self,
        memory: &Memory,
        tell: &mut dyn FnMut(Target, SyncProgress),
        lost: &mut dyn FnMut(Target, String),
    ) -> Result<Copied, MachineError> {
        let joined = self.any_joined();
        // While one has joined, checkpoints bring what there is to know.
        if !joined && self.all.iter().any(TargetState::between_rounds) {
            self.look()?;
        }
        let trapped = self.tracker.traps_all();
        let free = self.may_hold();
        let can_hold = self.tracker.can_hold();
        let most = if joined { SMALL_PIECE } else { PIECE_PAGES };
        let mut copied = Copied::NoRoom;
        self.all.retain_mut(|target_state| {
            let done = target_state.step(trapped, free, memory.layout()).and_then(|stepped| {
                let copied = target_state.copy(memory, most, can_hold, tell)?;
                Ok(if stepped { Copied::Something } else { copied })
            });
            match done {
                Ok(Copied::Something) => copied = Copied::Something,
                Ok(Copied::NoRoom) => {}
                Err(reason) => {
                    lost(target_state.name(), reason);
                    return false;
                }
            }
            true
        });
        self.trap_as_needed();
        Ok(copied)
    }

    /// An empty capture, if there is one: as many as may be unacknowledged.
    ///
    /// # Errors
    /// No memory for one.
    pub fn spare(&mut self, memory: &Memory) -> Result<Option<Box<Capture>>, MachineError> {
        while let Ok(mut capture) = self.back.try_recv() {
            // One that had been given up is one too many.
            if self.spare.len() < MAX_IN_FLIGHT as usize {
                capture.clear();
                self.spare.push(capture);
            }
        }
        if self.spare.is_empty() && self.made < MAX_IN_FLIGHT {
            self.made += 1;
            return Capture::for_layout(memory.layout()).map(|c| Some(Box::new(c)));
        }
        Ok(self.spare.pop())
    }

    /// Puts an unused capture back.
    pub fn put_back(&mut self, mut capture: Box<Capture>) {
        capture.clear();
        self.spare.push(capture);
    }

    /// Gathers in [`missing`](Self::missing) what those that are ready to join are missing; answers whether any is.
    pub fn gather(&mut self) -> bool {
        self.missing.clear();
        let mut any = false;
        for target_state in &self.all {
            if let Stage::Ready { stale, .. } = &target_state.stage {
                self.missing.insert_all(stale);
                any = true;
            }
        }
        any
    }

    /// A checkpoint has been taken and the guest stands still: those that have not joined do not get it, and what it carries
    /// is stale there.
    pub fn taken(&mut self, capture: &Capture) {
        self.taken = capture.epoch;
        for runs in capture.written() {
            self.all.iter_mut().for_each(|target_state| target_state.note(runs));
            self.written.iter_mut().for_each(|w| w.insert(runs));
            self.left.iter_mut().for_each(|l| l.written.insert(runs));
        }
    }

    /// Remembers a checkpoint's pages, when the guest runs again: a target that goes may not have it.
    fn remember_recent(&mut self, capture: &Capture) {
        let mut runs = if self.recent.len() == RECENT { self.recent.pop_front() } else { None }.unwrap_or_default().1;
        runs.clear();
        capture.written().iter().for_each(|written| runs.extend_from_slice(written));
        self.recent.push_back((capture.epoch, runs));
    }

    /// Whether all that are ready to join want one checkpoint alone: the volumes are not held for them.
    pub fn only_once(&self) -> bool {
        self.joins_next().is_none()
    }

    /// The first that is ready to join, and for which the volumes are to be held.
    pub fn joins_next(&self) -> Option<Target> {
        self.all.iter().find(|s| matches!(s.stage, Stage::Ready { .. }) && !s.single()).map(TargetState::name)
    }

    /// Before the checkpoint with which those join that are ready: asks `hold` for each of them whether it may. All output, and
    /// what is done to the volumes, is held from then on. Who may not is left out.
    pub fn hold(&mut self, mut hold: impl FnMut(Target) -> bool) {
        self.all.retain(|s| !matches!(s.stage, Stage::Ready { .. }) || s.single() || hold(s.name()));
    }

    /// Lets those join that are ready; the guest stands still after the checkpoint that carries what they were
    /// [missing](Self::gather).
    pub fn join(&mut self, guest_io: &GuestIo, disks: &Disks) -> Vec<(Target, Join)> {
        let before = Epoch(self.taken.0 - 1);
        let mut joins = Vec::new();
        for target_state in &mut self.all {
            if !matches!(target_state.stage, Stage::Ready { .. }) {
                continue;
            }
            let (rest, queued) = std::mem::take(&mut target_state.rest).join(disks);
            let moment = target_state.moment.take();
            if let Some(moment) = &moment {
                self.tracker.hold(moment);
            }
            let join = Join { rest, queued, console: guest_io.console_up_to(self.taken), moment };
            let frozen = target_state.target.single().map(SingleCheckpoint::volumes).unwrap_or_default();
            frozen.iter().zip(&join.queued).for_each(|(volume, queued)| volume.freeze(queued));
            joins.push((target_state.name(), join));
            target_state.stage = Stage::Joined;
            // What it holds before its first checkpoint does not count against it.
            (target_state.acked, target_state.before) = (before, before);
        }
        self.trap_as_needed();
        joins
    }

    /// Gives a checkpoint to all that have joined; those that cannot take it are left out and given to `lost`.
    pub fn give(
        &mut self,
        capture: Box<Capture>,
        mut joins: Vec<(Target, Join)>,
        memory: &Memory,
        lost: &mut dyn FnMut(Target, String),
    ) {
        self.remember_recent(&capture);
        let pages = capture.record.dirty_pages;
        self.many = pages >= if self.many { NOT_MANY } else { VERY_MANY };
        self.trap_as_needed();
        let taken = Arc::new(Taken::new(capture, self.home.clone(), self.waker.clone()));
        let mut at = 0;
        while let Some(target_state) = self.all.get(at) {
            if !target_state.joined() {
                at += 1;
                continue;
            }
            let join = joins
                .iter()
                .position(|(name, _)| *name == target_state.name())
                .map(|at| Box::new(joins.swap_remove(at).1));
            // The sender has room for as many checkpoints as there are captures.
            let given = target_state.target.checkpoint(Arc::clone(&taken), join);
            if given.is_ok() && !target_state.single() {
                at += 1;
                continue;
            }
            let target_state = self.all.remove(at);
            if let Err(error) = given {
                // Its session is over, as its keeper learns by this at the latest.
                self.remember_left(&target_state, memory);
                let full = error == NotTaken::NoRoom;
                lost(target_state.name(), if full { "the sender has no room for a checkpoint".into() } else { gone() });
            }
        }
    }

    /// The same with one that nobody gets.
    pub fn give_to_nobody(&mut self, capture: Box<Capture>) {
        self.recent.clear();
        self.put_back(capture);
    }

    /// Ends all of them, with what is remembered for those that have gone. Each that there was is given to `lost`.
    pub fn end(self, lost: &mut dyn FnMut(Target)) {
        self.all.iter().for_each(|target_state| lost(target_state.name()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::log::job::LogTarget;

    /// All pages of a copy, and of what is left, of a guest that writes so much of a round's pages again while it is sent, and
    /// writes to so many.
    fn copied(memory: u64, share: f64, written: u64) -> (u32, u64, u64) {
        let (mut rounds, mut all, mut former, mut size) = (1, memory, u64::MAX, memory);
        loop {
            let stale = ((size as f64 * share) as u64).min(written);
            if (rounds > 1 && !worth_another(size, former)) || rounds == MAX_ROUNDS {
                return (rounds, all, stale);
            }
            (rounds, all, former, size) = (rounds + 1, all + stale, size, stale);
        }
    }

    /// However fast the guest writes, the copy is a few times its memory.
    #[test]
    fn a_copy_ends_and_carries_a_few_times_the_memory() {
        for memory in [100, FEW_PAGES, 1 << 16, 1 << 24] {
            for written in [0, memory / 10, memory / 2, memory] {
                for percent in 0..=400 {
                    let share = f64::from(percent) / 100.0;
                    let (rounds, all, stale) = copied(memory, share, written);
                    assert!(rounds <= MAX_ROUNDS && all + stale <= 6 * memory, "{share}: {rounds} rounds, {all} pages");
                    // It is not given up while it gets on, and not gone on with in vain.
                    assert!(percent > 70 || stale <= FEW_PAGES.max(memory / 32), "{share}: {stale} of {memory} left");
                    assert!(percent < 100 || written < memory || rounds == 2, "{share}: {rounds} rounds");
                }
            }
        }
    }

    /// A snapshot on a disk that hangs keeps no VM unprotected whose memory could be copied in a pause: it may read for ever.
    #[test]
    fn who_needs_little_copied_does_not_wait_for_who_reads_the_memory() {
        let block = Block { name: "m0".into(), used: 1 << 30, total: 1 << 30 };
        let layout = BlockLayout { blocks: vec![block] };
        let (jobs, _work) = sync_channel(1);
        let much = |pages: u64| {
            let mut stale = PageMap::for_layout(&layout);
            stale.insert(&[PageRun { block: 0, first: 7, count: pages as u32 }]);
            let stage = Stage::Much { stale };
            let (target, rest) = (Box::new(LogTarget(jobs.clone())), ChangedBlocks::default());
            TargetState { target, rest, acked: Epoch(0), before: Epoch(0), stage, moment: None }
        };
        // Trapped, free; with so many pages: whether it is held, or it waits.
        for (trapped, free, pages, expected) in [
            (true, true, 10, Some(true)),
            (true, true, VERY_MANY, Some(true)),
            (false, true, 10, None),
            (true, false, VERY_MANY - 1, Some(false)),
            (false, false, VERY_MANY - 1, Some(false)),
            (true, false, VERY_MANY, None),
            (false, false, VERY_MANY, None),
        ] {
            let mut target_state = much(pages);
            assert_eq!(target_state.step(trapped, free, &layout), Ok(expected.is_some()));
            let found = match target_state.stage {
                Stage::Ready { much, .. } => Some(much),
                _ => None,
            };
            assert_eq!(found, expected, "{trapped} {free} {pages}");
        }
    }
}
