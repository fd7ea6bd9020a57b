//! A flush that fails on a real device, and a process that is started anew under the same kernel.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ninefold_model::spec::Acknowledge;
use ninefold_volume::{Batch, Op, Pool, ServedVolume, Tools, VolumeName, WriteLog};

const SIZE: u64 = 8 << 20;
/// Less than what is written.
const ROOM: &str = "size=4m";

fn done(program: &str, args: &[&str], path: &Path) -> bool {
    Command::new(program).args(args).arg(path).status().unwrap().success()
}

/// A device on a file system that has too little room: the kernel takes what is written, and cannot bring it there.
struct Device {
    mount: PathBuf,
    device: PathBuf,
}

impl Device {
    fn new(dir: &Path) -> Self {
        let mount = dir.join("small");
        std::fs::create_dir(&mount).unwrap();
        assert!(done("mount", &["-t", "tmpfs", "-o", ROOM, "none"], &mount), "a tmpfs cannot be mounted");
        let mut this = Self { device: PathBuf::new(), mount };
        File::create(this.file()).unwrap().set_len(SIZE).unwrap();
        let made = Command::new("losetup").args(["-f", "--show"]).arg(this.file()).output().unwrap();
        assert!(made.status.success(), "no loop device to be had: {made:?}");
        this.device = String::from_utf8(made.stdout).unwrap().trim().into();
        this
    }

    fn file(&self) -> PathBuf {
        self.mount.join("lun")
    }

    fn enlarge(&self) {
        assert!(done("mount", &["-o", "remount,size=64m"], &self.mount));
    }

    /// What the device has.
    fn content(&self) -> Vec<u8> {
        std::fs::read(self.file()).unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.device.as_os_str().is_empty() {
            done("losetup", &["-d"], &self.device);
        }
        done("umount", &["-l"], &self.mount);
    }
}

fn serve(pool: &Pool, name: &VolumeName) -> ServedVolume {
    let (image, log) = pool.open_logged(name).unwrap();
    ServedVolume::within(Default::default(), image, log, Acknowledge::Disk, Some(pool.lost(name))).unwrap()
}

#[test]
fn the_kernel_forgets_and_the_note_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::new(dir.path());
    // As long as somebody has it open the kernel keeps what it has of it.
    let _open = File::open(&device.device).unwrap();
    let (pool, name) = (Pool::open(&dir.path().join("pool"), Tools::default()).unwrap(), "data".parse().unwrap());
    pool.adopt(&name, &device.device).unwrap();
    let content = vec![7; SIZE as usize];
    let all: Batch = [Op::Write { at: 0, data: content.clone().into() }].into_iter().collect();

    let served = serve(&pool, &name);
    served.settle_resync().unwrap();
    served.apply(&all).unwrap();
    served.settle_resync().unwrap_err();
    assert!(pool.lost(&name).is_true());
    drop(served);

    device.enlarge();
    let image = pool.open_volume(&name).unwrap();
    let mut read = vec![0; SIZE as usize];
    image.read(0, &mut read).unwrap();
    image.flush().unwrap();
    assert!(read == content && device.content() != content, "what is read is not there, and a flush succeeds");
    drop(image);

    let served = serve(&pool, &name);
    assert!(served.is_lost(0, SIZE));
    served.settle_resync().unwrap_err();
    served.write_again().unwrap();
    assert!(device.content() == content, "what is read is there");
    assert!(!served.is_lost(0, SIZE) && !pool.lost(&name).is_there());
}

/// A process ends before it flushes. The first to hear that the kernel has lost something is who plays the log.
#[test]
fn a_flush_that_fails_when_a_volume_is_opened_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    let device = Device::new(dir.path());
    let open = File::options().write(true).open(&device.device).unwrap();
    let (pool, name) = (Pool::open(&dir.path().join("pool"), Tools::default()).unwrap(), "data".parse().unwrap());
    pool.adopt(&name, &device.device).unwrap();
    open.write_all_at(&vec![7; SIZE as usize], 0).unwrap();
    let epoch: Batch = [Op::Write { at: 0, data: vec![8; 512].into() }].into_iter().collect();
    WriteLog::open(&dir.path().join("pool/volumes/data/log")).unwrap().append([&epoch], &mut || ()).unwrap();

    pool.open_logged(&name).unwrap_err();
    assert!(pool.lost(&name).is_true());
    device.enlarge();
    let served = serve(&pool, &name);
    assert!(served.is_lost(0, SIZE), "the log has but a part of it");
    served.write_again().unwrap();
    let content = device.content();
    assert!(content[..512] == [8; 512] && content[512..].iter().all(|b| *b == 7));
}
