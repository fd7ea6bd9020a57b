//! What client and server say to each other: docs/witness.md. A frame is a length (4 bytes, big-endian) and that many
//! bytes of JSON.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use ninefold_model::{Record, VmName};
use ninefold_transport::{LinkHandle, LinkReader, LinkWriter};
use serde::{Deserialize, Serialize};

/// The version of this protocol.
pub const VERSION: u16 = 1;
/// Longest JSON in a frame, bytes.
pub const MAX_FRAME: usize = 64 << 10;
/// Records in one answer to `list`: they fit a frame whatever they hold.
pub const PAGE: usize = 200;

/// From the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub version: u16,
    /// Comes back in the response.
    pub id: u64,
    pub call: Call,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    Ping,
    Read {
        vm: VmName,
    },
    CompareAndSwap {
        vm: VmName,
        expected: Option<Record>,
        new: Record,
    },
    /// The next page of records after a name.
    List {
        after: Option<VmName>,
    },
}

/// From the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    pub version: u16,
    /// The request's; 0 when the request was unreadable.
    pub id: u64,
    pub answer: Answer,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Answer {
    Pong,
    Value {
        record: Option<Record>,
    },
    Won {
        record: Record,
    },
    Lost {
        record: Option<Record>,
    },
    /// A page; `more` when another follows.
    Page {
        records: Vec<Entry>,
        more: bool,
    },
    /// Nothing was changed.
    Refused {
        reason: String,
    },
}

/// A VM and its record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub vm: VmName,
    pub record: Record,
}

/// The part of every message, in every version, that tells which version the rest is.
#[derive(Deserialize)]
struct Head {
    version: u64,
}

/// Why a frame's content is no message of this version.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    #[error("version {0}; this side speaks {VERSION}")]
    Version(u64),
    #[error("not a message: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads a message out of a frame's content.
pub fn parse<'a, M: Deserialize<'a>>(json: &'a [u8]) -> Result<M, BadMessage> {
    let head: Head = serde_json::from_slice(json)?;
    if head.version != u64::from(VERSION) {
        return Err(BadMessage::Version(head.version));
    }
    Ok(serde_json::from_slice(json)?)
}

/// The receiving end of a link, by frames.
pub(crate) struct FrameReader {
    reader: LinkReader,
    link: LinkHandle,
    content: Vec<u8>,
}

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a frame of {0} bytes; the limit is {MAX_FRAME}")]
    TooLong(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FrameReader {
    pub(crate) fn new(reader: LinkReader, link: LinkHandle) -> Self {
        Self { reader, link, content: Vec::new() }
    }

    /// Waits for a frame to begin, for ever; then for the rest of it, at most `rest`. `None` at an orderly end.
    pub(crate) fn wait(&mut self, rest: Duration) -> Result<Option<&[u8]>, FrameError> {
        let mut length = [0; 4];
        self.link.set_read_timeout(None)?;
        let got = loop {
            match self.reader.read(&mut length) {
                Ok(0) => return Ok(None),
                Ok(n) => break n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        };
        self.finish(length, got, Instant::now() + rest).map(Some)
    }

    /// Reads a frame before `deadline`.
    pub(crate) fn read(&mut self, deadline: Instant) -> Result<&[u8], FrameError> {
        self.finish([0; 4], 0, deadline)
    }

    fn finish(&mut self, mut length: [u8; 4], got: usize, deadline: Instant) -> Result<&[u8], FrameError> {
        let Self { reader, link, content } = self;
        fill(reader, link, &mut length[got..], deadline)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        content.resize(length, 0);
        fill(reader, link, content, deadline)?;
        Ok(content)
    }
}

/// `read_exact` with a deadline for the whole, however slowly the bytes come.
fn fill(reader: &mut LinkReader, link: &LinkHandle, mut buf: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buf.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        link.set_read_timeout(Some(left))?;
        match reader.read(buf) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buf = &mut buf[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The sending end of a link, by frames.
pub(crate) struct FrameWriter {
    writer: LinkWriter,
    link: LinkHandle,
    frame: Vec<u8>,
}

impl FrameWriter {
    pub(crate) fn new(writer: LinkWriter, link: LinkHandle) -> Self {
        Self { writer, link, frame: Vec::new() }
    }

    /// Sends one message in one piece. It fits the kernel's buffer unless the peer has long stopped reading, so a
    /// time-out for each system call is bound enough.
    pub(crate) fn send(&mut self, message: &impl Serialize, timeout: Duration) -> io::Result<()> {
        self.frame.clear();
        self.frame.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut self.frame, message)?;
        let length = self.frame.len() - 4;
        if length > MAX_FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is longer than a frame"));
        }
        self.frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
        self.link.set_write_timeout(Some(timeout))?;
        self.writer.write_all(&self.frame)?;
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_the_longest_records_fits_a_frame() {
        let longest = "x".repeat(ninefold_model::name::MAX_NAME);
        let record = Record {
            term: ninefold_model::Term(u64::MAX),
            primary: longest.parse().unwrap(),
            backup: Some(longest.parse().unwrap()),
            synced: false,
        };
        let records = vec![Entry { vm: longest.parse().unwrap(), record }; PAGE];
        let answer = Response { version: VERSION, id: u64::MAX, answer: Answer::Page { records, more: true } };
        assert!(serde_json::to_vec(&answer).unwrap().len() <= MAX_FRAME);
    }

    #[test]
    fn the_words_on_the_wire() {
        let request: Request = parse(
            br#"{"version":1,"id":7,"call":{"op":"compare_and_swap","vm":"db","expected":null,
                "new":{"term":1,"primary":"a","backup":null,"synced":false}}}"#,
        )
        .unwrap();
        assert!(matches!(request.call, Call::CompareAndSwap { expected: None, .. }));
        let next = parse::<Request>(br#"{"version":2,"whatever":true}"#).unwrap_err();
        assert!(matches!(next, BadMessage::Version(2)), "{next}");
        for bad in [
            &b""[..],
            b"\xff\xff",
            b"{}",
            b"[1]",
            br#"{"version":-1}"#,
            br#"{"version":1,"id":1,"call":{"op":"drop"}}"#,
            br#"{"version":1,"id":1,"call":{"op":"read","vm":"../x"}}"#,
        ] {
            assert!(matches!(parse::<Request>(bad), Err(BadMessage::Json(_))));
        }
    }
}
