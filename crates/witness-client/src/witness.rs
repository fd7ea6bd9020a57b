//! What a keeper needs of a witness, whichever keeps the records.

use ninefold_model::{Record, VmName};

/// A linearizable register per VM. One request at a time; every call is bounded in time by the implementation.
pub trait Witness: Send {
    /// The VM's record, `None` when it has none.
    fn read(&mut self, vm: &VmName) -> Result<Option<Record>, WitnessError>;

    /// Replaces the record if it equals `expected`. `new.term` must be `expected`'s next, or 1 for the first record,
    /// and `new.primary` the calling host. Safe to repeat after [`WitnessError::Unreachable`]: a proposal that the
    /// register already holds has won.
    fn compare_and_swap(&mut self, vm: &VmName, expected: Option<&Record>, new: &Record) -> Result<Swap, WitnessError>;
}

/// The answer to a compare-and-swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// The register holds the proposal.
    Won(Record),
    /// The register holds something else. When the call was a repetition, the proposal may have been held in between;
    /// the record shown is newer then.
    Lost(Option<Record>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// No answer in time. **Nothing is known about the outcome**: it may have happened, or happen yet.
    #[error("the witness at {addr} does not answer: {reason}")]
    Unreachable { addr: String, reason: String },
    /// The witness, or this side of the protocol, will not do it; repeating it does not help. Nothing was changed.
    #[error("the witness refuses: {0}")]
    Refused(String),
}
