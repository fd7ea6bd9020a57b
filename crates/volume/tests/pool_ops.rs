//! A pool in a directory: what it makes, what it refuses, what a crash leaves.

mod rig;

use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use ninefold_volume::pool::{CutOff, FileFormat, Import, Kind};
use ninefold_volume::{Batch, Format, Op, Pool, Refusal, Tools, VolumeError, VolumeName, WriteLog};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const BOTH: [Format; 2] = [Format::Raw, Format::Qcow2];

fn pool(dir: &Path) -> Pool {
    Pool::open(&dir.join("pool"), Tools::default()).unwrap()
}

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn write(pool: &Pool, volume: &str, at: u64, bytes: &[u8]) {
    let image = pool.open_volume(&name(volume)).unwrap();
    image.write(at, bytes).unwrap();
    image.flush().unwrap();
}

fn read(pool: &Pool, volume: &str, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    pool.open_volume(&name(volume)).unwrap().read(at, &mut bytes).unwrap();
    bytes
}

fn go_on(_: f64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn from(source: &Path, file_format: FileFormat, format: Format) -> Import<'_> {
    Import { source, file_format, format, size: None }
}

fn golden(pool: &Pool, dir: &Path, text: &str, format: Format) {
    let source = dir.join(format!("{text}.source"));
    let mut bytes = vec![0; 4 * MIB as usize];
    bytes[..6].copy_from_slice(b"golden");
    bytes[3 * MIB as usize..][..4].copy_from_slice(b"tail");
    std::fs::write(&source, bytes).unwrap();
    pool.import(Kind::Golden, &name(text), &from(&source, FileFormat::Raw, format), &mut go_on).unwrap();
}

#[test]
fn volumes_are_made_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    for format in BOTH {
        let volume = name(&format!("disk-{format}"));
        pool.create(&volume, 64 * MIB, format).unwrap();
        let info = pool.info(Kind::Volume, &volume).unwrap();
        assert_eq!((info.record.size, info.record.format), (64 * MIB, format));
        assert_eq!((info.record.id.len(), &info.holder), (32, &None));
        assert!(info.allocated < MIB);
        assert!(matches!(pool.create(&volume, MIB, format), Err(VolumeError::Exists { .. })));
    }
    let again = Pool::open(pool.root(), Tools::default()).unwrap();
    let names: Vec<String> = again.list(Kind::Volume).unwrap().iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, ["disk-qcow2", "disk-raw"]);
    for format in BOTH {
        let volume = name(&format!("disk-{format}"));
        let open = again.open_volume(&volume).unwrap();
        assert!(pool.info(Kind::Volume, &volume).unwrap().holder.is_some());
        assert!(matches!(again.remove(Kind::Volume, &volume), Err(VolumeError::Busy { .. })));
        assert!(matches!(again.grow(&volume, 128 * MIB), Err(VolumeError::Busy { .. })));
        drop(open);
        again.remove(Kind::Volume, &volume).unwrap();
        assert!(matches!(again.remove(Kind::Volume, &volume), Err(VolumeError::NotFound { .. })));
    }
    assert_eq!(std::fs::read_dir(pool.root().join("volumes")).unwrap().count(), 0);
}

#[test]
fn sizes_that_no_disk_has_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    for size in [0, 1, 513, u64::MAX, (64 << 40) + 512] {
        assert!(matches!(pool.create(&name("a"), size, Format::Raw), Err(VolumeError::Size { .. })), "{size}");
    }
    assert!(pool.list(Kind::Volume).unwrap().is_empty());
}

