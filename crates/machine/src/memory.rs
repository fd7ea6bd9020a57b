//! Reads, writes and compares pages of all blocks of one QEMU.
//!
//! The guest's memory is a mapping in this process. Private blocks go through `/proc/PID/mem`: its descriptor belongs to
//! that one address space, so that, unlike process_vm_readv(2) with a number, it can never hit another process that got
//! the number after QEMU's death. They are small and seldom change, so the extra copy does not show.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::blocks::{BlockLayout, PAGE_SIZE, PlacedBlock};
use crate::dirty::PageRun;
use crate::error::{MachineError, Result};
use crate::ram::Ram;

/// The memory of one QEMU. Cheap to share between threads; valid until that QEMU dies (reads of private blocks then
/// fail).
#[derive(Debug)]
pub struct Memory {
    ram: Arc<Ram>,
    layout: BlockLayout,
    addresses: Vec<u64>,
    process: File,
}

impl Memory {
    /// `process` is `/proc/PID/mem` of the QEMU that has these blocks.
    pub(crate) fn new(ram: Arc<Ram>, placed: &[PlacedBlock], process: File) -> Result<Memory> {
        match placed.first() {
            Some(main) if main.block.total == ram.bytes() => {}
            Some(main) => {
                return Err(MachineError::BlockList {
                    reason: format!("'m0' has {} bytes, not {}", main.block.total, ram.bytes()),
                });
            }
            None => {
                return Err(MachineError::BlockList { reason: "no blocks".into() });
            }
        }
        Ok(Memory {
            ram,
            layout: BlockLayout { blocks: placed.iter().map(|p| p.block.clone()).collect() },
            addresses: placed.iter().map(|p| p.address).collect(),
            process,
        })
    }

    /// The blocks; a [`PageRun`]'s `block` is an index into them. Block 0 is the guest's memory.
    pub fn layout(&self) -> &BlockLayout {
        &self.layout
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Where block `index` is in QEMU.
    pub(crate) fn address(&self, index: usize) -> u64 {
        self.addresses[index]
    }

    /// All of QEMU's memory: `/proc/PID/mem`.
    pub(crate) fn process(&self) -> &File {
        &self.process
    }

    /// Copies the pages of `run` to `out`, which has exactly their size. Does not allocate. A guest that runs may tear
    /// pages; the next scan reports them.
    ///
    /// # Errors
    /// `Range`; `Io` when QEMU is gone.
    pub fn read_run(&self, run: PageRun, out: &mut [u8]) -> Result<()> {
        let offset = self.offset(run, out.len())?;
        if run.block == 0 {
            self.ram.read(offset, out);
            return Ok(());
        }
        self.process
            .read_exact_at(out, self.addresses[usize::from(run.block)] + offset)
            .map_err(MachineError::io("reading QEMU's private memory"))
    }

    /// Copies several runs one behind the other to `out`, which must have room for them; returns the bytes written. Does
    /// not allocate.
    ///
    /// # Errors
    /// As [`Memory::read_run`].
    pub fn read_runs(&self, runs: &[PageRun], out: &mut [u8]) -> Result<usize> {
        let mut at = 0;
        for run in runs {
            let length = run.bytes();
            let room = out.get_mut(at..at + length).ok_or_else(|| run.refuse("the buffer is too small"))?;
            self.read_run(*run, room)?;
            at += length;
        }
        Ok(at)
    }

    /// Writes the pages of `run` from `from`, which has exactly their size. Only into a VM that does not run.
    ///
    /// # Errors
    /// As [`Memory::read_run`].
    pub fn write_run(&self, run: PageRun, from: &[u8]) -> Result<()> {
        let offset = self.offset(run, from.len())?;
        if run.block == 0 {
            self.ram.write(offset, from);
            return Ok(());
        }
        self.process
            .write_all_at(from, self.addresses[usize::from(run.block)] + offset)
            .map_err(MachineError::io("writing QEMU's private memory"))
    }

    /// Writes one page. See [`Memory::write_run`].
    ///
    /// # Errors
    /// As [`Memory::read_run`].
    pub fn write_page(&self, block: u16, page: u64, from: &[u8; PAGE_SIZE as usize]) -> Result<()> {
        self.write_run(PageRun { block, first: page, count: 1 }, from)
    }

    /// The first page of `run` that is not as in `expected`, which has exactly the run's size. For tests and
    /// verification: it allocates.
    ///
    /// # Errors
    /// As [`Memory::read_run`].
    pub fn first_difference(&self, run: PageRun, expected: &[u8]) -> Result<Option<u64>> {
        let mut now = vec![0; run.bytes()];
        self.offset(run, expected.len())?;
        self.read_run(run, &mut now)?;
        let page = PAGE_SIZE as usize;
        let differs = now.chunks(page).zip(expected.chunks(page)).position(|(a, b)| a != b);
        Ok(differs.map(|n| run.first + n as u64))
    }

    /// Runs that cover every page of every block, each of at most `most` pages: what a first copy reads. Guest memory of
    /// a new [`Ram`] is zero, private blocks of a new QEMU are not: their zero pages must be sent too.
    pub fn all_runs(&self, most: u32) -> impl Iterator<Item = PageRun> + '_ {
        let most = u64::from(most.max(1));
        self.layout.blocks.iter().enumerate().flat_map(move |(index, block)| {
            let pages = block.pages();
            (0..pages.div_ceil(most)).map(move |n| PageRun {
                block: index as u16,
                first: n * most,
                count: most.min(pages - n * most) as u32,
            })
        })
    }

    /// Checks a run and a buffer's length against the block; the run's offset in bytes.
    fn offset(&self, run: PageRun, length: usize) -> Result<u64> {
        let block =
            self.layout.blocks.get(usize::from(run.block)).ok_or_else(|| run.refuse("there is no such block"))?;
        match run.first.checked_add(u64::from(run.count)) {
            Some(end) if end <= block.pages() => {}
            _ => return Err(run.refuse("outside the block")),
        }
        if run.bytes() != length {
            return Err(run.refuse("the buffer has another size"));
        }
        Ok(run.first * PAGE_SIZE)
    }
}
