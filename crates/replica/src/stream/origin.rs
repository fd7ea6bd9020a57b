//! Of which checkpoint two hosts can speak that have one in common.

use ninefold_model::{Epoch, Term};
use serde::{Deserialize, Serialize};

/// Runs in a [`Base`](crate::continuation::Base), at most.
pub const MAX_BASE_RUNS: usize = 1 << 12;

/// Bytes of a run in a `Base` record.
pub const RUN_BYTES: usize = 16;

/// Of one QEMU on one host, from its start or its takeover to its end: its checkpoints count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reign {
    /// The term under which the host began it. No two hosts ever have won the same.
    pub term: Term,
    /// Counts the QEMUs of this host's keeper: a relaunched guest begins anew under the same term.
    pub generation: u64,
}

/// The checkpoint with which a primary's memory began. Part of `Hello` while it can be gone on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    pub reign: Reign,
    pub epoch: Epoch,
    /// It is known which pages have changed since this epoch.
    pub since: Epoch,
}