#[test]
fn clones_begin_as_their_golden_image_and_go_their_own_way() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    for from in BOTH {
        let image = format!("os-{from}");
        golden(&pool, dir.path(), &image, from);
        for to in BOTH {
            let (a, b) = (format!("a-{from}-{to}"), format!("b-{from}-{to}"));
            pool.create_from(&name(&a), &name(&image), None, to, &mut go_on).unwrap();
            pool.create_from(&name(&b), &name(&image), Some(8 * MIB), to, &mut go_on).unwrap();
            write(&pool, &a, 0, b"mine  ");
            assert_eq!(read(&pool, &a, 0, 6), b"mine  ");
            assert_eq!(read(&pool, &b, 0, 6), b"golden");
            assert_eq!(read(&pool, &b, 3 * MIB, 4), b"tail");
            assert_eq!(read(&pool, &b, 8 * MIB - 4, 4), [0; 4]);
            let info = pool.info(Kind::Volume, &name(&b)).unwrap();
            assert_eq!((info.record.size, &info.record.golden), (8 * MIB, &Some(name(&image))));
            assert!(info.allocated < 2 * MIB, "{info:?}");
        }
        assert!(matches!(
            pool.create_from(&name("small"), &name(&image), Some(MIB), Format::Raw, &mut go_on),
            Err(VolumeError::Refused { .. })
        ));
        let refused = pool.remove(Kind::Golden, &name(&image)).unwrap_err();
        assert!(refused.to_string().contains("is a clone"), "{refused}");
        for volume in ["a", "b"] {
            pool.remove(Kind::Volume, &name(&format!("{volume}-{from}-qcow2"))).unwrap();
        }
        pool.remove(Kind::Golden, &name(&image)).unwrap();
        assert_eq!(read(&pool, &format!("b-{from}-raw"), 0, 6), b"golden");
    }
}

#[test]
fn shrinking_is_guarded() {
    for format in BOTH {
        let dir = tempfile::tempdir().unwrap();
        let pool = pool(dir.path());
        let disk = name("disk");
        pool.create(&disk, 8 * MIB, format).unwrap();
        write(&pool, "disk", 5 * MIB + 77, b"x");
        pool.grow(&disk, 16 * MIB).unwrap();
        assert_eq!(read(&pool, "disk", 5 * MIB + 77, 1), b"x");
        let refused =
            |done: Result<(), VolumeError>| assert!(matches!(done, Err(VolumeError::Refused { .. })), "{done:?}");
        refused(pool.grow(&disk, 16 * MIB));
        refused(pool.shrink(&disk, 16 * MIB, CutOff::AllowDataLoss));
        pool.shrink(&disk, 6 * MIB, CutOff::MustBeZero).unwrap();
        let error = pool.shrink(&disk, 5 * MIB, CutOff::MustBeZero).unwrap_err();
        assert!(error.to_string().contains(&format!("byte {}", 5 * MIB + 77)), "{error}");
        assert_eq!(pool.info(Kind::Volume, &disk).unwrap().record.size, 6 * MIB);
        pool.shrink(&disk, 5 * MIB, CutOff::AllowDataLoss).unwrap();
        pool.grow(&disk, 6 * MIB).unwrap();
        assert_eq!(read(&pool, "disk", 5 * MIB + 77, 1), [0]);
    }
}

#[test]
fn every_format_goes_out_and_comes_in() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    for (format, other) in [(Format::Raw, Format::Qcow2), (Format::Qcow2, Format::Raw)] {
        let volume = format!("disk-{format}");
        pool.create(&name(&volume), 4 * MIB, format).unwrap();
        write(&pool, &volume, MIB, b"content");
        for file_format in FileFormat::ALL {
            let file = dir.path().join(format!("{format}.{file_format}"));
            let mut last = 0.0;
            let mut progress = |part| {
                last = part;
                ControlFlow::Continue(())
            };
            pool.export(Kind::Volume, &name(&volume), &file, file_format, &mut progress).unwrap();
            assert_eq!(last, 1.0);
            let again = pool.export(Kind::Volume, &name(&volume), &file, file_format, &mut go_on);
            assert!(matches!(again, Err(VolumeError::File { .. })), "{again:?}");
            let back = format!("{format}-{file_format}");
            pool.import(Kind::Volume, &name(&back), &from(&file, file_format, other), &mut go_on).unwrap();
            assert_eq!(read(&pool, &back, MIB, 7), b"content", "{back}");
            assert!(pool.info(Kind::Volume, &name(&back)).unwrap().record.size >= 4 * MIB);
        }
    }
    let left = std::fs::read_dir(dir.path()).unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok());
    assert_eq!(left.filter(|name| name.starts_with(".ninefold")).count(), 0);
}

