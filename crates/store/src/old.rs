//! Records as they were when a VM had one backup at most: in version 1 on the wire and in format 1 on disk.
//!
//! A session was then always bound by the term right after its own, so the old form says which session is meant without
//! naming it.

use ninefold_model::{Backup, HostName, Record, Term};
use serde::{Deserialize, Serialize};

/// A record of one backup at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldRecord {
    pub term: Term,
    pub primary: HostName,
    pub backup: Option<HostName>,
    pub synced: bool,
}

impl From<OldRecord> for Record {
    fn from(old: OldRecord) -> Self {
        let OldRecord { term, primary, backup, synced } = old;
        let session = Term(term.0.saturating_sub(1));
        let backups = backup.filter(|_| synced).map(|host| Backup { host, session }).into_iter().collect();
        Record { term, primary, backups }
    }
}

/// What the old form cannot say is left out: then the way back leads to another record, so that a host that speaks the old
/// version can look at it but wins nothing with it.
impl From<Record> for OldRecord {
    fn from(record: Record) -> Self {
        let Record { term, primary, backups } = record;
        let synced = !backups.is_empty();
        OldRecord { term, primary, backup: backups.into_iter().next().map(|b| b.host), synced }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn what_the_old_form_can_say_comes_back() {
        let boot = Record::boot(host("a"));
        let bound = boot.bound(vec![Backup { host: host("b"), session: Term(1) }]);
        for record in [boot.clone(), bound.clone(), bound.alone(host("b"))] {
            assert_eq!(Record::from(OldRecord::from(record.clone())), record);
        }
    }

    #[test]
    fn what_it_cannot_say_does_not_come_back() {
        let two = vec![Backup { host: host("b"), session: Term(1) }, Backup { host: host("c"), session: Term(2) }];
        let both = Record { term: Term(3), primary: host("a"), backups: two };
        let shown = OldRecord::from(both.clone());
        assert_eq!((shown.backup.clone(), shown.synced), (Some(host("b")), true));
        assert_ne!(Record::from(shown), both);
        // One backup, but bound some terms ago.
        let earlier = both.bound(vec![Backup { host: host("b"), session: Term(1) }]);
        assert_ne!(Record::from(OldRecord::from(earlier.clone())), earlier);
    }
}
