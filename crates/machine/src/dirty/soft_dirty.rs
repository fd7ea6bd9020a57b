//! Soft-dirty bits (Documentation/admin-guide/mm/soft-dirty.rst), for kernels without PAGEMAP_SCAN.
//!
//! The kernel sets a page's bit when the page is written; `/proc/PID/pagemap` shows it (bit 55), and "4" written to
//! `/proc/PID/clear_refs` clears the bits of the whole process and takes the right to write from all its pages.
//!
//! ```text
//!               read every bit into `dirty`,
//!               clear all bits                              report
//!  QEMU runs ──► QEMU frozen ──────────────► QEMU runs ──► runs from `dirty`; what finds no room stays there
//! ```
//!
//! * **Frozen**: a write between reading a bit and clearing it would be lost. All threads of QEMU are stopped for both, in
//!   a pause too, where QEMU is saving its devices.
//! * **Locked**: a page of shared memory that the kernel takes out of QEMU's page table loses its bit. QEMU's memory is
//!   locked and never in huge pages (the preloaded library sees to it before QEMU maps anything), and [`mappings`] checks.
//! * A page that the kernel is moving while its bit is cleared could come back writable and unmarked. Moving locked pages
//!   must be switched off ([`super::host`]); a page found on the move all the same is reported now and once more.
//!
//! What each rule is for: `docs/decisions/0009-soft-dirty-bits-for-older-kernels.md`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::freeze::Frozen;
use super::page_set::PageSet;
use super::process_files::{ENTRY, ProcessFiles, SOFT_DIRTY};
use super::{DirtySet, PageRun, mappings};
use crate::error::{MachineError, Result};
use crate::memory::Memory;

/// Entries read at once: 64 KiB of them, for 32 MiB of memory.
const ENTRIES: usize = 8192;
/// There is something other than a page: swapped out, or on the move.
const ELSEWHERE: u64 = 1 << 62;
/// How often the start waits for pages on the move to arrive.
const SETTLE_TRIES: u32 = 1000;

/// See the module and [`super::Mechanism::SoftDirty`].
#[derive(Debug)]
pub struct SoftDirty {
    pidfd: Arc<OwnedFd>,
    process: ProcessFiles,
    memory: Arc<Memory>,
    /// For each block, what is dirty and not yet reported.
    dirty: Vec<PageSet>,
    /// For each block, what is to be reported once more.
    again: Vec<PageSet>,
    buffer: Vec<u8>,
    /// Shows the machine that a tracker is at work.
    _slot: Arc<()>,
}

impl SoftDirty {
    /// Starts: every page counts as clean from now on, so a full copy must follow this call, not precede it.
    pub(crate) fn start(pidfd: OwnedFd, pid: u32, memory: Arc<Memory>, slot: Arc<()>) -> Result<SoftDirty> {
        let process = format!("/proc/{pid}");
        let text = |file: &str| {
            std::fs::read(format!("{process}/{file}")).map(|text| String::from_utf8_lossy(&text).into_owned())
        };
        let smaps = text("smaps").map_err(MachineError::io("reading QEMU's mappings"))?;
        let status = text("status").map_err(MachineError::io("reading QEMU's status"))?;
        let layout = memory.layout();
        for (index, block) in layout.blocks.iter().enumerate() {
            let start = memory.address(index);
            let fit = match start {
                0 => Err("where it is in QEMU is not known".to_owned()),
                _ if !mappings::without_huge_pages(&status) => Err("QEMU may have transparent huge pages".to_owned()),
                _ => mappings::check(&smaps, start, start + block.total),
            };
            fit.map_err(|reason| MachineError::Untrackable { block: block.name.clone(), reason })?;
        }
        let sets = || layout.blocks.iter().map(|block| PageSet::empty(block.pages())).collect::<Vec<_>>();
        let (dirty, again) = (sets(), sets());
        let process = ProcessFiles::open(&process)?;
        let buffer = vec![0; ENTRIES * ENTRY];
        let mut tracker = SoftDirty { pidfd: Arc::new(pidfd), process, memory, dirty, again, buffer, _slot: slot };
        // Until the first clearing, reading a page can make it writable; such a page must not be on the move while that
        // right is taken away. Nothing makes new ones after it, so that clearing again catches what was on the move.
        tracker.process.clear()?;
        tracker.settle()?;
        tracker.process.clear()?;
        tracker.dirty.iter_mut().for_each(PageSet::clear);
        tracker.again.iter_mut().for_each(PageSet::clear);
        Ok(tracker)
    }

    /// Waits until no page is on the move.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..SETTLE_TRIES {
            self.collect()?;
            if self.again.iter().all(|set| set.next_run(0).is_none()) {
                return Ok(());
            }
            std::thread::yield_now();
        }
        Err(MachineError::Kernel { reason: "pages of QEMU are swapped out, or moved all the time".into() })
    }

    pub(super) fn scan(&mut self, out: &mut DirtySet) -> Result<u64> {
        let pidfd = Arc::clone(&self.pidfd);
        let frozen = Frozen::stop(pidfd.as_fd())?;
        // An error in between leaves bits in both places: reported twice, never lost.
        self.collect()?;
        self.process.clear()?;
        drop(frozen);
        self.report(out)
    }

    /// Puts the kernel's bits into the sets.
    fn collect(&mut self) -> Result<()> {
        let SoftDirty { process, memory, dirty, again, buffer, .. } = self;
        for (index, (dirty, again)) in dirty.iter_mut().zip(again).enumerate() {
            dirty.take_all(again);
            let block = &memory.layout().blocks[index];
            process.read(memory.address(index), block.pages(), buffer, |page, entry| {
                if entry & (SOFT_DIRTY | ELSEWHERE) != 0 {
                    dirty.insert(page);
                    if entry & ELSEWHERE != 0 {
                        again.insert(page);
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Moves pages from the sets to `out`, as many as it has room for.
    fn report(&mut self, out: &mut DirtySet) -> Result<u64> {
        let before = out.pages();
        for (index, set) in self.dirty.iter_mut().enumerate() {
            let mut at = 0;
            while let Some((first, end)) = set.next_run(at) {
                if out.room() == 0 {
                    return Err(MachineError::DirtySetFull { capacity: out.capacity() });
                }
                let count = (end - first).min(u64::from(u32::MAX)) as u32;
                let joinable = out.runs().len();
                out.push(PageRun { block: index as u16, first, count }, joinable);
                at = first + u64::from(count);
                set.remove(first, at);
            }
        }
        Ok(out.pages() - before)
    }
}
