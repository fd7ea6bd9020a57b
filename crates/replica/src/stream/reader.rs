//! Records out of a byte stream.

use std::io::{ErrorKind, Read};
use std::ops::Range;

use super::error::StreamError;
use super::header::{HEADER_LEN, Header, PREAMBLE_LEN, Preamble, checksum};
use super::record::{Kind, Record};

/// How much is read ahead of the record that is due: many small records then cost one `read`, and little has to be
/// moved when a big one follows.
const READ_AHEAD: usize = 64 << 10;

/// A record as it came.
#[derive(Debug)]
pub struct Frame<'a> {
    pub record: Record<'a>,
    /// Its checksum, which was right.
    pub checksum: u32,
    /// Its bytes on the wire, header included.
    pub wire_len: usize,
}

/// Reads records from `R`. One buffer, which grows to the longest record met (bounded by
/// [`MAX_PAYLOAD`](super::kind::MAX_PAYLOAD)) and is reused.
///
/// A read that would block, or that ran into the socket's timeout, can be called again: [`StreamError::is_wait`].
/// After any other error there is no way to find the next record: close the stream.
#[derive(Debug)]
pub struct RecordReader<R> {
    input: R,
    buf: Vec<u8>,
    /// The bytes that were read and not yet handed out.
    have: Range<usize>,
    failed: bool,
}

impl<R: Read> RecordReader<R> {
    pub fn new(input: R) -> Self {
        Self { input, buf: Vec::new(), have: 0..0, failed: false }
    }

    /// The input. Reading from it directly loses the place in the stream.
    pub fn get_ref(&self) -> &R {
        &self.input
    }

    /// The peer's preamble, which has to come first.
    ///
    /// # Errors
    /// As [`Preamble::from_bytes`]; [`StreamError::Truncated`] if the stream ends before or in it.
    pub fn preamble(&mut self) -> Result<Preamble, StreamError> {
        let result = self.fill(PREAMBLE_LEN).and_then(|()| {
            let bytes = self.buf[self.have.start..].first_chunk().ok_or(StreamError::Truncated)?;
            Preamble::from_bytes(bytes)
        });
        if result.is_ok() {
            self.have.start += PREAMBLE_LEN;
        }
        self.note(result)
    }

    /// The next record, or nothing at the end of the stream. Records that may be skipped are.
    ///
    /// # Errors
    /// Those of the format (see [`StreamError`]); [`StreamError::Truncated`] at an end inside a record; that of the read.
    pub fn next_record(&mut self) -> Result<Option<Frame<'_>>, StreamError> {
        if self.failed {
            return Err(StreamError::Unexpected { record: "further", why: "the stream was refused before" });
        }
        let found = self.find();
        let Some((kind, payload, checksum)) = self.note(found)? else {
            return Ok(None);
        };
        let wire_len = HEADER_LEN + payload.len();
        match Record::decode(kind, &self.buf[payload]) {
            Ok(record) => Ok(Some(Frame { record, checksum, wire_len })),
            Err(e) => {
                self.failed = true;
                Err(e)
            }
        }
    }

    fn note<T>(&mut self, result: Result<T, StreamError>) -> Result<T, StreamError> {
        if let Err(e) = &result {
            self.failed |= !e.is_wait();
        }
        result
    }

    /// Where the next known record's payload is. The bytes stay valid until the next read.
    fn find(&mut self) -> Result<Option<(Kind, Range<usize>, u32)>, StreamError> {
        loop {
            match self.fill(HEADER_LEN) {
                Err(StreamError::Truncated) if self.have.is_empty() => return Ok(None),
                other => other?,
            }
            let bytes = self.buf[self.have.start..].first_chunk().ok_or(StreamError::Truncated)?;
            let header = Header::parse(bytes)?;
            self.fill(HEADER_LEN + header.length)?;
            let start = self.have.start;
            let payload = start + HEADER_LEN..start + HEADER_LEN + header.length;
            if checksum(&self.buf[start..payload.start], &self.buf[payload.clone()]) != header.crc {
                return Err(StreamError::Checksum { record: header.kind.map_or("unknown", Kind::name) });
            }
            self.have.start = payload.end;
            if let Some(kind) = header.kind {
                return Ok(Some((kind, payload, header.crc)));
            }
        }
    }

    /// Reads until `need` bytes are there. May move them within the buffer.
    fn fill(&mut self, need: usize) -> Result<(), StreamError> {
        if self.have.len() >= need {
            return Ok(());
        }
        let room = need + READ_AHEAD;
        if self.have.start + room > self.buf.len() {
            self.buf.copy_within(self.have.clone(), 0);
            self.have = 0..self.have.len();
            if room > self.buf.len() {
                self.buf.resize(room, 0);
            }
        }
        while self.have.len() < need {
            let limit = self.have.start + room;
            match self.input.read(&mut self.buf[self.have.end..limit]) {
                Ok(0) => return Err(StreamError::Truncated),
                Ok(n) => self.have.end += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(StreamError::Io(e)),
            }
        }
        Ok(())
    }
}
