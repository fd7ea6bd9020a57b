//! Which pages the guest has written since the last scan.
//!
//! Two mechanisms of the kernel can tell, behind one [`Tracker`]:
//!
//! * [`pagemap_scan`]: userfaultfd and PAGEMAP_SCAN, Linux 6.7 or newer. A scan is one step per page, so the guest may run.
//! * [`soft_dirty`]: soft-dirty bits, for older kernels (Debian 12). Reading and clearing are two steps, so QEMU is frozen
//!   for both, and its memory is locked.
//!
//! [`host`] finds out which of them work here; the first is used where it works. With both, a full copy must follow the
//! start, and memory must not be discarded under a tracked QEMU (balloon, virtio-mem): no such device is on our command
//! line.

mod dirty_set;
mod freeze;
pub mod host;
mod mappings;
mod mechanism;
mod moment;
mod page_map;
mod page_run;
mod page_set;
mod pagemap_scan;
mod patience;
mod process_files;
mod regions;
mod soft_dirty;
mod traps;

use crate::error::Result;

pub use dirty_set::DirtySet;
pub use mechanism::Mechanism;
pub use moment::{Moment, Pages};
pub use page_map::PageMap;
pub use page_run::PageRun;
pub use pagemap_scan::PagemapScan;
pub(crate) use pagemap_scan::Userfaultfds;
pub use soft_dirty::SoftDirty;

/// Follows the writes of one QEMU to all its RAM blocks. Dropping it ends the tracking and its cost.
#[derive(Debug)]
pub enum Tracker {
    /// See [`Mechanism::PagemapScan`].
    PagemapScan(PagemapScan),
    /// See [`Mechanism::SoftDirty`].
    SoftDirty(SoftDirty),
}

impl Tracker {
    /// Which mechanism is at work.
    pub fn mechanism(&self) -> Mechanism {
        match self {
            Tracker::PagemapScan(_) => Mechanism::PagemapScan,
            Tracker::SoftDirty(_) => Mechanism::SoftDirty,
        }
    }

    /// Appends the pages written since the last scan (or the start) to `out` and counts them as clean again; answers how
    /// many pages. The guest may run meanwhile; with soft-dirty bits it is frozen while the kernel's bits are taken. Does
    /// not allocate.
    ///
    /// # Errors
    /// `DirtySetFull`: what is in `out` is right, the rest stays dirty. `Io` when QEMU is gone.
    pub fn scan(&mut self, out: &mut DirtySet) -> Result<u64> {
        self.scan_which(out, false)
    }

    /// As [`Tracker::scan`], of a guest that stands still and goes on doing so until this returns (its vCPUs and devices are
    /// stopped). What is watched how is then fitted to what the guest writes.
    ///
    /// # Errors
    /// As [`Tracker::scan`].
    pub fn scan_stopped(&mut self, out: &mut DirtySet) -> Result<u64> {
        self.scan_which(out, true)
    }

    fn scan_which(&mut self, out: &mut DirtySet, stopped: bool) -> Result<u64> {
        match self {
            Tracker::PagemapScan(tracker) => tracker.scan(out, stopped),
            Tracker::SoftDirty(tracker) => tracker.scan(out),
        }
    }

    /// Whether the guest's memory can be [held](Tracker::hold) as it is at one moment.
    pub fn can_hold(&self) -> bool {
        self.regions().is_some()
    }

    /// Whether all of the guest's memory is to be trapped from now on, as [`Tracker::hold`] needs it: each
    /// [`Tracker::scan_stopped`] then brings more of it there, a bounded part in one pause, and none away.
    pub fn trap_all(&mut self, all: bool) {
        if let Tracker::PagemapScan(tracker) = self {
            tracker.trap_all(all);
        }
    }

    /// Whether all of the guest's memory is trapped.
    pub fn traps_all(&self) -> bool {
        self.regions().is_some_and(|(_, hot)| hot == 0)
    }

    /// This is the moment: the guest stands still after [`Tracker::scan_stopped`], and all of its memory is trapped. If it is
    /// not, or one is held already, the moment is over at once, which its reader is told. Answers whether it is held. Does not
    /// allocate.
    pub fn hold(&mut self, moment: &Moment) -> bool {
        match self {
            Tracker::PagemapScan(tracker) => tracker.hold(moment),
            Tracker::SoftDirty(_) => {
                moment.shared().end(moment::End::Undivided);
                false
            }
        }
    }

    /// Whether a moment is held that is still being read.
    pub fn holds(&self) -> bool {
        match self {
            Tracker::PagemapScan(tracker) => tracker.holds(),
            Tracker::SoftDirty(_) => false,
        }
    }

    /// How many regions the guest's memory is divided into, and how many of them are scanned each time; None if it is scanned
    /// as a whole.
    pub fn regions(&self) -> Option<(u64, u64)> {
        match self {
            Tracker::PagemapScan(tracker) => tracker.regions(),
            Tracker::SoftDirty(_) => None,
        }
    }
}
