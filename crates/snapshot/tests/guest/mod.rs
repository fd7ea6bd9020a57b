//! A guest's memory and disk, and what it does to them.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io;

use ninefold_model::spec::{Accel, Arch, EpochPolicy};
use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::page::{PAGE_SIZE, Page};
use ninefold_replica::stream::{BlockInfo, Hello, Layout, PageRun, PageSink};
use ninefold_snapshot::file::Platform;
use ninefold_snapshot::log::At;
use proptest::prelude::*;

pub const BLOCKS: [u64; 2] = [24, 3];
/// Of the guest's one volume, bytes.
pub const VOLUME: usize = 8192;

pub fn layout() -> Layout {
    let block = |(i, &pages): (usize, &u64)| BlockInfo {
        name: format!("block{i}"),
        used: pages * PAGE_SIZE as u64,
        total: pages * PAGE_SIZE as u64,
    };
    Layout::new(BLOCKS.iter().enumerate().map(block).collect()).unwrap()
}

pub fn platform() -> Platform {
    Platform {
        arch: Arch::X86_64,
        accel: Accel::Tcg,
        machine: "pc-i440fx-7.2".into(),
        cpu: "Nehalem".into(),
        qemu: [10, 0, 2],
    }
}

pub fn hello() -> Hello {
    Hello {
        session: 5,
        from: "host-a".parse().unwrap(),
        term: Term(5),
        spec: serde_json::from_str(
            r#"{"id":"3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4","name":"db","hardware":{"memory_mib":256,"boot":{"linux":{"cmdline":"quiet"}},
                "nics":[{"mac":"52:54:00:12:34:56"}],"volumes":[{"name":"data","size":8192}]}}"#,
        )
        .unwrap(),
        epoch_policy: EpochPolicy::default(),
        qemu: "10.0.2".into(),
        machine: "pc-i440fx-7.2".into(),
        cpu: "qemu64".into(),
        accel: Accel::Tcg,
        layout: layout(),
        lanes: 1,
        health: Default::default(),
        reign: None,
        origin: None,
        generation: None,
    }
}

pub fn at(epoch: u64) -> At {
    At { session: Term(5), epoch: Epoch(epoch), term: Term(5 + epoch / 4) }
}

/// All that a checkpoint holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Guest {
    pub memory: Vec<Vec<u8>>,
    pub state: Vec<u8>,
    pub console: Vec<u8>,
    pub volume: Vec<u8>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sums: Vec<u32> = self.memory.iter().map(|b| crc32fast::hash(b)).collect();
        let volume = crc32fast::hash(&self.volume);
        write!(f, "Guest({sums:08x?}, volume {volume:08x}, {:?}, {:?})", self.state, self.console)
    }
}

impl Guest {
    pub fn new() -> Self {
        Self {
            memory: BLOCKS.iter().map(|&pages| vec![0; pages as usize * PAGE_SIZE]).collect(),
            state: Vec::new(),
            console: Vec::new(),
            volume: vec![0; VOLUME],
        }
    }

    fn page_mut(&mut self, block: u16, page: u64) -> &mut Page {
        &mut self.memory[usize::from(block)].as_chunks_mut::<PAGE_SIZE>().0[page as usize]
    }

    /// All pages, as runs with contents.
    pub fn all(&self) -> (Vec<PageRun>, Vec<u8>) {
        let runs = (0u16..).zip(BLOCKS).map(|(block, pages)| PageRun { block, first: 0, count: pages as u32 });
        (runs.collect(), self.memory.concat())
    }
}

/// Memory that is loaded: begins with what a fresh QEMU has in its blocks.
pub struct Loading(pub Vec<Vec<u8>>);

impl Loading {
    pub fn new() -> Self {
        let block = |(n, &pages): (usize, &u64)| vec![if n == 0 { 0 } else { 0x5a }; pages as usize * PAGE_SIZE];
        Self(BLOCKS.iter().enumerate().map(block).collect())
    }

    pub fn fresh(block: u16) -> bool {
        block == 0
    }
}

impl PageSink for Loading {
    fn write(&mut self, block: u16, first: u64, data: &[u8]) -> io::Result<()> {
        let at = first as usize * PAGE_SIZE;
        self.0[usize::from(block)][at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, _: u16, _: u64, _: &mut Page) -> io::Result<()> {
        Err(io::Error::other("no patch was written"))
    }
}

/// What a guest writes to a page: zeros, or text or noise from a seed.
pub type Touch = Option<(bool, u64)>;

/// What a guest does in one epoch.
#[derive(Debug, Clone, Default)]
pub struct Deed {
    /// Block, page, content.
    pub touches: Vec<(u16, u64, Touch)>,
    pub state: Vec<u8>,
    pub console: Vec<u8>,
    /// Writes to the volume: where, length, byte.
    pub writes: Vec<(usize, usize, u8)>,
}

pub fn deed() -> impl Strategy<Value = Deed> {
    let page = (0..BLOCKS.len()).prop_flat_map(|b| (Just(b as u16), 0..BLOCKS[b]));
    let touch = prop_oneof![1 => Just(None), 4 => any::<(bool, u64)>().prop_map(Some)];
    let write =
        (0..VOLUME, 1..600usize, any::<u8>()).prop_map(|(at, length, byte)| (at, length.min(VOLUME - at), byte));
    (
        prop::collection::btree_map(page, touch, 0..6),
        prop::collection::vec(any::<u8>(), 1..40),
        prop::collection::vec(any::<u8>(), 0..20),
        prop::collection::vec(write, 0..3),
    )
        .prop_map(|(touches, state, console, writes)| Deed {
            touches: touches.into_iter().map(|((b, p), t)| (b, p, t)).collect(),
            state,
            console,
            writes,
        })
}

/// The guest acts. Answers the pages that a tracker would report with their contents, and the operations on the volume.
pub fn act(guest: &mut Guest, deed: &Deed) -> (Vec<PageRun>, Vec<u8>, Vec<u8>) {
    let (mut runs, mut bytes): (Vec<PageRun>, Vec<u8>) = (Vec::new(), Vec::new());
    for &(block, page, touch) in &deed.touches {
        let content = guest.page_mut(block, page);
        match touch {
            None => content.fill(0),
            Some((true, seed)) => {
                content.iter_mut().enumerate().for_each(|(i, b)| *b = (i as u8 % 13) + seed as u8 % 64)
            }
            Some((false, seed)) => {
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
            Some(run) if run.block == block && run.first + u64::from(run.count) == page => run.count += 1,
            _ => runs.push(PageRun { block, first: page, count: 1 }),
        }
    }
    guest.state.clone_from(&deed.state);
    guest.console.clone_from(&deed.console);
    let mut operations = Vec::new();
    for &(at, length, byte) in &deed.writes {
        guest.volume[at..at + length].fill(byte);
        ninefold_volume::batch::put_write(&mut operations, at as u64, &vec![byte; length]);
    }
    (runs, bytes, operations)
}
