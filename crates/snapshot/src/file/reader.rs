//! Reading a snapshot, through the chain of its parents.

mod flatten;

use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ninefold_model::Term;
use ninefold_replica::stream::header::PREAMBLE_LEN;
use ninefold_replica::stream::page::PAGE_SIZE;
use ninefold_replica::stream::record::{MAX_DEVICE_STATE, MAX_OUTPUT};
use ninefold_replica::stream::{Hello, PageSink, PassKind, Record, RecordReader, Section, StreamError};
use ninefold_volume::Image;
use ninefold_volume::checksums::blocks;

use super::content::unpack;
use super::end::{self, End, Rooting};
use super::error::FileError;
use super::head::{self, FORMAT, Head, Parent};
use super::index::{self, Entry, Index, Of, Places};
use super::{BLOCK, MAX_DEPTH, Root, SUM};

/// Read at a time when contents lie next to each other, bytes.
const WINDOW: u64 = 1 << 20;

/// Who is told how much of how much is done, and may say that it is enough.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>;

fn tell(told: OnProgress<'_>, done: u64, total: u64) -> Result<(), FileError> {
    match told(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(FileError::Cancelled),
    }
}

/// The parts of a snapshot beside memory and volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The term in which it was taken.
    pub term: Term,
    pub device_state: Vec<u8>,
    /// What the guest had said on each channel.
    pub output: Vec<Vec<u8>>,
}

/// A snapshot that was opened: head, index and state check out; contents are checked as they are read.
#[derive(Debug)]
pub struct Snapshot {
    file: File,
    hello: Hello,
    head: Head,
    state: State,
    memory: Vec<Index>,
    volumes: Vec<Index>,
    end: End,
    bytes: u64,
    parent: Option<Arc<Snapshot>>,
}

impl Snapshot {
    /// Opens a snapshot. `find` opens its parent, if it has one.
    ///
    /// The file may be anybody's. What this takes in memory is bounded by the file's length (some 10 times what its index has),
    /// and so is all that is read from it later: no two contents share bytes, and none unpacks to more than a page or block.
    ///
    /// # Errors
    /// `NotWhole`, `Version`, `Damaged`, `Beyond`, `Stream`, `Io`; `WrongParent`, `TooDeep`, those of `find`.
    pub fn open(
        file: File,
        find: &mut dyn FnMut(&Parent) -> Result<Arc<Snapshot>, FileError>,
    ) -> Result<Self, FileError> {
        let length = file.metadata().map_err(FileError::io("cannot read"))?.len();
        let contents_end = length.checked_sub(end::RECORD as u64).ok_or(FileError::NotWhole)?;
        FileError::within("bytes", length, index::MAX_BYTES)?;
        let end = read_end(&file, contents_end)?;

        let mut rooting = Rooting::new();
        let (hello, head, header) = read_header(&file, contents_end)?;
        let bad_place = !(header as u64 <= end.checkpoint
            && end.checkpoint < end.volumes
            && end.volumes <= end.index
            && end.index <= contents_end);
        if bad_place {
            return Err(FileError::damaged("its parts are not where they should be"));
        }
        head.check()?;
        if hello.spec.hardware.volumes.iter().map(|v| v.size).ne(head.volumes.iter().copied()) {
            return Err(FileError::damaged("its volumes are not those of its VM"));
        }
        // Before the index is read: of a chain that does not hold together one is in memory at a time.
        let parent = head.parent.as_ref().map(|wanted| find_parent(wanted, &hello, &head, find)).transpose()?;
        let mut bytes = vec![0; header];
        file.read_exact_at(&mut bytes, 0).map_err(FileError::io("cannot read"))?;
        rooting.part(&bytes);

        let state = read_state(&file, hello.session, &end)?;
        rooting.state(&state.device_state, &state.output);
        let mut this = Self {
            memory: vec![Index::default(); hello.layout.blocks().len()],
            volumes: vec![Index::default(); head.volumes.len()],
            file,
            hello,
            head,
            state,
            end,
            bytes: length,
            parent,
        };
        this.read_index(header as u64, contents_end, &mut rooting)?;
        let root = rooting.finish();
        if root != end.root {
            return Err(FileError::damaged("its root is not that of its content"));
        }
        this.check_parents()?;
        Ok(this)
    }

