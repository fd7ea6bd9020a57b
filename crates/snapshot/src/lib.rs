//! Checkpoints on disk, in the format of the checkpoint stream.
//!
//! * [`log`]: what a non-volatile VM goes on from after a loss of power.
//! * [`storage`]: the little that is asked of a file system, so that tests can take the power away at every step.

pub mod log;
pub mod storage;
