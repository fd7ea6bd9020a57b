//! `volume.json`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom, seek};
use serde::{Deserialize, Serialize};

use super::VolumeName;
use crate::error::VolumeError;
use crate::image::Format;
use crate::image::qcow2::{regular, virtual_size};

/// The file's name.
const FILE: &str = "volume.json";
/// A longer file is not ours, bytes.
const MAX: u64 = 64 << 10;

/// What is kept about a volume or golden image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// 128 random bits, 32 hexadecimal digits. A copy on another host has the same.
    pub id: String,
    /// Bytes. The image itself has the last word: a crash may come between growing it and noting that here.
    pub size: u64,
    /// How the image is laid out; it is never guessed.
    pub format: Format,
    /// Seconds since 1970.
    pub created_at: u64,
    /// The golden image that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<VolumeName>,
    /// An adopted block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PathBuf>,
}

impl Record {
    pub(super) fn new(size: u64, format: Format) -> Result<Record, VolumeError> {
        let id = crate::random::hex128()
            .map_err(|source| VolumeError::Io { what: "the kernel gives no random numbers", source })?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Record { id, size, format, created_at: now.as_secs(), golden: None, device: None })
    }

    /// Whether the bytes of the golden image `name` are needed to read this volume. A raw volume is a copy.
    pub fn depends_on(&self, name: &VolumeName) -> bool {
        self.format == Format::Qcow2 && self.golden.as_ref() == Some(name)
    }

    pub(super) fn load(directory: &Path) -> Result<Record, VolumeError> {
        let path = directory.join(FILE);
        let damaged = |report| VolumeError::Damaged { path: path.clone(), report };
        let file = match regular(&path) {
            Err(VolumeError::NotAnImage { why, .. }) => return Err(damaged(why.into())),
            other => other?,
        };
        let mut text = Vec::new();
        file.take(MAX + 1).read_to_end(&mut text).map_err(unreadable(&path))?;
        if text.len() as u64 > MAX {
            return Err(damaged(format!("it is longer than {MAX} bytes")));
        }
        let record: Record = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if record.device.is_some() && record.format != Format::Raw {
            return Err(damaged("a device is raw".into()));
        }
        if record.device.as_ref().is_some_and(|device| !device.is_absolute()) {
            return Err(damaged("a device has an absolute path".into()));
        }
        Ok(record)
    }

    /// Writes it, atomically and durably.
    pub(super) fn store(&self, directory: &Path) -> Result<(), VolumeError> {
        let (path, staged) = (directory.join(FILE), directory.join(".volume.json.new"));
        let failed = |source| VolumeError::File { what: "cannot write", path: path.clone(), source };
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        ninefold_fault::point("pool.record").map_err(failed)?;
        let mut file = File::create(&staged).map_err(failed)?;
        ninefold_fault::point("pool.record-write").map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        ninefold_fault::point("pool.record-sync").map_err(failed)?;
        file.sync_all().map_err(failed)?;
        ninefold_fault::point("pool.record-name").map_err(failed)?;
        std::fs::rename(&staged, &path).map_err(failed)?;
        sync(directory)
    }
}

/// Makes the entries of a directory, or the bytes of a file, durable.
pub(super) fn sync(path: &Path) -> Result<(), VolumeError> {
    ninefold_fault::point("pool.sync").and_then(|()| File::open(path)?.sync_all()).map_err(|source| VolumeError::File {
        what: "cannot sync",
        path: path.into(),
        source,
    })
}

pub(super) fn unreadable(path: &Path) -> impl Fn(io::Error) -> VolumeError + use<'_> {
    move |source| VolumeError::File { what: "cannot read", path: path.into(), source }
}

/// Opens a block device under /dev to look at it.
pub(super) fn open_device(path: &Path) -> Result<File, VolumeError> {
    let real = path.canonicalize().map_err(unreadable(path))?;
    let strange = || VolumeError::NotADevice { path: path.into() };
    if !path.is_absolute() || !real.starts_with("/dev") {
        return Err(strange());
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(&real).map_err(unreadable(path))?;
    let is_block = file.metadata().map_err(unreadable(path))?.file_type().is_block_device();
    if is_block { Ok(file) } else { Err(strange()) }
}

/// The size that an image has, bytes.
pub(super) fn size_of(file: &File, path: &Path, record: &Record) -> Result<u64, VolumeError> {
    match record.format {
        Format::Raw => seek(file, SeekFrom::End(0)).map_err(|error| unreadable(path)(error.into())),
        Format::Qcow2 => virtual_size(file, path),
    }
}
