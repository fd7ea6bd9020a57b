//! Who may have the VM: nobody claims it who will not go on with it, and no answer of the witness ends it that proves nothing.

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ninefold_keeper::config::KeeperConfig;
use ninefold_lab::topology::WITNESS;
use ninefold_lab::{Cut, Network};
use ninefold_model::event::EventKind;
use ninefold_model::spec::{NonVolatile, Protection};
use ninefold_model::status::Role;
use rustix::process::{Pid, Signal, kill_process};
use support::{Beginning, Scenario, wait_until};

const WRITES: u64 = 50;
/// That something does not happen can only be shown by giving it time. A backup that has lost its primary asks the witness at
/// once; a primary whose session was refused looks for another backup after 0.25 s, and asks the witness then.
const PATIENCE: Duration = Duration::from_secs(2);

fn protected(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Protected { .. })
}

/// A backup of a non-volatile VM whose disk hangs: its claim waits for the log to note it. Told to end then, it claims nothing,
/// and the primary, which was only cut off, goes on.
#[test]
fn a_backup_that_is_told_to_end_claims_nothing() {
    let mut begin = Beginning { disks: true, ..Beginning::default() };
    begin.vm.protection = Protection::FaultTolerant;
    begin.vm.non_volatile = Some(NonVolatile::default());
    let s = Scenario::with("toldend", begin);
    s.expect(0, "a", "protected", protected);
    s.expect_writes(WRITES);
    let pid = s.lab.keeper("b").unwrap().status().unwrap().pid;
    let mark = s.events.mark();
    s.lab.freeze_disk("b").unwrap();
    s.lab.cut("a", Network::Replication, Cut::Blackhole).unwrap();
    s.expect(mark, "b", "primary lost", |k| matches!(k, EventKind::PrimaryLost { .. }));
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::TERM).unwrap();
    // Its last word: the process itself ends when its disk lets it.
    let socket = KeeperConfig::control_socket(&s.lab.vm_dir("b").unwrap());
    wait_until("end of the keeper", || !socket.exists());
    s.lab.thaw_disk("b").unwrap();
    s.lab.heal("a", Network::Replication).unwrap();
    s.expect(mark, "a", "unprotected", |k| matches!(k, EventKind::Unprotected { .. }));
    s.expect_writes(WRITES);
    let mark = s.events.mark();
    s.lab.stop_keeper("b").unwrap();
    s.lab.start_keeper("b").unwrap();
    s.expect(mark, "a", "protected", protected);
    s.finish();
}

/// The same, and the primary is dead: nobody else could go on. The claim waits for the log's disk, and the log is the safest place:
/// the next keeper goes on from it.
#[test]
fn the_log_of_a_backup_that_is_told_to_end_goes_on_for_a_primary_that_is_dead() {
    let mut begin = Beginning { disks: true, ..Beginning::default() };
    begin.vm.protection = Protection::FaultTolerant;
    begin.vm.non_volatile = Some(NonVolatile::default());
    let s = Scenario::with("lastone", begin);
    s.expect(0, "a", "protected", protected);
    s.expect_writes(WRITES);
    let pid = s.lab.keeper("b").unwrap().status().unwrap().pid;
    let mark = s.events.mark();
    s.lab.freeze_disk("b").unwrap();
    s.lab.kill_host("a").unwrap();
    s.expect(mark, "b", "primary lost", |k| matches!(k, EventKind::PrimaryLost { .. }));
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::TERM).unwrap();
    s.lab.thaw_disk("b").unwrap();
    let socket = KeeperConfig::control_socket(&s.lab.vm_dir("b").unwrap());
    wait_until("end of the keeper", || !socket.exists());
    // Its interfaces are there until the process has ended.
    wait_until("a keeper", || s.lab.start_keeper("b").is_ok());
    s.expect(mark, "b", "recovered", |k| matches!(k, EventKind::Recovered { .. }));
    s.expect_writes(WRITES);
    s.finish();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The witness's register is lost, comes back, is set back to what it was long ago, and comes back again. Whatever it answers
/// meanwhile: a protected VM goes on; a backup whose primary dies waits with what it holds; a VM that is alone and asks for
/// another term goes on; and each says why.
#[test]
fn an_answer_that_proves_nothing_ends_no_vm() {
    let mut s = Scenario::start("worthless");
    let register = s.lab.disk_dir(WITNESS).join("register");
    let (old, kept) = (register.with_extension("old"), register.with_extension("kept"));
    // The witness runs with this register; the one that it had is kept.
    let with = |s: &Scenario, content: Option<&Path>| {
        s.lab.stop_witness().unwrap();
        if !kept.exists() {
            fs::rename(&register, &kept).unwrap();
        } else {
            fs::remove_dir_all(&register).unwrap();
        }
        content.into_iter().for_each(|from| copy(from, &register));
        s.lab.start_witness().unwrap();
    };
    let restored = |s: &Scenario| {
        with(s, Some(&kept));
        fs::remove_dir_all(&kept).unwrap();
    };
    let doubted = |word: &'static str| move |k: &EventKind| matches!(k, EventKind::WitnessDoubted { reason } if reason.contains(word));
    let reachable = |k: &EventKind| matches!(k, EventKind::WitnessReachable);
    s.expect(0, "a", "protected", protected);
    s.lab.stop_witness().unwrap();
    copy(&register, &old);
    s.lab.start_witness().unwrap();

    // No record. Nothing happens while the hosts see each other.
    let mark = s.events.mark();
    with(&s, None);
    for host in ["a", "b"] {
        s.expect(mark, host, "doubt", doubted("no record"));
    }
    s.expect_writes(WRITES);
    assert!(!s.lab.keeper("a").unwrap().status().unwrap().witness_reachable);
    // Then the primary dies.
    s.lab.kill_host("a").unwrap();
    s.expect(mark, "b", "primary lost", |k| matches!(k, EventKind::PrimaryLost { .. }));
    let ended = |k: &EventKind| matches!(k, EventKind::StoodDown { .. } | EventKind::Lost { .. });
    let ends = |s: &Scenario, mark| {
        s.events.wait_for(mark, Instant::now() + PATIENCE, |e| e.host.as_str() == "b" && ended(&e.kind))
    };
    assert_eq!(ends(&s, mark), None);
    assert_eq!(s.lab.keeper("b").unwrap().status().unwrap().role, Role::Backup);
    restored(&s);
    s.expect(mark, "b", "took over", |k| matches!(k, EventKind::TookOver { .. }));
    s.swap_roles();
    s.expect_writes(WRITES);

    // An older term, which names the host that is dead; and the VM is alone. It asks for a term when that host is back.
    let mark = s.events.mark();
    with(&s, Some(&old));
    s.expect(mark, "b", "doubt", doubted("in term"));
    s.lab.restart_host("a").unwrap();
    s.expect(mark, "a", "refusal", |k| matches!(k, EventKind::Refused { .. }));
    assert_eq!(ends(&s, mark), None);
    s.expect_writes(WRITES);
    let mark = s.events.mark();
    restored(&s);
    s.expect(mark, "b", "belief", reachable);
    s.expect(mark, "b", "protected", protected);
    s.expect_writes(WRITES);
    s.finish();
}
