//! Reading the segments: commit after commit, and where they end.

use std::io::{self, Read};
use std::sync::Arc;

use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::Reign;
use ninefold_replica::stream::header::{HEADER_LEN, PREAMBLE_LEN};
use ninefold_replica::stream::record::Kind;
use ninefold_replica::stream::{CheckpointAssembler, Fed, Mark, PageSink, Record, RecordReader, StreamError};

use super::error::LogError;
use super::head::Head;
use super::segment::{self, ALIGN, name};
use super::{At, Committed};
use crate::storage::{Storage, StorageFile};

/// Bytes that are searched for marks at a time.
const SEARCHED: usize = 1 << 20;
/// A mark on disk is shorter than this.
const MARK_LEN: usize = 128;

/// What is there of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub number: u64,
    /// Its last commit; none if it has none.
    pub last: Option<u64>,
    /// Where the last whole commit ends, bytes; 0 if there is none.
    pub end: u64,
    /// There is something behind it that is no commit.
    pub torn: bool,
    /// Whose checkpoints it has, as its `Hello` says.
    pub reign: Option<Reign>,
}

/// The retained segments of a log, in order.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    pub storage: &'a Arc<dyn Storage>,
    pub head: &'a Head,
    /// Nothing behind this commit is looked at: it is known to be damaged. `u64::MAX`: all is.
    pub until: u64,
}

/// Who is shown each whole commit: its place, and the assembler that holds it, its pages not yet in the sink.
pub(super) type Visit<'a> = &'a mut dyn FnMut(&Committed, &mut CheckpointAssembler) -> Result<(), LogError>;

impl<'a> Chain<'a> {
    /// All of a log.
    pub fn new(storage: &'a Arc<dyn Storage>, head: &'a Head) -> Self {
        Self { storage, head, until: u64::MAX }
    }

    /// The numbers of all segments that are there, from the first that is needed on.
    ///
    /// # Errors
    /// `Storage`.
    pub fn numbers(&self) -> Result<Vec<u64>, LogError> {
        let names = self.storage.names().map_err(LogError::storage("cannot list", "the log's directory"))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|n| segment::number(n)).collect();
        numbers.retain(|&n| n >= self.head.first);
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads all commits from the base on. Pages go into `sink`.
    ///
    /// # Errors
    /// `Damaged`; `Storage`; `Target` and those of `visit`.
    pub fn read(&self, sink: &mut dyn PageSink, visit: Visit<'_>) -> Result<Vec<Extent>, LogError> {
        let mut expected = self.head.base + 1;
        let mut extents = Vec::new();
        let numbers = self.numbers()?;
        for (wanted, &number) in (self.head.first..).zip(&numbers) {
            if expected > self.until {
                return Ok(extents);
            }
            if wanted != number {
                return Err(LogError::damaged(name(wanted), "it is missing"));
            }
            let extent = self.segment(number, expected, sink, visit)?;
            if let Some(last) = extent.last {
                expected = last + 1;
            } else if number != numbers[numbers.len() - 1] {
                return Err(LogError::damaged(name(number), format!("commit {expected} is missing")));
            }
            extents.push(extent);
        }
        if expected > self.until {
            return Ok(extents);
        }
        if expected <= self.head.durable.max(self.head.base + 1) {
            let last = numbers.last().copied().unwrap_or(self.head.first);
            return Err(LogError::damaged(name(last), format!("commit {expected} is missing")));
        }
        Ok(extents)
    }

