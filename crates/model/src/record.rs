//! The witness record: who may speak for a VM.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{HostName, Term};

/// Backups that a VM may have at once.
pub const MAX_BACKUPS: usize = 4;

/// What the witness keeps for one VM. It changes only by compare-and-swap of the whole record, and every change adds
/// one to `term`.
///
/// * No `backups`: `primary` may release output on its own; nobody may take over.
/// * Some: `primary` may release only what every one of them has acknowledged; each of them may take over.
///
/// A record is only ever proposed by the host that it names as primary. Two hosts therefore never propose the same
/// record, and a proposal whose reply was lost can be repeated: if the register already holds it, it had won.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Record {
    pub term: Term,
    pub primary: HostName,
    /// Those that hold a checkpoint and may take over, at most [`MAX_BACKUPS`].
    pub backups: Vec<Backup>,
}

/// A backup that is bound to its primary.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Backup {
    pub host: HostName,
    /// The session in which it holds its checkpoints. It is named by a term of the primary's, earlier than the record's.
    pub session: Term,
}

/// What the witness keeps of a VM that was retired. It never gets a record again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

/// Why a record makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecord {
    #[error("{0} cannot be its own backup")]
    OwnBackup(HostName),
    #[error("{0} is named twice as backup")]
    Twice(HostName),
    #[error("session {session} of backup {host} is not earlier than the record's term {term}")]
    Session { host: HostName, session: Term, term: Term },
    #[error("two backups in session {0}")]
    Shared(Term),
    #[error("{0} backups; a VM has at most {MAX_BACKUPS}")]
    TooMany(usize),
}

impl Record {
    /// The first record of a VM that boots on `primary`.
    pub fn boot(primary: HostName) -> Self {
        Self { term: Term(1), primary, backups: Vec::new() }
    }

    /// `primary` goes on (or starts) alone.
    #[must_use]
    pub fn alone(&self, primary: HostName) -> Self {
        Self { term: self.term.next(), primary, backups: Vec::new() }
    }

    /// The same primary, from now on bound to these backups and no others.
    #[must_use]
    pub fn bound(&self, backups: Vec<Backup>) -> Self {
        Self { term: self.term.next(), primary: self.primary.clone(), backups }
    }

    /// Nobody but the primary may speak.
    pub fn is_alone(&self) -> bool {
        self.backups.is_empty()
    }

    /// Whether `host` may take over with what it holds of `session`.
    pub fn binds(&self, host: &HostName, session: Term) -> bool {
        self.backups.iter().any(|b| b.host == *host && b.session == session)
    }

    /// Checks what can be checked of a record by itself.
    ///
    /// # Errors
    /// The first thing found that makes no sense.
    pub fn check(&self) -> Result<(), InvalidRecord> {
        if self.backups.len() > MAX_BACKUPS {
            return Err(InvalidRecord::TooMany(self.backups.len()));
        }
        for (i, Backup { host, session }) in self.backups.iter().enumerate() {
            let before = &self.backups[..i];
            if *host == self.primary {
                return Err(InvalidRecord::OwnBackup(host.clone()));
            }
            if before.iter().any(|b| b.host == *host) {
                return Err(InvalidRecord::Twice(host.clone()));
            }
            if before.iter().any(|b| b.session == *session) {
                return Err(InvalidRecord::Shared(*session));
            }
            if *session == Term(0) || *session >= self.term {
                return Err(InvalidRecord::Session { host: host.clone(), session: *session, term: self.term });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(host: &str, session: u64) -> Backup {
        Backup { host: host.parse().unwrap(), session: Term(session) }
    }

    #[test]
    fn what_makes_sense() {
        let boot = Record::boot("a".parse().unwrap());
        let with = |backups: Vec<Backup>| Record { term: Term(9), ..boot.bound(backups) }.check();
        assert_eq!(boot.check(), Ok(()));
        assert_eq!(with(vec![backup("b", 1), backup("c", 8)]), Ok(()));
        assert!(matches!(with(vec![backup("a", 1)]), Err(InvalidRecord::OwnBackup(_))));
        assert!(matches!(with(vec![backup("b", 1), backup("b", 2)]), Err(InvalidRecord::Twice(_))));
        assert!(matches!(with(vec![backup("b", 1), backup("c", 1)]), Err(InvalidRecord::Shared(Term(1)))));
        for session in [0, 9, 10] {
            assert!(matches!(with(vec![backup("b", session)]), Err(InvalidRecord::Session { .. })));
        }
        let five = ["b", "c", "d", "e", "f"].iter().zip(1..).map(|(h, s)| backup(h, s)).collect();
        assert_eq!(with(five), Err(InvalidRecord::TooMany(5)));
    }
}
