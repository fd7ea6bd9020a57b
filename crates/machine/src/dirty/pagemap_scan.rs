//! userfaultfd and PAGEMAP_SCAN.
//!
//! A userfaultfd in QEMU's address space protects RAM blocks against writes, in the mode in which the kernel
//! resolves a fault by itself (`UFFD_FEATURE_WP_ASYNC`): a written page merely loses its mark. PAGEMAP_SCAN lists the
//! pages without mark and marks them again in one step, so no write is missed, also while the guest runs.
//!
//! ```text
//!            register, protect all                 guest or device writes
//!  untracked ---------------------> clean (marked) ----------------------> written (no mark)
//!      ^                              ^                                        |
//!      |        Tracker dropped       |        scan: reported and marked       |
//!      +------------------------------+----------------------------------------+
//! ```
//!
//! That step looks at every page that it is asked for. The guest's memory is therefore divided into regions ([`super::regions`]):
//! the hot ones are scanned as said; the cold ones belong to a second userfaultfd, in the mode in which a writer waits for an
//! answer, and a thread ([`super::traps`]) keeps a list of the pages. A region changes from one to the other only while the
//! guest stands still, because in between neither notes a write.
//!
//! A page first touched after the protection is reported: `WP_UNPOPULATED` puts markers into empty page table entries.
//! The first protection is UFFDIO_WRITEPROTECT, not a scan, because a scan leaves holes in the page tables unmarked unless
//! they match. Whether markers survive when memory is discarded depends on the kernel.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::moment::{End, Moment};
use super::regions::{Regions, Segment, WARMED};
use super::traps::{Traps, Watched, pieces};
use super::{DirtySet, PageRun};
use crate::blocks::PAGE_SIZE;
use crate::error::{MachineError, Result};
use crate::memory::Memory;
use crate::ram::PageSize;
use crate::sys::{self, PageRegion};

/// Regions that one ioctl can answer: 12 KiB. More are fetched by further calls. Linux fills the answer in batches of 512
/// (`PAGEMAP_WALK_SIZE`) and leaves `walk_end` where the first of them ended, so that a larger answer is walked twice:
/// with a running guest, a page would then be reported twice.
const REGIONS: usize = 512;

/// Two userfaultfds of QEMU's address space.
#[derive(Debug)]
pub(crate) struct Userfaultfds {
    /// The kernel notes which pages were written.
    noting: OwnedFd,
    /// Whoever writes first to a page waits until that has been answered.
    trapping: Arc<OwnedFd>,
}

impl Userfaultfds {
    /// Of two new ones.
    ///
    /// # Errors
    /// What the kernel does not offer.
    pub(crate) fn new([noting, trapping]: [OwnedFd; 2]) -> Result<Userfaultfds> {
        let missing = |what: &str| {
            let what = what.to_owned();
            move |source| MachineError::Userfaultfd {
                reason: format!("this kernel has no {what} write protection ({source}); 6.7 or newer is needed"),
            }
        };
        sys::uffd_api(noting.as_fd(), sys::UFFD_FEATURES).map_err(missing("asynchronous"))?;
        sys::uffd_api(trapping.as_fd(), sys::UFFD_FEATURES_OF_TRAPS).map_err(missing("synchronous"))?;
        Ok(Userfaultfds { noting, trapping: Arc::new(trapping) })
    }
}

/// See the module and [`super::Mechanism::PagemapScan`].
#[derive(Debug)]
pub struct PagemapScan {
    uffds: Arc<Userfaultfds>,
    /// `/proc/PID/pagemap`: belongs to the address space, not to the number.
    pagemap: File,
    memory: Arc<Memory>,
    answer: Vec<PageRegion>,
    /// The guest's memory, if it is divided into regions.
    watched: Option<Arc<Watched>>,
    traps: Option<Traps>,
    /// Every region is to be cold, and none hot.
    trap_all: bool,
    /// Shows the machine that a tracker is at work.
    _slot: Arc<()>,
}

