//! Who this host is on the wire.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ninefold_model::HostName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::crypto::{self, Cipher};
use crate::dates::Dates;
use crate::error::{Result, TransportError};

/// The authority that both sides trust, PEM.
pub const CA_FILE: &str = "ca.pem";
/// This host's certificate (and intermediates, if any), PEM.
pub const CERT_FILE: &str = "cert.pem";
/// This host's private key, PEM, PKCS #8, SEC 1 or PKCS #1.
pub const KEY_FILE: &str = "key.pem";

/// A host's certificate and key, and the authority that it trusts. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    host: HostName,
    /// None if they cannot be read.
    dates: Option<Dates>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` in `dir`. The host's name is the one DNS name in the certificate's
    /// subject alternative names.
    ///
    /// Dates and the authority's signature are not judged here: the peer judges them at each handshake.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        Self::load_with_cipher(dir, Cipher::default())
    }

    /// As [`Identity::load`], with a cipher of one's choice. Both sides must offer the same one.
    pub fn load_with_cipher(dir: impl AsRef<Path>, cipher: Cipher) -> Result<Self> {
        let file = |name| dir.as_ref().join(name);
        let (ca_path, cert_path, key_path) = (file(CA_FILE), file(CERT_FILE), file(KEY_FILE));

        let mut roots = RootCertStore::empty();
        for ca in certificates(&ca_path)? {
            roots.add(ca).map_err(|e| unfit(&ca_path, e))?;
        }
        let chain = certificates(&cert_path)?;
        let host = crypto::certified_host(&chain[0]).map_err(|e| unfit(&cert_path, e))?;
        let dates = Dates::of(&chain[0]);
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|e| unfit(&key_path, pem_reason(e)))?;
        let (client, server) = crypto::configs(roots, chain, key, cipher).map_err(|e| unfit(&cert_path, e))?;
        Ok(Self { host, dates, client, server })
    }

    /// The host that the certificate names.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    pub(crate) fn client(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    pub(crate) fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("host", &self.host).finish_non_exhaustive()
    }
}

/// How a host proves who it is.
#[derive(Debug, Clone)]
pub enum Security {
    /// TLS 1.3 with certificates on both sides. The default choice everywhere.
    MutualTls(Identity),
    /// No TLS: each side states its name and **nothing checks it**; anyone on the path can read, change and forge.
    /// Only for a dedicated link, chosen explicitly.
    PlainText {
        /// The name that this host states.
        host: HostName,
    },
}

impl Security {
    /// This host's name.
    pub fn host(&self) -> &HostName {
        match self {
            Self::MutualTls(identity) => identity.host(),
            Self::PlainText { host } => host,
        }
    }

    /// From when to when this host's certificate is good.
    pub(crate) fn dates(&self) -> Option<&Dates> {
        match self {
            Self::MutualTls(identity) => identity.dates.as_ref(),
            Self::PlainText { .. } => None,
        }
    }
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect::<std::result::Result<Vec<_>, _>>())
        .map_err(|e| unfit(path, pem_reason(e)))?;
    if found.is_empty() {
        return Err(unfit(path, "holds no certificate"));
    }
    Ok(found)
}

fn pem_reason(error: rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::Io(io) => io.to_string(),
        rustls::pki_types::pem::Error::NoItemsFound => "holds nothing of the kind".into(),
        other => format!("{other:?}"),
    }
}

fn unfit(path: &Path, reason: impl fmt::Display) -> TransportError {
    TransportError::Identity { path: path.to_owned(), reason: reason.to_string() }
}
