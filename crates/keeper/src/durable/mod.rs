//! What survives a loss of power: the log of a non-volatile VM, going on from it, and notes on disk.

pub(crate) mod booted;
pub(crate) mod generation;
pub(crate) mod incarnation;
pub mod log;
pub(crate) mod mixture;
pub mod recovery;
pub(crate) mod rollback;
pub(crate) mod small_file;
pub(crate) mod unfinished;
