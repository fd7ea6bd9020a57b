//! A device state is tried in a QEMU of its own: what a standby could not load is found out, and one that it can load leaves no trace.

use std::sync::Arc;

use guest::protected::Protected;
use ninefold_machine::{MachineConfig, MachineError, Rehearsal};
use ninefold_model::spec::{Accel, Hardware, VolumeSpec};
use ninefold_testkit::guest;

#[test]
fn a_state_is_tried_and_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let image = guest::boot_sector(dir.path());
    for qemu in guest::qemus() {
        let at = qemu.display();
        let config = guest::config(&qemu, Accel::Tcg, 1, &image);
        let mut vm = Protected::start(&config);
        guest::await_boot(&vm.machine.memory().clone(), 1);
        vm.pause("before the standby");

        let (mut standby, _ports) = guest::launch(&guest::standby(&config));
        let ram = Arc::clone(standby.memory().ram());
        let rehearse = |config: &MachineConfig| Rehearsal::launch(config, Arc::clone(&ram)).unwrap();
        // It is there before the memory is.
        let rehearsal = rehearse(&config);
        vm.shadow.give(standby.memory());
        rehearsal.load(standby.memory(), &vm.state).unwrap_or_else(|e| panic!("{at}: {e}"));
        vm.shadow.assert_same(standby.memory(), "after a rehearsal");

        let with = |change: &dyn Fn(&mut Hardware)| {
            let mut config = config.clone();
            change(&mut config.spec.hardware);
            config
        };
        let two = rehearse(&with(&|h| h.vcpus = 2));
        let refused = two.load(standby.memory(), &vm.state).err();
        assert!(matches!(refused, Some(MachineError::Load { .. })), "{at}: {refused:?}");
        // Its volume is nobody's: there is no server behind the socket.
        let volume = VolumeSpec::new("data".parse().unwrap(), 1 << 20);
        let more =
            MachineConfig { volumes: vec![dir.path().join("nobody")], ..with(&|h| h.volumes = vec![volume.clone()]) };
        // Nor does QEMU miss the state of a device that is there besides: that a standby is built as the VM was is for others to see to.
        drop(rehearse(&more));
        let cut = &vm.state[..vm.state.len() / 2];
        let refused = rehearse(&config).load(standby.memory(), cut).err();
        assert!(matches!(refused, Some(MachineError::Load { .. })), "{at}: {refused:?}");

        vm.shadow.assert_same(standby.memory(), "after rehearsals that failed");
        standby.load(&vm.state).unwrap();
        standby.start().unwrap();
        guest::await_count(standby.memory(), guest::COUNTER, 10);
    }
}
