//! What can go wrong with a volume.

use std::io;

/// Why an operation on a volume failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A request reaches over the end of the volume.
    #[error("bytes {at} to {end} are outside the volume of {size} bytes")]
    OutOfBounds { at: u64, end: u64, size: u64 },
    /// The storage underneath failed.
    #[error("{what}")]
    Io { what: &'static str, source: io::Error },
}
