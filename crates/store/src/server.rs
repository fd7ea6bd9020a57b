//! The witness server: a thread per connection, each bounded in number, time and bytes.
//!
//! ```text
//!   accept --> handshake --> wait for a request --> answer --+
//!     |            |          ^                              |
//!     |            |          +------------------------------+
//!     +-- too many +-- late, garbage, stranger: closed
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ninefold_model::{HostName, Record};
use ninefold_transport::{Incoming, Link, LinkHandle, Listener, ListenerHandle, TransportError};

use crate::old::OldRecord;
use crate::registers::{Registers, SwapError};
use crate::wire::{
    Answer, Call, Entry, FrameError, FrameReader, FrameWriter, OLD_VERSION, PAGE, Request, Response, VERSION,
    parse_request,
};
use crate::witness::Swap;

/// A thread here reads JSON of bounded depth and waits.
const STACK: usize = 512 << 10;

/// Bounds of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections whose peer is known. A keeper holds one.
    pub connections: usize,
    /// Connections whose peer is not known yet.
    pub handshakes: usize,
    /// For a handshake.
    pub handshake: Duration,
    /// For the rest of a request once it began, and for an answer to leave.
    pub io: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 4096, handshakes: 64, handshake: Duration::from_secs(2), io: Duration::from_secs(2) }
    }
}

/// A witness server that is bound to its address.
pub struct Server {
    listener: Listener,
    shared: Arc<Shared>,
}

struct Shared {
    registers: Registers,
    limits: Limits,
    listener: ListenerHandle,
    peers: Mutex<Peers>,
    /// Signalled when a connection's thread ends.
    ended: Condvar,
    failed: AtomicBool,
}

#[derive(Default)]
struct Peers {
    next: u64,
    handshakes: usize,
    links: HashMap<u64, LinkHandle>,
    /// Of the connections; those that have ended are removed when the next one comes.
    threads: Vec<thread::JoinHandle<()>>,
    stopping: bool,
}

/// Why the server ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the store has failed")]
    StoreFailed,
}

impl Server {
    /// Serves `registers` on `listener` once [`Server::run`] is called.
    pub fn new(listener: Listener, registers: Registers, limits: Limits) -> Self {
        let shared = Shared {
            registers,
            limits,
            listener: listener.handle(),
            peers: Mutex::default(),
            ended: Condvar::new(),
            failed: AtomicBool::new(false),
        };
        Self { listener, shared: Arc::new(shared) }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.listener.local_addr()
    }

    /// A handle that can stop it.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle { shared: self.shared.clone() }
    }

    /// Serves until [`ServerHandle::stop`], or until the store fails. All its threads have ended when it returns.
    pub fn run(self) -> Result<(), ServeError> {
        loop {
            match self.listener.accept() {
                Ok(incoming) => admit(&self.shared, incoming),
                Err(TransportError::Closed) => break,
                Err(error) => {
                    tracing::warn!(%error, "no new connections for a moment");
                    // Out of descriptors: time for others to end.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
        let mut peers = self.shared.peers();
        while peers.handshakes > 0 || !peers.links.is_empty() {
            peers = self.shared.ended.wait(peers).unwrap_or_else(PoisonError::into_inner);
        }
        // Each has given its place back and is about to end; joined, it does not hold the registers any more.
        let threads = std::mem::take(&mut peers.threads);
        drop(peers);
        for thread in threads {
            let _ = thread.join();
        }
        if self.shared.failed.load(Ordering::Acquire) { Err(ServeError::StoreFailed) } else { Ok(()) }
    }
}

/// Stops a [`Server`] from any thread.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
}

impl ServerHandle {
    /// Makes [`Server::run`] return. Requests under way may be cut off.
    pub fn stop(&self) {
        self.shared.stop();
    }
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        let mut peers = self.peers();
        peers.stopping = true;
        for link in peers.links.values() {
            link.shutdown();
        }
        drop(peers);
        self.listener.close();
    }
}

