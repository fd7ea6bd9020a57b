//! The fault matrix: what may happen to a protected VM, on real QEMUs, keepers, networks and a real guest with redis.
//!
//! After each action: one primary, a backup bound to it, one speaker on the network, the client's connection alive and
//! every acknowledged write there (`support/`). NINEFOLD_ROUNDS says how often each case is repeated; `make soak` also
//! runs the ignored test, which does everything in random order. Run with `--test-threads=1`.

mod support;

use std::time::Instant;

use ninefold_lab::Cut;
use support::action::Away;
use support::{Action, Beginning, Scenario, rounds};

fn case(name: &'static str, actions: &[Action]) {
    let begun = Instant::now();
    let mut scenario = Scenario::start(name);
    scenario.run(actions, rounds(2));
    scenario.finish();
    eprintln!("{name}: {} actions × {} in {:.1} s", actions.len(), rounds(2), begun.elapsed().as_secs_f64());
}

#[test]
fn processes_and_hosts_die() {
    case("death", &[Action::KillQemu, Action::KillKeeper, Action::KillHost]);
}

#[test]
fn hosts_freeze_and_thaw() {
    case("freeze", &[Action::FreezePrimary, Action::FreezeBackup]);
}

#[test]
fn backups_die() {
    case("backup", &[Action::KillBackupQemu, Action::KillBackupKeeper, Action::KillBackupHost]);
}

#[test]
fn the_replication_link_is_cut() {
    case(
        "replication",
        &[
            Action::CutReplicationOfPrimary(Cut::Carrier),
            Action::CutReplicationOfBackup(Cut::Carrier),
            Action::CutReplicationOfPrimary(Cut::Blackhole),
            Action::CutReplicationOfBackup(Cut::Blackhole),
        ],
    );
}

#[test]
fn the_public_link_is_cut() {
    case("public", &[Action::CutPublicOfPrimary, Action::CutPublicOfBackup]);
}

#[test]
fn both_links_are_cut() {
    case("both", &[Action::CutAllOfPrimary(Cut::Carrier), Action::CutAllOfPrimary(Cut::Blackhole)]);
}

#[test]
fn the_witness_goes_away() {
    case(
        "witness",
        &[
            Action::WitnessAway(Away::Killed),
            Action::WitnessAwayAndPrimaryDies(Away::Killed),
            Action::WitnessAwayAndBackupDies(Away::Killed),
            Action::WitnessAwayAndPrimaryDies(Away::Frozen),
            Action::WitnessAwayAndBackupDies(Away::CutOff),
        ],
    );
}

#[test]
fn the_witness_restarts_between_failovers() {
    case("restart", &[Action::WitnessRestarts, Action::KillQemu, Action::WitnessRestarts, Action::KillHost]);
}

#[test]
fn the_vm_is_moved_on_purpose() {
    case(
        "planned",
        &[Action::Switchover, Action::SwitchoverToFrozen, Action::TerminateKeeper, Action::UnprotectAndProtect],
    );
}

/// The distribution's older QEMU.
#[test]
fn qemu_7_2_is_protected_too() {
    let qemu = ninefold_keeper::config::cache_dir().join("qemu-7.2/qemu-system-x86_64");
    if !qemu.exists() {
        println!("LEFT OUT: there is no QEMU 7.2 at {} (scripts/bootstrap unpacks it)", qemu.display());
        return;
    }
    let mut begin = Beginning::default();
    begin.vm.qemu = Some(qemu);
    let mut scenario = Scenario::with("qemu-7.2", begin);
    scenario.run(&[Action::KillQemu, Action::KillHost, Action::Switchover], 1);
    scenario.finish();
}

#[test]
fn two_vcpus_are_protected_too() {
    let mut begin = Beginning::default();
    begin.vm.vcpus = 2;
    let mut scenario = Scenario::with("smp", begin);
    scenario.run(&[Action::KillQemu, Action::KillKeeper, Action::FreezePrimary, Action::Switchover], 1);
    scenario.finish();
}

/// Everything in random order; NINEFOLD_SEED repeats a run.
#[test]
#[ignore = "long: make soak"]
fn everything_in_random_order() {
    let seed = std::env::var("NINEFOLD_SEED").ok().and_then(|s| s.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 0x9e37);
    eprintln!("NINEFOLD_SEED={seed}");
    let mut scenario = Scenario::start("random");
    let mut state = seed;
    for _ in 0..rounds(8) {
        let mut left = Action::ALL.to_vec();
        while !left.is_empty() {
            // SplitMix64 (Steele, Lea, Flood 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let at = (mixed ^ (mixed >> 31)) as usize % left.len();
            scenario.act(left.swap_remove(at));
        }
    }
    scenario.finish();
}

/// The loss of the primary, time after time, under one TCP connection. NINEFOLD_FAILOVERS says how often.
#[test]
#[ignore = "long: make soak"]
fn a_thousand_failovers() {
    let wanted = std::env::var("NINEFOLD_FAILOVERS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let mut scenario = Scenario::start("thousand");
    let faults = [Action::KillQemu, Action::KillKeeper, Action::KillHost];
    for n in 0..wanted {
        scenario.act(faults[n % faults.len()]);
    }
    scenario.finish();
}
