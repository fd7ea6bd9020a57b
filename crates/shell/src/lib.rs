//! What the project's commands share at a terminal.
//!
//! * [`output`]: tables and JSON · [`progress`]: bars
//! * [`error`]: how a command's end is told · [`interrupt`]: an operation that a signal ends in order
//! * [`keepers`]: asking several keepers at once how they are · [`refusal`]: what a keeper refuses, in words

pub mod error;
pub mod interrupt;
pub mod keepers;
pub mod output;
pub mod progress;
pub mod refusal;

pub use error::{Failure, ShellError};
pub use output::Output;