#[test]
fn an_image_becomes_a_larger_volume_and_never_a_smaller_one() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    let source = dir.path().join("disk");
    std::fs::write(&source, vec![b'x'; 4 * MIB as usize]).unwrap();
    for format in BOTH {
        let what = |size| Import { size: Some(size), ..from(&source, FileFormat::Raw, format) };
        let volume = format!("disk-{format}");
        let small = pool.import(Kind::Volume, &name(&volume), &what(4 * MIB - 512), &mut go_on);
        assert!(matches!(small, Err(VolumeError::Refused { .. })), "{small:?}");
        pool.import(Kind::Volume, &name(&volume), &what(64 * MIB), &mut go_on).unwrap();
        let info = pool.info(Kind::Volume, &name(&volume)).unwrap();
        assert!(info.record.size == 64 * MIB && info.allocated < 8 * MIB, "{info:?}");
        assert_eq!(read(&pool, &volume, 4 * MIB - 2, 4), [b'x', b'x', 0, 0]);
    }
}

/// Whoever asked for it wants it no more, at once or in the middle: nothing of it is left, and the next try works.
#[test]
fn what_is_cancelled_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    // Data, so that there is something to do.
    let source = dir.path().join("disk");
    std::fs::write(&source, vec![b'x'; 64 * MIB as usize]).unwrap();
    let stop_at =
        |limit: f64| move |part: f64| if part >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let cancelled = |done: Result<(), VolumeError>| assert!(matches!(done, Err(VolumeError::Cancelled)), "{done:?}");
    let left = || -> Vec<_> {
        let inside = ["volumes", "images"].iter().flat_map(|d| std::fs::read_dir(pool.root().join(d)).unwrap());
        let beside = std::fs::read_dir(dir.path()).unwrap();
        inside.chain(beside).map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let disk = name("disk");
    for format in BOTH {
        let what = from(&source, FileFormat::Raw, format);
        let before = left();
        for limit in [0.0, 0.2] {
            cancelled(pool.import(Kind::Golden, &disk, &what, &mut stop_at(limit)));
            assert_eq!(left(), before);
        }
        pool.import(Kind::Golden, &disk, &what, &mut go_on).unwrap();
        let before = left();
        cancelled(pool.create_from(&disk, &disk, None, Format::Raw, &mut stop_at(0.2)));
        let target = dir.path().join("out");
        cancelled(pool.export(Kind::Golden, &disk, &target, FileFormat::Qcow2, &mut stop_at(0.2)));
        assert_eq!(left(), before);
        pool.create_from(&disk, &disk, None, Format::Raw, &mut go_on).unwrap();
        assert_eq!(read(&pool, "disk", 64 * MIB - 1, 1), b"x");
        pool.remove(Kind::Volume, &disk).unwrap();
        pool.remove(Kind::Golden, &disk).unwrap();
    }
}

#[test]
fn nothing_is_exported_into_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    pool.create(&name("disk"), MIB, Format::Raw).unwrap();
    for target in ["x.raw", "volumes/x", "volumes/disk/../y", "images/z"] {
        let target = pool.root().join(target);
        let done = pool.export(Kind::Volume, &name("disk"), &target, FileFormat::Raw, &mut go_on);
        assert!(matches!(done, Err(VolumeError::Refused { .. })), "{target:?}: {done:?}");
        assert!(!target.exists());
    }
}