    /// Reads one segment, which has to begin with commit `expected`, as far as it is whole.
    ///
    /// # Errors
    /// As [`Chain::read`].
    pub fn segment(
        &self,
        number: u64,
        expected: u64,
        sink: &mut dyn PageSink,
        visit: Visit<'_>,
    ) -> Result<Extent, LogError> {
        let name = name(number);
        let file = self.storage.open(&name).map_err(LogError::storage("cannot open", &*name))?;
        let length = file.len().map_err(LogError::storage("cannot read", &*name))?;
        let mut walk = Walk {
            head: self.head,
            until: self.until,
            name: &name,
            expected,
            end: 0,
            reign: None,
            assembler: CheckpointAssembler::new(
                self.head.session(),
                self.head.hello.term,
                self.head.hello.layout.clone(),
                1,
            )
            .after(Epoch(expected - 1)),
        };
        let mut reader = RecordReader::new(Cursor { file: &*file, at: 0, end: length });
        let mut torn = false;
        match walk.all(&mut reader, sink, visit) {
            Ok(()) => {}
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Bad(what)) => {
                let (expected, end) = (walk.expected, walk.end);
                // What was written after it shows that it had been durable.
                if let Some(later) = self.later_mark(&*file, &name, end, length, expected)? {
                    let what = format!("commit {expected} at byte {end}: {what} (commit {} is there)", later - 1);
                    return Err(LogError::damaged(name, what));
                }
                tracing::debug!(segment = number, commit = expected, %what, "a commit was cut off");
                torn = true;
            }
        }
        let last = (walk.expected > expected).then(|| walk.expected - 1);
        Ok(Extent { number, last, end: walk.end, torn, reign: walk.reign })
    }

    /// A mark behind `from` which says that commit `expected` is durable.
    fn later_mark(
        &self,
        file: &dyn StorageFile,
        name: &str,
        from: u64,
        length: u64,
        expected: u64,
    ) -> Result<Option<u64>, LogError> {
        let mut bytes = vec![0; SEARCHED];
        let mut at = from - from % ALIGN;
        while at < length {
            let got = file.read_at(at, &mut bytes).map_err(LogError::storage("cannot read", name))?;
            for start in (0..got).step_by(ALIGN as usize) {
                let part = &bytes[start..got.min(start + MARK_LEN)];
                if let Some(found) = mark(part, self.head.log).filter(|mark| mark.commit > expected) {
                    return Ok(Some(found.commit));
                }
            }
            at += SEARCHED as u64;
        }
        Ok(None)
    }

    /// The newest of all marks that can be read, wherever they stand: all commits before it were durable.
    ///
    /// # Errors
    /// `Storage`.
    pub fn newest_mark(&self) -> Result<Option<Mark>, LogError> {
        let mut newest: Option<Mark> = None;
        let mut bytes = vec![0; SEARCHED];
        for number in self.numbers()? {
            let name = name(number);
            let file = self.storage.open(&name).map_err(LogError::storage("cannot open", &*name))?;
            let length = file.len().map_err(LogError::storage("cannot read", &*name))?;
            for at in (0..length).step_by(SEARCHED) {
                let got = file.read_at(at, &mut bytes).map_err(LogError::storage("cannot read", &*name))?;
                let marks = (0..got).step_by(ALIGN as usize).filter_map(|start| {
                    let part = &bytes[start..got.min(start + MARK_LEN)];
                    mark(part, self.head.log)
                });
                newest = marks.chain(newest).max_by_key(|mark| (mark.commit, mark.time_ms));
            }
        }
        Ok(newest)
    }
}

/// The mark of this log in these bytes.
fn mark(bytes: &[u8], log: u128) -> Option<Mark> {
    // Most of what is looked at is something else, and a reader costs more than a look.
    if bytes.len() < HEADER_LEN || bytes[0] != Kind::Mark as u8 {
        return None;
    }
    match RecordReader::new(bytes).next_record() {
        Ok(Some(frame)) => match frame.record {
            Record::Mark(mark) if mark.log == log => Some(mark),
            _ => None,
        },
        _ => None,
    }
}

enum Stop {
    /// What does not check out.
    Bad(String),
    Failed(LogError),
}

struct Walk<'a> {
    head: &'a Head,
    name: &'a str,
    /// The commit after which nothing is looked at.
    until: u64,
    /// The commit that comes next.
    expected: u64,
    /// Where the last whole one ends.
    end: u64,
    reign: Option<Reign>,
    assembler: CheckpointAssembler,
}

