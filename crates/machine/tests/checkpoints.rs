//! Checkpoints of a real guest: the dirty pages are exactly what a copy needs, and a standby goes on from the copy.

use std::path::Path;

use guest::COUNTER;
use guest::protected::{Protected, tracking_is_exact};
use ninefold_machine::{DirtySet, MachineError, Mechanism, PageSize, Ram, RunState};
use ninefold_model::spec::Accel;
use ninefold_testkit::guest;

fn on_all(vcpus: u16) {
    for qemu in guest::qemus() {
        for accel in guest::accels() {
            tracking_is_exact(&qemu, accel, vcpus);
        }
    }
}

#[test]
fn one_vcpu() {
    on_all(1);
}

#[test]
fn two_vcpus() {
    on_all(2);
}

/// The guest writes in one place, then in another, and comes back: what it leaves is no longer scanned, and nothing that it
/// writes is missed while regions change.
#[test]
fn memory_that_the_guest_leaves_alone_is_not_scanned() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for accel in guest::accels() {
        let mut vm = Protected::start(&guest::config(Path::new("qemu-system-x86_64"), accel, 2, &image));
        if vm.tracker.mechanism() != Mechanism::PagemapScan {
            eprintln!("skipped: this kernel has no PAGEMAP_SCAN");
            return;
        }
        let memory = vm.machine.memory().clone();
        guest::await_boot(&memory, 2);
        for place in [0_u32, 16 << 20, 0] {
            guest::write_where(&memory, place);
            // What was written before has become cold after 100 checkpoints.
            for round in 0..140 {
                if round % 5 == 0 {
                    vm.copy();
                }
                guest::await_count(&memory, COUNTER, 20);
                vm.pause(&format!("{accel}, at {place}, round {round}"));
                vm.machine.resume().unwrap();
            }
            let (all, hot) = vm.tracker.regions().unwrap();
            assert_eq!(all, guest::MEMORY_MIB / 2);
            assert!((4..=7).contains(&hot), "at {place}: {hot} of {all} regions are scanned");
        }
    }
}

/// The machine type is pinned, so that a host can be upgraded to another QEMU, and back.
#[test]
fn a_vm_moves_between_versions() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    let qemus = guest::qemus();
    let [new, old] = qemus.as_slice() else {
        eprintln!("skipped: only one QEMU is here");
        return;
    };
    for (from, to) in [(old, new), (new, old)] {
        let mut vm = Protected::start(&guest::config(from, Accel::Tcg, 1, &image));
        let memory = vm.machine.memory().clone();
        guest::await_boot(&memory, 1);
        vm.pause("before the move");
        let (mut standby, _ports) = guest::launch(&guest::standby(&guest::config(to, Accel::Tcg, 1, &image)));
        memory.layout().check_same(standby.memory().layout()).unwrap();
        vm.shadow.give(standby.memory());
        standby.load(&vm.state).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
        standby.start().unwrap();
        guest::await_count(standby.memory(), COUNTER, 10);
    }
}

/// A guest that writes all the time is trapped at some of its writes while tracking ends.
#[test]
fn who_is_trapped_when_tracking_ends_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for accel in guest::accels() {
        let (mut machine, _ports) = guest::launch(&guest::config(&guest::qemus()[0], accel, 1, &image));
        let memory = machine.memory().clone();
        machine.start().unwrap();
        guest::await_boot(&memory, 1);
        for _ in 0..100 {
            let tracker = machine.track().unwrap();
            guest::await_count(&memory, COUNTER, 1);
            drop(tracker);
            guest::await_count(&memory, COUNTER, 1);
        }
    }
}

