//! Images from outside, and to outside.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde_json::Value;

use super::create::copy_raw;
use super::record::{Record, size_of, sync};
use super::staged::Staged;
use super::{Kind, MAX_SIZE, Pool, VolumeName, check_size};
use crate::error::{Refusal, VolumeError};
use crate::image::qcow2::{check, check_strange, lock, utf8};
use crate::image::{ADDRESS_SPACE, Format, INPUT, Lock, Progress, UnknownFormat, short};
use crate::random;

/// Longest file that is imported, bytes: the largest volume with what a format has beside.
const MAX_FILE: u64 = MAX_SIZE + MAX_SIZE / 16;

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
    /// Makes a volume or golden image of a file. The file may be anybody's, and may be changed meanwhile: what is looked at is
    /// what is converted. For that a file that is not raw is copied into the pool first, for as long as this lasts (where the
    /// file system shares blocks, at once).
    ///
    /// # Errors
    /// `Refused` if the file leads to further files, or is larger than the size asked for; `Exists`, `Size`, `TooLong`,
    /// `Damaged`, `Tool`, `File`, `NotAnImage`, `Cancelled`.
    pub fn import(
        &self,
        kind: Kind,
        name: &VolumeName,
        what: &Import<'_>,
        progress: &mut Progress<'_>,
    ) -> Result<(), VolumeError> {
        let format = what.format;
        let source = &what.source.canonicalize().map_err(super::record::unreadable(what.source))?;
        // Everything else is done with what is open here: its name may be another file's in a moment.
        let file = lock(source, Lock::Shared)?;
        let staged = self.staged(kind, name)?;
        let image = staged.image(format);
        let target = [format.as_str(), "--"];
        let fits = |own| self.fits(kind, name, what, own);
        let (own, size) = if what.file_format == FileFormat::Raw {
            // Nothing in it has a meaning here: whoever changes it meanwhile changes bytes of the volume.
            let own = length(&file, source)?.next_multiple_of(super::SECTOR);
            let size = fits(own)?;
            let input = file.try_clone().map_err(super::record::unreadable(source))?;
            let args = ["-f", "raw", "-O"].into_iter().chain(target).chain([INPUT, utf8(&image)?]);
            self.tools.convert(args, Some(input), progress)?;
            (own, size)
        } else {
            // A copy that nobody else can change is looked at and then converted.
            let copy = OwnCopy::of(&file, source, &staged, &mut |part| progress(part / 2.0))?;
            let own = self.alone(kind, name, &copy, what.file_format, progress)?;
            let size = fits(own)?;
            self.has_room(kind, name, &copy, what.file_format, progress)?;
            if what.file_format == FileFormat::Qcow2 {
                check_strange(&copy.path, &self.tools, progress).map_err(|error| copy.named(error))?;
            }
            let args = ["-f", what.file_format.as_str(), "-O"].into_iter().chain(target);
            self.tools
                .convert(args.chain([utf8(&copy.path)?, utf8(&image)?]), None, &mut |part| progress(0.5 + part / 2.0))
                .map_err(|error| copy.named(error))?;
            (own, size)
        };
        let made = File::open(&image).map_err(super::record::unreadable(&image))?;
        let record = Record::new(size, format)?;
        if size_of(&made, &image, &record)? != own {
            return Err(VolumeError::Damaged {
                path: source.clone(),
                report: "it was changed while it was read".into(),
            });
        }
        if size > own {
            self.set_image_size(&image, format, size)?;
        }
        staged.publish(&record)
    }

    /// The size of a volume that is made of an image of `own` bytes.
    fn fits(&self, kind: Kind, name: &VolumeName, what: &Import<'_>, own: u64) -> Result<u64, VolumeError> {
        let size = what.size.unwrap_or(own);
        check_size(size)?;
        if size < own {
            return Err(kind.refused(name, Refusal::ImageIsLarger { has: own, wanted: size }));
        }
        Ok(size)
    }

    /// Writes a volume or golden image to the new file `target`.
    ///
    /// # Errors
    /// `NotFound`, `Busy`, `File` (also if `target` is there already), `Tool`, `Cancelled`; `Refused` if `target` is in the
    /// pool, or the volume a [mixture](Pool::mixture), or something of it [lost](Pool::lost).
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
            if let Some(by) = self.mixture(name).found() {
                return Err(kind.refused(name, Refusal::Mixture { by }));
            }
            self.recover(name)?;
            // After that: it flushes.
            let lost = self.lost(name);
            if lost.is_true() {
                return Err(kind.refused(name, Refusal::Lost { note: lost.path().into() }));
            }
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
        let staged = Part(folder.join(format!(".ninefold-{}", random::hex128().map_err(failed)?)));
        let args = ["-f", record.format.as_str(), "-O", format.as_str(), "--", utf8(&path)?, utf8(&staged.0)?];
        self.tools.convert(args, None, progress)?;
        sync(&staged.0)?;
        renameat_with(CWD, &staged.0, CWD, target, RenameFlags::NOREPLACE).map_err(|error| failed(error.into()))?;
        sync(&folder)
    }

    /// Sees to it that an image consists of its own file alone: a stranger's image may name any file of this host as its
    /// backing file, data file or extent, and converting it would copy that file into the volume. Its size.
    fn alone(
        &self,
        kind: Kind,
        name: &VolumeName,
        copy: &OwnCopy,
        format: FileFormat,
        progress: &mut Progress<'_>,
    ) -> Result<u64, VolumeError> {
        let path = utf8(&copy.path)?;
        let damaged = |report: &str| copy.named(VolumeError::Damaged { path: copy.of.clone(), report: report.into() });
        let told = self.tools.examine(
            ["info", "-f", format.as_str(), "--output=json", "--", path],
            ADDRESS_SPACE,
            progress,
        )?;
        if !told.status.success() {
            return Err(damaged(&short(&told.stderr)));
        }
        let info: Value = serde_json::from_slice(&told.stdout).map_err(|_| damaged("qemu-img cannot describe it"))?;
        let leads_on = |what: &'static str| Err(kind.refused(name, Refusal::LeadsOn { path: copy.of.clone(), what }));
        if info["encrypted"] == true {
            return Err(VolumeError::Encrypted { path: copy.of.clone() });
        }
        if info.get("backing-filename").is_some() || info.get("full-backing-filename").is_some() {
            return leads_on("a backing file");
        }
        let data = &info["format-specific"]["data"];
        if data.get("data-file").is_some() {
            return leads_on("a data file");
        }
        let extents = data.get("extents").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if extents.iter().any(|extent| extent["filename"].as_str() != Some(path)) {
            return leads_on("extents");
        }
        info["virtual-size"].as_u64().ok_or_else(|| damaged("qemu-img gives it no size"))
    }

    /// Sees to it that what an image unpacks to finds room here: a few bytes of it may stand for many terabytes.
    fn has_room(
        &self,
        kind: Kind,
        name: &VolumeName,
        copy: &OwnCopy,
        format: FileFormat,
        progress: &mut Progress<'_>,
    ) -> Result<(), VolumeError> {
        // Of a raw image it would count the holes, too.
        let args = ["measure", "-f", format.as_str(), "-O", "qcow2", "--output=json", "--", utf8(&copy.path)?];
        let told = self.tools.examine(args, ADDRESS_SPACE, progress)?;
        let report = || VolumeError::Damaged { path: copy.of.clone(), report: short(&told.stderr) };
        let needs: Value = serde_json::from_slice(&told.stdout).map_err(|_| copy.named(report()))?;
        let needs = needs["required"].as_u64().ok_or_else(|| copy.named(report()))?;
        let has = self.free()?;
        if needs > has { Err(kind.refused(name, Refusal::NoRoom { needs, has })) } else { Ok(()) }
    }
}

