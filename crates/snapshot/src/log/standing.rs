//! On what terms with the witness a log was written: two places in a small file that are written one after the other, so that
//! one of them is always whole, and both say the same unless a crash came between. It needs no room on a full disk.

use ninefold_model::{HostName, Record, Term};
use serde::{Deserialize, Serialize};

use super::error::LogError;
use super::head::read_all;
use crate::storage::{Storage, StorageFile};

pub(super) const FILE: &str = "standing";
/// One place, bytes.
const SLOT: usize = 4096;
/// Number, length, checksum.
const HEAD: usize = 16;

/// On what terms the host that writes a log stands with the witness.
///
/// It is noted before each proposal to the witness, with what is proposed: so a record that the host has won and not yet acted
/// on is known as its own. What is let go under a record needs no note: nothing is let go that is not in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    pub role: Role,
    /// What the host has asked the witness for, or is about to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposed: Option<Record>,
    /// Output was let go that is not in the log: it is a state of the past, for a person to choose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub behind: bool,
}

/// What the host was to its VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Role {
    /// It ran the VM under this record and let no output go that is not in the log.
    Primary { record: Record },
    /// It received the checkpoints of this session and acknowledged none that is not in the log.
    Backup { session: Term, primary: HostName },
}

impl Standing {
    /// That of a host in this role.
    pub fn new(role: Role) -> Self {
        Self { role, proposed: None, behind: false }
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
            Role::Primary { record: own } => own == record && record.primary == *me,
            Role::Backup { session, primary } => record.primary == *primary && record.binds(me, *session),
        }
    }
}

/// The file, and how often it was written.
#[derive(Debug)]
pub(super) struct StandingFile {
    file: Box<dyn StorageFile>,
    number: u64,
}

impl StandingFile {
    /// # Errors
    /// `Storage`.
    pub fn create(storage: &dyn Storage, standing: &Standing) -> Result<Self, LogError> {
        let failed = || LogError::storage("cannot make", FILE);
        let file = storage.create(FILE).map_err(failed())?;
        file.write_at(0, &[0; 2 * SLOT]).map_err(failed())?;
        let mut this = Self { file, number: 0 };
        this.write(standing)?;
        Ok(this)
    }

    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn load(storage: &dyn Storage) -> Result<(Self, Standing), LogError> {
        let file = storage.open(FILE).map_err(LogError::storage("cannot open", FILE))?;
        let bytes = read_all(&*file, FILE, 2 * SLOT as u64)?;
        let newest = bytes.chunks(SLOT).filter_map(slot).max_by_key(|(number, _)| *number);
        let (number, text) = newest.ok_or_else(|| LogError::damaged(FILE, "neither place in it is whole"))?;
        let standing = serde_json::from_slice(text).map_err(|e| LogError::damaged(FILE, e.to_string()))?;
        Ok((Self { file, number }, standing))
    }

    /// Durable when this returns. On an error it is this one or the one before.
    ///
    /// # Errors
    /// `Storage`.
    pub fn write(&mut self, standing: &Standing) -> Result<(), LogError> {
        let failed = || LogError::storage("cannot write", FILE);
        let text = serde_json::to_vec(standing).map_err(|e| failed()(e.into()))?;
        let number = self.number + 1;
        let mut slot = Vec::with_capacity(SLOT);
        slot.extend_from_slice(&number.to_le_bytes());
        slot.extend_from_slice(&(text.len() as u32).to_le_bytes());
        let sum = checksum(&slot, &text);
        slot.extend_from_slice(&sum.to_le_bytes());
        slot.extend_from_slice(&text);
        if slot.len() > SLOT {
            return Err(failed()(std::io::ErrorKind::FileTooLarge.into()));
        }
        slot.resize(SLOT, 0);
        for place in [0, SLOT as u64] {
            self.file.write_at(place, &slot).and_then(|()| self.file.sync()).map_err(failed())?;
        }
        self.number = number;
        Ok(())
    }
}

impl StandingFile {
    /// # Errors
    /// `Storage`.
    pub fn sync(&self) -> Result<(), LogError> {
        self.file.sync().map_err(LogError::storage("cannot sync", FILE))
    }
}

fn checksum(head: &[u8], text: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(head);
    crc.update(text);
    crc.finalize()
}

fn slot(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let number = u64::from_le_bytes(*head.first_chunk()?);
    let length = u32::from_le_bytes(*head[8..].first_chunk()?);
    let sum = u32::from_le_bytes(*head[12..].first_chunk()?);
    let text = rest.get(..length as usize)?;
    (checksum(&head[..12], text) == sum && number > 0).then_some((number, text))
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
        let mut primary = Standing::new(Role::Primary { record: record(5, "a", None) });
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

        let mut backup = Standing::new(Role::Backup { session: Term(5), primary: a.clone() });
        assert!(backup.vouches(&record(6, "a", Some("b")), &b));
        // The primary has since bound or lost another backup.
        assert!(backup.vouches(&record(8, "a", Some("b")), &b));
        let mut again = record(8, "a", Some("b"));
        again.backups[0].session = Term(7);
        assert!(!backup.vouches(&again, &b), "another session with the same backup");
        for other in [
            record(5, "a", None),
            record(7, "a", None),
            record(7, "b", None),
            record(6, "a", Some("c")),
            record(6, "c", Some("b")),
        ] {
            assert!(!backup.vouches(&other, &b), "{other:?}");
        }
        backup.proposed = Some(record(7, "b", None));
        assert!(backup.vouches(&record(7, "b", None), &b));
        assert!(!backup.vouches(&record(8, "b", None), &b));
    }
}
