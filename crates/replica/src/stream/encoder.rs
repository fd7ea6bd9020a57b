//! Pages into `Pages` records.

use std::io::Write;
use std::time::{Duration, Instant};

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::error::StreamError;
use super::header::{HEADER_LEN, close_record, open_record};
use super::layout::{Layout, PageRun};
use super::page::{ENTRY_LEN, Encoding, PAGE_SIZE, Page, changed_lines, is_zero, push_entry, push_patch};
use super::record::{Kind, PART_LEN, Pass, Totals, put_pass, put_u64};
use super::shadow::{Shadow, Slot};

/// A record is sent once it has this many bytes. It fits a second-level cache, so that the copy, the checksum and the
/// write touch main memory once.
const RECORD_TARGET: usize = 256 << 10;
/// Or once it stands for this many pages: patches are short, and the receiver can put in one record while the next is
/// made.
const RECORD_PAGES: usize = 192;
/// The most that one page adds.
const MAX_ENTRY: usize = ENTRY_LEN + PAGE_SIZE;
/// A page that compresses to more than this goes raw: the receiver's time is worth more than the rest.
const MAX_LZ4: usize = PAGE_SIZE * 7 / 8;

/// How pages that are not zero are written. Whatever the mode, a page that does not gain by it goes raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// As they are: least work.
    Raw,
    /// Compressed.
    Lz4,
    /// As a patch of what the receiver holds. Needs a shadow.
    Delta,
    /// As a patch; compressed where the patch is long or nothing is known. Needs a shadow.
    DeltaLz4,
}

impl Mode {
    /// All modes.
    pub const ALL: [Mode; 4] = [Mode::Raw, Mode::Lz4, Mode::Delta, Mode::DeltaLz4];

    /// Whether the mode makes use of a [`Shadow`].
    pub fn uses_shadow(self) -> bool {
        matches!(self, Mode::Delta | Mode::DeltaLz4)
    }

    fn compresses(self) -> bool {
        matches!(self, Mode::Lz4 | Mode::DeltaLz4)
    }
}

/// What an encoder did. Counts pages by how they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeStats {
    pub totals: Totals,
    pub zero: u64,
    pub raw: u64,
    pub lz4: u64,
    pub delta: u64,
    /// Pages that the receiver holds already: not sent.
    pub same: u64,
    /// Bytes of the pages looked at.
    pub bytes_in: u64,
    /// Bytes written, with headers.
    pub bytes_out: u64,
    /// Time spent here without that in the writer.
    pub encode_time: Duration,
    /// Time spent in the writer.
    pub write_time: Duration,
}

impl EncodeStats {
    /// Adds those of another call or connection.
    pub fn add(&mut self, other: &EncodeStats) {
        self.totals.add(&other.totals);
        self.zero += other.zero;
        self.raw += other.raw;
        self.lz4 += other.lz4;
        self.delta += other.delta;
        self.same += other.same;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.encode_time += other.encode_time;
        self.write_time += other.write_time;
    }
}

/// Writes pages as records. All memory is taken at the start (that of the shadow: when a page is first kept).
///
/// Several encoders can work on one pass over several connections, if none of them gets a page that another has had
/// in this session (each has its own shadow): split by page number.
pub struct PageEncoder {
    layout: Layout,
    mode: Mode,
    shadow: Option<Shadow>,
    /// The session that the shadow speaks of.
    session: Option<u64>,
    record: Vec<u8>,
    table: CompressTable,
    packed: Vec<u8>,
}

impl PageEncoder {
    /// An encoder without a shadow, in [`Mode::Raw`].
    pub fn new(layout: &Layout) -> Self {
        Self {
            layout: layout.clone(),
            mode: Mode::Raw,
            shadow: None,
            session: None,
            record: Vec::with_capacity(RECORD_TARGET + MAX_ENTRY),
            table: CompressTable::small(),
            packed: vec![0; get_maximum_output_size(PAGE_SIZE)],
        }
    }

