//! The guest's memory as it was at one moment, while the guest goes on.
//!
//! ```text
//!   hold (the guest stands still, every page is trapped) ──► next, next, … : each page once ──► dropped
//!              │ a trapped write: the old content is kept here, then the writer goes on
//! ```
//!
//! What is kept has a bound. When the reader does not take it away, trapped writers wait for room, and when they have waited for
//! too long in all ([`super::patience`]), the moment is given up: the guest is more than a copy of it.
//!
//! A snapshot reads all of the memory. A checkpoint that has much to copy reads some of it, see [`Moment::of_pages`].

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::PageRun;
use super::page_set::PageSet;
use super::patience::Patience;
use crate::blocks::PAGE_SIZE;
use crate::error::{MachineError, Result};
use crate::ram::Ram;

/// Pages that the reader gets at once, at most: 1 MiB.
const CHUNK: u64 = 256;
/// How many such are kept at most: 64 MiB.
const CHUNKS: usize = 64;
/// Pages for which there is room.
#[cfg(test)]
pub(super) const ROOM: u64 = CHUNK * CHUNKS as u64;
/// Pages that one trapped write keeps at most, so that it does not take long.
pub(super) const KEPT_AT_ONCE: u64 = 64;
/// Pages that are looked through at most while the lock is held: 64 MiB of memory, 2 KiB of the set.
const LOOK: u64 = 16_384;

/// Pages with their contents.
#[derive(Debug, Default)]
pub struct Pages {
    /// Of the guest's memory, in any order.
    pub runs: Vec<PageRun>,
    /// Their contents, one behind the other.
    pub bytes: Vec<u8>,
}

/// See the [module](self). Dropping it lets the guest's writes go unheeded again.
#[derive(Debug)]
pub struct Moment(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    ram: Arc<Ram>,
    state: Mutex<State>,
    /// The stage is `Over`: the pause asks, and waits for no lock that an ordinary thread has.
    over: AtomicBool,
    /// An eventfd that those who wait for room look at: written when there is some, and when the moment is over.
    room: OnceLock<Arc<OwnedFd>>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// Pages that nobody has read or kept. They are as they were.
    pending: PageSet,
    /// All that is pending is at or behind this page.
    at: u64,
    /// Pages that the memory's file has, and the first of them behind `at` unless `at` is behind them.
    used: Range<u64>,
    kept: VecDeque<Kept>,
    /// The reader's former buffers, to be filled again.
    spare: Option<Kept>,
    patience: Patience,
}

#[derive(Debug)]
enum Stage {
    /// The moment has not come.
    Before,
    Held,
    /// Nobody reads it any more, or it cannot be read: why.
    Over(End),
}

