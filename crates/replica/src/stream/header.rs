//! The preamble of a stream and the header of a record.
//!
//! Version rule: a release speaks the current version and the one before it. Both sides send their preamble first and
//! without waiting; both then speak the lower of the two `version`s, if both can. A file has one preamble: its reader must
//! know the file's `version`. The preamble itself never changes.

use super::error::StreamError;
use super::kind::{Kind, MAX_PAYLOAD};
use super::version::{OLDEST_VERSION, VERSION};

/// The first bytes of a stream. The line end and the DOS end-of-file mark show that a transfer in text mode spoilt it.
pub const MAGIC: [u8; 8] = *b"9FOLD\r\n\x1a";
/// Bytes of a preamble.
pub const PREAMBLE_LEN: usize = 16;
/// Bytes of a record header.
pub const HEADER_LEN: usize = 12;
/// Header flag: a receiver that does not know the record's kind may skip it.
pub const FLAG_SKIPPABLE: u8 = 1;

/// What opens a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// The newest version that the sender speaks; in a file, the version of the file.
    pub version: u16,
    /// The oldest version that the sender speaks.
    pub oldest: u16,
}

impl Preamble {
    /// That of this release.
    pub const OURS: Preamble = Preamble { version: VERSION, oldest: OLDEST_VERSION };

    /// The bytes on the wire.
    pub fn to_bytes(self) -> [u8; PREAMBLE_LEN] {
        let mut bytes = [0; PREAMBLE_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.oldest.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..12]);
        bytes[12..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// # Errors
    /// [`StreamError::BadMagic`], [`StreamError::Checksum`].
    pub fn from_bytes(bytes: &[u8; PREAMBLE_LEN]) -> Result<Self, StreamError> {
        if bytes[..8] != MAGIC {
            return Err(StreamError::BadMagic);
        }
        if crc32fast::hash(&bytes[..12]).to_le_bytes() != bytes[12..] {
            return Err(StreamError::Checksum { record: "preamble" });
        }
        Ok(Preamble {
            version: u16::from_le_bytes([bytes[8], bytes[9]]),
            oldest: u16::from_le_bytes([bytes[10], bytes[11]]),
        })
    }

    /// The version to speak with a peer that sent this preamble.
    ///
    /// # Errors
    /// [`StreamError::Version`] if there is none in common.
    pub fn agree(self) -> Result<u16, StreamError> {
        let common = self.version.min(VERSION);
        if self.oldest <= self.version && common >= self.oldest.max(OLDEST_VERSION) {
            Ok(common)
        } else {
            Err(StreamError::Version { oldest: self.oldest, newest: self.version })
        }
    }
}

/// The header of a record, checked as far as that is possible without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// `None`: a kind that this version does not know and may skip.
    pub kind: Option<Kind>,
    pub length: usize,
    pub crc: u32,
}

impl Header {
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, StreamError> {
        let [kind, flags, r0, r1, l0, l1, l2, l3, c0, c1, c2, c3] = *bytes;
        let known = Kind::from_wire(kind);
        let record = known.map_or("unknown", Kind::name);
        if flags & !FLAG_SKIPPABLE != 0 || (r0, r1) != (0, 0) {
            return Err(StreamError::Malformed { record, what: "a reserved field is not zero" });
        }
        if known.is_none() && flags & FLAG_SKIPPABLE == 0 {
            return Err(StreamError::UnknownKind { kind });
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let bound = known.map_or(MAX_PAYLOAD, Kind::max_payload);
        if length as usize > bound {
            return Err(StreamError::TooLarge { what: record, length: length.into(), bound: bound as u64 });
        }
        Ok(Header { kind: known, length: length as usize, crc: u32::from_le_bytes([c0, c1, c2, c3]) })
    }
}

/// The checksum of a record: over the header without its checksum, then the payload.
pub(super) fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..HEADER_LEN - 4]);
    crc.update(payload);
    crc.finalize()
}

/// Appends a header for `kind`, to be completed by [`close_record`]; answers where the record begins.
pub(super) fn open_record(out: &mut Vec<u8>, kind: Kind) -> usize {
    let start = out.len();
    out.extend_from_slice(&[kind as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    start
}

/// Fills in length and checksum of the record that begins at `start` and ends at the end of `out`; answers the checksum.
pub(super) fn close_record(out: &mut Vec<u8>, start: usize, kind: Kind) -> Result<u32, StreamError> {
    let length = out.len() - start - HEADER_LEN;
    let bound = kind.max_payload();
    if length > bound {
        out.truncate(start);
        return Err(StreamError::TooLarge { what: kind.name(), length: length as u64, bound: bound as u64 });
    }
    let (header, payload) = out[start..].split_at_mut(HEADER_LEN);
    header[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    let crc = checksum(header, payload);
    header[8..].copy_from_slice(&crc.to_le_bytes());
    Ok(crc)
}
