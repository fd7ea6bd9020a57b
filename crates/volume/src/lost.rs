//! The note in a volume that a flush of its image has failed, and that what it was to make durable has not been written again.
//!
//! What is [lost](crate::unsynced) only the process knows that wrote it. The kernel's cache, which outlives the process, has what
//! was written and takes it for written out: the next process would find it there, compare it as equal, and flush successfully.
//! So this note lies in the volume from before anybody hears of the failure until nothing is lost any more:
//!
//! ```text
//!   a flush fails ──► note ──► the failure is told ──► … ──► all of it is written again, and a flush succeeds ──► no note
//!                      └── another process, the same kernel: all of the volume counts as lost
//!                      └── another kernel: its cache has nothing but what the disk has; what is read is true
//! ```

use std::path::{Path, PathBuf};

use crate::error::VolumeError;
use crate::image::Image;
use crate::note::Note;

/// Another one each time a kernel starts. Source: Linux, Documentation/admin-guide/sysctl/kernel.rst, "random".
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The length of such a name, bytes.
const BOOT_ID_LENGTH: usize = 36;

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Lost(Note);

impl Lost {
    /// The note at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self(Note::at(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Whether it is there, whichever kernel's cache it is about.
    pub fn is_there(&self) -> bool {
        self.0.found().is_some()
    }

    /// Whether what is read of the image may not be what the disk has: the note is of the kernel that runs. One that does not say of
    /// which it is counts.
    pub fn is_true(&self) -> bool {
        let Some(noted) = self.0.found() else { return false };
        noted.len() != BOOT_ID_LENGTH || boot_id().is_none_or(|running| running == noted)
    }

    /// Writes it. Durable when this returns.
    ///
    /// # Errors
    /// Those of the file system: it may be there or not.
    pub fn write(&self) -> Result<(), VolumeError> {
        self.0.write(&boot_id().unwrap_or_default()).map_err(|source| self.failed("cannot write the note", source))
    }

    /// Removes it, durably.
    ///
    /// # Errors
    /// Those of the file system: it may be there or not.
    pub fn remove(&self) -> Result<(), VolumeError> {
        self.0.remove().map_err(|source| self.failed("cannot remove the note", source))
    }

    fn failed(&self, what: &'static str, source: std::io::Error) -> VolumeError {
        VolumeError::File { what, path: self.path().into(), source }
    }

    /// `image`, whose flushes that fail are noted: for who writes to it before anybody knows what is lost.
    pub fn over<'a>(&'a self, image: &'a dyn Image) -> impl Image + 'a {
        Noting { image, lost: self }
    }
}

fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string(BOOT_ID).ok()?;
    let id = text.trim();
    (id.len() == BOOT_ID_LENGTH).then(|| id.to_owned())
}

#[derive(Debug)]
struct Noting<'a> {
    image: &'a dyn Image,
    lost: &'a Lost,
}

impl Image for Noting<'_> {
    fn size(&self) -> u64 {
        self.image.size()
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError> {
        self.image.read(at, into)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), VolumeError> {
        self.image.write(at, bytes)
    }

    fn zero(&self, at: u64, length: u64, unmap: bool) -> Result<(), VolumeError> {
        self.image.zero(at, length, unmap)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        self.image.flush().inspect_err(|_| {
            if let Err(error) = self.lost.write() {
                tracing::error!(%error, "that a flush has failed cannot be noted");
            }
        })
    }

    fn has_structures(&self) -> bool {
        self.image.has_structures()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_about_the_cache_of_one_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let lost = Lost::at(dir.path().join("lost"));
        assert!(!lost.is_there() && !lost.is_true());
        lost.write().unwrap();
        assert!(lost.is_there() && lost.is_true());
        std::fs::write(lost.path(), "01234567-89ab-cdef-0123-456789abcdef").unwrap();
        assert!(lost.is_there() && !lost.is_true(), "the host has been started anew");
        // As a full disk or a loss of power leaves it.
        for text in ["", "0123", &"x".repeat(1000)] {
            std::fs::write(lost.path(), text).unwrap();
            assert!(lost.is_true(), "{text}");
        }
        lost.remove().unwrap();
        assert!(!lost.is_there());
    }
}
