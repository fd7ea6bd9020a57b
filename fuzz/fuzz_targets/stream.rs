//! The checkpoint stream's reader and assembler on hostile input.
//!
//! The checksums are put right before the input is read, so that the fuzzer gets past them to what is behind.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use ninefold_model::Term;
use ninefold_replica::stream::page::{PAGE_SIZE, Page};
use ninefold_replica::stream::{BlockInfo, CheckpointAssembler, Fed, Layout, PageSink, RecordReader};

/// As in the tests that make the seeds.
const SESSION: u64 = 0x1122_3344_5566_7788;
const BLOCKS: [u64; 3] = [48, 3, 1];

#[derive(Clone, PartialEq)]
struct Memory(Vec<Vec<u8>>);

impl PageSink for Memory {
    fn write(&mut self, block: u16, first: u64, data: &[u8]) -> io::Result<()> {
        let at = first as usize * PAGE_SIZE;
        self.0[usize::from(block)][at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, block: u16, page: u64, into: &mut Page) -> io::Result<()> {
        into.copy_from_slice(&self.0[usize::from(block)][page as usize * PAGE_SIZE..][..PAGE_SIZE]);
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
    // The first byte says whether to repair and over how many connections the session is.
    let Some((&how, stream)) = data.split_first() else { return };
    let mut stream = stream.to_vec();
    if how & 1 == 1 {
        repair(&mut stream);
    }
    let blocks = BLOCKS.iter().map(|&pages| BlockInfo {
        name: "block".into(),
        used: pages * PAGE_SIZE as u64,
        total: pages * PAGE_SIZE as u64,
    });
    let Ok(layout) = Layout::new(blocks.collect()) else { return };
    let mut memory = Memory(BLOCKS.iter().map(|&pages| vec![0; pages as usize * PAGE_SIZE]).collect());
    let mut assembler = CheckpointAssembler::new(SESSION, Term(7), layout, 1 + (how >> 7));
    let mut reader = RecordReader::new(&stream[..]);
    if how & 2 == 0 && reader.preamble().and_then(|p| p.agree()).is_err() {
        return;
    }
    loop {
        let frame = match reader.next_record() {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(_) => break,
        };
        let whole = assembler.whole();
        // Once a checkpoint is held, only a commit may touch memory.
        let before = (whole.0 > 0).then(|| memory.clone());
        match assembler.feed(&frame, &mut memory) {
            Ok(Fed::Whole(pass)) => {
                assert!(pass.epoch == whole.next() && assembler.checkpoint().is_some());
                assert!(before.is_none_or(|before| before == memory));
                assembler.commit(&mut memory).expect("this memory does not fail");
            }
            Ok(_) => assert!(assembler.whole() == whole && before.is_none_or(|before| before == memory)),
            Err(_) => {
                assert!(assembler.whole() == whole && before.is_none_or(|before| before == memory));
                break;
            }
        }
    }
});
