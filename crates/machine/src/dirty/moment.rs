//! The guest's memory as it was at one moment, while the guest goes on.
//!
//! ```text
//!   hold (the guest stands still, every page is trapped) ──► next, next, … : each page once ──► dropped
//!              │ a trapped write: the old content is kept here, then the writer goes on
//! ```
//!
//! What is kept has a bound. When the reader does not take it away, trapped writers wait for room, and after a time the
//! moment is given up: the guest is more than a copy of it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::PageRun;
use super::page_set::PageSet;
use crate::blocks::PAGE_SIZE;
use crate::error::{MachineError, Result};
use crate::ram::Ram;

/// Pages that the reader gets at once, at most: 1 MiB.
const CHUNK: u64 = 256;
/// How many such are kept at most: 64 MiB.
const CHUNKS: usize = 64;
/// Pages that one trapped write keeps at most, so that it does not take long.
pub(super) const KEPT_AT_ONCE: u64 = 64;
/// For so long does a trapped write wait for room at most. Then the moment is given up.
const PATIENCE: Duration = Duration::from_secs(1);

const GUEST_WAITS: &str = "the guest would have to wait: what it writes over is not taken away fast enough";
const TRACKING_ENDED: &str = "the VM runs here no more";

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
    room: Condvar,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// Pages that nobody has read or kept. They are as they were.
    pending: PageSet,
    /// All that is pending is at or behind this page.
    at: u64,
    /// The memory's file has the pages from `at` up to here.
    used: u64,
    kept: VecDeque<Kept>,
    /// The reader's former buffers, to be filled again.
    spare: Option<Kept>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The moment has not come.
    Before,
    Held,
    /// Nobody reads it any more, or it cannot be read: why.
    Over(&'static str),
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
        matches!(self.lock().stage, Stage::Over(_))
    }

    /// Whether some of these pages are still to be read from memory.
    pub(super) fn pends(&self, first: u64, end: u64) -> bool {
        let state = self.lock();
        state.stage == Stage::Held && state.pending.next_run_before(first, end).is_some()
    }

    /// From now on it counts: the guest stands still, and every page is trapped.
    pub(super) fn hold(&self) {
        let mut state = self.lock();
        if state.stage == Stage::Before {
            state.stage = Stage::Held;
        }
    }

    pub(super) fn end(&self, why: &'static str) {
        let mut state = self.lock();
        if !matches!(state.stage, Stage::Over(_)) {
            state.stage = Stage::Over(why);
            state.kept = VecDeque::new();
            state.spare = None;
        }
        drop(state);
        self.room.notify_all();
    }

    /// The moment has come, and not all of the memory is trapped.
    pub(super) fn untrapped(&self) {
        self.end("not all of the memory is watched");
    }

    /// Nobody follows the guest's writes any more.
    pub(super) fn untracked(&self) {
        self.end(TRACKING_ENDED);
    }

    /// Keeps what these pages hold, before they are opened to a writer. False when there is no room for all of them.
    pub(super) fn keep(&self, first: u64, end: u64) -> bool {
        let mut state = self.lock();
        while state.stage == Stage::Held
            && let Some((page, behind)) = state.pending.next_run_before(first, end)
        {
            if state.kept.back().is_none_or(|last| last.pages.len() as u64 >= CHUNK) {
                if state.kept.len() >= CHUNKS {
                    return false;
                }
                let next = state.spare.take().unwrap_or_default();
                state.kept.push_back(next);
            }
            let state = &mut *state;
            let Some(last) = state.kept.back_mut() else { return false };
            let behind = behind.min(page + CHUNK - last.pages.len() as u64);
            let at = last.bytes.len();
            last.bytes.resize(at + bytes(behind - page), 0);
            self.ram.read(page * PAGE_SIZE, &mut last.bytes[at..]);
            last.pages.extend(page..behind);
            state.pending.remove(page, behind);
        }
        true
    }

    /// Waits until the reader has taken something away. If it does not, the moment is over.
    pub(super) fn wait_for_room(&self) {
        let full = |state: &mut State| state.stage == Stage::Held && state.kept.len() >= CHUNKS;
        let waited = self.room.wait_timeout_while(self.lock(), PATIENCE, full);
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        if waited.timed_out() {
            self.end(GUEST_WAITS);
        }
    }

    /// The pages that the memory's file has, from `page` on: the first of them and the one behind the last. What it has not was
    /// never touched, and would be if it were read.
    fn next_in_use(&self, page: u64) -> Result<(u64, u64)> {
        let failed = MachineError::os("looking for the memory in use");
        let first = match seek(self.ram.as_fd(), SeekFrom::Data(page * PAGE_SIZE)) {
            Ok(at) => at,
            Err(Errno::NXIO) => return Ok((u64::MAX, u64::MAX)),
            Err(error) => return Err(failed(error)),
        };
        let end = seek(self.ram.as_fd(), SeekFrom::Hole(first)).map_err(failed)?;
        Ok((first / PAGE_SIZE, end.div_ceil(PAGE_SIZE)))
    }
}

