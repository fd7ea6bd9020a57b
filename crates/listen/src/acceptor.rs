//! A listening socket that survives the lack of descriptors, and gives each connection a place or turns it away.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::descriptors::{Spare, exhausted};
use crate::places::{Acquaintance, Bounds};
use crate::register::{Connection, Place, Register};

/// After an accept that failed for no reason that is known to pass at once.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two lines in the log about those that were turned away.
const QUIET: Duration = Duration::from_secs(10);

/// From where a connection comes, as far as fairness goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An address; of IPv6 the network of 64 bits, of which one client may have all.
    Address(IpAddr),
    /// A process of this host.
    Process(i32),
}

impl Origin {
    /// The origin of who has this address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => Self::Address(IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into())),
            v4 => Self::Address(v4),
        }
    }
}

/// A listening socket of some kind.
pub trait Listens: AsFd + Send + Sync + 'static {
    type Stream: Send + Sync + 'static;
    /// What the other end is called in the log.
    type Peer: std::fmt::Debug + Send;
    /// See accept(2).
    ///
    /// # Errors
    /// It fails as accept(2) does: nobody waits (`WouldBlock`, of a non-blocking socket), a signal came, the connection has
    /// failed meanwhile, or there are no more descriptors.
    fn accept(&self) -> io::Result<(Self::Stream, Self::Peer)>;
    /// From where it comes.
    fn origin(stream: &Self::Stream, peer: &Self::Peer) -> Origin;
}

impl Listens for TcpListener {
    type Stream = TcpStream;
    type Peer = SocketAddr;
    fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        TcpListener::accept(self)
    }
    fn origin(_: &TcpStream, peer: &SocketAddr) -> Origin {
        Origin::of(peer.ip())
    }
}

impl Listens for UnixListener {
    type Stream = UnixStream;
    /// Its process; 0 for one of another namespace.
    type Peer = i32;
    fn accept(&self) -> io::Result<(UnixStream, i32)> {
        let (stream, _) = UnixListener::accept(self)?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_or(0, |c| c.pid.as_raw_nonzero().get());
        Ok((stream, peer))
    }
    fn origin(_: &UnixStream, peer: &i32) -> Origin {
        Origin::Process(*peer)
    }
}

/// One that has come in.
pub struct Guest<L: Listens>
where
    Arc<L::Stream>: Connection,
{
    pub stream: Arc<L::Stream>,
    pub peer: L::Peer,
    pub place: Place<Origin, Arc<L::Stream>>,
}

/// What came of an accept that does not wait.
pub enum Tried<L: Listens>
where
    Arc<L::Stream>: Connection,
{
    Guest(Guest<L>),
    /// Nobody waits.
    Nobody,
    /// It is no use to try before this time has passed, whatever poll(2) says.
    Later(Duration),
}

struct Shared<L: Listens>
where
    Arc<L::Stream>: Connection,
{
    listener: L,
    what: &'static str,
    register: Register<Origin, Arc<L::Stream>>,
    known: Vec<Origin>,
    closed: AtomicBool,
    bad: Mutex<Bad>,
}

/// For bad times.
struct Bad {
    spare: Spare,
    turned_away: u64,
    told: Option<Instant>,
}

/// A listening socket with its bounds. Clones share it.
pub struct Acceptor<L: Listens>
where
    Arc<L::Stream>: Connection,
{
    shared: Arc<Shared<L>>,
}