#[test]
fn huge_pages_are_tracked() {
    let Some(_reserved) = guest::HugePages::reserve(guest::MEMORY_MIB / 2 + 4) else {
        eprintln!("skipped: this host gives no huge pages");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for qemu in guest::qemus() {
        let ram = Ram::create_with(guest::MEMORY_MIB << 20, PageSize::Huge).unwrap();
        let mut vm = Protected::start_with(&guest::config(&qemu, Accel::Tcg, 1, &image), ram);
        let memory = vm.machine.memory().clone();
        vm.pause("huge pages, firmware");
        vm.machine.resume().unwrap();
        guest::await_boot(&memory, 1);
        for round in 0..20 {
            vm.copy();
            guest::await_count(&memory, COUNTER, 50);
            let pages = vm.pause(&format!("huge pages, round {round}"));
            assert!(pages >= 512, "{pages} pages are less than a huge one");
            vm.machine.resume().unwrap();
        }
    }
}

#[test]
fn damaged_states_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for qemu in guest::qemus() {
        let config = guest::config(&qemu, Accel::Tcg, 1, &image);
        let mut vm = Protected::start(&config);
        vm.pause("once");
        let good = vm.state.clone();
        let truncated = good[..good.len() / 2].to_vec();
        let mut header = good.clone();
        header[0] ^= 0xff;
        let mut sections = good.clone();
        sections[8..64].fill(0xee);
        for (what, bad) in [("truncated", truncated), ("wrong magic", header), ("wrong sections", sections)] {
            let (mut standby, _ports) = guest::launch(&guest::standby(&config));
            let error = standby.load(&bad).unwrap_err();
            assert!(matches!(error, MachineError::Load { .. }), "{what}: {error:?}");
            assert!(error.to_string().len() > 40, "{what}: QEMU's reason is missing: {error}");
        }
        let (mut standby, _ports) = guest::launch(&guest::standby(&config));
        assert!(matches!(standby.load(&[]), Err(MachineError::Load { .. })));
        vm.shadow.give(standby.memory());
        standby.load(&good).unwrap();
    }
}

#[test]
fn calls_out_of_order_are_refused_and_leave_the_machine_usable() {
    let dir = tempfile::tempdir().unwrap();
    let config = guest::config(Path::new("qemu-system-x86_64"), Accel::Tcg, 1, &guest::boot_sector(dir.path()));
    let mut vm = Protected::start(&config);
    assert!(matches!(vm.machine.finish_save(), Err(MachineError::Order { .. })));
    assert!(matches!(vm.machine.track(), Err(MachineError::Order { .. })));
    vm.machine.begin_pause().unwrap();
    assert!(matches!(vm.machine.begin_pause(), Err(MachineError::Order { .. })));
    assert!(matches!(vm.machine.resume(), Err(MachineError::Order { .. })));
    assert!(matches!(vm.machine.query_status(), Err(MachineError::Order { .. })));
    vm.machine.finish_save().unwrap();
    assert_eq!(vm.machine.query_status().unwrap(), RunState::Paused);
    vm.machine.resume().unwrap();
    assert_eq!(vm.machine.query_status().unwrap(), RunState::Running);
    vm.machine.poll_events().unwrap();
    let mut kinds = Vec::new();
    while let Some(event) = vm.machine.next_event() {
        kinds.push(event.kind);
    }
    use ninefold_machine::EventKind::{Other, Resume, Stop};
    kinds.retain(|kind| !matches!(kind, Other(_)));
    assert_eq!(kinds, [Resume, Stop, Resume]);
    // A full set loses nothing.
    let mut small = DirtySet::with_capacity(1);
    guest::await_boot(&vm.machine.memory().clone(), 1);
    guest::await_count(&vm.machine.memory().clone(), COUNTER, 50);
    vm.machine.stop().unwrap();
    loop {
        small.clear();
        let full = vm.tracker.scan(&mut small);
        vm.shadow.take(vm.machine.memory(), small.runs());
        match full {
            Ok(_) => break,
            Err(MachineError::DirtySetFull { capacity: 1 }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    vm.shadow.assert_same(&vm.machine.memory().clone(), "small set");
}
