//! A small certificate authority: enough for a lab or for an installation that has none.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ninefold_model::HostName;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::error::{Result, TransportError};
use crate::identity::{CA_FILE, CERT_FILE, KEY_FILE};

/// The authority's private key, PEM. Keep it off the hosts.
pub const CA_KEY_FILE: &str = "ca-key.pem";

const CA_NAME: &str = "Ninefold authority";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

impl Validity {
    /// From yesterday (hosts' clocks differ) until `days` from now.
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        Self { not_before: now - DAY, not_after: now + DAY * days }
    }
}

/// A certificate authority with its private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// Makes a new authority and writes `ca.pem` and `ca-key.pem` (mode 0600) into `dir`, which is made if missing.
    pub fn create(dir: impl AsRef<Path>, validity: Validity) -> Result<Self> {
        let dir = dir.as_ref();
        let key = KeyPair::generate().map_err(|e| issue(CA_NAME, e))?;
        let params = authority_params(validity);
        let certificate = params.self_signed(&key).map_err(|e| issue(CA_NAME, e))?.pem();
        make_dir(dir)?;
        write(&dir.join(CA_KEY_FILE), &key.serialize_pem(), 0o600)?;
        write(&dir.join(CA_FILE), &certificate, 0o644)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Opens the authority that [`Authority::create`] wrote into `dir`.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let certificate = read(&dir.join(CA_FILE))?;
        let key_path = dir.join(CA_KEY_FILE);
        let key = KeyPair::from_pem(&read(&key_path)?)
            .map_err(|e| TransportError::Identity { path: key_path, reason: e.to_string() })?;
        // Issuing needs only the authority's name and key identifier; both follow from what is fixed here.
        Ok(Self { issuer: Issuer::new(authority_params(Validity::days(1)), key), certificate })
    }

    /// Issues a certificate for `host` and writes `ca.pem`, `cert.pem` and `key.pem` (mode 0600) into `dir`, which is
    /// made if missing. [`crate::Identity::load`] reads them.
    pub fn issue(&self, host: &HostName, dir: impl AsRef<Path>, validity: Validity) -> Result<()> {
        let dir = dir.as_ref();
        let fail = |e| issue(host.as_str(), e);
        let key = KeyPair::generate().map_err(fail)?;
        let mut params = CertificateParams::new(vec![host.as_str().to_owned()]).map_err(fail)?;
        params.distinguished_name.push(DnType::CommonName, host.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = validity.not_before.into();
        params.not_after = validity.not_after.into();
        let certificate = params.signed_by(&key, &self.issuer).map_err(fail)?;
        make_dir(dir)?;
        write(&dir.join(KEY_FILE), &key.serialize_pem(), 0o600)?;
        write(&dir.join(CERT_FILE), &certificate.pem(), 0o644)?;
        write(&dir.join(CA_FILE), &self.certificate, 0o644)
    }
}

fn authority_params(validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params
}

fn issue(subject: &str, error: rcgen::Error) -> TransportError {
    TransportError::Issue { subject: subject.to_owned(), reason: error.to_string() }
}

fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> TransportError {
    let path = path.to_owned();
    move |e| TransportError::Identity { path, reason: e.to_string() }
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(file_error(dir))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(file_error(path))
}

/// Replaces `path` whole, so that a reader never sees half a key and an old file's wider mode does not survive.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let fresh = path.with_extension("new");
    let write = || {
        match fs::remove_file(&fresh) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(file_error(path))
}