impl<L: Listens> Clone for Acceptor<L>
where
    Arc<L::Stream>: Connection,
{
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<L: Listens> Acceptor<L>
where
    Arc<L::Stream>: Connection,
{
    /// The listener becomes non-blocking. `what` names it in the log. `known` are the origins of the peers that it is for, if they are known.
    pub fn new(what: &'static str, listener: L, bounds: Bounds, known: Vec<Origin>) -> Self {
        // It fails for what is no socket only.
        let _ = rustix::io::ioctl_fionbio(&listener, true);
        let bad = Mutex::new(Bad { spare: Spare::new(), turned_away: 0, told: None });
        let (register, closed) = (Register::new(bounds), AtomicBool::new(false));
        Self { shared: Arc::new(Shared { listener, what, register, known, closed, bad }) }
    }

    /// Waits for the next one that has a place. `None` after [`close`](Self::close).
    pub fn accept(&self) -> Option<Guest<L>> {
        loop {
            if self.shared.closed.load(Ordering::Acquire) {
                return None;
            }
            match self.try_accept() {
                Tried::Guest(guest) => return Some(guest),
                // Not in accept(2), which would keep a descriptor for the next one as long as it waits.
                Tried::Nobody => drop(self.shared.await_one(None)),
                Tried::Later(pause) => thread::sleep(pause),
            }
        }
    }

    /// The same without waiting.
    pub fn try_accept(&self) -> Tried<L> {
        let shared = &*self.shared;
        loop {
            match shared.listener.accept() {
                Ok((stream, peer)) => {
                    if let Some(guest) = shared.admit(stream, peer) {
                        return Tried::Guest(guest);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Tried::Nobody,
                // A signal, or a connection that has failed before it was accepted.
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                // That is found out before anybody is looked for.
                Err(e) if exhausted(&e) && !shared.await_one(Some(Duration::ZERO)) => return Tried::Nobody,
                Err(e) if exhausted(&e) && shared.turn_one_away(&e) => {}
                Err(e) => {
                    shared.note(&e);
                    return Tried::Later(PAUSE);
                }
            }
        }
    }

    /// Serves each that comes from a thread of its own, until [`close`](Self::close).
    pub fn serve(&self, serve: impl Fn(Guest<L>) + Send + Sync + 'static) {
        let serve = Arc::new(serve);
        while let Some(guest) = self.accept() {
            let serve = Arc::clone(&serve);
            let started = thread::Builder::new().name(self.shared.what.into()).spawn(move || serve(guest));
            if let Err(error) = started {
                self.shared.note(&error);
            }
        }
    }

    /// Makes a waiting [`accept`](Self::accept) return, and every later one; ends the connections that hold places.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        // Linux: shutting down a listening socket wakes poll(2).
        let _ = rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Both);
        self.shared.register.close();
    }

    /// Connections that hold a place.
    pub fn taken(&self) -> usize {
        self.shared.register.taken()
    }
}

impl<L: Listens> AsFd for Acceptor<L>
where
    Arc<L::Stream>: Connection,
{
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.shared.listener.as_fd()
    }
}

impl<L: Listens> Shared<L>
where
    Arc<L::Stream>: Connection,
{
    fn admit(&self, stream: L::Stream, peer: L::Peer) -> Option<Guest<L>> {
        let origin = L::origin(&stream, &peer);
        let standing = if self.known.contains(&origin) { Acquaintance::Known } else { Acquaintance::Stranger };
        let stream = Arc::new(stream);
        let Some(place) = self.register.enter(origin, standing, Arc::clone(&stream)) else {
            stream.end();
            self.note(&format_args!("no place for {peer:?}"));
            return None;
        };
        Some(Guest { stream, peer, place })
    }

    /// There is no descriptor for the next connection: it is accepted with the spare one and closed, so that its client
    /// knows, and an idle one of this port makes room for those that follow. Answers whether that could be done.
    fn turn_one_away(&self, why: &io::Error) -> bool {
        self.note(why);
        self.register.make_room();
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        // Not if somebody else took the descriptor meanwhile.
        bad.spare.lend(|| self.listener.accept().is_ok())
    }

    /// Waits until somebody wants to be accepted, or the listener is closed; answers whether that is so.
    fn await_one(&self, limit: Option<Duration>) -> bool {
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
        let limit = limit.and_then(|l| Timespec::try_from(l).ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(n) => n > 0,
            Err(Errno::INTR) => false,
            Err(_) => {
                thread::sleep(PAUSE);
                false
            }
        }
    }

    /// Says now and then that there is trouble, however often there is.
    fn note(&self, why: &dyn std::fmt::Display) {
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        bad.turned_away += 1;
        if bad.told.is_none_or(|told| told.elapsed() >= QUIET) {
            bad.told = Some(Instant::now());
            let times = std::mem::take(&mut bad.turned_away);
            tracing::warn!(port = self.what, %why, times, "connections are turned away");
        }
    }
}
