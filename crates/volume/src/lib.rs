//! The disks of VMs.
//!
//! * [`image`]: what a volume's bytes are kept in. All formats behind one trait.
//! * [`nbd`]: the protocol by which QEMU reaches a volume.
//! * [`pool`]: a directory of volumes and golden images.
//! * [`error`]: what can go wrong.

pub mod error;
pub mod image;
pub mod nbd;
pub mod pool;
mod random;

pub use error::VolumeError;
pub use image::{Format, Image, Tools, open};
pub use pool::{Pool, VolumeName};
