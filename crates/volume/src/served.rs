//! A volume as a keeper serves it to its QEMU: an image, and over it what must not reach the image yet.
//!
//! ```text
//!   QEMU ──NBD──► write ─┬─ through ─────────────────────────────────────────► image
//!                        └─ held ──► epoch that runs ─seal(n)─► queue ─commit(n)─► applier ──► log ──► image
//!                                         │                       │                  ▲
//!   QEMU ◄─NBD─── read ◄──────────────────┴── overlay ────────────┘                  │
//!   checkpoint stream ──► receive(n) ────────────────────────────────────────────────┘
//! ```
//!
//! * **Closed**: no VM of this host may write here; a QEMU that is being ended gets errors, a standby's may read.
//! * **Through**: the VM is unprotected. A write is in the image when it is answered, a flush makes it durable. Not while there
//!   is still something on its way into the image, nor while a pause is near ([`ServedVolume::brace`]): then a write goes into memory,
//!   behind that, and the applier takes it into the image as soon as it can; a flush waits for that.
//! * **Held**: the VM is protected. What the guest does is kept in memory and answered at once; an epoch's operations go to
//!   the backup with its checkpoint and into the image when the backup has acknowledged them. A flush is answered at once
//!   too: all that could tell anybody of it is output, and output waits for the same acknowledgement.
//!
//! So **an image never holds an uncommitted write**, on either host. A former primary has nothing to undo, a backup that
//! takes over serves its QEMU at once, with what is committed and not yet applied in the overlay.
//!
//! Committed epochs go through the [write log](crate::log), so that a crash leaves the image, when it is opened again, as
//! some epoch left it. An epoch is *durable* when it is in the log: what had gone through before it is made durable first.
//! While writes go through, the log is empty; what waits in memory then is an ordinary disk's cache, and does not go through
//! the log.
//!
//! # Nobody waits for the disk
//!
//! QEMU's `stop` waits for outstanding requests and then flushes. On a disk that is slow, or hangs, that would be a pause
//! without end. So every flush is the applier's to carry out: whoever waits for it is let go when the volume is held, since
//! what he would tell of it is held too. A write in *held* goes into memory, and waits for a bounded time only ([`Budget`]). What
//! is left is a write that goes through, and a read: [`ServedVolume::is_calm`] says that the first is not under way, and
//! [`ServedVolume::stalled`] how long the disk has not answered.
//!
//! # Errors
//!
//! When the image cannot be written in *through*, or not be read, the guest gets the error. When image or log cannot be
//! written by the applier, nothing is dropped: reads stay right, and the applier tries again and again.
//! [`ServedVolume::failure`] says why in each case.
//!
//! After a flush that failed the kernel may forget what it could not write, and the next flush may succeed nevertheless
//! (fsync(2)). So, whoever asked for it, the applier then writes all that is in the log into the image again; and what was
//! written past the log is [lost](crate::unsynced) until it is written again: a resync does so, and until then no flush of the
//! guest's succeeds and nothing that rests on it counts as durable. A [note](crate::lost) tells the next process of it.
//!
//! What is in the image and not in the log is made durable before the log gets an epoch that follows it. So a guest's flush
//! which is answered at once is true even if it concerns what had gone through before.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;

use crate::batch::{Batch, Op};
use crate::behind::{Behind, Due};
use crate::budget::{Budget, SOFT};
use crate::checksums::BLOCK;
use crate::error::VolumeError;
use crate::image::{Image, check_bounds};
use crate::log::{self, STEP, WriteLog};
use crate::lost::Lost;
use crate::nbd::Handler;
use crate::note::Note;
use crate::overlay::Overlay;
use crate::ranges::Ranges;
use crate::unsynced::Unsynced;

/// What is in the log is made durable in the image, and the log emptied, at least this often.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// And when the log is so long, bytes.
const LONG_LOG: u64 = 64 << 20;
/// Where an acknowledgement means memory, epochs are gathered for so long and up to so many bytes, so that one write to
/// the log, and one to a block that is written often, does for many.
const GATHER: Duration = Duration::from_millis(200);
const GATHER_BYTES: usize = 8 << 20;
/// A backup takes no more than this, bytes, from a primary that is faster than its disk.
pub const BACKLOG: usize = 256 << 20;
/// A request without data is done in pieces of so many bytes.
const PIECE: u64 = 16 << 20;
/// An error of a read, or of a write that went through, is told for so long.
const TOLD: Duration = Duration::from_secs(10);
/// So many bytes, written past the log and not durable, are flushed in no time.
const FEW: usize = 1 << 20;
/// An applier that failed waits this long.
const RETRY: Duration = Duration::from_millis(250);
/// What fails when a flush has succeeded, and what an earlier one lost is still missing.
const NOT_AS_WRITTEN: &str = "the image is not on the disk as it was written";
/// In so many places [`STEP`] bytes are written out at a time.
const FEW_PLACES: usize = 256;
/// A flush that has been under way for so long is one of a slow disk: no pause should have to wait for it.
const LONG_FLUSH: Duration = Duration::from_millis(50);

/// Hears of writes to the image: who keeps what is written over, before; who copies what is written, after. What is read while a
/// write is under way may be either content.
pub trait Mark: Send + Sync {
    /// `length` bytes from `at` on are about to be written. Who is added while a write is under way does not hear this of it.
    fn before(&self, at: u64, length: u64) {
        let _ = (at, length);
    }

    /// They have been written, or a part of them if the disk failed. Whoever waits for the write, or for the epoch that it
    /// belongs to, is answered after this: when a guest stands still, all that has reached the image has been told, but for
    /// what is [queued](ServedVolume::queued).
    fn after(&self, at: u64, length: u64) {
        let _ = (at, length);
    }
}

/// Hears that the writes of all epochs up to this one are in the image and durable.
pub type OnDurable = Box<dyn Fn(Epoch) + Send>;

/// What is done once.
pub type WhenDurable = Box<dyn FnOnce() + Send>;

/// Hears that a volume that was [braced](ServedVolume::brace) may have become calm.
pub type OnCalm = Box<dyn Fn() + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Closed,
    Through,
    Held,
}

struct Sealed {
    epoch: Epoch,
    number: u64,
    batch: Arc<Batch>,
    committed: bool,
    /// Of no epoch: it was written while the VM was alone, and needs no log.
    plain: bool,
}

/// Who uses the disk.
#[derive(Debug, Clone, Copy)]
enum Use {
    Applier,
    PastTheLog,
    Flush,
    Read,
}

/// Uses of one kind that are under way.
#[derive(Debug, Clone, Copy, Default)]
struct AtWork {
    count: usize,
    /// When the first of them began, or the disk last got on with one.
    since: Option<Instant>,
}

