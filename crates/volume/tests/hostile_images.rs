//! Images and records that somebody else has written, to harm the host that imports or opens them.

mod rig;

use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use ninefold_volume::error::Refusal;
use ninefold_volume::image::RawFile;
use ninefold_volume::pool::{FileFormat, Import, Kind};
use ninefold_volume::{Format, Pool, Tools, VolumeError, VolumeName};
use rustix::fs::{CWD, mkfifoat};

const MIB: u64 = 1 << 20;

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn go_on(_: f64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A pool whose qemu-img does something else before it does what it is told: `script` is what, for the shell.
fn pool(dir: &Path, script: &str) -> Pool {
    let qemu_img = dir.join("qemu-img");
    std::fs::write(&qemu_img, format!("#!/bin/sh\n{script}\nexec qemu-img \"$@\"\n")).unwrap();
    std::fs::set_permissions(&qemu_img, PermissionsExt::from_mode(0o755)).unwrap();
    Pool::open(&dir.join("pool"), Tools { qemu_img, ..Tools::default() }).unwrap()
}

fn import(pool: &Pool, source: &Path, file_format: FileFormat) -> Result<(), VolumeError> {
    let what = Import { source, file_format, format: Format::Raw, size: None };
    pool.import(Kind::Volume, &name("disk"), &what, &mut go_on)
}

fn qemu_img(args: &[&str]) {
    rig::run("qemu-img", args);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image of `format` full of `byte`.
fn full_of(path: &Path, format: &str, byte: u8) {
    let raw = path.with_extension("bytes");
    std::fs::write(&raw, vec![byte; MIB as usize]).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", format, text(&raw), text(path)]);
    std::fs::remove_file(raw).unwrap();
}

/// An owner of an image who lets it be looked at, and puts another in its place, or rewrites it, before it is converted: what is
/// converted is what was looked at.
#[test]
fn what_was_looked_at_is_what_is_converted() {
    let swap = "mv EVIL SOURCE";
    let rewrite = "cat EVIL > SOURCE";
    for (format, how) in [
        (FileFormat::Qcow2, swap),
        (FileFormat::Qcow2, rewrite),
        (FileFormat::Vmdk, swap),
        (FileFormat::Vmdk, rewrite),
        (FileFormat::Raw, swap),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let [secret, evil, source] = ["secret", "evil", "source"].map(|file| dir.path().join(file));
        std::fs::write(&secret, vec![b's'; MIB as usize]).unwrap();
        match format {
            FileFormat::Qcow2 => {
                qemu_img(&["create", "-q", "-f", "qcow2", "-b", text(&secret), "-F", "raw", text(&evil)])
            }
            FileFormat::Vmdk => std::fs::write(
                &evil,
                format!(
                    "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                     RW 2048 FLAT \"{}\" 0\n",
                    text(&secret)
                ),
            )
            .unwrap(),
            _ => symlink(&secret, &evil).unwrap(),
        }
        full_of(&source, format.as_str(), b'x');
        let how = how.replace("EVIL", text(&evil)).replace("SOURCE", text(&source));
        let pool = pool(dir.path(), &format!("[ $1 = convert ] && [ -e {} ] && {how}", text(&evil)));
        let done = import(&pool, &source, format);
        assert!(done.is_ok(), "{format} {how}: {done:?}");
        let mut bytes = vec![0; MIB as usize];
        pool.open_volume(&name("disk")).unwrap().read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|b| *b == b'x'), "{format} {how}: the host's file is in the volume");
        // The copy is gone.
        let left = std::fs::read_dir(pool.root().join("volumes/disk")).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        left.retain(|file| file != "log");
        assert_eq!(left, ["image.raw", "volume.json"]);
    }
}

/// A qcow2 image whose clusters are all the same one: a few kilobytes stand for `size` bytes of data.
fn bomb(path: &Path, size: u64) {
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "refcount_bits=64", text(path), &size.to_string()]);
    rig::run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 64k", text(path)]);
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let number = |at| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    };
    // QEMU docs/interop/qcow2.txt: where the first table is; an entry of it; one of the second. Bit 63 says that there is one
    // reference, which is not so any more.
    let first = number(40);
    let second = number(first) & !(1 << 63);
    let cluster = number(second) & !(1 << 63);
    let entries = size >> 29;
    file.write_all_at(&second.to_be_bytes().repeat(entries as usize), first).unwrap();
    file.write_all_at(&cluster.to_be_bytes().repeat(8192), second).unwrap();
    // It is sound: the references are counted.
    qemu_img(&["check", "-q", "-r", "all", "-f", "qcow2", text(path)]);
}

