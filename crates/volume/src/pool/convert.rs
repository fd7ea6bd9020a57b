//! Images from outside, and to outside.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde_json::Value;

use super::record::{Record, sync};
use super::{Kind, Pool, VolumeName, check_size};
use crate::error::{Refusal, VolumeError};
use crate::image::qcow2::{check, lock, utf8};
use crate::image::{Format, Lock, Progress, UnknownFormat};
use crate::random;

/// What can be imported and exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
}

impl FileFormat {
    /// All of them.
    pub const ALL: [FileFormat; 5] =
        [FileFormat::Raw, FileFormat::Qcow2, FileFormat::Vmdk, FileFormat::Vdi, FileFormat::Vhdx];

    /// As QEMU calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            FileFormat::Raw => "raw",
            FileFormat::Qcow2 => "qcow2",
            FileFormat::Vmdk => "vmdk",
            FileFormat::Vdi => "vdi",
            FileFormat::Vhdx => "vhdx",
        }
    }
}

impl fmt::Display for FileFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for FileFormat {
    type Err = UnknownFormat;

    fn from_str(s: &str) -> Result<Self, UnknownFormat> {
        Self::ALL.into_iter().find(|format| format.as_str() == s).ok_or_else(|| UnknownFormat::new(s))
    }
}

/// What is to be imported, and as what.
#[derive(Debug, Clone, Copy)]
pub struct Import<'a> {
    /// The file.
    pub source: &'a Path,
    /// The file's format, which is never guessed from its content.
    pub file_format: FileFormat,
    /// The new object's.
    pub format: Format,
    /// The new object's size, bytes; `None`: the image's own. What is beyond the image is zero.
    pub size: Option<u64>,
}

impl Pool {
    /// Makes a volume or golden image of a file.
    ///
    /// # Errors
    /// `Refused` if the file leads to further files, or is larger than the size asked for; `Exists`, `Size`, `Damaged`,
    /// `Tool`, `File`, `NotAnImage`, `Cancelled`.
    pub fn import(
        &self,
        kind: Kind,
        name: &VolumeName,
        what: &Import<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<(), VolumeError> {
        let (from, format) = (what.file_format, what.format);
        let source = &what.source.canonicalize().map_err(super::record::unreadable(what.source))?;
        let _held = lock(source, Lock::Shared)?;
        let own = self.alone(kind, name, source, from)?;
        let size = what.size.unwrap_or(own);
        check_size(size)?;
        if size < own {
            return Err(kind.refused(name, Refusal::ImageIsLarger { has: own, wanted: size }));
        }
        let draft = self.draft(kind, name)?;
        let image = draft.image(format);
        let args = ["convert", "-p", "-f", from.as_str(), "-O", format.as_str(), "--", utf8(source)?, utf8(&image)?];
        self.tools.img_with_progress(args, progress)?;
        if size > own {
            self.set_image_size(&image, format, size)?;
        }
        draft.publish(&Record::new(size, format)?)
    }

    /// Writes a volume or golden image to the new file `target`.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `File` (also if `target` is there already), `Tool`, `Cancelled`; `Refused` if `target` is in the
    /// pool.
    pub fn export(
        &self,
        kind: Kind,
        name: &VolumeName,
        target: &Path,
        format: FileFormat,
        progress: &mut Progress<'_>,
    ) -> Result<(), VolumeError> {
        let record = self.record(kind, name)?;
        if kind == Kind::Volume {
            self.recover(name)?;
        }
        let path = self.image_path(kind, name, &record);
        let _held = Lock::Shared.take(self.look(&path, &record)?, &path)?;
        if record.format == Format::Qcow2 {
            check(&path, &self.tools)?;
        }
        let failed = |source| VolumeError::File { what: "cannot write", path: target.into(), source };
        if std::fs::symlink_metadata(target).is_ok() {
            return Err(failed(Errno::EXIST.into()));
        }
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = folder.canonicalize().map_err(failed)?;
        if folder.starts_with(&self.root) {
            return Err(kind.refused(name, Refusal::IntoPool));
        }
        let draft = Part(folder.join(format!(".ninefold-{}", random::hex128().map_err(failed)?)));
        let args = ["convert", "-p", "-f", record.format.as_str(), "-O", format.as_str(), "--"];
        let args = args.into_iter().chain([utf8(&path)?, utf8(&draft.0)?]);
        self.tools.img_with_progress(args, progress)?;
        sync(&draft.0)?;
        renameat_with(CWD, &draft.0, CWD, target, RenameFlags::NOREPLACE).map_err(|error| failed(error.into()))?;
        sync(&folder)
    }

    /// Sees to it that an image consists of its own file alone: a stranger's image may name any file of this host as its
    /// backing file, data file or extent, and converting it would copy that file into the volume. Its size.
    fn alone(&self, kind: Kind, name: &VolumeName, path: &Path, format: FileFormat) -> Result<u64, VolumeError> {
        if format == FileFormat::Raw {
            let length = File::open(path).and_then(|file| file.metadata()).map_err(super::record::unreadable(path))?;
            return Ok(length.len().next_multiple_of(super::SECTOR));
        }
        let args = ["info", "-f", format.as_str(), "--output=json", "--", utf8(path)?];
        let damaged = |report: &str| VolumeError::Damaged { path: path.into(), report: report.into() };
        let info = match self.tools.img(args) {
            Ok(info) => info,
            Err(VolumeError::Tool { report, .. }) => return Err(damaged(&report)),
            Err(error) => return Err(error),
        };
        let info: Value = serde_json::from_slice(&info).map_err(|_| damaged("qemu-img cannot describe it"))?;
        let leads_on = |what: &'static str| Err(kind.refused(name, Refusal::LeadsOn { path: path.into(), what }));
        if info.get("backing-filename").is_some() || info.get("full-backing-filename").is_some() {
            return leads_on("a backing file");
        }
        let data = &info["format-specific"]["data"];
        if data.get("data-file").is_some() {
            return leads_on("a data file");
        }
        let extents = data.get("extents").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let own = utf8(path)?;
        if extents.iter().any(|extent| extent["filename"].as_str() != Some(own)) {
            return leads_on("extents");
        }
        if format == FileFormat::Qcow2 {
            check(path, &self.tools)?;
        }
        info["virtual-size"].as_u64().ok_or_else(|| damaged("qemu-img gives it no size"))
    }
}

/// A file that goes unless it is renamed.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
