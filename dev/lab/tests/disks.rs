//! What a VM's disk may be on each of its hosts: the boot disk, a qcow2 file, a thin clone, a LUN, or something else on
//! either side. Whatever it is, the VM survives its host with it, and both hosts have the same bytes.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use ninefold_control::Request;
use ninefold_lab::Lab;
use ninefold_lab::ledger::resp::Reply;
use ninefold_model::event::EventKind;
use ninefold_model::spec::{Boot, VolumeSpec};
use ninefold_volume::Format;
use ninefold_volume::pool::{FileFormat, Import, Kind};
use support::disks::{Lun, name, pool};
use support::{Action, Beginning, Scenario, rounds, wait_until};

/// Bytes of a block of the small file systems here.
const BLOCK: usize = 1024;

/// A disk with a boot loader, built of Debian's packages.
fn bootable() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest/bootable");
    let built = Command::new(script).output().unwrap();
    assert!(built.status.success(), "guest/bootable: {}", String::from_utf8_lossy(&built.stderr));
    String::from_utf8(built.stdout).unwrap().trim().into()
}

fn golden(lab: &Lab, host: &str, image: &str, file: &Path) {
    let what = Import { source: file, file_format: FileFormat::Raw, format: Format::Raw, size: None };
    pool(lab, host).import(Kind::Golden, &name(image), &what, &mut |_| ControlFlow::Continue(())).unwrap();
}

fn clone(lab: &Lab, host: &str, image: &str, volume: &str) {
    let pool = pool(lab, host);
    pool.create_from(&name(volume), &name(image), None, Format::Qcow2, &mut |_| ControlFlow::Continue(())).unwrap();
}

/// The lines of the file in which the guest notes each of its boots, as far as they are in the image.
fn boots(image: &[u8]) -> usize {
    image.chunks(BLOCK).map(lines).max().unwrap_or(0)
}

fn lines(block: &[u8]) -> usize {
    block.split(|&b| b == b'\n').take_while(|line| *line == b"booted").count()
}

/// The whole life of an ordinary server: its disk is a thin clone of a golden image on each host, the firmware finds the
/// boot loader there, and it boots again from what it has written, wherever it is by then.
#[test]
fn a_vm_boots_from_its_disk_and_survives_its_host() {
    let disk = bootable();
    let size = fs::metadata(&disk).unwrap().len();
    let mut begin = Beginning::default();
    begin.vm.boot = Some(Boot::Volume);
    begin.vm.volumes = vec![VolumeSpec::new(name("root"), size)];
    begin.prepare = Some(Box::new(move |lab| {
        for host in ["a", "b"] {
            golden(lab, host, "debian", &disk);
            clone(lab, host, "debian", "root");
        }
    }));
    let mut s = Scenario::with("bootdisk", begin);
    let first = s.resyncs()[0];
    assert!(first < size / 16, "both begin with the same image: {first} bytes of {size} were sent");
    s.run(&[Action::KillHost, Action::KillQemu, Action::KillHost], rounds(1));

    // Reset: it has to come up from the disk of the host where it is now, with all that it was told.
    assert!(matches!(s.ask_redis(&["SET", "proof", "kept"]), Ok(Reply::Simple(_))));
    let report = s.ledger.take().unwrap().finish().unwrap();
    assert_eq!((report.lost, report.resets), (0, 0), "{report:?}");
    s.images_become_equal_with("root", "one boot", |image| boots(image) == 1);
    let mark = s.events.mark();
    s.lab.ask(&s.primary, &Request::Reset).unwrap();
    wait_until("second boot", || boots(&s.image(&s.primary, "root")) == 2);
    s.await_guest();
    wait_until(
        "what it was told before",
        || matches!(s.ask_redis(&["GET", "proof"]), Ok(Reply::Bulk(Some(v))) if v == b"kept"),
    );
    s.open_ledger();
    s.expect_writes(100);
    let since = &s.events.all()[mark..];
    assert!(
        !since.iter().any(|e| matches!(e.kind, EventKind::TookOver { .. } | EventKind::Unprotected { .. })),
        "{since:?}"
    );
    s.run(&[Action::KillQemu], 1);
    s.finish_with(|s| {
        s.lab.ask(&s.primary, &Request::Stop).unwrap();
        s.images_become_equal_with("root", "two boots", |image| boots(image) == 2);
    });
}

const SIZE: u64 = 96 << 20;

/// Runs a VM whose volume `data` was made by `prepare`; at the end the images are equal and `check` looks at them.
fn survives(
    name: &'static str,
    actions: &[Action],
    prepare: impl FnOnce(&Lab) + 'static,
    check: impl FnOnce(&Scenario, &[u8]),
) {
    let mut begin = Beginning { prepare: Some(Box::new(prepare)), ..Beginning::default() };
    begin.vm.volumes = vec![VolumeSpec::new(support::disks::name("data"), SIZE)];
    let mut s = Scenario::with(name, begin);
    s.run(actions, rounds(1));
    eprintln!("{name}: bytes of the volume sent by each resync: {:?}", s.resyncs());
    s.finish_with(|s| {
        s.lab.ask(&s.primary, &Request::Stop).unwrap();
        let image = s.images_become_equal("data");
        assert_eq!(image.len() as u64, SIZE);
        assert_eq!(image[1080..1082], [0x53, 0xef], "an ext4 file system");
        check(s, &image);
    });
}