impl AtWork {
    fn begin(&mut self) {
        self.count += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    fn gets_on(&mut self) {
        self.since = (self.count > 0).then(Instant::now);
    }

    fn end(&mut self) {
        self.count = self.count.saturating_sub(1);
        self.gets_on();
    }
}

struct State {
    mode: Mode,
    /// The VM has gone from here, and nothing has been received since.
    left: bool,
    open: Batch,
    /// The number that the open batch will have.
    number: u64,
    queue: VecDeque<Sealed>,
    overlay: Overlay,
    held: usize,
    /// Why the applier cannot go on.
    failure: Option<Failure>,
    /// What the guest was told last.
    refused: Option<(Failure, Instant)>,
    /// The newest batch that is in the log.
    logged: u64,
    /// Since when there has been something in the log.
    log_used: Option<Instant>,
    /// Since when something committed has waited to be logged.
    waiting: Option<Instant>,
    /// Somebody waits for the log.
    hurry: bool,
    /// What was written to the image past the log, by a guest or a resync, and is not durable yet.
    unsynced: Unsynced,
    /// How many bytes that is, about.
    loose: usize,
    /// Requests of the guest that go through and are under way.
    direct: usize,
    /// No more writes shall go through.
    braced: bool,
    /// Somebody wants what is not durable yet to be.
    sync: bool,
    /// Flushes of a guest that is alone: numbers of the last that was asked for and of the last that was carried out, what the
    /// former wants in the image or the log, and those up to the second that failed, with why.
    flush_asked: u64,
    flush_done: u64,
    flush_needs: u64,
    flush_failed: Option<(RangeInclusive<u64>, Failure)>,
    /// Which kinds of use of the disk are under way.
    at_work: [AtWork; 4],
    /// How often the disk has got on with what it was asked.
    got_on: u64,
    /// What was written to the image and not flushed, whoever wrote it.
    dirty: Ranges,
    on_calm: Option<OnCalm>,
    /// Since when a flush is under way.
    flushing: Option<Instant>,
    /// A flush has failed: what is in the log has to be written into the image again.
    redo: bool,
    /// Somebody waits for the image.
    settling: bool,
    /// The QEMU that the volume was served to is gone: nobody waits for what it asked for last.
    gone: bool,
    /// Writes past the log that are under way.
    under_way: usize,
    marks: Vec<Arc<dyn Mark>>,
    on_durable: Option<OnDurable>,
    /// What is to be done when the batches of these numbers are durable.
    when_durable: Vec<(u64, WhenDurable)>,
    /// The note that clients may have been told what the image has not.
    behind: Behind,
    ending: bool,
}

/// Why a volume cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error with its causes.
    pub reason: String,
    /// The file system, or the thin device, is full: what is there can still be read.
    pub out_of_space: bool,
}

impl Failure {
    fn of(error: &VolumeError) -> Self {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        Self { reason, out_of_space: error.is_out_of_space() }
    }
}

struct Shared {
    image: Box<dyn Image>,
    /// Held during a flush. An error is reported to one of several that are under way at the same time (fsync(2)).
    flushing: Mutex<Noted>,
    acknowledge: Acknowledge,
    budget: Arc<Budget>,
    state: Mutex<State>,
    /// For the applier: there is something to do.
    work: Condvar,
    /// For those who wait for the queue to become shorter.
    done: Condvar,
}

/// The note that something is lost.
struct Noted {
    /// None for an image that is gone with this process.
    note: Option<Lost>,
    /// It is there for certain.
    is_there: bool,
    /// It may be there.
    may_be: bool,
    /// That it can be neither written nor removed has been said.
    said: bool,
}

impl Noted {
    fn of(note: Option<Lost>) -> Self {
        let is_there = note.as_ref().is_some_and(Lost::is_there);
        // One of another kernel says nothing of what this one's cache loses from now on.
        let is_true = note.as_ref().is_some_and(Lost::is_true);
        Self { note, is_there: is_true, may_be: is_there, said: false }
    }

    /// Something is lost, or about to be. If that cannot be noted it is tried again at each flush; a process that ends before knows
    /// alone.
    fn write(&mut self) {
        let Some(note) = self.note.as_ref().filter(|_| !self.is_there) else { return };
        self.may_be = true;
        match note.write() {
            Ok(()) => (self.is_there, self.said) = (true, false),
            Err(error) => self.say(&error, "that a flush has failed cannot be noted"),
        }
    }

    /// Nothing is lost. A note that cannot be removed makes the next process believe the opposite, which is safe.
    fn remove(&mut self) {
        let Some(note) = self.note.as_ref().filter(|_| self.may_be) else { return };
        self.is_there = false;
        match note.remove() {
            Ok(()) => (self.may_be, self.said) = (false, false),
            Err(error) => self.say(&error, "the note that a flush has failed cannot be removed"),
        }
    }

    fn say(&mut self, error: &VolumeError, what: &str) {
        if !std::mem::replace(&mut self.said, true) {
            let reason = Failure::of(error).reason;
            tracing::error!(%reason, "{what}");
        }
    }
}

/// See the [module](self). Dropping it applies what is committed, makes it durable and ends the applier; an image that
/// cannot be written then stays behind.
pub struct ServedVolume {
    shared: Arc<Shared>,
    applier: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for ServedVolume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedVolume").field("image", &self.shared.image).finish_non_exhaustive()
    }
}

impl ServedVolume {
    /// Serves `image`, closed. `log` is the image's, and empty: see [`WriteLog::recover`].
    ///
    /// # Errors
    /// No more threads.
    pub fn new(image: Box<dyn Image>, log: WriteLog, acknowledge: Acknowledge) -> Result<Self, VolumeError> {
        Self::within(Arc::default(), image, log, acknowledge, None)
    }

