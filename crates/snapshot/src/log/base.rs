//! The base: guest memory as of one commit, as a sparse file, and a checksum of each page.
//!
//! Pages of all blocks stand one behind another, in the layout's order. A page that is zero is a hole and has the checksum 0.
//!
//! The two files are written in place. After a crash a page and its checksum may not belong together, but only pages that
//! the retained segments hold: those are put right by replay, and their checksums are not looked at before.

use std::io;

use ninefold_replica::stream::page::{PAGE_SIZE, Page};
use ninefold_replica::stream::{Layout, PageSink};

use super::error::LogError;
use crate::storage::{Storage, StorageFile};

pub(super) const MEMORY: &str = "memory";
pub(super) const SUMS: &str = "sums";
/// Pages that are read at a time.
const STEP: u64 = 256;
const SIZE: u64 = PAGE_SIZE as u64;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Base {
    memory: Box<dyn StorageFile>,
    sums: Box<dyn StorageFile>,
    places: Places,
    scratch: Vec<u8>,
}

/// Where the pages of each block begin among all pages.
#[derive(Debug, Clone)]
pub(super) struct Places {
    /// First page, pages.
    blocks: Vec<(u64, u64)>,
    total: u64,
}

impl Places {
    pub fn new(layout: &Layout) -> Self {
        let mut total = 0;
        let blocks = (0u16..)
            .map_while(|block| layout.pages(block))
            .map(|pages| {
                total += pages;
                (total - pages, pages)
            })
            .collect();
        Self { blocks, total }
    }

    /// The place of `count` pages from `first` of `block` on.
    fn of(&self, block: u16, first: u64, count: u64) -> io::Result<u64> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "a page is outside the memory");
        let (start, pages) = *self.blocks.get(usize::from(block)).ok_or_else(outside)?;
        if first.checked_add(count).is_none_or(|end| end > pages) {
            return Err(outside());
        }
        Ok(start + first)
    }
}

/// Pages, a bit for each.
#[derive(Debug, Clone)]
pub(super) struct Covered {
    places: Places,
    bits: Vec<u64>,
}

impl Covered {
    pub fn new(layout: &Layout) -> Self {
        let places = Places::new(layout);
        let bits = vec![0; places.total.div_ceil(64) as usize];
        Self { places, bits }
    }

    pub fn add(&mut self, block: u16, first: u64, count: u64) -> io::Result<()> {
        let start = self.places.of(block, first, count)?;
        (start..start + count).for_each(|page| self.bits[page as usize / 64] |= 1 << (page % 64));
        Ok(())
    }

    fn has(&self, page: u64) -> bool {
        self.bits[page as usize / 64] >> (page % 64) & 1 != 0
    }
}

/// The checksum of a page that is not zero; never 0.
fn sum(page: &[u8]) -> u32 {
    crc32fast::hash(page).max(1)
}

