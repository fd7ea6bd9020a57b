//! The guest's memory as it was at one moment is read while a real guest writes to it.

use std::path::Path;
use std::time::Duration;

use guest::protected::Protected;
use guest::{COUNTER, OTHER_COUNTER, sweep};
use ninefold_machine::{DirtySet, MachineError, Mechanism, Moment, PAGE_SIZE, Pages, Ram};
use ninefold_testkit::guest;

/// A guest at work on two vCPUs, regions hot and cold. None where memory cannot be held.
fn begin(accel: ninefold_model::spec::Accel, image: &Path) -> Option<Protected> {
    let mut vm = Protected::start(&guest::config(Path::new("qemu-system-x86_64"), accel, 2, image));
    if vm.tracker.mechanism() != Mechanism::PagemapScan {
        eprintln!("skipped: this kernel has no PAGEMAP_SCAN");
        return None;
    }
    guest::await_boot(&vm.machine.memory().clone(), 2);
    for round in 0..5 {
        guest::await_count(&vm.machine.memory().clone(), COUNTER, 50);
        vm.pause(&format!("{accel}, round {round}"));
        vm.machine.resume().unwrap();
    }
    assert!(!vm.tracker.traps_all(), "some regions are hot");
    Some(vm)
}

/// Takes pauses until all memory is trapped, and holds it as it is in the last of them; the guest still stands still. The whole
/// memory is in the shadow.
fn hold(vm: &mut Protected) -> Moment {
    vm.tracker.trap_all(true);
    vm.pause("before it is held");
    while !vm.tracker.traps_all() {
        vm.machine.resume().unwrap();
        vm.pause("memory becomes cold");
    }
    let moment = Moment::new(vm.machine.memory().ram());
    assert!(matches!(moment.next(&mut Pages::default()), Err(MachineError::Moment { .. })));
    vm.tracker.hold(&moment);
    vm.tracker.trap_all(false);
    assert!(vm.tracker.holds());
    moment
}

fn put(copy: &mut [u8], seen: &mut [bool], pages: &Pages) {
    let mut at = 0;
    for run in &pages.runs {
        assert_eq!(run.block, 0);
        for page in run.first..run.first + u64::from(run.count) {
            assert!(!std::mem::replace(&mut seen[page as usize], true), "page {page} comes twice");
        }
        let to = (run.first * PAGE_SIZE) as usize;
        copy[to..to + run.bytes()].copy_from_slice(&pages.bytes[at..at + run.bytes()]);
        at += run.bytes();
    }
    assert_eq!(at, pages.bytes.len());
}

/// The guest writes all over a few MiB all the time, checkpoints go on, regions become hot again, and what is read is one moment.
#[test]
fn memory_is_read_as_it_was_while_the_guest_and_its_checkpoints_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for accel in guest::accels() {
        let Some(mut vm) = begin(accel, &image) else { return };
        for round in 0..2 {
            let moment = hold(&mut vm);
            let expected = vm.shadow.blocks[0].clone();
            vm.machine.resume().unwrap();
            let memory = vm.machine.memory().clone();
            let (mut copy, mut seen) = (vec![0; expected.len()], vec![false; expected.len() / PAGE_SIZE as usize]);
            let (mut pages, mut count) = (Pages::default(), 0);
            // The guest comes to write to all that it ever writes to before much is read.
            guest::await_count(&memory, COUNTER, 1500);
            while moment.next(&mut pages).unwrap() {
                put(&mut copy, &mut seen, &pages);
                guest::await_count(&memory, COUNTER, 20);
                guest::await_count(&memory, OTHER_COUNTER, 1);
                count += 1;
                if round % 2 == 0 && count % 3 == 0 {
                    vm.pause(&format!("{accel}, while it is read"));
                    vm.machine.resume().unwrap();
                }
            }
            let differs = copy.chunks(4096).zip(expected.chunks(4096)).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{accel}, round {round}");
            assert!(count > 2, "it was read in {count} parts");
            drop(moment);
            assert!(!vm.tracker.holds());
            vm.pause(&format!("{accel}, after it was read"));
            vm.machine.resume().unwrap();
        }
    }
}

