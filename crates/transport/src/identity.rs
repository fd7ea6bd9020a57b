//! Who this host is on the wire, and whom it trusts. What its files say may change while links are up: see [`refresh`].
//!
//! * [`refresh`]: looking at the files again · `files`: reading them · `loaded`: what they come to · `standing`: the links that are up

mod files;
mod loaded;
mod open_links;
pub mod refresh;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use ninefold_model::HostName;
use rustls::pki_types::CertificateDer;
use webpki::KeyUsage;

pub use self::files::{CA_FILE, CERT_FILE, CRL_FILE, KEY_FILE};
pub(crate) use self::loaded::Loaded;
use self::open_links::Up;
use self::refresh::{Notice, Shared, State};
use crate::crypto::Cipher;
use crate::dates::UtcTime;
use crate::error::Result;
use crate::link::Link;

/// A host's certificate and key, and the authorities that it trusts, as they are at the moment. Cheap to clone; all clones change
/// together.
#[derive(Clone)]
pub struct Identity {
    host: HostName,
    shared: Arc<Shared>,
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem` in `dir`, and `crl.pem` if it is there. The host's name is the one DNS name in the
    /// certificate's subject alternative names.
    ///
    /// Dates are not judged here: the peer judges them at each handshake.
    ///
    /// # Errors
    /// A file cannot be read or is unfit, or they do not belong together; the error names the file.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        Self::load_with_cipher(dir, Cipher::default())
    }

    /// As [`Identity::load`], with a cipher of one's choice. Both sides must offer the same one.
    ///
    /// # Errors
    /// As [`Identity::load`].
    pub fn load_with_cipher(dir: impl AsRef<Path>, cipher: Cipher) -> Result<Self> {
        let shared = Shared::load(dir.as_ref(), cipher)?;
        Ok(Self { host: shared.current().own.host.clone(), shared: Arc::new(shared) })
    }

    /// The host that the certificate names.
    pub fn host(&self) -> &HostName {
        &self.host
    }

    /// Looks at the files once; `now` is what the clock says. Answers what has changed since the last look, and what is to be said
    /// anew. A fault of the files is told when two looks have found it: they may just be copied.
    pub fn refresh(&self, now: UtcTime) -> Vec<Notice> {
        self.shared.refresh(now)
    }

    /// Looks at the files each second from a thread of its own, and tells what [`Identity::refresh`] answers, and what is in use
    /// then. The thread ends when the identity is dropped.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn watch(&self, tell: impl FnMut(Notice, &State) + Send + 'static) -> io::Result<()> {
        Shared::watch(&self.shared, tell)
    }

    /// What is in use now.
    pub fn state(&self) -> State {
        self.shared.state()
    }

    /// What a handshake that begins now uses.
    pub(crate) fn current(&self) -> Arc<Loaded> {
        self.shared.current()
    }

    /// Takes note of a link that has come up, so that it ends when its peer is revoked. Refused when it has been revoked since the
    /// handshake began, which has used `used`: with the reason, for people.
    pub(crate) fn admit(
        &self,
        link: &Link,
        used: &Arc<Loaded>,
        chain: Vec<CertificateDer<'static>>,
        usage: KeyUsage,
    ) -> std::result::Result<(), String> {
        self.shared.admit(Up { peer: link.peer().clone(), chain, usage, link: link.open() }, used)
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
}
