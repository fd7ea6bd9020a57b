//! Growing and shrinking volumes, while nobody has them open.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use super::{Kind, LOST, Pool, VolumeName, check_size};
use crate::error::{Refusal, VolumeError};
use crate::image::qcow2::{lock, utf8};
use crate::image::{Format, Image, Lock, RawFile};
use crate::lost::Lost;

/// Bytes looked at at a time.
const STEP: u64 = 1 << 20;

/// What may become of data behind the new end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CutOff {
    /// It keeps the volume from shrinking.
    MustBeZero,
    /// It is lost, as the operator wants.
    AllowDataLoss,
}

impl Pool {
    /// Makes a volume larger; the new bytes are zero.
    ///
    /// # Errors
    /// `NotFound`, `Size`, `Busy`; `Refused` if it would not grow, or is a device.
    pub fn grow(&self, name: &VolumeName, size: u64) -> Result<(), VolumeError> {
        check_size(size)?;
        let old = self.resizable(name)?;
        if size <= old {
            return Err(Kind::Volume.refused(name, Refusal::NotLarger { has: old, wanted: size }));
        }
        self.set_size(name, size)
    }

    /// Makes a volume smaller. The guest must have shrunk its file systems before.
    ///
    /// # Errors
    /// `NotFound`, `Size`, `Busy`; `Refused` if it would not shrink, is a device, or has data behind the new end.
    pub fn shrink(&self, name: &VolumeName, size: u64, cut: CutOff) -> Result<(), VolumeError> {
        check_size(size)?;
        let old = self.resizable(name)?;
        if size >= old {
            return Err(Kind::Volume.refused(name, Refusal::NotSmaller { has: old, wanted: size }));
        }
        if cut == CutOff::MustBeZero
            && let Some(at) = self.first_data(name, size)?
        {
            return Err(Kind::Volume.refused(name, Refusal::DataBehindEnd { at }));
        }
        self.set_size(name, size)
    }

    fn resizable(&self, name: &VolumeName) -> Result<u64, VolumeError> {
        // What is still in the log is for the size that the volume has now.
        self.recover(name)?;
        let info = self.info(Kind::Volume, name)?;
        match info.record.device {
            Some(_) => Err(Kind::Volume.refused(name, Refusal::SizeOfDevice)),
            None => Ok(info.record.size),
        }
    }

    /// The image first, the note after it: in between, the image has the last word.
    fn set_size(&self, name: &VolumeName, size: u64) -> Result<(), VolumeError> {
        let mut record = self.record(Kind::Volume, name)?;
        let path = self.image_path(Kind::Volume, name, &record);
        self.set_image_size(&path, record.format, size)?;
        record.size = size;
        record.store(&self.directory(Kind::Volume, name))
    }

    /// Gives an image that nobody has open another size, durably.
    pub(super) fn set_image_size(&self, path: &Path, format: Format, size: u64) -> Result<(), VolumeError> {
        let failed = |source| VolumeError::File { what: "cannot resize", path: path.into(), source };
        // Such a sync also says what became of what a keeper had written before it ended.
        let unsynced = |source| {
            if let Err(error) = Lost::at(path.with_file_name(LOST)).write() {
                tracing::error!(%error, "that a flush has failed cannot be noted");
            }
            failed(source)
        };
        match format {
            Format::Raw => {
                let image = RawFile::open(path)?;
                ninefold_fault::point("pool.resize").and_then(|()| image.file().set_len(size)).map_err(failed)?;
                ninefold_fault::point("pool.resized").and_then(|()| image.file().sync_all()).map_err(unsynced)
            }
            Format::Qcow2 => {
                let held = lock(path, Lock::Exclusive)?;
                let bytes = size.to_string();
                self.tools.img(["resize", "-q", "-f", "qcow2", "--shrink", "--", utf8(path)?, &bytes])?;
                held.sync_all().map_err(unsynced)
            }
        }
    }

    /// The first byte from `from` on that is not zero.
    fn first_data(&self, name: &VolumeName, from: u64) -> Result<Option<u64>, VolumeError> {
        let record = self.record(Kind::Volume, name)?;
        if record.format == Format::Raw {
            let image = RawFile::open(&self.image_path(Kind::Volume, name, &record))?;
            scan(&image, from, |at| image.next_data(at))
        } else {
            let image = self.open_volume(name)?;
            let mut found = Ok(None);
            self.mapped(&self.image_path(Kind::Volume, name, &record), from, |extent| {
                let data = extent.start.max(from)..extent.end;
                found = scan(&*image, data.start, |at| Ok((at < data.end).then_some(at)));
                if matches!(found, Ok(None)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            found
        }
    }

    /// Hands out what of a qcow2 image, from `from` on, may differ from zero, until that wants no more: a large image is mostly
    /// empty, and one that is not has any number of such pieces.
    fn mapped(
        &self,
        path: &Path,
        from: u64,
        mut each: impl FnMut(Range<u64>) -> ControlFlow<()>,
    ) -> Result<(), VolumeError> {
        let offset = format!("--start-offset={from}");
        let mut wrong = None;
        // -U: our own storage daemon has it open.
        let args = ["map", "-U", "-f", "qcow2", "--output=json", &offset, "--", utf8(path)?];
        let _ = self.tools.lines(args, |line| match extent(line) {
            Ok(Some(extent)) if !extent.zero => each(extent.start..extent.start.saturating_add(extent.length)),
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                wrong = Some(error);
                ControlFlow::Break(())
            }
        })?;
        let damaged = |error: serde_json::Error| VolumeError::Damaged { path: path.into(), report: error.to_string() };
        wrong.map_or(Ok(()), |error| Err(damaged(error)))
    }
}

/// One line of qemu-img(1), "map": it writes an array with an element on each.
fn extent(line: &[u8]) -> serde_json::Result<Option<Extent>> {
    let line = line.trim_ascii();
    let line = line.strip_prefix(b"[").unwrap_or(line);
    let line = line.strip_suffix(b"]").unwrap_or(line);
    let line = line.strip_suffix(b",").unwrap_or(line).trim_ascii();
    if line.is_empty() { Ok(None) } else { serde_json::from_slice(line).map(Some) }
}

/// An element of it.
#[derive(serde::Deserialize)]
struct Extent {
    start: u64,
    length: u64,
    zero: bool,
}

fn scan(
    image: &dyn Image,
    from: u64,
    next: impl Fn(u64) -> Result<Option<u64>, VolumeError>,
) -> Result<Option<u64>, VolumeError> {
    let mut buffer = vec![0; STEP as usize];
    let mut at = from;
    while at < image.size() {
        let Some(start) = next(at)? else { break };
        at = start;
        let part = &mut buffer[..(image.size() - at).min(STEP) as usize];
        image.read(at, part)?;
        if let Some(place) = part.iter().position(|byte| *byte != 0) {
            return Ok(Some(at + place as u64));
        }
        at += part.len() as u64;
    }
    Ok(None)
}
