//! The end of a snapshot, and the root over all of it.

use ninefold_replica::stream::header::HEADER_LEN;
use ring::digest::{Context, Digest, SHA256, digest};

use super::Root;

/// Bytes of the end's payload, and of its record.
pub(super) const PAYLOAD: usize = 80;
pub(super) const RECORD: usize = HEADER_LEN + PAYLOAD;

/// Where the parts of a snapshot are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// The checkpoint's first record, bytes from the file's begin.
    pub checkpoint: u64,
    /// The first byte behind the checkpoint.
    pub volumes: u64,
    /// The first index record.
    pub index: u64,
    /// Pages and blocks in the index.
    pub pages: u64,
    pub blocks: u64,
    pub root: Root,
}

impl End {
    pub fn to_bytes(self) -> [u8; PAYLOAD] {
        let mut bytes = [0; PAYLOAD];
        for (place, number) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.numbers()) {
            *place = number.to_le_bytes();
        }
        bytes[PAYLOAD - 32..].copy_from_slice(&self.root.0);
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; PAYLOAD] = bytes.try_into().ok()?;
        let number = |n: usize| u64::from_le_bytes(bytes.as_chunks::<8>().0[n]);
        let root = Root(*bytes[PAYLOAD - 32..].first_chunk()?);
        let end = Self {
            checkpoint: number(0),
            volumes: number(1),
            index: number(2),
            pages: number(3),
            blocks: number(4),
            root,
        };
        (number(5) == 0).then_some(end)
    }

    fn numbers(&self) -> [u64; 5] {
        [self.checkpoint, self.volumes, self.index, self.pages, self.blocks]
    }
}

/// What the root is made from, as it comes.
#[derive(Clone)]
pub(super) struct Rooting(Context);

impl std::fmt::Debug for Rooting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rooting")
    }
}

impl Rooting {
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    /// A part, with its length, so that two parts cannot be taken for others.
    pub fn part(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Device state and what the channels said.
    pub fn state(&mut self, state: &[u8], output: &[Vec<u8>]) {
        self.part(digest(&SHA256, state).as_ref());
        let said = output.iter().rposition(|o| !o.is_empty()).map_or(0, |last| last + 1);
        output[..said].iter().for_each(|output| self.part(digest(&SHA256, output).as_ref()));
    }

    pub fn finish(self) -> Root {
        let digest: Digest = self.0.finish();
        let mut root = [0; 32];
        root.copy_from_slice(digest.as_ref());
        Root(root)
    }
}
