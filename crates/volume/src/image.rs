//! What a volume's bytes are kept in.
//!
//! * [`RawFile`]: a sparse file or a block device. * [`Qcow2`]: a qcow2 file, by way of QEMU's own storage daemon.
//!
//! # Why the format is given and never guessed
//!
//! A guest writes every byte of a raw image, its first ones too. A guest that writes a qcow2 header there, naming
//! `/etc/shadow` as the backing file, would read that file through the next program that looks at the image and believes
//! what it sees (CVE-2008-2004, CVE-2024-4467 and others of the kind). So the format comes from the operator and is
//! kept beside the image, and every program that is called here is told it.

mod access;
mod child;
mod daemon;
mod lock;
pub(crate) mod qcow2;
mod raw;
mod tools;
mod write_out;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::VolumeError;
pub use access::{Image, check_bounds};
pub use lock::{Lock, Locked, holder};
pub use qcow2::Qcow2;
pub use raw::RawFile;
pub(crate) use tools::{ADDRESS_SPACE, INPUT, short};
pub use tools::{Progress, Tools};

/// How an image is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's, with a backing file if it is a clone.
    Qcow2,
}

impl Format {
    /// As QEMU calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a format here")]
pub struct UnknownFormat(String);

impl UnknownFormat {
    /// A hostile word can be long; its beginning is kept.
    pub(crate) fn new(word: &str) -> UnknownFormat {
        UnknownFormat(word.chars().take(32).collect())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(s: &str) -> Result<Self, UnknownFormat> {
        match s {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            _ => Err(UnknownFormat::new(s)),
        }
    }
}

/// Opens the image at `path` for reading and writing, for this process alone.
///
/// # Errors
/// `Busy`, `Damaged`, `NotAnImage`, `File`, and what starting the storage daemon can say.
pub fn open(path: &Path, format: Format, tools: &Tools) -> Result<Box<dyn Image>, VolumeError> {
    Ok(match format {
        Format::Raw => Box::new(RawFile::open(path)?),
        Format::Qcow2 => Box::new(Qcow2::open(path, tools)?),
    })
}