/// Starts a thread for a new connection, or turns it away.
fn admit(shared: &Arc<Shared>, incoming: Incoming) {
    let addr = incoming.remote_addr();
    let mut peers = shared.peers();
    if peers.stopping || peers.handshakes >= shared.limits.handshakes {
        drop(peers);
        tracing::warn!(%addr, "turned away: too many handshakes under way");
        return incoming.refuse();
    }
    peers.handshakes += 1;
    drop(peers);
    let place = Place { shared: shared.clone(), id: None };
    let thread = thread::Builder::new().name("peer".into()).stack_size(STACK);
    match thread.spawn(move || attend(place, incoming)) {
        Ok(thread) => {
            let mut peers = shared.peers();
            peers.threads.retain(|t| !t.is_finished());
            peers.threads.push(thread);
        }
        Err(error) => tracing::warn!(%addr, %error, "turned away: no thread"),
    }
}

/// A connection's place among the peers, given back when its thread ends.
struct Place {
    shared: Arc<Shared>,
    /// Once the peer is known.
    id: Option<u64>,
}

impl Place {
    /// From a handshake to a link, if there is room.
    fn promote(&mut self, link: &Link) -> bool {
        let mut peers = self.shared.peers();
        if peers.stopping || peers.links.len() >= self.shared.limits.connections {
            return false;
        }
        let id = peers.next;
        peers.next += 1;
        peers.handshakes -= 1;
        peers.links.insert(id, link.handle());
        self.id = Some(id);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.shared.peers();
        match self.id {
            Some(id) => drop(peers.links.remove(&id)),
            None => peers.handshakes -= 1,
        }
        drop(peers);
        self.shared.ended.notify_all();
    }
}

fn attend(mut place: Place, incoming: Incoming) {
    let addr = incoming.remote_addr();
    let link = match incoming.handshake(place.shared.limits.handshake) {
        Ok(link) => link,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            return tracing::warn!(%addr, %error, cause, "turned away");
        }
    };
    if !place.promote(&link) {
        return tracing::warn!(%addr, peer = %link.peer(), "turned away: too many connections");
    }
    let peer = link.peer().clone();
    match serve(&place.shared, link) {
        Ok(()) => tracing::debug!(%addr, %peer, "gone"),
        Err(error) => tracing::warn!(%addr, %peer, %error, "connection ended"),
    }
}

/// Answers one peer's requests until it ends or errs.
fn serve(shared: &Shared, link: Link) -> Result<(), FrameError> {
    let Limits { io, .. } = shared.limits;
    let (handle, peer) = (link.handle(), link.peer().clone());
    let (reader, writer) = link.split();
    let mut requests = FrameReader::new(reader, handle.clone());
    let mut responses = FrameWriter::new(writer, handle);
    let refuse = |id, reason| Response::<Record> { version: VERSION, id, answer: Answer::Refused { reason } };
    loop {
        let Request { version, id, call } = match requests.wait(io) {
            Ok(None) => return Ok(()),
            Ok(Some(json)) => match parse_request(json) {
                Ok(request) => request,
                // Who does not speak our language is told so, and that is all.
                Err(bad) => return Ok(responses.send(&refuse(0, bad.to_string()), io)?),
            },
            Err(error @ FrameError::TooLong(_)) => {
                responses.send(&refuse(0, error.to_string()), io)?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let Some(answer) = answer(shared, &peer, call) else {
            // Unknown outcome: silence is the only honest answer.
            shared.failed.store(true, Ordering::Release);
            shared.stop();
            return Ok(());
        };
        // In the version that was asked in.
        if version == OLD_VERSION {
            responses.send(&Response { version, id, answer: answer.map(OldRecord::from) }, io)?;
        } else {
            responses.send(&Response { version, id, answer }, io)?;
        }
    }
}

/// `None` when the store has failed.
fn answer(shared: &Shared, peer: &HostName, call: Call) -> Option<Answer> {
    Some(match call {
        Call::Ping => Answer::Pong,
        Call::Read { vm } => Answer::Value { record: shared.registers.read(&vm) },
        Call::CompareAndSwap { vm, expected, new } => {
            match shared.registers.compare_and_swap(peer.clone(), vm, expected, new) {
                Ok(Swap::Won(record)) => Answer::Won { record },
                Ok(Swap::Lost(record)) => Answer::Lost { record },
                Err(SwapError::Failed) => return None,
                Err(refused) => Answer::Refused { reason: refused.to_string() },
            }
        }
        Call::List { after } => {
            let mut records = shared.registers.list(after.as_ref(), PAGE + 1);
            let more = records.len() > PAGE;
            records.truncate(PAGE);
            Answer::Page { records: records.into_iter().map(|(vm, record)| Entry { vm, record }).collect(), more }
        }
    })
}
