//! A storage pool: one directory of a host with its volumes and golden images.
//!
//! ```text
//!   POOL/volumes/NAME/volume.json   what it is: see Record
//!                     image.raw     or image.qcow2; neither for an adopted block device
//!                     log           what is on its way into the image: see `log`
//!                     mixture       a note that the image is being overwritten, and by what
//!                     lost          a note that a flush of the image has failed: see `lost`
//!                     behind        a note that clients may have been told what the image has not: see `behind`
//!   POOL/images/NAME/…              a golden image: the same, never written
//!   POOL/volumes/.new-…  .gone-…    half-made or half-removed: swept away at the next open
//! ```
//!
//! An object is made in a `.new-` directory, synced, and appears under its name by one rename(2); it is removed by one
//! rename to `.gone-`. So after a crash it is there whole or not at all. Whoever works in a `.new-` directory holds a lock
//! on it, so that sweeping takes only what is left of the dead.
//!
//! A name is a DNS label, so it cannot lead out of the pool; symbolic links inside the pool are not followed.

mod convert;
mod create;
mod record;
mod resize;
mod staged;

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Refusal, VolumeError};
use crate::image::qcow2::regular;
use crate::image::{Format, Image, Lock, RawFile, Tools, holder};
use crate::log::WriteLog;
use crate::lost::Lost;
use crate::note::Note;

pub use convert::{FileFormat, Import};
pub use ninefold_model::VolumeName;
pub use record::Record;
pub use resize::CutOff;

/// Sizes are multiples of this, bytes: a sector, the least that a guest's disk can have.
pub const SECTOR: u64 = 512;
/// The file name of a volume's [`Lost`].
const LOST: &str = "lost";
/// Largest volume, bytes (64 TiB).
pub const MAX_SIZE: u64 = 64 << 40;

/// What an object in the pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A VM's disk.
    Volume,
    /// What disks are made from.
    Golden,
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Kind::Volume => "volumes",
            Kind::Golden => "images",
        }
    }

    /// For messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Volume => "volume",
            Kind::Golden => "golden image",
        }
    }

    fn not_found(self, name: &VolumeName) -> VolumeError {
        VolumeError::NotFound { kind: self.as_str(), name: name.to_string() }
    }

    fn refused(self, name: &VolumeName, why: Refusal) -> VolumeError {
        VolumeError::Refused { kind: self.as_str(), name: name.to_string(), why }
    }
}

/// An object of the pool.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Info {
    /// Its name.
    pub name: VolumeName,
    /// What its `volume.json` says.
    #[serde(flatten)]
    pub record: Record,
    /// Bytes of storage that it takes, without what a clone shares with its golden image. A device's are its size.
    pub allocated: u64,
    /// Who has it open, if anybody has and the kernel tells.
    pub holder: Option<String>,
    /// Where its bytes are.
    pub path: PathBuf,
}

/// A line of a list.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: VolumeName,
    /// What is known of it, or why nothing can be.
    pub info: Result<Info, VolumeError>,
}

/// A pool.
#[derive(Debug)]
pub struct Pool {
    root: PathBuf,
    tools: Tools,
}