impl Walk<'_> {
    fn all<R: Read>(
        &mut self,
        reader: &mut RecordReader<R>,
        sink: &mut dyn PageSink,
        visit: Visit<'_>,
    ) -> Result<(), Stop> {
        let bad = |what: &str| Stop::Bad(what.to_owned());
        let preamble = reader.preamble().map_err(|e| self.stop(e))?;
        preamble.agree().map_err(|e| self.stop(e))?;
        let mut at = PREAMBLE_LEN as u64;
        match reader.next_record().map_err(|e| self.stop(e))? {
            Some(frame) => match frame.record {
                Record::Hello(hello)
                    if hello.spec.id == self.head.hello.spec.id && hello.layout == self.head.hello.layout =>
                {
                    at += frame.wire_len as u64;
                    self.reign = hello.reign;
                }
                _ => return Err(bad("it begins with something else than this VM's Hello")),
            },
            None => return Err(bad("it ends before its Hello")),
        }
        while self.expected <= self.until {
            // Between two commits.
            let mut begun = at;
            let mark = loop {
                match reader.next_record().map_err(|e| self.stop(e))? {
                    None => return Ok(()),
                    Some(frame) => {
                        at += frame.wire_len as u64;
                        match frame.record {
                            Record::Pad { .. } if !begun.is_multiple_of(ALIGN) => begun = at,
                            Record::Mark(mark) if begun.is_multiple_of(ALIGN) => break mark,
                            _ => return Err(bad("no mark is where a commit begins")),
                        }
                    }
                }
            };
            if mark.log != self.head.log || mark.commit != self.expected {
                return Err(Stop::Bad(format!("the mark is that of commit {}", mark.commit)));
            }
            if !self.commit(reader, sink, visit, mark, begun, &mut at)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One commit, after its mark. False if the file ends there.
    fn commit<R: Read>(
        &mut self,
        reader: &mut RecordReader<R>,
        sink: &mut dyn PageSink,
        visit: Visit<'_>,
        mark: Mark,
        begun: u64,
        at: &mut u64,
    ) -> Result<bool, Stop> {
        let mut first = true;
        loop {
            let Some(frame) = reader.next_record().map_err(|e| self.stop(e))? else {
                // A mark and nothing behind it only says what is durable.
                return if first { Ok(false) } else { Err(Stop::Bad("it ends in the middle".into())) };
            };
            first = false;
            *at += frame.wire_len as u64;
            match self.assembler.feed(&frame, sink) {
                Ok(Fed::More) => {}
                Ok(Fed::Whole(_)) => break,
                Ok(Fed::Other | Fed::Synced(_)) => {
                    return Err(Stop::Bad(format!("a {} record is in it", frame.record.kind().name())));
                }
                Err(error) => return Err(self.stop(error)),
            }
        }
        let end = at.next_multiple_of(ALIGN);
        let at = At { session: Term(mark.session), epoch: mark.epoch, term: self.assembler.term() };
        let committed = Committed { number: self.expected, at, bytes: end - begun, time_ms: mark.time_ms };
        visit(&committed, &mut self.assembler).map_err(Stop::Failed)?;
        self.assembler.commit(sink).map_err(|e| self.stop(e))?;
        self.expected += 1;
        // Its padding is a part of it that nothing depends on.
        self.end = end;
        Ok(true)
    }

    fn stop(&self, error: StreamError) -> Stop {
        match error {
            StreamError::Io(source) => {
                Stop::Failed(LogError::Storage { what: "cannot read", file: self.name.into(), source })
            }
            StreamError::Memory(source) | StreamError::Volume(source) => {
                Stop::Failed(LogError::Target { what: "memory cannot be written".into(), source })
            }
            other => {
                let mut what = other.to_string();
                if let StreamError::Layout(source) = &other {
                    what = format!("{what}: {source}");
                }
                Stop::Bad(what)
            }
        }
    }
}

/// A file read from the front.
struct Cursor<'a> {
    file: &'a dyn StorageFile,
    at: u64,
    end: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let room = (self.end - self.at).min(into.len() as u64) as usize;
        let got = self.file.read_at(self.at, &mut into[..room])?;
        self.at += got as u64;
        Ok(got)
    }
}

/// Takes pages and forgets them.
#[derive(Debug)]
pub(super) struct Nowhere;

impl PageSink for Nowhere {
    fn write(&mut self, _: u16, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, _: u16, _: u64, _: &mut ninefold_replica::stream::page::Page) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::InvalidData, "a log has no patches"))
    }

    fn zero(&mut self, _: u16, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}
