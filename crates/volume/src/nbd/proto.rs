//! The bytes of the protocol: constants, and what is parsed and emitted. No I/O. All integers are big endian.
//!
//! Section names are those of the specification (see the module above).

/// First eight bytes of a server's greeting, "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Before each option, and after [`GREETING_MAGIC`]; "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before each simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// The most that one read or write may carry, bytes; what the specification asks every server to take.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The most that an option or a reply to one may carry here, bytes. A name has at most 4096.
pub const MAX_OPTION: u32 = 16 << 10;
/// Longest export name, bytes ("String values").
pub const MAX_NAME: usize = 4096;

/// Handshake flags, of both sides.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// See [`FLAG_FIXED_NEWSTYLE`]: the 124 zero bytes after `EXPORT_NAME` are left out.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Options.
pub mod option {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
}

/// Types of a reply to an option.
pub mod reply {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    /// Set in every error.
    pub const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_POLICY: u32 = ERROR | 2;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
    pub const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Kinds of information in a reply to `INFO` and `GO`.
pub mod info {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const EXPORT: u16 = 0;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod transmission {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 2;
    pub const SEND_FLUSH: u16 = 4;
    pub const SEND_FUA: u16 = 8;
    pub const SEND_TRIM: u16 = 32;
    pub const SEND_WRITE_ZEROES: u16 = 64;
}

/// Flags of a request.
pub mod command_flag {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 2;
}

/// Error values.
pub mod errno {
    #![allow(missing_docs, reason = "the specification's own names")]
    pub const PERM: u32 = 1;
    pub const IO: u32 = 5;
    pub const NOMEM: u32 = 12;
    pub const INVAL: u32 = 22;
    pub const NOSPC: u32 = 28;
    pub const SHUTDOWN: u32 = 108;
}

/// Why bytes are not the protocol's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// A magic number is not there: the peer speaks something else, or is out of step.
    #[error("magic {found:#x} instead of the one for {what}")]
    Magic { what: &'static str, found: u64 },
    /// A length is over its bound.
    #[error("{what} of {length} bytes, at most {most} are taken")]
    TooLong { what: &'static str, length: u32, most: u32 },
    /// A message is shorter than its fields, or has bytes left over.
    #[error("{0} has a wrong length")]
    Length(&'static str),
    /// The peer lacks something without which we do not speak.
    #[error("the peer does not offer {0}")]
    Lacks(&'static str),
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Answered with the bytes.
    Read,
    /// The bytes follow the request.
    Write,
    /// The client ends the session; it is not answered.
    Disconnect,
    /// Everything answered so far becomes durable.
    Flush,
    /// Discard.
    Trim,
    /// Makes bytes zero without sending them.
    WriteZeroes,
    /// Some other; answered with `EINVAL`.
    Other(u16),
}

impl Command {
    fn from_wire(number: u16) -> Command {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            other => Command::Other(other),
        }
    }

    fn to_wire(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::WriteZeroes => 6,
            Command::Other(number) => number,
        }
    }
}

/// A request, without its data ("Request message").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// [`command_flag`]s.
    pub flags: u16,
    /// What is asked for.
    pub command: Command,
    /// Chosen by the client, repeated in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// Bytes of a request on the wire.
    pub const LEN: usize = 28;

    /// # Errors
    /// `Magic`; `TooLong` for a write over [`MAX_PAYLOAD`]: its data is not worth reading, so the session must end.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Request, ProtoError> {
        let magic = u32::from_be_bytes(field(bytes, 0));
        if magic != REQUEST_MAGIC {
            return Err(ProtoError::Magic { what: "a request", found: magic.into() });
        }
        let request = Request {
            flags: u16::from_be_bytes(field(bytes, 4)),
            command: Command::from_wire(u16::from_be_bytes(field(bytes, 6))),
            cookie: u64::from_be_bytes(field(bytes, 8)),
            offset: u64::from_be_bytes(field(bytes, 16)),
            length: u32::from_be_bytes(field(bytes, 24)),
        };
        if request.command == Command::Write && request.length > MAX_PAYLOAD {
            return Err(ProtoError::TooLong { what: "a write", length: request.length, most: MAX_PAYLOAD });
        }
        Ok(request)
    }

    /// As bytes.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_wire().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// How many bytes of data follow.
    pub fn payload(&self) -> usize {
        if self.command == Command::Write { self.length as usize } else { 0 }
    }

