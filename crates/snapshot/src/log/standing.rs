//! On what terms with the witness a log was written: two places in a small file that are written one after the other, so that
//! one of them is always whole, and both say the same unless a crash came between. The place that may be torn is the first
//! to be written. It needs no room on a full disk.

use ninefold_replica::protocol::LogStanding;

use super::error::LogError;
use super::head::{MAX_NUMBER, read_all};
use crate::storage::{Storage, StorageFile};

pub(super) const FILE: &str = "standing";
/// One place, bytes.
const SLOT: usize = 4096;
/// Number, length, checksum.
const HEAD: usize = 16;

/// The file, and how often it was written.
#[derive(Debug)]
pub(super) struct StandingFile {
    file: Box<dyn StorageFile>,
    number: u64,
    /// The place that is known to be whole, 0 or 1.
    whole: usize,
    /// What is noted.
    pub standing: LogStanding,
}

impl StandingFile {
    /// # Errors
    /// `Storage`.
    pub fn create(storage: &dyn Storage, standing: &LogStanding) -> Result<Self, LogError> {
        let failed = || LogError::storage("cannot make", FILE);
        let file = storage.create(FILE).map_err(failed())?;
        file.write_at(0, &[0; 2 * SLOT]).map_err(failed())?;
        let mut this = Self { file, number: 0, whole: 1, standing: standing.clone() };
        this.write(standing)?;
        Ok(this)
    }

    /// # Errors
    /// `Damaged`, `Storage`.
    pub fn load(storage: &dyn Storage) -> Result<Self, LogError> {
        let file = storage.open(FILE).map_err(LogError::storage("cannot open", FILE))?;
        let bytes = read_all(&*file, FILE, 2 * SLOT as u64)?;
        let places = bytes.chunks(SLOT).enumerate().filter_map(|(place, bytes)| Some((place, slot(bytes)?)));
        let newest = places.max_by_key(|(_, (number, _))| *number);
        let (whole, (number, text)) = newest.ok_or_else(|| LogError::damaged(FILE, "neither place in it is whole"))?;
        let standing = serde_json::from_slice(text).map_err(|e| LogError::damaged(FILE, e.to_string()))?;
        Ok(Self { file, number, whole, standing })
    }

    /// Durable when this returns. On an error it is this one or the one before. After [`load`](Self::load) comes
    /// [`sync`](Self::sync) first: what was read need not be on the disk yet.
    ///
    /// # Errors
    /// `Storage`.
    pub fn write(&mut self, standing: &LogStanding) -> Result<(), LogError> {
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
        // Also if this fails: no two of them have the same number.
        self.number = number;
        for _ in 0..2 {
            let place = 1 - self.whole;
            let at = (place * SLOT) as u64;
            self.file.write_at(at, &slot).and_then(|()| self.file.sync()).map_err(failed())?;
            self.whole = place;
        }
        self.standing.clone_from(standing);
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
    (checksum(&head[..12], text) == sum && (1..=MAX_NUMBER).contains(&number)).then_some((number, text))
}
