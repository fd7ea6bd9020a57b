//! How the kernel tells which pages were written.

use std::fmt;

/// How the kernel tells which pages were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// userfaultfd and PAGEMAP_SCAN, Linux 6.7 or newer.
    PagemapScan,
    /// Soft-dirty bits: slower, each scan freezes QEMU for a moment.
    SoftDirty,
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mechanism::PagemapScan => "pagemap-scan",
            Mechanism::SoftDirty => "soft-dirty",
        })
    }
}