impl Pool {
    /// Opens the pool at `root`; makes it if it is not there, for the own user alone. Removes what a crash left half-made.
    ///
    /// # Errors
    /// `File`.
    pub fn open(root: &Path, tools: Tools) -> Result<Pool, VolumeError> {
        let failed = |source| VolumeError::File { what: "cannot use the pool", path: root.into(), source };
        for kind in [Kind::Volume, Kind::Golden] {
            let folder = root.join(kind.folder());
            DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
            if !std::fs::symlink_metadata(&folder).map_err(failed)?.is_dir() {
                return Err(VolumeError::NotAnImage { path: folder, why: "a pool's folder is a directory" });
            }
        }
        // Links above the pool are the operator's business; from here on the path has none.
        let pool = Pool { root: root.canonicalize().map_err(failed)?, tools };
        pool.sweep()?;
        Ok(pool)
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether there is a pool at `root`; [`Pool::open`] would make one.
    pub fn is_at(root: &Path) -> bool {
        [Kind::Volume, Kind::Golden].iter().all(|kind| root.join(kind.folder()).is_dir())
    }

    /// Bytes that the file system under the pool can still take.
    ///
    /// # Errors
    /// `File`.
    pub fn free(&self) -> Result<u64, VolumeError> {
        let found = rustix::fs::statvfs(&self.root).map_err(|error| record::unreadable(&self.root)(error.into()))?;
        Ok(found.f_bavail * found.f_frsize)
    }

    /// What is known of an object.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `File`.
    pub fn info(&self, kind: Kind, name: &VolumeName) -> Result<Info, VolumeError> {
        let mut record = self.record(kind, name)?;
        let path = self.image_path(kind, name, &record);
        let file = self.look(&path, &record)?;
        record.size = record::size_of(&file, &path, &record)?;
        let allocated = match record.device {
            Some(_) => record.size,
            None => file.metadata().map_err(record::unreadable(&path))?.blocks() * 512,
        };
        Ok(Info { name: name.clone(), record, allocated, holder: holder(&file), path })
    }

    /// All objects of a kind, by name. One that cannot be read is in the list as its error.
    ///
    /// # Errors
    /// `File`.
    pub fn list(&self, kind: Kind) -> Result<Vec<Entry>, VolumeError> {
        let names = self.names(kind)?;
        Ok(names.into_iter().map(|name| Entry { info: self.info(kind, &name), name }).collect())
    }

    /// Opens a volume for reading and writing, for this process alone.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `Damaged`, and what [`crate::open`] can say.
    pub fn open_volume(&self, name: &VolumeName) -> Result<Box<dyn Image>, VolumeError> {
        self.open_logged(name).map(|(image, _)| image)
    }

    /// Opens a volume with its write log. What a crash left in the log is written into the image first.
    ///
    /// # Errors
    /// As [`Pool::open_volume`]; `Io` if the image or the log cannot be written.
    pub fn open_logged(&self, name: &VolumeName) -> Result<(Box<dyn Image>, WriteLog), VolumeError> {
        let record = self.record(Kind::Volume, name)?;
        let path = self.image_path(Kind::Volume, name, &record);
        let image: Box<dyn Image> = match &record.device {
            // Whatever else a record may name as its device is not opened, and not written.
            Some(device) => Box::new(RawFile::open_device(device)?),
            None => crate::image::open(&path, record.format, &self.tools)?,
        };
        // Whoever has the image has the log.
        let mut log = WriteLog::open(&self.log_path(name))?;
        let epochs = log.recover(&self.lost(name).over(&*image))?;
        if epochs > 0 {
            tracing::info!(volume = %name, epochs, "the image was brought up to date from its write log");
        }
        Ok((image, log))
    }

    /// Brings a volume's image up to date if a crash left something in its log.
    fn recover(&self, name: &VolumeName) -> Result<(), VolumeError> {
        match std::fs::symlink_metadata(self.log_path(name)) {
            Ok(found) if found.len() > 0 => self.open_logged(name).map(drop),
            _ => Ok(()),
        }
    }

    /// The note in a volume that its image is a mixture, of what it was and of what it was to become, and by what. Whoever
    /// overwrites a volume makes it before and removes it when he is done.
    pub fn mixture(&self, name: &VolumeName) -> Note {
        Note::at(self.directory(Kind::Volume, name).join("mixture"))
    }

    /// The note in a volume that a flush of its image has failed.
    pub fn lost(&self, name: &VolumeName) -> Lost {
        Lost::at(self.directory(Kind::Volume, name).join(LOST))
    }

    /// The [note](crate::behind) in a volume that its image may be behind what clients were told.
    pub fn behind(&self, name: &VolumeName) -> Note {
        Note::at(self.directory(Kind::Volume, name).join("behind"))
    }

    fn log_path(&self, name: &VolumeName) -> PathBuf {
        self.directory(Kind::Volume, name).join("log")
    }

    /// Removes an object. An adopted device is only let go of; its bytes stay.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while it is open; `Refused` while a clone depends on it.
    pub fn remove(&self, kind: Kind, name: &VolumeName) -> Result<(), VolumeError> {
        // What is missing or broken in it must not keep an object from being removed, as long as nobody has it open.
        let paths = match self.record(kind, name) {
            Ok(record) => vec![self.image_path(kind, name, &record)],
            Err(VolumeError::Damaged { .. } | VolumeError::File { .. }) => {
                [Format::Raw, Format::Qcow2].map(|format| self.directory(kind, name).join(image_file(format))).into()
            }
            Err(error) => return Err(error),
        };
        // The bytes of an adopted device stay: with what is on its way there, unless it is gone.
        if kind == Kind::Volume && self.record(kind, name).is_ok_and(|record| record.device.is_some()) {
            match self.recover(name) {
                Err(VolumeError::File { .. } | VolumeError::NotAnImage { .. } | VolumeError::NotADevice { .. })
                | Ok(()) => {}
                Err(error) => return Err(error),
            }
        }
        let mut held = Vec::new();
        for path in &paths {
            // What else has its name nobody can have open as a volume.
            let file = if path.starts_with(&self.root) { regular(path) } else { record::open_device(path) };
            if let Ok(file) = file {
                held.push(Lock::Exclusive.take(file, path)?);
            }
        }
        if kind == Kind::Golden {
            // With the lock: whoever makes a clone holds it shared until the clone can be seen here.
            for volume in self.names(Kind::Volume)? {
                match self.record(Kind::Volume, &volume) {
                    Ok(record) if record.depends_on(name) => {
                        return Err(kind.refused(name, Refusal::HasClone { clone: volume }));
                    }
                    Err(VolumeError::Damaged { .. } | VolumeError::File { .. }) => {
                        return Err(kind.refused(name, Refusal::MayHaveClone { volume }));
                    }
                    _ => {}
                }
            }
        }
        self.discard(kind, name)
    }

    fn folder(&self, kind: Kind) -> PathBuf {
        self.root.join(kind.folder())
    }

    fn directory(&self, kind: Kind, name: &VolumeName) -> PathBuf {
        self.folder(kind).join(name.as_str())
    }

    fn record(&self, kind: Kind, name: &VolumeName) -> Result<Record, VolumeError> {
        let directory = self.directory(kind, name);
        match std::fs::symlink_metadata(&directory) {
            Ok(found) if found.is_dir() => Record::load(&directory),
            Ok(_) => Err(VolumeError::NotAnImage { path: directory, why: "not a directory of the pool" }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(kind.not_found(name)),
            Err(source) => Err(VolumeError::File { what: "cannot read", path: directory, source }),
        }
    }

    fn image_path(&self, kind: Kind, name: &VolumeName, record: &Record) -> PathBuf {
        match &record.device {
            Some(device) => device.clone(),
            None => self.directory(kind, name).join(image_file(record.format)),
        }
    }

    /// Opens an object's bytes to look at them.
    fn look(&self, path: &Path, record: &Record) -> Result<File, VolumeError> {
        if record.device.is_some() {
            return record::open_device(path);
        }
        regular(path)
    }

    fn names(&self, kind: Kind) -> Result<Vec<VolumeName>, VolumeError> {
        let folder = self.folder(kind);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(record::unreadable(&folder))? {
            let entry = entry.map_err(record::unreadable(&folder))?;
            // What has no volume's name is not ours: drafts, an operator's notes.
            names.extend(entry.file_name().to_str().and_then(|name| name.parse::<VolumeName>().ok()));
        }
        names.sort();
        Ok(names)
    }
}

fn image_file(format: Format) -> &'static str {
    match format {
        Format::Raw => "image.raw",
        Format::Qcow2 => "image.qcow2",
    }
}

fn check_size(size: u64) -> Result<(), VolumeError> {
    if size == 0 || !size.is_multiple_of(SECTOR) || size > MAX_SIZE {
        return Err(VolumeError::Size { size });
    }
    Ok(())
}
