//! What a process says of what happens, bounded: a fault that repeats itself for ever must not fill a disk, nor hide what else
//! goes wrong.
//!
//! * [`bucket`]: how often something may happen · [mod@likeness]: what two texts have in common when they tell of one fault
//! * [`lines`]: which lines of a log are printed, and which are only counted: pure
//! * [`stderr`]: the log of a process on its standard error · [`apart`]: written by a thread of its own

pub mod apart;
pub mod bucket;
pub mod likeness;
pub mod lines;
pub mod stderr;

pub use bucket::Bucket;
pub use likeness::likeness;
