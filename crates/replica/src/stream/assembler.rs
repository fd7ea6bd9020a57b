//! Records into whole checkpoints.

use std::io;

use lz4_flex::block::decompress_into;
use ninefold_model::{Epoch, Term};

use super::error::StreamError;
use super::layout::{Layout, PageRun};
use super::page::{PAGE_SIZE, Page, PageContent, apply_patch};
use super::reader::Frame;
use super::record::{
    DeviceState, MAX_DEVICE_STATE, MAX_OUTPUT, MAX_VOLUME_WRITES, Output, Pages, Pass, PassKind, Record, Totals,
    VolumeWrites,
};

/// The receiver's guest memory. Blocks and pages are within the layout.
pub trait PageSink {
    /// Puts whole pages, from page `first` of `block` on. `data` is a multiple of [`PAGE_SIZE`] long.
    ///
    /// # Errors
    /// Those of the memory. A commit that failed can be tried again.
    fn write(&mut self, block: u16, first: u64, data: &[u8]) -> io::Result<()>;

    /// Gets one page, on which a patch is to be applied.
    ///
    /// # Errors
    /// Those of the memory.
    fn read(&mut self, block: u16, page: u64, into: &mut Page) -> io::Result<()>;

    /// Applies operations to a volume: those of a sync round, as they come.
    ///
    /// # Errors
    /// Those of the volume, or operations that make no sense. A receiver without volumes refuses them.
    fn volume(&mut self, volume: u16, operations: &[u8]) -> io::Result<()> {
        let _ = (volume, operations);
        Err(io::Error::new(io::ErrorKind::Unsupported, "this VM has no volumes"))
    }

    /// Puts `count` pages of zeros.
    ///
    /// # Errors
    /// Those of the memory.
    fn zero(&mut self, block: u16, first: u64, count: u64) -> io::Result<()> {
        static ZEROS: [u8; 16 * PAGE_SIZE] = [0; 16 * PAGE_SIZE];
        let mut done = 0;
        while done < count {
            let pages = (count - done).min(16);
            self.write(block, first + done, &ZEROS[..pages as usize * PAGE_SIZE])?;
            done += pages;
        }
        Ok(())
    }
}

/// What a record led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// It is no part of a pass: the caller's to deal with.
    Other,
    /// It was taken; more has to come.
    More,
    /// This sync round is in memory. Acknowledge it.
    Synced(Pass),
    /// This checkpoint is here, whole and checked. Acknowledge it, then [`commit`](CheckpointAssembler::commit).
    Whole(Pass),
}

/// What is needed beside memory to resume from a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint<'a> {
    pub epoch: Epoch,
    /// The term in which it was sent.
    pub term: Term,
    pub device_state: &'a [u8],
    output: &'a [Vec<u8>],
    volumes: &'a [Vec<u8>],
}

impl<'a> Checkpoint<'a> {
    /// What the guest wrote to `channel` in this epoch.
    pub fn output(&self, channel: u8) -> &'a [u8] {
        self.output.get(usize::from(channel)).map_or(&[], Vec::as_slice)
    }

    /// The guest's operations on `volume` in this epoch.
    pub fn volume_writes(&self, volume: u16) -> &'a [u8] {
        self.volumes.get(usize::from(volume)).map_or(&[], Vec::as_slice)
    }
}

/// The pages of a whole checkpoint that is not yet in memory.
#[derive(Debug, Clone, Copy)]
pub struct Pending<'a> {
    staged: &'a Staged,
}

impl<'a> Pending<'a> {
    /// Contents of the runs of [`Pending::pages`], one behind the other.
    pub fn content(&self) -> &'a [u8] {
        &self.staged.bytes
    }

    /// The pages that are not zero. Each page is in one of the runs of the checkpoint at most.
    pub fn pages(&self) -> impl Iterator<Item = PageRun> + use<'a> {
        self.runs(false)
    }

    /// The pages that are zero.
    pub fn zeros(&self) -> impl Iterator<Item = PageRun> + use<'a> {
        self.runs(true)
    }

    fn runs(&self, zero: bool) -> impl Iterator<Item = PageRun> + use<'a> {
        // A run of the layout's 2^32 pages is cut where its length would not fit.
        self.staged.runs.iter().filter(move |run| run.zero == zero).flat_map(|run| {
            let most = u64::from(u32::MAX);
            (0..run.count.div_ceil(most)).map(move |n| PageRun {
                block: run.block,
                first: run.first + n * most,
                count: (run.count - n * most).min(most) as u32,
            })
        })
    }
}