    fn read_index(&mut self, header: u64, contents_end: u64, rooting: &mut Rooting) -> Result<(), FileError> {
        let (mut last, mut places) = (Of::Memory(0), Places::default());
        let contents = header..self.end.index;
        let mut reader = RecordReader::new(Cursor { file: &self.file, at: self.end.index, end: contents_end });
        while let Some(frame) = reader.next_record()? {
            let Record::Section { section: Section::Index, bytes } = frame.record else {
                return Err(FileError::damaged("something else is in the index"));
            };
            let (of, entries) = index::head(bytes).ok_or_else(|| FileError::damaged("an index of nothing"))?;
            if of < last {
                return Err(FileError::damaged("the index is not in order"));
            }
            last = of;
            let (index, units) = match of {
                Of::Memory(block) => (self.memory.get_mut(usize::from(block)), self.hello.layout.pages(block)),
                Of::Volume(volume) => (
                    self.volumes.get_mut(usize::from(volume)),
                    self.head.volumes.get(usize::from(volume)).map(|&size| blocks(size)),
                ),
            };
            let (Some(index), Some(units)) = (index, units) else {
                return Err(FileError::damaged(format!("an index of {}, which the VM has not", of.name())));
            };
            let known = index.entries().len();
            index.extend(of, units, entries, &contents)?;
            places.extend(&index.entries()[known..]);
            rooting.part(bytes);
        }
        if !places.are_apart() {
            return Err(FileError::damaged("two of its contents overlap"));
        }
        let count = |all: &[Index]| all.iter().map(|i| i.entries().len() as u64).sum::<u64>();
        if (count(&self.memory), count(&self.volumes)) != (self.end.pages, self.end.blocks) {
            return Err(FileError::damaged("a part of its index is missing"));
        }
        Ok(())
    }

    /// What is said to be in the parent is there.
    fn check_parents(&self) -> Result<(), FileError> {
        for (of, entry) in self.all().filter(|(_, entry)| entry.place.in_parent()) {
            if self.parent.as_ref().and_then(|p| p.sum(of, entry.number)) != Some(entry.sum) {
                let what = format!("{} number {} is not in its parent", of.name(), entry.number);
                return Err(FileError::damaged(what));
            }
        }
        Ok(())
    }