/// An image that would fill the pool, under the feet of all VMs there, is refused before anything is written.
#[test]
fn what_has_no_room_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), "");
    let source = dir.path().join("bomb.qcow2");
    let size = (pool.free().unwrap() + (32 << 30)).next_multiple_of(512 * MIB);
    bomb(&source, size);
    assert!(source.metadata().unwrap().len() < 4 * MIB);
    let done = import(&pool, &source, FileFormat::Qcow2);
    let needs = match &done {
        Err(VolumeError::Refused { why: Refusal::NoRoom { needs, .. }, .. }) => *needs,
        _ => panic!("{done:?}"),
    };
    assert!(needs >= size);
    assert_eq!(std::fs::read_dir(pool.root().join("volumes")).unwrap().count(), 0);
}

/// Programs that read a stranger's image have little memory, and what they say of it is read up to a bound.
#[test]
fn programs_that_read_a_strangers_image_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    full_of(&source, "qcow2", 1);
    let told = dir.path().join("told");
    let limited = pool(dir.path(), &format!("echo $1 $(ulimit -v) >> {}", text(&told)));
    import(&limited, &source, FileFormat::Qcow2).unwrap();
    let told = std::fs::read_to_string(told).unwrap();
    assert_eq!(told, "info 1048576\nmeasure 1048576\ncheck 1048576\nconvert 1048576\n");
    limited.remove(Kind::Volume, &name("disk")).unwrap();
    // JSON may begin with as many blanks as its author likes.
    let talks = pool(dir.path(), "[ $1 = info ] && printf '%2000000s' ' '");
    let done = import(&talks, &source, FileFormat::Qcow2);
    assert!(matches!(done, Err(VolumeError::Tool { .. })), "{done:?}");
    // A file longer than any image is not copied.
    let long = dir.path().join("long");
    std::fs::File::create(&long).unwrap().set_len(1 << 60).unwrap_or_default();
    if long.metadata().unwrap().len() == 0 {
        eprintln!("left out: this file system has no files of 1 EiB");
        return;
    }
    for format in FileFormat::ALL {
        let done = import(&talks, &long, format);
        assert!(matches!(done, Err(VolumeError::TooLong { .. })), "{format}: {done:?}");
    }
}

/// What QEMU keeps in memory of a file's clusters grows with its length. A long one is given that, and is not called damaged if it
/// is not enough.
#[test]
fn a_long_image_is_given_the_memory_that_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let told = dir.path().join("told");
    let record = format!("[ $1 = check ] && ulimit -v >> {}", text(&told));
    let given = || std::fs::read_to_string(&told).unwrap().lines().last().unwrap().parse::<u64>().unwrap() << 10;
    qemu_img(&["create", "-q", "-f", "qcow2", text(&source), "8T"]);
    let lengthen = |length: u64| {
        std::fs::File::options().write(true).open(&source).unwrap().set_len(length).unwrap();
    };
    // Empty, as it is made: all of it is really done.
    import(&pool(dir.path(), &record), &source, FileFormat::Qcow2).unwrap();
    assert!(given() >= 1 << 30);
    pool(dir.path(), "").remove(Kind::Volume, &name("disk")).unwrap();
    // As long as one that is full, and a QEMU that finds even that too little.
    lengthen(8 << 40);
    let complain = "echo 'qemu-img: Check failed: Cannot allocate memory' >&2; exit 1";
    let little = pool(dir.path(), &format!("{record} && {{ {complain}; }}"));
    let Err(VolumeError::Tool { report, .. }) = import(&little, &source, FileFormat::Qcow2) else {
        panic!("no reason")
    };
    assert!(report.contains("Cannot allocate memory"), "{report}");
    assert!(given() >= (1 << 30) + (8 << 40 >> 16) * 2, "{}", given());
    // In clusters so small that nobody has the memory.
    std::fs::remove_file(&source).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", text(&source), "1G"]);
    lengthen(8 << 40);
    // QEMU would take long to find out how much of it there is.
    let measured = pool(dir.path(), r#"[ $1 = measure ] && { echo '{ "required": 1 }'; exit; }"#);
    let Err(VolumeError::Tool { report, .. }) = import(&measured, &source, FileFormat::Qcow2) else {
        panic!("no reason")
    };
    assert!(report.contains("MiB of memory"), "{report}");
}