/// Collects passes of one session. See the diagram in [`super`]; one owner.
///
/// Memory is bounded: by the layout (a page comes at most once in a pass) and by [`MAX_DEVICE_STATE`] and [`MAX_OUTPUT`].
/// Buffers are kept from checkpoint to checkpoint.
#[derive(Debug)]
pub struct CheckpointAssembler {
    session: u64,
    layout: Layout,
    lanes: u8,
    term: Term,
    /// How far a term may be ahead of the last; none: as far as it likes.
    most_ahead: Option<u64>,
    last_round: Epoch,
    last_whole: Epoch,
    /// What came before this stream.
    before: Epoch,
    open: Option<Open>,
    /// A checkpoint that is whole and not yet in memory.
    pending: bool,
    failed: bool,
    seen: Seen,
    staged: Staged,
    /// Of the last whole checkpoint.
    held: Held,
}

/// See [`CheckpointAssembler::from_a_peer`]. A primary has a new term for each change of its backups and each doubt; between two checkpoints that is
/// a handful.
const MOST_AHEAD: u64 = 1 << 16;

#[derive(Debug)]
struct Open {
    pass: Pass,
    begun: Option<Term>,
    announced: Option<Totals>,
    got: Totals,
}

/// The parts of a checkpoint beside memory.
#[derive(Debug, Default)]
struct Held {
    term: Term,
    state: Vec<u8>,
    output: Vec<Vec<u8>>,
    volumes: Vec<Vec<u8>>,
}

impl Held {
    fn clear(&mut self) {
        self.state.clear();
        self.output.iter_mut().for_each(Vec::clear);
        self.volumes.iter_mut().for_each(Vec::clear);
    }
}

impl CheckpointAssembler {
    /// For the session that a `Hello` opened: its `session`, `term`, `layout` and `lanes`.
    pub fn new(session: u64, term: Term, layout: Layout, lanes: u8) -> Self {
        let seen = Seen::new(&layout);
        Self {
            session,
            layout,
            lanes,
            term,
            most_ahead: None,
            last_round: Epoch(0),
            last_whole: Epoch(0),
            before: Epoch(0),
            open: None,
            pending: false,
            failed: false,
            seen,
            staged: Staged::default(),
            held: Held::default(),
        }
    }

    /// The same for a stream that goes on after checkpoint `epoch`: that of a file. The next is `epoch + 1`, and no sync
    /// round may come unless `epoch` is 0.
    #[must_use]
    pub fn after(mut self, epoch: Epoch) -> Self {
        self.last_whole = epoch;
        self.before = epoch;
        self
    }

    /// The same for a stream from a living host, which tells of its terms as they come: one that is far ahead of the last is not believed. A backup
    /// would take what the witness shows for old, and wait for a term that never comes.
    #[must_use]
    pub fn from_a_peer(mut self) -> Self {
        self.most_ahead = Some(MOST_AHEAD);
        self
    }

    /// The session.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// The layout of the memory that is being filled.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The highest term met. It never goes back.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The last whole checkpoint; 0 if there is none yet.
    pub fn whole(&self) -> Epoch {
        self.last_whole
    }

