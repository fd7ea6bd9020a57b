//! The rules of the register. Pure: no storage, no clock, no connection.
//!
//! ```text
//!                    compare-and-swap(expected, new) by caller
//!
//!   new.primary != caller ------------------------------> refused
//!   new is not well-formed ------------------------------> refused
//!   new.term != next term after expected ----------------> refused
//!   current == new  (a repetition of what had won) ------> won, nothing changes
//!   current == expected ---------------------------------> won, new is stored
//!   otherwise -------------------------------------------> lost, the caller sees current
//! ```
//!
//! Terms only grow and a register is never removed, so a value that was once replaced never comes back: a request that
//! was delayed in the network can neither win a second time nor undo anything.

use ninefold_model::{HostName, Record, Term};

/// What a compare-and-swap comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Store the new record, then say won.
    Store,
    /// The register already holds the new record: say won.
    Held,
    /// Say lost.
    Lost,
}

/// Why a proposal is refused whatever the register holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("host {caller} may not propose {primary} as primary")]
    NotYours { caller: HostName, primary: HostName },
    #[error("term {proposed} does not follow {expected}")]
    WrongTerm { expected: Term, proposed: Term },
    #[error("{0} cannot be its own backup")]
    OwnBackup(HostName),
    #[error("a record without a backup cannot be synced")]
    SyncedAlone,
}

/// Judges a compare-and-swap of a register that holds `current`.
pub fn judge(
    current: Option<&Record>,
    expected: Option<&Record>,
    new: &Record,
    caller: &HostName,
) -> Result<Verdict, Refusal> {
    if new.primary != *caller {
        return Err(Refusal::NotYours {
            caller: caller.clone(),
            primary: new.primary.clone(),
        });
    }
    match &new.backup {
        Some(backup) if *backup == new.primary => return Err(Refusal::OwnBackup(backup.clone())),
        None if new.synced => return Err(Refusal::SyncedAlone),
        _ => {}
    }
    let before = expected.map_or(Term(0), |record| record.term);
    if before.0.checked_add(1) != Some(new.term.0) {
        return Err(Refusal::WrongTerm {
            expected: before,
            proposed: new.term,
        });
    }
    Ok(if current == Some(new) {
        Verdict::Held
    } else if current == expected {
        Verdict::Store
    } else {
        Verdict::Lost
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn the_life_of_a_record() {
        let (a, b) = (host("a"), host("b"));
        let boot = Record::boot(a.clone());
        assert_eq!(judge(None, None, &boot, &a), Ok(Verdict::Store));
        assert_eq!(judge(Some(&boot), None, &boot, &a), Ok(Verdict::Held));
        let bound = boot.bound(b.clone());
        assert_eq!(
            judge(Some(&boot), Some(&boot), &bound, &a),
            Ok(Verdict::Store)
        );
        let taken = bound.alone(b.clone());
        assert_eq!(
            judge(Some(&bound), Some(&bound), &taken, &b),
            Ok(Verdict::Store)
        );
        // The old primary comes back with what it knew.
        assert_eq!(
            judge(Some(&taken), Some(&bound), &bound.alone(a.clone()), &a),
            Ok(Verdict::Lost)
        );
        assert_eq!(judge(Some(&taken), None, &boot, &a), Ok(Verdict::Lost));
        assert_eq!(judge(None, Some(&boot), &bound, &a), Ok(Verdict::Lost));
    }

    #[test]
    fn what_is_refused() {
        let (a, b) = (host("a"), host("b"));
        let boot = Record::boot(a.clone());
        assert!(matches!(
            judge(None, None, &boot, &b),
            Err(Refusal::NotYours { .. })
        ));
        assert!(matches!(
            judge(None, Some(&boot), &boot, &a),
            Err(Refusal::WrongTerm { .. })
        ));
        assert!(matches!(
            judge(Some(&boot), None, &boot.bound(b), &a),
            Err(Refusal::WrongTerm { .. })
        ));
        assert!(matches!(
            judge(Some(&boot), Some(&boot), &boot.bound(a.clone()), &a),
            Err(Refusal::OwnBackup(_))
        ));
        let synced = Record {
            synced: true,
            ..boot.clone()
        };
        assert_eq!(judge(None, None, &synced, &a), Err(Refusal::SyncedAlone));
        let last = Record {
            term: Term(u64::MAX),
            ..boot
        };
        assert!(matches!(
            judge(Some(&last), Some(&last), &last, &a),
            Err(Refusal::WrongTerm { .. })
        ));
    }
}
