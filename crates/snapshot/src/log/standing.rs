//! On what terms with the witness a log was written: two places in a small file that are written one after the other, so that
//! one of them is always whole, and both say the same unless a crash came between. It needs no room on a full disk.

use ninefold_model::{HostName, Record, Term};
use serde::{Deserialize, Serialize};

use super::error::LogError;
use super::head::read_all;
use crate::storage::{Storage, StorageFile};

pub(super) const FILE: &str = "standing";
/// One place, bytes.
const SLOT: usize = 512;
/// Number, length, checksum.
const HEAD: usize = 16;

/// What the host that writes a log was to its VM, as far as it had this in writing from the witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case", deny_unknown_fields)]
pub enum Standing {
    /// It ran the VM under the record of this term and let no output go that is not in the log.
    Primary { term: Term },
    /// It received the checkpoints of this session and acknowledged none that is not in the log.
    Backup { session: Term, primary: HostName },
    /// Output was let go that is not in the log: after this the log is a state of the past, for a person to choose.
    Behind,
}

impl Standing {
    /// Whether nothing that was let go under `record` is missing in the log, so that `me` may go on from it once it has won the
    /// record that follows.
    ///
    /// A primary writes here what it has won before it lets anything go under it. So a record that is one ahead, and names
    /// the same primary, was won by the very process that wrote the log, which then did nothing more: only a primary
    /// itself proposes a record that names it. The same holds for a backup that has just won its claim.
    pub fn vouches(&self, record: &Record, me: &HostName) -> bool {
        match self {
            Standing::Primary { term } => record.primary == *me && (record.term == *term || record.term == term.next()),
            Standing::Backup { session, primary } => {
                let bound = session.next();
                let claimable = record.term == bound
                    && record.synced
                    && record.primary == *primary
                    && record.backup.as_ref() == Some(me);
                let claimed = record.term == bound.next() && !record.synced && record.primary == *me;
                claimable || claimed
            }
            Standing::Behind => false,
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
        // Names are short: this always fits.
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
    use super::*;

    fn record(term: u64, primary: &str, backup: Option<&str>) -> Record {
        Record {
            term: Term(term),
            primary: primary.parse().unwrap(),
            backup: backup.map(|b| b.parse().unwrap()),
            synced: backup.is_some(),
        }
    }

    #[test]
    fn only_the_record_that_follows_is_vouched_for() {
        let (a, b): (HostName, HostName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let primary = Standing::Primary { term: Term(5) };
        assert!(primary.vouches(&record(5, "a", None), &a));
        assert!(primary.vouches(&record(5, "a", Some("b")), &a));
        assert!(primary.vouches(&record(6, "a", None), &a));
        for other in [record(7, "a", None), record(4, "a", None), record(5, "b", None), record(6, "b", Some("a"))] {
            assert!(!primary.vouches(&other, &a), "{other:?}");
        }
        let backup = Standing::Backup { session: Term(5), primary: a.clone() };
        assert!(backup.vouches(&record(6, "a", Some("b")), &b));
        assert!(backup.vouches(&record(7, "b", None), &b));
        for other in [
            record(5, "a", None),
            record(7, "a", None),
            record(6, "a", Some("c")),
            record(8, "a", Some("b")),
            record(8, "b", None),
            record(7, "b", Some("a")),
        ] {
            assert!(!backup.vouches(&other, &b), "{other:?}");
        }
        assert!(!Standing::Behind.vouches(&record(5, "a", None), &a));
    }
}