/// What was written is read as it was, behind the pause, while two vCPUs go on writing: in one checkpoint after the other, and the
/// copy that is kept up from that alone is the guest's memory.
#[test]
fn what_was_written_is_read_behind_the_pause() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for accel in guest::accels() {
        let Some(mut vm) = begin(accel, &image) else { return };
        vm.tracker.trap_all(true);
        while !vm.tracker.traps_all() {
            vm.pause("memory becomes cold");
            vm.machine.resume().unwrap();
        }
        let memory = vm.machine.memory().clone();
        let (mut early, mut late) = (DirtySet::for_layout(memory.layout()), DirtySet::for_layout(memory.layout()));
        let others = |set: &DirtySet| set.runs().iter().filter(|run| run.block > 0).copied().collect::<Vec<_>>();
        let (mut again, mut read) = (0, 0);
        for round in 0..6 {
            guest::await_count(&memory, COUNTER, 40 * round);
            early.clear();
            late.clear();
            vm.tracker.scan(&mut early).unwrap();
            let moment = Moment::of_pages(memory.ram());
            moment.include(early.runs());
            guest::await_count(&memory, COUNTER, 10);
            vm.machine.begin_pause().unwrap();
            vm.tracker.scan_stopped(&mut late).unwrap();
            moment.include(late.runs());
            assert!(vm.tracker.hold(&moment));
            vm.machine.finish_save().unwrap();
            [&early, &late].iter().for_each(|set| vm.shadow.take(&memory, &others(set)));
            let whole: Vec<_> = memory.all_runs(256).filter(|run| run.block == 0).collect();
            let mut expected = vec![0; vm.shadow.blocks[0].len()];
            memory.read_runs(&whole, &mut expected).unwrap();
            vm.machine.resume().unwrap();
            guest::await_count(&memory, COUNTER, 60);
            guest::await_count(&memory, OTHER_COUNTER, 1);
            let (mut seen, mut pages) = (vec![false; expected.len() / PAGE_SIZE as usize], Pages::default());
            while moment.next(&mut pages).unwrap() {
                put(&mut vm.shadow.blocks[0], &mut seen, &pages);
                guest::await_count(&memory, COUNTER, 2);
            }
            read += seen.iter().filter(|seen| **seen).count();
            again += late.pages();
            let differs = vm.shadow.blocks[0].chunks(4096).zip(expected.chunks(4096)).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{accel}, round {round}");
        }
        assert!(read > 500 && again > 50, "{accel}: {read} pages, {again} of them late");
        vm.pause(&format!("{accel}, without one"));
        vm.machine.kill();
    }
}

/// Whoever reads, or follows the writes, may go at any time.
#[test]
fn the_guest_goes_on_when_a_moment_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for accel in guest::accels() {
        let Some(mut vm) = begin(accel, &image) else { return };
        let memory = vm.machine.memory().clone();
        let moment = hold(&mut vm);
        vm.machine.resume().unwrap();
        assert!(moment.next(&mut Pages::default()).unwrap());
        drop(moment);
        guest::await_count(&memory, COUNTER, 1000);
        vm.pause("the reader has gone");
        vm.machine.resume().unwrap();

        let moment = hold(&mut vm);
        vm.machine.resume().unwrap();
        let Protected { machine, tracker, .. } = vm;
        drop(tracker);
        guest::await_count(&memory, COUNTER, 1000);
        let error = moment.next(&mut Pages::default()).unwrap_err();
        assert!(error.to_string().contains("runs here no more"), "{error}");
        drop(machine);
    }
}

/// While regions are hot a moment would be no moment: it is refused, and nothing else is disturbed.
#[test]
fn memory_that_is_not_trapped_is_not_held() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for accel in guest::accels() {
        let Some(mut vm) = begin(accel, &image) else { return };
        vm.pause("some regions are hot");
        let moment = Moment::new(vm.machine.memory().ram());
        assert!(!vm.tracker.hold(&moment));
        vm.machine.resume().unwrap();
        assert!(!vm.tracker.holds());
        let error = moment.next(&mut Pages::default()).unwrap_err();
        assert!(error.to_string().contains("not all of the memory is watched"), "{error}");
        guest::await_count(&vm.machine.memory().clone(), COUNTER, 100);
    }
}

/// A guest that has come to wait until some of what it writes over is taken away; it is running. None where memory cannot be held.
fn waiting(accel: ninefold_model::spec::Accel, dir: &Path) -> Option<(Protected, Moment)> {
    let mut config = guest::config(Path::new("qemu-system-x86_64"), accel, 1, &sweep::boot_sector(dir));
    config.spec.hardware.memory_mib = sweep::MEMORY_MIB;
    let mut vm = Protected::start_with(&config, Ram::create(sweep::MEMORY_MIB << 20).unwrap());
    if vm.tracker.mechanism() != Mechanism::PagemapScan {
        eprintln!("skipped: this kernel has no PAGEMAP_SCAN");
        return None;
    }
    sweep::await_sweeps(&vm.machine.memory().clone(), 2);
    let moment = hold(&mut vm);
    vm.machine.resume().unwrap();
    while moment.waited() == Duration::ZERO {
        std::thread::yield_now();
    }
    Some((vm, moment))
}

/// The guest goes on, and what it has written is known.
fn goes_on(mut vm: Protected, when: &str) {
    let memory = vm.machine.memory().clone();
    for _ in 0..2 {
        sweep::await_sweeps(&memory, 1);
        vm.pause(when);
        sweep::is_of_one_moment(&memory);
        vm.machine.resume().unwrap();
    }
    vm.machine.kill();
}

/// The reader goes while the guest waits for it.
#[test]
fn a_guest_that_waits_goes_on_when_its_reader_goes() {
    let dir = tempfile::tempdir().unwrap();
    for accel in guest::accels() {
        let Some((vm, moment)) = waiting(accel, dir.path()) else { return };
        drop(moment);
        assert!(!vm.tracker.holds());
        goes_on(vm, &format!("{accel}: the reader has gone"));
    }
}

/// The reader takes nothing more away while the guest waits for it.
#[test]
fn a_guest_that_waits_goes_on_when_its_reader_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    for accel in guest::accels() {
        let Some((vm, moment)) = waiting(accel, dir.path()) else { return };
        while vm.tracker.holds() {
            std::thread::yield_now();
        }
        let error = moment.next(&mut Pages::default()).unwrap_err();
        assert!(error.to_string().contains("the guest would have to wait"), "{error}");
        goes_on(vm, &format!("{accel}: the reader stands still"));
    }
}
