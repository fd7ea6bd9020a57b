//! Images of both formats against a model, what a killed storage daemon looks like, locks and damage.

mod rig;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use ninefold_volume::image::{Qcow2, RawFile};
use ninefold_volume::{Format, Image, Tools, VolumeError, open};
use rig::Numbers;

const SIZE: u64 = 8 << 20;

fn make(dir: &Path, format: Format) -> std::path::PathBuf {
    let path = dir.join(format!("image, with a comma.{format}"));
    rig::run("qemu-img", &["create", "-f", format.as_str(), path.to_str().unwrap(), &SIZE.to_string()]);
    path
}

fn against_a_model(image: &dyn Image, model: &mut [u8], seed: u64) {
    let mut numbers = Numbers(seed);
    for _ in 0..300 {
        let at = numbers.below(SIZE) as usize;
        let length = (numbers.below(200_000) as usize).min(model.len() - at);
        match numbers.below(4) {
            0 => {
                let bytes: Vec<u8> = (0..length).map(|_| numbers.next() as u8).collect();
                image.write(at as u64, &bytes).unwrap();
                model[at..at + length].copy_from_slice(&bytes);
            }
            1 => {
                image.zero(at as u64, length as u64, numbers.below(2) == 0).unwrap();
                model[at..at + length].fill(0);
            }
            2 => image.flush().unwrap(),
            _ => {
                let mut bytes = vec![0; length];
                image.read(at as u64, &mut bytes).unwrap();
                assert!(bytes == model[at..at + length]);
            }
        }
    }
    assert!(matches!(image.write(SIZE - 1, &[0; 2]), Err(VolumeError::OutOfBounds { .. })));
    assert!(matches!(image.zero(u64::MAX, 2, true), Err(VolumeError::OutOfBounds { .. })));
}

#[test]
fn both_formats_hold_what_was_written() {
    for format in [Format::Raw, Format::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        let path = make(dir.path(), format);
        let mut model = vec![0; SIZE as usize];
        for (seed, tools) in (1..).zip(rig::tools(dir.path())) {
            let image = open(&path, format, &tools).unwrap();
            assert_eq!(image.size(), SIZE);
            against_a_model(&*image, &mut model, seed);
            drop(image);
            let image = open(&path, format, &tools).unwrap();
            let mut bytes = vec![0; SIZE as usize];
            image.read(0, &mut bytes).unwrap();
            assert!(bytes == model, "{format} {tools:?}");
        }
    }
}

/// What was written is written out piece by piece before it is flushed.
#[test]
fn a_cache_is_written_out_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        let image = open(&make(dir.path(), format), format, &Tools::default()).unwrap();
        let size = image.size();
        image.write(0, &vec![7; size as usize]).unwrap();
        let mut steps = 0;
        let mut pieces = (0..size).step_by(1 << 20).map(|at| at..size.min(at + (1 << 20)));
        let expected = pieces.clone().count();
        image.write_out(&mut pieces, &mut || steps += 1).unwrap();
        // Of a qcow2 file the pieces are those of the file.
        let least = if format == Format::Raw { expected } else { 1 };
        assert!(steps >= least, "{format}: {steps} of {expected}");
        image.flush().unwrap();
        image.write_out(&mut std::iter::empty(), &mut || panic!("there is nothing to be done")).unwrap();
    }
}

#[test]
fn unmapped_bytes_take_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), Format::Raw);
    let image = RawFile::open(&path).unwrap();
    image.write(0, &vec![1; SIZE as usize]).unwrap();
    image.flush().unwrap();
    let full = path.metadata().unwrap().blocks();
    image.zero(0, SIZE, true).unwrap();
    assert!(path.metadata().unwrap().blocks() < full / 2);
    assert_eq!(path.metadata().unwrap().len(), SIZE);
}

