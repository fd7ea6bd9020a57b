//! The rules of the register. Pure: no storage, no clock, no connection.
//!
//! ```text
//!                    compare-and-swap(expected, new) by caller
//!
//!   new.primary != caller ------------------------------> refused
//!   new.term != next term after expected ----------------> refused
//!   new is not well-formed ------------------------------> refused
//!   new.primary != expected.primary, and not alone ------> refused
//!   current == new  (a repetition of what had won) ------> won, nothing changes
//!   current == expected ---------------------------------> won, new is stored
//!   otherwise -------------------------------------------> lost, the caller sees current
//! ```
//!
//! Terms only grow, so a value that was once replaced never comes back: a request that was delayed in the network can neither win a
//! second time nor undo anything. A register is removed only with its VM, for which nobody will ask again:
//!
//! ```text
//!                    retire(expected) by caller
//!
//!   there is a tombstone --------------------------------> retired, nothing changes (so is any other call answered)
//!   current != expected ---------------------------------> lost, the caller sees current
//!   caller != expected.primary, and it is not forced ----> refused
//!   otherwise -------------------------------------------> retired, a tombstone takes the record's place
//! ```

use ninefold_model::record::InvalidRecord;
use ninefold_model::{HostName, Label, Record, Term};

/// What a compare-and-swap comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CasOutcome {
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
    #[error(transparent)]
    Invalid(#[from] InvalidRecord),
    /// A backup holds a session with the primary it is bound to: a new primary has none yet.
    #[error("{0} begins alone")]
    NotAlone(HostName),
    /// A host may run it that has not been asked.
    #[error("{primary} has the VM: only {primary} may retire it, or an operator who says so")]
    AnothersVm { primary: HostName },
}

/// Judges a compare-and-swap of a register that holds `current`.
///
/// # Errors
/// The proposal breaks a rule whatever the register holds: it is for another primary than the caller, its term does not follow,
/// its record is not well-formed, or a new primary does not begin alone.
pub fn judge(
    current: Option<&Record>,
    expected: Option<&Record>,
    new: &Record,
    caller: &HostName,
) -> Result<CasOutcome, Refusal> {
    if new.primary != *caller {
        return Err(Refusal::NotYours { caller: caller.clone(), primary: new.primary.clone() });
    }
    let before = expected.map_or(Term(0), |record| record.term);
    if before.0.checked_add(1) != Some(new.term.0) {
        return Err(Refusal::WrongTerm { expected: before, proposed: new.term });
    }
    new.check()?;
    if expected.is_none_or(|e| e.primary != new.primary) && !new.is_alone() {
        return Err(Refusal::NotAlone(new.primary.clone()));
    }
    Ok(if current == Some(new) {
        CasOutcome::Held
    } else if current == expected {
        CasOutcome::Store
    } else {
        CasOutcome::Lost
    })
}

/// Whether `label` takes the place of `known`: that of a VM that was renamed more often does, and so does what its hosts' files say now, as long as it
/// was never renamed.
pub fn is_newer(label: &Label, known: &Label) -> bool {
    label.number > known.number || (label.number == 0 && known.number == 0 && label.name != known.name)
}

/// Judges a retirement of a VM whose register holds `current`: [`CasOutcome::Store`] stands for a tombstone.
///
/// # Errors
/// The VM is another host's, and no operator has `forced` it.
pub fn judge_retirement(
    current: Option<&Record>,
    expected: &Record,
    caller: &HostName,
    forced: bool,
) -> Result<CasOutcome, Refusal> {
    if current != Some(expected) {
        return Ok(CasOutcome::Lost);
    }
    if expected.primary != *caller && !forced {
        return Err(Refusal::AnothersVm { primary: expected.primary.clone() });
    }
    Ok(CasOutcome::Store)
}

#[cfg(test)]
mod tests {
    use ninefold_model::Backup;

    use super::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn the_life_of_a_record() {
        let (a, b) = (host("a"), host("b"));
        let boot = Record::boot(a.clone());
        assert_eq!(judge(None, None, &boot, &a), Ok(CasOutcome::Store));
        assert_eq!(judge(Some(&boot), None, &boot, &a), Ok(CasOutcome::Held));
        let bound = boot.bound(vec![backup("b", 1)]);
        assert_eq!(judge(Some(&boot), Some(&boot), &bound, &a), Ok(CasOutcome::Store));
        let both = bound.bound(vec![backup("b", 1), backup("c", 2)]);
        assert_eq!(judge(Some(&bound), Some(&bound), &both, &a), Ok(CasOutcome::Store));
        // A backup that knows only the record before its fellow was bound is shown the present one.
        assert_eq!(judge(Some(&both), Some(&bound), &bound.alone(b.clone()), &b), Ok(CasOutcome::Lost));
        let taken = both.alone(b.clone());
        assert_eq!(judge(Some(&both), Some(&both), &taken, &b), Ok(CasOutcome::Store));
        // The old primary comes back with what it knew.
        assert_eq!(judge(Some(&taken), Some(&both), &both.alone(a.clone()), &a), Ok(CasOutcome::Lost));
        assert_eq!(judge(Some(&taken), None, &boot, &a), Ok(CasOutcome::Lost));
        assert_eq!(judge(None, Some(&boot), &bound, &a), Ok(CasOutcome::Lost));
    }

