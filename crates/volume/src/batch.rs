//! What a guest does to a volume in one epoch, and how that is written into the checkpoint stream.
//!
//! Operations, one after another, little endian:
//!
//! | | bytes |
//! |---|---|
//! | write | 1, at u64, length u32, the data |
//! | zero | 2, at u64, length u64, flags u8 (bit 0: storage may be given back) |

use std::sync::Arc;

use crate::error::VolumeError;
use crate::image::{Image, check_bounds};

/// Data of one write on the wire, at most; a longer one becomes several. Bytes.
pub const MAX_WRITE: usize = 1 << 20;
/// Operations of one record of the stream, at most. Bytes.
pub const MAX_PIECE: usize = 2 << 20;

/// What the operations of a checkpoint may take in memory, bytes: more than all that a primary may hold, by the same count.
pub const MAX_MEMORY: usize = 1 << 30;
/// What an operation takes beside its data, about: itself, twice while the list grows, and its place in the overlay.
const OVERHEAD: usize = 192;

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const WRITE_HEAD: usize = 13;

/// Bytes that several owners share: those of one write, or a part of all that came with a checkpoint.
#[derive(Debug, Clone)]
pub struct Data {
    all: Arc<Vec<u8>>,
    start: usize,
    end: usize,
}

impl Data {
    /// From `skip` bytes on, `length` of them. Both within it.
    pub fn part(&self, skip: usize, length: usize) -> Self {
        let start = (self.start + skip).min(self.end);
        Self { all: Arc::clone(&self.all), start, end: (start + length).min(self.end) }
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        let end = bytes.len();
        Self { all: Arc::new(bytes), start: 0, end }
    }
}

impl AsRef<[u8]> for Data {
    fn as_ref(&self) -> &[u8] {
        &self.all[self.start..self.end]
    }
}

/// One thing done to a volume.
#[derive(Debug, Clone)]
pub enum Op {
    Write {
        at: u64,
        data: Data,
    },
    /// From here on these bytes are zero; a discard is this too.
    Zero {
        at: u64,
        length: u64,
        unmap: bool,
    },
}

impl Op {
    /// The bytes concerned: the first, and the one after the last.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Op::Write { at, data } => (*at, *at + data.len() as u64),
            Op::Zero { at, length, .. } => (*at, *at + *length),
        }
    }

    /// The same in several operations, none of which makes more than `most` bytes zero. `most` is not 0.
    pub fn pieces(&self, most: u64) -> impl Iterator<Item = Op> + use<> {
        let (start, end) = self.range();
        let (whole, zeros, unmap) = match self {
            Op::Write { .. } => (Some(self.clone()), 0..0, false),
            Op::Zero { unmap, .. } => (None, start..end, *unmap),
        };
        let zeros = zeros.step_by(usize::try_from(most).unwrap_or(usize::MAX)).map(move |at| Op::Zero {
            at,
            length: most.min(end - at),
            unmap,
        });
        whole.into_iter().chain(zeros)
    }

    /// Does it to an image.
    ///
    /// # Errors
    /// Those of the image.
    pub fn apply(&self, image: &dyn Image) -> Result<(), VolumeError> {
        match self {
            Op::Write { at, data } => image.write(*at, data.as_ref()),
            Op::Zero { at, length, unmap } => image.zero(*at, *length, *unmap),
        }
    }
}

/// Why operations from a peer were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("operations on a volume end in the middle of one")]
    Cut,
    #[error("{0} is no operation on a volume")]
    Unknown(u8),
    #[error("an operation on no bytes at byte {at}")]
    Empty { at: u64 },
    #[error("the operations of a checkpoint take more than {room} bytes")]
    TooMany { room: usize },
    #[error("an operation reaches from byte {at} over {length} bytes in a volume of {size}")]
    OutOfBounds { at: u64, length: u64, size: u64 },
}

/// The operations of one epoch on one volume, in order.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    ops: Vec<Op>,
    bytes: usize,
}