    /// The same for one of several volumes of a VM, which share a budget, with the note of what is lost in it.
    ///
    /// # Errors
    /// No more threads.
    pub fn within(
        budget: Arc<Budget>,
        image: Box<dyn Image>,
        log: WriteLog,
        acknowledge: Acknowledge,
        lost: Option<Lost>,
    ) -> Result<Self, VolumeError> {
        let size = image.size();
        // An earlier process may have left it in the cache.
        let mut all = Ranges::default();
        all.put(0, size);
        let unsynced = match &lost {
            Some(lost) if lost.is_true() => Unsynced::lost(size, image.has_structures()),
            _ => Unsynced::unknown(size),
        };
        let shared = Arc::new(Shared {
            image,
            flushing: Mutex::new(Noted::of(lost)),
            acknowledge,
            budget,
            state: Mutex::new(State {
                mode: Mode::Closed,
                left: false,
                open: Batch::default(),
                number: 1,
                queue: VecDeque::new(),
                overlay: Overlay::default(),
                held: 0,
                failure: None,
                refused: None,
                logged: 0,
                log_used: None,
                waiting: None,
                hurry: false,
                unsynced,
                loose: 0,
                direct: 0,
                braced: false,
                sync: false,
                flush_asked: 0,
                flush_done: 0,
                flush_needs: 0,
                flush_failed: None,
                at_work: [AtWork::default(); 4],
                got_on: 0,
                dirty: all,
                on_calm: None,
                flushing: None,
                redo: false,
                settling: false,
                gone: false,
                under_way: 0,
                marks: Vec::new(),
                on_durable: None,
                when_durable: Vec::new(),
                behind: Behind::default(),
                ending: false,
            }),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let its = Arc::clone(&shared);
        let applier = std::thread::Builder::new()
            .name("applier".into())
            .spawn(move || Applier { shared: &its, log }.run())
            .map_err(|source| VolumeError::Io { what: "cannot start a thread for a volume", source })?;
        Ok(Self { shared, applier: Some(applier) })
    }

    /// The [note](crate::behind) that the image may be behind what clients were told. To be given before anybody uses the volume.
    pub fn keep_behind(&self, note: Note) {
        self.shared.lock().behind = Behind::of(note);
    }

    /// When clients were told what the image may not have, as an earlier process has noted; none if the VM has been here since.
    pub fn found_behind(&self) -> Option<String> {
        self.shared.lock().behind.found().map(str::to_owned)
    }

    /// Somebody is about to be told what is in memory alone: has that noted, without waiting for it. `since` when, for a person.
    pub fn falls_behind(&self, since: &str) {
        self.shared.lock().behind.want(since);
        self.shared.work.notify_one();
    }

    /// Whether it has been [asked for](Self::falls_behind) and is noted, durably. With an error when it cannot be: the last attempt has failed, and there will be others.
    ///
    /// # Errors
    /// `Io`.
    pub fn behind_noted(&self) -> Result<bool, VolumeError> {
        let state = self.shared.lock();
        match (state.behind.is_noted(), state.behind.has_failed()) {
            (false, true) => Err(not_noted("its disk does not take it")),
            (noted, _) => Ok(noted),
        }
    }

    /// Waits until that is noted, or until `limit`.
    ///
    /// # Errors
    /// `Io`: it cannot be, or takes too long.
    pub fn wait_behind_noted(&self, limit: Duration) -> Result<(), VolumeError> {
        let until = Instant::now() + limit;
        loop {
            let state = self.shared.lock();
            if state.behind.is_noted() {
                return Ok(());
            }
            if state.behind.has_failed() {
                return Err(not_noted("its disk does not take it"));
            }
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
            let Some(left) = left else { return Err(not_noted("it takes too long")) };
            drop(self.shared.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The VM has ended here for good, and nobody else goes on with it: when all that is committed is in the image, nothing is
    /// missing there that anybody was told.
    pub fn is_over(&self) {
        self.shared.lock().behind.over(true);
        self.shared.work.notify_one();
    }

    /// Its size, bytes.
    pub fn size(&self) -> u64 {
        self.shared.image.size()
    }

    /// What backups' acknowledgements mean for it.
    pub fn acknowledge(&self) -> Acknowledge {
        self.shared.acknowledge
    }

    /// From now on what the guest does waits for its epoch, and so does all that it says. The guest may be running: what is
    /// under way reaches the image before anything that comes after it, and who waits for a flush is let go.
    pub fn hold(&self) {
        let mut state = self.shared.lock();
        state.mode = Mode::Held;
        // It is, or is about to be: who holds the volume has seen to it.
        state.behind.want("while it was protected");
        drop(state);
        self.shared.done.notify_all();
        self.shared.work.notify_one();
    }

    /// A pause is near: no more writes go through, so that none is under way when it comes. Or it is over.
    pub fn brace(&self, yes: bool) {
        self.shared.lock().braced = yes;
        self.shared.work.notify_one();
    }

    /// Has what went through made durable, without waiting for it.
    pub fn sync_soon(&self) {
        let mut state = self.shared.lock();
        state.sync = state.unsynced.is_pending();
        drop(state);
        self.shared.work.notify_one();
    }

    /// Whether a pause would find no write under way to the disk, and, `flushed`, next to nothing that its flush would have to
    /// wait for.
    pub fn is_calm(&self, flushed: bool) -> bool {
        let state = self.shared.lock();
        let quick = || state.mode == Mode::Held || state.held + state.loose <= FEW;
        state.direct == 0 && (!flushed || (quick() && !state.sync))
    }

    /// Whether something goes into the image of a VM that is alone, or is being made durable there.
    pub fn is_busy(&self) -> bool {
        let state = self.shared.lock();
        let flushes = || state.flushing.is_some_and(|since| since.elapsed() >= LONG_FLUSH);
        state.sync || (state.mode == Mode::Through && (!state.queue.is_empty() || flushes()))
    }

    /// Who hears that it may have become calm, from now on.
    pub fn on_calm(&self, tell: Option<OnCalm>) {
        self.shared.lock().on_calm = tell;
    }

    /// How long the disk has not answered what it was asked longest ago, nor got on with it; none while it has nothing to do.
    pub fn stalled(&self) -> Option<Duration> {
        let oldest = self.shared.lock().at_work.iter().filter_map(|work| work.since).min();
        oldest.map(|since| since.elapsed())
    }

    /// A number that is another whenever the disk has got on with a flush, whoever waits for it.
    pub fn got_on(&self) -> u64 {
        self.shared.lock().got_on
    }

    /// Has all that the guest has done up to now made durable, without waiting for it: the VM is alone. [`ServedVolume::flushed`] tells of
    /// it by this number; none if it is durable already.
    pub fn flush_soon(&self) -> Option<u64> {
        let mut state = self.shared.lock();
        let missing = state.queue.iter().any(|s| s.plain || s.number > state.logged);
        let unsure = state.unsynced.is_pending() || state.unsynced.is_lost();
        if state.mode == Mode::Closed || !(missing || !state.open.is_empty() || unsure) {
            return None;
        }
        if state.mode == Mode::Through {
            state.seal_open(true);
        }
        let ticket = state.ask_flush();
        drop(state);
        self.shared.work.notify_one();
        Some(ticket)
    }

    /// Whether what was asked for is done; none as long as it is not.
    pub fn flushed(&self, ticket: u64) -> Option<Result<(), VolumeError>> {
        self.shared.lock().flushed(ticket)
    }

    /// Ends the epoch that runs: what the guest has done since the last time is epoch `epoch`, and what it does from now on
    /// is held. The guest is stopped. Does no I/O and copies nothing.
    pub fn seal(&self, epoch: Epoch) -> Arc<Batch> {
        let mut state = self.shared.lock();
        if state.mode == Mode::Closed {
            // The VM has just ended here: nobody would commit it, and the next session would wait for that.
            return Arc::default();
        }
        // Before anything is in the queue: a flush that goes through would wait for it to be committed.
        state.mode = Mode::Held;
        let batch = Arc::new(std::mem::take(&mut state.open));
        let number = state.number;
        state.number += 1;
        state.queue.push_back(Sealed { epoch, number, batch: Arc::clone(&batch), committed: false, plain: false });
        drop(state);
        self.shared.done.notify_all();
        batch
    }

    /// A backup holds all epochs up to `epoch`: they may reach the image.
    pub fn commit(&self, epoch: Epoch) {
        let mut state = self.shared.lock();
        for sealed in state.queue.iter_mut().filter(|s| s.epoch <= epoch) {
            sealed.committed = true;
        }
        state.waiting.get_or_insert_with(Instant::now);
        drop(state);
        self.shared.work.notify_one();
    }

    /// The VM goes on alone, here: all that is held is what the VM did, and from now on writes go through. The guest may be
    /// running.
    pub fn go_through(&self) {
        let mut state = self.shared.lock();
        state.queue.iter_mut().for_each(|sealed| sealed.committed = true);
        let plain = state.mode == Mode::Through;
        state.seal_open(plain);
        state.mode = Mode::Through;
        state.behind.over(false);
        if state.unsynced.is_lost() {
            // No order has to be kept any more: what could not go on goes on.
            state.failure = None;
        }
        drop(state);
        self.shared.work.notify_one();
    }

    /// The VM is not this host's any more: what is not committed is forgotten, and its QEMU, which may still be running,
    /// writes no more. What is committed is still applied.
    pub fn discard(&self) {
        let mut state = self.shared.lock();
        if state.mode == Mode::Through {
            // Nobody else has it: what the VM did alone is the volume.
            state.seal_open(true);
        }
        state.open = Batch::default();
        state.queue.retain(|sealed| sealed.committed);
        state.overlay = Overlay::default();
        let State { queue, overlay, .. } = &mut *state;
        for sealed in queue.iter() {
            sealed.batch.ops().iter().for_each(|op| overlay.put(op, sealed.number));
        }
        let held = state.queue.iter().map(|s| s.batch.bytes()).sum();
        let gone = std::mem::replace(&mut state.held, held).saturating_sub(held);
        (state.mode, state.left) = (Mode::Closed, true);
        state.behind.part();
        drop(state);
        self.shared.budget.give(gone);
        self.shared.budget.release();
        // Requests that wait here are nobody's any more.
        self.shared.done.notify_all();
    }

    /// A backup's side: epoch `epoch` is here, whole.
    pub fn receive(&self, epoch: Epoch, batch: Batch) {
        let mut state = self.shared.lock();
        let number = state.number;
        state.number += 1;
        state.left = false;
        state.held += batch.bytes();
        self.shared.budget.take(batch.bytes());
        batch.ops().iter().for_each(|op| state.overlay.put(op, number));
        state.queue.push_back(Sealed { epoch, number, batch: Arc::new(batch), committed: true, plain: false });
        state.waiting.get_or_insert_with(Instant::now);
        drop(state);
        self.shared.work.notify_one();
    }

    /// Makes durable what a resync has written, and what it has found equal. Before a checkpoint that rests on it goes into the
    /// log: a loss of power would otherwise leave the log, and not what is under it.
    ///
    /// # Errors
    /// Those of the image. What is [lost](ServedVolume::is_lost) then has to be written again.
    pub fn settle_resync(&self) -> Result<(), VolumeError> {
        self.shared.settle()
    }

    /// Whether a flush that failed may have lost something of the `length` bytes from `at` on. What is read there proves nothing.
    pub fn is_lost(&self, at: u64, length: u64) -> bool {
        self.shared.lock().unsynced.is_lost_in(at, at.saturating_add(length))
    }

    /// Sets the bits of the blocks of [`BLOCK`] bytes, from number `first` on, of which something is [lost](ServedVolume::is_lost):
    /// they differ from whatever they are compared with.
    pub fn put_lost(&self, first: u64, bits: &mut [u8]) {
        let state = self.shared.lock();
        for (block, n) in (first..).zip(0..bits.len() * 8) {
            let at = block.saturating_mul(BLOCK);
            let end = at.saturating_add(BLOCK).min(self.shared.image.size());
            if state.unsynced.is_lost_in(at, end) {
                bits[n / 8] |= 1 << (n % 8);
            }
        }
    }

    /// Writes a block of a resync into the image, at once. The image is not a volume of anybody's meanwhile.
    ///
    /// # Errors
    /// Those of the image; `Io` while there is anything in the log, which would be written over it.
    pub fn apply(&self, batch: &Batch) -> Result<(), VolumeError> {
        let state = self.shared.lock();
        if state.log_used.is_some() || !state.queue.is_empty() || state.under_way > 0 {
            let source = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
            return Err(VolumeError::Io { what: "writes of an earlier session are on their way", source });
        }
        drop(state);
        batch.ops().iter().try_for_each(|op| self.shared.past_the_log(op, |_| Ok(())))
    }

    /// Waits until all committed writes up to `epoch` are durable, or until `limit`.
    ///
    /// # Errors
    /// `Io`: it takes too long, or the log cannot be written.
    pub fn wait_durable(&self, epoch: Epoch, limit: Duration) -> Result<(), VolumeError> {
        let logged =
            |state: &State| !state.queue.iter().any(|s| s.committed && s.epoch <= epoch && s.number > state.logged);
        self.wait(limit, false, logged)
    }

    /// Waits until all committed writes are in the image and durable there, the log is empty, and no request of a VM that is not
    /// this host's any more is still at work; or until `limit`.
    ///
    /// # Errors
    /// `Io`: it takes too long, or log or image cannot be written.
    pub fn settle(&self, limit: Duration) -> Result<(), VolumeError> {
        let under_way = |state: &State| state.mode != Mode::Through && state.under_way > 0;
        self.wait(limit, true, |state| {
            // What a failed flush has lost is not for this to mend.
            let synced = !state.unsynced.is_pending() || state.unsynced.is_lost();
            synced && state.log_used.is_none() && !state.queue.iter().any(|s| s.committed) && !under_way(state)
        })
    }

    /// A backup's side: whether what an acknowledgement of `epoch` means is true, what it rests on is durable, and there is room for the
    /// next one.
    pub fn may_acknowledge(&self, epoch: Epoch) -> bool {
        let state = self.shared.lock();
        let durable = self.shared.acknowledge == Acknowledge::Disk;
        let rests = !state.unsynced.is_pending() && !state.unsynced.is_lost();
        rests && state.failure.is_none() && (durable || state.behind.is_noted()) && state.takes_more(epoch, durable)
    }

    /// A backup's side: waits until what an acknowledgement of `epoch` means is true, and there is room for the next one;
    /// or until `limit`.
    ///
    /// # Errors
    /// `Io`: the disk takes nothing, which is said at once, or is too slow for what the primary sends.
    pub fn wait_acknowledge(&self, epoch: Epoch, limit: Duration) -> Result<(), VolumeError> {
        let durable = self.shared.acknowledge == Acknowledge::Disk;
        self.wait(limit, false, |state| state.failure.is_some() || state.takes_more(epoch, durable))?;
        match self.stuck() {
            Some(failure) => Err(not_on_disk(failure.reason)),
            None => Ok(()),
        }
    }

    fn wait(&self, limit: Duration, settle: bool, done: impl Fn(&State) -> bool) -> Result<(), VolumeError> {
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !done(&state) {
            state.hurry = true;
            state.settling |= settle;
            self.shared.work.notify_one();
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                let why = state.failure.clone().map_or_else(|| "it takes too long".into(), |failure| failure.reason);
                return Err(not_on_disk(why));
            };
            state = self.shared.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// The number of the batch of this epoch, which was sealed or received just before: see [`ServedVolume::is_durable`].
    pub fn number(&self, epoch: Epoch) -> u64 {
        let state = self.shared.lock();
        let sealed = state.queue.iter().rev().find(|s| s.epoch == epoch);
        sealed.map_or(state.number.saturating_sub(1), |s| s.number)
    }

    /// Whether all batches up to this number survive a loss of power: in the image, or in the volume's log.
    pub fn is_durable(&self, number: u64) -> bool {
        self.shared.lock().logged >= number
    }

    /// Does something once all batches up to this number survive a loss of power; at once if they do. It may write to the disk, and
    /// is forgotten when the volume is dropped before.
    pub fn when_durable(&self, number: u64, act: WhenDurable) {
        let mut state = self.shared.lock();
        if state.logged < number {
            state.when_durable.push((number, act));
            return;
        }
        drop(state);
        act();
    }

    /// The image itself, while it is no VM's.
    pub fn image_of_nobody(&self) -> &dyn Image {
        &*self.shared
    }

    /// Writes what is [lost](ServedVolume::is_lost) again as it is read, and makes that durable: what is read and what the disk has are the
    /// same then. What of it the kernel has forgotten altogether reads as it was before. Nobody else writes meanwhile.
    ///
    /// # Errors
    /// Those of the image; it is lost as before then. `Io` if the image has [structures](Image::has_structures).
    pub fn write_again(&self) -> Result<(), VolumeError> {
        if self.shared.image.has_structures() {
            return Err(lost());
        }
        let (size, mut at) = (self.size(), 0);
        let mut bytes = vec![0; usize::try_from(PIECE.min(size)).unwrap_or(0)];
        while at < size {
            let length = PIECE.min(size - at);
            if self.is_lost(at, length) {
                let piece = &mut bytes[..usize::try_from(length).unwrap_or(0)];
                self.shared.image.read(at, piece)?;
                if piece.iter().any(|b| *b != 0) {
                    Image::write(&*self.shared, at, piece)?;
                } else {
                    Image::zero(&*self.shared, at, length, true)?;
                }
            }
            at += length;
        }
        self.shared.flush()
    }

    /// Makes durable what is in the image.
    ///
    /// # Errors
    /// Those of the image; `Io` while something is [lost](ServedVolume::is_lost).
    pub fn sync_image(&self) -> Result<(), VolumeError> {
        self.shared.flush()
    }

    /// Whether a checkpoint should be taken for the memory's sake.
    pub fn pressure(&self) -> bool {
        self.shared.budget.held() > SOFT
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.shared.lock().held
    }

    /// Why the volume cannot be written, while the applier cannot, or what the guest was refused in the last seconds.
    pub fn failure(&self) -> Option<Failure> {
        let state = self.shared.lock();
        let refused = || state.refused.as_ref().filter(|(_, when)| when.elapsed() < TOLD).map(|(failure, _)| failure);
        let lost = || state.unsynced.is_lost().then(|| Failure::of(&lost()));
        state.failure.as_ref().or_else(refused).cloned().or_else(lost)
    }

    /// Why the applier cannot go on, while it cannot: the disk does not take what is committed.
    pub fn stuck(&self) -> Option<Failure> {
        self.shared.lock().failure.clone()
    }

    /// `mark` hears of writes to the image from now on.
    pub fn add_mark(&self, mark: Arc<dyn Mark>) {
        self.shared.lock().marks.push(mark);
    }

    /// `mark` hears no more.
    pub fn remove_mark(&self, mark: &Arc<dyn Mark>) {
        self.shared.lock().marks.retain(|m| !Arc::ptr_eq(m, mark));
    }

    /// What the guest did in the epochs that are sealed and perhaps not in the image yet, oldest first.
    pub fn queued(&self) -> Vec<Arc<Batch>> {
        self.shared.lock().queue.iter().map(|sealed| Arc::clone(&sealed.batch)).collect()
    }

    /// Who hears what has become durable, from now on.
    pub fn on_durable(&self, tell: Option<OnDurable>) {
        self.shared.lock().on_durable = tell;
    }

    /// Reads what is in the image now, without the overlay: as all up to the last applied epoch left it.
    ///
    /// # Errors
    /// Those of the image.
    pub fn read_image(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        check_bounds(at, into.len() as u64, self.size())?;
        self.shared.image.read(at, into)
    }

    /// Reads what the guest would read.
    ///
    /// # Errors
    /// `OutOfBounds`, those of the image.
    pub fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        let shared = &self.shared;
        check_bounds(at, into.len() as u64, self.size())?;
        let pieces = shared.lock().overlay.pieces(at, into.len());
        // What is taken from the overlay needs not be read; mostly it is all or nothing.
        let covered: usize = pieces.iter().map(|p| p.length).sum();
        if covered < into.len() {
            shared.lock().begin(Use::Read);
            let read = shared.image.read(at, into);
            shared.lock().end(Use::Read);
            read.inspect_err(|error| shared.refuse(error))?;
        }
        for piece in pieces {
            let place = &mut into[piece.at..piece.at + piece.length];
            match piece.data {
                Some(data) => place.copy_from_slice(data.as_ref()),
                None => place.fill(0),
            }
        }
        Ok(())
    }

    /// One operation of the guest.
    fn put(&self, op: Op, durable: bool) -> Result<(), VolumeError> {
        let shared = &*self.shared;
        let (start, end) = op.range();
        check_bounds(start, end - start, self.size())?;
        let mut state = shared.lock();
        match state.mode {
            Mode::Closed => return Err(not_ours()),
            Mode::Through => {
                state.served()?;
                if let Some(failure) = &state.failure {
                    return Err(unwritable(failure));
                }
            }
            Mode::Held => {}
        }
        if !state.goes_through() {
            let number = state.number;
            state.overlay.put(&op, number);
            let before = state.open.bytes();
            state.open.push(op);
            let cost = state.open.bytes() - before;
            state.held += cost;
            let round = shared.budget.take_for_delay(cost);
            let gone = state.gone;
            let through = state.mode == Mode::Through;
            drop(state);
            if through {
                shared.work.notify_one();
            }
            if !gone {
                shared.budget.delay(cost, round);
            }
            return if through && durable { self.flush_through() } else { Ok(()) };
        }
        state.direct += 1;
        drop(state);
        // A request without data can be long: piece by piece it ends soon when its client does.
        let pieces = shared.through(&op);
        state = shared.lock();
        state.direct -= 1;
        state.tell_calm();
        drop(state);
        shared.work.notify_one();
        let done = pieces.and_then(|()| if durable { self.flush_through() } else { Ok(()) });
        // Who is not to write here any more is no sign of a disk that fails.
        let guests = || shared.lock().served().is_ok();
        done.inspect_err(|error| {
            if guests() {
                shared.refuse(error)
            }
        })
    }

    /// Makes durable what a guest that is alone has written. Returns early when the volume is held.
    fn flush_through(&self) -> Result<(), VolumeError> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        if state.mode != Mode::Through {
            return if state.mode == Mode::Held { Ok(()) } else { Err(not_ours()) };
        }
        state.seal_open(true);
        let mine = state.ask_flush();
        shared.work.notify_one();
        loop {
            if let Some(done) = state.flushed(mine) {
                return done;
            }
            if state.mode != Mode::Held {
                state.served()?;
            }
            match (state.mode, &state.failure) {
                // All that could tell anybody of this flush waits for the commit of what it is about.
                (Mode::Held, _) => return Ok(()),
                (Mode::Closed, _) => return Err(not_ours()),
                (Mode::Through, Some(failure)) => return Err(unwritable(failure)),
                (Mode::Through, None) if state.ending => return Err(not_ours()),
                (Mode::Through, None) => {}
            }
            state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn not_ours() -> VolumeError {
    let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    VolumeError::Io { what: "the VM is not this host's", source }
}

/// What the guest is told while the applier cannot go on.
fn unwritable(failure: &Failure) -> VolumeError {
    let kind = if failure.out_of_space { std::io::ErrorKind::StorageFull } else { std::io::ErrorKind::Other };
    VolumeError::Io { what: "the image cannot be written", source: std::io::Error::new(kind, failure.reason.clone()) }
}

fn lost() -> VolumeError {
    let source = std::io::Error::other("a flush has failed, and what it lost has not been written again");
    VolumeError::Io { what: NOT_AS_WRITTEN, source }
}

/// Whether a flush has succeeded, and only what an earlier one lost is missing.
fn is_lost_alone(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Io { what, .. } if *what == NOT_AS_WRITTEN)
}

fn not_noted(why: &str) -> VolumeError {
    let source = std::io::Error::other(why);
    VolumeError::Io { what: "that the image may be behind cannot be noted", source }
}

fn not_on_disk(why: String) -> VolumeError {
    VolumeError::Io { what: "writes are not on the disk", source: std::io::Error::other(why) }
}

impl Handler for ServedVolume {
    fn size(&self) -> u64 {
        ServedVolume::size(self)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        ServedVolume::read(self, at, into)
    }

    fn write(&self, at: u64, bytes: Vec<u8>, fua: bool) -> Result<(), VolumeError> {
        self.put(Op::Write { at, data: bytes.into() }, fua)
    }

    fn zero(&self, at: u64, length: u64, unmap: bool, fua: bool) -> Result<(), VolumeError> {
        self.put(Op::Zero { at, length, unmap }, fua)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        if self.shared.lock().mode != Mode::Through {
            return Ok(());
        }
        self.flush_through().inspect_err(|error| self.shared.refuse(error))
    }

    fn begins(&self) {
        self.shared.lock().gone = false;
    }

    fn ended(&self) {
        self.shared.lock().gone = true;
        self.shared.budget.release();
        self.shared.done.notify_all();
    }
}

impl Drop for ServedVolume {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_one();
        self.shared.done.notify_all();
        if let Some(applier) = self.applier.take()
            && applier.join().is_err()
        {
            tracing::error!("a volume's applier had panicked");
        }
        // What could not be applied goes with it.
        let held = std::mem::take(&mut self.shared.lock().held);
        self.shared.budget.give(held);
    }
}

impl State {
    /// Whether a write goes into the image at once: the VM is alone, nothing is on its way there, and no pause is near.
    fn goes_through(&self) -> bool {
        let empty = self.queue.is_empty() && self.open.is_empty() && self.log_used.is_none();
        self.mode == Mode::Through && empty && !self.braced
    }

    /// Whether nobody rests on what becomes durable here: the VM is alone, or has gone and no session has begun since.
    fn is_alone(&self) -> bool {
        match self.mode {
            Mode::Through => true,
            Mode::Held => false,
            Mode::Closed => self.left,
        }
    }

    /// A backup's side: whether there is room for another epoch, and, if that is wanted, all up to this one is durable.
    fn takes_more(&self, epoch: Epoch, durable: bool) -> bool {
        let missing = |s: &Sealed| durable && s.committed && s.epoch <= epoch && s.number > self.logged;
        self.held <= BACKLOG && !self.queue.iter().any(missing)
    }

    /// Whether the image has all that may reach it.
    fn has_all(&self) -> bool {
        self.mode != Mode::Held && self.queue.is_empty() && self.open.is_empty() && self.log_used.is_none()
    }

    /// Ends the open batch of a VM that is alone, which nobody else commits.
    fn seal_open(&mut self, plain: bool) {
        if !self.open.is_empty() {
            let batch = Arc::new(std::mem::take(&mut self.open));
            let (number, epoch) = (self.number, self.queue.back().map_or(Epoch(0), |s| s.epoch));
            self.number += 1;
            self.queue.push_back(Sealed { epoch, number, batch, committed: true, plain });
        }
    }

    /// Asks for a flush of all that is sealed.
    fn ask_flush(&mut self) -> u64 {
        self.flush_asked += 1;
        self.flush_needs = self.number - 1;
        self.flush_asked
    }

    fn flushed(&self, ticket: u64) -> Option<Result<(), VolumeError>> {
        let failed = self.flush_failed.as_ref().filter(|(which, _)| which.contains(&ticket));
        (self.flush_done >= ticket).then(|| failed.map_or(Ok(()), |(_, failure)| Err(unwritable(failure))))
    }

    /// Whether a flush is asked for, and all that it is about is in the image or in the log.
    fn wants_flush(&self) -> bool {
        let missing = |s: &Sealed| s.number <= self.flush_needs && (s.plain || s.number > self.logged);
        self.flush_asked > self.flush_done && !self.queue.iter().any(missing)
    }

    fn begin(&mut self, what: Use) {
        self.at_work[what as usize].begin();
    }

    fn end(&mut self, what: Use) {
        self.at_work[what as usize].end();
    }

    /// The disk has taken something: whoever writes or flushes may still have to wait, and it does not hang. What is read may come
    /// from the cache, and proves nothing.
    fn gets_on(&mut self) {
        self.got_on += 1;
        [Use::Applier, Use::PastTheLog, Use::Flush].into_iter().for_each(|what| self.at_work[what as usize].gets_on());
    }

    fn tell_calm(&self) {
        if let Some(tell) = self.on_calm.as_ref().filter(|_| self.braced && self.direct == 0) {
            tell();
        }
    }

    /// Whether what goes through may still reach the image.
    fn served(&self) -> Result<(), VolumeError> {
        match self.mode {
            Mode::Closed => Err(not_ours()),
            _ if self.gone => {
                let source = std::io::Error::from(std::io::ErrorKind::NotConnected);
                Err(VolumeError::Io { what: "its client is gone", source })
            }
            _ => Ok(()),
        }
    }

    /// This has reached the image.
    fn written(&self, op: &Op) {
        let (start, end) = op.range();
        self.marks.iter().for_each(|m| m.after(start, end - start));
    }
}

/// The image past the log, for who writes to it while it is no VM's.
impl Image for Shared {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        self.image.read(at, into)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        check_bounds(at, bytes.len() as u64, self.image.size())?;
        self.past_the_log(&Op::Write { at, data: bytes.to_vec().into() }, |_| Ok(()))
    }

    fn zero(&self, at: u64, length: u64, unmap: bool) -> Result<(), VolumeError> {
        check_bounds(at, length, self.image.size())?;
        self.past_the_log(&Op::Zero { at, length, unmap }, |_| Ok(()))
    }

    fn flush(&self) -> Result<(), VolumeError> {
        Shared::flush(self)
    }
}

/// The image as what is in the log is written into it again.
#[derive(Debug)]
struct Again<'a>(&'a Shared);

impl Again<'_> {
    fn wrote(&self, at: u64, length: u64) {
        self.0.dirties(at, at.saturating_add(length));
        self.0.lock().at_work[Use::Applier as usize].gets_on();
    }
}

impl Image for Again<'_> {
    fn size(&self) -> u64 {
        self.0.image.size()
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        self.0.image.read(at, into)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        let written = self.0.image.write(at, bytes);
        self.wrote(at, bytes.len() as u64);
        written
    }

    fn zero(&self, at: u64, length: u64, unmap: bool) -> Result<(), VolumeError> {
        let written = self.0.image.zero(at, length, unmap);
        self.wrote(at, length);
        written
    }

    /// Fails as well if somebody else's flush has failed since the writing began.
    fn flush(&self) -> Result<(), VolumeError> {
        match self.0.flush() {
            // What was lost is not in the log, which can go all the same: what it has is durable.
            Err(error) if !is_lost_alone(&error) => return Err(error),
            _ => {}
        }
        if self.0.lock().redo { Err(lost()) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("image", &self.image).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what goes through into the image.
    fn through(&self, op: &Op) -> Result<(), VolumeError> {
        // The VM may have come to another host meanwhile, or its QEMU may have ended.
        op.pieces(PIECE).try_for_each(|piece| self.past_the_log(&piece, State::served))
    }

    /// Writes into the image what is in no log, if that may be done.
    fn past_the_log(&self, op: &Op, may: impl FnOnce(&State) -> Result<(), VolumeError>) -> Result<(), VolumeError> {
        let (start, end) = op.range();
        let mut state = self.lock();
        may(&state)?;
        state.begin(Use::PastTheLog);
        state.under_way += 1;
        state.loose = state.loose.saturating_add(usize::try_from(end - start).unwrap_or(usize::MAX));
        let begun = state.unsynced.begin(start, end);
        let marks = state.marks.clone();
        drop(state);
        let written = self.put(op, &marks);
        let mut state = self.lock();
        state.under_way -= 1;
        state.end(Use::PastTheLog);
        state.unsynced.done(&begun, written.is_ok());
        state.written(op);
        drop(state);
        self.done.notify_all();
        self.work.notify_one();
        written
    }

    /// Makes durable what is in the image.
    fn flush(&self) -> Result<(), VolumeError> {
        let mut noted = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        state.unsynced.flush_begins();
        let loose = std::mem::take(&mut state.loose);
        let dirty = std::mem::take(&mut state.dirty);
        state.begin(Use::Flush);
        state.flushing = Some(Instant::now());
        drop(state);
        // First what may be much, in steps: so the disk is seen to get on, however much there is.
        let written_out = self.image.write_out(&mut dirty.steps(STEP, FEW_PLACES), &mut || self.lock().gets_on());
        let flushed = written_out.and_then(|()| self.image.flush());
        let mut state = self.lock();
        if flushed.is_err() && state.unsynced.is_at_stake() {
            // Before anybody hears of it.
            drop(state);
            noted.write();
            state = self.lock();
        }
        let result = match flushed {
            Ok(()) => {
                state.unsynced.flushed();
                if state.unsynced.is_lost() { Err(lost()) } else { Ok(()) }
            }
            Err(error) => {
                state.loose = state.loose.saturating_add(loose);
                state.unsynced.flush_failed();
                state.dirty.put_all(&dirty);
                state.dirty.widen(self.image.size());
                // What the log has can be written again.
                state.redo |= state.log_used.is_some();
                Err(error)
            }
        };
        let (is_lost, is_safe) = (state.unsynced.is_lost(), state.unsynced.is_safe());
        drop(state);
        // Nothing becomes lost meanwhile, unless a write is under way that was before a flush failed: then it is not safe.
        if is_lost {
            noted.write();
        } else if is_safe && result.is_ok() {
            noted.remove();
        }
        let mut state = self.lock();
        state.end(Use::Flush);
        state.flushing = None;
        drop(state);
        result
    }

    /// The same, if there is anything that was written past the log.
    fn settle(&self) -> Result<(), VolumeError> {
        let state = self.lock();
        let (pending, is_lost) = (state.unsynced.is_pending(), state.unsynced.is_lost());
        drop(state);
        if pending || is_lost { self.flush() } else { Ok(()) }
    }

    /// Marks, then writes.
    fn put(&self, op: &Op, marks: &[Arc<dyn Mark>]) -> Result<(), VolumeError> {
        let (start, end) = op.range();
        marks.iter().for_each(|m| m.before(start, end - start));
        let written = log::apply(op, &*self.image);
        self.dirties(start, end);
        written
    }

    /// These bytes have been written into the image, or a part of them.
    fn dirties(&self, start: u64, end: u64) {
        let mut state = self.lock();
        state.dirty.put(start, end);
        state.dirty.widen(self.image.size());
    }

    /// Notes what the guest is refused.
    fn refuse(&self, error: &VolumeError) {
        self.lock().refused = Some((Failure::of(error), Instant::now()));
    }
}

/// The thread that brings what is committed into log and image.
struct Applier<'a> {
    shared: &'a Shared,
    log: WriteLog,
}

/// What an applier does next.
enum Next {
    /// Into the log: these, up to this number and epoch.
    Log(Vec<Arc<Batch>>, u64, Epoch),
    /// The oldest, which is in the log or is plain, into the image.
    Apply {
        number: u64,
        batch: Arc<Batch>,
        plain: bool,
    },
    /// The image is made durable, the log emptied.
    Flush,
    /// What has gone past the log is made durable in the image.
    Sync,
    /// That the image may be behind is noted.
    NoteBehind,
    /// It is not, if what is in it is durable: the note goes.
    CaughtUp,
    Wait(Duration),
    End,
}

impl Applier<'_> {
    fn run(mut self) {
        let mut state = self.shared.lock();
        loop {
            if state.mode == Mode::Through {
                state.seal_open(true);
            }
            let next = self.next(&state);
            if !matches!(next, Next::Wait(_) | Next::End) {
                state.begin(Use::Applier);
            }
            match next {
                Next::Log(batches, number, epoch) => {
                    state.log_used.get_or_insert_with(Instant::now);
                    drop(state);
                    // What follows rests on what was written past the log: that is to be durable first.
                    let settled = self.shared.settle();
                    let mut gets_on = || self.shared.lock().gets_on();
                    let all = batches.iter().map(|batch| &**batch);
                    let logged = settled.and_then(|()| self.log.append(all, &mut gets_on));
                    state = self.shared.lock();
                    if let Err(error) = logged {
                        if is_lost_alone(&error) && state.is_alone() {
                            // The image is no state of the volume as it is: no order could be kept. To write on is the only
                            // way to mend it.
                            let logged = state.logged;
                            let due = state.queue.iter_mut().filter(|s| s.committed && s.number > logged);
                            due.for_each(|s| s.plain = true);
                            if self.log.is_empty() {
                                state.log_used = None;
                            }
                            state.end(Use::Applier);
                        } else {
                            state = self.failed(state, &error);
                        }
                        continue;
                    }
                    state.failure = None;
                    state.logged = number;
                    let rest = state.queue.iter().any(|s| s.committed && s.number > number);
                    state.waiting = rest.then(Instant::now);
                    state.hurry &= rest;
                    if let Some(tell) = &state.on_durable {
                        tell(epoch);
                    }
                    let due: Vec<_> = state.when_durable.extract_if(.., |(wanted, _)| *wanted <= number).collect();
                    if !due.is_empty() {
                        self.shared.done.notify_all();
                        drop(state);
                        due.into_iter().for_each(|(_, act)| act());
                        state = self.shared.lock();
                    }
                }
                Next::Apply { number, batch, plain } => {
                    let marks = state.marks.clone();
                    drop(state);
                    // A discard can be long: who saves what it takes away (see [`Mark::before`]) reads no more than a piece of it at once.
                    let pieces = batch.ops().iter().flat_map(|op| op.pieces(PIECE));
                    let applied = pieces.into_iter().try_for_each(|op| {
                        // A disk that gets on does not hang, however much there is.
                        self.shared.lock().at_work[Use::Applier as usize].gets_on();
                        if plain { self.shared.past_the_log(&op, |_| Ok(())) } else { self.shared.put(&op, &marks) }
                    });
                    let applied = applied.and_then(|()| point("apply.done"));
                    state = self.shared.lock();
                    // Before it leaves the queue: who looks at that first and then at what was marked misses nothing.
                    batch.ops().iter().for_each(|op| state.written(op));
                    if let Err(error) = applied {
                        state = self.failed(state, &error);
                        continue;
                    }
                    state.failure = None;
                    // Nobody else takes from the queue's front, and what is committed stays.
                    state.queue.pop_front();
                    state.overlay.remove(&batch, number);
                    state.held = state.held.saturating_sub(batch.bytes());
                    self.shared.budget.give(batch.bytes());
                }
                Next::Flush => {
                    drop(state);
                    let flushed = self.flush();
                    state = self.shared.lock();
                    let again = match flushed {
                        Ok(again) => again,
                        Err(error) => {
                            state.redo = true;
                            state = self.failed(state, &error);
                            continue;
                        }
                    };
                    if again {
                        // What the kernel had forgotten may have been read meanwhile, and may have been anything.
                        let all = self.shared.image.size();
                        state.marks.iter().for_each(|m| m.after(0, all));
                    }
                    state.failure = None;
                    state.log_used = None;
                    state.settling = false;
                }
                Next::Sync => {
                    let (asked, wanted) = (state.flush_asked, state.wants_flush());
                    drop(state);
                    let synced = self.shared.settle();
                    state = self.shared.lock();
                    if wanted {
                        let failure = synced.as_ref().err().map(Failure::of);
                        // One that failed before is not forgotten by another that fails: who asked for it may not have looked yet.
                        let first =
                            state.flush_failed.as_ref().map_or(state.flush_done + 1, |(which, _)| *which.start());
                        state.flush_failed = failure.map(|failure| (first..=asked, failure));
                        state.flush_done = asked;
                    }
                    // What has been lost is told to whoever flushes, or rests on it.
                    state.sync = false;
                    state.settling &= state.log_used.is_some() || state.queue.iter().any(|s| s.committed);
                }
                Next::NoteBehind => state = self.note_behind(state, true),
                Next::CaughtUp => {
                    drop(state);
                    let settled = self.shared.settle();
                    state = self.shared.lock();
                    // Somebody may have begun to hold the volume meanwhile.
                    if settled.is_err() {
                        state.behind.done(false, &Err(std::io::ErrorKind::Other.into()));
                    } else if state.behind.due(state.has_all(), state.ending) == Due::Remove {
                        state = self.note_behind(state, false);
                    }
                }
                Next::Wait(time) => {
                    state = self.shared.work.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
                Next::End => return,
            }
            state.end(Use::Applier);
            state.tell_calm();
            self.shared.done.notify_all();
        }
    }

    fn next(&self, state: &State) -> Next {
        if state.ending && state.failure.is_some() {
            // What is in the log is not lost; the rest goes with this process.
            return Next::End;
        }
        // Before all else: it is waited for, and rests on nothing.
        let behind = state.behind.due(state.has_all(), state.ending);
        if behind == Due::Write {
            return Next::NoteBehind;
        }
        let mut wait = match behind {
            Due::In(left) => left,
            _ => Duration::from_secs(3600),
        };
        if state.under_way > 0 || state.direct > 0 {
            // What is under way must not land on what comes after it.
            return Next::Wait(wait);
        }
        let settle = state.settling || state.ending || state.mode == Mode::Through;
        let front = state.queue.front().filter(|s| s.committed && (s.plain || s.number <= state.logged));
        if front.is_some_and(|s| s.plain) && state.log_used.is_some() {
            // It needs no log; but what is in there would be written over it after a crash.
            return Next::Flush;
        }
        let apply = front.map(|s| Next::Apply { number: s.number, batch: Arc::clone(&s.batch), plain: s.plain });
        // What is in the log goes on into the image however much comes after it.
        let long = self.log.len() >= LONG_LOG;
        match apply {
            Some(apply) if long || state.held > 2 * GATHER_BYTES => return apply,
            None if long && state.log_used.is_some() => return Next::Flush,
            _ => {}
        }
        let fresh: Vec<&Sealed> =
            state.queue.iter().take_while(|s| s.committed && !s.plain).filter(|s| s.number > state.logged).collect();
        if !fresh.is_empty() {
            let bytes: usize = fresh.iter().map(|s| s.batch.bytes()).sum();
            let waited = state.waiting.map_or(GATHER, |since| since.elapsed());
            if state.hurry
                || settle
                || self.shared.acknowledge == Acknowledge::Disk
                || bytes >= GATHER_BYTES
                || waited >= GATHER
            {
                // As much as a slow disk takes in a moment: it must not look as if it hung.
                let mut bytes = 0;
                let some = fresh.iter().take_while(|s| {
                    let before = bytes;
                    bytes += s.batch.bytes();
                    before < GATHER_BYTES
                });
                let some: Vec<_> = some.collect();
                let Some(last) = some.last() else { return Next::Wait(GATHER) };
                let (number, epoch) = (last.number, last.epoch);
                return Next::Log(some.into_iter().map(|s| Arc::clone(&s.batch)).collect(), number, epoch);
            }
            wait = GATHER - waited;
        }
        if let Some(apply) = apply {
            return apply;
        }
        if let Some(since) = state.log_used {
            let age = since.elapsed();
            // What is committed has gone first: one flush does for all of it.
            if settle || age >= FLUSH_EVERY {
                return Next::Flush;
            }
            wait = wait.min(FLUSH_EVERY - age);
        }
        let sync = state.unsynced.is_pending() && (state.sync || state.settling);
        if sync || state.wants_flush() {
            return Next::Sync;
        }
        if behind == Due::Remove && !state.braced {
            return Next::CaughtUp;
        }
        if state.ending { Next::End } else { Next::Wait(wait.max(Duration::from_millis(1))) }
    }

    /// Writes the note that the image may be behind, or removes it.
    fn note_behind<'b>(&'b self, mut state: MutexGuard<'b, State>, write: bool) -> MutexGuard<'b, State> {
        let (Some(note), text) = (state.behind.note(), state.behind.text()) else { return state };
        state.behind.begins();
        let failed_before = state.behind.has_failed();
        drop(state);
        let done = if write { note.write(&text) } else { note.remove() };
        if let Err(error) = done.as_ref()
            && !failed_before
        {
            let what = if write { "written" } else { "removed" };
            tracing::error!(%error, "the note that a volume may be behind what clients were told cannot be {what}");
        }
        state = self.shared.lock();
        state.behind.done(write, &done);
        state
    }

    /// Makes the image durable and empties the log; answers whether it had to write all of it again.
    fn flush(&mut self) -> Result<bool, VolumeError> {
        point("image.flush")?;
        let again = Again(self.shared);
        if std::mem::take(&mut self.shared.lock().redo) {
            return self.log.recover(&again).map(|_| true);
        }
        again.flush()?;
        self.log.clear()?;
        Ok(false)
    }

    /// Notes a failure and waits before the next attempt.
    fn failed<'b>(&'b self, mut state: MutexGuard<'b, State>, error: &VolumeError) -> MutexGuard<'b, State> {
        let failure = Failure::of(error);
        state.end(Use::Applier);
        if state.failure.as_ref() != Some(&failure) {
            tracing::error!(error = %failure.reason, "a volume cannot be written");
        }
        state.failure = Some(failure);
        self.shared.done.notify_all();
        // Whatever wakes it meanwhile: a disk that fails is not tried more often than this.
        let until = Instant::now() + RETRY;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|_| !state.ending) {
            state = self.shared.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }
}

fn point(name: &str) -> Result<(), VolumeError> {
    ninefold_fault::point(name).map_err(|source| VolumeError::Io { what: "cannot write the image", source })
}