    /// The last whole checkpoint, to resume from once [`commit`](Self::commit) has put its pages into memory.
    pub fn checkpoint(&self) -> Option<Checkpoint<'_>> {
        (self.last_whole > self.before).then(|| Checkpoint {
            epoch: self.last_whole,
            term: self.held.term,
            device_state: &self.held.state,
            output: &self.held.output,
            volumes: &self.held.volumes,
        })
    }

    /// Takes out the guest's operations on `volume` in the last whole checkpoint, so that they need not be copied. To be
    /// done for each checkpoint: the next one's take their place.
    pub fn take_volume_writes(&mut self, volume: u16) -> Vec<u8> {
        self.held.volumes.get_mut(usize::from(volume)).map(std::mem::take).unwrap_or_default()
    }

    /// Takes one record. A whole checkpoint that the caller has not committed is committed first.
    ///
    /// # Errors
    /// See [`StreamError`]. What had come of the open pass is dropped, every later record is refused, and the last whole
    /// checkpoint stays as it was: [`commit`](Self::commit) and [`checkpoint`](Self::checkpoint) go on working.
    pub fn feed<S: PageSink + ?Sized>(&mut self, frame: &Frame<'_>, sink: &mut S) -> Result<Fed, StreamError> {
        if self.failed {
            return Err(unexpected(&frame.record, "the stream was refused before"));
        }
        let result = self.take(frame, sink);
        if result.is_err() {
            self.abandon();
            self.failed = true;
        }
        result
    }

    /// Drops the pass that is being collected. Call it when the connection is lost; an error does it by itself.
    pub fn abandon(&mut self) {
        self.open = None;
        // A whole checkpoint's pages are still to be applied.
        if !self.pending {
            self.staged.clear();
        }
    }

    /// Puts the pages of the last whole checkpoint into memory; answers how many there were. Does nothing if they are
    /// there already.
    ///
    /// # Errors
    /// [`StreamError::Memory`]: memory then holds a part. Only another commit makes it whole; it can be tried again.
    pub fn commit<S: PageSink + ?Sized>(&mut self, sink: &mut S) -> Result<u64, StreamError> {
        if !self.pending {
            return Ok(0);
        }
        let pages = self.staged.apply(sink).map_err(StreamError::Memory)?;
        self.staged.clear();
        self.pending = false;
        Ok(pages)
    }

    /// The pages of the last whole checkpoint, while they are not yet in memory: to be written elsewhere too.
    pub fn pending(&self) -> Option<Pending<'_>> {
        self.pending.then_some(Pending { staged: &self.staged })
    }

    fn take<S: PageSink + ?Sized>(&mut self, frame: &Frame<'_>, sink: &mut S) -> Result<Fed, StreamError> {
        let record = &frame.record;
        let pass = match record {
            Record::Begin { pass, .. } | Record::End { pass, .. } => *pass,
            Record::Pages(Pages { pass, .. })
            | Record::DeviceState(DeviceState { pass, .. })
            | Record::ChannelOutput(Output { pass, .. })
            | Record::VolumeWrites(VolumeWrites { pass, .. }) => *pass,
            Record::Bound { session, term } => {
                self.check_session(*session)?;
                self.check_term(*term)?;
                return Ok(Fed::Other);
            }
            _ => return Ok(Fed::Other),
        };
        self.enter(record, pass)?;
        self.commit(sink)?;
        match record {
            Record::Begin { term, .. } => self.begin(record, *term)?,
            Record::End { totals, .. } => self.announce(record, totals)?,
            Record::Pages(pages) => self.pages(pages, sink)?,
            Record::DeviceState(state) => self.device_state(record, state)?,
            Record::ChannelOutput(output) => self.output(record, output)?,
            Record::VolumeWrites(writes) => self.volume_writes(record, writes, sink)?,
            _ => {}
        }
        if let Some(open) = &mut self.open
            && !matches!(record, Record::Begin { .. } | Record::End { .. })
        {
            open.got.records += 1;
            open.got.digest = open.got.digest.wrapping_add(frame.checksum.into());
        }
        self.complete()
    }

    fn check_session(&self, session: u64) -> Result<(), StreamError> {
        if session == self.session {
            Ok(())
        } else {
            Err(StreamError::WrongSession { expected: self.session, got: session })
        }
    }

    fn check_term(&mut self, term: Term) -> Result<(), StreamError> {
        let is_ahead = self.most_ahead.is_some_and(|most| term.0.saturating_sub(self.term.0) > most);
        if term < self.term || is_ahead {
            return Err(StreamError::WrongTerm { current: self.term, got: term });
        }
        self.term = term;
        Ok(())
    }

    /// Lets in a record of the pass that is due, and opens that pass with its first record.
    fn enter(&mut self, record: &Record<'_>, pass: Pass) -> Result<(), StreamError> {
        self.check_session(pass.session)?;
        if let Some(open) = &self.open {
            if open.pass.kind != pass.kind {
                return Err(unexpected(record, "a pass of another kind is open"));
            }
            return due(pass, open.pass.epoch);
        }
        match pass.kind {
            PassKind::Sync if self.last_whole > Epoch(0) => {
                return Err(unexpected(record, "a checkpoint is held, a sync round would spoil it"));
            }
            PassKind::Sync => due(pass, self.last_round.next())?,
            // Epochs count for the primary's reign: a session may begin with any.
            PassKind::Checkpoint if self.last_whole == Epoch(0) && pass.epoch > Epoch(0) => {}
            PassKind::Checkpoint => due(pass, self.last_whole.next())?,
        }
        // Over several connections other records can overtake `Begin`; on a single one nothing can.
        if self.lanes <= 1 && !matches!(record, Record::Begin { .. }) {
            return Err(unexpected(record, "no pass is open"));
        }
        self.seen.clear();
        self.open = Some(Open { pass, begun: None, announced: None, got: Totals::default() });
        Ok(())
    }

    fn begin(&mut self, record: &Record<'_>, term: Term) -> Result<(), StreamError> {
        self.check_term(term)?;
        match &mut self.open {
            Some(open) if open.begun.is_none() => open.begun = Some(term),
            _ => return Err(unexpected(record, "the pass has begun already")),
        }
        Ok(())
    }

    fn announce(&mut self, record: &Record<'_>, totals: &Totals) -> Result<(), StreamError> {
        match &mut self.open {
            Some(open) if open.announced.is_none() => open.announced = Some(*totals),
            _ => return Err(unexpected(record, "the pass has ended already")),
        }
        Ok(())
    }

    fn pages<S: PageSink + ?Sized>(&mut self, pages: &Pages<'_>, sink: &mut S) -> Result<(), StreamError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let block = pages.block;
        let mut scratch: Page = [0; PAGE_SIZE];
        // Rounds are applied as they come, so that the last record of a round leaves nothing to do.
        let at_once = open.pass.kind == PassKind::Sync;
        for entry in pages.iter() {
            let entry = entry?;
            let page = u64::from(entry.page);
            let bad = |what| StreamError::Page { block, page, what };
            let count = if let PageContent::Zero { count } = entry.content { count.into() } else { 1 };
            self.seen.mark(block, page, count).map_err(bad)?;
            open.got.pages += count;
            let content: &Page = match entry.content {
                PageContent::Zero { .. } => {
                    if at_once {
                        sink.zero(block, page, count).map_err(StreamError::Memory)?;
                    } else {
                        self.staged.zero(block, page, count);
                    }
                    continue;
                }
                PageContent::Raw(content) => content,
                PageContent::Lz4(packed) => match decompress_into(packed, &mut scratch) {
                    Ok(PAGE_SIZE) => &scratch,
                    _ => return Err(bad("its compressed content is corrupt")),
                },
                PageContent::Delta(patch) => {
                    sink.read(block, page, &mut scratch).map_err(StreamError::Memory)?;
                    apply_patch(patch, &mut scratch).map_err(bad)?;
                    &scratch
                }
            };
            if at_once {
                sink.write(block, page, content).map_err(StreamError::Memory)?;
            } else {
                self.staged.push(block, page, content);
            }
        }
        Ok(())
    }

    fn device_state(&mut self, record: &Record<'_>, state: &DeviceState<'_>) -> Result<(), StreamError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if open.pass.kind == PassKind::Sync {
            return Err(unexpected(record, "a sync round has no device state"));
        }
        if state.offset != open.got.state_bytes {
            return Err(unexpected(record, "it is not the next piece"));
        }
        open.got.state_bytes = grown("device state", open.got.state_bytes, state.bytes.len(), MAX_DEVICE_STATE)?;
        self.staged.parts.state.extend_from_slice(state.bytes);
        Ok(())
    }

    fn output(&mut self, record: &Record<'_>, output: &Output<'_>) -> Result<(), StreamError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if open.pass.kind == PassKind::Sync {
            return Err(unexpected(record, "a sync round has no output"));
        }
        let channel = usize::from(output.channel);
        let channels = &mut self.staged.parts.output;
        if channels.len() <= channel {
            channels.resize_with(channel + 1, Vec::new);
        }
        if output.offset != channels[channel].len() as u64 {
            return Err(unexpected(record, "it is not the next piece"));
        }
        open.got.output_bytes = grown("channel output", open.got.output_bytes, output.bytes.len(), MAX_OUTPUT)?;
        channels[channel].extend_from_slice(output.bytes);
        Ok(())
    }

    fn volume_writes<S: PageSink + ?Sized>(
        &mut self,
        record: &Record<'_>,
        writes: &VolumeWrites<'_>,
        sink: &mut S,
    ) -> Result<(), StreamError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        open.got.volume_bytes = grown("volume writes", open.got.volume_bytes, writes.bytes.len(), u64::MAX)?;
        if open.pass.kind == PassKind::Sync {
            return sink.volume(writes.volume, writes.bytes).map_err(StreamError::Volume);
        }
        grown("volume writes", open.got.volume_bytes, 0, MAX_VOLUME_WRITES)?;
        let volume = usize::from(writes.volume);
        let volumes = &mut self.staged.parts.volumes;
        if volumes.len() <= volume {
            volumes.resize_with(volume + 1, Vec::new);
        }
        if writes.offset != volumes[volume].len() as u64 {
            return Err(unexpected(record, "it is not the next piece"));
        }
        volumes[volume].extend_from_slice(writes.bytes);
        Ok(())
    }

    /// Closes the open pass if nothing of it is missing.
    fn complete(&mut self) -> Result<Fed, StreamError> {
        let Some(Open { pass, begun, announced: Some(announced), got }) = &self.open else {
            return Ok(Fed::More);
        };
        let pass = *pass;
        for (what, expected, got) in [
            ("records", announced.records, got.records),
            ("pages", announced.pages, got.pages),
            ("bytes of device state", announced.state_bytes, got.state_bytes),
            ("bytes of output", announced.output_bytes, got.output_bytes),
            ("bytes of volume writes", announced.volume_bytes, got.volume_bytes),
        ] {
            if got > expected || (got < expected && self.lanes <= 1) {
                return Err(StreamError::Totals { what, expected, got });
            }
        }
        let Some(term) = begun.filter(|_| got.records == announced.records) else {
            return Ok(Fed::More);
        };
        if got != announced {
            return Err(StreamError::Totals { what: "digest", expected: announced.digest, got: got.digest });
        }
        self.open = None;
        match pass.kind {
            PassKind::Sync => {
                self.last_round = pass.epoch;
                Ok(Fed::Synced(pass))
            }
            PassKind::Checkpoint => {
                self.last_whole = pass.epoch;
                self.pending = true;
                // From here on this checkpoint is the one to resume from.
                std::mem::swap(&mut self.held, &mut self.staged.parts);
                self.held.term = term;
                self.staged.parts.clear();
                Ok(Fed::Whole(pass))
            }
        }
    }
}

