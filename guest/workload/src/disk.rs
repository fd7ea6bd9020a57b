//! Work for a disk: what fio's jobs of the same names do, on a whole volume without a file system.
//!
//! | job | a step is |
//! |---|---|
//! | `randwrite` | 4 KiB written somewhere |
//! | `seqwrite` | 128 KiB written behind the step before |
//! | `fsync` | 4 KiB written somewhere, then a flush |
//!
//! All of it past the page cache (`O_DIRECT`), one step after the other on each thread. Contents are random and never the
//! same twice. [`rewrite`] gives a share of the volume new contents, for the measurement of a resync.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::command::DiskJob;
use crate::job::{Job, Shared, StartError};
use crate::rng::Rng;

/// `O_DIRECT` of Linux on x86-64 (open(2)).
const O_DIRECT: i32 = 0o40000;
/// What a direct request's memory, place and length are multiples of, bytes.
const ALIGN: usize = 4096;
const SMALL: usize = 4096;
const LARGE: usize = 128 << 10;
/// [`rewrite`] changes whole blocks of this size: the one in which a resync compares.
const BLOCK: u64 = 64 << 10;
/// Each so many bytes of a buffer get a new number before it is written.
const STAMP: usize = 512;

/// A volume that can be written to.
#[derive(Debug)]
pub struct Volume {
    file: File,
    /// Bytes.
    size: u64,
}

/// Why a volume cannot be used.
#[derive(Debug)]
pub enum VolumeError {
    NotFound(String),
    TooSmall,
    Io(std::io::Error),
}

impl std::fmt::Display for VolumeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound(name) => write!(f, "no disk has the serial number '{name}'"),
            Self::TooSmall => write!(f, "the volume is smaller than {LARGE} bytes"),
            Self::Io(e) => write!(f, "the volume: {e}"),
        }
    }
}

impl Volume {
    /// Opens the virtio disk with this serial number. What it holds will be overwritten.
    ///
    /// # Errors
    /// When there is none, or it cannot be opened.
    pub fn open(name: &str) -> Result<Self, VolumeError> {
        let device = find(Path::new("/sys/block"), name).ok_or_else(|| VolumeError::NotFound(name.to_owned()))?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(device);
        Self::of(file.map_err(VolumeError::Io)?)
    }

    fn of(mut file: File) -> Result<Self, VolumeError> {
        let size = file.seek(SeekFrom::End(0)).map_err(VolumeError::Io)?;
        if size < LARGE as u64 { Err(VolumeError::TooSmall) } else { Ok(Self { file, size }) }
    }
}