    /// The head alone of a snapshot file.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn head_of(file: &File) -> Result<Head, FileError> {
        let length = file.metadata().map_err(FileError::io("cannot read"))?.len();
        read_header(file, length).map(|(_, head, _)| head)
    }

    /// The VM.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// The checksum of all that it holds.
    pub fn root(&self) -> Root {
        self.end.root
    }

    /// How many parents it has.
    pub fn depth(&self) -> usize {
        self.parent.as_ref().map_or(0, |parent| parent.depth() + 1)
    }

    /// The file's length, bytes, without its parents.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Pages and blocks that are not zero.
    pub fn counts(&self) -> (u64, u64) {
        (self.end.pages, self.end.blocks)
    }

    fn index(&self, of: Of) -> Option<&Index> {
        match of {
            Of::Memory(block) => self.memory.get(usize::from(block)),
            Of::Volume(volume) => self.volumes.get(usize::from(volume)),
        }
    }

    pub(super) fn sum(&self, of: Of, number: u32) -> Option<[u8; SUM]> {
        self.index(of)?.get(number).map(|entry| entry.sum)
    }

    /// Everything that is not zero.
    fn all(&self) -> impl Iterator<Item = (Of, &Entry)> {
        let memory = (0u16..).map(Of::Memory).zip(&self.memory);
        let volumes = (0u16..).map(Of::Volume).zip(&self.volumes);
        memory.chain(volumes).flat_map(|(of, index)| index.entries().iter().map(move |entry| (of, entry)))
    }

    /// The file in which a content stands.
    fn holder(&self, of: Of, number: u32) -> Option<(&Snapshot, &Entry)> {
        let mut holder = self;
        loop {
            let entry = holder.index(of)?.get(number)?;
            if !entry.place.in_parent() {
                return Some((holder, entry));
            }
            holder = holder.parent.as_deref()?;
        }
    }

    /// Reads a page or block; `into` has its length. Zeros if it is not in the index.
    fn unit(&self, of: Of, number: u32, into: &mut [u8]) -> Result<(), FileError> {
        if self.sum(of, number).is_none() {
            into.fill(0);
            return Ok(());
        }
        let bad = |what: &str| FileError::damaged(format!("{} number {number} {what}", of.name()));
        let (holder, entry) = self.holder(of, number).ok_or_else(|| bad("is missing"))?;
        let mut stored = vec![0; entry.place.length as usize];
        holder.file.read_exact_at(&mut stored, entry.place.offset).map_err(FileError::io("cannot read"))?;
        unpack(entry.place.encoding, &stored, &entry.sum, into).map_err(bad)
    }

    /// The length of a block of a volume, bytes.
    fn block_length(&self, volume: u16, number: u64) -> Result<usize, FileError> {
        let size = self.head.volumes.get(usize::from(volume)).copied().unwrap_or(0);
        number
            .checked_mul(BLOCK as u64)
            .and_then(|at| size.checked_sub(at))
            .filter(|left| *left > 0)
            .map(|left| left.min(BLOCK as u64) as usize)
            .ok_or_else(|| FileError::Refused(format!("volume {volume} has no block {number}")))
    }

    /// One page.
    ///
    /// # Errors
    /// `Refused` if there is none; `Damaged`, `Io`.
    pub fn page(&self, block: u16, number: u64, into: &mut [u8; PAGE_SIZE]) -> Result<(), FileError> {
        let pages = self.hello.layout.pages(block).unwrap_or(0);
        if number >= pages {
            return Err(FileError::Refused(format!("block {block} has no page {number}")));
        }
        self.unit(Of::Memory(block), number as u32, into)
    }

    /// One block of a volume; the last may be shorter.
    ///
    /// # Errors
    /// As [`Snapshot::page`].
    pub fn block(&self, volume: u16, number: u64, into: &mut Vec<u8>) -> Result<(), FileError> {
        let length = self.block_length(volume, number)?;
        into.resize(length, 0);
        self.unit(Of::Volume(volume), number as u32, into)
    }

    /// Puts the memory into `sink`. Blocks that are `fresh` hold nothing but zeros so far. `told` hears how many pages of how
    /// many are done.
    ///
    /// # Errors
    /// `Damaged`, `Io`, `Target`: memory is then of no use.
    pub fn load(
        &self,
        fresh: &dyn Fn(u16) -> bool,
        sink: &mut dyn PageSink,
        told: OnProgress<'_>,
    ) -> Result<(), FileError> {
        let target = |source| FileError::Target { what: "memory cannot be written", source };
        for (block, index) in (0u16..).zip(&self.memory).filter(|(block, _)| !fresh(*block)) {
            let pages = self.hello.layout.pages(block).unwrap_or(0);
            let mut next = 0;
            for number in index.entries().iter().map(|e| u64::from(e.number)).chain([pages]) {
                if number > next {
                    sink.zero(block, next, number - next).map_err(target)?;
                }
                next = number + 1;
            }
        }
        // File by file, and in each from front to end.
        let mut all = Vec::with_capacity(self.end.pages as usize);
        for (block, index) in (0u16..).zip(&self.memory) {
            for entry in index.entries() {
                let found = self.holder(Of::Memory(block), entry.number);
                let (holder, place) = found.ok_or_else(|| FileError::damaged("a page is missing"))?;
                all.push((holder, place, block));
            }
        }
        all.sort_by_key(|(holder, entry, _)| (holder.depth(), entry.place.offset));
        let (mut window, mut start, mut of) = (Vec::new(), 0, None);
        let mut page = [0; PAGE_SIZE];
        for (done, (holder, entry, block)) in all.iter().enumerate() {
            let place = &entry.place;
            let end = place.offset + u64::from(place.length);
            if of != Some(holder.depth()) || place.offset < start || end > start + window.len() as u64 {
                start = place.offset;
                of = Some(holder.depth());
                let length = WINDOW.min(holder.end.index - start);
                window.resize(length as usize, 0);
                holder.file.read_exact_at(&mut window, start).map_err(FileError::io("cannot read"))?;
            }
            let stored = &window[(place.offset - start) as usize..(end - start) as usize];
            let bad = |what| FileError::damaged(format!("block {block} page {} {what}", entry.number));
            unpack(place.encoding, stored, &entry.sum, &mut page).map_err(bad)?;
            sink.write(*block, entry.number.into(), &page).map_err(target)?;
            if done % 1024 == 0 {
                tell(told, done as u64, self.end.pages)?;
            }
        }
        tell(told, self.end.pages, self.end.pages)?;
        Ok(())
    }

    /// Makes an image what the volume was. The image has its size.
    ///
    /// # Errors
    /// `Damaged`, `Io`; `Target`: the image is then of no use. `Refused` if its size is another: nothing was written.
    pub fn restore_volume(&self, volume: u16, image: &dyn Image, told: OnProgress<'_>) -> Result<(), FileError> {
        let size = self.head.volumes.get(usize::from(volume)).copied();
        if size != Some(image.size()) {
            let size = size.map_or_else(|| "is not in it".into(), |size| format!("has {size} bytes"));
            let what = format!("volume {volume} {size}, the image has {} bytes", image.size());
            return Err(FileError::Refused(what));
        }
        let failed = |e| FileError::Target { what: "the volume cannot be written", source: io::Error::other(e) };
        let all = blocks(image.size());
        let mut content = Vec::new();
        let mut zeros = 0..0;
        for number in 0..=all {
            let is_zero = number < all && self.sum(Of::Volume(volume), number as u32).is_none();
            if is_zero {
                if zeros.is_empty() {
                    zeros = number..number;
                }
                zeros.end = number + 1;
                continue;
            }
            if !zeros.is_empty() {
                let (at, end) = (zeros.start * BLOCK as u64, (zeros.end * BLOCK as u64).min(image.size()));
                image.zero(at, end - at, true).map_err(failed)?;
                zeros = 0..0;
            }
            if number < all {
                self.block(volume, number, &mut content)?;
                image.write(number * BLOCK as u64, &content).map_err(failed)?;
            }
            if number % 64 == 0 {
                tell(told, number, all)?;
            }
        }
        image.flush().map_err(failed)?;
        tell(told, all, all)?;
        Ok(())
    }

    /// Reads everything, in the parents too, and compares the checksums.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn verify(&self, told: OnProgress<'_>) -> Result<(), FileError> {
        let total = self.end.pages + self.end.blocks;
        let mut content = Vec::new();
        for (done, (of, entry)) in (0u64..).zip(self.all()) {
            let length = match of {
                Of::Memory(_) => PAGE_SIZE,
                Of::Volume(volume) => self.block_length(volume, entry.number.into())?,
            };
            content.resize(length, 0);
            self.unit(of, entry.number, &mut content)?;
            if done % 256 == 0 {
                tell(told, done, total)?;
            }
        }
        tell(told, total, total)?;
        Ok(())
    }
}

