//! What a log on disk says about the witness: whether its host may go on from it after a loss of power.

use ninefold_model::{HostName, Record, Term};
use serde::{Deserialize, Serialize};

/// So many proposals are remembered at most: with the role they have room in what a log keeps for its standing.
const MOST_PROPOSED: usize = 4;

/// On what terms the host that writes a log stands with the witness.
///
/// It is noted before each proposal to the witness, with what is proposed: so a record that the host has won and not yet acted
/// on is known as its own. What is let go under a record needs no note: nothing is let go that is not in the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogStanding {
    pub role: LogRole,
    /// What the host has asked the witness for, or is about to, the newest last. Each of them may be what the witness holds: the host may
    /// have won it without hearing so. See [`Self::propose`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub proposed: Vec<Record>,
    /// Output was let go that is not in the log: it is a state of the past, for a person to choose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub behind: bool,
}

/// What the host was to its VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LogRole {
    /// It ran the VM under this record and let no output go that is not in the log.
    Primary { record: Record },
    /// It received the checkpoints of this session and acknowledged none that is not in the log.
    Backup { session: Term, primary: HostName },
}

impl LogStanding {
    /// That of a host in this role.
    pub fn new(role: LogRole) -> Self {
        Self { role, proposed: Vec::new(), behind: false }
    }

    /// Takes down that `new` is about to be proposed. What was proposed before is kept as long as the witness may hold it: `new` may never get
    /// there, and then the host goes on from what it had won before. The witness has held the record that `new` is to replace, so it holds
    /// none that is older than that.
    pub fn propose(&mut self, new: Record) {
        self.proposed.retain(|before| before.term.next() >= new.term && *before != new);
        if self.proposed.len() == MOST_PROPOSED {
            self.proposed.remove(0);
        }
        self.proposed.push(new);
    }

    /// The newest term of which this shows that the witness has held it: that of the role, and of each record that was to be replaced.
    pub fn known_term(&self) -> Term {
        let role = match &self.role {
            LogRole::Primary { record } => record.term,
            LogRole::Backup { session, .. } => *session,
        };
        self.proposed.iter().map(|new| Term(new.term.0.saturating_sub(1))).fold(role, Term::max)
    }

    /// Whether nothing that was let go under `record` is missing in the log, so that `me` may go on from it once it has won the
    /// record that follows.
    pub fn allows(&self, record: &Record, me: &HostName) -> bool {
        if self.behind {
            return false;
        }
        // Only the host itself proposes a record that names it as primary.
        if record.primary == *me && self.proposed.contains(record) {
            return true;
        }
        match &self.role {
            LogRole::Primary { record: own } => own == record && record.primary == *me,
            // The session's primary named it, or one that had won the VM and could not go on with it: it has let nothing go.
            LogRole::Backup { session, .. } => record.binds(me, *session),
        }
    }
}

#[cfg(test)]
mod tests {
    use ninefold_model::Backup;

    use super::*;

    fn record(term: u64, primary: &str, backup: Option<&str>) -> Record {
        let backups = backup.map(|host| Backup { host: host.parse().unwrap(), session: Term(5) });
        Record { term: Term(term), primary: primary.parse().unwrap(), backups: backups.into_iter().collect() }
    }

    #[test]
    fn only_what_the_log_speaks_of_is_confirmed() {
        let (a, b): (HostName, HostName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut primary = LogStanding::new(LogRole::Primary { record: record(5, "a", None) });
        assert!(primary.allows(&record(5, "a", None), &a));
        for other in [record(5, "a", Some("b")), record(6, "a", None), record(5, "b", None)] {
            assert!(!primary.allows(&other, &a), "{other:?}");
        }
        assert!(!primary.allows(&record(5, "a", None), &b));
        primary.propose(record(6, "a", Some("b")));
        assert!(primary.allows(&record(5, "a", None), &a));
        assert!(primary.allows(&record(6, "a", Some("b")), &a));
        assert!(!primary.allows(&record(7, "a", None), &a));
        primary.behind = true;
        assert!(!primary.allows(&record(5, "a", None), &a));

        let mut backup = LogStanding::new(LogRole::Backup { session: Term(5), primary: a.clone() });
        assert!(backup.allows(&record(6, "a", Some("b")), &b));
        // The primary has since bound or lost another backup.
        assert!(backup.allows(&record(8, "a", Some("b")), &b));
        // Another backup had won, and has given the VM back.
        assert!(!backup.allows(&record(7, "c", None), &b));
        assert!(backup.allows(&record(8, "c", Some("b")), &b));
        let mut again = record(8, "a", Some("b"));
        again.backups[0].session = Term(7);
        assert!(!backup.allows(&again, &b), "another session with the same backup");
        for other in [record(5, "a", None), record(7, "a", None), record(7, "b", None), record(6, "a", Some("c"))] {
            assert!(!backup.allows(&other, &b), "{other:?}");
        }
        backup.propose(record(7, "b", None));
        assert!(backup.allows(&record(7, "b", None), &b));
        assert!(!backup.allows(&record(8, "b", None), &b));
    }

    /// A host proposes, and dies before that has got to the witness: what it had won before is still what it may go on from.
    #[test]
    fn a_proposal_does_not_hide_the_one_before() {
        let a: HostName = "a".parse().unwrap();
        let mut log = LogStanding::new(LogRole::Primary { record: record(5, "a", None) });
        log.propose(record(6, "a", Some("b")));
        log.propose(record(7, "a", None));
        assert!(log.allows(&record(6, "a", Some("b")), &a) && log.allows(&record(7, "a", None), &a));
        // The witness has shown an old record, and the host has asked for another of a term that it knew already.
        log.propose(record(6, "a", None));
        assert!(log.allows(&record(6, "a", Some("b")), &a) && log.allows(&record(6, "a", None), &a));
        // What the register has left behind is forgotten, and the rest is bounded.
        log.propose(record(8, "a", None));
        assert_eq!(log.proposed, [record(7, "a", None), record(8, "a", None)]);
        (9..40).for_each(|term| log.propose(record(term, "a", None)));
        (2..40).rev().for_each(|term| log.propose(record(term, "a", Some("b"))));
        assert_eq!(log.proposed.len(), MOST_PROPOSED);
        assert_eq!(log.proposed.last(), Some(&record(2, "a", Some("b"))));
        // The longest records have room in what a log keeps for it: a place of 4 KiB.
        let long: HostName = "x".repeat(32).parse().unwrap();
        let backups = vec![Backup { host: long.clone(), session: Term(u64::MAX) }; 4];
        let longest = Record { term: Term(u64::MAX), primary: long, backups };
        let mut log = LogStanding::new(LogRole::Primary { record: longest.clone() });
        log.proposed = vec![longest; MOST_PROPOSED];
        assert!(serde_json::to_vec(&log).unwrap().len() < 4000);
    }

    /// Each proposal is for a record that the witness has held: a log knows that term, whatever its role was before.
    #[test]
    fn a_log_knows_the_term_of_what_it_was_to_replace() {
        let mut log = LogStanding::new(LogRole::Backup { session: Term(5), primary: "a".parse().unwrap() });
        assert_eq!(log.known_term(), Term(5));
        log.propose(record(8, "b", None));
        assert_eq!(log.known_term(), Term(7));
        log.role = LogRole::Primary { record: record(9, "b", None) };
        assert_eq!(log.known_term(), Term(9));
    }
}
