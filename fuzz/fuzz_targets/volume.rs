//! Operations on a volume and its write log on hostile bytes.
//!
//! The first byte says what the rest is. The checksums of a write log are put right before it is read.
#![no_main]

#[path = "../../dev/testkit/src/counting.rs"]
mod counting;

use std::sync::Mutex;

use counting::{Counting, most};
use libfuzzer_sys::fuzz_target;
use ninefold_volume::image::check_bounds;
use ninefold_volume::{Batch, Image, VolumeError, WriteLog};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SIZE: usize = 8192;

#[derive(Debug)]
struct Disk(Mutex<Vec<u8>>);

impl Image for Disk {
    fn size(&self) -> u64 {
        SIZE as u64
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        check_bounds(at, into.len() as u64, SIZE as u64)?;
        into.copy_from_slice(&self.0.lock().expect("no panic")[at as usize..][..into.len()]);
        Ok(())
    }
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        // What is read from a log was checked against the size.
        check_bounds(at, bytes.len() as u64, SIZE as u64).expect("within the volume");
        self.0.lock().expect("no panic")[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn zero(&self, at: u64, length: u64, _: bool) -> Result<(), VolumeError> {
        check_bounds(at, length, SIZE as u64).expect("within the volume");
        self.0.lock().expect("no panic")[at as usize..][..length as usize].fill(0);
        Ok(())
    }
    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }
}

/// Writes magic and checksum of each record of a log.
fn repair(log: &mut [u8]) {
    let mut at = 0;
    while let Some(head) = log.get(at..at + 32) {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let Some(end) = (at + 32).checked_add(length).filter(|end| *end <= log.len()) else { return };
        log[at..at + 4].copy_from_slice(b"9LOG");
        let mut crc = crc32fast::Hasher::new();
        crc.update(&log[at..at + 28]);
        crc.update(&log[at + 32..end]);
        let crc = crc.finalize().to_le_bytes();
        log[at + 28..at + 32].copy_from_slice(&crc);
        at = end;
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, bytes)) = data.split_first() else { return };
    if how & 1 == 0 {
        let wire = bytes.to_vec();
        let (taken, parsed) = most(|| Batch::parse(wire, SIZE as u64));
        let Ok(batch) = parsed else { return };
        assert!(taken <= (batch.bytes() + 4096) as u64, "{taken} bytes, said to be {}", batch.bytes());
        let mut again = Vec::new();
        batch.each_piece::<()>(&mut Vec::new(), |piece| { again.extend_from_slice(piece); Ok(()) }).expect("no error");
        assert_eq!(Batch::parse(again, SIZE as u64).expect("what was written").ops().len(), batch.ops().len());
        return;
    }
    let mut log = bytes.to_vec();
    if how & 2 == 2 {
        repair(&mut log);
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    std::fs::write(&path, &log).expect("room");
    let mut opened = WriteLog::open(&path).expect("a file");
    let (taken, _) = most(|| opened.recover(&Disk(Mutex::new(vec![0; SIZE]))));
    assert!(taken < (4 << 20) + 32 * log.len() as u64, "{taken} bytes for a log of {}", log.len());
});