fn unexpected(record: &Record<'_>, why: &'static str) -> StreamError {
    StreamError::Unexpected { record: record.kind().name(), why }
}

fn due(pass: Pass, expected: Epoch) -> Result<(), StreamError> {
    let what = match pass.kind {
        PassKind::Sync => "sync round",
        PassKind::Checkpoint => "checkpoint",
    };
    if pass.epoch == expected { Ok(()) } else { Err(StreamError::WrongEpoch { what, expected, got: pass.epoch }) }
}

fn grown(what: &'static str, have: u64, more: usize, bound: u64) -> Result<u64, StreamError> {
    let length = have.saturating_add(more as u64);
    if length > bound { Err(StreamError::TooLarge { what, length, bound }) } else { Ok(length) }
}

/// Which pages have come in this pass.
#[derive(Debug)]
struct Seen {
    blocks: Vec<(u64, Vec<u64>)>,
}

impl Seen {
    fn new(layout: &Layout) -> Self {
        let blocks = (0u16..)
            .map_while(|b| layout.pages(b))
            .map(|pages| (pages, vec![0; usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX)]))
            .collect();
        Self { blocks }
    }

    fn clear(&mut self) {
        self.blocks.iter_mut().for_each(|(_, bits)| bits.fill(0));
    }

    fn mark(&mut self, block: u16, first: u64, count: u64) -> Result<(), &'static str> {
        let (pages, bits) = self.blocks.get_mut(usize::from(block)).ok_or("there is no such block")?;
        if first + count > *pages {
            return Err("it is outside its block");
        }
        for page in first..first + count {
            let (word, bit) = (&mut bits[page as usize / 64], 1 << (page % 64));
            if *word & bit != 0 {
                return Err("it came twice in one pass");
            }
            *word |= bit;
        }
        Ok(())
    }
}

