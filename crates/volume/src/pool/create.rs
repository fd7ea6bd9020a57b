//! New volumes: empty, from a golden image, from a block device.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::record::{Record, open_device, size_of};
use super::{Kind, Pool, VolumeName, check_size, image_file};
use crate::error::{Refusal, VolumeError};
use crate::image::qcow2::utf8;
use crate::image::{Format, Lock, Progress};

/// Bytes copied at a time.
const STEP: usize = 1 << 20;

impl Pool {
    /// Makes an empty volume of `size` bytes; all of it reads as zero and takes no room.
    ///
    /// # Errors
    /// `Size`, `Exists`, `Tool`, `File`.
    pub fn create(&self, name: &VolumeName, size: u64, format: Format) -> Result<(), VolumeError> {
        check_size(size)?;
        let staged = self.staged(Kind::Volume, name)?;
        let image = staged.image(format);
        match format {
            Format::Raw => {
                let failed = |source| VolumeError::File { what: "cannot make", path: image.clone(), source };
                let made = ninefold_fault::point("pool.image").and_then(|()| File::create_new(&image));
                made.and_then(|file| ninefold_fault::point("pool.size").and(file.set_len(size))).map_err(failed)?;
            }
            Format::Qcow2 => {
                self.tools.img(["create", "-q", "-f", "qcow2", "--", utf8(&image)?, &size.to_string()])?;
            }
        }
        staged.publish(&Record::new(size, format)?)
    }

    /// Makes a volume that begins as the golden image does, of `size` bytes or the image's own size.
    ///
    /// A qcow2 volume is a thin clone: it keeps only what differs, and the golden image cannot be removed before it.
    /// A raw volume is independent; where the file system shares blocks (FICLONE) it is made at once, otherwise the
    /// data is copied and the holes stay holes.
    ///
    /// # Errors
    /// `NotFound`, `Size`, `Refused` if `size` is smaller than the image, `Exists`, `Tool`, `File`, `Cancelled`.
    pub fn create_from(
        &self,
        name: &VolumeName,
        golden: &VolumeName,
        size: Option<u64>,
        format: Format,
        progress: &mut Progress<'_>,
    ) -> Result<(), VolumeError> {
        let origin = self.record(Kind::Golden, golden)?;
        let source = self.image_path(Kind::Golden, golden, &origin);
        // Until the clone can be seen in the pool the golden image must stay: see `remove`.
        let file = Lock::Shared.take(self.look(&source, &origin)?, &source)?;
        let own = size_of(&file, &source, &origin)?;
        let size = size.unwrap_or(own);
        check_size(size)?;
        if size < own {
            return Err(Kind::Golden.refused(golden, Refusal::ImageIsLarger { has: own, wanted: size }));
        }
        let staged = self.staged(Kind::Volume, name)?;
        let image = staged.image(format);
        let bytes = size.to_string();
        match (origin.format, format) {
            (from, Format::Qcow2) => {
                // From a staged and from its final place the same number of steps up.
                let backing = format!("../../{}/{golden}/{}", Kind::Golden.folder(), image_file(from));
                let args = ["create", "-q", "-f", "qcow2", "-b", &backing, "-F", from.as_str(), "--"];
                self.tools.img(args.into_iter().chain([utf8(&image)?, &bytes]))?;
            }
            (Format::Raw, Format::Raw) => copy_raw(&file, own, &image, size, progress)?,
            (Format::Qcow2, Format::Raw) => {
                let args = ["-f", "qcow2", "-O", "raw", "--", utf8(&source)?, utf8(&image)?];
                self.tools.convert(args, None, progress)?;
                self.set_image_size(&image, format, size)?;
            }
        }
        staged.publish(&Record { golden: Some(golden.clone()), ..Record::new(size, format)? })
    }

    /// Makes a volume of a whole block device (a LUN, a logical volume, a partition). Its bytes are the volume's, as they
    /// are. `device` may be a link such as those of udev, and is kept as given.
    ///
    /// # Errors
    /// `NotAnImage`; `Busy` if it is mounted or open; `Refused` if another volume of the pool is this device; `Exists`.
    pub fn adopt(&self, name: &VolumeName, device: &Path) -> Result<(), VolumeError> {
        let file = open_device(device)?;
        let number = file.metadata().map_err(super::record::unreadable(device))?.rdev();
        for other in self.names(Kind::Volume)? {
            let Some(path) = self.record(Kind::Volume, &other).ok().and_then(|record| record.device) else { continue };
            if std::fs::metadata(path).is_ok_and(|found| found.rdev() == number) {
                return Err(Kind::Volume.refused(&other, Refusal::SameDevice));
            }
        }
        // Opened as its keeper would, so that what cannot be used is told now.
        let size = crate::image::Image::size(&crate::image::RawFile::open_device(device)?);
        check_size(size)?;
        let staged = self.staged(Kind::Volume, name)?;
        staged.publish(&Record { device: Some(device.into()), ..Record::new(size, Format::Raw)? })
    }
}

/// Makes `to` a copy of the first `length` bytes of `from`, `size` bytes long, holes kept.
pub(super) fn copy_raw(
    from: &File,
    length: u64,
    to: &Path,
    size: u64,
    progress: &mut Progress<'_>,
) -> Result<(), VolumeError> {
    let failed = |source: io::Error| VolumeError::File { what: "cannot copy to", path: to.into(), source };
    let target = File::create_new(to).map_err(failed)?;
    match ioctl_ficlone(&target, from) {
        Ok(()) => {}
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {
            copy_data(from, length, &target, progress, &failed)?;
        }
        Err(error) => return Err(failed(error.into())),
    }
    target.set_len(size).map_err(failed)
}

fn copy_data(
    from: &File,
    length: u64,
    to: &File,
    progress: &mut Progress<'_>,
    failed: &impl Fn(io::Error) -> VolumeError,
) -> Result<(), VolumeError> {
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < length {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(failed(error.into())),
        };
        let end = seek(from, SeekFrom::Hole(start)).map_err(|error| failed(error.into()))?.min(length);
        at = start;
        while at < end {
            let part = &mut buffer[..(end - at).min(STEP as u64) as usize];
            from.read_exact_at(part, at).and_then(|()| to.write_all_at(part, at)).map_err(failed)?;
            at += part.len() as u64;
            if progress(at as f64 / length as f64).is_break() {
                return Err(VolumeError::Cancelled);
            }
        }
    }
    Ok(())
}
