//! A backup: the standby that takes a checkpoint after the other, and what becomes of it.

pub mod acknowledge;
pub mod custody;
pub mod loaded;
pub(crate) mod offer;
pub mod parking;
pub(crate) mod proof;
pub mod standby;
