//! The reader of snapshot files on hostile input.
//!
//! The checksums of the records and the root are put right before the input is read, so that the fuzzer gets past them to what
//! is behind. What opening a file takes is measured: it has to be in proportion to the file.
#![no_main]

#[path = "../../dev/testkit/src/counting.rs"]
mod counting;
#[path = "../../crates/snapshot/tests/seal/mod.rs"]
mod seal;

use std::io::{self, Write};
use std::ops::ControlFlow;

use counting::{Counting, most};
use libfuzzer_sys::fuzz_target;
use ninefold_replica::stream::PageSink;
use ninefold_replica::stream::page::Page;
use ninefold_snapshot::file::{FileError, Snapshot};
use seal::seal;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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

fuzz_target!(|data: &[u8]| {
    // The first byte says whether to repair.
    let Some((&how, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if how & 1 == 1 {
        seal(&mut bytes);
    }
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&bytes).expect("room");
    let find = &mut |_: &_| Err(FileError::Refused("no parents here".into()));
    let (taken, opened) = most(|| Snapshot::open(file, find));
    assert!(taken < (8 << 20) + 16 * bytes.len() as u64, "{taken} bytes for a file of {}", bytes.len());
    let Ok(snapshot) = opened else { return };
    let whole = snapshot.verify(&mut |_, _| ControlFlow::Continue(())).is_ok();
    let loaded = snapshot.load(&|block| block == 0, &mut Nowhere(&snapshot), &mut |_, _| ControlFlow::Continue(())).is_ok();
    assert!(loaded || !whole);
});
