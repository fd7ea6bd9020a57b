//! Checkpoints on disk, in the format of the checkpoint stream.
//!
//! * [mod@file]: snapshots, each in a file.
//! * [`log`]: what a non-volatile VM goes on from after a loss of power.
//! * [`store`]: the snapshots of a host.
//! * [`storage`]: the little that is asked of a file system, so that tests can take the power away at every step.

pub mod file;
pub mod log;
mod random;
pub mod storage;
pub mod store;
