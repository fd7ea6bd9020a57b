//! Pages of a block, one behind the other.

use crate::blocks::PAGE_SIZE;
use crate::error::MachineError;

/// `count` pages of one block, from page `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageRun {
    /// Index into [`BlockLayout::blocks`](crate::blocks::BlockLayout::blocks).
    pub block: u16,
    /// Pages of [`PAGE_SIZE`].
    pub count: u32,
    /// The first page's number in the block.
    pub first: u64,
}

impl PageRun {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.count as usize * PAGE_SIZE as usize
    }

    pub(crate) fn refuse(&self, reason: &'static str) -> MachineError {
        MachineError::Range { block: self.block, first: self.first, count: self.count, reason }
    }
}
