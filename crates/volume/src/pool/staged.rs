//! Objects on their way into the pool and out of it.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use super::record::{Record, sync};
use super::{Kind, Pool, VolumeName, image_file};
use crate::error::VolumeError;
use crate::image::Format;
use crate::random;

const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// An object that is being made. Dropped before [`Staged::publish`] it leaves nothing.
pub(super) struct Staged {
    folder: PathBuf,
    directory: PathBuf,
    kind: Kind,
    name: VolumeName,
    /// Tells a sweeper that somebody still works here.
    _lock: File,
    published: bool,
}

impl Staged {
    pub(super) fn image(&self, format: Format) -> PathBuf {
        self.directory.join(image_file(format))
    }

    /// A file that is needed only while the object is made; to be removed before it is published.
    pub(super) fn beside(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }

    /// Makes the object durable and visible.
    pub(super) fn publish(mut self, record: &Record) -> Result<(), VolumeError> {
        if record.device.is_none() {
            sync(&self.image(record.format))?;
        }
        record.store(&self.directory)?;
        let place = self.folder.join(self.name.as_str());
        ninefold_fault::point("pool.publish").map_err(|source| VolumeError::File {
            what: "cannot make",
            path: place.clone(),
            source,
        })?;
        match renameat_with(CWD, &self.directory, CWD, &place, RenameFlags::NOREPLACE) {
            Ok(()) => self.published = true,
            Err(Errno::EXIST) => return Err(exists(self.kind, &self.name)),
            Err(error) => return Err(VolumeError::File { what: "cannot make", path: place, source: error.into() }),
        }
        sync(&self.folder)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

impl Pool {
    pub(super) fn staged(&self, kind: Kind, name: &VolumeName) -> Result<Staged, VolumeError> {
        let folder = self.folder(kind);
        // Told early; the rename decides.
        if std::fs::symlink_metadata(folder.join(name.as_str())).is_ok() {
            return Err(exists(kind, name));
        }
        let directory = folder.join(hidden(NEW, name)?);
        let failed = |source| VolumeError::File { what: "cannot make", path: directory.clone(), source };
        // A sweeper must not come between making the directory and locking it.
        let _gate = self.gate(FlockOperation::LockShared)?;
        ninefold_fault::point("pool.staged").map_err(failed)?;
        DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        ninefold_fault::point("pool.lock").map_err(failed)?;
        let lock = File::open(&directory).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
        Ok(Staged { folder, directory, kind, name: name.clone(), _lock: lock, published: false })
    }

    /// Removes an object, whole or not at all.
    pub(super) fn discard(&self, kind: Kind, name: &VolumeName) -> Result<(), VolumeError> {
        let folder = self.folder(kind);
        let (from, to) = (folder.join(name.as_str()), folder.join(hidden(GONE, name)?));
        let failed = |source| VolumeError::File { what: "cannot remove", path: from.clone(), source };
        ninefold_fault::point("pool.remove").map_err(failed)?;
        std::fs::rename(&from, &to).map_err(failed)?;
        sync(&folder)?;
        ninefold_fault::point("pool.clear").map_err(failed)?;
        std::fs::remove_dir_all(&to).map_err(failed)
    }

    /// Removes what is left of operations that were cut off.
    pub(super) fn sweep(&self) -> Result<(), VolumeError> {
        let _gate = self.gate(FlockOperation::LockExclusive)?;
        for kind in [Kind::Volume, Kind::Golden] {
            let folder = self.folder(kind);
            let failed = |source| VolumeError::File { what: "cannot clean", path: folder.clone(), source };
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let is_ours = name.starts_with(NEW) || name.starts_with(GONE);
                if is_ours && entry.file_type().map_err(failed)?.is_dir() && is_abandoned(&entry.path()) {
                    tracing::info!(path = %entry.path().display(), "removing what was left half-made");
                    match std::fs::remove_dir_all(entry.path()) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn gate(&self, operation: FlockOperation) -> Result<File, VolumeError> {
        let path = self.root.join(".lock");
        let failed = |source| VolumeError::File { what: "cannot lock", path: path.clone(), source };
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(file),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

fn is_abandoned(directory: &Path) -> bool {
    File::open(directory).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok())
}

fn hidden(prefix: &str, name: &VolumeName) -> Result<String, VolumeError> {
    let random =
        random::hex128().map_err(|source| VolumeError::Io { what: "the kernel gives no random numbers", source })?;
    Ok(format!("{prefix}{name}-{random}"))
}

fn exists(kind: Kind, name: &VolumeName) -> VolumeError {
    VolumeError::Exists { kind: kind.as_str(), name: name.to_string() }
}
