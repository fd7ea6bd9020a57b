//! A volume as a keeper serves it to its QEMU: an image, and over it what must not reach the image yet.
//!
//! ```text
//!   QEMU ──NBD──► write ─┬─ through ────────────────────────────► image
//!                        └─ held ──► epoch that runs ─seal(n)─► queue ─commit(n)─► applier ──► image
//!                                         │                       │                  ▲
//!   QEMU ◄─NBD─── read ◄──────────────────┴── overlay ────────────┘                  │
//!   checkpoint stream ──► receive(n) ────────────────────────────────────────────────┘
//! ```
//!
//! * **Closed**: no VM of this host may write here; a QEMU that is being ended gets errors, a standby's may read.
//! * **Through**: the VM is unprotected. A write is in the image when it is answered, a flush makes it durable.
//! * **Held**: the VM is protected. What the guest does is kept in memory and answered at once; an epoch's operations go to
//!   the backup with its checkpoint and into the image when the backup has acknowledged them. A flush is answered at once
//!   too: all that could tell anybody of it is output, and output waits for the same acknowledgement.
//!
//! So **an image never holds an uncommitted write**, on either host. A former primary has nothing to undo, a backup that
//! takes over serves its QEMU at once, with what is committed and not yet applied in the overlay.
//!
//! # Memory
//!
//! What is held is bounded by the guest's own requests and time: over [`SOFT`] a checkpoint is asked for
//! ([`Served::pressure`]) and every further byte is delayed, so that no more than about 50 MB/s come in on top of it. A
//! delay never waits for anything but a clock: QEMU's `stop` waits for outstanding requests, and the checkpoint that
//! would relieve the pressure waits for `stop`.
//!
//! # Errors
//!
//! When the image cannot be written in *through*, the guest gets the error. When it cannot be written by the applier,
//! nothing is dropped: reads stay right, [`Served::failure`] says why, and the applier tries again every second.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_model::Epoch;
use ninefold_model::spec::Acknowledge;

use crate::batch::{Batch, Op};
use crate::error::VolumeError;
use crate::image::{Image, check_bounds};
use crate::nbd::Handler;
use crate::overlay::Overlay;

/// Held bytes over which a checkpoint is wanted and writes are slowed down.
pub const SOFT: usize = 64 << 20;
/// Seconds that a byte over [`SOFT`] is delayed: 50 MB/s.
const DELAY: f64 = 20e-9;
/// Applied writes are made durable at least this often.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// An applier that failed waits this long.
const RETRY: Duration = Duration::from_secs(1);

/// Hears of writes before they reach the image.
pub trait Mark: Send + Sync {
    /// `length` bytes from `at` on are about to be written to the image.
    fn mark(&self, at: u64, length: u64);
}

/// Hears that the writes of all epochs up to this one are in the image and durable.
pub type OnDurable = Box<dyn Fn(Epoch) + Send>;

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
}

struct State {
    mode: Mode,
    open: Batch,
    /// The number that the open batch will have.
    number: u64,
    queue: VecDeque<Sealed>,
    overlay: Overlay,
    held: usize,
    failure: Option<String>,
    /// Applied and not yet durable: the last epoch, and since when.
    undurable: Option<(Epoch, Instant)>,
    /// Somebody waits for durability now.
    hurry: bool,
    marks: Vec<Arc<dyn Mark>>,
    on_durable: Option<OnDurable>,
    ending: bool,
}

struct Shared {
    image: Box<dyn Image>,
    acknowledge: Acknowledge,
    state: Mutex<State>,
    /// For the applier: there is something to do.
    work: Condvar,
    /// For those who wait for the queue to become shorter.
    done: Condvar,
}

/// See the [module](self). Dropping it applies what is committed, makes it durable and ends the applier; an image that
/// cannot be written then stays behind.
pub struct Served {
    shared: Arc<Shared>,
    applier: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("image", &self.shared.image).finish_non_exhaustive()
    }
}

