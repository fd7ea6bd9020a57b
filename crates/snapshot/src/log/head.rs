//! `head.json`: a line of JSON and a line with its checksum.

use serde::{Deserialize, Serialize};

use ninefold_replica::stream::Hello;

use super::error::LogError;
use crate::storage::{Storage, StorageFile};

pub(super) const FILE: &str = "head.json";
const NEW: &str = "head.new";
/// The version of a log's files.
pub(super) const FORMAT: u32 = 5;
/// Commits and segments of a log are never so many.
pub(super) const MAX_NUMBER: u64 = 1 << 60;
/// A longer file is not ours, bytes.
const MAX: u64 = 2 << 20;

/// The root of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Head {
    pub format: u32,
    /// The log's own number, 32 hexadecimal digits.
    #[serde(with = "hex")]
    pub log: u128,
    /// The commit that the base holds; 0: what was there before the first.
    pub base: u64,
    /// The first segment that is needed. It begins with commit `base + 1`.
    pub first: u64,
    /// A commit that was durable when this was written: if it is missing, so is a segment.
    pub durable: u64,
    /// Operations on volumes are played from this commit on. What those before it did is in the images, and newer content over
    /// it: they had been made equal to another host's. 0: all of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub volumes: u64,
    /// The VM and its memory, as they were when the log was made.
    pub hello: Hello,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(number: &u128, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{number:032x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u128, D::Error> {
        u128::from_str_radix(&String::deserialize(d)?, 16).map_err(D::Error::custom)
    }
}

impl Head {
    /// The session that the passes in the segments name.
    pub fn session(&self) -> u64 {
        // Half of a random number is one.
        self.log as u64
    }

    /// # Errors
    /// `None`, `Version`, `Damaged`, `Storage`.
    pub fn load(storage: &dyn Storage) -> Result<Self, LogError> {
        let file = match storage.open(FILE) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(LogError::None),
            other => other.map_err(LogError::storage("cannot open", FILE))?,
        };
        let text = read_all(&*file, FILE, MAX)?;
        let damaged = |what: String| LogError::damaged(FILE, what);
        let mut lines = text.split_inclusive(|&b| b == b'\n');
        let (Some(line), Some(sum), None) = (lines.next(), lines.next(), lines.next()) else {
            return Err(damaged("it is not two lines".into()));
        };
        if sum != format!("{:08x}\n", crc32fast::hash(line)).as_bytes() {
            return Err(damaged("its checksum is wrong".into()));
        }
        // The version first: another one may have other fields.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let Version { format } = serde_json::from_slice(line).map_err(|e| damaged(e.to_string()))?;
        if format != FORMAT {
            return Err(LogError::Version(format, FORMAT));
        }
        let head: Self = serde_json::from_slice(line).map_err(|e| damaged(e.to_string()))?;
        if [head.base, head.first, head.durable, head.volumes].into_iter().any(|number| number > MAX_NUMBER) {
            return Err(damaged("it counts further than anybody can".into()));
        }
        head.hello.check().map_err(|what| damaged(what.into()))?;
        Ok(head)
    }

    /// Takes the place of the one before, in one step. Durable when this returns.
    ///
    /// # Errors
    /// `Storage`: the one before is still there.
    pub fn store(&self, storage: &dyn Storage) -> Result<(), LogError> {
        let failed = || LogError::storage("cannot write", FILE);
        let mut text = serde_json::to_vec(self).map_err(|e| failed()(e.into()))?;
        text.push(b'\n');
        let sum = format!("{:08x}\n", crc32fast::hash(&text));
        text.extend_from_slice(sum.as_bytes());
        let file = storage.create(NEW).map_err(failed())?;
        file.write_at(0, &text).and_then(|()| file.sync()).map_err(failed())?;
        storage.rename(NEW, FILE).and_then(|()| storage.sync()).map_err(failed())
    }
}

/// All of a small file.
pub(super) fn read_all(file: &dyn StorageFile, name: &str, most: u64) -> Result<Vec<u8>, LogError> {
    let length = file.len().map_err(LogError::storage("cannot read", name))?;
    if length > most {
        return Err(LogError::damaged(name, format!("it is {length} bytes long")));
    }
    let mut bytes = vec![0; length as usize];
    let got = file.read_at(0, &mut bytes).map_err(LogError::storage("cannot read", name))?;
    bytes.truncate(got);
    Ok(bytes)
}