/// Puts `record` in the place of a volume's, with one field changed.
fn forge(pool: &Pool, change: impl FnOnce(&mut serde_json::Value)) -> PathBuf {
    let path = pool.root().join("volumes/disk/volume.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
    path
}

/// A record may name any file of the host as the device that a guest is to have as its disk.
#[test]
fn a_record_gives_no_guest_a_file_of_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), "");
    let disk = name("disk");
    pool.create(&disk, MIB, Format::Raw).unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, vec![b's'; MIB as usize]).unwrap();
    symlink(&secret, dir.path().join("link")).unwrap();
    for device in [text(&secret), text(&dir.path().join("link")), "/dev/null", "/dev/../etc/passwd"] {
        forge(&pool, |record| record["device"] = device.into());
        let opened = pool.open_volume(&disk);
        assert!(matches!(opened, Err(VolumeError::NotADevice { .. })), "{device}: {opened:?}");
        assert!(matches!(pool.info(Kind::Volume, &disk), Err(VolumeError::NotADevice { .. })), "{device}");
    }
    forge(&pool, |record| record["device"] = "dev/sda".into());
    assert!(matches!(pool.open_volume(&disk), Err(VolumeError::Damaged { .. })));
    forge(&pool, |record| record["device"] = text(&secret).into());
    pool.remove(Kind::Volume, &disk).unwrap();
    assert!(secret.exists());
}

/// A record or an image that is no file is not waited for; a record that is too long is not read.
#[test]
fn what_is_no_file_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let pool = pool(dir.path(), "");
    let disk = name("disk");
    let fifo = |path: &Path| {
        let _ = std::fs::remove_file(path);
        mkfifoat(CWD, path, 0o600.into()).unwrap();
    };
    for format in [Format::Raw, Format::Qcow2] {
        pool.create(&disk, MIB, format).unwrap();
        let image = pool.info(Kind::Volume, &disk).unwrap().path;
        fifo(&image);
        assert!(matches!(pool.info(Kind::Volume, &disk), Err(VolumeError::NotAnImage { .. })), "{format}");
        assert!(matches!(pool.open_volume(&disk), Err(VolumeError::NotAnImage { .. })), "{format}");
        assert!(matches!(RawFile::open(&image), Err(VolumeError::NotAnImage { .. })), "{format}");
        assert!(matches!(import(&pool, &image, FileFormat::Raw), Err(VolumeError::NotAnImage { .. })), "{format}");
        let record = forge(&pool, |record| record["id"] = "x".repeat(70_000).into());
        let long = pool.info(Kind::Volume, &disk);
        assert!(matches!(&long, Err(VolumeError::Damaged { report, .. }) if report.contains("longer")), "{long:?}");
        fifo(&record);
        assert!(matches!(pool.info(Kind::Volume, &disk), Err(VolumeError::Damaged { .. })), "{format}");
        pool.remove(Kind::Volume, &disk).unwrap();
    }
    assert!(matches!(RawFile::open(dir.path()), Err(VolumeError::NotAnImage { .. })));
}

#[test]
fn an_encrypted_image_is_called_so() {
    let dir = tempfile::tempdir().unwrap();
    let pool = Pool::open(&dir.path().join("pool"), Tools::default()).unwrap();
    let image = dir.path().join("secret.qcow2");
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    qemu_img(&["create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o", options, text(&image), "1M"]);
    let refused = import(&pool, &image, FileFormat::Qcow2);
    assert!(matches!(&refused, Err(VolumeError::Encrypted { path }) if *path == image), "{refused:?}");
}
