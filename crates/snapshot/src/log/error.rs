//! What can be wrong with a log.

use std::io;

use ninefold_replica::stream::{LayoutError, StreamError};

/// Why a log could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system failed.
    #[error("{what} {file}")]
    Storage { what: &'static str, file: String, source: io::Error },
    /// There is none.
    #[error("there is no log")]
    None,
    /// The log is of a version that this release does not know.
    #[error("the log is of version {0}, this release reads {1}")]
    Version(u32, u32),
    /// A file is not as it was written. All files are left as they are.
    #[error("the log is damaged: {file}: {what}")]
    Damaged { file: String, what: String },
    /// It is not the log of the VM that is asked for.
    #[error("{0}")]
    Refused(String),
    /// A sync failed earlier: what was written then may be lost, so nothing more is appended.
    #[error("the log cannot go on: {0}")]
    Spoilt(String),
    /// It is as long as it may be, and the base does not keep up.
    #[error("{waiting} bytes of the log wait to be put into its base, {limit} are allowed")]
    TooLong { waiting: u64, limit: u64 },
    /// What was to be written does not make a commit.
    #[error("a commit cannot be written")]
    Stream(#[from] StreamError),
    /// The memory of the VM is another.
    #[error("the log is of another memory")]
    Layout(#[from] LayoutError),
    /// Operations on a volume, or the memory that is loaded, could not be written.
    #[error("{what}")]
    Target { what: String, source: io::Error },
}

impl LogError {
    pub(super) fn storage(what: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Storage { what, file, source }
    }

    pub(super) fn damaged(file: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged { file: file.into(), what: what.into() }
    }

    /// The disk is full: there will be room again when something is removed, and nothing that was committed is lost.
    pub fn is_full(&self) -> bool {
        let full = |e: &io::Error| matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match self {
            Self::Storage { source, .. } | Self::Target { source, .. } => full(source),
            Self::Stream(StreamError::Io(source)) => full(source),
            _ => false,
        }
    }
}