/// A checkpoint's pages and parts until they are applied.
#[derive(Debug, Default)]
struct Staged {
    runs: Vec<StagedRun>,
    bytes: Vec<u8>,
    parts: Held,
}

#[derive(Debug, Clone, Copy)]
struct StagedRun {
    block: u16,
    zero: bool,
    first: u64,
    count: u64,
}

impl Staged {
    fn clear(&mut self) {
        self.runs.clear();
        self.bytes.clear();
        self.parts.clear();
    }

    fn push(&mut self, block: u16, page: u64, content: &Page) {
        self.extend(StagedRun { block, zero: false, first: page, count: 1 });
        self.bytes.extend_from_slice(content);
    }

    fn zero(&mut self, block: u16, first: u64, count: u64) {
        self.extend(StagedRun { block, zero: true, first, count });
    }

    /// Neighbours become one run: one write instead of many.
    fn extend(&mut self, run: StagedRun) {
        match self.runs.last_mut() {
            Some(last) if last.block == run.block && last.zero == run.zero && last.first + last.count == run.first => {
                last.count += run.count;
            }
            _ => self.runs.push(run),
        }
    }

    fn apply<S: PageSink + ?Sized>(&self, sink: &mut S) -> io::Result<u64> {
        let (mut at, mut pages) = (0, 0);
        for run in &self.runs {
            if run.zero {
                sink.zero(run.block, run.first, run.count)?;
            } else {
                let end = at + run.count as usize * PAGE_SIZE;
                sink.write(run.block, run.first, &self.bytes[at..end])?;
                at = end;
            }
            pages += run.count;
        }
        Ok(pages)
    }
}
