//! The generation id in the guest's memory, where the firmware has put it: it stays with a standby that has the same, and is another
//! one with a machine that is a new life.

use guest::protected::Protected;
use ninefold_machine::{MachineConfig, Memory, PAGE_SIZE};
use ninefold_model::Uuid;
use ninefold_model::spec::Accel;
use ninefold_testkit::guest;

/// Where in the guest's memory a generation id lies: 40 bytes into a page (QEMU, docs/specs/vmgenid), its first three fields
/// little-endian.
fn places(memory: &Memory, id: Uuid) -> Vec<u64> {
    let digits = id.to_string().replace('-', "");
    let mut wanted: Vec<u8> = (0..16).map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).unwrap()).collect();
    wanted[..4].reverse();
    wanted[4..6].reverse();
    wanted[6..8].reverse();
    let mut page = [0; PAGE_SIZE as usize];
    let mut found = Vec::new();
    for run in memory.all_runs(1).filter(|run| run.block == 0) {
        memory.read_run(run, &mut page).unwrap();
        if page[40..56] == wanted[..] {
            found.push(run.first);
        }
    }
    found
}

#[test]
fn it_is_another_one_in_a_new_life_and_the_same_in_a_standby() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    let [first, second] = [Uuid::random(0x0123_4567_89ab_cdef << 64 | 0xfeed), Uuid::random(0x7777 << 64 | 0xbeef)];
    for qemu in guest::qemus() {
        let config = MachineConfig { generation: first, ..guest::config(&qemu, Accel::Tcg, 1, &image) };
        let mut vm = Protected::start(&config);
        let memory = vm.machine.memory().clone();
        guest::await_boot(&memory, 1);
        vm.pause("before the standby");
        let [place] = places(&memory, first)[..] else { panic!("{}: not in memory once", qemu.display()) };
        for (generation, stays) in [(first, true), (second, false)] {
            let config = MachineConfig { generation, ..guest::standby(&config) };
            let (mut standby, _ports) = guest::launch(&config);
            assert_eq!(standby.generation(), generation);
            vm.shadow.give(standby.memory());
            standby.load(&vm.state).unwrap();
            assert_eq!(places(standby.memory(), generation), [place], "{}", qemu.display());
            assert_eq!(places(standby.memory(), first).is_empty(), !stays);
            if stays {
                // Nothing at all of the memory that the backup holds has changed.
                vm.shadow.assert_same(standby.memory(), "loaded");
            }
            standby.start().unwrap();
            guest::await_count(standby.memory(), guest::COUNTER, 10);
        }
    }
}
