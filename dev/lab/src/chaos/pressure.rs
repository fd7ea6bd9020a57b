//! Pressure on the machine on which all hosts of a lab are.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

/// Between two stores: each page is written.
const PAGE: usize = 4096;

/// So many threads calculate until `wait` returns.
pub(super) fn processor(threads: u64, wait: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut n = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..10_000 {
                        n = black_box(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1));
                    }
                }
            });
        }
        wait();
        stop.store(true, Ordering::Relaxed);
    });
}

/// So much memory is taken, written all over and given back, again and again, until `wait` returns.
pub(super) fn memory(mib: u64, wait: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0u8;
            while !stop.load(Ordering::Relaxed) {
                round = round.wrapping_add(1);
                let mut memory = vec![0u8; usize::try_from(mib << 20).unwrap_or(0)];
                for page in memory.chunks_mut(PAGE) {
                    page[0] = round;
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
                black_box(&memory);
            }
        });
        wait();
        stop.store(true, Ordering::Relaxed);
    });
}
