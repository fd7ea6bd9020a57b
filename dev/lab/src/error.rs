//! What can go wrong in a lab.

use std::io;
use std::time::Duration;

/// Why a lab could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A lab or host name that cannot be used.
    #[error("'{name}' cannot be used as a name in a lab: {reason}")]
    Name { name: String, reason: String },
    #[error("lab '{0}' is up already: take it down first (`ninefold-lab down`)")]
    Exists(String),
    #[error("there is no lab '{0}'")]
    NotFound(String),
    #[error("lab '{lab}' has no host '{host}'")]
    NoHost { lab: String, host: String },
    #[error("a lab needs root: it makes network namespaces")]
    NotRoot,
    /// A file, a socket or a system call.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// A command of the set-up failed.
    #[error("{what} failed: {detail}")]
    Command { what: String, detail: String },
    #[error("the program '{0}' was not found: build it, or set NINEFOLD_BIN_DIR to its directory")]
    Program(String),
    #[error("no {what} within {after:?}{detail}")]
    Timeout { what: String, after: Duration, detail: String },
    #[error("lab '{lab}' left behind: {what}")]
    Left { lab: String, what: String },
    #[error("host {host}: {what}")]
    Host { host: String, what: String },
    /// The ledger's client and the server do not understand each other.
    #[error("the server's answer is no RESP: {0}")]
    Resp(String),
}

/// Names the object of a failed I/O operation: `.map_err(io_at("read /proc/mounts"))`.
pub(crate) fn io_at<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> LabError {
    |source| LabError::Io { what: what.into(), source: source.into() }
}
