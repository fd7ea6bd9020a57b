//! A protected VM with a disk of its own and no shared storage: redis writes every acknowledged command to it first.
//!
//! The fault matrix's invariant holds after each action; besides, the two hosts' images end up equal, byte for byte.

mod support;

use std::fs;
use std::path::PathBuf;

use ninefold_model::control::Request;
use ninefold_model::event::{Event, EventKind};
use ninefold_model::spec::{Acknowledge, VolumeSpec};
use support::{Action, Beginning, Scenario, rounds, wait_until};

const SIZE: u64 = 96 << 20;

fn with_volume(acknowledge: Acknowledge) -> Beginning {
    let mut begin = Beginning::default();
    begin.vm.volumes = vec![VolumeSpec { name: "data".parse().unwrap(), size: SIZE, acknowledge }];
    begin
}

fn image(scenario: &Scenario, host: &str) -> PathBuf {
    scenario.lab.pool_dir(host).join("volumes/data/image.raw")
}

/// Ends the VM; then both hosts have applied what was committed, and the guest has been silent for long enough for that
/// to be all of it.
fn images_become_equal(scenario: &Scenario) {
    scenario.lab.ask(&scenario.primary, &Request::Stop).unwrap();
    wait_until("equality of the images", || {
        let [a, b] = ["a", "b"].map(|host| fs::read(image(scenario, host)).unwrap());
        assert_eq!(a.len() as u64, SIZE);
        a == b
    });
    // The file system that the guest made is there, so that it was not two empty disks that were compared.
    let magic = &fs::read(image(scenario, "a")).unwrap()[1080..1082];
    assert_eq!(magic, [0x53, 0xef], "an ext4 file system");
}

/// What each resync of the volume sent, in order.
fn resyncs(scenario: &Scenario) -> Vec<u64> {
    let sent =
        |e: &Event| if let EventKind::Protected { volume_bytes, .. } = e.kind { Some(volume_bytes) } else { None };
    scenario.events.all().iter().filter_map(sent).collect()
}

fn survives(name: &'static str, acknowledge: Acknowledge, actions: &[Action], times: usize) {
    let mut scenario = Scenario::with(name, with_volume(acknowledge));
    scenario.run(actions, times);
    let sent = resyncs(&scenario);
    eprintln!("{name}: bytes of the volume sent by each resync: {sent:?}");
    assert!(sent.len() > times * actions.len());
    // The first finds an empty image on the backup; all of them send what differs.
    assert!(sent.iter().all(|&bytes| bytes < SIZE / 3), "{sent:?}");
    scenario.finish_with(images_become_equal);
}

#[test]
fn a_volume_survives_what_its_host_does_not() {
    let actions = [Action::KillQemu, Action::KillKeeper, Action::KillHost, Action::FreezePrimary, Action::Switchover];
    survives("volume", Acknowledge::Memory, &actions, rounds(1));
}

#[test]
fn a_volume_survives_the_loss_of_its_backup() {
    let actions = [Action::KillBackupKeeper, Action::KillQemu, Action::FreezeBackup, Action::UnprotectAndProtect];
    survives("voldisk", Acknowledge::Disk, &actions, rounds(1));
}