    #[test]
    fn what_is_refused() {
        let (a, b) = (host("a"), host("b"));
        let boot = Record::boot(a.clone());
        assert!(matches!(judge(None, None, &boot, &b), Err(Refusal::NotYours { .. })));
        assert!(matches!(judge(None, Some(&boot), &boot, &a), Err(Refusal::WrongTerm { .. })));
        let bound = boot.bound(vec![backup("b", 1)]);
        assert!(matches!(judge(Some(&boot), None, &bound, &a), Err(Refusal::WrongTerm { .. })));
        let own = InvalidRecord::OwnBackup(a.clone());
        let swap = |backups| judge(Some(&boot), Some(&boot), &boot.bound(backups), &a);
        assert_eq!(swap(vec![backup("a", 1)]), Err(Refusal::Invalid(own)));
        assert!(matches!(swap(vec![backup("b", 2)]), Err(Refusal::Invalid(InvalidRecord::Session { .. }))));
        // Whoever takes the VM over has no sessions yet.
        let taken = Record { primary: b.clone(), ..bound.bound(vec![backup("c", 1)]) };
        assert_eq!(judge(Some(&bound), Some(&bound), &taken, &b), Err(Refusal::NotAlone(b)));
        let last = Record { term: Term(u64::MAX), ..boot };
        assert!(matches!(judge(Some(&last), Some(&last), &last, &a), Err(Refusal::WrongTerm { .. })));
    }

    #[test]
    fn the_name_that_was_given_last_counts() {
        let label = |name: &str, number| Label { name: name.parse().unwrap(), number };
        assert!(is_newer(&label("web", 0), &label("db", 0)), "its hosts' files were changed");
        assert!(is_newer(&label("web", 1), &label("db", 0)));
        for old in [label("db", 0), label("db", 1), label("other", 1)] {
            assert!(!is_newer(&old, &label("web", 1)), "{old:?}");
        }
    }

    #[test]
    fn a_vm_is_retired_by_who_has_it_or_by_an_operators_word() {
        let (a, b) = (host("a"), host("b"));
        let boot = Record::boot(a.clone());
        let bound = boot.bound(vec![backup("b", 1)]);
        for record in [&boot, &bound] {
            let judge = |caller, forced| judge_retirement(Some(record), record, caller, forced);
            assert_eq!(judge(&a, false), Ok(CasOutcome::Store));
            assert_eq!(judge(&b, false), Err(Refusal::AnothersVm { primary: a.clone() }));
            assert_eq!(judge(&b, true), Ok(CasOutcome::Store), "the host that had it may be gone");
        }
        // Whoever asks has to know what the record is.
        for forced in [false, true] {
            assert_eq!(judge_retirement(Some(&bound), &boot, &a, forced), Ok(CasOutcome::Lost));
            assert_eq!(judge_retirement(None, &boot, &a, forced), Ok(CasOutcome::Lost));
        }
    }

    fn backup(host: &str, session: u64) -> Backup {
        Backup { host: self::host(host), session: Term(session) }
    }

    /// A request that was sent once and may be delivered any number of times, at any later time.
    #[derive(Debug, Clone)]
    struct Sent {
        caller: HostName,
        expected: Option<Record>,
        new: Record,
    }

    proptest::proptest! {
        /// Hosts propose from what they last saw; the network delays and repeats requests and loses replies. Whatever
        /// comes, the register behaves as a log: one record a term, each term decided once, and who was told "won" is
        /// in it.
        #[test]
        fn delayed_and_repeated_requests_decide_each_term_once(
            steps in proptest::collection::vec((0..3_usize, 0..4_u8, proptest::bool::ANY, 0..64_usize), 1..200)
        ) {
            let hosts = ["a", "b", "c"].map(host);
            let mut seen: [Option<Record>; 3] = [None, None, None];
            let mut sent: Vec<(usize, Sent)> = Vec::new();
            let mut log: Vec<Record> = Vec::new();
            for (who, kind, reply_arrives, which) in steps {
                let request = match (kind, seen[who].clone()) {
                    // Something sent before arrives (again).
                    (0, _) if !sent.is_empty() => sent[which % sent.len()].clone(),
                    // A host reads.
                    (1, _) => {
                        seen[who] = log.last().cloned();
                        continue;
                    }
                    (_, None) => {
                        let new = Record::boot(hosts[who].clone());
                        (who, Sent { caller: hosts[who].clone(), expected: None, new })
                    }
                    (kind, Some(last)) => {
                        let mut new = last.alone(hosts[who].clone());
                        if kind == 3 && last.primary == hosts[who] {
                            new.backups = vec![Backup { host: hosts[(who + 1) % 3].clone(), session: last.term }];
                        }
                        (who, Sent { caller: hosts[who].clone(), expected: Some(last), new })
                    }
                };
                let (sender, Sent { caller, expected, new }) = request.clone();
                sent.push(request);

                let current = log.last().cloned();
                let verdict = judge(current.as_ref(), expected.as_ref(), &new, &caller).unwrap();
                match verdict {
                    CasOutcome::Store => {
                        proptest::prop_assert_eq!(&current, &expected);
                        proptest::prop_assert!(!log.contains(&new), "decided twice");
                        log.push(new.clone());
                        proptest::prop_assert_eq!(new.term.0, log.len() as u64);
                    }
                    CasOutcome::Held => proptest::prop_assert_eq!(current.as_ref(), Some(&new)),
                    CasOutcome::Lost => {
                        proptest::prop_assert_ne!(current.as_ref(), Some(&new));
                        proptest::prop_assert_ne!(&current, &expected);
                    }
                }
                if reply_arrives {
                    seen[sender] = log.last().cloned();
                }
            }
        }
    }
}
