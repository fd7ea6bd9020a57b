//! The writer of segments.
//!
//! ```text
//!   preamble, Hello, Pad │ Mark n, Begin, Pages…, DeviceState…, …, End, Pad │ Mark n+1, Begin, … │ Mark, not synced
//!                        └ at a multiple of the page size                   └ likewise
//! ```

use std::io::{self, Write};
use std::sync::Arc;

use ninefold_replica::stream::header::HEADER_LEN;
use ninefold_replica::stream::page::PAGE_SIZE;
use ninefold_replica::stream::{Hello, Mark, Preamble, Record, StreamError, write_record};

use super::error::LogError;
use crate::storage::{Storage, StorageFile};

/// Where commits begin: so that marks can be found again behind something that is spoilt.
pub(super) const ALIGN: u64 = PAGE_SIZE as u64;
/// What is collected before it is written, bytes.
const BUFFER: usize = 256 << 10;

/// The file name of segment `number`.
pub(super) fn name(number: u64) -> String {
    format!("segment-{number}")
}

/// The number in the name of a segment.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?;
    let number = digits.parse().ok()?;
    // One name for each number.
    (digits == self::number_text(number)).then_some(number)
}

fn number_text(number: u64) -> String {
    number.to_string()
}

/// The segment that is being written.
#[derive(Debug)]
pub(super) struct Segment {
    pub number: u64,
    file: Box<dyn StorageFile>,
    /// The end of the last durable commit.
    end: u64,
    tail: Tail,
    scratch: Vec<u8>,
}

/// Appends to a file.
#[derive(Debug)]
struct Tail {
    buffer: Vec<u8>,
    /// Where the buffer's content belongs.
    at: u64,
}

/// What a pass is written to.
pub(super) struct Out<'a> {
    file: &'a dyn StorageFile,
    tail: &'a mut Tail,
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.tail.buffer.len() + bytes.len() > BUFFER {
            self.drain()?;
        }
        if bytes.len() >= BUFFER {
            self.file.write_at(self.tail.at, bytes)?;
            self.tail.at += bytes.len() as u64;
        } else {
            self.tail.buffer.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    /// The end of a pass is not yet the end of the commit: see [`Out::drain`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Out<'_> {
    /// Hands what was collected to the file system.
    fn drain(&mut self) -> io::Result<()> {
        if !self.tail.buffer.is_empty() {
            self.file.write_at(self.tail.at, &self.tail.buffer)?;
            self.tail.at += self.tail.buffer.len() as u64;
            self.tail.buffer.clear();
        }
        Ok(())
    }
}

impl Segment {
    /// An empty segment. It is durable with its first commit.
    ///
    /// # Errors
    /// `Storage`, `Stream`.
    pub fn create(storage: &Arc<dyn Storage>, number: u64, hello: &Hello) -> Result<Self, LogError> {
        let name = name(number);
        let file = storage.create(&name).map_err(LogError::storage("cannot make", name))?;
        let tail = Tail { buffer: Vec::with_capacity(BUFFER), at: 0 };
        let mut this = Self { number, file, end: 0, tail, scratch: Vec::new() };
        let (mut out, scratch) = this.out();
        out.write_all(&Preamble::OURS.to_bytes()).map_err(StreamError::Io)?;
        write_record(&mut out, scratch, &Record::Hello(Box::new(hello.clone())))?;
        this.pad()?;
        let (mut out, _) = this.out();
        out.drain().map_err(StreamError::Io)?;
        this.end = this.tail.at;
        Ok(this)
    }

    /// Bytes that are in use.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Where a pass goes, and a scratch for its records.
    pub fn out(&mut self) -> (Out<'_>, &mut Vec<u8>) {
        (Out { file: &*self.file, tail: &mut self.tail }, &mut self.scratch)
    }

    /// Begins a commit with its mark.
    ///
    /// # Errors
    /// `Stream`.
    pub fn begin(&mut self, mark: Mark) -> Result<(), LogError> {
        self.tail.buffer.clear();
        self.tail.at = self.end;
        let (mut out, scratch) = self.out();
        write_record(&mut out, scratch, &Record::Mark(mark))?;
        Ok(())
    }

    /// Takes back what was written since the last commit.
    pub fn give_up(&mut self) {
        self.tail.buffer.clear();
        self.tail.at = self.end;
        // Only to give the room back: what is there is no whole commit, and the next one is written over it.
        let _ = self.file.set_len(self.end);
    }

    /// Writes the rest of the commit; answers its length, bytes.
    ///
    /// # Errors
    /// `Stream`.
    pub fn complete(&mut self) -> Result<u64, LogError> {
        self.pad()?;
        let (mut out, _) = self.out();
        out.drain().map_err(StreamError::Io)?;
        Ok(self.tail.at - self.end)
    }

    /// Makes durable what was written of a commit so far. It counts no earlier for that.
    ///
    /// # Errors
    /// As [`Segment::sync`].
    pub fn sync_early(&mut self) -> io::Result<()> {
        self.file.sync()
    }

    /// Makes the commit durable.
    ///
    /// # Errors
    /// That of the file system: nothing that is not yet committed can be trusted to be there any more.
    pub fn sync(&mut self) -> io::Result<()> {
        self.file.sync()?;
        self.end = self.tail.at;
        Ok(())
    }

    /// Says on disk that what was written so far is durable, without waiting for that: a commit that is spoilt afterwards is
    /// then not taken for one that was cut off.
    pub fn hint(&mut self, mark: Mark) {
        self.scratch.clear();
        if Record::Mark(mark).encode(&mut self.scratch).is_ok() {
            // A hint that cannot be written is none.
            let _ = self.file.write_at(self.end, &self.scratch);
        }
    }

    /// Fills up to where a commit may begin.
    fn pad(&mut self) -> Result<(), LogError> {
        static ZEROS: [u8; 2 * PAGE_SIZE] = [0; 2 * PAGE_SIZE];
        let at = self.tail.at + self.tail.buffer.len() as u64;
        if at.is_multiple_of(ALIGN) {
            return Ok(());
        }
        let end = (at + HEADER_LEN as u64).next_multiple_of(ALIGN);
        let bytes = &ZEROS[..(end - at) as usize - HEADER_LEN];
        let (mut out, scratch) = self.out();
        write_record(&mut out, scratch, &Record::Pad { bytes })?;
        Ok(())
    }
}
