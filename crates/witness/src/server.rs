//! The witness server: a thread per connection, each bounded in number, time and bytes.
//!
//! ```text
//!   accept --> handshake --> wait for a request --> answer --+
//!     |            |          ^                              |
//!     |            |          +------------------------------+
//!     |            +-- late, garbage, stranger: closed
//!     +-- too many: the one that has said nothing for longest is closed; of links, one of the host that has most
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ninefold_listen::{Acquaintance, Bounds, Place, Register};
use ninefold_model::HostName;
use ninefold_transport::{Incoming, Link, LinkHandle, Listener, ListenerHandle};
use ninefold_witness_client::wire::{
    Answer, Call, FrameError, FrameReader, FrameWriter, PAGE, Request, Response, VERSION, parse_request,
};
use ninefold_witness_client::{Retirement, Swap};

use crate::registers::{Labelled, Registers, SwapError};

/// A thread here reads JSON of bounded depth and waits.
const STACK: usize = 512 << 10;

/// Bounds of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections whose peer is known. A keeper holds one. (The listener bounds those whose peer is not known yet.)
    pub connections: usize,
    /// How long a peer must have asked nothing before its place can be another's.
    pub grace: Duration,
    /// For a handshake.
    pub handshake: Duration,
    /// For the rest of a request once it began, and for an answer to leave.
    pub io: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            grace: Duration::from_secs(1),
            handshake: Duration::from_secs(2),
            io: Duration::from_secs(2),
        }
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
    links: Register<HostName, LinkHandle>,
    failed: AtomicBool,
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
        let bounds = Bounds { grace: limits.grace, ..Bounds::new(limits.connections) };
        let links = Register::new(bounds);
        let shared = Shared { registers, limits, listener: listener.handle(), links, failed: AtomicBool::new(false) };
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
    ///
    /// # Errors
    /// The store has failed.
    pub fn run(self) -> Result<(), ServeError> {
        // Those that have ended are removed when the next one comes.
        let mut threads: Vec<thread::JoinHandle<()>> = Vec::new();
        while let Ok(incoming) = self.listener.accept() {
            threads.retain(|t| !t.is_finished());
            let (addr, shared) = (incoming.remote_addr(), self.shared.clone());
            let thread = thread::Builder::new().name("peer".into()).stack_size(STACK);
            match thread.spawn(move || attend(&shared, incoming)) {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::warn!(%addr, %error, "turned away: no thread"),
            }
        }
        // Joined, they do not hold the registers any more.
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
    fn stop(&self) {
        self.listener.close();
        self.links.close();
    }
}

fn attend(shared: &Shared, incoming: Incoming) {
    let addr = incoming.remote_addr();
    let link = match incoming.handshake(shared.limits.handshake) {
        Ok(link) => link,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            return tracing::warn!(%addr, %error, cause, "turned away");
        }
    };
    let peer = link.peer().clone();
    let Some(place) = shared.links.enter(peer.clone(), Acquaintance::Stranger, link.handle()) else {
        return tracing::warn!(%addr, %peer, "turned away: too many connections");
    };
    match serve(shared, link, &place) {
        Ok(()) => tracing::debug!(%addr, %peer, "gone"),
        Err(error) => tracing::warn!(%addr, %peer, %error, "connection ended"),
    }
}

/// Answers one peer's requests until it ends or errs.
fn serve(shared: &Shared, link: Link, place: &Place<HostName, LinkHandle>) -> Result<(), FrameError> {
    let Limits { io, .. } = shared.limits;
    let (handle, peer) = (link.handle(), link.peer().clone());
    let (reader, writer) = link.split();
    let mut requests = FrameReader::new(reader, handle.clone());
    let mut responses = FrameWriter::new(writer, handle);
    let refuse = |id, reason| Response { version: VERSION, id, answer: Answer::Refused { reason } };
    loop {
        place.idle();
        let request = requests.wait(io);
        place.busy();
        let Request { id, call, .. } = match request {
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
        responses.send(&Response { version: VERSION, id, answer }, io)?;
    }
}

/// `None` when the store has failed.
fn answer(shared: &Shared, peer: &HostName, call: Call) -> Option<Answer> {
    Some(match call {
        Call::Ping => Answer::Pong,
        Call::Read { vm } => match shared.registers.read(vm) {
            Ok(found) => value(found),
            Err(tombstone) => Answer::Retired { tombstone },
        },
        Call::CompareAndSwap { vm, label, expected, new } => {
            match shared.registers.compare_and_swap(peer.clone(), vm, label, expected, new) {
                Ok(Swap::Won(record)) => Answer::Won { record },
                Ok(Swap::Lost(record)) => Answer::Lost { record },
                Err(error) => return without_verdict(&error),
            }
        }
        Call::Retire { vm, expected, forced } => match shared.registers.retire(peer.clone(), vm, expected, forced) {
            Ok(Retirement::Done(tombstone)) => Answer::Retired { tombstone },
            Ok(Retirement::Lost(record)) => Answer::Lost { record },
            Err(error) => return without_verdict(&error),
        },
        Call::Rename { vm, label } => match shared.registers.rename(vm, label) {
            Ok(found) => value(found),
            Err(error) => return without_verdict(&error),
        },
        Call::List { after } => {
            let mut records = shared.registers.list(after, PAGE + 1);
            let more = records.len() > PAGE;
            records.truncate(PAGE);
            Answer::Page { records, more }
        }
    })
}

fn value(found: Option<Labelled>) -> Answer {
    let (record, label) = found.map(|Labelled { record, label }| (record, label)).unzip();
    Answer::Value { record, label }
}

/// The answer to a proposal that was not judged; `None` when the store has failed.
fn without_verdict(error: &SwapError) -> Option<Answer> {
    match error {
        SwapError::Failed => None,
        SwapError::Retired(tombstone) => Some(Answer::Retired { tombstone: *tombstone }),
        SwapError::Refused(_) | SwapError::Full(_) => Some(Answer::Refused { reason: error.to_string() }),
    }
}