impl Moment {
    /// One that has not come. It comes by [`super::Tracker::hold`].
    pub fn new(ram: &Arc<Ram>) -> Moment {
        let pages = ram.bytes() / PAGE_SIZE;
        let mut pending = PageSet::empty(pages);
        pending.insert_range(0, pages);
        let state = State {
            stage: Stage::Before,
            pending,
            at: 0,
            used: 0,
            kept: VecDeque::with_capacity(CHUNKS),
            spare: Some(Kept::default()),
        };
        Moment(Arc::new(Shared { ram: Arc::clone(ram), state: Mutex::new(state), room: Condvar::new() }))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Replaces `out` by further pages, as they were at the moment: each page that was ever touched comes once, others are zero.
    /// False when there are no more.
    ///
    /// # Errors
    /// `Moment` when it is over before all was read, or has not come; `Io`.
    pub fn next(&self, out: &mut Pages) -> Result<bool> {
        loop {
            let mut state = self.0.lock();
            let over = |why: &str| Err(MachineError::Moment { reason: why.to_owned() });
            match state.stage {
                Stage::Before => return over("it has not come"),
                Stage::Over(why) => return over(why),
                Stage::Held => {}
            }
            // What was kept first: writers may wait for its room.
            if let Some(kept) = state.kept.pop_front() {
                out.bytes.clear();
                let Kept { mut pages, bytes } = kept;
                let bytes = std::mem::replace(&mut out.bytes, bytes);
                out.runs.clear();
                pages.iter().for_each(|page| push(&mut out.runs, *page));
                pages.clear();
                state.spare = Some(Kept { pages, bytes });
                drop(state);
                self.0.room.notify_all();
                return Ok(true);
            }
            let Some((first, end)) = state.pending.next_run(state.at) else { return Ok(false) };
            let mut used = state.used;
            drop(state);
            if first >= used {
                let (begin, behind) = self.0.next_in_use(first)?;
                // Those before were never touched; who touches one now is trapped, and it is kept.
                let mut state = self.0.lock();
                state.pending.remove(first, begin);
                state.used = behind;
                if begin > first {
                    continue;
                }
                used = behind;
            }
            let end = end.min(used);
            if self.read(first, end.min(first + CHUNK), out) {
                return Ok(true);
            }
        }
    }

    /// Reads pages from memory; those that were kept meanwhile are left out. Nobody is kept waiting. False if that is all.
    fn read(&self, first: u64, end: u64, out: &mut Pages) -> bool {
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
        self.0.end("it was given up");
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
        assert!(moment.0.keep(first, end));
        (first..end).for_each(|page| moment.0.ram.write(page * PAGE_SIZE, &[0xff; 8]));
    }

    #[test]
    fn each_page_comes_once_and_as_it_was() {
        let ram = memory(2000, 700..1500);
        let moment = Moment::new(&ram);
        moment.0.hold();
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
        assert_eq!(moment.0.next_in_use(720).unwrap(), (1500, 2000));
    }

    #[test]
    fn a_writer_waits_for_room_and_goes_on_when_there_is_some() {
        let room = CHUNK * CHUNKS as u64;
        let moment = Moment::new(&memory(room + 100, 0..0));
        moment.0.hold();
        assert!(moment.0.keep(0, room - 10));
        assert!(!moment.0.keep(room - 20, room + 10), "there is room for some of it");
        let shared = Arc::clone(&moment.0);
        let writer = std::thread::spawn(move || {
            shared.wait_for_room();
            shared.keep(room - 20, room + 10)
        });
        let mut pages = Pages::default();
        assert!(moment.next(&mut pages).unwrap());
        assert!(writer.join().unwrap());
        assert_eq!(pages.bytes.len(), bytes(CHUNK));
        assert_eq!(rest(&moment), (CHUNK..room + 100).map(|page| (page, page + 1)).collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_that_takes_nothing_away_loses_the_moment_and_no_writer_waits_for_it() {
        let room = CHUNK * CHUNKS as u64;
        let moment = Moment::new(&memory(room + 1, 0..0));
        moment.0.hold();
        assert!(moment.0.keep(0, room));
        assert!(!moment.0.keep(room, room + 1));
        moment.0.wait_for_room();
        assert!(moment.0.keep(room, room + 1));
        let error = moment.next(&mut Pages::default()).unwrap_err();
        assert!(error.to_string().contains("the guest would have to wait"), "{error}");
    }
}