impl PagemapScan {
    /// Starts: every page counts as clean from now on, so a full copy must follow this call, not precede it. `begin` is called
    /// by the thread that answers the guest's first writes.
    pub(crate) fn start(
        uffds: Arc<Userfaultfds>,
        pagemap: File,
        memory: Arc<Memory>,
        slot: Arc<()>,
        begin: fn(),
    ) -> Result<PagemapScan> {
        // A huge page can only be opened as a whole. The other blocks are small.
        let divided = memory.ram().page_size() == PageSize::Small;
        let watched = divided.then(|| Watched::new(memory.address(0), memory.layout().blocks[0].total)).transpose()?;
        let watched = watched.map(Arc::new);
        let answer = vec![PageRegion::default(); REGIONS];
        // From here on an early return drops the value, which unregisters all.
        let mut tracker =
            PagemapScan { uffds, pagemap, memory, answer, watched, traps: None, trap_all: false, _slot: slot };
        if let Some(watched) = &tracker.watched {
            // Before the first write can be trapped.
            tracker.traps = Some(Traps::start(Arc::clone(&tracker.uffds.trapping), Arc::clone(watched), begin)?);
        }
        for (index, block) in tracker.memory.layout().blocks.iter().enumerate() {
            let start = tracker.memory.address(index);
            let untrackable = |what: &str, error: std::io::Error| MachineError::Untrackable {
                block: block.name.clone(),
                reason: format!("{what}: {error}"),
            };
            if start == 0 {
                let reason = "where it is in QEMU is not known".to_owned();
                return Err(MachineError::Untrackable { block: block.name.clone(), reason });
            }
            let cold = index == 0 && tracker.watched.is_some();
            let uffd = if cold { tracker.uffds.trapping.as_fd() } else { tracker.uffds.noting.as_fd() };
            sys::uffd_register(uffd, start, block.total).map_err(|e| untrackable("UFFDIO_REGISTER", e))?;
            for pages in pieces(block.pages()) {
                sys::uffd_protect(uffd, start + pages.start * PAGE_SIZE, (pages.end - pages.start) * PAGE_SIZE)
                    .map_err(|e| untrackable("UFFDIO_WRITEPROTECT", e))?;
            }
        }
        Ok(tracker)
    }

    pub(super) fn scan(&mut self, out: &mut DirtySet, stopped: bool) -> Result<u64> {
        let before = out.pages();
        for index in 0..self.memory.layout().blocks.len() {
            let joinable = out.runs().len();
            match &self.watched {
                Some(watched) if index == 0 => {
                    let watched = Arc::clone(watched);
                    self.scan_watched(&watched, out, joinable)?;
                    if stopped {
                        self.move_regions(&watched)?;
                    }
                }
                _ => {
                    let pages = 0..self.memory.layout().blocks[index].pages();
                    self.scan_pages(index, pages, out, joinable, |_| Ok(()))?;
                }
            }
        }
        Ok(out.pages() - before)
    }

    /// How many regions the guest's memory has, and how many of them are scanned each time; None if it is not divided.
    pub(super) fn regions(&self) -> Option<(u64, u64)> {
        self.watched.as_ref().and_then(|watched| Some(watched.lock().ok()?.regions.count()))
    }

    pub(super) fn trap_all(&mut self, all: bool) {
        self.trap_all = all;
    }

    /// See [`super::Tracker::hold`].
    pub(super) fn hold(&mut self, moment: &Moment) -> bool {
        let held = self.try_hold(moment);
        held.map_err(|why| moment.shared().end(why)).is_ok()
    }