#[test]
fn a_killed_storage_daemon_is_an_error_and_not_a_hang() {
    let dir = tempfile::tempdir().unwrap();
    for tools in rig::tools(dir.path()) {
        let path = make(dir.path(), Format::Qcow2);
        let image = Qcow2::open(&path, &tools).unwrap();
        image.write(0, b"before").unwrap();
        image.flush().unwrap();
        let pid = rustix::process::Pid::from_raw(image.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        while image.write(0, b"after ").is_ok() {}
        assert!(image.read(0, &mut [0; 6]).is_err());
        assert!(image.flush().is_err());
        drop(image);
        let mut bytes = [0; 6];
        Qcow2::open(&path, &tools).unwrap().read(0, &mut bytes).unwrap();
        assert!(&bytes == b"before" || &bytes == b"after ");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_daemon_ends_with_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), Format::Qcow2);
    let image = Qcow2::open(&path, &Tools::default()).unwrap();
    let process = format!("/proc/{}", image.pid());
    assert!(Path::new(&process).exists());
    drop(image);
    assert!(!Path::new(&process).exists());
}

#[test]
fn an_image_has_one_user_and_says_who() {
    for format in [Format::Raw, Format::Qcow2] {
        let dir = tempfile::tempdir().unwrap();
        let path = make(dir.path(), format);
        let first = open(&path, format, &Tools::default()).unwrap();
        let second = open(&path, format, &Tools::default()).unwrap_err();
        assert!(matches!(second, VolumeError::Busy { .. }), "{second:?}");
        assert!(second.to_string().contains(&format!("({})", std::process::id())), "{second}");
        drop(first);
        open(&path, format, &Tools::default()).unwrap();
    }
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let tools = Tools::default();
    let refused = |path: &Path, format| open(path, format, &tools).unwrap_err();
    assert!(matches!(refused(dir.path(), Format::Raw), VolumeError::NotAnImage { .. }));
    assert!(matches!(refused(&dir.path().join("none"), Format::Raw), VolumeError::File { .. }));
    let path = make(dir.path(), Format::Raw);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        assert!(matches!(refused(&link, format), VolumeError::NotAnImage { .. }));
    }
    let error = refused(&path, Format::Qcow2);
    assert!(matches!(error, VolumeError::Damaged { .. }), "{error:?}");
}

#[test]
fn damage_is_said_before_anything_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), Format::Qcow2);
    let tools = Tools::default();
    Qcow2::open(&path, &tools).unwrap().write(0, &[1; 1 << 20]).unwrap();
    // The first entry of the L1 table (offset 40 of the header says where) now leads far outside.
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut at = [0; 8];
    file.read_exact_at(&mut at, 40).unwrap();
    file.write_all_at(&0x8000_0fff_ffff_0000u64.to_be_bytes(), u64::from_be_bytes(at)).unwrap();
    let error = Qcow2::open(&path, &tools).unwrap_err();
    assert!(matches!(error, VolumeError::Damaged { .. }), "{error:?}");
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), Format::Qcow2);
    let none = Tools { storage_daemon: "/none".into(), ..Tools::default() };
    assert!(Qcow2::open(&path, &none).unwrap_err().to_string().contains("/none"));
    let not_one = Tools { storage_daemon: "false".into(), ..Tools::default() };
    assert!(matches!(Qcow2::open(&path, &not_one).unwrap_err(), VolumeError::Tool { .. }));
}

/// Not a test by itself: the process that [`a_daemon_dies_with_its_keeper`] kills.
#[test]
fn holds_an_image_until_killed() {
    let Some(path) = std::env::var_os("NINEFOLD_TEST_HOLD") else { return };
    let image = Qcow2::open(Path::new(&path), &Tools::default()).unwrap();
    println!("\ndaemon {}", image.pid());
    loop {
        std::thread::park();
    }
}

#[test]
fn a_daemon_dies_with_its_keeper() {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path(), Format::Qcow2);
    let mut keeper = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_an_image_until_killed", "--nocapture"])
        .env("NINEFOLD_TEST_HOLD", &path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(keeper.stdout.take().unwrap()).lines().map(Result::unwrap);
    let pid = lines.find_map(|line| line.strip_prefix("daemon ")?.parse().ok()).unwrap();
    let daemon = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    // Readable once the process has ended.
    let mut fds = [rustix::event::PollFd::new(&daemon, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, None).unwrap(), 1);
    Qcow2::open(&path, &Tools::default()).unwrap();
}
