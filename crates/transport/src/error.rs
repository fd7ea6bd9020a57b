//! What can go wrong before a connection is one. Afterwards its halves answer with [`std::io::Error`].

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use ninefold_model::HostName;

/// The result of this crate's calls.
pub type Result<T> = std::result::Result<T, TransportError>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A certificate or key file is missing, unreadable or unfit.
    #[error("identity file {path}: {reason}")]
    Identity { path: PathBuf, reason: String },
    /// The address could not be listened on.
    #[error("cannot listen on {addr}")]
    Bind { addr: SocketAddr, source: io::Error },
    /// The listener was closed by its handle.
    #[error("the listener is closed")]
    Closed,
    /// No TCP connection to the peer.
    #[error("cannot connect to {addr}")]
    Connect { addr: SocketAddr, source: io::Error },
    /// The handshake was not over in time.
    #[error("{addr} did not complete the handshake in time")]
    Timeout { addr: SocketAddr },
    /// The connection broke in the handshake.
    #[error("the connection to {addr} broke during the handshake")]
    Broken { addr: SocketAddr, source: io::Error },
    /// TLS refused the peer, or the peer refused us.
    #[error("no trusted connection with {addr}: {reason}")]
    Tls { addr: SocketAddr, reason: String },
    /// Another host answered than the one expected.
    #[error("{addr} is host {found}, not {expected}")]
    WrongHost { addr: SocketAddr, expected: HostName, found: HostName },
    /// The peer does not speak this protocol.
    #[error("{addr} does not speak this protocol: {reason}")]
    Protocol { addr: SocketAddr, reason: String },
}

impl TransportError {
    /// Sorts what the handshake's I/O reports: a time-out, a verdict of TLS, which `explain` puts into words, or a broken connection.
    pub(crate) fn from_handshake(
        addr: SocketAddr,
        error: io::Error,
        explain: impl FnOnce(&rustls::Error) -> String,
    ) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Timeout { addr },
            io::ErrorKind::InvalidData => match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
                Some(tls) => Self::Tls { addr, reason: explain(tls) },
                None => Self::Protocol { addr, reason: error.to_string() },
            },
            _ => Self::Broken { addr, source: error },
        }
    }
}