    fn try_hold(&self, moment: &Moment) -> std::result::Result<(), End> {
        let watched = self.watched.as_ref().ok_or(End::Undivided)?;
        let mut state = watched.lock().map_err(|error| match error {
            MachineError::Io { what, source } => End::Failed(what, source),
            _ => End::Untracked,
        })?;
        if let (regions, hot @ 1..) = state.regions.count() {
            return Err(End::Untrapped { hot, regions });
        }
        if state.moment.as_ref().is_some_and(|before| !before.over()) {
            return Err(End::Another);
        }
        protect_trapped(self.uffds.trapping.as_fd(), watched, &state.regions)
            .map_err(|error| End::Failed("UFFDIO_WRITEPROTECT", error))?;
        moment.shared().hold(&watched.room);
        state.moment = Some(Arc::clone(moment.shared()));
        Ok(())
    }

    /// Whether a moment is held that is still being read.
    pub(super) fn holds(&self) -> bool {
        let moment = |watched: &Arc<Watched>| watched.lock().ok()?.moment.clone();
        self.watched.as_ref().and_then(moment).is_some_and(|moment| !moment.over())
    }

    /// The block with cold regions: trapped pages from the list, the hot ones from the kernel.
    fn scan_watched(&mut self, watched: &Watched, out: &mut DirtySet, joinable: usize) -> Result<()> {
        watched.lock()?.regions.begin_scan();
        let mut at = 0;
        loop {
            // The lock is given back between two regions, so that trapped writers need not wait for the whole scan.
            let mut state = watched.lock()?;
            match state.regions.next_segment(at) {
                None => return Ok(()),
                Some(Segment::Hot(pages)) => {
                    drop(state);
                    at = pages.end;
                    self.scan_pages(0, pages, out, joinable, |found| {
                        watched.lock()?.regions.written(found);
                        Ok(())
                    })?;
                }
                Some(Segment::Trapped(region)) => {
                    at = state.regions.pages_of(region).end;
                    while let Some(pages) = state.regions.next_trapped(region, 0) {
                        if out.room() == 0 {
                            return Err(MachineError::DirtySetFull { capacity: out.capacity() });
                        }
                        let (start, bytes) = watched.place(&pages);
                        // Protected before it is copied: who writes meanwhile is trapped again.
                        sys::uffd_protect(self.uffds.trapping.as_fd(), start, bytes)
                            .map_err(MachineError::io("UFFDIO_WRITEPROTECT"))?;
                        state.regions.reported(&pages);
                        push(out, 0, pages, joinable);
                    }
                    state.regions.emptied(region);
                }
            }
        }
    }

    /// Makes regions hot and cold. The guest stands still, and all pages are clean.
    fn move_regions(&self, watched: &Watched) -> Result<()> {
        let mut state = watched.lock()?;
        let (noting, trapping) = (self.uffds.noting.as_fd(), self.uffds.trapping.as_fd());
        let mut moved = 0;
        while self.trap_all
            && moved < WARMED
            && let Some(regions) = state.regions.next_hot(WARMED - moved)
        {
            let pages = state.regions.pages_of(regions.start).start..state.regions.pages_of(regions.end - 1).end;
            if !hand_over(noting, trapping, watched.place(&pages))? {
                return Ok(());
            }
            moved += pages.end - pages.start;
            state.regions.cooled(regions);
        }
        if self.trap_all {
            return Ok(());
        }
        let moment = state.moment.clone().filter(|moment| !moment.over());
        while moved < WARMED {
            let Some(region) = state.regions.next_rising() else { break };
            let pages = state.regions.pages_of(region);
            if moment.as_ref().is_some_and(|moment| moment.pends(pages.start, pages.end)) {
                // Some of it is still to be read as it was.
                continue;
            }
            if !hand_over(trapping, noting, watched.place(&pages))? {
                return Ok(());
            }
            moved += pages.end - pages.start;
            state.regions.warmed(region);
        }
        if moved < WARMED
            && let Some(regions) = state.regions.next_cooling()
        {
            let pages = state.regions.pages_of(regions.start).start..state.regions.pages_of(regions.end - 1).end;
            if hand_over(noting, trapping, watched.place(&pages))? {
                state.regions.cooled(regions);
            }
        }
        Ok(())
    }

