//! Where a QEMU keeps its two offsets: found among its static data by their values.
//!
//! QEMU is the distribution's, and where its variables are is nobody's promise. Their values are known, to the last bit after
//! a load and within the microseconds of the first `cont` after a start: out of 2⁶⁴ possible ones. A place counts only when it
//! is the only one.

use std::fs::File;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;

use super::Reading;
use crate::error::{MachineError, Result};

/// Both are in one structure, the ticks first; so far apart at most, bytes.
const REACH: usize = 256;
/// No mapping has more static data than this, bytes; all of QEMU has 1.3 MB. What the kernel has joined to it is something else.
const MOST: u64 = 16 << 20;

/// The values that the two have.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    clock: RangeInclusive<i64>,
    ticks: RangeInclusive<i64>,
}

impl Wanted {
    pub(super) fn exactly(value: Reading) -> Wanted {
        Wanted { clock: value.clock..=value.clock, ticks: value.ticks..=value.ticks }
    }

    /// Both began at 0 between these two times.
    pub(super) fn started(before: Reading, after: Reading) -> Wanted {
        let range = |before: i64, after: i64| after.wrapping_neg()..=before.wrapping_neg();
        // Another processor's TSC may be a little behind; the clock is the same everywhere.
        let slack = 1_000_000;
        Wanted {
            clock: range(before.clock, after.clock),
            ticks: range(before.ticks.wrapping_sub(slack), after.ticks.wrapping_add(slack)),
        }
    }
}

/// Addresses in QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    ticks: u64,
    /// Of the clock, behind the ticks, bytes.
    apart: usize,
}

impl Place {
    /// Does not allocate unless it fails.
    pub(super) fn read(&self, process: &File) -> Result<Reading> {
        let mut bytes = [0; REACH + 8];
        let read = &mut bytes[..self.apart + 8];
        process.read_exact_at(read, self.ticks).map_err(MachineError::io("reading QEMU's clock"))?;
        Ok(Reading { clock: word(read, self.apart), ticks: word(read, 0) })
    }

    /// Only while the guest stands still: then nobody else changes them. Does not allocate unless it fails.
    pub(super) fn write(&self, process: &File, value: Reading) -> Result<()> {
        let put = |value: i64, at: u64| {
            process.write_all_at(&value.to_ne_bytes(), at).map_err(MachineError::io("writing QEMU's clock"))
        };
        put(value.clock, self.ticks + self.apart as u64)?;
        put(value.ticks, self.ticks)
    }
}

/// Looks through the static data of process `pid`, whose memory `process` is.
pub(super) fn find(process: &File, pid: u32, wanted: Wanted) -> Result<Place> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(MachineError::io("QEMU's mappings"))?;
    let mut places = Vec::new();
    let mut bytes = Vec::new();
    for (start, end) in static_data(&maps) {
        bytes.resize((end - start).min(MOST) as usize, 0);
        process.read_exact_at(&mut bytes, start).map_err(MachineError::io("reading QEMU's static data"))?;
        places.extend(places_in(&bytes, start, &wanted));
    }
    match places.as_slice() {
        [place] => Ok(*place),
        several => Err(MachineError::Clock { reason: format!("{} places in QEMU look like it", several.len()) }),
    }
}

/// Writable private mappings of files, and the zeroed data right behind each.
fn static_data(maps: &str) -> Vec<(u64, u64)> {
    let mut areas = Vec::new();
    // Where the last writable mapping of a file ended.
    let mut file_end = None;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(access)) = (fields.next(), fields.next()) else { continue };
        let Some((start, end)) = range.split_once('-') else { continue };
        let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)) else { continue };
        let name = fields.nth(3);
        let file = name.is_some_and(|name| name.starts_with('/'));
        let writable = access.starts_with("rw-p") && end > start;
        if writable && (file || (name.is_none() && file_end == Some(start))) {
            areas.push((start, end));
        }
        file_end = (writable && file).then_some(end);
    }
    areas
}

fn places_in(bytes: &[u8], start: u64, wanted: &Wanted) -> Vec<Place> {
    let mut places = Vec::new();
    for at in (0..bytes.len().saturating_sub(7)).step_by(8) {
        if !wanted.clock.contains(&word(bytes, at)) {
            continue;
        }
        // The nearest: before it there may be what was last read of it.
        let apart = (8..=REACH.min(at)).step_by(8).find(|apart| wanted.ticks.contains(&word(bytes, at - apart)));
        places.extend(apart.map(|apart| Place { ticks: start + (at - apart) as u64, apart }));
    }
    places
}

fn word(bytes: &[u8], at: usize) -> i64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, i64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55e0-55f0 r--p 00000000 fe:00 101 /usr/bin/qemu-system-x86_64
55f0-5600 rw-p 01a5a000 fe:00 101 /usr/bin/qemu-system-x86_64
5600-5680 rw-p 00000000 00:00 0
5700-5780 rw-p 00000000 00:00 0                          [heap]
6000-6010 rw-s 00000000 00:01 7                          /memfd:guest (deleted)
6010-6020 rw-p 00000000 00:00 0
7000-7010 rw-p 00000000 00:00 0
8000-8010 rw-p 00001000 fe:00 102 /usr/lib/with space/libglib-2.0.so.0
nonsense
";

    #[test]
    fn static_data_is_that_of_files() {
        assert_eq!(static_data(MAPS), [(0x55f0, 0x5600), (0x5600, 0x5680), (0x8000, 0x8010)]);
        assert_eq!(static_data(""), []);
    }

    #[test]
    fn a_place_is_found_by_both_values() {
        let mut bytes = vec![0; 4096];
        let mut put = |at: usize, value: i64| bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        put(1000, 77); // what was last read of the ticks
        put(1008, 77);
        put(1056, 99);
        put(2000, 99); // the clock alone
        let wanted = Wanted::exactly(Reading { clock: 99, ticks: 77 });
        assert_eq!(places_in(&bytes, 0x10_000, &wanted), [Place { ticks: 0x10_000 + 1008, apart: 48 }]);
        assert_eq!(places_in(&bytes[..7], 0, &wanted), []);
        let mut put = |at: usize, value: i64| bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
        put(1008, -3_000_500);
        put(1056, -1010);
        let host = |clock: i64| Reading { clock, ticks: clock * 3000 };
        let started = Wanted::started(host(1000), host(1020));
        assert_eq!(places_in(&bytes, 0, &started), [Place { ticks: 1008, apart: 48 }]);
        assert_eq!(places_in(&bytes, 0, &Wanted::started(host(1011), host(1020))), []);
    }
}
