//! A guest's memory on both sides of a stream, and histories of what a guest did to it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io;

use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::page::{PAGE_SIZE, Page};
use ninefold_replica::stream::{
    BlockInfo, CheckpointAssembler, Fed, Layout, Mode, PageEncoder, PageRun, PageSink, Pass, PassKind, PassWriter,
    Preamble, RecordReader, StreamError,
};
use proptest::prelude::*;

pub const SESSION: u64 = 0x1122_3344_5566_7788;
pub const TERM: Term = Term(7);
pub const BLOCKS: [u64; 3] = [48, 3, 1];

pub fn layout() -> Layout {
    let block = |(i, &pages): (usize, &u64)| BlockInfo {
        name: format!("block{i}"),
        used: pages * PAGE_SIZE as u64,
        total: pages * PAGE_SIZE as u64,
    };
    Layout::new(BLOCKS.iter().enumerate().map(block).collect()).unwrap()
}

pub fn pass(kind: PassKind, epoch: u64) -> Pass {
    Pass { session: SESSION, kind, epoch: Epoch(epoch) }
}

/// Guest memory, a plain one, and what sync rounds brought for the volumes.
#[derive(Clone, PartialEq, Eq)]
pub struct Memory(pub Vec<Vec<u8>>, pub [Vec<u8>; 2]);

impl Memory {
    pub fn new() -> Self {
        Self(BLOCKS.iter().map(|&pages| vec![0; pages as usize * PAGE_SIZE]).collect(), Default::default())
    }

    pub fn page(&self, block: u16, page: u64) -> &Page {
        &self.0[usize::from(block)].as_chunks::<PAGE_SIZE>().0[page as usize]
    }

    pub fn page_mut(&mut self, block: u16, page: u64) -> &mut Page {
        &mut self.0[usize::from(block)].as_chunks_mut::<PAGE_SIZE>().0[page as usize]
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({:08x?})", self.0.iter().map(|b| crc32fast::hash(b)).collect::<Vec<_>>())
    }
}

