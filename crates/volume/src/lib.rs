//! The disks of VMs.
//!
//! * [`image`]: what a volume's bytes are kept in. All formats behind one trait.
//! * [`error`]: what can go wrong.

pub mod error;
pub mod image;

pub use error::VolumeError;
pub use image::Image;
