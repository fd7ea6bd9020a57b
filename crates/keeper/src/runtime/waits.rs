//! How long threads of this host are kept waiting, under load: what the limits for a stall are set by. A measurement, no test: it prints a table.
//!
//! ```text
//!   cargo test -p ninefold-keeper --lib -- --ignored --nocapture how_long_threads_are_kept_waiting
//! ```
//!
//! A thread sleeps on a queue for 10 ms, as the core does, and is late by so much. Two at a time: one with the priority of the threads that others wait
//! for, one without.

use std::fs::File;
use std::hint::black_box;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ninefold_transport::clock::Moment;

use crate::runtime::priority;
use ninefold_model::spec::Timing;

const TICK: Duration = Duration::from_millis(10);
/// For each load.
const TIME: Duration = Duration::from_secs(8);
/// Memory that is written again and again, bytes; and the file.
const MEMORY: usize = 1 << 30;
const FILE: usize = 256 << 20;

/// How late each tick was, microseconds, sorted.
fn ticks(raised: bool, stop: &AtomicBool) -> Vec<u64> {
    if raised {
        priority::raise();
    }
    let (_open, queue) = channel::<()>();
    let mut late = Vec::new();
    let mut before = Moment::now();
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(queue.recv_timeout(TICK), Err(RecvTimeoutError::Timeout));
        late.push(before.elapsed().saturating_sub(TICK).as_micros() as u64);
        before = Moment::now();
    }
    late.sort_unstable();
    late
}

fn calculate(stop: &AtomicBool) {
    let mut n = 1u64;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..10_000 {
            n = black_box(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1));
        }
    }
}

fn dirty_memory(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        // Given back and taken again: the kernel has to clear it each time.
        let mut memory = vec![0u8; MEMORY];
        for page in memory.chunks_mut(4096).take_while(|_| !stop.load(Ordering::Relaxed)) {
            page[0] = 1;
        }
        black_box(&memory);
    }
}

fn write_disk(stop: &AtomicBool) {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let block = vec![0x5a; 1 << 20];
    while !stop.load(Ordering::Relaxed) {
        let mut file = File::create(dir.path().join("load")).unwrap();
        for _ in (0..FILE >> 20).take_while(|_| !stop.load(Ordering::Relaxed)) {
            file.write_all(&block).unwrap();
        }
        file.sync_all().unwrap();
    }
}

type Load = fn(&AtomicBool);

#[test]
#[ignore = "measures for a minute, and loads the machine"]
fn how_long_threads_are_kept_waiting() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let (calculate, dirty, write): (Load, Load, Load) = (calculate, dirty_memory, write_disk);
    let (processors, memory, disk) = (vec![calculate; 2 * cores], vec![dirty; cores], vec![write; 2]);
    let all = [&processors[..], &memory, &disk].concat();
    let loads = [
        ("none of ours", vec![]),
        ("processors: 2 threads each", processors),
        ("memory: 1 GiB for each processor, again and again", memory),
        ("disk: 2 times 256 MiB and a sync, again and again", disk),
        ("all of these", all),
    ];
    println!("{cores} processors; a stall is one of {:?}\n", Timing::default().stall_limit());
    println!("| load | thread | ticks | p50, ms | p99 | p99.9 | longest |\n|---|---|---|---|---|---|---|");
    for (name, load) in loads {
        let stop = AtomicBool::new(false);
        let all = std::thread::scope(|scope| {
            load.iter().for_each(|load| drop(scope.spawn(|| load(&stop))));
            let measured = [true, false].map(|raised| {
                (
                    raised,
                    scope.spawn({
                        let stop = &stop;
                        move || ticks(raised, stop)
                    }),
                )
            });
            let end = Instant::now() + TIME;
            std::thread::sleep(end.saturating_duration_since(Instant::now()));
            stop.store(true, Ordering::Relaxed);
            measured.map(|(raised, thread)| (raised, thread.join().unwrap()))
        });
        for (raised, late) in all {
            let at = |part: f64| late[((late.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
            let kind = if raised { "real-time" } else { "ordinary" };
            println!(
                "| {name} | {kind} | {} | {:.2} | {:.2} | {:.2} | {:.1} |",
                late.len(),
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0)
            );
        }
    }
}
