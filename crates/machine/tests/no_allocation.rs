//! The pause path does not allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use guest::COUNTER;
use ninefold_machine::{DirtySet, Moment};
use ninefold_model::spec::Accel;
use ninefold_testkit::guest;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator; counting touches no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_pause_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for qemu in guest::qemus() {
        let (mut machine, _ports) = guest::launch(&guest::config(&qemu, Accel::Tcg, 1, &image));
        let mut tracker = machine.track().unwrap();
        let memory = machine.memory().clone();
        let mut dirty = DirtySet::for_layout(memory.layout());
        let mut pages = vec![0; 40 << 20];
        let mut state = Vec::with_capacity(1 << 20);
        // With this, nothing becomes hot.
        tracker.trap_all(true);
        machine.start().unwrap();
        guest::await_boot(&memory, 1);
        for round in 0..20 {
            guest::await_count(&memory, COUNTER, 50);
            dirty.clear();
            let moment = (round % 2 == 1 && tracker.can_hold()).then(|| Moment::of_pages(memory.ram()));
            if round == 10 {
                tracker.trap_all(false);
            }
            let before = ALLOCATIONS.with(Cell::get);
            machine.begin_pause().unwrap();
            tracker.scan_stopped(&mut dirty).unwrap();
            let held = moment.as_ref().is_none_or(|moment| {
                moment.include(dirty.runs());
                tracker.hold(moment) || round > 10
            });
            let read = memory.read_runs(dirty.runs(), &mut pages).unwrap();
            machine.finish_save().unwrap();
            machine.state_into(&mut state).unwrap();
            machine.resume().unwrap();
            assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "{}", qemu.display());
            assert!(held && read > 0 && !state.is_empty());
        }
    }
}
