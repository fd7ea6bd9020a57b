//! The reader of snapshot files on hostile input.
//!
//! The checksums of the records are put right before the input is read, so that the fuzzer gets past them to what is behind.
#![no_main]

use std::io::{self, Write};
use std::ops::ControlFlow;

use libfuzzer_sys::fuzz_target;
use ninefold_replica::stream::PageSink;
use ninefold_replica::stream::page::Page;
use ninefold_snapshot::file::{FileError, Snapshot};

/// Checks that pages are within what the snapshot itself says.
struct Nowhere<'a>(&'a Snapshot);

impl PageSink for Nowhere<'_> {
    fn write(&mut self, block: u16, first: u64, data: &[u8]) -> io::Result<()> {
        let pages = self.0.hello().layout.pages(block).expect("a block that is there");
        assert!(first + (data.len() / 4096) as u64 <= pages);
        Ok(())
    }

    fn read(&mut self, _: u16, _: u64, _: &mut Page) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn zero(&mut self, block: u16, first: u64, count: u64) -> io::Result<()> {
        assert!(first + count <= self.0.hello().layout.pages(block).expect("a block that is there"));
        Ok(())
    }
}

fn repair(stream: &mut [u8]) {
    let mut at = 16;
    while let Some(header) = stream.get(at..at + 12) {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let Some(payload) = at.checked_add(12 + length).and_then(|end| stream.get(at + 12..end)) else { return };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header[..8]);
        crc.update(payload);
        let crc = crc.finalize().to_le_bytes();
        stream[at + 8..at + 12].copy_from_slice(&crc);
        at += 12 + length;
    }
}

fuzz_target!(|data: &[u8]| {
    // The first byte says whether to repair.
    let Some((&how, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if how & 1 == 1 {
        repair(&mut bytes);
    }
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&bytes).expect("room");
    let find = &mut |_: &_| Err(FileError::Refused("no parents here".into()));
    let Ok(snapshot) = Snapshot::open(file, find) else { return };
    let whole = snapshot.verify(&mut |_, _| ControlFlow::Continue(())).is_ok();
    let loaded = snapshot.load(&|block| block == 0, &mut Nowhere(&snapshot), &mut |_, _| ControlFlow::Continue(())).is_ok();
    assert!(loaded || !whole);
});
