//! An allocator that counts what each thread has.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

pub struct Counting;

thread_local! {
    /// Bytes that this thread has, and the most that it had since that was last asked for.
    static HAS: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

fn add(bytes: i64) {
    HAS.with(|has| {
        has.set(has.get() + bytes);
        MOST.with(|most| most.set(most.get().max(has.get())));
    });
}

// SAFETY: all is left to the system's allocator; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        add(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The most that `work` has taken at a time, bytes, with its answer.
pub fn most<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = HAS.with(Cell::get);
    MOST.with(|most| most.set(before));
    let answer = work();
    (MOST.with(Cell::get).saturating_sub(before) as u64, answer)
}
