//! Writing a snapshot: memory in rounds, the checkpoint, the volumes, the index.

use std::io::{self, Write};
use std::sync::Arc;

use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::header::HEADER_LEN;
use ninefold_replica::stream::page::{PAGE_SIZE, places};
use ninefold_replica::stream::record::Kind;
use ninefold_replica::stream::{
    Hello, Layout, Mode, PageEncoder, PageRun, Pass, PassKind, PassWriter, Preamble, Record, Section, StreamError,
    Totals, write_record,
};
use ninefold_volume::checksums;

use super::content::pack;
use super::end::{End, Rooting};
use super::error::FileError;
use super::head::Head;
use super::index::{self, ENTRIES, Growing, Of, Place, Slot};
use super::reader::Snapshot;
use super::{BLOCK, Root, SUM};

/// Pages that are encoded at a time.
const BATCH: usize = 1024;
/// Of a `Pages` record, what stands before its entries: the pass, with the block at its 18th byte, and 8 bytes.
const PART: usize = 32;
const BLOCK_AT: usize = 18;
/// Of a `VolumeContent` record, what stands before the content.
const CONTENT_HEAD: usize = 8;

/// A file that is written from front to end, and notes where pages get to stand.
#[derive(Debug)]
struct Out<W> {
    inner: W,
    at: u64,
    memory: Vec<Growing>,
}

impl<W: Write> Write for Out<W> {
    /// Each record comes by one call.
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        if record.first() == Some(&(Kind::Pages as u8))
            && let Some(block) = record.get(HEADER_LEN + BLOCK_AT..).and_then(|b| b.first_chunk())
        {
            let entries = &record[HEADER_LEN + PART..];
            let start = self.at + (HEADER_LEN + PART) as u64;
            for placed in places(entries) {
                let placed = placed.map_err(io::Error::other)?;
                let place = Place {
                    offset: start + placed.place.start as u64,
                    length: placed.place.len() as u32,
                    encoding: placed.encoding,
                };
                if let Some(index) = self.memory.get_mut(usize::from(u16::from_le_bytes(*block))) {
                    index.place(placed.page, place);
                }
            }
        }
        self.inner.write_all(record)?;
        self.at += record.len() as u64;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes the memory of a snapshot. See [`super`].
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: Out<W>,
    scratch: Vec<u8>,
    encoder: PageEncoder,
    layout: Layout,
    session: u64,
    volumes: Vec<u64>,
    parent: Option<Arc<Snapshot>>,
    rooting: Rooting,
    rounds: u64,
    pass: Option<(Pass, Totals)>,
    /// Where the checkpoint begins.
    checkpoint: u64,
    kept: (Vec<PageRun>, Vec<u8>),
    written: Written,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Pages and blocks that are not zero, in the parents or not.
    pub pages: u64,
    pub blocks: u64,
    /// Of these, how many are in the parents.
    pub pages_in_parent: u64,
    pub blocks_in_parent: u64,
    /// The file's length, bytes.
    pub bytes: u64,
    pub root: Option<Root>,
}

impl<W: Write> Writer<W> {
    /// Begins a snapshot of the VM that `hello` describes. With a parent, only what differs from it is stored: `head` has
    /// to name it.
    ///
    /// # Errors
    /// `Stream`, `Io`; `Beyond` and `Damaged` for volumes that no VM has; `Refused` if the parent is of another VM's memory or
    /// volumes.
    pub fn create(out: W, hello: &Hello, head: &Head, parent: Option<Arc<Snapshot>>) -> Result<Self, FileError> {
        head.check()?;
        if let Some(parent) = &parent {
            hello.layout.same_as(&parent.hello().layout)?;
            if parent.head().volumes != head.volumes {
                return Err(FileError::Refused("the parent has other volumes".into()));
            }
            if parent.depth() + 1 > super::MAX_DEPTH {
                return Err(FileError::TooDeep(super::MAX_DEPTH));
            }
        }
        if head.parent.as_ref().map(|p| p.root) != parent.as_ref().map(|p| p.root()) {
            return Err(FileError::Refused("the head names another parent".into()));
        }
        let mut bytes = Preamble::OURS.to_bytes().to_vec();
        Record::Hello(Box::new(hello.clone())).encode(&mut bytes)?;
        let json = serde_json::to_vec(head).map_err(|e| FileError::Io { what: "cannot write", source: e.into() })?;
        Record::Section { section: Section::Head, bytes: &json }.encode(&mut bytes)?;
        let mut rooting = Rooting::new();
        rooting.part(&bytes);
        let memory = hello.layout.blocks().iter().map(|_| Growing::default()).collect();
        let mut out = Out { inner: out, at: 0, memory };
        out.write_all(&bytes).map_err(FileError::io("cannot write"))?;
        let mut encoder = PageEncoder::new(&hello.layout);
        // It is read seldom and kept long.
        encoder.set_mode(Mode::Lz4);
        Ok(Self {
            out,
            scratch: Vec::new(),
            encoder,
            layout: hello.layout.clone(),
            session: hello.session,
            volumes: head.volumes.clone(),
            parent,
            rooting,
            rounds: 0,
            pass: None,
            checkpoint: 0,
            kept: Default::default(),
            written: Written::default(),
        })
    }

