//! Disks that fail under a protected VM, for real: file systems without room, devices that give I/O errors. Nothing that was
//! acknowledged is lost, it is said, and the VM is protected again by itself when the disk works.

mod support;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use ninefold_lab::Lab;
use ninefold_lab::ledger::resp::Reply;
use ninefold_model::event::EventKind;
use ninefold_model::spec::{Acknowledge, VolumeSpec};
use support::disks::{Lun, name, pool};
use support::{Action, Beginning, Scenario, wait_until};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 192 * MIB;

/// A file system in memory that is soon full. Drop it after whatever uses it.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, mib: u64) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "none"]).arg(&at).status();
        assert!(done.unwrap().success(), "a tmpfs cannot be mounted");
        Self(at)
    }

    fn enlarge(&self, mib: u64) {
        let options = format!("remount,size={mib}m");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn begin(acknowledge: Acknowledge, prepare: impl FnOnce(&Lab) + 'static) -> Beginning {
    let mut begin = Beginning { prepare: Some(Box::new(prepare)), ..Beginning::default() };
    begin.vm.volumes = vec![VolumeSpec::new(name("data"), SIZE)];
    begin.vm.acknowledge = [(name("data"), acknowledge)].into();
    begin
}

/// The pool of a host is a link to a directory elsewhere.
fn pool_at(lab: &Lab, host: &str, directory: &Path) {
    std::os::unix::fs::symlink(directory, lab.pool_dir(host)).unwrap();
}

fn failed(kind: &EventKind) -> bool {
    matches!(kind, EventKind::VolumeFailed { .. })
}

fn recovered(kind: &EventKind) -> bool {
    matches!(kind, EventKind::VolumeRecovered { .. })
}

fn took_over(kind: &EventKind) -> bool {
    matches!(kind, EventKind::TookOver { .. })
}

fn unprotected(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Unprotected { .. })
}

/// Has the guest write so much, and nothing that is zero. It says in its redis when it has.
#[must_use]
fn bulk(s: &Scenario, mib: u64) -> UnixStream {
    // A long line: under emulation a short one takes a minute.
    let line = "x=$(yes 0123456789abcdef | head -c 60000)";
    let write = format!("{line}; yes \"$x\" | dd of=/data/bulk bs=1M count={mib} iflag=fullblock conv=fsync");
    s.type_line(&format!(r"{write} && printf 'SET bulk done\r\nQUIT\r\n' | nc -w 5 127.0.0.1 6379"))
}

/// What is said about the volume on a host now.
fn failure(s: &Scenario, host: &str) -> Option<String> {
    s.lab.keeper(host).unwrap().status().unwrap().volumes[0].failure.clone()
}

/// The file of `mib` MiB is in the image: by its letters, which next to nothing else there has.
fn has_bulk(image: &[u8], mib: u64) -> bool {
    let letters = image.iter().filter(|b| matches!(b, b'a'..=b'f')).count() as u64;
    // 60,000 bytes of lines of 17 bytes with 6 letters each, and a line end; the last are cut.
    letters >= mib * MIB / 60_001 * (60_000 / 17 * 6)
}

/// The end of each of these: no client was told what is not there, both hosts have the same, and either can have the VM.
fn ends_well(mut s: Scenario, mib: u64) {
    wait_until(
        "end of the guest's writing",
        || matches!(s.ask_redis(&["GET", "bulk"]), Ok(Reply::Bulk(Some(word))) if word == b"done"),
    );
    s.expect_writes(100);
    s.images_become_equal_under_load("data", "the file", |image| has_bulk(image, mib));
    s.run(&[Action::KillHost, Action::KillQemu], 1);
    s.finish_with(|s| {
        s.lab.ask(&s.primary, &ninefold_control::Request::Stop).unwrap();
        s.images_become_equal_with("data", "the file", |image| has_bulk(image, mib));
    });
}

/// The backup's disk is full: it is no backup then. The primary goes on, says so, and is protected again when there is
/// room.
#[test]
fn a_backup_without_room() {
    for acknowledge in [Acknowledge::Memory, Acknowledge::Disk] {
        let directory = tempfile::tempdir().unwrap();
        let small = Small::mount(directory.path().join("b"), 40);
        let pool = small.0.clone();
        let s = Scenario::with("fullback", begin(acknowledge, move |lab| pool_at(lab, "b", &pool)));
        let mark = s.events.mark();
        let _console = bulk(&s, 80);
        s.expect(mark, "b", "volume failed", failed);
        s.expect(mark, "a", "unprotected", unprotected);
        s.expect_writes(100);
        let reason = failure(&s, "b").unwrap();
        assert!(reason.contains("No space left on device"), "{reason}");
        let why = s.events.all().into_iter().rev().find_map(|e| match e.kind {
            EventKind::Unprotected { reason, .. } => Some(reason),
            _ => None,
        });
        assert!(why.as_ref().is_some_and(|why| why.contains("No space left on device")), "{why:?}");
        assert_eq!(failure(&s, "a"), None);
        let mark = s.events.mark();
        small.enlarge(600);
        s.expect(mark, "b", "volume recovered", recovered);
        s.expect(mark, "a", "protected", |k| matches!(k, EventKind::Protected { .. }));
        assert_eq!(failure(&s, "b"), None);
        ends_well(s, 80);
    }
}

