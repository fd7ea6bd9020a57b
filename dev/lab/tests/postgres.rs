//! PostgreSQL on a replicated volume, and the ledger that checks its transactions. Real VMs; needs root and the guests.

mod support;

use std::time::Instant;

use ninefold_lab::demo::{DatabaseReport, Step, database};
use ninefold_lab::ledger::sql;
use ninefold_lab::topology::CLIENT;
use ninefold_lab::{Guest, Lab, LabConfig, LedgerOptions, SqlLedger, VmOptions, disks};
use ninefold_model::spec::{Acknowledge, NonVolatile, Protection};
use ninefold_testkit::programs;
use support::{deadline, lab_name};

fn vm(acknowledge: Acknowledge) -> VmOptions {
    let mut vm = VmOptions::postgres("db".parse().unwrap(), acknowledge).unwrap();
    // As in the fault matrix: a machine that is busy with builds shall not look like one that has died.
    vm.timing.failure_timeout_ms = 500;
    vm
}

fn non_volatile() -> VmOptions {
    VmOptions { non_volatile: Some(NonVolatile::default()), ..vm(Acknowledge::Memory) }
}

#[test]
fn the_ledger_notices_what_is_taken_away() {
    programs::build(programs::OF_A_LAB);
    let lab = Lab::up(&LabConfig::new(&lab_name()).unwrap()).unwrap();
    let options = VmOptions { protection: Protection::None, ..vm(Acknowledge::Memory) };
    lab.boot_vm("a", &options).unwrap();
    let (netns, server) = (lab.netns(CLIENT).unwrap(), Guest::Postgres.service());
    let start = || SqlLedger::start(Some(&netns), server, &LedgerOptions::default()).unwrap();

    let ledger = start();
    assert!(ledger.pulse().wait_acks(50, deadline()));
    let report = ledger.finish().unwrap();
    assert!(report.acked >= 50);
    assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 0), "{report:?}");

    // An acknowledged transaction's row: then it is lost, and two accounts are wrong.
    let ledger = start();
    assert!(ledger.pulse().wait_acks(50, deadline()));
    let steal = "DELETE FROM ledger_journal WHERE id = (SELECT min(id) FROM ledger_journal)";
    sql::execute(Some(&netns), server, steal).unwrap();
    let report = ledger.finish().unwrap();
    assert_eq!((report.lost, report.repeated, report.resets), (3, 0, 0), "{report:?}");

    // The server ends all connections: each counts, and nothing is lost.
    let ledger = start();
    assert!(ledger.pulse().wait_acks(50, deadline()));
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
    sql::execute(Some(&netns), server, end).unwrap();
    assert!(!ledger.pulse().wait_acks(u64::MAX, deadline()), "it ends with its connections");
    let connections = LedgerOptions::default().in_flight as u64;
    let report = ledger.finish().unwrap();
    assert_eq!((report.lost, report.repeated, report.resets), (0, 0, connections), "{report:?}");

    // A ledger that was cut goes on with its book.
    let ledger = start();
    assert!(ledger.pulse().wait_acks(50, deadline()));
    let book = ledger.cut();
    let before = book.acked();
    let ledger = SqlLedger::resume(book, Some(&netns), server, &LedgerOptions::default()).unwrap();
    assert!(ledger.pulse().wait_acks(10, deadline()));
    let report = ledger.finish().unwrap();
    assert!(report.acked >= before + 10);
    assert_eq!((report.lost, report.repeated, report.resets), (0, 0, 0), "{report:?}");
    lab.down().unwrap();
}

/// Plays the demo's second act and tells how it goes.
fn play(vm: &VmOptions, failovers: u32, power_loss: bool) -> DatabaseReport {
    programs::build(programs::OF_A_LAB);
    let mut lab = LabConfig::new(&lab_name()).unwrap();
    lab.disks = disks::supported();
    let begin = Instant::now();
    let mut tell = |step: Step| {
        if !matches!(step, Step::Booting(_) | Step::Writing { .. }) {
            eprintln!("{:7.2} {step:?}", begin.elapsed().as_secs_f64());
        }
    };
    let report = database::play(&lab, vm, failovers, power_loss, &mut tell).unwrap();
    eprintln!("{report:#?}");
    assert_eq!(report.failures(), Vec::<String>::new(), "{report:#?}");
    assert_eq!(report.act.complaints, Vec::<String>::new());
    assert_eq!(report.act.failovers, failovers);
    assert_eq!(report.resyncs_bytes.len(), failovers as usize);
    // What differs, not the volume.
    assert!(report.resyncs_bytes.iter().all(|sent| *sent < report.volume_bytes / 10), "{report:#?}");
    report
}

#[test]
fn a_database_survives_its_hosts() {
    play(&vm(Acknowledge::Memory), 6, false);
}

/// Its volume is on disk as of every acknowledgement: a person starts the VM where its backup was.
#[test]
fn a_database_on_a_durable_volume_survives_the_loss_of_power() {
    let report = play(&vm(Acknowledge::Disk), 1, true);
    assert!(report.power_loss_recovery_ms > 0.0 && !report.power_loss_by_itself);
    assert_eq!(report.act.path, ["a", "b", "a"]);
}

/// It goes on by itself, and so do its client's connections.
#[test]
fn a_non_volatile_database_goes_on_after_the_loss_of_power() {
    let report = play(&non_volatile(), 1, true);
    assert!(report.power_loss_recovery_ms > 0.0 && report.power_loss_by_itself);
    assert_eq!(report.act.path.len(), 3);
}

#[test]
#[ignore = "takes five minutes"]
fn a_database_survives_its_hosts_a_hundred_times() {
    play(&vm(Acknowledge::Memory), 100, false);
}

#[test]
#[ignore = "takes five minutes"]
fn a_database_survives_ten_losses_of_power() {
    for _ in 0..5 {
        play(&vm(Acknowledge::Disk), 0, true);
        play(&non_volatile(), 0, true);
    }
}