    /// The same with a shadow that may take up to `max_bytes`.
    #[must_use]
    pub fn with_shadow(mut self, max_bytes: u64) -> Self {
        self.shadow = Some(Shadow::new(&self.layout, max_bytes));
        self
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Takes effect with the next call; free at any time.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Forgets what the receiver holds. Happens by itself when a call fails or brings another session.
    pub fn reset(&mut self) {
        if let Some(shadow) = &mut self.shadow {
            shadow.clear();
        }
        self.session = None;
    }

    /// Writes the pages of `runs`, whose contents stand one after another in `bytes`. Every record goes out by one
    /// `write_all`. A page may be in a pass once.
    ///
    /// # Errors
    /// [`StreamError::Page`] for a run that is not in the layout or not in `bytes`; [`StreamError::Io`]. The pass cannot
    /// be completed then, and the session is lost.
    pub fn encode<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        pass: &Pass,
        runs: &[PageRun],
        bytes: &[u8],
    ) -> Result<EncodeStats, StreamError> {
        if self.session != Some(pass.session) {
            self.reset();
            self.session = Some(pass.session);
        }
        if let Some(shadow) = &mut self.shadow {
            shadow.make_room();
        }
        let begun = Instant::now();
        let mut stats = EncodeStats::default();
        let result = self.check(runs, bytes).and_then(|()| self.encode_runs(out, pass, runs, bytes, &mut stats));
        if let Err(e) = result {
            self.reset();
            return Err(e);
        }
        stats.bytes_in = bytes.len() as u64;
        stats.encode_time = begun.elapsed().saturating_sub(stats.write_time);
        Ok(stats)
    }

