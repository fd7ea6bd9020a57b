//! The RAM blocks of a VM and the runs of pages in them.

use serde::{Deserialize, Serialize};

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// Most blocks that a layout may have. QEMU makes about ten for a small PC.
pub const MAX_BLOCKS: usize = 1024;
/// Longest block name, bytes (QEMU's `RAMBlock.idstr` has 256 with its NUL).
pub const MAX_BLOCK_NAME: usize = 255;
/// Most pages in all blocks together: page numbers are 32 bits on the wire.
pub const MAX_PAGES: u64 = 1 << 32;

/// One RAM block of QEMU (`info ramblock`). Its place in the layout is its number on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockInfo {
    /// QEMU's name, such as `pc.ram` or `/rom@etc/acpi/tables`.
    pub name: String,
    /// Bytes in use.
    pub used: u64,
    /// Bytes that the block can grow to. Pages up to here may be sent.
    pub total: u64,
}

/// Why a layout was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("{0} RAM blocks, at most {MAX_BLOCKS} are allowed")]
    TooManyBlocks(usize),
    #[error("RAM blocks of more than {MAX_PAGES} pages together")]
    TooManyPages,
    #[error("RAM block '{name}': {what}")]
    BadBlock { name: String, what: &'static str },
    #[error("RAM block {index} is '{ours}' here and '{theirs}' on the other side")]
    Differs { index: usize, ours: String, theirs: String },
}

/// All RAM blocks of a VM, in QEMU's order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<BlockInfo>", into = "Vec<BlockInfo>")]
pub struct Layout(Vec<BlockInfo>);

impl Layout {
    /// # Errors
    /// Sizes that are not whole pages, a block that uses more than it has, or more blocks or pages than the format can name.
    pub fn new(blocks: Vec<BlockInfo>) -> Result<Self, LayoutError> {
        if blocks.len() > MAX_BLOCKS {
            return Err(LayoutError::TooManyBlocks(blocks.len()));
        }
        let mut pages = 0u64;
        for block in &blocks {
            let bad = |what| LayoutError::BadBlock { name: block.name.chars().take(64).collect(), what };
            if block.name.len() > MAX_BLOCK_NAME {
                return Err(bad("its name is too long"));
            }
            if block.used > block.total {
                return Err(bad("it uses more than it has"));
            }
            if !block.total.is_multiple_of(PAGE_SIZE as u64) || !block.used.is_multiple_of(PAGE_SIZE as u64) {
                return Err(bad("its size is not a whole number of pages"));
            }
            pages = pages.saturating_add(block.total / PAGE_SIZE as u64);
        }
        if pages > MAX_PAGES { Err(LayoutError::TooManyPages) } else { Ok(Self(blocks)) }
    }

    /// The blocks in order.
    pub fn blocks(&self) -> &[BlockInfo] {
        &self.0
    }

    /// Pages that `block` can have; none if there is no such block.
    pub fn pages(&self, block: u16) -> Option<u64> {
        self.0.get(usize::from(block)).map(|b| b.total / PAGE_SIZE as u64)
    }

    /// Pages of all blocks.
    pub fn total_pages(&self) -> u64 {
        self.0.iter().map(|b| b.total / PAGE_SIZE as u64).sum()
    }

    /// Whether `theirs` is the same: the two QEMUs then have the same memory.
    ///
    /// # Errors
    /// The first difference.
    pub fn same_as(&self, theirs: &Layout) -> Result<(), LayoutError> {
        let show = |block: Option<&BlockInfo>| {
            block.map_or_else(|| "absent".to_owned(), |b| format!("{} ({} of {} bytes)", b.name, b.used, b.total))
        };
        match (0..self.0.len().max(theirs.0.len())).find(|&i| self.0.get(i) != theirs.0.get(i)) {
            None => Ok(()),
            Some(index) => {
                let (ours, theirs) = (show(self.0.get(index)), show(theirs.0.get(index)));
                Err(LayoutError::Differs { index, ours, theirs })
            }
        }
    }
}

impl TryFrom<Vec<BlockInfo>> for Layout {
    type Error = LayoutError;

    fn try_from(blocks: Vec<BlockInfo>) -> Result<Self, LayoutError> {
        Self::new(blocks)
    }
}

impl From<Layout> for Vec<BlockInfo> {
    fn from(layout: Layout) -> Self {
        layout.0
    }
}

/// Pages that lie next to each other in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRun {
    /// Number of the block in the [`Layout`].
    pub block: u16,
    /// First page, counted from the block's begin.
    pub first: u64,
    /// How many pages.
    pub count: u32,
}
