//! Disks that hang without an error, under a VM that writes to them: a slow disk is not a dead machine, and costs no VM its life.

mod support;

use std::os::unix::net::UnixStream;
use std::time::Duration;

use ninefold_control::Request;
use ninefold_model::event::EventKind;
use ninefold_model::spec::{Acknowledge, Protection, VolumeSpec};
use support::disks::name;
use support::{Beginning, Scenario, wait_until};

/// A VM whose QEMU did not answer for so long was given up once.
const LONG_S: u64 = 12;

fn begin(protection: Protection) -> Beginning {
    let mut begin = Beginning { disks: true, ..Beginning::default() };
    begin.vm.volumes = vec![VolumeSpec::new(name("data"), 192 << 20)];
    begin.vm.protection = protection;
    begin
}

/// Has the guest write to its volume again and again, and flush that.
#[must_use]
fn keep_writing(s: &Scenario) -> UnixStream {
    let line = "x=$(yes 0123456789abcdef | head -c 60000)";
    let write = r#"yes "$x" | dd of=/data/bulk bs=1M count=24 iflag=fullblock conv=fsync,notrunc"#;
    s.type_line(&format!("{line}; while :; do {write}; done"))
}

fn is_slow(kind: &EventKind) -> bool {
    matches!(kind, EventKind::VolumeSlow { .. })
}

fn protected(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Protected { .. })
}

/// For how long the disk of a host has not answered, as its status says.
fn stalled_s(s: &Scenario, host: &str) -> Option<u64> {
    let failure = s.lab.keeper(host).ok()?.status().ok()?.volumes.first()?.failure.clone()?;
    failure.strip_prefix("its disk has not answered for ")?.strip_suffix(" s")?.parse().ok()
}

fn nothing_is_lost(s: &Scenario) {
    let lost = s.events.all().into_iter().find(|e| matches!(e.kind, EventKind::Lost { .. }));
    assert!(lost.is_none(), "{lost:?}");
}

/// The disk of a VM that is alone hangs while it is to be protected. There is no pause until it is short; nobody gives up the only
/// QEMU that has the VM.
#[test]
fn a_vm_that_is_alone_outlives_a_disk_that_hangs() {
    let s = Scenario::with("slowalone", begin(Protection::None));
    let _console = keep_writing(&s);
    s.expect_writes(100);
    let mark = s.events.mark();
    s.lab.freeze_disk("a").unwrap();
    s.lab.ask("a", &Request::Protect).unwrap();
    s.expect(mark, "a", "slow disk", is_slow);
    wait_until("a disk that hangs for long", || stalled_s(&s, "a").is_some_and(|time| time >= LONG_S));
    nothing_is_lost(&s);
    s.lab.thaw_disk("a").unwrap();
    s.expect(mark, "a", "protection", protected);
    // Its database is on the disk that hung: its clients have been kept waiting, and perhaps given up.
    s.expect_writes(100);
    nothing_is_lost(&s);
}

/// An acknowledgement means the disk, and the backup is lost while the primary's disk hangs: what no living disk has is told to
/// nobody.
#[test]
fn what_no_living_disk_has_is_not_told() {
    let mut begin = begin(Protection::FaultTolerant);
    begin.vm.acknowledge = [(name("data"), Acknowledge::Disk)].into();
    let s = Scenario::with("slowtold", begin);
    s.expect(0, "a", "protection", protected);
    let _console = keep_writing(&s);
    s.expect_writes(100);
    let mark = s.events.mark();
    s.lab.freeze_disk("a").unwrap();
    s.lab.kill_host("b").unwrap();
    s.expect(mark, "a", "loss of the backup", |e| matches!(e, EventKind::Unprotected { .. }));
    let sent = || s.lab.keeper("a").unwrap().status().unwrap().counters.frames_out;
    let before = sent();
    wait_until("a disk that hangs", || stalled_s(&s, "a").is_some_and(|time| time >= 3));
    assert_eq!(sent(), before, "output has left that no disk knows of");
    s.lab.thaw_disk("a").unwrap();
    s.expect_writes(100);
    nothing_is_lost(&s);
    s.lab.restart_host("b").unwrap();
    s.expect(mark, "a", "protection", protected);
    s.finish();
}

