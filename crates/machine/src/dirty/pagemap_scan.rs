//! userfaultfd and PAGEMAP_SCAN.
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
//! A page first touched after the protection is reported: `WP_UNPOPULATED` puts markers into empty page table entries.
//! The first protection is UFFDIO_WRITEPROTECT, not a scan, because a scan leaves holes in the page tables unmarked unless
//! they match. Whether markers survive when memory is discarded depends on the kernel.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{DirtySet, PageRun};
use crate::blocks::PAGE_SIZE;
use crate::error::{MachineError, Result};
use crate::memory::Memory;
use crate::sys::{self, PageRegion};

/// Regions that one ioctl can answer: 12 KiB. More are fetched by further calls. Linux fills the answer in batches of 512
/// (`PAGEMAP_WALK_SIZE`) and leaves `walk_end` where the first of them ended, so that a larger answer is walked twice:
/// with a running guest, a page would then be reported twice.
const REGIONS: usize = 512;

/// See the module and [`super::Mechanism::PagemapScan`].
#[derive(Debug)]
pub struct PagemapScan {
    uffd: Arc<OwnedFd>,
    /// `/proc/PID/pagemap`: belongs to the address space, not to the number.
    pagemap: File,
    memory: Arc<Memory>,
    regions: Vec<PageRegion>,
    /// Shows the machine that a tracker is at work.
    _slot: Arc<()>,
}

impl PagemapScan {
    /// Starts: every page counts as clean from now on, so a full copy must follow this call, not precede it.
    pub(crate) fn start(uffd: Arc<OwnedFd>, pagemap: File, memory: Arc<Memory>, slot: Arc<()>) -> Result<PagemapScan> {
        // From here on an early return drops the value, which unregisters all.
        let tracker = PagemapScan { uffd, pagemap, memory, regions: vec![PageRegion::default(); REGIONS], _slot: slot };
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

    pub(super) fn scan(&mut self, out: &mut DirtySet) -> Result<u64> {
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
