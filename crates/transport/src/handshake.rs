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
use webpki::KeyUsage;

use crate::crypto::{self, Shown};
use crate::dates::{self, UtcTime};
use crate::error::{Result, TransportError};
use crate::hello;
use crate::identity::{Identity, Loaded, Security};
use crate::link::Link;

/// Most bytes that a peer may send before it is trusted. A handshake with our certificates takes about 2 KiB.
const BYTES: usize = 64 << 10;

/// What a TLS handshake's errors are explained with.
struct Sides {
    current: Arc<Loaded>,
    shown: Arc<Shown>,
}

impl Sides {
    /// What an error of the handshake's I/O means.
    fn explain(&self, addr: SocketAddr, error: io::Error) -> TransportError {
        TransportError::from_handshake(addr, error, |tls| {
            let own = &self.current.own;
            dates::explain(tls, Some((&own.dates, &own.named)), self.shown.named(), UtcTime::now())
        })
    }

    /// The link, once its peer is known, unless the peer has been revoked meanwhile.
    fn finish(
        &self,
        identity: &Identity,
        socket: Arc<TcpStream>,
        addr: SocketAddr,
        peer: HostName,
        tls: Connection,
    ) -> Result<Link> {
        let chain = tls.peer_certificates().unwrap_or_default().to_vec();
        let usage = match tls {
            Connection::Client(_) => KeyUsage::server_auth(),
            Connection::Server(_) => KeyUsage::client_auth(),
        };
        let link = finish(socket, addr, peer, Some(tls))?;
        identity.admit(&link, &self.current, chain, usage).map_err(|reason| TransportError::Tls { addr, reason })?;
        Ok(link)
    }
}

/// The connecting side.
pub(crate) fn as_client(
    socket: Arc<TcpStream>,
    addr: SocketAddr,
    expect: &HostName,
    security: &Security,
    deadline: Instant,
) -> Result<Link> {
    let mut bounded = Within::new(&*socket, deadline, BYTES);
    let as_expected = |found: HostName| match found == *expect {
        true => Ok(found),
        false => Err(TransportError::WrongHost { addr, expected: expect.clone(), found }),
    };
    match security {
        Security::MutualTls(identity) => {
            let name = ServerName::try_from(expect.as_str().to_owned())
                .map_err(|_| TransportError::Protocol { addr, reason: format!("{expect} is no DNS name") })?;
            let tls = |e: rustls::Error| TransportError::Tls { addr, reason: e.to_string() };
            let current = identity.current();
            let (config, shown) = current.configs.client().map_err(tls)?;
            let sides = Sides { current, shown };
            let fail = |e| sides.explain(addr, e);
            let mut connection = ClientConnection::new(config, name).map_err(tls)?;
            let found = agree(&mut connection, &mut bounded).and_then(|mut stream| {
                hello::send(&mut stream, identity.host())?;
                hello::receive(&mut stream)
            });
            let found = found.map_err(|e| fail(last_words(&mut connection, &mut bounded, e)))?;
            let found = as_expected(found)?;
            sides.finish(identity, socket, addr, found, Connection::Client(connection))
        }
        Security::PlainText { host } => {
            let fail = |e| plain_text(addr, e);
            hello::send(&mut bounded, host).map_err(fail)?;
            let found = as_expected(hello::receive(&mut bounded).map_err(fail)?)?;
            finish(socket, addr, found, None)
        }
    }
}

/// The accepting side.
pub(crate) fn as_server(
    socket: Arc<TcpStream>,
    addr: SocketAddr,
    security: &Security,
    deadline: Instant,
) -> Result<Link> {
    let mut bounded = Within::new(&*socket, deadline, BYTES);
    match security {
        Security::MutualTls(identity) => {
            let tls = |e: rustls::Error| TransportError::Tls { addr, reason: e.to_string() };
            let current = identity.current();
            let (config, shown) = current.configs.server().map_err(tls)?;
            let sides = Sides { current, shown };
            let fail = |e| sides.explain(addr, e);
            let mut connection = ServerConnection::new(config).map_err(tls)?;
            let agreed = agree(&mut connection, &mut bounded).map(drop);
            agreed.map_err(|e| fail(last_words(&mut connection, &mut bounded, e)))?;
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
            sides.finish(identity, socket, addr, peer, Connection::Server(connection))
        }
        Security::PlainText { host } => {
            let fail = |e| plain_text(addr, e);
            let peer = hello::receive(&mut bounded).map_err(fail)?;
            hello::send(&mut bounded, host).map_err(fail)?;
            finish(socket, addr, peer, None)
        }
    }
}

/// What an error of a handshake without TLS means.
fn plain_text(addr: SocketAddr, error: io::Error) -> TransportError {
    TransportError::from_handshake(addr, error, ToString::to_string)
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

/// The last words of a handshake that has failed, in both directions. This side says why it refuses the peer: rustls writes once, and
/// something else may have been waiting before the alert. And if the connection broke while this side wrote, the peer may have
/// said why: then that is the error.
fn last_words<S: SideData>(
    connection: &mut ConnectionCommon<S>,
    bounded: &mut Within<'_, TcpStream>,
    error: io::Error,
) -> io::Error {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData};
    match error.kind() {
        InvalidData => while connection.wants_write() && matches!(connection.write_tls(bounded), Ok(1..)) {},
        BrokenPipe | ConnectionAborted | ConnectionReset => {
            while let Ok(1..) = connection.read_tls(bounded) {
                if let Err(alert) = connection.process_new_packets() {
                    return io::Error::new(InvalidData, alert);
                }
            }
        }
        _ => {}
    }
    error
}

fn finish(socket: Arc<TcpStream>, addr: SocketAddr, peer: HostName, tls: Option<Connection>) -> Result<Link> {
    let unlimited = || {
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)
    };
    unlimited().map_err(|source| TransportError::Broken { addr, source })?;
    Ok(Link::new(socket, addr, peer, tls))
}
