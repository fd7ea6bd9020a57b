//! What a volume's bytes are kept in.

use std::fmt::Debug;

use crate::error::VolumeError;

/// The bytes of a volume, addressed from 0. All calls block; they may come from several threads at a time.
///
/// Overlapping writes that are under way at the same time may end in either order; a caller that cares orders them.
pub trait Image: Send + Sync + Debug {
    /// Its size, bytes. It does not change while it is open.
    fn size(&self) -> u64;

    /// Reads `into.len()` bytes from byte `at` on.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError>;

    /// Writes `bytes` from byte `at` on. Durable only after [`Image::flush`].
    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError>;

    /// Makes `length` bytes from `at` on read as zero. With `unmap` their storage may be given back. A guest's discard
    /// is this too: on every host the bytes must be the same afterwards, so "anything may be read" will not do.
    fn zero(&self, at: u64, length: u64, unmap: bool) -> Result<(), VolumeError>;

    /// Makes everything written so far durable: it is there after a loss of power.
    fn flush(&self) -> Result<(), VolumeError>;
}
