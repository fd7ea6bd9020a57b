//! The one crypto provider, and the two TLS configurations made with it. See docs/decisions/0002-tls-provider.md.

use std::fmt;
use std::sync::Arc;

use ninefold_model::HostName;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The provider with a single cipher suite: both sides are ours, so there is nothing to negotiate down to.
/// The bulk cipher of TLS 1.3 (RFC 8446, appendix B.4) that is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    #[default]
    Aes128Gcm,
    Aes256Gcm,
}

fn provider(cipher: Cipher) -> Arc<CryptoProvider> {
    let suite = match cipher {
        Cipher::Aes128Gcm => ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        Cipher::Aes256Gcm => ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
    };
    Arc::new(CryptoProvider { cipher_suites: vec![suite], ..ring::default_provider() })
}

/// Why certificate and key do not make a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Client and server configuration: TLS 1.3 only, certificates required on both sides, no session resumption (a
/// resumed session would outlive the certificate that it was opened with).
pub(crate) fn configs(
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    cipher: Cipher,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), ConfigError> {
    let provider = provider(cipher);
    let roots = Arc::new(roots);

    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain.clone(), key.clone_key())?;
    client.resumption = Resumption::disabled();

    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    Ok((Arc::new(client), Arc::new(server)))
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
