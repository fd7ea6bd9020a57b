//! The disks of VMs.
//!
//! * [`served`]: a volume as a keeper serves it: its image, and over it what is not committed.
//! * [`log`]: what is on its way into an image and must survive a crash.
//! * [`unsynced`]: what was written past that log, and may not be on the disk. * [`lost`]: the note that this is so.
//! * [`behind`]: the note that clients may have been told what an image has not.
//! * [`batch`]: what a guest does to a volume in one epoch. * [`overlay`]: what lies over an image.
//! * [`budget`]: what volumes hold in memory, and how writes are slowed down by that.
//! * [`point_in_time`]: a volume as it was at one moment, while the guest goes on.
//! * [`checksums`]: checksums of blocks, by which two hosts find out where their images differ.
//! * [`image`]: what a volume's bytes are kept in. All formats behind one trait.
//! * [`nbd`]: the protocol by which QEMU reaches a volume.
//! * [`pool`]: a directory of volumes and golden images. * [`note`]: a file that says in what state something is.
//! * [`error`]: what can go wrong. (How to make it go wrong on purpose: the crate `ninefold-fault`.)

pub mod batch;
pub mod behind;
pub mod budget;
pub mod checksums;
pub mod error;
pub mod image;
pub mod log;
pub mod lost;
pub mod nbd;
pub mod note;
pub mod overlay;
pub mod point_in_time;
pub mod pool;
mod random;
mod ranges;
pub mod served;
pub mod unsynced;

pub use batch::{Batch, Op};
pub use budget::Budget;
pub use error::{Refusal, VolumeError};
pub use image::{Format, Image, Progress, Tools, open};
pub use log::WriteLog;
pub use lost::Lost;
pub use note::Note;
pub use point_in_time::PointInTime;
pub use pool::{Pool, VolumeName};
pub use served::ServedVolume;
