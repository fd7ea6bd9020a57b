//! A snapshot without its parents.

use std::io;

use ninefold_replica::stream::PageRun;
use ninefold_replica::stream::page::PAGE_SIZE;

use super::{OnProgress, Snapshot, tell};
use crate::file::error::FileError;
use crate::file::head::Head;
use crate::file::index::Of;
use crate::file::writer::{Writer, Written};

impl Snapshot {
    /// Writes the same snapshot without parents, under the name that `head` says. Every content is checked.
    ///
    /// # Errors
    /// `Damaged`, `Io`, `Stream`.
    pub fn flatten<W: io::Write>(&self, out: W, head: &Head, told: OnProgress<'_>) -> Result<(W, Written), FileError> {
        let head = Head { parent: None, ..head.clone() };
        let mut writer = Writer::create(out, &self.hello, &head, None)?;
        let (mut done, total) = (0, self.end.pages + self.end.blocks);
        writer.begin_round(self.state.term)?;
        let (mut runs, mut bytes): (Vec<PageRun>, Vec<u8>) = (Vec::new(), Vec::new());
        let mut page = [0; PAGE_SIZE];
        for (block, index) in (0u16..).zip(&self.memory) {
            for entries in index.entries().chunks(256) {
                runs.clear();
                bytes.clear();
                for entry in entries {
                    self.unit(Of::Memory(block), entry.number, &mut page)?;
                    runs.push(PageRun { block, first: entry.number.into(), count: 1 });
                    bytes.extend_from_slice(&page);
                }
                writer.pages(&runs, &bytes)?;
                done += entries.len() as u64;
                tell(told, done, total)?;
            }
        }
        writer.end_round()?;
        writer.begin_checkpoint(self.state.term, &self.state.device_state, &self.state.output)?;
        let mut writer = writer.volumes()?;
        let mut content = Vec::new();
        for (volume, index) in (0u16..).zip(&self.volumes) {
            for entry in index.entries() {
                self.block(volume, entry.number.into(), &mut content)?;
                writer.block(volume, entry.number.into(), &content)?;
                done += 1;
                tell(told, done, total)?;
            }
        }
        writer.finish()
    }
}
