//! Why a stream was refused.

use std::io;

use ninefold_model::{Epoch, Term};

use super::layout::LayoutError;
use super::version::{OLDEST_VERSION, VERSION};

/// Why a stream was refused. After any of these the stream is of no further use and the connection has to be closed; a
/// checkpoint that was whole before stays usable. The one exception is [`StreamError::is_wait`].
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The first bytes are not those of a checkpoint stream.
    #[error("this is not a checkpoint stream")]
    BadMagic,
    /// The peer speaks no version that we speak.
    #[error("the peer speaks stream versions {oldest} to {newest}, this side {OLDEST_VERSION} to {VERSION}")]
    Version { oldest: u16, newest: u16 },
    /// The stream ended inside a preamble or a record.
    #[error("the stream ends inside a record")]
    Truncated,
    /// A checksum does not match.
    #[error("the checksum of a {record} record is wrong")]
    Checksum { record: &'static str },
    /// A length is over its bound. Nothing of that size was allocated.
    #[error("{what} of {length} bytes, at most {bound} are allowed")]
    TooLarge { what: &'static str, length: u64, bound: u64 },
    /// A record of a kind that this version does not know and that may not be skipped.
    #[error("unknown record kind {kind}")]
    UnknownKind { kind: u8 },
    /// A record whose payload does not follow the format.
    #[error("malformed {record} record: {what}")]
    Malformed { record: &'static str, what: &'static str },
    /// A good record at a point where it must not come.
    #[error("unexpected {record} record: {why}")]
    Unexpected { record: &'static str, why: &'static str },
    /// A record of another replication session.
    #[error("record of session {got:016x} in session {expected:016x}")]
    WrongSession { expected: u64, got: u64 },
    /// A record of a term that is over, or that cannot have come yet.
    #[error("record of term {got} after term {current}")]
    WrongTerm { current: Term, got: Term },
    /// A record of another epoch than the one that is due: replayed, lost or out of order.
    #[error("record of {what} {got}, due is {expected}")]
    WrongEpoch { what: &'static str, expected: Epoch, got: Epoch },
    /// A page that does not exist, that came twice, or whose content cannot be rebuilt.
    #[error("block {block} page {page}: {what}")]
    Page { block: u16, page: u64, what: &'static str },
    /// What `End` announces is not what came.
    #[error("incomplete pass: {got} of {expected} {what}")]
    Totals { what: &'static str, expected: u64, got: u64 },
    /// The layout of the VM's memory cannot be used.
    #[error("memory layout")]
    Layout(#[from] LayoutError),
    /// Reading or writing the stream failed.
    #[error("stream input or output")]
    Io(#[source] io::Error),
    /// Guest memory could not be read or written.
    #[error("guest memory")]
    Memory(#[source] io::Error),
    /// A volume's operations could not be applied.
    #[error("volume")]
    Volume(#[source] io::Error),
}

impl StreamError {
    /// The read would block or ran into the socket's timeout: call again, nothing was lost.
    pub fn is_wait(&self) -> bool {
        matches!(self, StreamError::Io(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut))
    }
}
