//! Writing out a part of what the kernel's cache has of a file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::error::VolumeError;

/// Writes these bytes of the file out and waits for it. Says nothing of the file's size and place, nor of the disk's own cache: that
/// is a flush's to do.
///
/// # Errors
/// `Io`. The kernel reports an error of the file once to each descriptor, here or at a flush: either means that what was written
/// since the last flush may be lost (sync_file_range(2), fsync(2)).
pub(super) fn write_out(file: &File, bytes: &Range<u64>) -> Result<(), VolumeError> {
    let failed = |source| VolumeError::Io { what: "cannot write out the image", source };
    let (Ok(at), Ok(length)) = (i64::try_from(bytes.start), i64::try_from(bytes.end - bytes.start)) else {
        return Ok(());
    };
    if length == 0 {
        // It would stand for all up to the end.
        return Ok(());
    }
    let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    loop {
        // SAFETY: the call reads and writes no memory of this process; the descriptor is open as long as `file` is.
        if unsafe { libc::sync_file_range(file.as_raw_fd(), at, length, how) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // A file that has nothing to write out, or a system that cannot do it in parts.
            Some(libc::ESPIPE | libc::ENOSYS | libc::EINVAL) => return Ok(()),
            _ => return Err(failed(error)),
        }
    }
}
