//! What can go wrong with a volume.

use std::io;
use std::path::PathBuf;

use crate::nbd::proto::ProtoError;

/// Why an operation on a volume failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A request reaches over the end of the volume.
    #[error("bytes {at} to {end} are outside the volume of {size} bytes")]
    OutOfBounds { at: u64, end: u64, size: u64 },
    /// The storage underneath failed.
    #[error("{what}")]
    Io { what: &'static str, source: io::Error },
    /// A file or device could not be used.
    #[error("{what} {path}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    /// An NBD peer does not follow the protocol.
    #[error("the NBD server breaks the protocol")]
    Nbd(#[from] ProtoError),
    /// An NBD server does not give its export.
    #[error("the NBD server refuses the export '{export}': {why}")]
    NbdRefused { export: String, why: String },
    /// Somebody else has the image open.
    #[error("{path} is in use{}", by(.holder))]
    Busy { path: PathBuf, holder: Option<String> },
    /// It is not what can hold a volume.
    #[error("{path} cannot be a volume's image: {why}")]
    NotAnImage { path: PathBuf, why: &'static str },
    /// The image's own structures are broken.
    #[error("{path} is damaged: {report}")]
    Damaged { path: PathBuf, report: String },
    /// A program of QEMU's failed.
    #[error("{program} failed: {report}")]
    Tool { program: String, report: String },
    /// A name that cannot name a volume.
    #[error(transparent)]
    Name(#[from] ninefold_model::InvalidName),
    /// Nothing in the pool has this name.
    #[error("there is no {kind} '{name}'")]
    NotFound { kind: &'static str, name: String },
    /// The name is taken.
    #[error("there is already a {kind} '{name}'")]
    Exists { kind: &'static str, name: String },
    /// The operation would lose data or break what depends on the object.
    #[error("{kind} '{name}': {why}")]
    Refused { kind: &'static str, name: String, why: String },
    /// A size that no volume can have.
    #[error("{size} bytes is not a volume's size: use a multiple of 512 up to 64 TiB")]
    Size { size: u64 },
}

fn by(holder: &Option<String>) -> String {
    holder.as_ref().map_or_else(String::new, |holder| format!(" by {holder}"))
}