#[test]
fn a_strangers_image_cannot_name_files_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    let secret = dir.path().join("secret");
    std::fs::write(&secret, vec![b's'; MIB as usize]).unwrap();
    let secret = secret.to_str().unwrap();
    let text = |file: &str| dir.path().join(file).to_str().unwrap().to_owned();
    rig::run("qemu-img", &["create", "-f", "qcow2", "-b", secret, "-F", "raw", &text("backed.qcow2")]);
    let data = format!("data_file={},data_file_raw=on", text("outside"));
    rig::run("qemu-img", &["create", "-f", "qcow2", "-o", &data, &text("data.qcow2"), "1M"]);
    rig::run("qemu-img", &["create", "-f", "vmdk", &text("base.vmdk"), "1M"]);
    rig::run(
        "qemu-img",
        &["create", "-f", "vmdk", "-b", &text("base.vmdk"), "-F", "vmdk", "-u", &text("backed.vmdk"), "1M"],
    );
    std::fs::write(
        text("flat.vmdk"),
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
         RW 2048 FLAT \"secret\" 0\n",
    )
    .unwrap();
    for (file, format) in [
        ("backed.qcow2", FileFormat::Qcow2),
        ("data.qcow2", FileFormat::Qcow2),
        ("backed.vmdk", FileFormat::Vmdk),
        ("flat.vmdk", FileFormat::Vmdk),
    ] {
        let done =
            pool.import(Kind::Volume, &name("evil"), &from(text(file).as_ref(), format, Format::Raw), &mut go_on);
        let good = matches!(done, Err(VolumeError::Refused { .. } | VolumeError::Damaged { .. }));
        assert!(good, "{file}: {done:?}");
    }
    assert!(pool.list(Kind::Volume).unwrap().is_empty());
}

#[test]
fn a_raw_disk_that_a_guest_made_look_like_qcow2_stays_raw() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    let trap = dir.path().join("trap.qcow2");
    rig::run(
        "qemu-img",
        &["create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", "-u", trap.to_str().unwrap(), "1M"],
    );
    let header = std::fs::read(&trap).unwrap();
    pool.create(&name("disk"), MIB, Format::Raw).unwrap();
    write(&pool, "disk", 0, &header[..4096]);
    let out = dir.path().join("out.raw");
    pool.export(Kind::Volume, &name("disk"), &out, FileFormat::Raw, &mut go_on).unwrap();
    let mut expected = header[..4096].to_vec();
    expected.resize(MIB as usize, 0);
    assert!(std::fs::read(out).unwrap() == expected);
}

#[test]
fn damage_is_reported_and_can_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    for (file, content) in [("volume.json", &b"{"[..]), ("image.qcow2", b"nothing")] {
        pool.create(&name("disk"), MIB, Format::Qcow2).unwrap();
        std::fs::write(pool.root().join("volumes/disk").join(file), content).unwrap();
        let error = pool.info(Kind::Volume, &name("disk")).unwrap_err();
        assert!(matches!(error, VolumeError::Damaged { .. }), "{error:?}");
        assert!(pool.open_volume(&name("disk")).is_err());
        assert!(pool.list(Kind::Volume).unwrap()[0].info.is_err());
        let target = dir.path().join("out");
        assert!(pool.export(Kind::Volume, &name("disk"), &target, FileFormat::Raw, &mut go_on).is_err());
        assert!(!target.exists());
        pool.remove(Kind::Volume, &name("disk")).unwrap();
    }
    let file = dir.path().join("junk");
    std::fs::write(&file, b"junk").unwrap();
    for format in [FileFormat::Qcow2, FileFormat::Vmdk, FileFormat::Vdi, FileFormat::Vhdx] {
        let done = pool.import(Kind::Volume, &name("junk"), &from(&file, format, Format::Raw), &mut go_on);
        assert!(matches!(done, Err(VolumeError::Damaged { .. })), "{format}: {done:?}");
    }
    assert_eq!(std::fs::read_dir(pool.root().join("volumes")).unwrap().count(), 0);
}

