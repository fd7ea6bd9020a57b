//! The connecting side.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_model::HostName;

use crate::error::{Result, TransportError};
use crate::identity::Security;
use crate::link::Link;
use crate::{handshake, socket};

/// Connects to `addr`, where host `expect` must answer. `timeout` bounds everything, the handshake included.
///
/// With [`Security::MutualTls`] the answer's certificate must name `expect`; with [`Security::PlainText`] the peer's word
/// is compared, which guards against mistakes only.
///
/// # Errors
/// Nobody accepts the connection in time ([`TransportError::Connect`]); the handshake is late or breaks; TLS refuses one of the
/// two; the peer speaks another protocol; or another host than `expect` answers ([`TransportError::WrongHost`]).
pub fn connect(addr: SocketAddr, expect: &HostName, security: &Security, timeout: Duration) -> Result<Link> {
    let deadline = Instant::now() + timeout;
    let connect = || {
        let socket = socket::new(addr)?;
        socket.connect_timeout(&addr.into(), timeout)?;
        let socket = TcpStream::from(socket);
        socket::prepare(&socket)?;
        Ok(socket)
    };
    let socket = connect().map_err(|source| TransportError::Connect { addr, source })?;
    handshake::as_client(Arc::new(socket), addr, expect, security, deadline)
}
