//! A raw image: a sparse file or a block device.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fcntl_getfl, fcntl_setfl, seek};
use rustix::io::Errno;

use super::write_out::write_out;
use super::{Image, Lock, Locked, check_bounds};
use crate::error::VolumeError;

/// A device that is in use is tried so often, with such a pause between.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// Written at a time where the storage cannot make zeros itself.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// An open raw image, locked for this process alone.
#[derive(Debug)]
pub struct RawFile {
    file: Locked,
    size: u64,
    path: PathBuf,
}

impl RawFile {
    /// Opens the regular file or block device at `path`. A symbolic link as the last part is refused, except to a block
    /// device (udev's names of LUNs are such links).
    ///
    /// # Errors
    /// `File`, `NotAnImage`, `Busy`.
    pub fn open(path: &Path) -> Result<RawFile, VolumeError> {
        let strange =
            || VolumeError::NotAnImage { path: path.into(), why: "neither a regular file nor a block device" };
        match Self::descriptor(path, OFlags::NOFOLLOW) {
            Ok(file) if is_block(&file, path)? || file.metadata().is_ok_and(|found| found.is_file()) => {
                Self::on(file, path)
            }
            Ok(_) => Err(strange()),
            Err(VolumeError::File { source, .. }) if source.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                let file = Self::descriptor(path, OFlags::empty())?;
                if is_block(&file, path)? { Self::on(file, path) } else { Err(strange()) }
            }
            // A directory; a socket, or a device without its driver.
            Err(VolumeError::File { source, .. })
                if [Errno::ISDIR, Errno::NXIO].map(|e| Some(e.raw_os_error())).contains(&source.raw_os_error()) =>
            {
                Err(strange())
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the block device at `path`, and nothing else.
    ///
    /// # Errors
    /// `File`, `NotADevice`, `Busy`.
    pub fn open_device(path: &Path) -> Result<RawFile, VolumeError> {
        let real = path.canonicalize().map_err(|source| VolumeError::File {
            what: "cannot open",
            path: path.into(),
            source,
        })?;
        let strange = || VolumeError::NotADevice { path: path.into() };
        if !path.is_absolute() || !real.starts_with("/dev") {
            return Err(strange());
        }
        let file = Self::descriptor(&real, OFlags::NOFOLLOW)?;
        if is_block(&file, path)? { Self::on(file, path) } else { Err(strange()) }
    }

    /// What is asked of it is asked of what is open, not of a name that may be another's in a moment.
    fn descriptor(path: &Path, flags: OFlags) -> Result<File, VolumeError> {
        // open(2): O_EXCL without O_CREAT fails on a device that is mounted or part of another, and is nothing to a file; by
        // O_NONBLOCK a pipe is not waited for.
        let flags = (flags | OFlags::EXCL | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        let mut tries = 0;
        loop {
            tries += 1;
            return match File::options().read(true).write(true).custom_flags(flags).open(path) {
                // A child that another thread has just forked has the device open, too, if this process had it a
                // moment ago, until it calls execve(2): nothing tells when.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < BUSY_TRIES => {
                    std::thread::sleep(BUSY_PAUSE);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    Err(VolumeError::Busy { path: path.into(), holder: None })
                }
                opened => opened.map_err(|source| VolumeError::File { what: "cannot open", path: path.into(), source }),
            };
        }
    }

    fn on(file: File, path: &Path) -> Result<RawFile, VolumeError> {
        let failed = |source| VolumeError::File { what: "cannot open", path: path.into(), source };
        let flags = fcntl_getfl(&file).map_err(|error| failed(error.into()))?;
        fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        let file = Lock::Exclusive.take(file, path)?;
        // lseek(2) gives the size of both kinds; stat(2) says 0 for a device.
        let size = seek(&*file, SeekFrom::End(0)).map_err(|error| failed(error.into()))?;
        Ok(RawFile { file, size, path: path.into() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next byte from `at` on that may differ from zero, by what the file system knows of holes.
    ///
    /// # Errors
    /// `Io`.
    pub fn next_data(&self, at: u64) -> Result<Option<u64>, VolumeError> {
        match seek(&*self.file, SeekFrom::Data(at)) {
            Ok(data) => Ok(Some(data)),
            Err(Errno::NXIO) => Ok(None),
            // Devices have no holes that could be asked for.
            Err(Errno::INVAL) => Ok((at < self.size).then_some(at)),
            Err(error) => Err(VolumeError::Io { what: "cannot find the image's data", source: error.into() }),
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Image for RawFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        check_bounds(at, into.len() as u64, self.size)?;
        self.file.read_exact_at(into, at).map_err(|source| VolumeError::Io { what: "cannot read the image", source })
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        check_bounds(at, bytes.len() as u64, self.size)?;
        self.file.write_all_at(bytes, at).map_err(|source| VolumeError::Io { what: "cannot write the image", source })
    }

    fn zero(&self, at: u64, length: u64, unmap: bool) -> Result<(), VolumeError> {
        check_bounds(at, length, self.size)?;
        if length == 0 {
            return Ok(());
        }
        let keep = FallocateFlags::KEEP_SIZE;
        let (punch, zero) = (FallocateFlags::PUNCH_HOLE | keep, FallocateFlags::ZERO_RANGE | keep);
        let ways = if unmap { &[punch, zero][..] } else { &[zero][..] };
        for way in ways {
            match retry(|| fallocate(&*self.file, *way, at, length)) {
                Ok(()) => return Ok(()),
                // INVAL: a device takes whole blocks only.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
                Err(error) => {
                    return Err(VolumeError::Io { what: "cannot zero the image", source: error.into() });
                }
            }
        }
        let (mut at, mut left) = (at, length);
        while left > 0 {
            let count = left.min(ZEROS.len() as u64);
            self.write(at, &ZEROS[..count as usize])?;
            at += count;
            left -= count;
        }
        Ok(())
    }

    fn write_out(
        &self,
        pieces: &mut dyn Iterator<Item = Range<u64>>,
        progress: &mut dyn FnMut(),
    ) -> Result<(), VolumeError> {
        for piece in pieces {
            write_out(&self.file, &piece)?;
            progress();
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        self.file.sync_data().map_err(|source| VolumeError::Io { what: "cannot flush the image", source })
    }
}

fn is_block(file: &File, path: &Path) -> Result<bool, VolumeError> {
    let found =
        file.metadata().map_err(|source| VolumeError::File { what: "cannot open", path: path.into(), source })?;
    Ok(found.file_type().is_block_device())
}

fn retry(mut call: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}
