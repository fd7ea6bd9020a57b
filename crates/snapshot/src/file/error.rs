//! What can be wrong with a snapshot file.

use std::io;

use ninefold_replica::stream::{LayoutError, StreamError};

use super::Root;

/// Why a snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system failed.
    #[error("{what}")]
    Io { what: &'static str, source: io::Error },
    /// It has no end: it is no snapshot, was cut off, or was never finished.
    #[error("this is not a whole snapshot file")]
    NotWhole,
    /// It is of a version that this release does not know.
    #[error("the snapshot is of version {0}, this release reads {1}")]
    Version(u32, u32),
    /// It is not as it was written.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// Something of it is larger than anything that a snapshot is of.
    #[error("it has {found} {what}, at most {most} are possible")]
    Beyond { what: &'static str, found: u64, most: u64 },
    /// A record is not as it was written, or cannot be.
    #[error("the snapshot's stream")]
    Stream(#[from] StreamError),
    /// The parent under that name is not the one that it was made from.
    #[error("the parent has root {found}, and was {wanted} when this snapshot was made")]
    WrongParent { wanted: Root, found: Root },
    /// The parent is needed and is not there.
    #[error("the parent '{name}' cannot be used")]
    Parent { name: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// The chain of parents is too long.
    #[error("it has more than {0} parents: export it, and import that")]
    TooDeep(usize),
    /// It was made in something that this host has not.
    #[error("it cannot be loaded here: its {what} is {theirs}, here it is {ours}")]
    Platform { what: &'static str, theirs: String, ours: String },
    /// The VM has other memory.
    #[error("it is of a VM with other memory")]
    Layout(#[from] LayoutError),
    /// What is asked for is not in it.
    #[error("{0}")]
    Refused(String),
    /// Whoever was told how far it is wanted no more.
    #[error("cancelled")]
    Cancelled,
    /// Where it is loaded to cannot be written.
    #[error("{what}")]
    Target { what: &'static str, source: io::Error },
}

impl FileError {
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    pub(super) fn within(what: &'static str, found: u64, most: u64) -> Result<(), Self> {
        if found <= most { Ok(()) } else { Err(Self::Beyond { what, found, most }) }
    }

    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged(what.into())
    }
}
