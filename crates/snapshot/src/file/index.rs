//! The index: every page and block that is not zero, its checksum, and where its content stands.
//!
//! A `SnapshotIndex` record: what u8 (1 memory, 2 volume), reserved u8, number of the block or volume u16, reserved u32, then
//! entries of 32 bytes, ordered: number u32, length u24, encoding u8, offset in the file u64 (0: in the parent), checksum.

use std::collections::BTreeMap;
use std::ops::Range;

use ninefold_replica::stream::page::{Encoding, PAGE_SIZE};

use super::error::FileError;
use super::{BLOCK, SUM};

/// Bytes of the fields before the entries.
pub(super) const HEAD: usize = 8;
/// Bytes of an entry.
pub(super) const ENTRY: usize = 32;
/// Entries in a record, at most: one megabyte.
pub(super) const ENTRIES: usize = (1 << 20) / ENTRY;

/// What an index is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Of {
    /// A RAM block.
    Memory(u16),
    Volume(u16),
}

impl Of {
    /// The longest content of a unit, bytes.
    pub fn unit(self) -> usize {
        match self {
            Of::Memory(_) => PAGE_SIZE,
            Of::Volume(_) => BLOCK,
        }
    }

    pub fn name(self) -> String {
        match self {
            Of::Memory(block) => format!("memory block {block}"),
            Of::Volume(volume) => format!("volume {volume}"),
        }
    }
}

/// Where a content stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// In the file; 0: the parent has it.
    pub offset: u64,
    pub length: u32,
    pub encoding: Encoding,
}

impl Place {
    pub const PARENT: Place = Place { offset: 0, length: 0, encoding: Encoding::Zero };

    pub fn in_parent(&self) -> bool {
        self.offset == 0
    }
}

/// A page or block that is not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub number: u32,
    pub place: Place,
    pub sum: [u8; SUM],
}

impl Entry {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        let [l0, l1, l2, _] = self.place.length.to_le_bytes();
        out.extend_from_slice(&[l0, l1, l2, self.place.encoding as u8]);
        out.extend_from_slice(&self.place.offset.to_le_bytes());
        out.extend_from_slice(&self.sum);
    }

    /// Checks all that can be checked without the content; contents are within `contents` of the file.
    fn parse(bytes: &[u8; ENTRY], of: Of, contents: &Range<u64>) -> Result<Self, &'static str> {
        let [n0, n1, n2, n3, l0, l1, l2, encoding, offset @ ..] = bytes;
        let (offset, sum) = offset.split_first_chunk::<8>().ok_or("it is cut off")?;
        let length = u32::from_le_bytes([*l0, *l1, *l2, 0]);
        let offset = u64::from_le_bytes(*offset);
        let encoding = [Encoding::Zero, Encoding::Raw, Encoding::Lz4].into_iter().find(|e| *e as u8 == *encoding);
        let encoding = encoding.ok_or("an encoding is unknown")?;
        let unit = of.unit();
        let good = match encoding {
            // The last block of a volume may be shorter: its reader knows.
            Encoding::Raw => length > 0 && length as usize <= unit && offset > 0,
            Encoding::Lz4 => length > 0 && (length as usize) < unit && offset > 0,
            Encoding::Zero | Encoding::Delta => length == 0 && offset == 0,
        };
        if !good {
            return Err("an entry makes no sense");
        }
        let within =
            offset >= contents.start && offset.checked_add(length.into()).is_some_and(|end| end <= contents.end);
        if offset != 0 && !within {
            return Err("a content is outside the file");
        }
        Ok(Self {
            number: u32::from_le_bytes([*n0, *n1, *n2, *n3]),
            place: Place { offset, length, encoding },
            sum: sum.try_into().map_err(|_| "it is cut off")?,
        })
    }
}

/// Entries as a record's payload.
pub(super) fn encode(of: Of, entries: &[Entry], out: &mut Vec<u8>) {
    out.clear();
    let (what, number) = match of {
        Of::Memory(block) => (1, block),
        Of::Volume(volume) => (2, volume),
    };
    let [n0, n1] = number.to_le_bytes();
    out.extend_from_slice(&[what, 0, n0, n1, 0, 0, 0, 0]);
    entries.iter().for_each(|entry| entry.put(out));
}

/// The index of one RAM block or volume, ordered by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Index(Vec<Entry>);

