//! One keeper for an image.
//!
//! flock(2), because it belongs to the open file and not to the process: two opens in one process exclude each other,
//! too, and the kernel takes it back however the process ends.

use std::fs::File;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::VolumeError;

/// Which lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Nobody else.
    Exclusive,
    /// Only others that read.
    Shared,
}

impl Lock {
    /// Takes the lock on `file` without waiting.
    ///
    /// # Errors
    /// `Busy`; `File` where the file system has no locks.
    pub fn take(self, file: File, path: &Path) -> Result<Locked, VolumeError> {
        let operation = match self {
            Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
            Lock::Shared => FlockOperation::NonBlockingLockShared,
        };
        loop {
            return match flock(&file, operation) {
                Ok(()) => Ok(Locked(file)),
                Err(Errno::INTR) => continue,
                Err(Errno::WOULDBLOCK) => Err(VolumeError::Busy { path: path.into(), holder: holder(&file) }),
                Err(error) => Err(VolumeError::File { what: "cannot lock", path: path.into(), source: error.into() }),
            };
        }
    }
}

/// A file with its lock.
#[derive(Debug)]
pub struct Locked(File);

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread has just forked has the open file, too, until it calls
        // execve(2).
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Who holds a lock on this file, as "NAME (PID)", from proc_locks(5). Nothing if the kernel does not tell, as from inside
/// another PID namespace.
pub fn holder(file: &File) -> Option<String> {
    let inode = file.metadata().ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // "1: FLOCK  ADVISORY  WRITE 708 08:01:12345 0 EOF". The device is not compared: on btrfs it is not that of stat(2).
    let pid = locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = words[..] else { return None };
        let found: u64 = place.rsplit(':').next()?.parse().ok()?;
        (found == inode).then(|| pid.parse::<u32>().ok()).flatten()
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} ({pid})", name.trim()))
}
