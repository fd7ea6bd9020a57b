//! What a keeper needs of a witness, whichever keeps the records.

use ninefold_model::{Label, Record, Tombstone, VmId};

/// A linearizable register per VM. One request at a time; every call is bounded in time by the implementation.
pub trait Witness: Send {
    /// The VM's record, `None` when it has none.
    ///
    /// # Errors
    /// No answer in time, or the witness refuses; [`WitnessError::Retired`] of a VM that was retired.
    fn read(&mut self, vm: VmId) -> Result<Option<Record>, WitnessError> {
        self.read_labelled(vm).map(|found| found.map(|(record, _)| record))
    }

    /// The same with what the VM is called.
    ///
    /// # Errors
    /// As for [`Witness::read`].
    fn read_labelled(&mut self, vm: VmId) -> Result<Option<(Record, Label)>, WitnessError>;

    /// Replaces the record if it equals `expected`. `new.term` must be `expected`'s next, or 1 for the first record,
    /// and `new.primary` the calling host. Safe to repeat after [`WitnessError::Unreachable`]: a proposal that the
    /// register already holds has won. `label` is what people call the VM now; it decides nothing.
    ///
    /// # Errors
    /// As for [`Witness::read`].
    fn compare_and_swap(
        &mut self,
        vm: VmId,
        label: &Label,
        expected: Option<&Record>,
        new: &Record,
    ) -> Result<Swap, WitnessError>;

    /// Calls the VM so from now on, unless it was renamed more often than the label says. Answers what it is called then; `None` if the VM has no
    /// record. Safe to repeat.
    ///
    /// # Errors
    /// As for [`Witness::read`].
    fn rename(&mut self, vm: VmId, label: &Label) -> Result<Option<Label>, WitnessError>;

    /// Puts a tombstone in the place of the record if it equals `expected`: nobody wins anything for this VM any more. The caller has to be
    /// the primary that `expected` names, unless it is `forced`: an operator's word, whoever may have the VM. Safe to repeat: a VM that is
    /// retired already is retired.
    ///
    /// # Errors
    /// As for [`Witness::read`].
    fn retire(&mut self, vm: VmId, expected: &Record, forced: bool) -> Result<Retirement, WitnessError>;
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