/// The device with this serial number (virtio-blk shows it in sysfs).
fn find(sys: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(sys).ok()?;
    entries.flatten().find_map(|entry| {
        let serial = std::fs::read_to_string(entry.path().join("serial")).ok()?;
        (serial.trim_end() == name).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// Memory for direct requests.
struct Buffer {
    memory: Vec<u8>,
    begin: usize,
    length: usize,
}

impl Buffer {
    /// Random contents.
    fn new(length: usize, rng: &mut Rng) -> Self {
        let mut memory = vec![0; length + ALIGN];
        let begin = memory.as_ptr().align_offset(ALIGN);
        for word in memory[begin..begin + length].chunks_exact_mut(8) {
            word.copy_from_slice(&rng.next().to_ne_bytes());
        }
        Self { memory, begin, length }
    }

    /// Contents that it has never had: cheap under emulation, and different in every block that a disk might compare.
    fn stamped(&mut self, rng: &mut Rng) -> &[u8] {
        let bytes = &mut self.memory[self.begin..self.begin + self.length];
        for part in bytes.chunks_exact_mut(STAMP) {
            part[..8].copy_from_slice(&rng.next().to_ne_bytes());
        }
        bytes
    }
}

/// Starts a job; [`Shared::done`] counts bytes written (and flushed, for `fsync`), [`Shared::errors`] failed steps, after
/// each of which a thread ends.
///
/// # Errors
/// When there is no such volume, or the guest gives no threads.
pub fn start(job: DiskJob, volume: &str, threads: u64) -> Result<Job, StartError> {
    let volume = std::sync::Arc::new(Volume::open(volume).map_err(StartError::Volume)?);
    let work = (0..threads).map(|n| {
        let volume = std::sync::Arc::clone(&volume);
        move |shared: &Shared| work(&volume, job, (n, threads), shared)
    });
    Job::start(work.collect()).map_err(StartError::Threads)
}

fn work(volume: &Volume, job: DiskJob, (thread, threads): (u64, u64), shared: &Shared) {
    // Another sequence in every run.
    let mut rng = Rng::new(thread ^ u64::from(std::process::id()) << 32 ^ now());
    let length = if job == DiskJob::SeqWrite { LARGE } else { SMALL };
    let places = volume.size / length as u64;
    let mut buffer = Buffer::new(length, &mut rng);
    let mut next = places / threads * thread;
    while !shared.stopped() {
        let place = match job {
            DiskJob::SeqWrite => next % places,
            DiskJob::RandWrite | DiskJob::Fsync => rng.below(places as usize) as u64,
        };
        next = place + 1;
        let mut done = volume.file.write_all_at(buffer.stamped(&mut rng), place * length as u64);
        if job == DiskJob::Fsync {
            done = done.and_then(|()| volume.file.sync_data());
        }
        if done.is_err() {
            shared.errors.add(1);
            return;
        }
        shared.done.add(length as u64);
    }
}

/// What [`rewrite`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewritten {
    pub bytes: u64,
    /// Guest monotonic time.
    pub us: u64,
}

/// Gives `percent` % of the volume's blocks of 64 KiB, spread evenly, new contents, and flushes.
///
/// # Errors
/// What the disk says.
pub fn rewrite(volume: &Volume, percent: u64) -> std::io::Result<Rewritten> {
    let started = Instant::now();
    let mut rng = Rng::new(now());
    let mut buffer = Buffer::new(BLOCK as usize, &mut rng);
    let mut bytes = 0;
    for block in chosen(volume.size / BLOCK, percent) {
        volume.file.write_all_at(buffer.stamped(&mut rng), block * BLOCK)?;
        bytes += BLOCK;
    }
    volume.file.sync_data()?;
    Ok(Rewritten { bytes, us: started.elapsed().as_micros() as u64 })
}

/// `percent` % of the numbers below `blocks`, evenly spread.
fn chosen(blocks: u64, percent: u64) -> impl Iterator<Item = u64> {
    (0..blocks).filter(move |n| (n + 1) * percent / 100 > n * percent / 100)
}

/// Only to begin differently each time.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file as a volume, gone with the test.
    struct Disk(PathBuf);

    impl Disk {
        fn new(name: &str, size: u64) -> Self {
            let path = std::env::temp_dir().join(format!("workload-{}-{name}", std::process::id()));
            File::create(&path).and_then(|f| f.set_len(size)).expect("a file");
            Self(path)
        }

        fn volume(&self) -> Volume {
            let file = OpenOptions::new().read(true).write(true).open(&self.0).expect("open");
            Volume::of(file).expect("a volume")
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_disk_is_found_by_its_serial_number() {
        let sys = std::env::temp_dir().join(format!("workload-{}-sys", std::process::id()));
        for (device, serial) in [("vda", "data\n"), ("vdb", "scratch")] {
            std::fs::create_dir_all(sys.join(device)).expect("mkdir");
            std::fs::write(sys.join(device).join("serial"), serial).expect("write");
        }
        std::fs::create_dir_all(sys.join("loop0")).expect("mkdir");
        let found = ["data", "scratch", "dat"].map(|name| find(&sys, name));
        let _ = std::fs::remove_dir_all(&sys);
        assert_eq!(found, [Some("/dev/vda".into()), Some("/dev/vdb".into()), None]);
    }

    #[test]
    fn the_share_is_kept_and_spread() {
        for (percent, count) in [(0, 0), (1, 10), (10, 100), (50, 500), (100, 1000)] {
            let all: Vec<_> = chosen(1000, percent).collect();
            assert_eq!(all.len(), count);
            assert!(all.windows(2).all(|w| w[1] - w[0] <= 1000 / count as u64 + 1));
        }
    }

    #[test]
    fn a_rewrite_changes_its_blocks_and_no_others() {
        let disk = Disk::new("rewrite", 100 * BLOCK);
        let done = rewrite(&disk.volume(), 10).expect("rewrite");
        assert_eq!(done.bytes, 10 * BLOCK);
        let bytes = std::fs::read(&disk.0).expect("read");
        let changed = bytes.chunks(BLOCK as usize).filter(|b| b.iter().any(|x| *x != 0)).count();
        assert_eq!(changed, 10);
        rewrite(&disk.volume(), 10).expect("rewrite");
        let again = std::fs::read(&disk.0).expect("read");
        let blocks = bytes.chunks(STAMP).zip(again.chunks(STAMP)).filter(|(a, b)| a != b).count();
        assert_eq!(blocks as u64, 10 * BLOCK / STAMP as u64, "nothing is the same a second time");
    }

    #[test]
    fn jobs_write_and_end() {
        let disk = Disk::new("jobs", 1 << 20);
        for job in [DiskJob::RandWrite, DiskJob::SeqWrite, DiskJob::Fsync] {
            let volume = disk.volume();
            let running = Job::start(vec![move |shared: &Shared| work(&volume, job, (0, 1), shared)]).expect("thread");
            while running.shared().done.get() < 8 * LARGE as u64 && running.shared().errors.get() == 0 {
                std::thread::yield_now();
            }
            assert_eq!(running.shared().errors.get(), 0);
        }
        let bytes = std::fs::read(&disk.0).expect("read");
        assert_eq!(bytes.len(), 1 << 20, "nothing is written behind the end");
        assert!(bytes.chunks(SMALL).all(|b| b.iter().any(|x| *x != 0)));
    }

    #[test]
    fn a_volume_that_is_none_is_refused() {
        assert!(matches!(Volume::open("no such disk"), Err(VolumeError::NotFound(_))));
        let disk = Disk::new("small", 4096);
        assert!(matches!(Volume::of(File::open(&disk.0).expect("open")), Err(VolumeError::TooSmall)));
    }
}