/// Opens the parent that a snapshot names, and sees whether it is that.
fn find_parent(
    wanted: &Parent,
    hello: &Hello,
    head: &Head,
    find: &mut dyn FnMut(&Parent) -> Result<Arc<Snapshot>, FileError>,
) -> Result<Arc<Snapshot>, FileError> {
    let parent = find(wanted)?;
    if parent.root() != wanted.root {
        return Err(FileError::WrongParent { wanted: wanted.root, found: parent.root() });
    }
    if parent.depth() + 1 > MAX_DEPTH {
        return Err(FileError::TooDeep(MAX_DEPTH));
    }
    hello.layout.same_as(&parent.hello.layout)?;
    if head.volumes != parent.head.volumes {
        return Err(FileError::damaged("its parent has other volumes"));
    }
    Ok(parent)
}

/// Hello, head, and where they end, bytes. If the end of the file is there, what is wrong before it is damage, or of another
/// version.
fn read_header(file: &File, end: u64) -> Result<(Hello, Head, usize), FileError> {
    let mut reader = RecordReader::new(Cursor { file, at: 0, end });
    reader.preamble()?.agree()?;
    let mut header = PREAMBLE_LEN;
    let frame = reader.next_record()?.ok_or(FileError::NotWhole)?;
    header += frame.wire_len;
    let Record::Hello(hello) = frame.record else { return Err(FileError::damaged("it has no Hello")) };
    let frame = reader.next_record()?.ok_or(FileError::NotWhole)?;
    header += frame.wire_len;
    let Record::Section { section: Section::Head, bytes } = frame.record else {
        return Err(FileError::damaged("it has no head"));
    };
    Ok((*hello, parse_head(bytes)?, header))
}

