//! How long a commit takes on a disk, and how quickly a log is read again.
//!
//! `cargo run --release -p ninefold-snapshot --example log_speed -- DIRECTORY`

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_model::spec::{Accel, EpochPolicy};
use ninefold_model::{Epoch, Record, Term};
use ninefold_replica::protocol::{LogRole, LogStanding};
use ninefold_replica::stream::page::{PAGE_SIZE, Page};
use ninefold_replica::stream::{BlockInfo, Hello, Layout, PageRun, PageSink};
use ninefold_snapshot::log::{At, Found, New, Options};
use ninefold_snapshot::storage::{Directory, Storage};

/// 256 MiB.
const PAGES: u64 = 65536;
/// QEMU's device state of a small PC is about this long.
const STATE: usize = 33 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let place = std::env::args().nth(1).ok_or("in which directory?")?;
    let place = PathBuf::from(place).join("log-speed");
    let bytes = PAGES * PAGE_SIZE as u64;
    let layout = Layout::new(vec![BlockInfo { name: "pc.ram".into(), used: bytes, total: bytes }])?;
    let spec = r#"{"id":"3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4","name":"t","hardware":{"memory_mib":256,"boot":"boot_sector"}}"#;
    let hello = Hello {
        session: 1,
        from: "a".parse()?,
        term: Term(1),
        spec: serde_json::from_str(spec)?,
        epoch_policy: EpochPolicy::default(),
        qemu: "10.0".into(),
        machine: "pc-i440fx-7.2".into(),
        cpu: "qemu64".into(),
        accel: Accel::Tcg,
        layout,
        lanes: 1,
        health: Default::default(),
        reign: None,
        origin: None,
        generation: None,
    };
    // Text-like pages, as most of a guest's memory is.
    let mut x = 1u64;
    let content: Vec<u8> = (0..PAGES as usize * PAGE_SIZE)
        .map(|i| {
            if i % 24 == 0 {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            }
            (x >> 56) as u8 | (i % 7) as u8
        })
        .collect();
    let storage: Arc<dyn Storage> = Arc::new(Directory::open(&place)?);
    let at = |epoch| At { session: Term(1), epoch: Epoch(epoch), term: Term(1) };
    let begun = Instant::now();
    let standing = LogStanding::new(LogRole::Primary { record: Record::boot("a".parse()?) });
    let mut new = New::create(Arc::clone(&storage), hello.clone(), &standing, Options::default())?;
    new.pages(&[PageRun { block: 0, first: 0, count: PAGES as u32 }], &content)?;
    let mut first = new.first(at(1))?;
    first.device_state(&vec![1; STATE])?;
    first.finish()?;
    let mut log = new.publish()?;
    println!("base of {} MiB: {:?}", bytes >> 20, begun.elapsed());
    let folder = log.folder()?;
    let folding = std::thread::spawn(move || folder.run(Duration::from_secs(1)));
    let mut epoch = 1;
    for (pages, rounds) in [(0u64, 300), (32, 300), (256, 300), (2048, 60), (8192, 30)] {
        let (mut times, mut length) = (Vec::new(), 0);
        for round in 0..rounds {
            epoch += 1;
            let runs: Vec<_> = (0..pages.div_ceil(8))
                .map(|n| PageRun { block: 0, first: (n * 64 + round * 8) % (PAGES - 8), count: 8 })
                .collect();
            let bytes = &content[..pages as usize * PAGE_SIZE];
            log.shared().wait_shorter(Options::default().limit, Duration::from_secs(60));
            let begun = Instant::now();
            let mut commit = log.begin(at(epoch))?;
            commit.pages(&runs, bytes)?;
            commit.device_state(&vec![epoch as u8; STATE])?;
            length = commit.finish()?.bytes;
            times.push(begun.elapsed());
        }
        times.sort();
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("{pages} pages: {length} bytes, p50 {p50:?}, p99 {p99:?}");
    }
    log.shared().end();
    folding.join().map_err(|_| "the folder panicked")?;
    drop(log);
    let begun = Instant::now();
    let recovered = Found::look(Arc::clone(&storage))?.recover()?;
    let looked = begun.elapsed();
    struct Ram(Vec<u8>);
    impl PageSink for Ram {
        fn write(&mut self, _: u16, first: u64, data: &[u8]) -> std::io::Result<()> {
            self.0[first as usize * PAGE_SIZE..][..data.len()].copy_from_slice(data);
            Ok(())
        }
        fn read(&mut self, _: u16, _: u64, _: &mut Page) -> std::io::Result<()> {
            Err(std::io::Error::other("no patch"))
        }
    }
    let mut ram = Ram(vec![0; bytes as usize]);
    let begun = Instant::now();
    recovered.load(&|_| true, &mut ram, &mut |_, _| Ok(()))?;
    println!("read again: checked in {looked:?}, loaded in {:?}", begun.elapsed());
    std::fs::remove_dir_all(&place)?;
    Ok(())
}
