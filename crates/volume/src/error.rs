//! What can go wrong with a volume.

use std::io;
use std::path::PathBuf;

use ninefold_model::VolumeName;

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
    /// Its content is hidden from QEMU without a key.
    #[error("{path} is encrypted")]
    Encrypted { path: PathBuf },
    /// The image's own structures are broken.
    #[error("{path} is damaged: {report}")]
    Damaged { path: PathBuf, report: String },
    /// A file longer than any image.
    #[error("{path} has {length} bytes, an image has at most {most}")]
    TooLong { path: PathBuf, length: u64, most: u64 },
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
    Refused { kind: &'static str, name: String, why: Refusal },
    /// Only a whole block device can be adopted.
    #[error("{path} is not a block device under /dev")]
    NotADevice { path: PathBuf },
    /// Whoever asked for it wants it no more.
    #[error("cancelled: nothing was changed")]
    Cancelled,
    /// A size that no volume can have.
    #[error("{size} bytes is not a volume's size: use a multiple of 512 up to 64 TiB")]
    Size { size: u64 },
}

/// Why a pool does not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Sizes in bytes.
    #[error("it has {has} bytes and cannot grow to {wanted}")]
    NotLarger { has: u64, wanted: u64 },
    #[error("it has {has} bytes and cannot shrink to {wanted}")]
    NotSmaller { has: u64, wanted: u64 },
    #[error("the image has {has} bytes, which {wanted} cannot hold")]
    ImageIsLarger { has: u64, wanted: u64 },
    #[error("it would take {needs} bytes, {has} are free in the pool")]
    NoRoom { needs: u64, has: u64 },
    #[error("there is data at byte {at}, behind the new end")]
    DataBehindEnd { at: u64 },
    /// Its storage decides.
    #[error("a device has the size that it has")]
    SizeOfDevice,
    #[error("it is this device already")]
    SameDevice,
    #[error("the volume '{clone}' is a clone of it")]
    HasClone { clone: VolumeName },
    #[error("the volume '{volume}' is damaged and may be a clone")]
    MayHaveClone { volume: VolumeName },
    /// A stranger's image could name any file of this host.
    #[error("{path} has {what} of its own")]
    LeadsOn { path: PathBuf, what: &'static str },
    /// Neither what it was nor what it was to become.
    #[error("it is a mixture: {by} was cut off")]
    Mixture { by: String },
    /// What is read may not be what its disk has.
    #[error("a flush of it has failed: what is read may not be what its disk has ({} says so)", .note.display())]
    Lost { note: PathBuf },
    #[error("it is exported to a file outside the pool")]
    IntoPool,
}

impl VolumeError {
    /// Whether a file system (or thin device) had no room left.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            VolumeError::Io { source, .. } | VolumeError::File { source, .. } => {
                source.kind() == io::ErrorKind::StorageFull
            }
            // QEMU's programs are run with LC_ALL=C: this is strerror(ENOSPC).
            VolumeError::Tool { report, .. } => report.contains("No space left on device"),
            _ => false,
        }
    }
}

fn by(holder: &Option<String>) -> String {
    holder.as_ref().map_or_else(String::new, |holder| format!(" by {holder}"))
}
