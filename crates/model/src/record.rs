//! The witness record: who may speak for a VM.

use serde::{Deserialize, Serialize};

use crate::{HostName, Term};

/// What the witness keeps for one VM. It changes only by compare-and-swap of the whole record, and every change adds
/// one to `term`.
///
/// * `synced == false`: `primary` may release output on its own; nobody may take over.
/// * `synced == true`: `primary` may release only what `backup` has acknowledged; `backup` may take over.
///
/// A record is only ever proposed by the host that it names as primary. Two hosts therefore never propose the same
/// record, and a proposal whose reply was lost can be repeated: if the register already holds it, it had won.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    pub term: Term,
    pub primary: HostName,
    pub backup: Option<HostName>,
    pub synced: bool,
}

impl Record {
    /// The first record of a VM that boots on `primary`.
    pub fn boot(primary: HostName) -> Self {
        Self { term: Term(1), primary, backup: None, synced: false }
    }

    /// `primary` goes on (or starts) alone.
    #[must_use]
    pub fn alone(&self, primary: HostName) -> Self {
        Self { term: self.term.next(), primary, backup: None, synced: false }
    }

    /// The same primary, from now on bound to `backup`.
    #[must_use]
    pub fn bound(&self, backup: HostName) -> Self {
        Self { term: self.term.next(), primary: self.primary.clone(), backup: Some(backup), synced: true }
    }
}