impl Batch {
    pub fn push(&mut self, op: Op) {
        self.bytes += cost(&op);
        self.ops.push(op);
    }

    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The memory that it takes, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Hands out the operations as they go on the wire, in pieces of at most [`MAX_PIECE`] bytes of whole operations.
    /// `scratch` is reused from call to call.
    ///
    /// # Errors
    /// `send` has failed: its error is returned, and nothing more is handed out.
    pub fn each_piece<E>(&self, scratch: &mut Vec<u8>, mut send: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        scratch.clear();
        for op in &self.ops {
            match op {
                Op::Write { at, data } => {
                    let mut at = *at;
                    for part in data.as_ref().chunks(MAX_WRITE) {
                        if scratch.len() + WRITE_HEAD + part.len() > MAX_PIECE {
                            send(scratch)?;
                            scratch.clear();
                        }
                        put_write(scratch, at, part);
                        at += part.len() as u64;
                    }
                }
                Op::Zero { at, length, unmap } => put_zero(scratch, *at, *length, *unmap),
            }
            // Room for the next operation without data.
            if scratch.len() > MAX_PIECE - 32 {
                send(scratch)?;
                scratch.clear();
            }
        }
        if scratch.is_empty() { Ok(()) } else { send(scratch) }
    }

    /// Reads operations on a volume of `size` bytes, which take at most [`MAX_MEMORY`].
    ///
    /// # Errors
    /// See [`BatchError`]. Nothing of the batch is to be used then.
    pub fn parse(bytes: Vec<u8>, size: u64) -> Result<Self, BatchError> {
        Self::parse_within(bytes, size, MAX_MEMORY)
    }

    /// The same with at most so many bytes of memory: see [`Batch::bytes`]. A peer that writes its operations small makes a
    /// receiver take many times what it sends.
    ///
    /// # Errors
    /// As [`Batch::parse`].
    pub fn parse_within(bytes: Vec<u8>, size: u64, room: usize) -> Result<Self, BatchError> {
        let all = Data::from(bytes);
        let mut batch = Self::default();
        let mut at = 0;
        while at < all.len() {
            let (op, used) = parse_one(&all, at)?;
            let (start, end) = op.range();
            check_bounds(start, end.saturating_sub(start), size).map_err(|_| BatchError::OutOfBounds {
                at: start,
                length: end.saturating_sub(start),
                size,
            })?;
            if start == end {
                return Err(BatchError::Empty { at: start });
            }
            batch.push(op);
            if batch.bytes > room {
                return Err(BatchError::TooMany { room });
            }
            at += used;
        }
        Ok(batch)
    }
}

impl FromIterator<Op> for Batch {
    fn from_iter<I: IntoIterator<Item = Op>>(ops: I) -> Self {
        let mut batch = Self::default();
        ops.into_iter().for_each(|op| batch.push(op));
        batch
    }
}

/// What an operation takes in memory.
fn cost(op: &Op) -> usize {
    let data = if let Op::Write { data, .. } = op { data.len() } else { 0 };
    data + OVERHEAD
}

/// Appends a write; `data` is at most [`MAX_WRITE`] long.
pub fn put_write(out: &mut Vec<u8>, at: u64, data: &[u8]) {
    out.push(WRITE);
    out.extend_from_slice(&at.to_le_bytes());
    out.extend_from_slice(&(data.len() as u32).to_le_bytes());
    out.extend_from_slice(data);
}