    /// Begins a round of the copy.
    ///
    /// # Errors
    /// `Stream`; `Refused` within a pass.
    pub fn begin_round(&mut self, term: Term) -> Result<(), FileError> {
        self.rounds += 1;
        self.begin(PassKind::Sync, self.rounds, term)
    }

    /// Ends a round.
    ///
    /// # Errors
    /// `Stream`; `Refused` outside a pass.
    pub fn end_round(&mut self) -> Result<(), FileError> {
        let (pass, totals) = self.pass.take().ok_or_else(no_pass)?;
        PassWriter::resume(&mut self.out, &mut self.scratch, pass, totals).end()?;
        Ok(())
    }

    /// Begins the checkpoint: its device state and what the guest has said on each channel. Pages may follow.
    ///
    /// # Errors
    /// `Stream`; `Refused` within a pass.
    pub fn begin_checkpoint(&mut self, term: Term, state: &[u8], output: &[Vec<u8>]) -> Result<(), FileError> {
        self.checkpoint = self.out.at;
        self.begin(PassKind::Checkpoint, 1, term)?;
        self.rooting.state(state, output);
        self.write(|pass, _| {
            pass.device_state(state)?;
            (0..=u8::MAX).zip(output).try_for_each(|(channel, output)| pass.channel_output(channel, output))
        })
    }

    fn begin(&mut self, kind: PassKind, epoch: u64, term: Term) -> Result<(), FileError> {
        if self.pass.is_some() || (self.checkpoint > 0 && kind == PassKind::Sync) {
            return Err(FileError::Refused("a pass is open, or the checkpoint was written".into()));
        }
        let pass = Pass { session: self.session, kind, epoch: Epoch(epoch) };
        let totals = PassWriter::begin(&mut self.out, &mut self.scratch, pass, term)?.pause();
        self.pass = Some((pass, totals));
        Ok(())
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut PassWriter<'_, Out<W>>, &mut PageEncoder) -> Result<(), StreamError>,
    ) -> Result<(), FileError> {
        let (pass, totals) = self.pass.as_mut().ok_or_else(no_pass)?;
        let mut writer = PassWriter::resume(&mut self.out, &mut self.scratch, *pass, *totals);
        write(&mut writer, &mut self.encoder)?;
        *totals = writer.pause();
        Ok(())
    }

    /// Pages of the open pass, whose contents stand one behind another in `bytes`. What is known to be there already is not
    /// written again.
    ///
    /// # Errors
    /// `Stream`; `Refused` outside a pass, or for pages that the VM has not.
    pub fn pages(&mut self, runs: &[PageRun], bytes: &[u8]) -> Result<(), FileError> {
        let mut rest = bytes.as_chunks::<PAGE_SIZE>().0;
        let mut zeros = Vec::new();
        for run in runs {
            let block = usize::from(run.block);
            let outside = || FileError::Refused(format!("block {block} page {}: it is outside the memory", run.first));
            let pages = self.layout.pages(run.block).ok_or_else(outside)?;
            if run.first.checked_add(run.count.into()).is_none_or(|end| end > pages) || rest.len() < run.count as usize
            {
                return Err(outside());
            }
            let (content, after) = rest.split_at(run.count as usize);
            rest = after;
            for (number, page) in (run.first..).zip(content) {
                // The layout bounds page numbers to 32 bits.
                let number = number as u32;
                let sum = checksums::sum(page);
                let known = self.out.memory[block].get(number).copied();
                if sum == [0; SUM] {
                    if known.is_some() {
                        self.out.memory[block].set(number, None);
                        zeros.push(PageRun { block: run.block, first: number.into(), count: 1 });
                    }
                    continue;
                }
                if known.is_some_and(|known| known.sum == sum) {
                    continue;
                }
                self.out.memory[block].set(number, Some(Slot { place: Place::PARENT, sum }));
                let of = Of::Memory(run.block);
                if self.parent.as_ref().is_some_and(|p| p.sum(of, number) == Some(sum)) {
                    continue;
                }
                self.keep(PageRun { block: run.block, first: number.into(), count: 1 }, page)?;
            }
        }
        self.send_kept()?;
        self.write(|pass, encoder| pass.zeros(encoder, zeros).map(drop))
    }

    fn keep(&mut self, page: PageRun, content: &[u8]) -> Result<(), FileError> {
        let (runs, bytes) = &mut self.kept;
        match runs.last_mut() {
            Some(run) if run.block == page.block && run.first + u64::from(run.count) == page.first => run.count += 1,
            _ => runs.push(page),
        }
        bytes.extend_from_slice(content);
        if bytes.len() >= BATCH * PAGE_SIZE { self.send_kept() } else { Ok(()) }
    }