/// Why a moment is over.
#[derive(Debug)]
pub(super) enum End {
    /// Its reader has gone.
    GivenUp,
    /// Its reader is too slow.
    GuestWaits,
    /// Nobody follows the guest's writes any more.
    Untracked,
    /// It has come, and so many of so many regions are not trapped.
    Untrapped { hot: u64, regions: u64 },
    /// It has come, and memory is not divided into regions.
    Undivided,
    /// It has come, and another one is held.
    Another,
    /// It has come, and something has failed: what.
    Failed(&'static str, io::Error),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::GivenUp => f.write_str("it was given up"),
            End::GuestWaits => {
                f.write_str("the guest would have to wait: what it writes over is not taken away fast enough")
            }
            End::Untracked => f.write_str("the VM runs here no more"),
            End::Untrapped { hot, regions } => {
                write!(f, "not all of the memory is watched: {hot} of {regions} regions are not")
            }
            End::Undivided => f.write_str("the memory cannot be watched page by page here"),
            End::Another => f.write_str("another one is being read"),
            End::Failed(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

#[derive(Debug, Default)]
struct Kept {
    pages: Vec<u64>,
    bytes: Vec<u8>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock leaves sets of pages, which are whole at any time.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody needs it any more.
    pub(super) fn over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Whether some of these pages are still to be read from memory, or it cannot be said without a wait.
    pub(super) fn pends(&self, first: u64, end: u64) -> bool {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return true,
        };
        matches!(state.stage, Stage::Held) && state.pending.next_run_before(first, end).is_some()
    }

    /// From now on it counts: the guest stands still, and every page is trapped. `room` is an eventfd that those who are to wait
    /// for room look at.
    pub(super) fn hold(&self, room: &Arc<OwnedFd>) {
        let mut state = self.lock();
        if matches!(state.stage, Stage::Before) {
            let _ = self.room.set(Arc::clone(room));
            state.stage = Stage::Held;
        }
    }

    /// Nobody waits for room from now on, and nothing is kept.
    pub(super) fn end(&self, why: End) {
        let mut state = self.lock();
        if matches!(state.stage, Stage::Over(_)) {
            return;
        }
        state.stage = Stage::Over(why);
        state.patience.stop(Instant::now());
        let kept = std::mem::take(&mut state.kept);
        let rest = (state.spare.take(), std::mem::replace(&mut state.pending, PageSet::empty(0)));
        self.over.store(true, Ordering::Release);
        drop(state);
        self.ring();
        // Up to 64 MiB, which nobody has to wait for.
        drop((kept, rest));
    }

    /// Wakes those who wait for room.
    fn ring(&self) {
        if let Some(room) = self.room.get() {
            // Fails only if it was written 2^64 times and not looked at.
            let _ = rustix::io::write(room, &1_u64.to_ne_bytes());
        }
    }

    /// Keeps what these pages hold, before they are opened to a writer. Answers the page behind the last that may be opened: `end` if
    /// there is room for all of them, `first` if its writer has to wait.
    pub(super) fn keep(&self, first: u64, end: u64) -> u64 {
        let mut state = self.lock();
        while matches!(state.stage, Stage::Held)
            && let Some((page, behind)) = state.pending.next_run_before(first, end)
        {
            let state = &mut *state;
            if state.kept.back().is_none_or(|last| last.pages.len() as u64 >= CHUNK) {
                if state.kept.len() >= CHUNKS {
                    if page == first {
                        state.patience.wait(Instant::now());
                    }
                    return page;
                }
                let mut next = state.spare.take().unwrap_or_default();
                // At once: growing would double it, and the bound would be none.
                next.pages.reserve_exact(CHUNK as usize);
                next.bytes.reserve_exact(bytes(CHUNK));
                state.kept.push_back(next);
            }
            let Some(last) = state.kept.back_mut() else { return page };
            let behind = behind.min(page + CHUNK - last.pages.len() as u64);
            let at = last.bytes.len();
            last.bytes.resize(at + bytes(behind - page), 0);
            self.ram.read(page * PAGE_SIZE, &mut last.bytes[at..]);
            last.pages.extend(page..behind);
            state.pending.remove(page, behind);
        }
        end
    }

    /// For how long those that wait for room still do so; zero when the moment is over for that. None when nobody waits.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.lock().patience.left(Instant::now())?;
        if left.is_zero() {
            self.end(End::GuestWaits);
        }
        Some(left)
    }

    /// The first pages that the memory's file has, from `page` on. What it has not was never touched, and would be if it were read.
    fn next_in_use(&self, page: u64) -> Result<Range<u64>> {
        let failed = MachineError::os("looking for the memory in use");
        let first = match seek(self.ram.as_fd(), SeekFrom::Data(page * PAGE_SIZE)) {
            Ok(at) => at,
            Err(Errno::NXIO) => return Ok(u64::MAX..u64::MAX),
            Err(error) => return Err(failed(error)),
        };
        let end = seek(self.ram.as_fd(), SeekFrom::Hole(first)).map_err(failed)?;
        Ok(first / PAGE_SIZE..end.div_ceil(PAGE_SIZE))
    }
}

impl Moment {
    /// One that has not come. It comes by [`super::Tracker::hold`].
    pub fn new(ram: &Arc<Ram>) -> Moment {
        Self::with(ram, Patience::default())
    }

    /// One of those pages alone that are [put in](Moment::include) before it comes. All of them are read, also what was never
    /// touched. Its reader copies from memory to memory and is waited for as long as it takes: it would have kept the guest
    /// waiting for all of it otherwise.
    pub fn of_pages(ram: &Arc<Ram>) -> Moment {
        Self::of(ram, PageSet::empty(ram.bytes() / PAGE_SIZE), 0..u64::MAX, Patience::endless())
    }

    /// Puts the pages of the guest's memory among these in. Does not allocate.
    pub fn include(&self, runs: &[PageRun]) {
        let mut state = self.0.lock();
        if matches!(state.stage, Stage::Before) {
            let ours = runs.iter().filter(|run| run.block == 0);
            ours.for_each(|run| state.pending.insert_range(run.first, run.first + u64::from(run.count)));
        }
    }

