//! Full segments into the base.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::base::Base;
use super::chain::Chain;
use super::error::LogError;
use super::head::Head;
use super::segment::name;
use crate::storage::Storage;

/// What the writer of a log and its folder know of each other.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Held by who replaces the head: the folder, and the writer when it goes on with the log for another session.
    head: Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// Segments that get nothing more, oldest first.
    closed: Vec<Closed>,
    /// The last durable commit.
    last: u64,
    /// The volumes' images hold the operations of all commits up to this one, durably.
    images: u64,
    /// Why the folder cannot go on, while it cannot.
    failure: Option<String>,
    ending: bool,
}

#[derive(Debug, Clone, Copy)]
struct Closed {
    number: u64,
    last: u64,
    bytes: u64,
}

impl Shared {
    /// For a log whose last commit is `last`. `images` is as for [`Shared::images_hold`]; `u64::MAX` for a VM without volumes.
    pub(super) fn new(last: u64, images: u64) -> Arc<Self> {
        let state = State { closed: Vec::new(), last, images, failure: None, ending: false };
        Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), head: Mutex::default() })
    }

    /// Replaces the head by what `change` makes of it; answers that. Durable when this returns.
    ///
    /// # Errors
    /// `Damaged`, `Storage`: the one before is still there.
    pub(super) fn change_head(
        &self,
        storage: &dyn Storage,
        change: impl FnOnce(Head) -> Head,
    ) -> Result<Head, LogError> {
        let _one = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        let head = change(Head::load(storage)?);
        head.store(storage)?;
        Ok(head)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn close(&self, number: u64, last: u64, bytes: u64) {
        self.lock().closed.push(Closed { number, last, bytes });
        self.changed.notify_all();
    }

    pub(super) fn committed(&self, last: u64) {
        let mut state = self.lock();
        state.last = last;
        // A full segment can be folded once a later commit is durable.
        if !state.closed.is_empty() {
            self.changed.notify_all();
        }
    }

    /// Bytes of the closed segments.
    pub(super) fn closed_bytes(&self) -> u64 {
        self.lock().closed.iter().map(|c| c.bytes).sum()
    }

    /// This commit has no operations on volumes: the images have it once they have what was before.
    pub(super) fn has_none(&self, commit: u64) {
        let mut state = self.lock();
        if state.images >= commit - 1 {
            state.images = state.images.max(commit);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Bytes that wait for the folder: [`Log::begin`](super::Log::begin) begins no commit while they are more than the log's limit.
    pub fn waiting_bytes(&self) -> u64 {
        self.lock().waiting()
    }

    /// The volumes' images now hold the operations of all commits up to this one, durably: their segments may go.
    pub fn images_hold(&self, commit: u64) {
        let mut state = self.lock();
        state.images = state.images.max(commit);
        self.changed.notify_all();
    }

    /// Why the folder cannot go on, while it cannot.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// Waits until at most `bytes` wait for the folder, or for `limit`; answers whether that is so.
    pub fn wait_shorter(&self, bytes: u64, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if state.waiting() <= bytes {
                return true;
            }
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return false;
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends [`Folder::run`].
    pub fn end(&self) {
        self.lock().ending = true;
        self.changed.notify_all();
    }
}

impl State {
    /// Bytes of the segments behind which there is a durable commit: the others cannot be folded yet, whatever anybody does.
    fn waiting(&self) -> u64 {
        self.closed.iter().filter(|c| c.last < self.last).map(|c| c.bytes).sum()
    }

    /// The segment that can be folded.
    fn due(&self) -> Option<Closed> {
        self.closed.first().copied().filter(|c| c.last <= self.images && c.last < self.last)
    }
}

/// Folds the full segments of one log.
#[derive(Debug)]
pub struct Folder {
    storage: Arc<dyn Storage>,
    shared: Arc<Shared>,
    head: Head,
    base: Base,
}

impl Folder {
    pub(super) fn open(storage: Arc<dyn Storage>, shared: Arc<Shared>) -> Result<Self, LogError> {
        let head = Head::load(&*storage)?;
        let base = Base::open(&*storage, &head.hello.layout)?;
        Ok(Self { storage, shared, head, base })
    }

    /// Folds one segment, if one can be: puts its pages into the base, notes that in the head, removes it. Answers whether it
    /// did.
    ///
    /// # Errors
    /// `Damaged`, `Storage`. It can be tried again: what is half-done is covered by the segment, which is still there.
    pub fn fold(&mut self) -> Result<bool, LogError> {
        let (due, durable) = {
            let state = self.shared.lock();
            (state.due(), state.last)
        };
        let Some(due) = due else { return Ok(false) };
        let chain = Chain::new(&self.storage, &self.head);
        let extent = chain.segment(due.number, self.head.base + 1, &mut self.base, &mut |_, _| Ok(()))?;
        if extent.last != Some(due.last) {
            let what = format!("it holds no commit {}", extent.last.map_or(self.head.base, |n| n) + 1);
            return Err(LogError::damaged(name(due.number), what));
        }
        self.base.sync()?;
        self.head = self.shared.change_head(&*self.storage, |head| Head {
            base: due.last,
            first: due.number + 1,
            durable,
            ..head
        })?;
        // From here on nobody needs it; what a crash leaves behind is swept away later.
        self.shared.lock().closed.remove(0);
        self.shared.changed.notify_all();
        let name = name(due.number);
        self.storage.remove(&name).map_err(LogError::storage("cannot remove", name))?;
        Ok(true)
    }

    /// Folds until [`Shared::end`]. What fails is tried again every `retry`.
    pub fn run(mut self, retry: Duration) {
        loop {
            let folded = self.fold();
            let shared = Arc::clone(&self.shared);
            let mut state = shared.lock();
            if state.ending {
                return;
            }
            match folded {
                Ok(folded) => {
                    state.failure = None;
                    if !folded && state.due().is_none() {
                        drop(shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
                    }
                }
                Err(error) => {
                    let why = report(&error);
                    if state.failure.as_ref() != Some(&why) {
                        tracing::error!(error = %why, "the log's base cannot be brought up to date");
                    }
                    state.failure = Some(why);
                    drop(shared.changed.wait_timeout(state, retry).unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }
}

fn report(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
