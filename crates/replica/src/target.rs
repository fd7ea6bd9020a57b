//! To whom a running VM is copied: whoever is first sent all of it and then every checkpoint, or one alone.

use std::fmt;

use ninefold_model::Term;

/// Names one who receives checkpoints, on the host where the VM runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// The backup of the session that is named by this term.
    Session(Term),
    /// This host's log of a non-volatile VM.
    Log,
    /// The snapshot that is being taken: it receives one checkpoint.
    Snapshot,
}

impl Target {
    /// The session, if it is one's backup.
    pub fn session(self) -> Option<Term> {
        match self {
            Self::Session(session) => Some(session),
            Self::Log | Self::Snapshot => None,
        }
    }
}

/// The checkpoint since which it is remembered what was written, for a backup that holds it already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The one that the VM was resumed from.
    Resumed,
    /// The last that the backup of this session had acknowledged when the session ended.
    Left(Term),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session(session) => write!(f, "the backup of session {session}"),
            Self::Log => f.write_str("the log"),
            Self::Snapshot => f.write_str("the snapshot"),
        }
    }
}
