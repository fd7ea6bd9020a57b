//! A primary's session with one of its backups.

use ninefold_model::{Epoch, HostName, Term};

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Session {
    /// The term that names it.
    pub name: Term,
    pub backup: HostName,
    /// The epoch of its first checkpoint, once that is taken. From then on output waits for this backup.
    pub(super) first: Option<Epoch>,
    /// The newest epoch that the backup has acknowledged.
    pub(super) acked: Option<Epoch>,
    /// It has answered what was sent since the primary is in doubt.
    pub(super) sure: bool,
    pub(super) end: End,
}

/// Whether and how a session ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum End {
    No,
    /// On purpose: it goes on until the witness has released the backup, so that the backup has no cause to take over.
    Parting {
        reason: String,
    },
    /// The connection is gone. Nothing is acknowledged any more.
    Lost {
        reason: String,
    },
}

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It copies memory while the guest runs; output does not wait for it.
    Syncing,
    /// Output waits for it; the backup does not yet hold a checkpoint, or the witness has not yet bound it.
    Binding,
    /// The backup may take over at any time.
    Bound,
    /// The witness is to say that the backup may not take over any more.
    Unbinding,
}

impl Session {
    pub(super) fn open(name: Term, backup: HostName) -> Self {
        Self { name, backup, first: None, acked: None, sure: false, end: End::No }
    }

    /// The newest epoch that the backup has acknowledged.
    pub fn acked(&self) -> Option<Epoch> {
        self.acked
    }

    /// Whether its connection is there.
    pub fn is_live(&self) -> bool {
        !matches!(self.end, End::Lost { .. })
    }

    /// Whether it is to go on.
    pub(super) fn is_wanted(&self) -> bool {
        self.end == End::No
    }

    /// The backup can be asked for: it holds a checkpoint, and with it all that was ever released.
    pub(super) fn is_synced(&self) -> bool {
        self.acked.is_some()
    }

    /// The newest epoch whose output need not wait for this backup; `None` if no output does. What was said before its
    /// first checkpoint is in that.
    pub(super) fn allows(&self) -> Option<Epoch> {
        self.first.map(|first| self.acked.unwrap_or(Epoch(first.0.saturating_sub(1))))
    }
}
