//! Disks for a lab's hosts that forget what was not synced when their host loses power.
//!
//! Each host has a file system of its own, in an image, mounted through a loop device; its storage pool (of the witness:
//! its register) is there. At a loss of power the file system is shut down without a last write of its log, as xfstests do
//! it: what is dirty in memory never reaches the image, and the next mount finds what a host finds after a power cut.
//!
//! ```text
//!  /run/ninefold-lab/LAB/HOST/disk  ──loop──►  /var/tmp/ninefold-lab/LAB/HOST.img
//! ```
//!
//! The images are not in `/run`, which is in memory on most machines. The disk's own cache is not emulated: what the loop
//! device has been given counts as on the disk.
//!
//! A disk can also hang: its file system is frozen as for a snapshot of the device beneath, and whoever writes to it or syncs
//! it waits, without an error and deaf to signals, until it is thawed.
//!
//! It can be slow: the kernel lets so many bytes a second through to the loop device (control groups version 1,
//! `blkio.throttle.write_bps_device` of the root group, where the writing of dirty pages is charged). And it can be full: a file
//! takes all room that is left.
//!
//! Source: `EXT4_IOC_SHUTDOWN` and `EXT4_GOING_FLAGS_NOLOGFLUSH` in the kernel's `fs/ext4/ext4.h`, `FIFREEZE` and `FITHAW` in
//! `include/uapi/linux/fs.h`.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{LabError, io_at};
use crate::lab::Lab;
use crate::netns;
use crate::record::LABS;
use crate::topology::{CLIENT, WITNESS};

/// Where the images are.
const IMAGES: &str = "/var/tmp/ninefold-lab";
/// Of each disk; sparse.
const SIZE: u64 = 4 << 30;

/// `_IOR('X', 125, __u32)`.
const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d;
const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;
/// `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`; the number is not used.
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

/// Where the root group's limits are, if the machine has that controller in version 1.
const BLKIO: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device";
/// The file that takes the room of a full disk.
const FILLER: &str = "filler";

/// The directory with a lab's images.
pub(crate) fn images(lab: &str) -> PathBuf {
    Path::new(IMAGES).join(lab)
}

/// Whether this machine can have such disks: a container, for example, often has no loop devices.
pub fn supported() -> bool {
    Path::new("/dev/loop-control").exists()
}

/// Whether this machine can make such disks slow.
pub fn slow_supported() -> bool {
    supported() && Path::new(BLKIO).exists()
}

/// A disk that is slow as long as this value lives.
#[derive(Debug)]
pub struct SlowDisk {
    /// MAJOR:MINOR of the loop device.
    device: String,
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        if let Err(error) = fs::write(BLKIO, format!("{} 0", self.device)) {
            tracing::warn!(device = self.device, %error, "a disk stays slow");
        }
    }
}

impl Lab {
    /// Where a host keeps what outlives a loss of power.
    pub fn disk_dir(&self, host: &str) -> PathBuf {
        let run_dir = self.run_dir(host);
        if self.record().disks { run_dir.join("disk") } else { run_dir }
    }

    fn image(&self, host: &str) -> PathBuf {
        images(self.name()).join(host).with_extension("img")
    }

    /// Every host that has a disk.
    fn with_disk(&self) -> impl Iterator<Item = &str> {
        self.topology().nodes().filter(|n| *n != CLIENT)
    }

    /// Makes the disks and mounts them.
    pub(crate) fn make_disks(&self) -> Result<(), LabError> {
        let dir = images(self.name());
        fs::create_dir_all(&dir).map_err(io_at(format!("make {}", dir.display())))?;
        for host in self.with_disk() {
            let image = self.image(host);
            let made = File::create_new(&image).and_then(|f| f.set_len(SIZE));
            made.map_err(io_at(format!("make {}", image.display())))?;
            // Nothing is written that the first use would not write anyway.
            run(
                "mkfs.ext4",
                &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"],
                &image,
            )?;
            self.mount(host)?;
        }
        Ok(())
    }

    /// A host without power gets its disk back.
    pub(crate) fn mount(&self, host: &str) -> Result<(), LabError> {
        let dir = self.disk_dir(host);
        fs::create_dir_all(&dir).map_err(io_at(format!("make {}", dir.display())))?;
        let image = self.image(host).display().to_string();
        run("mount", &["-o", "loop,noatime", &image], &dir)
    }

    /// A host's disk forgets what was not synced, and is gone until [`Lab::mount`]. No process of the host may be left.
    pub(crate) fn forget_unsynced(&self, host: &str) -> Result<(), LabError> {
        let dir = self.disk_dir(host);
        control(&dir, "cut the power of", EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH)?;
        run("umount", &[], &dir)
    }

    /// A host's disk takes nothing any more and says nothing, until [`Lab::thaw_disk`].
    ///
    /// # Errors
    /// The lab has no such host, or the host has no disk of its own, or one that is frozen already.
    pub fn freeze_disk(&self, host: &str) -> Result<(), LabError> {
        self.own_disk(host)?;
        control(&self.disk_dir(host), "freeze", FIFREEZE, 0)
    }

    /// A host's disk answers again.
    ///
    /// # Errors
    /// The lab has no such host, or the host has no disk of its own, or one that is not frozen.
    pub fn thaw_disk(&self, host: &str) -> Result<(), LabError> {
        self.own_disk(host)?;
        control(&self.disk_dir(host), "thaw", FITHAW, 0)
    }