impl PageSink for Memory {
    fn write(&mut self, block: u16, first: u64, data: &[u8]) -> io::Result<()> {
        assert!(data.len().is_multiple_of(PAGE_SIZE) && !data.is_empty());
        let at = first as usize * PAGE_SIZE;
        self.0[usize::from(block)][at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, block: u16, page: u64, into: &mut Page) -> io::Result<()> {
        into.copy_from_slice(self.page(block, page));
        Ok(())
    }

    fn volume(&mut self, volume: u16, operations: &[u8]) -> io::Result<()> {
        let all = self.1.get_mut(usize::from(volume)).ok_or(io::ErrorKind::NotFound)?;
        all.extend_from_slice(operations);
        Ok(())
    }
}

/// What a guest does to one page in one epoch.
#[derive(Debug, Clone)]
pub enum Touch {
    Zero,
    /// Touched, and as it was.
    Same,
    /// Some bytes change.
    Bytes(Vec<(u16, u8)>),
    /// Text-like, compresses.
    Text(u8),
    /// Noise, does not compress.
    Noise(u64),
}

/// One epoch: the pages touched (block, page, how), the device state, the console output.
#[derive(Debug, Clone)]
pub struct Step {
    pub touches: Vec<(u16, u64, Touch)>,
    pub state: Vec<u8>,
    pub console: Vec<u8>,
    /// Operations on volumes 0 and 1; what they mean is not the stream's business.
    pub volumes: [Vec<u8>; 2],
    pub mode: Mode,
}

pub fn step() -> impl Strategy<Value = Step> {
    let touch = prop_oneof![
        Just(Touch::Zero),
        Just(Touch::Same),
        prop::collection::vec((0..PAGE_SIZE as u16, any::<u8>()), 1..40).prop_map(Touch::Bytes),
        any::<u8>().prop_map(Touch::Text),
        any::<u64>().prop_map(Touch::Noise),
    ];
    let at = (0..BLOCKS.len() as u16).prop_flat_map(|b| (Just(b), 0..BLOCKS[usize::from(b)]));
    (
        prop::collection::btree_map(at, touch, 0..30),
        prop::collection::vec(any::<u8>(), 0..3000),
        prop::collection::vec(any::<u8>(), 0..200),
        [prop::collection::vec(any::<u8>(), 0..300), prop::collection::vec(any::<u8>(), 0..300)],
        prop::sample::select(&Mode::ALL[..]),
    )
        .prop_map(|(touches, state, console, volumes, mode)| Step {
            touches: touches.into_iter().map(|((b, p), t)| (b, p, t)).collect(),
            state,
            console,
            volumes,
            mode,
        })
}

/// The guest acts; the pages that a tracker would report are answered as runs with their contents.
pub fn act(memory: &mut Memory, step: &Step) -> (Vec<PageRun>, Vec<u8>) {
    let (mut runs, mut bytes): (Vec<PageRun>, Vec<u8>) = (Vec::new(), Vec::new());
    for (block, page, touch) in &step.touches {
        let content = memory.page_mut(*block, *page);
        match touch {
            Touch::Zero => content.fill(0),
            Touch::Same => {}
            Touch::Bytes(changes) => changes.iter().for_each(|&(at, byte)| content[usize::from(at)] = byte),
            Touch::Text(seed) => content.iter_mut().enumerate().for_each(|(i, b)| *b = (i as u8 % 13) + seed % 64),
            Touch::Noise(seed) => {
                let mut x = seed | 1;
                for word in content.as_chunks_mut::<8>().0 {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    *word = x.to_le_bytes();
                }
            }
        }
        bytes.extend_from_slice(content);
        match runs.last_mut() {
            Some(run) if run.block == *block && run.first + u64::from(run.count) == *page => run.count += 1,
            _ => runs.push(PageRun { block: *block, first: *page, count: 1 }),
        }
    }
    (runs, bytes)
}

/// A stream of `syncs`, then `steps` as checkpoints 1, 2, ...; the memory after each checkpoint; where in the stream each
/// checkpoint ends.
pub fn send(syncs: &[Step], steps: &[Step], shadow: u64) -> (Vec<u8>, Vec<Memory>, Vec<usize>) {
    let layout = layout();
    let mut encoder = PageEncoder::new(&layout).with_shadow(shadow);
    let (mut out, mut scratch) = (Preamble::OURS.to_bytes().to_vec(), Vec::new());
    let mut memory = Memory::new();
    let (mut history, mut ends) = (Vec::new(), Vec::new());
    let rounds = syncs.iter().map(|s| (PassKind::Sync, s)).zip(1u64..);
    let checkpoints = steps.iter().map(|s| (PassKind::Checkpoint, s)).zip(1u64..);
    for ((kind, step), epoch) in rounds.chain(checkpoints) {
        encoder.set_mode(step.mode);
        let (runs, bytes) = act(&mut memory, step);
        if kind == PassKind::Sync {
            memory.1.iter_mut().zip(&step.volumes).for_each(|(all, more)| all.extend_from_slice(more));
        }
        let mut writer = PassWriter::begin(&mut out, &mut scratch, pass(kind, epoch), TERM).unwrap();
        writer.pages(&mut encoder, &runs, &bytes).unwrap();
        for (volume, operations) in step.volumes.iter().enumerate() {
            let mut offset = 0;
            for piece in operations.chunks(100) {
                offset = writer.volume_writes(volume as u16, offset, piece).unwrap();
            }
        }
        if kind == PassKind::Checkpoint {
            writer.device_state(&step.state).unwrap();
            writer.channel_output(0, &step.console).unwrap();
        }
        writer.end().unwrap();
        if kind == PassKind::Checkpoint {
            history.push(memory.clone());
            ends.push(out.len());
        }
    }
    (out, history, ends)
}

/// A receiver.
pub struct Receiver {
    pub assembler: CheckpointAssembler,
    pub memory: Memory,
}

impl Receiver {
    pub fn new() -> Self {
        Self { assembler: CheckpointAssembler::new(SESSION, TERM, layout(), 1).from_a_peer(), memory: Memory::new() }
    }

    /// Takes a stream until its end or its refusal.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let mut reader = RecordReader::new(bytes);
        reader.preamble()?.agree()?;
        while let Some(frame) = reader.next_record()? {
            if let Fed::Whole(_) = self.assembler.feed(&frame, &mut self.memory)? {
                self.assembler.commit(&mut self.memory)?;
            }
        }
        Ok(())
    }

    /// What a backup would resume from: the last whole checkpoint is exactly that of the history, all of it.
    pub fn check(&mut self, history: &[Memory], steps: &[Step]) {
        self.assembler.abandon();
        self.assembler.commit(&mut self.memory).unwrap();
        let Some(held) = self.assembler.checkpoint() else {
            return;
        };
        let n = held.epoch.0 as usize - 1;
        assert_eq!(held.term, TERM);
        assert!(held.device_state == steps[n].state && held.output(0) == steps[n].console, "parts of {}", n + 1);
        for (volume, operations) in steps[n].volumes.iter().enumerate() {
            assert_eq!(held.volume_writes(volume as u16), operations, "writes of {} to volume {volume}", n + 1);
        }
        assert_eq!(self.memory, history[n], "memory of checkpoint {}", n + 1);
    }
}