    /// Writes pages that are known to be zero.
    ///
    /// # Errors
    /// As [`PageEncoder::encode`].
    pub fn encode_zeros<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        pass: &Pass,
        runs: impl IntoIterator<Item = PageRun>,
    ) -> Result<EncodeStats, StreamError> {
        if self.session != Some(pass.session) {
            self.reset();
            self.session = Some(pass.session);
        }
        let mut stats = EncodeStats::default();
        let result = self.zero_runs(out, pass, runs, &mut stats);
        if let Err(e) = result {
            self.reset();
            return Err(e);
        }
        Ok(stats)
    }

    fn zero_runs<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        pass: &Pass,
        runs: impl IntoIterator<Item = PageRun>,
        stats: &mut EncodeStats,
    ) -> Result<(), StreamError> {
        self.record.clear();
        let mut open: Option<u16> = None;
        for run in runs {
            self.check_run(&run)?;
            let (mut page, end) = (run.first, run.first + u64::from(run.count));
            while page < end {
                if open != Some(run.block) || self.record.len() > RECORD_TARGET - MAX_ENTRY {
                    if open.is_some() {
                        self.send(out, stats)?;
                    }
                    open_record(&mut self.record, Kind::Pages);
                    put_pass(&mut self.record, pass, 0, run.block);
                    put_u64(&mut self.record, 0);
                    open = Some(run.block);
                }
                let count = (end - page).min(u16::MAX.into());
                // The layout bounds page numbers to 32 bits.
                push_entry(&mut self.record, page as u32, Encoding::Zero, count as u16);
                if let Some(shadow) = &mut self.shadow {
                    (page..page + count).for_each(|n| shadow.forget(run.block, n));
                }
                stats.zero += count;
                stats.totals.pages += count;
                page += count;
            }
        }
        if open.is_some() { self.send(out, stats) } else { Ok(()) }
    }

    fn check_run(&self, run: &PageRun) -> Result<(), StreamError> {
        let bad = |what| StreamError::Page { block: run.block, page: run.first, what };
        let pages = self.layout.pages(run.block).ok_or(bad("there is no such block"))?;
        if run.first.checked_add(run.count.into()).is_none_or(|end| end > pages) {
            return Err(bad("the run ends outside its block"));
        }
        Ok(())
    }

    fn check(&self, runs: &[PageRun], bytes: &[u8]) -> Result<(), StreamError> {
        let mut need = 0u64;
        for run in runs {
            let bad = |what| StreamError::Page { block: run.block, page: run.first, what };
            self.check_run(run)?;
            need += u64::from(run.count) * PAGE_SIZE as u64;
            if need > bytes.len() as u64 {
                return Err(bad("its content is missing"));
            }
        }
        match runs.last() {
            Some(run) if need != bytes.len() as u64 => {
                Err(StreamError::Page { block: run.block, page: run.first, what: "there is content without a page" })
            }
            _ => Ok(()),
        }
    }

    fn encode_runs<W: Write + ?Sized>(
        &mut self,
        out: &mut W,
        pass: &Pass,
        runs: &[PageRun],
        bytes: &[u8],
        stats: &mut EncodeStats,
    ) -> Result<(), StreamError> {
        let mut pages = bytes.as_chunks::<PAGE_SIZE>().0;
        self.record.clear();
        let mut open: Option<u16> = None;
        let mut looked_at = 0;
        for run in runs {
            let (mut content, rest) = pages.split_at(run.count as usize);
            pages = rest;
            let mut page = run.first;
            while !content.is_empty() {
                if open != Some(run.block) || self.record.len() > RECORD_TARGET - MAX_ENTRY || looked_at >= RECORD_PAGES
                {
                    if open.is_some() {
                        self.send(out, stats)?;
                    }
                    looked_at = 0;
                    open_record(&mut self.record, Kind::Pages);
                    put_pass(&mut self.record, pass, 0, run.block);
                    put_u64(&mut self.record, 0);
                    open = Some(run.block);
                }
                let used = self.entry(run.block, page, content, stats);
                looked_at += used;
                content = &content[used..];
                page += used as u64;
            }
        }
        if open.is_some() { self.send(out, stats) } else { Ok(()) }
    }

    /// Appends the entry of the first of `content`, or of all zero pages at its front; answers how many pages that was.
    #[inline]
    fn entry(&mut self, block: u16, number: u64, content: &[Page], stats: &mut EncodeStats) -> usize {
        let page = &content[0];
        // The layout bounds page numbers to 32 bits.
        let wire_number = number as u32;
        if is_zero(page) {
            let count = content.iter().take(usize::from(u16::MAX)).take_while(|p| is_zero(p)).count();
            push_entry(&mut self.record, wire_number, Encoding::Zero, count as u16);
            if let Some(shadow) = &mut self.shadow {
                (number..number + count as u64).for_each(|n| shadow.forget(block, n));
            }
            stats.zero += count as u64;
            stats.totals.pages += count as u64;
            return count;
        }
        if let Some(shadow) = &mut self.shadow {
            if self.mode.uses_shadow() {
                match shadow.slot(block, number) {
                    Slot::Known(held) => {
                        let lines = changed_lines(held, page);
                        if lines == 0 {
                            stats.same += 1;
                            return 1;
                        }
                        let at = self.record.len();
                        push_entry(&mut self.record, wire_number, Encoding::Delta, 0);
                        let patched = push_patch(&mut self.record, held, page, lines);
                        held.copy_from_slice(page);
                        if patched {
                            let length = (self.record.len() - at - ENTRY_LEN) as u16;
                            self.record[at + ENTRY_LEN - 2..at + ENTRY_LEN].copy_from_slice(&length.to_le_bytes());
                            stats.delta += 1;
                            stats.totals.pages += 1;
                            return 1;
                        }
                        self.record.truncate(at);
                    }
                    Slot::Fresh(held) => held.copy_from_slice(page),
                    Slot::Absent => {}
                }
            } else {
                shadow.forget(block, number);
            }
        }
        stats.totals.pages += 1;
        if self.mode.compresses()
            && let Ok(length) = compress_into_with_table(page, &mut self.packed, &mut self.table)
            && length <= MAX_LZ4
        {
            push_entry(&mut self.record, wire_number, Encoding::Lz4, length as u16);
            self.record.extend_from_slice(&self.packed[..length]);
            stats.lz4 += 1;
        } else {
            push_entry(&mut self.record, wire_number, Encoding::Raw, PAGE_SIZE as u16);
            self.record.extend_from_slice(page);
            stats.raw += 1;
        }
        1
    }

    /// Sends the open record, unless nothing is in it.
    fn send<W: Write + ?Sized>(&mut self, out: &mut W, stats: &mut EncodeStats) -> Result<(), StreamError> {
        if self.record.len() > HEADER_LEN + PART_LEN {
            let crc = close_record(&mut self.record, 0, Kind::Pages)?;
            stats.totals.records += 1;
            stats.totals.digest = stats.totals.digest.wrapping_add(crc.into());
            stats.bytes_out += self.record.len() as u64;
            let begun = Instant::now();
            out.write_all(&self.record).map_err(StreamError::Io)?;
            stats.write_time += begun.elapsed();
        }
        self.record.clear();
        Ok(())
    }
}

impl std::fmt::Debug for PageEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageEncoder")
            .field("mode", &self.mode)
            .field("shadow", &self.shadow.is_some())
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}