    /// Whether the request may be carried out on an export of `size` bytes that may be written if `writable`.
    ///
    /// # Errors
    /// The [`errno`] to answer with.
    pub fn check(&self, size: u64, writable: bool) -> Result<(), u32> {
        let known = match self.command {
            Command::Read | Command::Flush | Command::Disconnect => 0,
            Command::Write | Command::Trim => command_flag::FUA,
            Command::WriteZeroes => command_flag::FUA | command_flag::NO_HOLE,
            Command::Other(_) => return Err(errno::INVAL),
        };
        // "Server SHOULD return EINVAL" for what was not negotiated. Some clients set FUA on any command.
        if self.flags & !(known | command_flag::FUA) != 0 {
            return Err(errno::INVAL);
        }
        let changes = matches!(self.command, Command::Write | Command::Trim | Command::WriteZeroes);
        if changes && !writable {
            return Err(errno::PERM);
        }
        let inside = self.offset.checked_add(self.length.into()).is_some_and(|end| end <= size);
        match self.command {
            Command::Flush | Command::Disconnect => Ok(()),
            Command::Read if !inside || self.length > MAX_PAYLOAD => Err(errno::INVAL),
            Command::Write | Command::WriteZeroes if !inside => Err(errno::NOSPC),
            _ if !inside => Err(errno::INVAL),
            _ => Ok(()),
        }
    }
}

/// A reply, without its data ("Simple reply message").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimpleReply {
    /// Zero, or an [`errno`]; data follows a read only if it is zero.
    pub error: u32,
    /// The request's.
    pub cookie: u64,
}

impl SimpleReply {
    /// Bytes of a reply on the wire.
    pub const LEN: usize = 16;

    /// # Errors
    /// `Magic`.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<SimpleReply, ProtoError> {
        let magic = u32::from_be_bytes(field(bytes, 0));
        if magic != SIMPLE_REPLY_MAGIC {
            return Err(ProtoError::Magic { what: "a simple reply", found: magic.into() });
        }
        Ok(SimpleReply { error: u32::from_be_bytes(field(bytes, 4)), cookie: u64::from_be_bytes(field(bytes, 8)) })
    }

    /// As bytes.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.error.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes
    }
}

/// The head of an option that a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHead {
    /// One of [`option`], or some other.
    pub option: u32,
    /// Bytes that follow.
    pub length: u32,
}

impl OptionHead {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// # Errors
    /// `Magic`; `TooLong` over [`MAX_OPTION`].
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<OptionHead, ProtoError> {
        let magic = u64::from_be_bytes(field(bytes, 0));
        if magic != OPTION_MAGIC {
            return Err(ProtoError::Magic { what: "an option", found: magic });
        }
        let head =
            OptionHead { option: u32::from_be_bytes(field(bytes, 8)), length: u32::from_be_bytes(field(bytes, 12)) };
        if head.length > MAX_OPTION {
            return Err(ProtoError::TooLong { what: "an option", length: head.length, most: MAX_OPTION });
        }
        Ok(head)
    }

    /// As bytes.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// The head of a reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHead {
    /// The option that is answered.
    pub option: u32,
    /// One of [`reply`].
    pub kind: u32,
    /// Bytes that follow.
    pub length: u32,
}

impl OptionReplyHead {
    /// Bytes on the wire.
    pub const LEN: usize = 20;

    /// # Errors
    /// `Magic`; `TooLong` over [`MAX_OPTION`].
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<OptionReplyHead, ProtoError> {
        let magic = u64::from_be_bytes(field(bytes, 0));
        if magic != OPTION_REPLY_MAGIC {
            return Err(ProtoError::Magic { what: "a reply to an option", found: magic });
        }
        let head = OptionReplyHead {
            option: u32::from_be_bytes(field(bytes, 8)),
            kind: u32::from_be_bytes(field(bytes, 12)),
            length: u32::from_be_bytes(field(bytes, 16)),
        };
        if head.length > MAX_OPTION {
            return Err(ProtoError::TooLong { what: "a reply to an option", length: head.length, most: MAX_OPTION });
        }
        Ok(head)
    }

    /// As bytes.
    pub fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.kind.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }
}

/// What `GO` and `INFO` carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export asked for; empty for the default one.
    pub name: String,
    /// Kinds of information ([`info`]) that the client would like.
    pub wanted: Vec<u16>,
}

impl InfoRequest {
    /// # Errors
    /// `Length`, also for a name that is not UTF-8 or too long.
    pub fn parse(bytes: &[u8]) -> Result<InfoRequest, ProtoError> {
        const WRONG: ProtoError = ProtoError::Length("an information request");
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or(WRONG)?;
        let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| WRONG)?;
        if length > MAX_NAME || length > rest.len() {
            return Err(WRONG);
        }
        let (name, rest) = rest.split_at(length);
        let name = std::str::from_utf8(name).map_err(|_| WRONG)?.to_owned();
        let (count, rest) = rest.split_first_chunk::<2>().ok_or(WRONG)?;
        if rest.len() != usize::from(u16::from_be_bytes(*count)) * 2 {
            return Err(WRONG);
        }
        let wanted = rest.chunks_exact(2).map(|pair| u16::from_be_bytes(field(pair, 0))).collect();
        Ok(InfoRequest { name, wanted })
    }

    /// As bytes. The name and the list are cut at what their length fields can say.
    pub fn emit(&self) -> Vec<u8> {
        let wanted = &self.wanted[..self.wanted.len().min(usize::from(u16::MAX))];
        let mut bytes = Vec::with_capacity(6 + self.name.len() + wanted.len() * 2);
        bytes.extend((self.name.len() as u32).to_be_bytes());
        bytes.extend(self.name.as_bytes());
        bytes.extend((wanted.len() as u16).to_be_bytes());
        bytes.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
        bytes
    }
}

/// `N` bytes from `at` on. Callers have checked that they are there.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
