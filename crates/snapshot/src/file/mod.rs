//! Snapshot files: a VM at one moment, in one file.
//!
//! ```text
//!   preamble │ Hello │ SnapshotHead │ sync rounds │ checkpoint 1 │ VolumeContent… │ SnapshotIndex… │ SnapshotEnd
//!   └─────────────────── a checkpoint stream ────────────────────┘ └── one for each block ─┘
//! ```
//!
//! Memory comes in rounds while the guest runs, then the checkpoint that makes it consistent: of a page that is there more than
//! once the last counts. The index names every page and block that is not zero, with its checksum and where its content
//! stands: in this file, or in the **parent** if it has not changed since. So an incremental snapshot is found by comparing
//! checksums; nothing has to be tracked from one snapshot to the next.
//!
//! The end holds the SHA-256 of head, index and device state: the snapshot's **root**. As the index holds the checksum of every
//! page and block, the root stands for all of the content, that in the parents too. A file without its end was never finished.
//!
//! ```text
//!   Writer::create ──► rounds, checkpoint ──► Writer::volumes ──► blocks ──► finish
//!   Snapshot::open ──► info · load · block · verify · flatten
//! ```

mod content;
mod end;
mod error;
mod head;
mod index;
mod reader;
mod writer;

pub use error::FileError;
pub use head::{Head, Parent, Platform};
pub use reader::{OnProgress, Snapshot, State};
pub use writer::{VolumeWriter, Writer, Written};

/// The longest chain of parents.
pub const MAX_DEPTH: usize = 64;
/// Bytes of a checksum.
pub const SUM: usize = ninefold_volume::checksums::SUM;
/// Bytes of a block of a volume.
pub const BLOCK: usize = ninefold_volume::checksums::BLOCK as usize;

/// The checksum of all that a snapshot holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Root(pub [u8; 32]);

impl std::fmt::Display for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl From<Root> for String {
    fn from(root: Root) -> String {
        root.to_string()
    }
}

impl TryFrom<String> for Root {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const BAD: &str = "not 64 hexadecimal digits";
        let mut root = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(BAD);
        }
        for (n, byte) in root.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).map_err(|_| BAD)?;
        }
        Ok(Self(root))
    }
}