/// Much waits for a primary's disk that hangs, and the backup is lost and comes back: the VM is protected again, from memory, and
/// leaves the disk.
#[test]
fn a_backlog_on_a_disk_that_hangs_is_no_reason_to_lose_the_vm() {
    let s = Scenario::with("backlog", begin(Protection::FaultTolerant));
    s.expect(0, "a", "protection", protected);
    let _console = keep_writing(&s);
    s.expect_writes(100);
    let mark = s.events.mark();
    s.lab.freeze_disk("a").unwrap();
    s.lab.kill_host("b").unwrap();
    s.expect(mark, "a", "loss of the backup", |e| matches!(e, EventKind::Unprotected { .. }));
    s.lab.restart_host("b").unwrap();
    s.expect(mark, "a", "protection", protected);
    // It is said when it has hung for two seconds: protection may be there sooner.
    wait_until("a disk that hangs", || stalled_s(&s, "a").is_some());
    s.expect(mark, "b", "take-over", |e| matches!(e, EventKind::TookOver { .. }));
    s.expect_writes(100);
    nothing_is_lost(&s);
    s.lab.thaw_disk("a").unwrap();
    s.expect(mark, "b", "protection", protected);
    s.expect_writes(100);
    nothing_is_lost(&s);
    s.finish();
}

/// An acknowledgement means the disk, and the backup's disk hangs: output waits for some seconds, then the VM goes on alone, and is
/// protected again when that disk answers.
#[test]
fn a_backup_whose_disk_hangs_is_left_until_it_answers() {
    let mut begin = begin(Protection::FaultTolerant);
    begin.vm.acknowledge = [(name("data"), Acknowledge::Disk)].into();
    let s = Scenario::with("slowbackup", begin);
    s.expect(0, "a", "protection", protected);
    let _console = keep_writing(&s);
    s.expect_writes(100);
    let mark = s.events.mark();
    s.lab.freeze_disk("b").unwrap();
    s.expect(mark, "a", "loss of the backup", |e| matches!(e, EventKind::Unprotected { .. }));
    s.expect_writes(100);
    s.lab.thaw_disk("b").unwrap();
    s.expect(mark, "a", "protection", protected);
    s.expect_writes(100);
    nothing_is_lost(&s);
    s.finish();
}

/// An acknowledgement means the disk, the backup's disk hangs, and the primary's host is lost while whole checkpoints wait for that: nobody is left
/// to hear an acknowledgement, and the VM goes on from memory.
#[test]
fn a_backup_whose_disk_hangs_takes_over() {
    let mut begin = begin(Protection::FaultTolerant);
    begin.vm.acknowledge = [(name("data"), Acknowledge::Disk)].into();
    let s = Scenario::with("slowheir", begin);
    s.expect(0, "a", "protection", protected);
    let _console = keep_writing(&s);
    s.expect_writes(100);
    let mark = s.events.mark();
    s.lab.freeze_disk("b").unwrap();
    let sent = || s.lab.keeper("a").unwrap().status().unwrap().counters.frames_out;
    let mut before = sent();
    wait_until("a checkpoint that waits for the disk", || {
        std::thread::sleep(Duration::from_millis(150));
        std::mem::replace(&mut before, sent()) == before
    });
    s.lab.kill_host("a").unwrap();
    s.expect(mark, "b", "take-over", |e| matches!(e, EventKind::TookOver { .. }));
    s.lab.thaw_disk("b").unwrap();
    s.expect_writes(100);
    nothing_is_lost(&s);
    s.lab.restart_host("a").unwrap();
    s.expect(mark, "b", "protection", protected);
    s.finish();
}