#[test]
fn what_a_crash_left_is_swept_and_what_is_being_made_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let first = pool(dir.path());
    let volumes = first.root().join("volumes");
    for left in [".new-a-0123", ".gone-b-4567"] {
        std::fs::create_dir(volumes.join(left)).unwrap();
        std::fs::write(volumes.join(left).join("image.raw"), b"half").unwrap();
    }
    let source = dir.path().join("source");
    std::fs::write(&source, vec![7; 4 * MIB as usize]).unwrap();
    let mut drafts = 0;
    first
        .import(Kind::Volume, &name("c"), &from(&source, FileFormat::Raw, Format::Raw), &mut |_| {
            pool(dir.path());
            drafts = std::fs::read_dir(&volumes).unwrap().count();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(drafts, 1);
    let left: Vec<_> = std::fs::read_dir(&volumes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["c"]);
}

#[test]
fn links_do_not_lead_out_of_the_pool() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    pool.create(&name("disk"), MIB, Format::Raw).unwrap();
    let volumes = pool.root().join("volumes");
    symlink(volumes.join("disk"), volumes.join("link")).unwrap();
    assert!(matches!(pool.info(Kind::Volume, &name("link")), Err(VolumeError::NotAnImage { .. })));
    assert!(pool.remove(Kind::Volume, &name("link")).is_err());
    let outside = dir.path().join("outside");
    std::fs::write(&outside, vec![1; MIB as usize]).unwrap();
    let image = volumes.join("disk/image.raw");
    std::fs::remove_file(&image).unwrap();
    symlink(&outside, &image).unwrap();
    assert!(pool.info(Kind::Volume, &name("disk")).is_err());
    assert!(pool.open_volume(&name("disk")).is_err());
    assert!(pool.grow(&name("disk"), 2 * MIB).is_err());
    pool.remove(Kind::Volume, &name("disk")).unwrap();
    assert_eq!(outside.metadata().unwrap().size(), MIB);
}

#[test]
fn only_block_devices_are_adopted() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    let file = dir.path().join("file");
    std::fs::write(&file, [0; 512]).unwrap();
    for device in [Path::new("/dev/null"), &file, Path::new("/dev/../etc/passwd"), dir.path()] {
        let done = pool.adopt(&name("lun"), device);
        assert!(matches!(done, Err(VolumeError::NotADevice { .. })), "{device:?}: {done:?}");
    }
}

/// With a loop device, where the machine lets us have one.
#[test]
fn an_adopted_device_is_a_volume() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lun");
    std::fs::File::create(&file).unwrap().set_len(4 * MIB).unwrap();
    let output = std::process::Command::new("losetup").args(["-f", "--show"]).arg(&file).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        eprintln!("left out: no loop device to be had here");
        return;
    };
    let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let detach = Detach(device.clone());
    let pool = pool(dir.path());
    pool.adopt(&name("lun"), device.as_ref()).unwrap();
    assert!(matches!(pool.adopt(&name("two"), device.as_ref()), Err(VolumeError::Refused { .. })));
    write(&pool, "lun", MIB, b"on the device");
    {
        let image = pool.open_volume(&name("lun")).unwrap();
        image.zero(MIB + 3, 7, true).unwrap();
        image.zero(2 * MIB, MIB, true).unwrap();
        assert!(matches!(pool.open_volume(&name("lun")), Err(VolumeError::Busy { .. })));
    }
    assert_eq!(read(&pool, "lun", MIB, 13), b"on \0\0\0\0\0\0\0ice");
    assert_eq!(pool.info(Kind::Volume, &name("lun")).unwrap().record.size, 4 * MIB);
    assert!(matches!(pool.grow(&name("lun"), 8 * MIB), Err(VolumeError::Refused { .. })));
    // What a crash has left on its way there, as a keeper that is killed leaves it.
    leave_in_log(&pool, "lun", 2 * MIB, b"late");
    pool.remove(Kind::Volume, &name("lun")).unwrap();
    drop(detach);
    let bytes = std::fs::read(file).unwrap();
    assert_eq!((&bytes[MIB as usize..][..3], &bytes[2 * MIB as usize..][..4]), (&b"on "[..], &b"late"[..]));
}

