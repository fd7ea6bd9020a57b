//! The soft-dirty bits of a process (Documentation/admin-guide/mm/soft-dirty.rst).

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::blocks::PAGE_SIZE;
use crate::error::{MachineError, Result};

/// Bytes of one page's entry in `/proc/PID/pagemap`.
pub(super) const ENTRY: usize = 8;

/// The page was written since bits were cleared.
pub(super) const SOFT_DIRTY: u64 = 1 << 55;

/// Both belong to one process, or its address space, and not to its number.
#[derive(Debug)]
pub(super) struct ProcessFiles {
    pagemap: File,
    clear_refs: File,
}

impl ProcessFiles {
    /// `process` is a directory of `/proc`.
    pub(super) fn open(process: &str) -> Result<ProcessFiles> {
        let pagemap = File::open(format!("{process}/pagemap")).map_err(MachineError::io("opening QEMU's pagemap"))?;
        let clear_refs = File::options()
            .write(true)
            .open(format!("{process}/clear_refs"))
            .map_err(MachineError::io("opening QEMU's clear_refs"))?;
        Ok(ProcessFiles { pagemap, clear_refs })
    }

    /// Clears the soft-dirty bits of the whole process. No write that ends before this returns sets one; every one that
    /// begins afterwards does.
    pub(super) fn clear(&self) -> Result<()> {
        self.clear_refs.write_all_at(b"4", 0).map_err(MachineError::io("clearing soft-dirty bits"))
    }

    /// Calls `each` with the number and the entry of every page of `pages` pages from address `start` on.
    pub(super) fn read(&self, start: u64, pages: u64, buffer: &mut [u8], mut each: impl FnMut(u64, u64)) -> Result<()> {
        let mut page = 0;
        while page < pages {
            let count = (pages - page).min((buffer.len() / ENTRY) as u64);
            let part = &mut buffer[..count as usize * ENTRY];
            self.pagemap
                .read_exact_at(part, (start / PAGE_SIZE + page) * ENTRY as u64)
                .map_err(MachineError::io("reading QEMU's pagemap"))?;
            let (entries, _) = part.as_chunks::<ENTRY>();
            for (n, entry) in entries.iter().enumerate() {
                each(page + n as u64, u64::from_ne_bytes(*entry));
            }
            page += count;
        }
        Ok(())
    }

    /// The pages whose bit is set, for small ranges.
    pub(super) fn written(&self, start: u64, pages: u64) -> Result<Vec<u64>> {
        let mut found = Vec::new();
        self.read(start, pages, &mut [0; 64 * ENTRY], |page, entry| {
            if entry & SOFT_DIRTY != 0 {
                found.push(page);
            }
        })?;
        Ok(found)
    }
}
