//! Which pages the guest has written since the last scan.
//!
//! A userfaultfd in QEMU's address space protects every RAM block against writes, in the mode in which the kernel
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
//! * A page first touched after the protection is reported: `WP_UNPOPULATED` puts markers into empty page table
//!   entries. The first protection is UFFDIO_WRITEPROTECT, not a scan, because a scan leaves holes in the page tables
//!   unmarked unless they match.
//! * Memory must not be discarded under a tracked QEMU (balloon, virtio-mem): whether markers survive that depends on
//!   the kernel. No such device is on our command line.
//! * Soft-dirty bits, the older way, are not used: they need CONFIG_MEM_SOFT_DIRTY, cannot be read and cleared in one
//!   step, and kernels without PAGEMAP_SCAN are refused instead.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::blocks::{BlockLayout, PAGE_SIZE};
use crate::error::{MachineError, Result};
use crate::memory::Memory;
use crate::sys::{self, PageRegion};

/// `count` pages of one block, from page `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageRun {
    /// Index into [`BlockLayout::blocks`].
    pub block: u16,
    /// Pages of [`PAGE_SIZE`].
    pub count: u32,
    /// The first page's number in the block.
    pub first: u64,
}

impl PageRun {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.count as usize * PAGE_SIZE as usize
    }

    pub(crate) fn refuse(&self, reason: &'static str) -> MachineError {
        MachineError::Range { block: self.block, first: self.first, count: self.count, reason }
    }
}

/// Room for the result of scans. Never reallocated.
#[derive(Debug)]
pub struct DirtySet {
    runs: Vec<PageRun>,
    pages: u64,
    capacity: usize,
}

impl DirtySet {
    /// Room for the worst case of one scan: every second page of every block. 16 bytes per two pages of address space;
    /// the kernel gives memory only to what is really used.
    pub fn for_layout(layout: &BlockLayout) -> DirtySet {
        Self::with_capacity(layout.blocks.iter().map(|b| b.pages().div_ceil(2) as usize).sum::<usize>())
    }

    /// Room for `capacity` runs.
    pub fn with_capacity(capacity: usize) -> DirtySet {
        DirtySet { runs: Vec::with_capacity(capacity), pages: 0, capacity }
    }

    /// The runs, per scan in the order of blocks and addresses; within a scan they do not touch or overlap.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// Pages in all runs.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Empties it; the room stays.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.pages = 0;
    }

    fn room(&self) -> usize {
        self.capacity - self.runs.len()
    }

    /// Appends; joins with the run before when they touch and belong to the same scan.
    fn push(&mut self, run: PageRun, joinable_from: usize) {
        self.pages += u64::from(run.count);
        if self.runs.len() > joinable_from
            && let Some(last) = self.runs.last_mut()
            && last.block == run.block
            && last.first + u64::from(last.count) == run.first
            && let Some(count) = last.count.checked_add(run.count)
        {
            last.count = count;
            return;
        }
        self.runs.push(run);
    }
}

/// Regions that one ioctl can answer: 12 KiB. More are fetched by further calls. Linux fills the answer in batches of 512
/// (`PAGEMAP_WALK_SIZE`) and leaves `walk_end` where the first of them ended, so that a larger answer is walked twice:
/// with a running guest, a page would then be reported twice.
const REGIONS: usize = 512;

/// Follows the writes of one QEMU to all its RAM blocks. Dropping it ends the tracking and its cost.
#[derive(Debug)]
pub enum Tracker {
    /// userfaultfd and PAGEMAP_SCAN, Linux 6.7 or newer.
    PagemapScan(PagemapScan),
}

impl Tracker {
    /// Starts: every page counts as clean from now on, so a full copy must follow this call, not precede it.
    pub(crate) fn start(uffd: Arc<OwnedFd>, pagemap: File, memory: Arc<Memory>) -> Result<Tracker> {
        PagemapScan::start(uffd, pagemap, memory).map(Tracker::PagemapScan)
    }