fn read_end(file: &File, at: u64) -> Result<End, FileError> {
    let mut record = [0; end::RECORD];
    file.read_exact_at(&mut record, at).map_err(FileError::io("cannot read"))?;
    match RecordReader::new(&record[..]).next_record() {
        Ok(Some(frame)) => match frame.record {
            Record::Section { section: Section::End, bytes } => End::from_bytes(bytes).ok_or(FileError::NotWhole),
            _ => Err(FileError::NotWhole),
        },
        _ => Err(FileError::NotWhole),
    }
}

fn parse_head(bytes: &[u8]) -> Result<Head, FileError> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
    }
    let bad = |e: serde_json::Error| FileError::damaged(format!("its head: {e}"));
    if bytes.len() > head::MAX {
        return Err(FileError::damaged("its head is too long"));
    }
    // The version first: another one may have other fields.
    let Version { format } = serde_json::from_slice(bytes).map_err(bad)?;
    if format != FORMAT {
        return Err(FileError::Version(format, FORMAT));
    }
    serde_json::from_slice(bytes).map_err(bad)
}

/// Reads the beginning of the checkpoint, up to its pages.
fn read_state(file: &File, session: u64, end: &End) -> Result<State, FileError> {
    let mut reader = RecordReader::new(Cursor { file, at: end.checkpoint, end: end.volumes });
    let bad = |what: &str| FileError::damaged(format!("its checkpoint: {what}"));
    let begin = reader.next_record()?.ok_or_else(|| bad("it is missing"))?;
    let (pass, term) = match begin.record {
        Record::Begin { pass, term } if pass.kind == PassKind::Checkpoint && pass.session == session => (pass, term),
        _ => return Err(bad("it does not begin")),
    };
    let mut state = State { term, device_state: Vec::new(), output: Vec::new() };
    let mut said = 0;
    loop {
        let frame = reader.next_record()?.ok_or_else(|| bad("it does not end"))?;
        match frame.record {
            Record::DeviceState(part) if part.pass == pass => {
                let length = state.device_state.len() as u64;
                if part.offset != length || length + part.bytes.len() as u64 > MAX_DEVICE_STATE {
                    return Err(bad("its device state is not whole"));
                }
                state.device_state.extend_from_slice(part.bytes);
            }
            Record::ChannelOutput(part) if part.pass == pass => {
                let channel = usize::from(part.channel);
                if state.output.len() <= channel {
                    state.output.resize_with(channel + 1, Vec::new);
                }
                said += part.bytes.len() as u64;
                if part.offset != state.output[channel].len() as u64 || said > MAX_OUTPUT {
                    return Err(bad("its output is not whole"));
                }
                state.output[channel].extend_from_slice(part.bytes);
            }
            Record::Pages(part) if part.pass == pass => return Ok(state),
            Record::End { pass: of, .. } if of == pass => return Ok(state),
            other => {
                return Err(FileError::Stream(StreamError::Unexpected {
                    record: other.kind().name(),
                    why: "it is no part of a checkpoint",
                }));
            }
        }
    }
}

/// A file read from the front.
struct Cursor<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = self.end.saturating_sub(self.at).min(into.len() as u64) as usize;
        let got = self.file.read_at(&mut into[..room], self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}