/// A keeper that is killed takes its storage daemon with it, and the next one opens the image again.
#[test]
fn qcow2_on_both_hosts() {
    let made = |lab: &Lab| {
        for host in ["a", "b"] {
            pool(lab, host).create(&name("data"), SIZE, Format::Qcow2).unwrap();
        }
    };
    let actions = [Action::KillKeeper, Action::KillHost, Action::FreezePrimary, Action::KillBackupKeeper];
    survives("qcow2", &actions, made, |s, _| {
        // Sound by QEMU's own word, once nobody has them open.
        for host in ["a", "b"] {
            s.lab.stop_keeper(host).unwrap();
            let image = s.lab.pool_dir(host).join("volumes/data/image.qcow2");
            let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(image).output().unwrap();
            assert!(check.status.success(), "{check:?}");
        }
    });
}

#[test]
fn a_lun_on_both_hosts() {
    let directory = tempfile::tempdir().unwrap();
    let luns = ["a", "b"].map(|host| Lun::new(directory.path(), host, SIZE));
    let devices = [("a", luns[0].device.clone()), ("b", luns[1].device.clone())];
    let made = move |lab: &Lab| {
        for (host, device) in &devices {
            pool(lab, host).adopt(&name("data"), device).unwrap();
        }
    };
    survives("lun", &[Action::KillQemu, Action::KillHost], made, |s, image| {
        // On the LUN itself, and the device is let go of when its keeper ends.
        for (host, lun) in ["a", "b"].iter().zip(&luns) {
            s.lab.stop_keeper(host).unwrap();
            assert!(fs::read(&lun.file).unwrap() == image);
            pool(&s.lab, host).remove(Kind::Volume, &name("data")).unwrap();
        }
    });
}

/// A file of noise in a file system, as an image that somebody prepared.
fn prepared(directory: &Path) -> (PathBuf, Vec<u8>) {
    let noise: Vec<u8> = (0..6u64 << 20).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let (root, image) = (directory.join("root"), directory.join("data.raw"));
    fs::create_dir(&root).unwrap();
    fs::write(root.join("noise"), &noise).unwrap();
    fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let args = ["-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-O", "^metadata_csum", "-d"];
    let made = Command::new("mke2fs").args(args).arg(&root).arg(&image).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    (image, noise)
}

/// A thin clone of the same golden image on each host: what is in the golden image is not sent, and the two are equal.
#[test]
fn thin_clones_of_the_same_image() {
    let directory = tempfile::tempdir().unwrap();
    let (file, noise) = prepared(directory.path());
    let made = move |lab: &Lab| {
        for host in ["a", "b"] {
            golden(lab, host, "prepared", &file);
            clone(lab, host, "prepared", "data");
        }
    };
    survives("clones", &[Action::KillQemu, Action::KillHost], made, |s, image| {
        assert!(s.resyncs()[0] < 4 << 20, "{:?}", s.resyncs());
        assert!(holds(image, &noise), "what was in the golden image is in the volume");
        for host in ["a", "b"] {
            let info = pool(&s.lab, host).info(Kind::Volume, &name("data")).unwrap();
            assert!(info.allocated < 24 << 20, "it is thin still: {info:?}");
        }
    });
}

/// The hosts need not keep it alike: a thin clone here, a LUN with something else on it there. A resync makes it equal.
#[test]
fn a_thin_clone_here_and_a_lun_there() {
    let directory = tempfile::tempdir().unwrap();
    let (file, noise) = prepared(directory.path());
    let lun = Lun::new(directory.path(), "lun", SIZE);
    fs::write(&lun.device, vec![0xa5; SIZE as usize]).unwrap();
    let device = lun.device.clone();
    let made = move |lab: &Lab| {
        golden(lab, "a", "prepared", &file);
        clone(lab, "a", "prepared", "data");
        pool(lab, "b").adopt(&name("data"), &device).unwrap();
    };
    survives("mixed", &[Action::KillHost, Action::KillQemu], made, |_, image| {
        // Nothing of it was on the LUN.
        assert!(holds(image, &noise), "what was in the golden image is in the volume");
    });
}

/// Whether `noise` is in the image, block by block: a file system may put it in pieces.
fn holds(image: &[u8], noise: &[u8]) -> bool {
    let blocks: std::collections::HashSet<&[u8]> = image.chunks(BLOCK).collect();
    noise.chunks(BLOCK).all(|block| blocks.contains(block))
}
