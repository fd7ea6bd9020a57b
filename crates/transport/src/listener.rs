//! The accepting side.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Result, TransportError};
use crate::identity::Security;
use crate::link::Link;
use crate::{handshake, socket};

/// Connections that the kernel keeps ready for [`Listener::accept`].
const BACKLOG: i32 = 128;

/// A listening socket.
pub struct Listener {
    inner: Arc<Inner>,
    security: Arc<Security>,
    addr: SocketAddr,
}

struct Inner {
    socket: TcpListener,
    closed: AtomicBool,
}

impl Listener {
    /// Listens on `addr`; port 0 lets the kernel choose, see [`Listener::local_addr`].
    pub fn bind(addr: SocketAddr, security: Security) -> Result<Self> {
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
        let inner = Arc::new(Inner { socket, closed: AtomicBool::new(false) });
        Ok(Self { inner, security: Arc::new(security), addr })
    }

    /// The address in use, with the port that the kernel chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits for the next connection. Nothing has been read from it yet: run [`Incoming::handshake`] in a thread of
    /// its own, so that a slow peer keeps nobody waiting.
    ///
    /// # Errors
    /// [`TransportError::Closed`] after [`ListenerHandle::close`]. [`TransportError::Accept`] when the process is out of
    /// descriptors or memory: wait a little and go on.
    pub fn accept(&self) -> Result<Incoming> {
        loop {
            let accepted = self.inner.socket.accept();
            if self.inner.closed.load(Ordering::Acquire) {
                return Err(TransportError::Closed);
            }
            match accepted {
                Ok((socket, addr)) => {
                    // A peer that is already gone again.
                    if socket::prepare(&socket).is_err() {
                        continue;
                    }
                    return Ok(Incoming { socket, addr, security: self.security.clone() });
                }
                // accept(2): errors of the connection, not of the listener.
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {}
                Err(source) => return Err(TransportError::Accept { source }),
            }
        }
    }

    /// A handle that can close the listener from another thread.
    pub fn handle(&self) -> ListenerHandle {
        ListenerHandle { inner: self.inner.clone() }
    }
}

/// Closes a [`Listener`] from any thread.
#[derive(Clone)]
pub struct ListenerHandle {
    inner: Arc<Inner>,
}

impl ListenerHandle {
    /// Makes a waiting [`Listener::accept`] return, and every later one.
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        // Linux: shutting down a listening socket wakes accept(2) with EINVAL.
        let _ = rustix::net::shutdown(&self.inner.socket, rustix::net::Shutdown::Both);
    }
}

/// A connection that nobody has spoken on yet.
pub struct Incoming {
    socket: TcpStream,
    addr: SocketAddr,
    security: Arc<Security>,
}

impl Incoming {
    /// Where it comes from.
    pub fn remote_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Finds out who the peer is, within `timeout`.
    pub fn handshake(self, timeout: Duration) -> Result<Link> {
        let Self { socket, addr, security } = self;
        handshake::as_server(socket, addr, &security, Instant::now() + timeout)
    }

    /// Turns it away without a word.
    pub fn refuse(self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
