//! A protected VM with a disk of its own and no shared storage: redis writes every acknowledged command to it first.
//!
//! The fault matrix's invariant holds after each action; besides, the two hosts' images end up equal, byte for byte.

mod support;

use ninefold_control::Request;
use ninefold_lab::ledger::resp::Reply;
use ninefold_model::event::EventKind;
use ninefold_model::spec::{Acknowledge, VolumeSpec};
use support::disks::name;
use support::{Action, Beginning, Scenario, rounds, wait_until};

const SIZE: u64 = 96 << 20;

fn with_volume(acknowledge: Acknowledge) -> Beginning {
    let mut begin = Beginning::default();
    begin.vm.volumes = vec![VolumeSpec::new(name("data"), SIZE)];
    begin.vm.acknowledge = [(name("data"), acknowledge)].into();
    begin
}

/// Ends the VM; then both hosts have applied what was committed, and the guest has been silent for long enough for that
/// to be all of it.
fn images_become_equal(scenario: &Scenario) {
    scenario.lab.ask(&scenario.primary, &Request::Stop).unwrap();
    let image = scenario.images_become_equal("data");
    assert_eq!(image.len() as u64, SIZE);
    // The file system that the guest made is there, so that it was not two empty disks that were compared.
    assert_eq!(image[1080..1082], [0x53, 0xef], "an ext4 file system");
}

fn survives(name: &'static str, acknowledge: Acknowledge, actions: &[Action], times: usize) {
    let mut scenario = Scenario::with(name, with_volume(acknowledge));
    for _ in 0..times {
        for action in actions {
            scenario.act(*action);
            // At rest, both hosts have the same after each of them.
            scenario.images_become_equal_under_load("data", "any content", |_| true);
        }
    }
    let sent = scenario.resyncs();
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

/// Protection is switched off in the middle of checkpoints: what the guest flushes from then on is in its image, and not in the
/// memory of a keeper that waits for a backup.
#[test]
fn what_is_flushed_without_protection_is_in_the_image() {
    let mut scenario = Scenario::with("flushed", with_volume(Acknowledge::Memory));
    for round in 0..rounds(3) {
        scenario.expect_writes(50);
        let mark = scenario.events.mark();
        scenario.lab.ask("a", &Request::Unprotect).unwrap();
        scenario.expect(mark, "a", "unprotected", |k| matches!(k, EventKind::Unprotected { .. }));
        let word = format!("flushed-in-round-{round}");
        let set = || scenario.ask_redis(&["SET", "word", &word]);
        wait_until("the guest's answer", || matches!(set(), Ok(Reply::Simple(ok)) if ok == "OK"));
        // It was answered when it was on the guest's disk.
        let image = scenario.image("a", "data");
        assert!(image.windows(word.len()).any(|w| w == word.as_bytes()), "{word} is not in the image");
        let mark = scenario.events.mark();
        scenario.lab.ask("a", &Request::Protect).unwrap();
        scenario.settle(mark);
    }
    scenario.finish_with(images_become_equal);
}