    pub(super) fn with(ram: &Arc<Ram>, patience: Patience) -> Moment {
        let pages = ram.bytes() / PAGE_SIZE;
        let mut pending = PageSet::empty(pages);
        pending.insert_range(0, pages);
        Self::of(ram, pending, 0..0, patience)
    }

    fn of(ram: &Arc<Ram>, pending: PageSet, used: Range<u64>, patience: Patience) -> Moment {
        let state = State {
            stage: Stage::Before,
            pending,
            at: 0,
            used,
            kept: VecDeque::with_capacity(CHUNKS),
            spare: Some(Kept::default()),
            patience,
        };
        let (state, over) = (Mutex::new(state), AtomicBool::new(false));
        Moment(Arc::new(Shared { ram: Arc::clone(ram), state, over, room: OnceLock::new() }))
    }

    /// For how long, in all, writes of the guest have waited for what they write over to be taken away.
    pub fn waited(&self) -> Duration {
        self.0.lock().patience.total(Instant::now())
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Replaces `out` by further pages, as they were at the moment: each page that was ever touched comes once, others are zero. (Of
    /// a moment of [some pages](Moment::of_pages) each of them comes once.)
    /// False when there are no more.
    ///
    /// # Errors
    /// `Moment` when it is over before all was read, or has not come; `Io`.
    pub fn next(&self, out: &mut Pages) -> Result<bool> {
        let end_of_all = self.0.ram.bytes() / PAGE_SIZE;
        loop {
            let mut state = self.0.lock();
            let over = |why: &dyn fmt::Display| Err(MachineError::Moment { reason: why.to_string() });
            match &state.stage {
                Stage::Before => return over(&"it has not come"),
                Stage::Over(why) => return over(why),
                Stage::Held => {}
            }
            // What was kept first: writers may wait for its room.
            if let Some(kept) = state.kept.pop_front() {
                let waits = state.patience.waits();
                if !state.patience.taken(Instant::now()) {
                    drop(state);
                    self.0.end(End::GuestWaits);
                    continue;
                }
                out.bytes.clear();
                let Kept { mut pages, bytes } = kept;
                let bytes = std::mem::replace(&mut out.bytes, bytes);
                out.runs.clear();
                pages.iter().for_each(|page| push(&mut out.runs, *page));
                pages.clear();
                state.spare = Some(Kept { pages, bytes });
                drop(state);
                if waits {
                    self.0.ring();
                }
                return Ok(true);
            }
            let at = state.at;
            if at >= end_of_all {
                return Ok(false);
            }
            let Some((first, end)) = state.pending.next_run_of(CHUNK, at, at + LOOK) else {
                state.at = at + LOOK;
                continue;
            };
            let used = state.used.clone();
            if first >= used.end {
                drop(state);
                let used = self.0.next_in_use(first)?;
                self.0.lock().used = used;
            } else if first < used.start {
                // Those before were never touched; who touches one now is trapped, and it is kept.
                let end = used.start.min(first + LOOK);
                state.pending.remove(first, end);
                state.at = end;
            } else {
                drop(state);
                if self.read(first, end.min(used.end), out) {
                    return Ok(true);
                }
            }
        }
    }

    /// Reads pages from memory; those that were kept meanwhile are left out. Nobody is kept waiting. False if that is all.
    fn read(&self, first: u64, end: u64, out: &mut Pages) -> bool {
        // It comes to be one that is kept in.
        out.bytes.reserve_exact(bytes(CHUNK).saturating_sub(out.bytes.len()));
        out.bytes.resize(bytes(end - first), 0);
        self.0.ram.read(first * PAGE_SIZE, &mut out.bytes);
        out.runs.clear();
        let mut state = self.0.lock();
        let mut at = first;
        // What is pending has been so all the time, so that nobody has written to it.
        while let Some((page, behind)) = state.pending.next_run_before(at, end) {
            out.runs.push(PageRun { block: 0, first: page, count: (behind - page) as u32 });
            state.pending.remove(page, behind);
            at = behind;
        }
        state.at = end;
        drop(state);
        let mut to = 0;
        for run in &out.runs {
            let from = bytes(run.first - first);
            out.bytes.copy_within(from..from + run.bytes(), to);
            to += run.bytes();
        }
        out.bytes.truncate(to);
        to > 0
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        self.0.end(End::GivenUp);
    }
}

fn bytes(pages: u64) -> usize {
    (pages * PAGE_SIZE) as usize
}

/// Appends a page; joins it with the run before when they touch.
fn push(runs: &mut Vec<PageRun>, page: u64) {
    match runs.last_mut() {
        Some(last) if last.first + u64::from(last.count) == page => last.count += 1,
        _ => runs.push(PageRun { block: 0, first: page, count: 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory whose pages have their numbers in them, but for a hole that was never touched.
    fn memory(pages: u64, hole: std::ops::Range<u64>) -> Arc<Ram> {
        let ram = Ram::create(pages * PAGE_SIZE).unwrap();
        for page in (0..pages).filter(|page| !hole.contains(page)) {
            ram.write(page * PAGE_SIZE, &(page + 1).to_le_bytes());
        }
        Arc::new(ram)
    }

    /// All that is left to read: each page's number and what it had in it.
    fn rest(moment: &Moment) -> Vec<(u64, u64)> {
        let (mut found, mut pages) = (Vec::new(), Pages::default());
        while moment.next(&mut pages).unwrap() {
            let mut contents = pages.bytes.chunks(PAGE_SIZE as usize);
            for run in &pages.runs {
                for page in run.first..run.first + u64::from(run.count) {
                    found.push((page, u64::from_le_bytes(*contents.next().unwrap().first_chunk().unwrap())));
                }
            }
            assert!(contents.next().is_none());
        }
        found.sort_unstable();
        found
    }

    fn overwrite(moment: &Moment, first: u64, end: u64) {
        assert_eq!(moment.0.keep(first, end), end);
        (first..end).for_each(|page| moment.0.ram.write(page * PAGE_SIZE, &[0xff; 8]));
    }

    fn doorbell() -> Arc<OwnedFd> {
        Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap())
    }

    fn rang(room: &OwnedFd) -> bool {
        rustix::io::read(room, &mut [0; 8]).is_ok()
    }

    #[test]
    fn each_page_comes_once_and_as_it_was() {
        let ram = memory(2000, 700..1500);
        let moment = Moment::new(&ram);
        moment.0.hold(&doorbell());
        // In the middle of what is read, behind it, in the hole, and twice.
        let mut pages = Pages::default();
        assert!(moment.next(&mut pages).unwrap());
        assert_eq!(pages.runs, [PageRun { block: 0, first: 0, count: 256 }]);
        for (first, end) in [(100, 110), (300, 301), (299, 310), (690, 720), (1990, 2000), (300, 305)] {
            overwrite(&moment, first, end);
        }
        let found = rest(&moment);
        let expected = (256..700).chain(700..720).chain(1500..2000);
        let content = |page| if (700..1500).contains(&page) { 0 } else { page + 1 };
        assert_eq!(found, expected.map(|page| (page, content(page))).collect::<Vec<_>>());
        assert!(!moment.next(&mut pages).unwrap());
        // Of what was never touched nothing was brought into being but by the writer.
        assert_eq!(moment.0.next_in_use(720).unwrap(), 1500..2000);
    }

    #[test]
    fn a_moment_of_some_pages_has_each_of_them_once_and_no_other() {
        let ram = memory(2000, 700..1500);
        let moment = Moment::of_pages(&ram);
        let run = |block, first, count| PageRun { block, first, count };
        // Twice, in the hole, beyond the end; and of another block.
        moment.include(&[run(0, 3, 2), run(0, 4, 300), run(0, 600, 200), run(1, 500, 1), run(0, 1999, 50)]);
        moment.0.hold(&doorbell());
        moment.include(&[run(0, 0, 1)]);
        for (first, end) in [(0, 10), (650, 720), (400, 500)] {
            overwrite(&moment, first, end);
        }
        let content = |page| if (700..1500).contains(&page) { 0 } else { page + 1 };
        let expected = (3..304).chain(600..800).chain(1999..2000).map(|page| (page, content(page)));
        assert_eq!(rest(&moment), expected.collect::<Vec<_>>());
    }

    /// Who copies from memory to memory takes everything away in the end, however little processor time it gets.
    #[test]
    fn a_moment_of_some_pages_is_not_given_up_while_it_is_read() {
        let moment = Moment::of_pages(&memory(ROOM + 1, 0..0));
        moment.include(&[PageRun { block: 0, first: 0, count: (ROOM + 1) as u32 }]);
        moment.0.hold(&doorbell());
        assert_eq!(moment.0.keep(0, ROOM), ROOM);
        assert_eq!(moment.0.keep(ROOM, ROOM + 1), ROOM, "there is no room");
        moment.0.lock().patience.waits_since(Instant::now().checked_sub(Duration::from_secs(3600)).unwrap());
        assert!(moment.0.left().unwrap() > Duration::from_secs(3600));
        assert_eq!(rest(&moment).len() as u64, ROOM + 1);
    }

    #[test]
    fn a_writer_gets_what_there_is_room_for_and_is_told_when_there_is_more() {
        let moment = Moment::with(&memory(ROOM + 100, 0..0), Patience::of(Duration::from_secs(3600)));
        let room = doorbell();
        moment.0.hold(&room);
        for page in (0..ROOM - 10).step_by(60) {
            let end = (page + 60).min(ROOM - 10);
            assert_eq!(moment.0.keep(page, end), end);
        }
        assert_eq!(moment.0.keep(ROOM - 20, ROOM + 10), ROOM, "there is room for some of it");
        assert_eq!(moment.0.left(), None, "nobody waits");
        assert_eq!(moment.0.keep(ROOM, ROOM + 10), ROOM);
        assert!(moment.0.left().is_some());
        assert_eq!(moment.0.keep(3, 5), 5, "nothing of it has to be kept");
        assert!(!rang(&room));
        let room_of = |state: &State| state.kept.iter().map(|kept| kept.bytes.capacity()).sum::<usize>();
        assert_eq!(room_of(&moment.0.lock()), bytes(ROOM), "it is bounded in bytes, too");
        let mut pages = Pages::default();
        assert!(moment.next(&mut pages).unwrap());
        assert!(rang(&room));
        assert_eq!(moment.0.keep(ROOM, ROOM + 10), ROOM + 10);
        assert_eq!(moment.0.left(), None);
        assert_eq!(pages.bytes.len(), bytes(CHUNK));
        assert_eq!(rest(&moment), (CHUNK..ROOM + 100).map(|page| (page, page + 1)).collect::<Vec<_>>());
        assert!(!rang(&room), "nobody waits");
        assert!(moment.waited() > Duration::ZERO);
    }

    #[test]
    fn a_reader_that_takes_nothing_away_loses_the_moment_and_no_writer_waits_for_it() {
        for takes in [false, true] {
            let moment = Moment::with(&memory(ROOM + 1, 0..0), Patience::of(Duration::ZERO));
            let room = doorbell();
            moment.0.hold(&room);
            assert_eq!(moment.0.keep(0, ROOM), ROOM);
            assert_eq!(moment.0.keep(ROOM, ROOM + 1), ROOM);
            assert!(!moment.0.over());
            if !takes {
                assert_eq!(moment.0.left(), Some(Duration::ZERO));
            }
            // It is too late to take something now.
            let error = moment.next(&mut Pages::default()).unwrap_err();
            assert!(error.to_string().contains("the guest would have to wait"), "{error}");
            assert!(moment.0.over() && rang(&room));
            assert_eq!(moment.0.keep(ROOM, ROOM + 1), ROOM + 1);
            assert_eq!(moment.0.left(), None);
        }
    }

    /// What is looked at follows the memory, and not its square: it is looked at under the lock.
    #[test]
    fn each_word_of_the_set_is_looked_at_a_few_times() {
        let pages = 32_768;
        let moment = Moment::new(&memory(pages, 100..4_000));
        moment.0.hold(&doorbell());
        assert_eq!(rest(&moment).len() as u64, pages - 3_900);
        let looked = moment.0.lock().pending.looked.get();
        assert!(looked <= 6 * pages / 64, "{looked} of {} words", pages / 64);
    }

    /// The pause asks whether a moment is over, and what pends, and waits for nobody who looks something up.
    #[test]
    fn the_pause_waits_for_no_reader() {
        let moment = Moment::new(&memory(10, 0..0));
        moment.0.hold(&doorbell());
        moment.0.keep(0, 10);
        assert!(!moment.0.pends(0, 10));
        let reader = moment.0.lock();
        std::thread::scope(|scope| {
            let pause = scope.spawn(|| (moment.0.over(), moment.0.pends(0, 10)));
            assert_eq!(pause.join().unwrap(), (false, true), "what is not known is left as it is");
        });
        drop(reader);
    }

    #[test]
    fn it_is_told_why_a_moment_was_refused() {
        let moment = Moment::new(&memory(1, 0..0));
        moment.0.end(End::Failed("UFFDIO_WRITEPROTECT", io::Error::from_raw_os_error(libc::ENOENT)));
        moment.0.end(End::GivenUp);
        let error = moment.next(&mut Pages::default()).unwrap_err().to_string();
        assert!(error.contains("UFFDIO_WRITEPROTECT: No such file or directory (os error 2)"), "{error}");
    }
}