/// As a keeper that is killed leaves it: durable, and not in the image.
fn leave_in_log(pool: &Pool, volume: &str, at: u64, bytes: &[u8]) {
    let batch: Batch = [Op::Write { at, data: bytes.to_vec().into() }].into_iter().collect();
    let log = pool.root().join("volumes").join(volume).join("log");
    WriteLog::open(&log).unwrap().append([&batch], &mut || ()).unwrap();
}

/// Nobody looks at an image without what a crash left on its way there.
#[test]
fn what_a_crash_left_in_the_log_is_seen_by_all() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    for format in BOTH {
        let disk = name(&format!("disk-{format}"));
        pool.create(&disk, 8 * MIB, format).unwrap();
        leave_in_log(&pool, disk.as_str(), MIB, b"one");
        let out = dir.path().join(format!("{format}.raw"));
        pool.export(Kind::Volume, &disk, &out, FileFormat::Raw, &mut go_on).unwrap();
        assert_eq!(&std::fs::read(out).unwrap()[MIB as usize..][..3], b"one");
        leave_in_log(&pool, disk.as_str(), 6 * MIB, b"two");
        let refused = pool.shrink(&disk, 4 * MIB, CutOff::MustBeZero).unwrap_err();
        assert!(refused.to_string().contains(&format!("byte {}", 6 * MIB)), "{refused}");
        leave_in_log(&pool, disk.as_str(), 7 * MIB, b"three");
        pool.shrink(&disk, 4 * MIB, CutOff::AllowDataLoss).unwrap();
        leave_in_log(&pool, disk.as_str(), 3 * MIB, b"four");
        assert_eq!(read(&pool, disk.as_str(), 3 * MIB, 4), b"four");
    }
}

struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["-d", &self.0]).status();
    }
}

proptest! {
    #[test]
    fn a_name_is_one_plain_part_of_a_path(text in "\\PC{0,40}") {
        if let Ok(name) = text.parse::<VolumeName>() {
            let path = Path::new(name.as_str());
            prop_assert_eq!(path.components().count(), 1);
            prop_assert!(!name.as_str().starts_with('.'));
        }
    }
}

#[test]
fn bad_names_are_refused() {
    for bad in ["", ".", "..", "../x", "/etc", "a/b", "A", "a b", ".new-a", "-x", &"x".repeat(33)] {
        assert!(bad.parse::<VolumeName>().is_err(), "{bad}");
        assert!(serde_json::from_value::<VolumeName>(bad.into()).is_err(), "{bad}");
    }
}

/// Neither what it was nor what it was to become: nobody takes it for either.
#[test]
fn a_mixture_is_not_exported() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    pool.create(&name("disk"), MIB, Format::Raw).unwrap();
    pool.mixture(&name("disk")).write("a resync").unwrap();
    let target = dir.path().join("out");
    let refused = pool.export(Kind::Volume, &name("disk"), &target, FileFormat::Raw, &mut go_on).unwrap_err();
    assert!(
        matches!(&refused, VolumeError::Refused { why: Refusal::Mixture { by }, .. } if by == "a resync"),
        "{refused}"
    );
    assert!(!target.exists());
    pool.mixture(&name("disk")).remove().unwrap();
    pool.export(Kind::Volume, &name("disk"), &target, FileFormat::Raw, &mut go_on).unwrap();
}

/// What is read may be what the disk does not have.
#[test]
fn what_a_failed_flush_lost_is_not_exported() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path());
    pool.create(&name("disk"), MIB, Format::Raw).unwrap();
    let lost = pool.lost(&name("disk"));
    lost.write().unwrap();
    let target = dir.path().join("out");
    let refused = pool.export(Kind::Volume, &name("disk"), &target, FileFormat::Raw, &mut go_on).unwrap_err();
    let names_it = |note: &Path| note == lost.path();
    assert!(
        matches!(&refused, VolumeError::Refused { why: Refusal::Lost { note }, .. } if names_it(note)),
        "{refused}"
    );
    assert!(!target.exists());
    lost.remove().unwrap();
    pool.export(Kind::Volume, &name("disk"), &target, FileFormat::Raw, &mut go_on).unwrap();
}