/// A stranger's image, copied to where nobody else can change it. It goes when this is dropped.
struct OwnCopy {
    path: PathBuf,
    of: PathBuf,
}

impl OwnCopy {
    fn of(file: &File, source: &Path, staged: &Staged, progress: &mut Progress<'_>) -> Result<Self, VolumeError> {
        let length = length(file, source)?;
        let copy = Self { path: staged.beside("source"), of: source.into() };
        copy_raw(file, length, &copy.path, length, progress)?;
        Ok(copy)
    }

    /// An error that speaks of the image as its owner knows it.
    fn named(&self, error: VolumeError) -> VolumeError {
        let known = |report: String| report.replace(&*self.path.to_string_lossy(), &self.of.to_string_lossy());
        match error {
            VolumeError::Damaged { report, .. } => {
                VolumeError::Damaged { path: self.of.clone(), report: known(report) }
            }
            VolumeError::Encrypted { .. } => VolumeError::Encrypted { path: self.of.clone() },
            VolumeError::Tool { program, report } => VolumeError::Tool { program, report: known(report) },
            other => other,
        }
    }
}

impl Drop for OwnCopy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The length of a file that is to be imported.
fn length(file: &File, path: &Path) -> Result<u64, VolumeError> {
    let length = file.metadata().map_err(super::record::unreadable(path))?.len();
    if length > MAX_FILE {
        return Err(VolumeError::TooLong { path: path.into(), length, most: MAX_FILE });
    }
    Ok(length)
}

/// A file that goes unless it is renamed.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
