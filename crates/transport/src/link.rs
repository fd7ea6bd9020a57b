//! A connection to a known host.
//!
//! ```text
//!                      LinkHandle (any thread): shutdown, time-outs, last_received
//!                          |
//!   LinkReader ---- socket, read --->  decrypt  ---> caller      one thread
//!                                        |
//!                                     Mutex<TLS>   held for one chunk, never during socket I/O
//!                                        |
//!   LinkWriter <--- socket, write ---  encrypt  <--- caller      another thread
//! ```
//!
//! Only the writer sends: what TLS wants to say by itself (the answer to a key update) leaves with the writer's next
//! chunk, which is what RFC 8446, section 4.6.3, asks for.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ninefold_model::HostName;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
use rustix::net::sockopt;
use rustls::Connection;

use crate::clock::Moment;

/// Plain text encrypted, or cipher text decrypted, under one hold of the lock: eight TLS records.
const CHUNK: usize = 128 << 10;

struct Shared {
    socket: Arc<TcpStream>,
    addr: SocketAddr,
    peer: HostName,
    tls: Option<Mutex<Connection>>,
    last_received: AtomicU64,
    /// Until when something must be read, a [`Moment`]; 0: no such time.
    read_by: AtomicU64,
}

impl Shared {
    fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        let by = self.read_by.load(Ordering::Acquire);
        let n = if by == 0 {
            (&*self.socket).read(buf)?
        } else {
            let left = by.saturating_sub(Moment::now().as_micros());
            if left == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(Duration::from_micros(left)))?;
            let late = |e: io::Error| {
                if e.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { e }
            };
            (&*self.socket).read(buf).map_err(late)?
        };
        if n > 0 {
            self.last_received.store(Moment::now().as_micros(), Ordering::Release);
        }
        Ok(n)
    }
}

/// A panic while the lock was held leaves at worst a connection that fails its next check, so poison is ignored.
fn lock(tls: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    tls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection to a known host. Split it to use it; it closes when both halves are dropped.
pub struct Link {
    reader: LinkReader,
    writer: LinkWriter,
}

impl Link {
    pub(crate) fn new(socket: Arc<TcpStream>, addr: SocketAddr, peer: HostName, mut tls: Option<Connection>) -> Self {
        if let Some(tls) = &mut tls {
            // The writer takes everything out after each chunk: the limit only bounds what one chunk becomes.
            tls.set_buffer_limit(Some(CHUNK * 2));
        }
        let last_received = AtomicU64::new(Moment::now().as_micros());
        let shared = Arc::new(Shared {
            socket,
            addr,
            peer,
            tls: tls.map(Mutex::new),
            last_received,
            read_by: AtomicU64::new(0),
        });
        let open = Arc::new(Open(shared.socket.clone()));
        let room = |bytes| if shared.tls.is_some() { bytes } else { 0 };
        Self {
            reader: LinkReader {
                inbox: vec![0; room(CHUNK)].into_boxed_slice(),
                start: 0,
                end: 0,
                shared: shared.clone(),
                _open: open.clone(),
            },
            // A TLS record adds at most 22 bytes to 16 KiB.
            writer: LinkWriter { outbox: Vec::with_capacity(room(CHUNK + 1024)), sent: 0, shared, _open: open },
        }
    }

    /// The host at the other end: certified, or merely stated with [`crate::Security::PlainText`].
    pub fn peer(&self) -> &HostName {
        &self.reader.shared.peer
    }

    /// A handle for other threads.
    pub fn handle(&self) -> LinkHandle {
        LinkHandle { shared: self.reader.shared.clone() }
    }

    /// The connection, for as long as a half of it is there.
    pub(crate) fn open(&self) -> Weak<Open> {
        Arc::downgrade(&self.reader._open)
    }

    /// The two halves, for a thread each.
    pub fn split(self) -> (LinkReader, LinkWriter) {
        (self.reader, self.writer)
    }
}

/// Closes the socket when the last half is gone, although handles may still refer to it.
pub(crate) struct Open(Arc<TcpStream>);

impl Open {
    /// As [`LinkHandle::shutdown`].
    pub(crate) fn end(&self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end();
    }
}

/// The receiving half. `read` answers 0 at an orderly end; TLS that ends without its farewell is `UnexpectedEof`.
pub struct LinkReader {
    shared: Arc<Shared>,
    /// Cipher text received and not yet decrypted: `inbox[start..end]`.
    inbox: Box<[u8]>,
    start: usize,
    end: usize,
    _open: Arc<Open>,
}

impl Read for LinkReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Self { shared, inbox, start, end, .. } = self;
        let Some(tls) = &shared.tls else {
            return shared.receive(buf);
        };
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let mut connection = lock(tls);
            let mut filled = 0;
            loop {
                match connection.reader().read(&mut buf[filled..]) {
                    Ok(0) => return Ok(filled),
                    Ok(n) => filled += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) if filled > 0 => return Ok(filled),
                    Err(e) => return Err(plain(e)),
                }
                if filled == buf.len() {
                    return Ok(filled);
                }
                if start == end {
                    break;
                }
                *start += connection.read_tls(&mut &inbox[*start..*end])?;
                connection.process_new_packets().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            }
            drop(connection);
            if filled > 0 {
                return Ok(filled);
            }
            let n = shared.receive(inbox)?;
            (*start, *end) = (0, n);
            if n == 0 {
                // Reading nothing tells TLS of the end; its reader then says whether that was an orderly one.
                let mut connection = lock(tls);
                connection.read_tls(&mut io::empty())?;
                return connection.reader().read(buf).map_err(plain);
            }
        }
    }
}