impl Served {
    /// Serves `image`, closed.
    ///
    /// # Errors
    /// No more threads.
    pub fn new(image: Box<dyn Image>, acknowledge: Acknowledge) -> Result<Self, VolumeError> {
        let shared = Arc::new(Shared {
            image,
            acknowledge,
            state: Mutex::new(State {
                mode: Mode::Closed,
                open: Batch::default(),
                number: 1,
                queue: VecDeque::new(),
                overlay: Overlay::default(),
                held: 0,
                failure: None,
                undurable: None,
                hurry: false,
                marks: Vec::new(),
                on_durable: None,
                ending: false,
            }),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let its = Arc::clone(&shared);
        let applier = std::thread::Builder::new()
            .name("applier".into())
            .spawn(move || its.run())
            .map_err(|source| VolumeError::Io { what: "cannot start a thread for a volume", source })?;
        Ok(Self { shared, applier: Some(applier) })
    }

    /// Its size, bytes.
    pub fn size(&self) -> u64 {
        self.shared.image.size()
    }

    /// What backups' acknowledgements mean for it.
    pub fn acknowledge(&self) -> Acknowledge {
        self.shared.acknowledge
    }

    /// From now on what the guest does waits for its epoch. The guest is stopped, so that nothing is under way.
    pub fn hold(&self) {
        self.shared.lock().mode = Mode::Held;
    }

    /// Ends the epoch that runs: what the guest has done since the last time is epoch `epoch`, and what it does from now on
    /// is held. The guest is stopped. Does no I/O and copies nothing.
    pub fn seal(&self, epoch: Epoch) -> Arc<Batch> {
        let mut state = self.shared.lock();
        // Before anything is in the queue: a flush that goes through would wait for it to be committed.
        state.mode = Mode::Held;
        let batch = Arc::new(std::mem::take(&mut state.open));
        let number = state.number;
        state.number += 1;
        state.queue.push_back(Sealed { epoch, number, batch: Arc::clone(&batch), committed: false });
        batch
    }

    /// A backup holds all epochs up to `epoch`: they may reach the image.
    pub fn commit(&self, epoch: Epoch) {
        let mut state = self.shared.lock();
        for sealed in state.queue.iter_mut().filter(|s| s.epoch <= epoch) {
            sealed.committed = true;
        }
        drop(state);
        self.shared.work.notify_one();
    }

    /// The VM goes on alone, here: all that is held is what the VM did, and from now on writes go through. The guest may be
    /// running.
    pub fn go_through(&self) {
        let mut state = self.shared.lock();
        state.queue.iter_mut().for_each(|sealed| sealed.committed = true);
        if !state.open.is_empty() {
            let batch = Arc::new(std::mem::take(&mut state.open));
            let (number, epoch) = (state.number, state.queue.back().map_or(Epoch(0), |s| s.epoch));
            state.number += 1;
            state.queue.push_back(Sealed { epoch, number, batch, committed: true });
        }
        state.mode = Mode::Through;
        drop(state);
        self.shared.work.notify_one();
    }

    /// The VM is not this host's any more: what is not committed is forgotten, and its QEMU, which may still be running,
    /// writes no more. What is committed is still applied.
    pub fn discard(&self) {
        let mut state = self.shared.lock();
        state.open = Batch::default();
        state.queue.retain(|sealed| sealed.committed);
        state.overlay = Overlay::default();
        let State { queue, overlay, .. } = &mut *state;
        for sealed in queue.iter() {
            sealed.batch.ops().iter().for_each(|op| overlay.put(op, sealed.number));
        }
        state.held = state.queue.iter().map(|s| s.batch.bytes()).sum();
        state.mode = Mode::Closed;
    }

    /// A backup's side: epoch `epoch` is here, whole.
    pub fn receive(&self, epoch: Epoch, batch: Batch) {
        let mut state = self.shared.lock();
        let number = state.number;
        state.number += 1;
        state.held += batch.bytes();
        batch.ops().iter().for_each(|op| state.overlay.put(op, number));
        state.queue.push_back(Sealed { epoch, number, batch: Arc::new(batch), committed: true });
        drop(state);
        self.shared.work.notify_one();
    }

    /// Writes a block of a resync into the image, at once. The image is not a volume of anybody's meanwhile.
    ///
    /// # Errors
    /// Those of the image.
    pub fn apply(&self, batch: &Batch) -> Result<(), VolumeError> {
        let marks = self.shared.lock().marks.clone();
        batch.ops().iter().try_for_each(|op| self.shared.put(op, &marks))
    }

    /// Waits until all committed writes up to `epoch` are applied and durable, or until `limit`.
    ///
    /// # Errors
    /// `Io`: it takes too long, or the image cannot be written.
    pub fn wait_durable(&self, epoch: Epoch, limit: Duration) -> Result<(), VolumeError> {
        let until = Instant::now() + limit;
        let mut state = self.shared.lock();
        loop {
            let waiting = state.queue.iter().any(|s| s.committed && s.epoch <= epoch);
            if !waiting && state.undurable.is_none() {
                return Ok(());
            }
            state.hurry = true;
            self.shared.work.notify_one();
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                let why = state.failure.clone().unwrap_or_else(|| "it takes too long".into());
                return Err(VolumeError::Io { what: "writes are not durable", source: std::io::Error::other(why) });
            };
            state = self.shared.done.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether a checkpoint should be taken for the memory's sake.
    pub fn pressure(&self) -> bool {
        self.shared.lock().held > SOFT
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.shared.lock().held
    }

    /// Why the applier cannot write the image, while it cannot.
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }

    /// `mark` hears of writes before they reach the image, from now on.
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
            shared.image.read(at, into)?;
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
        if state.mode == Mode::Held {
            let number = state.number;
            state.overlay.put(&op, number);
            let before = state.open.bytes();
            state.open.push(op);
            state.held += state.open.bytes() - before;
            let over = state.held.saturating_sub(SOFT);
            drop(state);
            if over > 0 {
                std::thread::sleep(Duration::from_secs_f64((end - start) as f64 * DELAY));
            }
            return Ok(());
        }
        if state.mode == Mode::Closed {
            let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(VolumeError::Io { what: "the VM is not this host's", source });
        }
        // What was held when the VM was protected comes first.
        while !state.queue.is_empty() && !state.ending {
            if let Some(failure) = &state.failure {
                let source = std::io::Error::other(failure.clone());
                return Err(VolumeError::Io { what: "the image cannot be written", source });
            }
            state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let marks = state.marks.clone();
        drop(state);
        shared.put(&op, &marks)?;
        if durable { shared.image.flush() } else { Ok(()) }
    }
}

impl Handler for Served {
    fn size(&self) -> u64 {
        Served::size(self)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        Served::read(self, at, into)
    }

    fn write(&self, at: u64, bytes: Vec<u8>, fua: bool) -> Result<(), VolumeError> {
        self.put(Op::Write { at, data: bytes.into() }, fua)
    }

    fn zero(&self, at: u64, length: u64, unmap: bool, fua: bool) -> Result<(), VolumeError> {
        self.put(Op::Zero { at, length, unmap }, fua)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        if state.mode != Mode::Through {
            return Ok(());
        }
        while !state.queue.is_empty() && state.failure.is_none() && !state.ending {
            state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        shared.image.flush()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_one();
        self.shared.done.notify_all();
        if let Some(applier) = self.applier.take()
            && applier.join().is_err()
        {
            tracing::error!("a volume's applier had panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks, then writes.
    fn put(&self, op: &Op, marks: &[Arc<dyn Mark>]) -> Result<(), VolumeError> {
        let (start, end) = op.range();
        marks.iter().for_each(|m| m.mark(start, end - start));
        op.apply(&*self.image)
    }

    /// The applier.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            if state.ending {
                // What is committed is this image's own; the rest never gets there.
                let nothing_left = state.queue.front().is_none_or(|s| !s.committed) && state.undurable.is_none();
                if nothing_left || state.failure.is_some() {
                    break;
                }
            }
            if let Some(sealed) = state.queue.front().filter(|s| s.committed) {
                let (epoch, number, batch) = (sealed.epoch, sealed.number, Arc::clone(&sealed.batch));
                let marks = state.marks.clone();
                drop(state);
                let applied = batch.ops().iter().try_for_each(|op| self.put(op, &marks));
                state = self.lock();
                match applied {
                    Ok(()) => {
                        state.failure = None;
                        // Nobody else takes from the queue's front, and what is committed stays.
                        state.queue.pop_front();
                        state.overlay.remove(&batch, number);
                        state.held = state.held.saturating_sub(batch.bytes());
                        let since = state.undurable.map_or_else(Instant::now, |(_, since)| since);
                        state.undurable = Some((epoch, since));
                        self.done.notify_all();
                    }
                    Err(error) => {
                        state = self.failed(state, &error);
                        continue;
                    }
                }
                // More may be committed; one flush then does for all of it.
                if state.queue.front().is_some_and(|s| s.committed) {
                    continue;
                }
            }
            let due = state.undurable.is_some_and(|(_, since)| {
                state.hurry || state.ending || self.acknowledge == Acknowledge::Disk || since.elapsed() >= FLUSH_EVERY
            });
            if let (true, Some((epoch, _))) = (due, state.undurable) {
                drop(state);
                let flushed = self.image.flush();
                state = self.lock();
                match flushed {
                    Ok(()) => {
                        // Only what had been applied before the flush; the applier is this thread, so that is all.
                        state.failure = None;
                        state.undurable = None;
                        state.hurry = false;
                        if let Some(tell) = &state.on_durable {
                            tell(epoch);
                        }
                        self.done.notify_all();
                    }
                    Err(error) => state = self.failed(state, &error),
                }
                continue;
            }
            if state.ending {
                continue;
            }
            let wait = state.undurable.map_or(Duration::from_secs(3600), |(_, since)| {
                FLUSH_EVERY.saturating_sub(since.elapsed()).max(Duration::from_millis(1))
            });
            state = self.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes a failure and waits before the next attempt.
    fn failed<'a>(&'a self, mut state: MutexGuard<'a, State>, error: &VolumeError) -> MutexGuard<'a, State> {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            why = format!("{why}: {cause}");
            source = cause.source();
        }
        if state.failure.as_ref() != Some(&why) {
            tracing::error!(error = %why, "a volume cannot be written");
        }
        state.failure = Some(why);
        self.done.notify_all();
        self.work.wait_timeout(state, RETRY).unwrap_or_else(PoisonError::into_inner).0
    }
}
