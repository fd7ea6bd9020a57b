//! What an authority refuses.

use std::io;
use std::path::{Path, PathBuf};

use ninefold_model::HostName;

use crate::dates::UtcTime;
use crate::error::TransportError;

/// Why an authority has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("there is an authority, or something else, in {dir} already")]
    Exists { dir: PathBuf },
    #[error("there is no authority in {dir}")]
    Missing { dir: PathBuf },
    #[error("{path} can be read or written by others than its owner (mode {mode:03o})")]
    Readable { path: PathBuf, mode: u32 },
    #[error("{path} is damaged: {reason}")]
    Index { path: PathBuf, reason: String },
    /// A certificate or a key that cannot be an authority's here.
    #[error("{path}: {reason}")]
    Unfit { path: PathBuf, reason: String },
    #[error("{what} {path}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("another command has been at work on the authority in {dir} for {seconds} s")]
    Busy { dir: PathBuf, seconds: u64 },
    #[error("this host's clock says {now}: it is not set")]
    ClockNotSet { now: UtcTime },
    #[error("by this host's clock, which says {now}, the authority is good from {not_before} to {not_after} only")]
    NotInForce { now: UtcTime, not_before: UtcTime, not_after: UtcTime },
    #[error("host {host} has a certificate already, valid until {not_after}")]
    HasOne { host: HostName, not_after: UtcTime },
    #[error("no certificate has been issued to host {host}")]
    UnknownHost { host: HostName, known: Vec<HostName> },
    #[error("host {host} has no certificate that could be revoked: each is revoked, or has expired long ago")]
    NothingToRevoke { host: HostName },
    #[error("no certificate with the serial number {serial} has been issued")]
    UnknownSerial { serial: String },
    #[error("the certificate with the serial number {serial} was revoked at {at}")]
    AlreadyRevoked { serial: String, at: UtcTime },
    #[error("{path} cannot be written: {reason}")]
    Out { path: PathBuf, reason: String },
    #[error("no certificate for {subject} can be made: {reason}")]
    Make { subject: String, reason: String },
    /// What was made would not be accepted.
    #[error("what was made cannot be used")]
    Made(#[source] Box<TransportError>),
}

pub(super) type Result<T> = std::result::Result<T, AuthorityError>;

/// An I/O error with its object: `.map_err(at("cannot read", path))`.
pub(super) fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    let path = path.to_owned();
    move |source| AuthorityError::File { what, path, source }
}

/// Something of a file that does not fit.
pub(super) fn unfit(path: &Path, reason: impl ToString) -> AuthorityError {
    AuthorityError::Unfit { path: path.to_owned(), reason: reason.to_string() }
}