    /// All that a host asks of its disk fails with I/O errors, until the host has lost its power and has it back
    /// ([`Lab::kill_host`], [`Lab::restart_host`]). What was not synced is gone.
    ///
    /// # Errors
    /// No disk of its own.
    pub fn break_disk(&self, host: &str) -> Result<(), LabError> {
        self.own_disk(host)?;
        control(&self.disk_dir(host), "break", EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH)
    }

    /// A host's disk writes at most so much a second, bytes (at least 1).
    ///
    /// # Errors
    /// No disk of its own, or a machine without limits for devices ([`slow_supported`]).
    pub fn slow_disk(&self, host: &str, bytes_per_s: u64) -> Result<SlowDisk, LabError> {
        self.own_disk(host)?;
        let dir = self.disk_dir(host);
        let device = rustix::fs::stat(&dir).map_err(io_at(format!("stat {}", dir.display())))?.st_dev;
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let limit = format!("{device} {}", bytes_per_s.max(1));
        fs::write(BLKIO, limit).map_err(io_at(format!("write to {BLKIO}")))?;
        Ok(SlowDisk { device })
    }

    /// A host's disk has no room left, until [`Lab::clear_disk`].
    ///
    /// # Errors
    /// No disk of its own.
    pub fn fill_disk(&self, host: &str) -> Result<(), LabError> {
        self.own_disk(host)?;
        let path = self.disk_dir(host).join(FILLER);
        let at = || format!("fill {}", path.display());
        let file = fs::OpenOptions::new().append(true).create(true).open(&path).map_err(io_at(at()))?;
        let mut length = 0;
        // Others write too: what was free may be taken before it is allocated.
        for _ in 0..64 {
            let room = rustix::fs::fstatvfs(&file).map_err(io_at(at()))?;
            let free = room.f_bavail * room.f_frsize;
            if free == 0 {
                break;
            }
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), length, free) {
                Ok(()) => length += free,
                Err(rustix::io::Errno::NOSPC) => {}
                Err(e) => return Err(io_at(at())(e)),
            }
        }
        Ok(())
    }

    /// A host's disk has room again.
    ///
    /// # Errors
    /// No disk of its own.
    pub fn clear_disk(&self, host: &str) -> Result<(), LabError> {
        self.own_disk(host)?;
        let path = self.disk_dir(host).join(FILLER);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_at(format!("remove {}", path.display()))(e)),
            _ => Ok(()),
        }
    }

    fn own_disk(&self, host: &str) -> Result<(), LabError> {
        self.check(host)?;
        match self.record().disks && host != CLIENT && self.is_mounted(host) {
            true => Ok(()),
            false => Err(LabError::Host { host: host.to_owned(), what: "has no disk of its own".to_owned() }),
        }
    }

    /// Whether a host's disk is there.
    pub(crate) fn is_mounted(&self, host: &str) -> bool {
        let device = |path: &Path| rustix::fs::stat(path).map(|s| s.st_dev);
        // A mount point is on another device than what it is in.
        device(&self.disk_dir(host)).ok() != device(&self.run_dir(host)).ok()
    }
}

/// The first lines of the teardown script: processes that wait for a disk that hangs, or is slow, cannot be killed.
pub(crate) fn thaw_all(lab_dir: &Path, hosts: impl Iterator<Item = String>) -> String {
    hosts
        .chain([WITNESS.to_owned()])
        .map(|host| lab_dir.join(host).join("disk").display().to_string())
        .map(|disk| {
            let slow = format!("echo \"$(mountpoint -d '{disk}') 0\" > {BLKIO}");
            format!("mountpoint -q '{disk}' && {{ fsfreeze --unfreeze '{disk}'; {slow}; }}\n")
        })
        .collect()
}

/// Lines of the teardown script: unmounts the disks and removes their images.
pub(crate) fn teardown(lab: &str, lab_dir: &Path, hosts: impl Iterator<Item = String>) -> String {
    let mut script = String::new();
    for host in hosts.chain([WITNESS.to_owned()]) {
        // Twice: one may lie over the other if the set-up was interrupted. Lazily: a process may be about to end.
        let dir = lab_dir.join(host).join("disk");
        script += &format!("umount -l '{0}'\numount -l '{0}'\n", dir.display());
    }
    script + &format!("rm -rf '{}'\nrmdir '{IMAGES}'\n", images(lab).display())
}

/// Removes images that are nobody's: of labs that a restart of the machine took down.
pub(crate) fn sweep() {
    for entry in fs::read_dir(IMAGES).into_iter().flatten().flatten() {
        // A lab takes its name before it makes its disks, and gives it up after it has removed them.
        if !Path::new(LABS).join(entry.file_name()).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Asks something of the file system that is mounted here.
fn control(at: &Path, what: &str, request: libc::Ioctl, number: u32) -> Result<(), LabError> {
    let failed = || io_at(format!("{what} {}", at.display()));
    let file = File::open(at).map_err(failed())?;
    // SAFETY: each of these requests takes a pointer to a 32-bit number; it lives until the call returns.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw const number) };
    if done < 0 { Err(failed()(std::io::Error::last_os_error())) } else { Ok(()) }
}

fn run(program: &str, arguments: &[&str], last: &Path) -> Result<(), LabError> {
    let mut command = Command::new(program);
    command.args(arguments).arg(last).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    netns::confine(&mut command, None, None)?;
    let what = format!("{program} {}", last.display());
    let output = command.output().map_err(io_at(format!("start {what}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(LabError::Command { what, detail: String::from_utf8_lossy(&output.stderr).trim().to_owned() }),
    }
}