    /// Lets the kernel list the written pages among `pages` of a block, and protect them again.
    fn scan_pages(
        &mut self,
        index: usize,
        pages: Range<u64>,
        out: &mut DirtySet,
        joinable: usize,
        mut found: impl FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let base = self.memory.address(index);
        let mut at = base + pages.start * PAGE_SIZE;
        let end = base + pages.end * PAGE_SIZE;
        while at < end {
            let room = self.answer.len().min(out.room());
            if room == 0 {
                return Err(MachineError::DirtySetFull { capacity: out.capacity() });
            }
            let (filled, walked) = sys::pagemap_scan(self.pagemap.as_fd(), at, end, &mut self.answer[..room])
                .map_err(MachineError::io("PAGEMAP_SCAN"))?;
            for region in &self.answer[..filled] {
                if region.start < at || region.end > end || region.start >= region.end {
                    return Err(MachineError::Kernel { reason: "PAGEMAP_SCAN left its range".into() });
                }
                let pages = (region.start - base) / PAGE_SIZE..(region.end - base) / PAGE_SIZE;
                found(pages.clone())?;
                push(out, index, pages, joinable);
            }
            if walked <= at {
                return Err(MachineError::Kernel { reason: "PAGEMAP_SCAN made no progress".into() });
            }
            // Never back into what has been reported.
            at = self.answer[..filled].last().map_or(walked, |last| walked.max(last.end));
        }
        Ok(())
    }
}

/// Appends pages of one block.
fn push(out: &mut DirtySet, block: usize, pages: Range<u64>, joinable: usize) {
    let mut first = pages.start;
    while first < pages.end {
        let count = (pages.end - first).min(u64::from(u32::MAX)) as u32;
        out.push(PageRun { block: block as u16, first, count }, joinable);
        first += u64::from(count);
    }
}

/// Protects again what was trapped since the last scan. It still counts as written.
fn protect_trapped(trapping: BorrowedFd<'_>, watched: &Watched, regions: &Regions) -> std::io::Result<()> {
    let mut at = 0;
    while let Some(Segment::Trapped(region)) = regions.next_segment(at) {
        let pages = regions.pages_of(region);
        at = pages.start;
        while let Some(trapped) = regions.next_trapped(region, at) {
            let (start, bytes) = watched.place(&trapped);
            sys::uffd_protect(trapping, start, bytes)?;
            at = trapped.end;
        }
        at = pages.end;
    }
    Ok(())
}

/// A range leaves one userfaultfd and belongs to the other, all its pages clean and written by nobody. Answers whether it does: if
/// the kernel has no room for another mapping, all is as before.
fn hand_over(from: BorrowedFd<'_>, to: BorrowedFd<'_>, (start, bytes): (u64, u64)) -> Result<bool> {
    let take = |uffd| sys::uffd_register(uffd, start, bytes).and_then(|()| sys::uffd_protect(uffd, start, bytes));
    if sys::uffd_unregister(from, start, bytes).and_then(|()| take(to)).is_ok() {
        return Ok(true);
    }
    // Also one that failed may have opened the pages.
    let _ = sys::uffd_unregister(to, start, bytes);
    take(from).map_err(MachineError::io("protecting memory again"))?;
    Ok(false)
}

impl Drop for PagemapScan {
    fn drop(&mut self) {
        // All of these fail for what was never registered and when QEMU is gone; neither matters any more.
        if let Some(watched) = &self.watched {
            // The thread may wait for its reader.
            watched.end_moment();
            // While the guest runs: its writes are answered until nothing is registered.
            watched.release(self.uffds.trapping.as_fd(), self.uffds.noting.as_fd());
        }
        self.traps = None;
        for (index, block) in self.memory.layout().blocks.iter().enumerate().skip(usize::from(self.watched.is_some())) {
            for pages in pieces(block.pages()) {
                let start = self.memory.address(index) + pages.start * PAGE_SIZE;
                let _ = sys::uffd_unregister(self.uffds.noting.as_fd(), start, (pages.end - pages.start) * PAGE_SIZE);
            }
        }
    }
}
