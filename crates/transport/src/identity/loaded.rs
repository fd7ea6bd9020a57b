//! What an identity's files come to: a certificate with its key, the authorities that are trusted, and what they have revoked.

use std::path::Path;
use std::sync::Arc;

use ninefold_model::HostName;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use webpki::{EndEntityCert, KeyUsage};

use super::files::{CA_FILE, CERT_FILE, CRL_FILE, Files, KEY_FILE, needed, pem_reason, unfit};
use crate::crypto::{self, Cipher, Configs};
use crate::dates::{Dates, Named, UtcTime};
use crate::error::Result;
use crate::revocation::Lists;

/// The certificate and the authorities. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Own {
    pub(crate) host: HostName,
    pub(crate) named: Named,
    pub(crate) dates: Dates,
    pub(super) roots: Arc<RootCertStore>,
    certified: Arc<CertifiedKey>,
}

/// Everything that a handshake needs.
pub(crate) struct Loaded {
    pub(crate) own: Own,
    pub(crate) lists: Lists,
    pub(crate) configs: Configs,
    /// This host's own certificate is revoked.
    pub(super) revoked: bool,
}

impl Own {
    /// Reads `ca.pem`, `cert.pem` and `key.pem`, which have to belong together.
    pub(super) fn read(dir: &Path, files: &Files) -> Result<Self> {
        let (ca_path, cert_path, key_path) = (dir.join(CA_FILE), dir.join(CERT_FILE), dir.join(KEY_FILE));
        let mut roots = RootCertStore::empty();
        for ca in certificates(&ca_path, needed(&ca_path, &files.ca)?)? {
            roots.add(ca).map_err(|e| unfit(&ca_path, e))?;
        }
        let chain = certificates(&cert_path, needed(&cert_path, &files.cert)?)?;
        let host = crypto::certified_host(&chain[0]).map_err(|e| unfit(&cert_path, e))?;
        let unreadable = || unfit(&cert_path, "its dates or its serial number cannot be read");
        let dates = Dates::of(&chain[0]).ok_or_else(unreadable)?;
        let named = crypto::named(&chain[0]).ok_or_else(unreadable)?;
        let key = needed(&key_path, &files.key)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| unfit(&key_path, pem_reason(e)))?;
        let certified = crypto::certified(chain, key).map_err(|e| match e {
            rustls::Error::InconsistentKeys(_) => unfit(&key_path, "is not the key of the certificate in cert.pem"),
            e => unfit(&key_path, e),
        })?;
        let own = Self { host, named, dates, roots: Arc::new(roots), certified };
        // Of both sides: a host connects and is connected to.
        for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
            own.judge(own.chain(), usage, &Lists::default())
                .map_err(|e| unfit(&cert_path, format!("no host that has this ca.pem accepts it: {e}")))?;
        }
        Ok(own)
    }

    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Whether a chain of certificates is of an authority that is trusted here, and revoked by none, whatever the clock says.
    pub(super) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        usage: KeyUsage,
        lists: &Lists,
    ) -> std::result::Result<(), webpki::Error> {
        let Some((end, intermediates)) = chain.split_first() else { return Err(webpki::Error::BadDer) };
        let at = Dates::of(end).map(|dates| dates.not_before).ok_or(webpki::Error::BadDerTime)?;
        let algorithms = crypto::algorithms().all;
        let end = EndEntityCert::try_from(end)?;
        lists.with_options(|options| {
            end.verify_for_usage(algorithms, &self.roots.roots, intermediates, at.into(), usage, options, None)
                .map(drop)
        })
    }
}

impl Loaded {
    /// From these files, all of them good.
    pub(super) fn read(dir: &Path, files: &Files, cipher: Cipher) -> Result<Self> {
        let own = Own::read(dir, files)?;
        let lists = Self::read_lists(dir, files, &own, &Lists::default())?.unwrap_or_default();
        Self::of(dir, own, lists, cipher)
    }

    /// None when there is no such file.
    pub(super) fn read_lists(dir: &Path, files: &Files, own: &Own, before: &Lists) -> Result<Option<Lists>> {
        let unfit = |reason: &str| unfit(&dir.join(CRL_FILE), reason);
        let Some(crl) = files.crl.as_ref().map_err(|reason| unfit(reason))? else { return Ok(None) };
        Lists::parse(crl, &own.roots.roots, before).map(Some).map_err(|reason| unfit(&reason))
    }

    pub(super) fn of(dir: &Path, own: Own, lists: Lists, cipher: Cipher) -> Result<Self> {
        let configs = Configs::new(own.roots.clone(), &lists.ders(), own.certified.clone(), cipher);
        let configs = configs.map_err(|e| unfit(&dir.join(CERT_FILE), e))?;
        let verdict = own.judge(own.chain(), KeyUsage::client_auth(), &lists);
        let revoked = matches!(verdict, Err(webpki::Error::CertRevoked));
        Ok(Self { own, lists, configs, revoked })
    }

    /// Why a peer with these certificates is not to be trusted, for people; its dates are not looked at.
    pub(crate) fn objection(&self, chain: &[CertificateDer<'_>], usage: KeyUsage) -> Option<String> {
        let error = self.own.judge(chain, usage, &self.lists).err()?;
        let named = chain.first().and_then(crypto::named);
        Some(match error {
            webpki::Error::CertRevoked => crate::dates::revoked(named.as_ref()),
            error => {
                let of = named.map_or_else(|| "its certificate".to_owned(), |named| named.to_string());
                format!("{of} is not trusted any more by this host's ca.pem: {error}")
            }
        })
    }

    /// Until when this host's certificate is good.
    pub(crate) fn not_after(&self) -> UtcTime {
        self.own.dates.not_after
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<std::result::Result<Vec<_>, _>>();
    let found = found.map_err(|e| unfit(path, pem_reason(e)))?;
    if found.is_empty() {
        return Err(unfit(path, "holds no certificate"));
    }
    Ok(found)
}
