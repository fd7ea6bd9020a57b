//! A protected guest and what has to be true of it.

use std::path::Path;

use ninefold_machine::{DirtySet, Machine, MachineConfig, Ports, Ram, RunState, Tracker};
use ninefold_model::spec::Accel;

use super::{COUNTER, OTHER_COUNTER, Shadow};

/// A guest whose copy is kept up from dirty runs alone.
pub struct Protected {
    pub machine: Machine,
    _ports: Ports,
    pub tracker: Tracker,
    dirty: DirtySet,
    pub shadow: Shadow,
    pub state: Vec<u8>,
}

impl Protected {
    pub fn start(config: &MachineConfig) -> Protected {
        Self::start_with(config, Ram::create(super::MEMORY_MIB << 20).unwrap())
    }

    pub fn start_with(config: &MachineConfig, ram: Ram) -> Protected {
        let (mut machine, ports) = super::launch_with(config, ram);
        let tracker = machine.track().unwrap();
        let memory = machine.memory();
        let dirty = DirtySet::for_layout(memory.layout());
        let mut shadow = Shadow::empty(memory);
        shadow.take_all(memory);
        machine.start().unwrap();
        Protected { machine, _ports: ports, tracker, dirty, shadow, state: Vec::new() }
    }

    /// Takes what is dirty; the guest may run.
    pub fn copy(&mut self) -> u64 {
        self.copy_which(Tracker::scan)
    }

    fn copy_which(&mut self, scan: fn(&mut Tracker, &mut DirtySet) -> ninefold_machine::Result<u64>) -> u64 {
        self.dirty.clear();
        let pages = scan(&mut self.tracker, &mut self.dirty).unwrap();
        assert_eq!(pages, self.dirty.pages());
        self.shadow.take(self.machine.memory(), self.dirty.runs());
        pages
    }

    /// One checkpoint; the guest stands still afterwards.
    pub fn pause(&mut self, when: &str) -> u64 {
        self.machine.begin_pause().unwrap();
        let pages = self.copy_which(Tracker::scan_stopped);
        self.machine.finish_save().unwrap();
        self.machine.state_into(&mut self.state).unwrap();
        let memory = self.machine.memory().clone();
        self.shadow.assert_same(&memory, when);
        pages
    }
}

/// Checkpoints from the first instruction of the firmware on, compared byte by byte; then a standby goes on from the copy.
pub fn tracking_is_exact(qemu: &Path, accel: Accel, vcpus: u16) {
    let what = format!("{} {accel} {vcpus} vCPUs", qemu.display());
    let dir = tempfile::tempdir().unwrap();
    let config = super::config(qemu, accel, vcpus, &super::boot_sector(dir.path()));
    let mut vm = Protected::start(&config);
    // From the first instruction of the firmware on.
    for round in 0..10 {
        vm.pause(&format!("{what}: firmware, round {round}"));
        vm.machine.resume().unwrap();
    }
    let memory = vm.machine.memory().clone();
    super::await_boot(&memory, vcpus);
    let mut pages = 0;
    for round in 0..60 {
        // With scans between that the guest runs through, and without.
        for _ in 0..round % 3 {
            vm.copy();
        }
        super::await_count(&memory, COUNTER, 20 + 40 * (round % 7));
        pages += vm.pause(&format!("{what}: round {round}"));
        vm.machine.resume().unwrap();
    }
    assert!(pages > 60, "{what}: only {pages} pages were dirty");
    let _ = vm.pause("the last");
    assert_eq!(vm.copy(), 0, "{what}: a guest that stands still dirties nothing");

    // The primary dies; the standby goes on from the copy.
    let (count, other) = (super::word(&memory, COUNTER), super::word(&memory, OTHER_COUNTER));
    let (mut standby, _ports) = super::launch(&super::standby(&config));
    memory.layout().check_same(standby.memory().layout()).unwrap();
    // Begun before the memory comes, which is put in from outside of QEMU.
    let mut tracker = standby.track().unwrap();
    vm.machine.kill();
    vm.shadow.give(standby.memory());
    standby.load(&vm.state).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(standby.query_status().unwrap(), RunState::Paused);
    assert_eq!(super::word(standby.memory(), COUNTER), count);
    standby.check_layout().unwrap();
    standby.start().unwrap();
    super::await_count(standby.memory(), COUNTER, 10);
    assert!(super::word(standby.memory(), COUNTER).wrapping_sub(count) >= 10, "{what}");
    if vcpus > 1 {
        super::await_count(standby.memory(), OTHER_COUNTER, 10);
        assert!(super::word(standby.memory(), OTHER_COUNTER).wrapping_sub(other) >= 10, "{what}");
    }
    // What was written since the copy, by the loading of the devices and by the guest, is known: others go on from the copy, too.
    standby.begin_pause().unwrap();
    let mut dirty = DirtySet::for_layout(standby.memory().layout());
    let written = tracker.scan_stopped(&mut dirty).unwrap();
    vm.shadow.take(standby.memory(), dirty.runs());
    standby.finish_save().unwrap();
    vm.shadow.assert_same(&standby.memory().clone(), "since the copy");
    let all: u64 = standby.memory().layout().blocks.iter().map(|b| b.pages()).sum();
    assert!(written < all / 2, "{what}: {written} of {all} pages, though nothing of the copy counts as written");
    drop(tracker);
    standby.resume().unwrap();
    // And can be protected in its turn.
    let mut tracker = standby.track().unwrap();
    let mut shadow = Shadow::empty(standby.memory());
    shadow.take_all(&standby.memory().clone());
    super::await_count(standby.memory(), COUNTER, 10);
    standby.begin_pause().unwrap();
    let mut dirty = DirtySet::for_layout(standby.memory().layout());
    tracker.scan(&mut dirty).unwrap();
    shadow.take(standby.memory(), dirty.runs());
    standby.finish_save().unwrap();
    shadow.assert_same(&standby.memory().clone(), "after the takeover");
    standby.quit();
}