/// Appends a zeroing.
pub fn put_zero(out: &mut Vec<u8>, at: u64, length: u64, unmap: bool) {
    out.push(ZERO);
    out.extend_from_slice(&at.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.push(unmap.into());
}

fn parse_one(all: &Data, at: usize) -> Result<(Op, usize), BatchError> {
    let bytes = &all.as_ref()[at..];
    let number = |from: usize| -> Result<u64, BatchError> {
        let field = bytes.get(from..from + 8).and_then(|b| b.first_chunk()).ok_or(BatchError::Cut)?;
        Ok(u64::from_le_bytes(*field))
    };
    match bytes[0] {
        WRITE => {
            let start = number(1)?;
            let length = bytes.get(9..WRITE_HEAD).and_then(|b| b.first_chunk()).ok_or(BatchError::Cut)?;
            let length = u32::from_le_bytes(*length) as usize;
            if bytes.len() - WRITE_HEAD < length {
                return Err(BatchError::Cut);
            }
            // What reaches over the end of all numbers reaches over the volume's.
            if start.checked_add(length as u64).is_none() {
                return Err(BatchError::OutOfBounds { at: start, length: length as u64, size: u64::MAX });
            }
            Ok((Op::Write { at: start, data: all.part(at + WRITE_HEAD, length) }, WRITE_HEAD + length))
        }
        ZERO => {
            let (start, length) = (number(1)?, number(9)?);
            let flags = *bytes.get(17).ok_or(BatchError::Cut)?;
            if start.checked_add(length).is_none() {
                return Err(BatchError::OutOfBounds { at: start, length, size: u64::MAX });
            }
            Ok((Op::Zero { at: start, length, unmap: flags & 1 != 0 }, 18))
        }
        other => Err(BatchError::Unknown(other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 8 << 20;

    fn op() -> impl Strategy<Value = Op> {
        let write = (0..SIZE / 2, 1..3000usize, any::<u8>())
            .prop_map(|(at, length, byte)| Op::Write { at, data: vec![byte; length].into() });
        let long = (0..SIZE / 2, any::<u8>())
            .prop_map(|(at, byte)| Op::Write { at, data: vec![byte; 2 * MAX_WRITE + 5].into() });
        let zero =
            (0..SIZE / 2, 1..SIZE / 2, any::<bool>()).prop_map(|(at, length, unmap)| Op::Zero { at, length, unmap });
        prop_oneof![8 => write, 1 => long, 3 => zero]
    }

    fn play(batch: &Batch) -> Vec<u8> {
        let mut all = vec![0xaa; SIZE as usize];
        for op in batch.ops() {
            let (start, end) = op.range();
            let place = &mut all[start as usize..end as usize];
            match op {
                Op::Write { data, .. } => place.copy_from_slice(data.as_ref()),
                Op::Zero { .. } => place.fill(0),
            }
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn operations_come_back(ops in prop::collection::vec(op(), 0..40)) {
            let batch: Batch = ops.into_iter().collect();
            let (mut wire, mut scratch) = (Vec::new(), Vec::new());
            batch.each_piece::<()>(&mut scratch, |piece| {
                assert!(piece.len() <= MAX_PIECE && !piece.is_empty());
                // A piece can be read alone.
                Batch::parse(piece.to_vec(), SIZE).unwrap();
                wire.extend_from_slice(piece);
                Ok(())
            }).unwrap();
            prop_assert!(wire.len() <= batch.bytes(), "what is counted bounds what is sent");
            let back = Batch::parse(wire, SIZE).unwrap();
            prop_assert!(play(&batch) == play(&back));
        }

        #[test]
        fn any_bytes_are_refused_or_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(batch) = Batch::parse(bytes, SIZE) {
                for op in batch.ops() {
                    prop_assert!(op.range().1 <= SIZE);
                }
            }
        }

        #[test]
        fn a_cut_is_noticed(ops in prop::collection::vec(op(), 1..6), at in any::<prop::sample::Index>()) {
            let batch: Batch = ops.into_iter().collect();
            let mut wire = Vec::new();
            batch.each_piece::<()>(&mut Vec::new(), |piece| { wire.extend_from_slice(piece); Ok(()) }).unwrap();
            let whole = Batch::parse(wire.clone(), SIZE).unwrap().ops().len();
            wire.truncate(at.index(wire.len()));
            match Batch::parse(wire, SIZE) {
                Ok(part) => prop_assert!(part.ops().len() < whole),
                Err(error) => prop_assert_eq!(error, BatchError::Cut),
            }
        }
    }

    #[test]
    fn what_is_outside_is_refused() {
        let mut wire = Vec::new();
        put_write(&mut wire, SIZE - 1, &[1, 2]);
        assert!(matches!(Batch::parse(wire, SIZE), Err(BatchError::OutOfBounds { .. })));
        let mut wire = Vec::new();
        put_zero(&mut wire, u64::MAX, 2, false);
        assert!(matches!(Batch::parse(wire, SIZE), Err(BatchError::OutOfBounds { .. })));
        assert_eq!(Batch::parse(vec![9], SIZE).unwrap_err(), BatchError::Unknown(9));
    }
}
