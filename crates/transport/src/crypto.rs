//! The one crypto provider, and the TLS configurations made with it. See docs/decisions/0002-tls-provider.md.

use std::fmt;
use std::sync::{Arc, OnceLock};

use ninefold_model::HostName;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

use crate::dates::Named;

/// The signatures of certificates and lists that are understood.
pub(crate) fn algorithms() -> WebPkiSupportedAlgorithms {
    ring::default_provider().signature_verification_algorithms
}

/// The bulk cipher of TLS 1.3 (RFC 8446, appendix B.4) that is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    #[default]
    Aes128Gcm,
    Aes256Gcm,
}

/// The provider with a single cipher suite: both sides are ours, so there is nothing to negotiate down to.
fn provider(cipher: Cipher) -> Arc<CryptoProvider> {
    let suite = match cipher {
        Cipher::Aes128Gcm => ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        Cipher::Aes256Gcm => ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
    };
    Arc::new(CryptoProvider { cipher_suites: vec![suite], ..ring::default_provider() })
}

/// Fills a buffer from the system's source of random numbers.
///
/// # Errors
/// It gives none.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), &'static str> {
    ring::default_provider().secure_random.fill(bytes).map_err(|_| "the system gives no random numbers")
}

/// A certificate with its key.
///
/// # Errors
/// The key is none, or another certificate's.
pub(crate) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, rustls::Error> {
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map(Arc::new)
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// What the configurations of all handshakes have in common.
pub(crate) struct Configs {
    provider: Arc<CryptoProvider>,
    own: Arc<SingleCertAndKey>,
    of_servers: Arc<WebPkiServerVerifier>,
    of_clients: Arc<dyn ClientCertVerifier>,
}

impl Configs {
    /// For a host with this certificate, which trusts these authorities but for what these lists of theirs revoke. A list that is past its
    /// next update is still used, and an authority without a list has revoked nothing: docs/decisions/0031-revocation-fails-open.md.
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        lists: &[CertificateRevocationListDer<'static>],
        own: Arc<CertifiedKey>,
        cipher: Cipher,
    ) -> Result<Self, ConfigError> {
        let provider = provider(cipher);
        let of_servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .with_crls(lists.iter().cloned())
            .allow_unknown_revocation_status()
            .build()?;
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .with_crls(lists.iter().cloned())
            .allow_unknown_revocation_status()
            .build()?;
        Ok(Self { provider, own: Arc::new(SingleCertAndKey::from(own)), of_servers, of_clients })
    }

    /// For one handshake of the connecting side: TLS 1.3 only, no session resumption (a resumed session would outlive the
    /// certificate that it was opened with, and its revocation). Beside it: what the peer will have shown.
    pub(crate) fn client(&self) -> Result<(Arc<ClientConfig>, Arc<Shown>), rustls::Error> {
        let shown = self.nothing_shown();
        let mut client = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(shown.clone())
            .with_client_cert_resolver(self.own.clone());
        client.resumption = Resumption::disabled();
        Ok((Arc::new(client), shown))
    }

    /// The same for the accepting side, which requires a certificate.
    pub(crate) fn server(&self) -> Result<(Arc<ServerConfig>, Arc<Shown>), rustls::Error> {
        let shown = self.nothing_shown();
        let mut server = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(shown.clone())
            .with_cert_resolver(self.own.clone());
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        Ok((Arc::new(server), shown))
    }

    fn nothing_shown(&self) -> Arc<Shown> {
        let (servers, clients) = (self.of_servers.clone(), self.of_clients.clone());
        Arc::new(Shown { servers, clients, named: OnceLock::new() })
    }
}

/// Judges the certificate of one handshake as rustls does, and keeps whom it names: rustls forgets one that it refuses.
#[derive(Debug)]
pub(crate) struct Shown {
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    named: OnceLock<Named>,
}

impl Shown {
    /// Whom the certificate names that was shown; it may have been refused.
    pub(crate) fn named(&self) -> Option<&Named> {
        self.named.get()
    }

    fn keep(&self, certificate: &CertificateDer<'_>) {
        if let Some(named) = named(certificate) {
            let _ = self.named.set(named);
        }
    }
}

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.keep(end_entity);
        self.servers.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.servers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.servers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Shown {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.keep(end_entity);
        self.clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

/// A certificate as people are told of it. None if it cannot be read.
pub(crate) fn named(certificate: &CertificateDer<'_>) -> Option<Named> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let host = certified_host(certificate).map_or_else(|_| "?".to_owned(), |host| host.to_string());
    Some(Named { host, serial: serial_text(parsed.serial()) })
}

/// A serial number as people are told it: hexadecimal, without the byte that keeps it from being negative.
pub(crate) fn serial_text(serial: &[u8]) -> String {
    hex(serial.strip_prefix(&[0]).filter(|rest| !rest.is_empty()).unwrap_or(serial))
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why a certificate names no host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoHost {
    Unreadable,
    /// How many DNS names it has.
    NotOneName(usize),
    NotAHostName,
}

impl fmt::Display for NoHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => write!(f, "not a readable certificate"),
            Self::NotOneName(n) => write!(f, "a host certificate has one DNS name, this one {n}"),
            Self::NotAHostName => write!(f, "the certificate's DNS name is not a host name"),
        }
    }
}

/// The host that a certificate names: its only DNS subject alternative name (RFC 5280, section 4.2.1.6).
pub(crate) fn certified_host(certificate: &CertificateDer<'_>) -> Result<HostName, NoHost> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|_| NoHost::Unreadable)?;
    let names: Vec<&str> = parsed.valid_dns_names().collect();
    let [name] = names[..] else {
        return Err(NoHost::NotOneName(names.len()));
    };
    name.parse().map_err(|_| NoHost::NotAHostName)
}
