//! The accepting side.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ninefold_listen::{Acceptor, Bounds, Guest, Origin};

use crate::error::{Result, TransportError};
use crate::identity::Security;
use crate::link::Link;
use crate::{handshake, socket};

/// Connections that the kernel keeps ready for [`Listener::accept`].
const BACKLOG: i32 = 128;
/// Handshakes at a time, unless bound otherwise.
const HANDSHAKES: usize = 64;

/// A listening socket. It bounds the connections whose peer is not known yet: when there are too many, the one that has said
/// nothing for longest loses its place to the next. Links are the caller's to bound.
pub struct Listener {
    acceptor: Acceptor<TcpListener>,
    security: Arc<Security>,
    addr: SocketAddr,
}

impl Listener {
    /// Listens on `addr`; port 0 lets the kernel choose, see [`Listener::local_addr`]. Up to 64 handshakes at a time.
    ///
    /// # Errors
    /// The address is not this host's, is taken, or needs a right that this process lacks, or there are no more descriptors
    /// ([`TransportError::Bind`]).
    pub fn bind(addr: SocketAddr, security: Security) -> Result<Self> {
        Self::bind_within(addr, security, Bounds::new(HANDSHAKES), &[])
    }

    /// The same with other bounds of the handshakes. Connections from a `known` address are served before strangers'.
    ///
    /// # Errors
    /// It fails as [`Listener::bind`] does.
    pub fn bind_within(addr: SocketAddr, security: Security, bounds: Bounds, known: &[IpAddr]) -> Result<Self> {
        let bind = || {
            let socket = socket::new(addr)?;
            // A restarted process must not wait for the old one's connections to fade.
            socket.set_reuse_address(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            let socket = TcpListener::from(socket);
            let addr = socket.local_addr()?;
            Ok((socket, addr))
        };
        let (socket, addr) = bind().map_err(|source| TransportError::Bind { addr, source })?;
        let known = known.iter().copied().map(Origin::of).collect();
        let acceptor = Acceptor::new("handshakes", socket, bounds, known);
        Ok(Self { acceptor, security: Arc::new(security), addr })
    }

    /// The address in use, with the port that the kernel chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits for the next connection. Nothing has been read from it yet: run [`Incoming::handshake`] in a thread of
    /// its own, so that a slow peer keeps nobody waiting. Out of descriptors, connections are turned away until there are
    /// some.
    ///
    /// # Errors
    /// [`TransportError::Closed`] after [`ListenerHandle::close`].
    pub fn accept(&self) -> Result<Incoming> {
        let guest = self.acceptor.accept().ok_or(TransportError::Closed)?;
        Ok(Incoming { guest, security: self.security.clone() })
    }

    /// A handle that can close the listener from another thread.
    pub fn handle(&self) -> ListenerHandle {
        ListenerHandle { acceptor: self.acceptor.clone() }
    }
}

/// Closes a [`Listener`] from any thread.
#[derive(Clone)]
pub struct ListenerHandle {
    acceptor: Acceptor<TcpListener>,
}

impl ListenerHandle {
    /// Makes a waiting [`Listener::accept`] return, and every later one, and ends the handshakes that are under way.
    pub fn close(&self) {
        self.acceptor.close();
    }
}

/// A connection that nobody has spoken on yet. Its place among the handshakes is free when this is dropped.
pub struct Incoming {
    guest: Guest<TcpListener>,
    security: Arc<Security>,
}

impl Incoming {
    /// Where it comes from.
    pub fn remote_addr(&self) -> SocketAddr {
        self.guest.peer
    }

    /// Finds out who the peer is, within `timeout`.
    ///
    /// # Errors
    /// The handshake is late or the connection breaks; TLS refuses one of the two; the peer speaks another protocol; or it calls
    /// itself another host than its certificate does ([`TransportError::WrongHost`]).
    pub fn handshake(self, timeout: Duration) -> Result<Link> {
        let Self { guest: Guest { stream, peer: addr, place: _place }, security } = self;
        let deadline = Instant::now() + timeout;
        socket::prepare(&stream).map_err(|source| TransportError::Broken { addr, source })?;
        handshake::as_server(stream, addr, &security, deadline)
    }
}