/// The primary's disk is full: the VM goes on, protected, and its disk catches up when there is room.
#[test]
fn a_primary_without_room() {
    let directory = tempfile::tempdir().unwrap();
    let small = Small::mount(directory.path().join("a"), 40);
    let pool = small.0.clone();
    let s = Scenario::with("fullprim", begin(Acknowledge::Memory, move |lab| pool_at(lab, "a", &pool)));
    let mark = s.events.mark();
    let _console = bulk(&s, 40);
    s.expect(mark, "a", "volume failed", failed);
    s.expect_writes(200);
    assert!(failure(&s, "a").unwrap().contains("No space left on device"));
    s.check_roles();
    small.enlarge(600);
    s.expect(mark, "a", "volume recovered", recovered);
    s.expect_writes(100);
    let since = &s.events.all()[mark..];
    let calm = |k: &EventKind| failed(k) || recovered(k);
    assert!(since.iter().all(|e| calm(&e.kind)), "the VM was protected all the time: {since:?}");
    ends_well(s, 40);
}

/// The same, and it goes on for so long that the primary holds more in memory than it should: the backup, which has room,
/// gets the VM.
#[test]
fn a_primary_without_room_for_long() {
    let directory = tempfile::tempdir().unwrap();
    let small = Small::mount(directory.path().join("a"), 40);
    let pool = small.0.clone();
    let mut s = Scenario::with("fulllong", begin(Acknowledge::Memory, move |lab| pool_at(lab, "a", &pool)));
    let mark = s.events.mark();
    let _console = bulk(&s, 140);
    s.expect(mark, "a", "volume failed", failed);
    s.expect(
        mark,
        "a",
        "switchover",
        |k| matches!(k, EventKind::SwitchoverStarted { reason, .. } if reason.contains("a volume fails here")),
    );
    s.expect(mark, "b", "took over", took_over);
    s.swap_roles();
    s.expect_writes(100);
    let mark = s.events.mark();
    small.enlarge(600);
    s.expect(mark, "b", "protected", |k| matches!(k, EventKind::Protected { .. }));
    ends_well(s, 140);
}

/// A LUN on a file system without room gives I/O errors, and only when it is flushed: the kernel takes the write, fails
/// to bring it to the device, says so once and forgets it.
struct BadLun {
    lun: Lun,
    small: Small,
}

impl BadLun {
    fn new(directory: &Path, mib: u64) -> Self {
        let small = Small::mount(directory.join("bad"), mib);
        Self { lun: Lun::new(&small.0, "lun", SIZE), small }
    }

    fn scenario(&self, name_of_it: &'static str, host: &'static str) -> Scenario {
        let device = self.lun.device.clone();
        Scenario::with(
            name_of_it,
            begin(Acknowledge::Memory, move |lab| pool(lab, host).adopt(&name("data"), &device).unwrap()),
        )
    }
}

#[test]
fn a_backup_with_io_errors() {
    let directory = tempfile::tempdir().unwrap();
    let bad = BadLun::new(directory.path(), 24);
    let s = bad.scenario("badback", "b");
    let mark = s.events.mark();
    let _console = bulk(&s, 60);
    s.expect(mark, "b", "volume failed", failed);
    s.expect(mark, "a", "unprotected", unprotected);
    assert!(failure(&s, "b").unwrap().contains("Input/output error"));
    s.expect_writes(100);
    let mark = s.events.mark();
    bad.small.enlarge(600);
    s.expect(mark, "b", "volume recovered", recovered);
    s.expect(mark, "a", "protected", |k| matches!(k, EventKind::Protected { .. }));
    ends_well(s, 60);
}

/// A primary whose disk gives errors hands the VM over before its guest reads what is not there.
#[test]
fn a_primary_with_io_errors() {
    let directory = tempfile::tempdir().unwrap();
    let bad = BadLun::new(directory.path(), 24);
    let mut s = bad.scenario("badprim", "a");
    let mark = s.events.mark();
    let _console = bulk(&s, 60);
    s.expect(mark, "a", "volume failed", failed);
    s.expect(mark, "b", "took over", took_over);
    s.swap_roles();
    s.expect_writes(100);
    let mark = s.events.mark();
    bad.small.enlarge(600);
    s.expect(mark, "a", "volume recovered", recovered);
    s.expect(mark, "b", "protected", |k| matches!(k, EventKind::Protected { .. }));
    ends_well(s, 60);
}
