//! The files of an identity, read at one moment.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::error::{Result, TransportError};

/// The authority that both sides trust, PEM.
pub const CA_FILE: &str = "ca.pem";
/// This host's certificate (and intermediates, if any), PEM.
pub const CERT_FILE: &str = "cert.pem";
/// This host's private key, PEM, PKCS #8, SEC 1 or PKCS #1. Nobody but its owner may read it.
pub const KEY_FILE: &str = "key.pem";
/// What the authority has revoked, PEM. There need not be one.
pub const CRL_FILE: &str = "crl.pem";

/// The longest file that is read, bytes. A list that names 30,000 certificates has about 1 MiB.
const MOST: u64 = 4 << 20;

/// Of one file: what it holds, None when there is no such file; or why it is not used, for people.
pub(super) type Content = std::result::Result<Option<Vec<u8>>, String>;

/// What the files hold. One of them that cannot be used keeps nobody from using the others: a revocation list counts although the key
/// is missing.
#[derive(PartialEq, Eq)]
pub(super) struct Files {
    pub(super) ca: Content,
    pub(super) cert: Content,
    pub(super) key: Content,
    pub(super) crl: Content,
}

impl Files {
    /// Reads them in one directory, also when another takes its place meanwhile.
    ///
    /// # Errors
    /// There is no such directory.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = open(dir, flags, Mode::empty()).map_err(|e| unfit(&dir.join(CA_FILE), e))?;
        let read = |name, secret| content(&at, name, secret);
        Ok(Self {
            ca: read(CA_FILE, false),
            cert: read(CERT_FILE, false),
            key: read(KEY_FILE, true),
            crl: read(CRL_FILE, false),
        })
    }
}

/// One file of the directory. A pipe under its name is not waited for; a secret that others can read is none, and is not read.
fn content(dir: &OwnedFd, name: &str, secret: bool) -> Content {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match openat(dir, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let about = file.metadata().map_err(|e| e.to_string())?;
    if !about.is_file() {
        return Err("is not a regular file".into());
    }
    if secret && let Some((what, remedy)) = shared(&about) {
        return Err(format!(
            "{what}: `{remedy} {name}` there; if somebody could have read it, give this host another certificate and revoke this one"
        ));
    }
    let mut bytes = Vec::new();
    file.take(MOST + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > MOST {
        return Err(format!("is longer than {MOST} bytes"));
    }
    Ok(Some(bytes))
}

/// Why others than this process's user and root can read or write a file, and the command against that.
fn shared(about: &Metadata) -> Option<(String, &'static str)> {
    let (mode, owner) = (about.mode() & 0o777, about.uid());
    if mode & 0o077 != 0 {
        return Some((format!("can be read or written by others than its owner (mode {mode:03o})"), "chmod go="));
    }
    let ours = [0, geteuid().as_raw()].contains(&owner);
    (!ours).then(|| (format!("belongs to another user (number {owner})"), "chown root"))
}

/// The file's content, of which there must be some to read.
pub(super) fn needed<'a>(path: &Path, content: &'a Content) -> Result<&'a [u8]> {
    match content {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(unfit(path, "there is no such file")),
        Err(reason) => Err(unfit(path, reason)),
    }
}

/// Why PEM cannot be read, for people.
pub(super) fn pem_reason(error: rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::Io(io) => io.to_string(),
        rustls::pki_types::pem::Error::NoItemsFound => "holds nothing of the kind".into(),
        other => format!("{other:?}"),
    }
}

/// Something of a file that does not fit.
pub(super) fn unfit(path: &Path, reason: impl fmt::Display) -> TransportError {
    TransportError::Identity { path: path.to_owned(), reason: reason.to_string() }
}