impl Base {
    /// A memory of zeros.
    ///
    /// # Errors
    /// `Storage`.
    pub fn create(storage: &dyn Storage, layout: &Layout) -> Result<Self, LogError> {
        let places = Places::new(layout);
        let make = |name: &str, length: u64| {
            let file = storage.create(name).map_err(LogError::storage("cannot make", name))?;
            file.set_len(length).map_err(LogError::storage("cannot make", name))?;
            Ok::<_, LogError>(file)
        };
        let memory = make(MEMORY, places.total * SIZE)?;
        let sums = make(SUMS, places.total * 4)?;
        Ok(Self { memory, sums, places, scratch: Vec::new() })
    }

    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn open(storage: &dyn Storage, layout: &Layout) -> Result<Self, LogError> {
        let places = Places::new(layout);
        let open = |name: &str, length: u64| {
            let file = storage.open(name).map_err(LogError::storage("cannot open", name))?;
            let found = file.len().map_err(LogError::storage("cannot read", name))?;
            if found != length {
                return Err(LogError::damaged(name, format!("it has {found} bytes instead of {length}")));
            }
            Ok(file)
        };
        let memory = open(MEMORY, places.total * SIZE)?;
        let sums = open(SUMS, places.total * 4)?;
        Ok(Self { memory, sums, places, scratch: Vec::new() })
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// `Storage`.
    pub fn sync(&self) -> Result<(), LogError> {
        self.memory.sync().map_err(LogError::storage("cannot sync", MEMORY))?;
        self.sums.sync().map_err(LogError::storage("cannot sync", SUMS))
    }

    /// Puts the memory into `sink`, but for the pages that are `covered`: those come with the commits that follow. Zero pages
    /// only for blocks that are not `fresh`, which means all zero.
    ///
    /// # Errors
    /// `Damaged`, `Storage`, `Target`.
    pub fn load(
        &self,
        covered: &Covered,
        fresh: &dyn Fn(u16) -> bool,
        sink: &mut dyn PageSink,
    ) -> Result<(), LogError> {
        let mut bytes = vec![0; (STEP * SIZE) as usize];
        let mut sums = vec![0; STEP as usize * 4];
        for (block, (start, pages)) in (0u16..).zip(&self.places.blocks) {
            let mut first = 0;
            while first < *pages {
                let count = STEP.min(pages - first);
                let sums = &mut sums[..count as usize * 4];
                read(&*self.sums, SUMS, (start + first) * 4, sums)?;
                let sums = sums.as_chunks::<4>().0;
                let kind = |n: u64| match u32::from_le_bytes(sums[n as usize]) {
                    _ if covered.has(start + first + n) => None,
                    0 => Some(true),
                    _ => Some(false),
                };
                let mut n = 0;
                while n < count {
                    let zero = kind(n);
                    let end = (n..count).find(|&m| kind(m) != zero).unwrap_or(count);
                    let failed = |e| LogError::Target { what: "memory cannot be written".into(), source: e };
                    match zero {
                        None => {}
                        Some(true) if fresh(block) => {}
                        Some(true) => sink.zero(block, first + n, end - n).map_err(failed)?,
                        Some(false) => {
                            let bytes = &mut bytes[..((end - n) * SIZE) as usize];
                            read(&*self.memory, MEMORY, (start + first + n) * SIZE, bytes)?;
                            for (m, page) in (n..end).zip(bytes.as_chunks::<PAGE_SIZE>().0) {
                                if sum(page) != u32::from_le_bytes(sums[m as usize]) {
                                    let what = format!("page {} of block {block} has another checksum", first + m);
                                    return Err(LogError::damaged(MEMORY, what));
                                }
                            }
                            sink.write(block, first + n, bytes).map_err(failed)?;
                        }
                    }
                    n = end;
                }
                first += count;
            }
        }
        Ok(())
    }
}

fn read(file: &dyn StorageFile, name: &str, at: u64, into: &mut [u8]) -> Result<(), LogError> {
    match file.read_at(at, into).map_err(LogError::storage("cannot read", name))? {
        got if got == into.len() => Ok(()),
        _ => Err(LogError::damaged(name, "it is too short")),
    }
}

impl PageSink for Base {
    fn write(&mut self, block: u16, first: u64, data: &[u8]) -> io::Result<()> {
        let pages = data.as_chunks::<PAGE_SIZE>().0;
        let start = self.places.of(block, first, pages.len() as u64)?;
        self.scratch.clear();
        pages.iter().for_each(|page| self.scratch.extend_from_slice(&sum(page).to_le_bytes()));
        self.memory.write_at(start * SIZE, data)?;
        self.sums.write_at(start * 4, &self.scratch)
    }

    fn read(&mut self, _: u16, _: u64, _: &mut Page) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::InvalidData, "a log has no patches"))
    }

    fn zero(&mut self, block: u16, first: u64, count: u64) -> io::Result<()> {
        let start = self.places.of(block, first, count)?;
        self.memory.zero(start * SIZE, count * SIZE)?;
        let zeros = [0; 4096];
        let mut done = 0;
        while done < count * 4 {
            let part = (count * 4 - done).min(zeros.len() as u64);
            self.sums.write_at(start * 4 + done, &zeros[..part as usize])?;
            done += part;
        }
        Ok(())
    }
}