    fn send_kept(&mut self) -> Result<(), FileError> {
        let (mut runs, mut bytes) = std::mem::take(&mut self.kept);
        self.write(|pass, encoder| pass.pages(encoder, &runs, &bytes).map(drop))?;
        runs.clear();
        bytes.clear();
        self.kept = (runs, bytes);
        Ok(())
    }

    /// Ends the checkpoint. What the volumes held at that moment follows.
    ///
    /// # Errors
    /// `Stream`; `Refused` without a checkpoint.
    pub fn volumes(mut self) -> Result<VolumeWriter<W>, FileError> {
        if self.checkpoint == 0 {
            return Err(FileError::Refused("there is no checkpoint".into()));
        }
        self.end_round()?;
        let begin = self.out.at;
        let volumes = self.volumes.iter().map(|_| Growing::default()).collect();
        Ok(VolumeWriter { memory: self, begin, volumes, packed: Vec::new() })
    }
}

fn no_pass() -> FileError {
    FileError::Refused("no pass is open".into())
}

/// Writes the volumes of a snapshot, and its end.
#[derive(Debug)]
pub struct VolumeWriter<W: Write> {
    memory: Writer<W>,
    begin: u64,
    volumes: Vec<Growing>,
    packed: Vec<u8>,
}

impl<W: Write> VolumeWriter<W> {
    /// One block of a volume; the last may be shorter. Zeros need not be given.
    ///
    /// # Errors
    /// `Io`, `Stream`; `Refused` for a block that the volume has not.
    pub fn block(&mut self, volume: u16, number: u64, content: &[u8]) -> Result<(), FileError> {
        let outside =
            || FileError::Refused(format!("volume {volume} has no block {number} of {} bytes", content.len()));
        let size = *self.memory.volumes.get(usize::from(volume)).ok_or_else(outside)?;
        let left = number.checked_mul(BLOCK as u64).and_then(|at| size.checked_sub(at)).ok_or_else(outside)?;
        if left.min(BLOCK as u64) != content.len() as u64 || content.is_empty() {
            return Err(outside());
        }
        let number = u32::try_from(number).map_err(|_| outside())?;
        let index = &mut self.volumes[usize::from(volume)];
        let sum = checksums::sum(content);
        if sum == [0; SUM] {
            index.set(number, None);
            return Ok(());
        }
        if index.get(number).is_some_and(|known| known.sum == sum) {
            return Ok(());
        }
        let mut place = Place::PARENT;
        if self.memory.parent.as_ref().is_none_or(|p| p.sum(Of::Volume(volume), number) != Some(sum)) {
            let (encoding, stored) = pack(content, &mut self.packed);
            let mut payload = Vec::with_capacity(CONTENT_HEAD + stored.len());
            let [v0, v1] = volume.to_le_bytes();
            payload.extend_from_slice(&[v0, v1, encoding as u8, 0]);
            payload.extend_from_slice(&number.to_le_bytes());
            payload.extend_from_slice(stored);
            let offset = self.memory.out.at + (HEADER_LEN + CONTENT_HEAD) as u64;
            place = Place { offset, length: stored.len() as u32, encoding };
            let record = Record::Section { section: Section::Volume, bytes: &payload };
            write_record(&mut self.memory.out, &mut self.memory.scratch, &record)?;
        }
        index.set(number, Some(Slot { place, sum }));
        Ok(())
    }

    /// Writes index and end. The file has still to be synced.
    ///
    /// # Errors
    /// `Io`, `Stream`.
    pub fn finish(self) -> Result<(W, Written), FileError> {
        let Self { memory: Writer { mut out, mut scratch, mut rooting, mut written, checkpoint, .. }, .. } = self;
        let index = out.at;
        let memory = std::mem::take(&mut out.memory);
        let all = (0u16..).map(Of::Memory).zip(&memory).chain((0u16..).map(Of::Volume).zip(&self.volumes));
        let (mut payload, mut entries) = (Vec::new(), Vec::new());
        for (of, index) in all {
            let mut rest = index.entries().peekable();
            while rest.peek().is_some() {
                entries.clear();
                entries.extend(rest.by_ref().take(ENTRIES));
                let in_parent = entries.iter().filter(|e| e.place.in_parent()).count() as u64;
                match of {
                    Of::Memory(_) => {
                        written.pages += entries.len() as u64;
                        written.pages_in_parent += in_parent;
                    }
                    Of::Volume(_) => {
                        written.blocks += entries.len() as u64;
                        written.blocks_in_parent += in_parent;
                    }
                }
                index::encode(of, &entries, &mut payload);
                rooting.part(&payload);
                let record = Record::Section { section: Section::Index, bytes: &payload };
                write_record(&mut out, &mut scratch, &record)?;
            }
        }
        let root = rooting.finish();
        let (pages, blocks) = (written.pages, written.blocks);
        let end = End { checkpoint, volumes: self.begin, index, pages, blocks, root };
        let record = Record::Section { section: Section::End, bytes: &end.to_bytes() };
        write_record(&mut out, &mut scratch, &record)?;
        out.flush().map_err(FileError::io("cannot write"))?;
        written.bytes = out.at;
        written.root = Some(root);
        Ok((out.inner, written))
    }
}