/// TLS's error for an end without farewell, in words for people.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(io::ErrorKind::UnexpectedEof, "the peer's connection broke off"),
        _ => error,
    }
}

/// The sending half. Each `write` becomes at least one TLS record and one system call: gather small pieces first.
///
/// After a time-out (see [`LinkHandle::set_write_timeout`]) what was taken is kept, and `write` or `flush` go on with it.
pub struct LinkWriter {
    shared: Arc<Shared>,
    /// Cipher text; `outbox[sent..]` has not been sent.
    outbox: Vec<u8>,
    sent: usize,
    _open: Arc<Open>,
}

impl LinkWriter {
    fn drain(&mut self) -> io::Result<()> {
        while self.sent < self.outbox.len() {
            match (&*self.shared.socket).write(&self.outbox[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }

    /// Says farewell: sends what waits, and the peer's reader sees an orderly end. This side can still receive.
    ///
    /// # Errors
    /// What waits cannot be sent: the connection has ended, or the peer takes nothing within the time of
    /// [`LinkHandle::set_write_timeout`].
    pub fn finish(mut self) -> io::Result<()> {
        self.drain()?;
        if let Some(tls) = &self.shared.tls {
            let mut connection = lock(tls);
            connection.send_close_notify();
            while connection.wants_write() {
                connection.write_tls(&mut self.outbox)?;
            }
        }
        self.drain()?;
        self.shared.socket.shutdown(Shutdown::Write)
    }
}

impl Write for LinkWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let shared = self.shared.clone();
        let Some(tls) = &shared.tls else {
            return (&*shared.socket).write(buf);
        };
        if buf.is_empty() {
            return Ok(0);
        }
        self.drain()?;
        let taken = {
            let mut connection = lock(tls);
            let taken = connection.writer().write(&buf[..buf.len().min(CHUNK)])?;
            while connection.wants_write() {
                connection.write_tls(&mut self.outbox)?;
            }
            taken
        };
        match self.drain() {
            // Taken and kept: the caller must not send it again.
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(taken),
            other => other.map(|()| taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.drain()
    }
}

impl ninefold_listen::Connection for LinkHandle {
    fn end(&self) {
        self.shutdown();
    }
}

/// What other threads may do with a [`Link`]. Holding one keeps nothing open.
#[derive(Clone)]
pub struct LinkHandle {
    shared: Arc<Shared>,
}

impl LinkHandle {
    /// The host at the other end.
    pub fn peer(&self) -> &HostName {
        &self.shared.peer
    }

    /// The other end's address.
    pub fn remote_addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// Ends the connection now: whoever waits in either half returns. What the kernel has taken to send may still go
    /// out. May be called more than once.
    pub fn shutdown(&self) {
        let _ = self.shared.socket.shutdown(Shutdown::Both);
    }

    /// When bytes last came from the peer; at first, when the handshake ended. A sign of life: it moves only while somebody
    /// reads.
    pub fn last_received(&self) -> Moment {
        Moment::from_micros(self.shared.last_received.load(Ordering::Acquire))
    }

    /// How long nothing has come from the peer. Nothing that has come and waits to be read (FIONREAD, `tcp(7)`) counts as
    /// silence: whoever reads may be kept by something else, such as a slow disk, and that says nothing about the peer.
    pub fn silence(&self) -> Duration {
        if ioctl_fionread(&*self.shared.socket).is_ok_and(|waiting| waiting > 0) {
            return Duration::ZERO;
        }
        self.last_received().elapsed()
    }

    /// Bytes that were sent and that the peer's kernel has not acknowledged (SIOCOUTQ, `tcp(7)`). Some that stay so say that the way is cut, or
    /// that the host is gone: a process that is merely slow does not keep its kernel from acknowledging, for more than the 40 ms of a delayed
    /// acknowledgement.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unacknowledged(&self) -> io::Result<usize> {
        /// As in Linux's `include/uapi/linux/sockios.h`.
        const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
        // SAFETY: SIOCOUTQ writes one int, which is what the getter has room for.
        let bytes =
            unsafe { rustix::ioctl::ioctl(&*self.shared.socket, rustix::ioctl::Getter::<SIOCOUTQ, i32>::new()) }?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }

    /// Waits until bytes have come that nobody has read, or the connection has ended; false if neither was so within `limit`.
    ///
    /// # Errors
    /// Of poll(2), but for interruptions.
    pub fn readable_within(&self, limit: Duration) -> io::Result<bool> {
        let begun = Instant::now();
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            let timeout =
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&*self.shared.socket, PollFlags::IN)], Some(&timeout)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How long a `read` waits at most before it fails with `WouldBlock`; `None`: for ever.
    ///
    /// # Errors
    /// The time is zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.socket.set_read_timeout(timeout)
    }

    /// All reads together end by then, however slowly the bytes come: a `read` past it fails with `TimedOut`, and decrypts
    /// nothing more of what it has not got whole. `None`: they wait for ever, from the next one on.
    ///
    /// # Errors
    /// The kernel refuses to take the time-out off the socket. A deadline is never refused.
    pub fn set_read_deadline(&self, after: Option<Duration>) -> io::Result<()> {
        let by = after
            .map_or(0, |d| Moment::now().as_micros().saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)));
        self.shared.read_by.store(by, Ordering::Release);
        if after.is_none() { self.shared.socket.set_read_timeout(None) } else { Ok(()) }
    }

    /// How long a `write` waits at most for room before it fails with `WouldBlock`; `None`: for ever.
    ///
    /// # Errors
    /// The time is zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.socket.set_write_timeout(timeout)
    }

    /// How long what was sent may stay unacknowledged before the kernel ends the connection: TCP_USER_TIMEOUT, `tcp(7)`.
    ///
    /// # Errors
    /// The kernel refuses a time of more than 2^31 - 1 ms.
    pub fn set_user_timeout(&self, timeout: Duration) -> io::Result<()> {
        let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        Ok(sockopt::set_tcp_user_timeout(&*self.shared.socket, ms)?)
    }
}