impl Index {
    pub fn get(&self, number: u32) -> Option<&Entry> {
        self.0.binary_search_by_key(&number, |entry| entry.number).ok().and_then(|at| self.0.get(at))
    }

    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Takes in a record's entries, which follow those before. `units` is how many pages or blocks there are.
    pub fn extend(&mut self, of: Of, units: u64, bytes: &[u8], contents: &Range<u64>) -> Result<(), FileError> {
        let bad = |what: &str| FileError::damaged(format!("the index of {}: {what}", of.name()));
        let (entries, rest) = bytes.as_chunks::<ENTRY>();
        if !rest.is_empty() {
            return Err(bad("it is cut off"));
        }
        for bytes in entries {
            let entry = Entry::parse(bytes, of, contents).map_err(bad)?;
            if u64::from(entry.number) >= units {
                return Err(bad("it names what is not there"));
            }
            if self.0.last().is_some_and(|last| last.number >= entry.number) {
                return Err(bad("it is not in order"));
            }
            self.0.push(entry);
        }
        Ok(())
    }
}

/// Reads the fields before the entries.
pub(super) fn head(bytes: &[u8]) -> Option<(Of, &[u8])> {
    match bytes.split_first_chunk::<HEAD>()? {
        ([1, 0, n0, n1, 0, 0, 0, 0], entries) => Some((Of::Memory(u16::from_le_bytes([*n0, *n1])), entries)),
        ([2, 0, n0, n1, 0, 0, 0, 0], entries) => Some((Of::Volume(u16::from_le_bytes([*n0, *n1])), entries)),
        _ => None,
    }
}

/// An index that grows in any order: in small groups, so that it takes memory for what is in it and not for the numbers that
/// are: one page of a huge memory, or block of a huge volume, costs one group.
#[derive(Debug, Default)]
pub(super) struct Growing(BTreeMap<u32, Box<[Option<Slot>; GROUP]>>);

const GROUP: usize = 16;

/// What is known of a page or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub place: Place,
    pub sum: [u8; SUM],
}

fn split(number: u32) -> (u32, usize) {
    (number / GROUP as u32, number as usize % GROUP)
}

impl Growing {
    pub fn get(&self, number: u32) -> Option<&Slot> {
        let (group, at) = split(number);
        self.0.get(&group)?[at].as_ref()
    }

    pub fn set(&mut self, number: u32, slot: Option<Slot>) {
        let (group, at) = split(number);
        if slot.is_some() {
            self.0.entry(group).or_insert_with(|| Box::new([None; GROUP]))[at] = slot;
        } else if let Some(group) = self.0.get_mut(&group) {
            group[at] = None;
        }
    }

    pub fn place(&mut self, number: u32, place: Place) {
        let (group, at) = split(number);
        if let Some(slot) = self.0.get_mut(&group).and_then(|group| group[at].as_mut()) {
            slot.place = place;
        }
    }

    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.0.iter().flat_map(|(group, slots)| {
            slots.iter().enumerate().filter_map(move |(at, slot)| {
                let Slot { place, sum } = (*slot)?;
                Some(Entry { number: group * GROUP as u32 + at as u32, place, sum })
            })
        })
    }
}

/// Sees to it that no byte of a file belongs to two contents: else a few bytes of an index could stand for a whole block each.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<u64>);

/// A place is kept as one number: 48 bits of offset, then 16 of its length less 1.
const LENGTH_BITS: u32 = 16;
/// Longest file that can be read, bytes (256 TiB).
pub(super) const MAX_BYTES: u64 = 1 << (u64::BITS - LENGTH_BITS);
const _: () = assert!(BLOCK <= 1 << LENGTH_BITS && PAGE_SIZE <= BLOCK);

impl Places {
    /// Puts in the places of those contents that are in this file, each 1 to [`BLOCK`] bytes long.
    pub fn extend(&mut self, entries: &[Entry]) {
        let own = entries.iter().map(|entry| &entry.place).filter(|place| !place.in_parent());
        self.0.extend(own.map(|place| place.offset << LENGTH_BITS | u64::from(place.length - 1)));
    }

    /// Whether no two of them overlap.
    pub fn are_apart(mut self) -> bool {
        self.0.sort_unstable();
        let range = |place: u64| {
            let start = place >> LENGTH_BITS;
            (start, start + (place & ((1 << LENGTH_BITS) - 1)) + 1)
        };
        self.0.windows(2).all(|two| range(two[0]).1 <= range(two[1]).0)
    }
}
