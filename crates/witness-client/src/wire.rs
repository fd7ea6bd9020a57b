//! What client and server say to each other: docs/witness.md. A frame is a length (4 bytes, big-endian) and that many
//! bytes of JSON.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use ninefold_model::{Label, Record, Tombstone, VmId, VmName};
use ninefold_transport::{LinkHandle, LinkReader, LinkWriter};
use serde::{Deserialize, Serialize};

/// The version of this protocol.
pub const VERSION: u16 = 4;
/// Longest JSON in a frame, bytes.
pub const MAX_FRAME: usize = 64 << 10;
/// Records in one answer to `list`: they fit a frame whatever they hold.
pub const PAGE: usize = 100;

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
        vm: VmId,
    },
    CompareAndSwap {
        vm: VmId,
        /// What people call it now, as far as the caller knows. It decides nothing.
        label: Label,
        expected: Option<Record>,
        new: Record,
    },
    /// The VM is no more: nobody may ever win its record again.
    Retire {
        vm: VmId,
        expected: Record,
        /// An operator wants it so although another host is the VM's primary.
        forced: bool,
    },
    /// The VM is called so from now on, unless it has been renamed more often.
    Rename {
        vm: VmId,
        label: Label,
    },
    /// The next page of records after an id.
    List {
        after: Option<VmId>,
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
    /// What there is of the VM: neither, or both.
    Value {
        record: Option<Record>,
        label: Option<Label>,
    },
    Won {
        record: Record,
    },
    Lost {
        record: Option<Record>,
    },
    /// The VM was retired, by this call or before: it has no record and gets none.
    Retired {
        tombstone: Tombstone,
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
    pub vm: VmId,
    /// What it was called when the record changed last.
    pub name: VmName,
    pub record: Record,
}

/// The part of every message, in every version, that tells which version the rest is.
#[derive(Deserialize)]
struct Head {
    version: u64,
}

/// Why a frame's content is no message that this side understands.
#[derive(Debug, thiserror::Error)]
pub enum BadMessage {
    #[error("version {0}; this witness speaks {VERSION}")]
    Request(u64),
    #[error("version {0}; this keeper speaks {VERSION}")]
    Response(u64),
    #[error("not a message: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads a request.
///
/// # Errors
/// When it is of another version, or no request.
pub fn parse_request(json: &[u8]) -> Result<Request, BadMessage> {
    let head: Head = serde_json::from_slice(json)?;
    if head.version != u64::from(VERSION) {
        return Err(BadMessage::Request(head.version));
    }
    Ok(serde_json::from_slice(json)?)
}

/// Reads an answer.
///
/// # Errors
/// When it is of another version, or no answer.
pub fn parse_response(json: &[u8]) -> Result<Response, BadMessage> {
    let head: Head = serde_json::from_slice(json)?;
    if head.version != u64::from(VERSION) {
        return Err(BadMessage::Response(head.version));
    }
    Ok(serde_json::from_slice(json)?)
}

/// The receiving end of a link, by frames.
pub struct FrameReader {
    reader: LinkReader,
    link: LinkHandle,
    content: Vec<u8>,
}

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {0} bytes; the limit is {MAX_FRAME}")]
    TooLong(usize),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl FrameReader {
    pub fn new(reader: LinkReader, link: LinkHandle) -> Self {
        Self { reader, link, content: Vec::new() }
    }

    /// Waits for a frame to begin, for ever; then for the rest of it, at most `rest`. `None` at an orderly end.
    ///
    /// # Errors
    /// The frame is too long, it is not whole in time (`TimedOut`), or the connection ends within it or breaks.
    pub fn wait(&mut self, rest: Duration) -> Result<Option<&[u8]>, FrameError> {
        let mut length = [0; 4];
        self.link.set_read_deadline(None)?;
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
    ///
    /// # Errors
    /// The frame is too long, it is not whole before the deadline (`TimedOut`), or the connection ends or breaks.
    pub fn read(&mut self, deadline: Instant) -> Result<&[u8], FrameError> {
        self.finish([0; 4], 0, deadline)
    }

    fn finish(&mut self, mut length: [u8; 4], got: usize, deadline: Instant) -> Result<&[u8], FrameError> {
        let Self { reader, link, content } = self;
        link.set_read_deadline(Some(deadline.saturating_duration_since(Instant::now())))?;
        reader.read_exact(&mut length[got..])?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        content.resize(length, 0);
        reader.read_exact(content)?;
        Ok(content)
    }
}

/// The sending end of a link, by frames.
pub struct FrameWriter {
    writer: LinkWriter,
    link: LinkHandle,
    frame: Vec<u8>,
}

impl FrameWriter {
    pub fn new(writer: LinkWriter, link: LinkHandle) -> Self {
        Self { writer, link, frame: Vec::new() }
    }

    /// Sends one message in one piece. It fits the kernel's buffer unless the peer has long stopped reading, so a
    /// time-out for each system call is bound enough.
    ///
    /// # Errors
    /// The message is longer than a frame may be (`InvalidInput`), the peer takes nothing for as long as `timeout`, or the
    /// connection breaks.
    pub fn send(&mut self, message: &impl Serialize, timeout: Duration) -> io::Result<()> {
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
    use ninefold_model::{Backup, Term};

    use super::*;

    #[test]
    fn a_page_of_the_longest_records_fits_a_frame() {
        let longest = "x".repeat(ninefold_model::name::MAX_NAME);
        let backup = Backup { host: longest.parse().unwrap(), session: Term(u64::MAX) };
        let record = Record {
            term: Term(u64::MAX),
            primary: longest.parse().unwrap(),
            backups: vec![backup; ninefold_model::record::MAX_BACKUPS],
        };
        let records = vec![Entry { vm: VmId::random(u128::MAX), name: longest.parse().unwrap(), record }; PAGE];
        let answer = Response { version: VERSION, id: u64::MAX, answer: Answer::Page { records, more: true } };
        assert!(serde_json::to_vec(&answer).unwrap().len() <= MAX_FRAME);
    }

    #[test]
    fn the_words_on_the_wire() {
        let request = parse_request(
            br#"{"version":4,"id":7,"call":{"op":"compare_and_swap","vm":"3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4","label":{"name":"db","number":0},"expected":{"term":1,"primary":"a","backups":[]},
                "new":{"term":2,"primary":"a","backups":[{"host":"b","session":1}]}}}"#,
        )
        .unwrap();
        let Call::CompareAndSwap { expected: Some(expected), new, .. } = request.call else { panic!("{request:?}") };
        assert_eq!(expected, Record::boot("a".parse().unwrap()));
        assert_eq!(new, expected.bound(vec![Backup { host: "b".parse().unwrap(), session: Term(1) }]));
        for version in [3, 5] {
            let json = format!(r#"{{"version":{version},"whatever":true}}"#);
            let other = parse_request(json.as_bytes()).unwrap_err();
            assert!(matches!(other, BadMessage::Request(v) if v == version), "{other}");
            let other = parse_response(json.as_bytes()).unwrap_err();
            assert!(matches!(other, BadMessage::Response(v) if v == version), "{other}");
        }
        for bad in [
            &b""[..],
            b"\xff\xff",
            b"{}",
            b"[4]",
            br#"{"version":-1}"#,
            br#"{"version":4,"id":1,"call":{"op":"drop"}}"#,
            // A name is no id.
            br#"{"version":4,"id":1,"call":{"op":"read","vm":"db"}}"#,
            br#"{"version":4,"id":1,"call":{"op":"retire","vm":"3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4","expected":null,"forced":false}}"#,
            // A record without its backups.
            br#"{"version":4,"id":1,"call":{"op":"compare_and_swap","vm":"3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4","label":{"name":"db","number":0},"expected":null,
                "new":{"term":1,"primary":"a"}}}"#,
        ] {
            let outcome = parse_request(bad);
            assert!(matches!(outcome, Err(BadMessage::Json(_))), "{outcome:?}");
        }
    }
}
