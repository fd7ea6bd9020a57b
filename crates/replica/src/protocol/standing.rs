//! What a log on disk says about the witness: whether its host may go on from it after a loss of power.

use ninefold_model::{HostName, Record, Term};
use serde::{Deserialize, Serialize};

/// On what terms the host that writes a log stands with the witness.
///
/// It is noted before each proposal to the witness, with what is proposed: so a record that the host has won and not yet acted
/// on is known as its own. What is let go under a record needs no note: nothing is let go that is not in the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    pub role: LogRole,
    /// What the host has asked the witness for, or is about to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposed: Option<Record>,
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

impl Standing {
    /// That of a host in this role.
    pub fn new(role: LogRole) -> Self {
        Self { role, proposed: None, behind: false }
    }

    /// A term that the witness has held.
    pub fn known_term(&self) -> Term {
        match &self.role {
            LogRole::Primary { record } => record.term,
            LogRole::Backup { session, .. } => *session,
        }
    }

    /// Whether nothing that was let go under `record` is missing in the log, so that `me` may go on from it once it has won the
    /// record that follows.
    pub fn vouches(&self, record: &Record, me: &HostName) -> bool {
        if self.behind {
            return false;
        }
        // Only the host itself proposes a record that names it as primary.
        if record.primary == *me && self.proposed.as_ref() == Some(record) {
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
    fn only_what_the_log_speaks_of_is_vouched_for() {
        let (a, b): (HostName, HostName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut primary = Standing::new(LogRole::Primary { record: record(5, "a", None) });
        assert!(primary.vouches(&record(5, "a", None), &a));
        for other in [record(5, "a", Some("b")), record(6, "a", None), record(5, "b", None)] {
            assert!(!primary.vouches(&other, &a), "{other:?}");
        }
        assert!(!primary.vouches(&record(5, "a", None), &b));
        primary.proposed = Some(record(6, "a", Some("b")));
        assert!(primary.vouches(&record(5, "a", None), &a));
        assert!(primary.vouches(&record(6, "a", Some("b")), &a));
        assert!(!primary.vouches(&record(7, "a", None), &a));
        primary.behind = true;
        assert!(!primary.vouches(&record(5, "a", None), &a));

        let mut backup = Standing::new(LogRole::Backup { session: Term(5), primary: a.clone() });
        assert!(backup.vouches(&record(6, "a", Some("b")), &b));
        // The primary has since bound or lost another backup.
        assert!(backup.vouches(&record(8, "a", Some("b")), &b));
        // Another backup had won, and has given the VM back.
        assert!(!backup.vouches(&record(7, "c", None), &b));
        assert!(backup.vouches(&record(8, "c", Some("b")), &b));
        let mut again = record(8, "a", Some("b"));
        again.backups[0].session = Term(7);
        assert!(!backup.vouches(&again, &b), "another session with the same backup");
        for other in [record(5, "a", None), record(7, "a", None), record(7, "b", None), record(6, "a", Some("c"))] {
            assert!(!backup.vouches(&other, &b), "{other:?}");
        }
        backup.proposed = Some(record(7, "b", None));
        assert!(backup.vouches(&record(7, "b", None), &b));
        assert!(!backup.vouches(&record(8, "b", None), &b));
    }
}