    /// Appends the pages written since the last scan (or the start) to `out` and counts them as clean again; answers how
    /// many pages. The guest may run meanwhile. Does not allocate.
    ///
    /// # Errors
    /// `DirtySetFull`: what is in `out` is right, the rest stays dirty. `Io` when QEMU is gone.
    pub fn scan(&mut self, out: &mut DirtySet) -> Result<u64> {
        match self {
            Tracker::PagemapScan(tracker) => tracker.scan(out),
        }
    }
}

/// See [`Tracker::PagemapScan`].
#[derive(Debug)]
pub struct PagemapScan {
    uffd: Arc<OwnedFd>,
    /// `/proc/PID/pagemap`: belongs to the address space, not to the number.
    pagemap: File,
    memory: Arc<Memory>,
    regions: Vec<PageRegion>,
}

impl PagemapScan {
    fn start(uffd: Arc<OwnedFd>, pagemap: File, memory: Arc<Memory>) -> Result<PagemapScan> {
        // From here on an early return drops the value, which unregisters all.
        let tracker = PagemapScan { uffd, pagemap, memory, regions: vec![PageRegion::default(); REGIONS] };
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
            sys::uffd_register(tracker.uffd.as_fd(), start, block.total)
                .map_err(|e| untrackable("UFFDIO_REGISTER", e))?;
            sys::uffd_protect(tracker.uffd.as_fd(), start, block.total)
                .map_err(|e| untrackable("UFFDIO_WRITEPROTECT", e))?;
        }
        Ok(tracker)
    }

    fn scan(&mut self, out: &mut DirtySet) -> Result<u64> {
        let before = out.pages;
        let mut joinable = out.runs.len();
        for (index, block) in self.memory.layout().blocks.iter().enumerate() {
            let base = self.memory.address(index);
            let end = base + block.total;
            let mut at = base;
            while at < end {
                let room = self.regions.len().min(out.room());
                if room == 0 {
                    return Err(MachineError::DirtySetFull { capacity: out.capacity });
                }
                let (filled, walked) = sys::pagemap_scan(self.pagemap.as_fd(), at, end, &mut self.regions[..room])
                    .map_err(MachineError::io("PAGEMAP_SCAN"))?;
                for region in &self.regions[..filled] {
                    if region.start < at || region.end > end || region.start >= region.end {
                        return Err(MachineError::Kernel { reason: "PAGEMAP_SCAN left its range".into() });
                    }
                    let mut first = (region.start - base) / PAGE_SIZE;
                    let mut pages = (region.end - region.start) / PAGE_SIZE;
                    while pages > 0 {
                        let count = pages.min(u64::from(u32::MAX)) as u32;
                        out.push(PageRun { block: index as u16, first, count }, joinable);
                        first += u64::from(count);
                        pages -= u64::from(count);
                    }
                }
                if walked <= at {
                    return Err(MachineError::Kernel { reason: "PAGEMAP_SCAN made no progress".into() });
                }
                // Never back into what has been reported.
                at = self.regions[..filled].last().map_or(walked, |last| walked.max(last.end));
            }
            joinable = out.runs.len();
        }
        Ok(out.pages - before)
    }
}

impl Drop for PagemapScan {
    fn drop(&mut self) {
        for (index, block) in self.memory.layout().blocks.iter().enumerate() {
            // Fails for what was never registered and when QEMU is gone; neither matters any more.
            let _ = sys::uffd_unregister(self.uffd.as_fd(), self.memory.address(index), block.total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_runs_of_one_scan_join() {
        let mut set = DirtySet::with_capacity(4);
        let run = |block, first, count| PageRun { block, first, count };
        set.push(run(0, 1, 2), 0);
        set.push(run(0, 3, 1), 0);
        set.push(run(0, 5, 1), 0);
        set.push(run(1, 6, 1), 0);
        set.push(run(1, 7, 1), 3);
        assert_eq!(set.runs(), [run(0, 1, 3), run(0, 5, 1), run(1, 6, 1), run(1, 7, 1)]);
        assert_eq!((set.pages(), set.room()), (6, 0));
        set.clear();
        assert!(set.is_empty() && set.room() == 4);
    }
}
