//! How a volume's bytes are read and written, whatever they are kept in.

use std::fmt::Debug;
use std::ops::Range;

use crate::error::VolumeError;

/// The bytes of a volume, addressed from 0. All calls block; they may come from several threads at a time.
///
/// Overlapping writes that are under way at the same time may end in either order; a caller that cares orders them.
pub trait Image: Send + Sync + Debug {
    /// Its size, bytes. It does not change while it is open.
    fn size(&self) -> u64;

    /// Reads `into.len()` bytes from byte `at` on.
    ///
    /// # Errors
    /// The bytes reach over the end (`OutOfBounds`), or the storage cannot be read.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError>;

    /// Writes `bytes` from byte `at` on. Durable only after [`Image::flush`].
    ///
    /// # Errors
    /// The bytes reach over the end (`OutOfBounds`), or the storage cannot be written or has no room left. Some of the bytes may
    /// have been written.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError>;

    /// Makes `length` bytes from `at` on read as zero. With `unmap` their storage may be given back. A guest's discard
    /// is this too: on every host the bytes must be the same afterwards, so "anything may be read" will not do.
    ///
    /// # Errors
    /// It fails as [`Image::write`] does.
    fn zero(&self, at: u64, length: u64, unmap: bool) -> Result<(), VolumeError>;

    /// Makes everything written so far durable: it is there after a loss of power.
    ///
    /// # Errors
    /// The storage has not taken all of it. What was written since the last flush that succeeded may be lost, also when a later
    /// one succeeds.
    fn flush(&self) -> Result<(), VolumeError>;

    /// Writes out what the cache still has of these pieces, one after the other, so that a flush which follows has little left to
    /// do; calls `progress` after each of them.
    ///
    /// # Errors
    /// The storage has not taken a piece. That means what an error of [`Image::flush`] means.
    fn write_out(
        &self,
        pieces: &mut dyn Iterator<Item = Range<u64>>,
        progress: &mut dyn FnMut(),
    ) -> Result<(), VolumeError> {
        let _ = (pieces, progress);
        Ok(())
    }

    /// Whether it has structures beside the volume's bytes. Who writes all of these again does not write the structures again.
    fn has_structures(&self) -> bool {
        false
    }
}

/// Refuses what reaches over the end.
///
/// # Errors
/// `OutOfBounds`.
pub fn check_bounds(at: u64, length: u64, size: u64) -> Result<(), VolumeError> {
    match at.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        end => Err(VolumeError::OutOfBounds { at, end: end.unwrap_or(u64::MAX), size }),
    }
}
