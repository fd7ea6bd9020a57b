//! The handshake, bounded in time and bytes whatever the peer sends.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;

use ninefold_listen::Within;
use ninefold_model::HostName;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ConnectionCommon, ServerConnection, SideData};

use crate::crypto;
use crate::error::{Result, TransportError};
use crate::hello;
use crate::identity::Security;
use crate::link::Link;

/// Most bytes that a peer may send before it is trusted. A handshake with our certificates takes about 2 KiB.
const BYTES: usize = 64 << 10;

/// The connecting side.
pub(crate) fn as_client(
    socket: Arc<TcpStream>,
    addr: SocketAddr,
    expect: &HostName,
    security: &Security,
    deadline: Instant,
) -> Result<Link> {
    let fail = |e| TransportError::from_handshake(addr, security.dates(), e);
    let mut bounded = Within::new(&*socket, deadline, BYTES);
    let (found, tls) = match security {
        Security::MutualTls(identity) => {
            let name = ServerName::try_from(expect.as_str().to_owned())
                .map_err(|_| TransportError::Protocol { addr, reason: format!("{expect} is no DNS name") })?;
            let tls = |e: rustls::Error| TransportError::Tls { addr, reason: e.to_string() };
            let mut connection = ClientConnection::new(identity.client().clone(), name).map_err(tls)?;
            let mut stream = agree(&mut connection, &mut bounded).map_err(fail)?;
            hello::send(&mut stream, identity.host()).map_err(fail)?;
            let found = hello::receive(&mut stream).map_err(fail)?;
            (found, Some(Connection::Client(connection)))
        }
        Security::PlainText { host } => {
            hello::send(&mut bounded, host).map_err(fail)?;
            (hello::receive(&mut bounded).map_err(fail)?, None)
        }
    };
    if found != *expect {
        return Err(TransportError::WrongHost { addr, expected: expect.clone(), found });
    }
    finish(socket, addr, found, tls)
}

/// The accepting side.
pub(crate) fn as_server(
    socket: Arc<TcpStream>,
    addr: SocketAddr,
    security: &Security,
    deadline: Instant,
) -> Result<Link> {
    let fail = |e| TransportError::from_handshake(addr, security.dates(), e);
    let mut bounded = Within::new(&*socket, deadline, BYTES);
    let (peer, tls) = match security {
        Security::MutualTls(identity) => {
            let tls = |e: rustls::Error| TransportError::Tls { addr, reason: e.to_string() };
            let mut connection = ServerConnection::new(identity.server().clone()).map_err(tls)?;
            agree(&mut connection, &mut bounded).map_err(fail)?;
            let certificate = connection.peer_certificates().and_then(|chain| chain.first());
            let reason = "it shows no certificate";
            let certificate = certificate.ok_or(TransportError::Protocol { addr, reason: reason.into() })?;
            let peer = crypto::certified_host(certificate)
                .map_err(|e| TransportError::Protocol { addr, reason: e.to_string() })?;
            let mut stream = rustls::Stream::new(&mut connection, &mut bounded);
            let stated = hello::receive(&mut stream).map_err(fail)?;
            if stated != peer {
                return Err(TransportError::WrongHost { addr, expected: peer, found: stated });
            }
            hello::send(&mut stream, identity.host()).map_err(fail)?;
            (peer, Some(Connection::Server(connection)))
        }
        Security::PlainText { host } => {
            let peer = hello::receive(&mut bounded).map_err(fail)?;
            hello::send(&mut bounded, host).map_err(fail)?;
            (peer, None)
        }
    };
    finish(socket, addr, peer, tls)
}

/// Runs the TLS handshake to its end and gives the stream for the hello.
fn agree<'a, 'b, C, S>(
    connection: &'a mut C,
    bounded: &'a mut Within<'b, TcpStream>,
) -> io::Result<rustls::Stream<'a, C, Within<'b, TcpStream>>>
where
    C: Deref<Target = ConnectionCommon<S>> + DerefMut,
    S: SideData,
{
    while connection.is_handshaking() {
        connection.complete_io(bounded)?;
    }
    Ok(rustls::Stream::new(connection, bounded))
}

fn finish(socket: Arc<TcpStream>, addr: SocketAddr, peer: HostName, tls: Option<Connection>) -> Result<Link> {
    let unlimited = || {
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)
    };
    unlimited().map_err(|source| TransportError::Broken { addr, source })?;
    Ok(Link::new(socket, addr, peer, tls))
}
