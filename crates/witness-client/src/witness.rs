//! What a keeper needs of a witness, whichever keeps the records.

use std::fmt;

use ninefold_model::{Record, Term, VmId, VmName};
use serde::{Deserialize, Serialize};

/// A linearizable register per VM. One request at a time; every call is bounded in time by the implementation.
pub trait Witness: Send {
    /// The VM's record, `None` when it has none.
    ///
    /// # Errors
    /// No answer in time, or the witness refuses; [`WitnessError::Retired`] of a VM that was retired.
    fn read(&mut self, vm: VmId) -> Result<Option<Record>, WitnessError>;

    /// Replaces the record if it equals `expected`. `new.term` must be `expected`'s next, or 1 for the first record,
    /// and `new.primary` the calling host. Safe to repeat after [`WitnessError::Unreachable`]: a proposal that the
    /// register already holds has won. `name` is what people call the VM now; it decides nothing.
    ///
    /// # Errors
    /// As for [`Witness::read`].
    fn compare_and_swap(
        &mut self,
        vm: VmId,
        name: &VmName,
        expected: Option<&Record>,
        new: &Record,
    ) -> Result<Swap, WitnessError>;

    /// Puts a tombstone in the place of the record if it equals `expected`: nobody wins anything for this VM any more. The caller has to be
    /// the primary that `expected` names, or that primary be alone. Safe to repeat: a VM that is retired already is retired.
    ///
    /// # Errors
    /// As for [`Witness::read`].
    fn retire(&mut self, vm: VmId, expected: &Record) -> Result<Retirement, WitnessError>;
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

/// The answer to a retirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retirement {
    /// By this call, or before.
    Done(Tombstone),
    /// The register holds something else than was expected.
    Lost(Option<Record>),
}

/// What is left of a VM that was retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    /// The term that would have followed its last record's.
    pub term: Term,
    /// When that was by the clock of the witness, seconds since 1970. For people.
    pub at_s: u64,
}

impl fmt::Display for Tombstone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it was retired in term {}, {} s after 1970", self.term, self.at_s)
    }
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
    /// The VM has been retired: there is no record of it, and never will be. Nothing was changed.
    #[error("the witness knows VM {vm} as one that is no more: {tombstone}")]
    Retired { vm: VmId, tombstone: Tombstone },
}
