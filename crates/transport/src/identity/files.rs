//! The files of an identity, read at one moment.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::Errno;

use crate::error::{Result, TransportError};

/// The authority that both sides trust, PEM.
pub const CA_FILE: &str = "ca.pem";
/// This host's certificate (and intermediates, if any), PEM.
pub const CERT_FILE: &str = "cert.pem";
/// This host's private key, PEM, PKCS #8, SEC 1 or PKCS #1.
pub const KEY_FILE: &str = "key.pem";
/// What the authority has revoked, PEM. There need not be one.
pub const CRL_FILE: &str = "crl.pem";

/// The longest file that is read, bytes. A list that names 30,000 certificates has about 1 MiB.
const MOST: u64 = 4 << 20;

/// What the files hold.
#[derive(PartialEq, Eq)]
pub(super) struct Files {
    pub(super) ca: Vec<u8>,
    pub(super) cert: Vec<u8>,
    pub(super) key: Vec<u8>,
    /// None when there is no such file.
    pub(super) crl: Option<Vec<u8>>,
}

impl Files {
    /// Reads them in one directory, also when another takes its place meanwhile.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = open(dir, flags, Mode::empty()).map_err(|e| unfit(&dir.join(CA_FILE), e))?;
        let optional = |name: &str| {
            let path = dir.join(name);
            let file = match openat(&at, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(file) => File::from(file),
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(unfit(&path, error)),
            };
            let mut bytes = Vec::new();
            file.take(MOST + 1).read_to_end(&mut bytes).map_err(|e| unfit(&path, e))?;
            if bytes.len() as u64 > MOST {
                return Err(unfit(&path, format!("is longer than {MOST} bytes")));
            }
            Ok(Some(bytes))
        };
        let needed = |name| optional(name)?.ok_or_else(|| unfit(&dir.join(name), "there is no such file"));
        Ok(Self { ca: needed(CA_FILE)?, cert: needed(CERT_FILE)?, key: needed(KEY_FILE)?, crl: optional(CRL_FILE)? })
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
