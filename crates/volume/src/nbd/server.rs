//! One export on a Unix socket.
//!
//! ```text
//!   accept thread --> connection thread: haggling --> claims the export --> transmission --> gives it back
//! ```
//!
//! One client at a time may be in transmission (`CAN_MULTI_CONN` is not offered). A second one waits up to
//! [`CLAIM_WAIT`] for the first to go, because the successor of a process that was just killed may be here before
//! the kernel has reported the end of its connection; then it is told `ERR_POLICY`.
//!
//! While a client transmits, a second thread waits for the end of its connection and tells the [`Handler`] at once: what a QEMU
//! that has died was waiting for must not keep its successor out. Requests of it that have not begun are not carried out.
//!
//! Who connects and says nothing keeps nobody out: [`ninefold_listen`].
//!
//! A connection's thread carries out its requests in order and answers them in order. A write is handed over as an
//! owned buffer; a handler that keeps it copies nothing. Replies to plain writes are gathered while further whole writes
//! are already in the buffer, and sent with one call.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_listen::{Acceptor, Bounds, Guest};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tracing::{debug, warn};

use super::negotiation::{Access, Export, Negotiation, Step};
use super::proto::{self, Command, OptionHead, ProtoError, Request, SimpleReply, command_flag, errno};
use crate::error::VolumeError;

/// How long a client waits for the one before it to go.
pub const CLAIM_WAIT: Duration = Duration::from_secs(1);
/// Connections at a time, of which all but one can only haggle. One more gets the place of the one that has done so for longest.
const MAX_CONNECTIONS: usize = 8;
/// A client that haggles has to say something in this time.
const HAGGLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes read ahead.
const READ_BUFFER: usize = 256 << 10;
/// Replies are sent at the latest when this many bytes have gathered.
const GATHER: usize = 4 << 10;
/// A buffer for replies that has grown over this is given back.
const KEEP_BUFFER: usize = 1 << 20;

/// What carries out the requests of an export's client. Requests have been checked against the size.
///
/// The calls of one connection come from one thread, in order. An error is answered to the client as `EIO`, `ENOSPC` or
/// `EINVAL`, after what the error says; it does not end the connection.
pub trait Handler: Send + Sync + 'static {
    /// Bytes of the export. It is asked for once for each connection.
    fn size(&self) -> u64;
    /// Reads `into.len()` bytes from `at` on.
    ///
    /// # Errors
    /// The storage cannot be read.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<(), VolumeError>;
    /// Writes `bytes` from `at` on; with `fua` they are durable on return.
    ///
    /// # Errors
    /// The client is not to write here any more, the storage cannot be written or has no room left, or, with `fua`, the bytes
    /// cannot be made durable.
    fn write(&self, at: u64, bytes: Vec<u8>, fua: bool) -> Result<(), VolumeError>;
    /// Makes `length` bytes from `at` on zero; with `unmap` (a discard, too) their storage may be given back.
    ///
    /// # Errors
    /// It fails as [`Handler::write`] does.
    fn zero(&self, at: u64, length: u64, unmap: bool, fua: bool) -> Result<(), VolumeError>;
    /// Makes durable what was answered before.
    ///
    /// # Errors
    /// The storage has not taken all of it.
    fn flush(&self) -> Result<(), VolumeError>;
    /// A client begins to transmit.
    fn begins(&self) {}
    /// Its connection has ended: nobody hears an answer to its last requests, which should not wait for anything any more.
    /// Called from another thread than theirs, once after each [`Handler::begins`].
    fn ended(&self) {}
}

/// A server. Dropping it closes its connections, waits for its threads (and so for a handler that is at work) and removes
/// the socket.
pub struct Server {
    path: PathBuf,
    acceptor: Acceptor<UnixListener>,
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closing: bool,
    taken: bool,
    /// Connections that have a thread.
    served: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the export to be free and takes it.
    fn claim(self: &Arc<Self>) -> Option<Claim> {
        let until = Instant::now() + CLAIM_WAIT;
        let mut state = self.lock();
        while state.taken && !state.closing {
            let left = until.checked_duration_since(Instant::now())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.closing {
            return None;
        }
        state.taken = true;
        Some(Claim(Arc::clone(self)))
    }
}

/// The right to transmit.
struct Claim(Arc<Shared>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.lock().taken = false;
        self.0.changed.notify_all();
    }
}

/// A connection that counts, also when its thread panics in the handler.
struct Entry(Arc<Shared>);

impl Entry {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.lock().served += 1;
        Self(Arc::clone(shared))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.lock().served -= 1;
        self.0.changed.notify_all();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves `handler` as the export `name` on a socket at `path`, which must not exist. Only the own user may connect.
    ///
    /// # Errors
    /// `Io`: the socket cannot be made, or a thread cannot be started.
    pub fn listen(path: &Path, name: &str, access: Access, handler: Arc<dyn Handler>) -> Result<Server, VolumeError> {
        let failed = |source| VolumeError::Io { what: "cannot serve NBD", source };
        let listener = UnixListener::bind(path).map_err(failed)?;
        let acceptor = Acceptor::new("nbd", listener, Bounds::new(MAX_CONNECTIONS), Vec::new());
        let shared = Arc::new(Shared::default());
        let mut server =
            Server { path: path.to_owned(), acceptor: acceptor.clone(), shared: Arc::clone(&shared), accept: None };
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).map_err(failed)?;
        let name: Arc<str> = name.into();
        let accept = std::thread::Builder::new()
            .name("nbd-accept".into())
            .spawn(move || accept(&acceptor, &shared, &name, access, &handler))
            .map_err(failed)?;
        server.accept = Some(accept);
        Ok(server)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a client is in transmission.
    pub fn in_use(&self) -> bool {
        self.shared.lock().taken
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.changed.notify_all();
        self.acceptor.close();
        if let Some(thread) = self.accept.take() {
            let _ = thread.join();
        }
        let state = self.shared.lock();
        drop(self.shared.changed.wait_while(state, |state| state.served > 0).unwrap_or_else(PoisonError::into_inner));
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(
    acceptor: &Acceptor<UnixListener>,
    shared: &Arc<Shared>,
    name: &Arc<str>,
    access: Access,
    handler: &Arc<dyn Handler>,
) {
    while let Some(guest) = acceptor.accept() {
        let (entry, name, handler) = (Entry::new(shared), Arc::clone(name), Arc::clone(handler));
        let serve = move || connection(entry, &name, access, handler, guest);
        if let Err(error) = std::thread::Builder::new().name("nbd".into()).spawn(serve) {
            warn!(%error, "cannot start a thread for an NBD connection");
        }
    }
}

/// Who waits for the entry to go finds all the rest gone, too: arguments are dropped from the last to the first.
#[expect(clippy::needless_pass_by_value, reason = "they go here, in this order")]
fn connection(entry: Entry, name: &str, access: Access, handler: Arc<dyn Handler>, guest: Guest<UnixListener>) {
    match serve(&guest, &entry.0, name, access, &*handler) {
        Ok(()) => debug!("an NBD client has gone"),
        Err(error) => warn!(%error, "an NBD client was disconnected"),
    }
    let _ = guest.stream.shutdown(Shutdown::Both);
}

/// Why a connection was ended by us.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the client broke the protocol: {0}")]
    Proto(#[from] ProtoError),
    #[error("connection: {0}")]
    Io(#[from] io::Error),
}

fn serve(
    guest: &Guest<UnixListener>,
    shared: &Arc<Shared>,
    name: &str,
    access: Access,
    handler: &dyn Handler,
) -> Result<(), Ended> {
    let stream = &*guest.stream;
    stream.set_read_timeout(Some(HAGGLE_TIMEOUT))?;
    stream.set_write_timeout(Some(HAGGLE_TIMEOUT))?;
    let size = handler.size();
    let mut negotiation = Negotiation::new(Export { name: name.to_owned(), size, access });
    let mut reader = BufReader::with_capacity(READ_BUFFER, stream);
    let mut out = Vec::new();
    (&*stream).write_all(&Negotiation::greeting())?;
    let mut flags = [0; 4];
    if !read_or_end(&mut reader, &mut flags)? {
        return Ok(());
    }
    negotiation.client_flags(flags)?;
    let claim = loop {
        let mut head = [0; OptionHead::LEN];
        if !read_or_end(&mut reader, &mut head)? {
            return Ok(());
        }
        let head = OptionHead::parse(&head)?;
        let mut data = vec![0; head.length as usize];
        reader.read_exact(&mut data)?;
        let claim = if negotiation.begins(head.option, &data) {
            // Who transmits, or is about to, loses its place to nobody.
            guest.place.busy();
            let claim = shared.claim();
            if claim.is_none() {
                guest.place.idle();
            }
            claim
        } else {
            None
        };
        out.clear();
        let step = negotiation.answer(head.option, &data, claim.is_none(), &mut out);
        (&*stream).write_all(&out)?;
        match (step, claim) {
            (Step::Transmit, Some(claim)) => break claim,
            (Step::Close | Step::Transmit, _) => return Ok(()),
            (Step::Haggle, _) => {}
        }
    };
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    handler.begins();
    let ended = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let watch = || {
            wait_for_end(stream);
            ended.store(true, Ordering::SeqCst);
            handler.ended();
        };
        std::thread::Builder::new()
            .name("nbd-watch".into())
            .spawn_scoped(scope, watch)
            .inspect_err(|_| handler.ended())?;
        // Whatever becomes of this one: the other thread is to end.
        let _hangup = Hangup(stream);
        transmit(stream, &mut reader, size, access, handler, &ended)
    });
    drop(claim);
    done
}

/// Closes a connection when it goes.
struct Hangup<'a>(&'a UnixStream);

impl Drop for Hangup<'_> {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Waits until both directions of a connection are closed, by either side.
fn wait_for_end(stream: &UnixStream) {
    // poll(2) always tells of POLLHUP, which a Unix socket has when its peer has closed it. A failure counts as the end:
    // nobody could tell of it later.
    while let Ok(0) | Err(Errno::INTR) = poll(&mut [PollFd::new(stream, PollFlags::empty())], None) {}
}

fn transmit(
    stream: &UnixStream,
    reader: &mut BufReader<&UnixStream>,
    size: u64,
    access: Access,
    handler: &dyn Handler,
    ended: &AtomicBool,
) -> Result<(), Ended> {
    let mut out: Vec<u8> = Vec::new();
    loop {
        if !out.is_empty() && (out.len() >= GATHER || !quick_one_waits(reader.buffer())) {
            (&*stream).write_all(&out)?;
            out.clear();
            if out.capacity() > KEEP_BUFFER {
                out = Vec::new();
            }
        }
        let mut head = [0; Request::LEN];
        if ended.load(Ordering::SeqCst) || !read_or_end(reader, &mut head)? {
            return Ok(());
        }
        let request = Request::parse(&head)?;
        let checked = request.check(size, access == Access::ReadWrite);
        let payload = match request.payload() {
            0 => Vec::new(),
            // The length is bounded by `parse`.
            length => {
                let mut payload = vec![0; length];
                reader.read_exact(&mut payload)?;
                payload
            }
        };
        if request.command == Command::Disconnect {
            return Ok(());
        }
        // A read's data goes behind its reply in the same buffer, so that both leave with one call.
        let start = out.len();
        out.extend([0; SimpleReply::LEN]);
        let done = checked.and_then(|()| carry_out(handler, &request, payload, &mut out).map_err(|e| to_errno(&e)));
        let error = match done {
            Ok(()) => 0,
            Err(error) => {
                out.truncate(start + SimpleReply::LEN);
                error
            }
        };
        out[start..start + SimpleReply::LEN].copy_from_slice(&SimpleReply { error, cookie: request.cookie }.emit());
    }
}

/// Whether the next request is already here, all of it, and is a write that nobody has to wait for.
fn quick_one_waits(buffer: &[u8]) -> bool {
    buffer.first_chunk().and_then(|head| Request::parse(head).ok()).is_some_and(|next| {
        next.command == Command::Write
            && next.flags & command_flag::FUA == 0
            && buffer.len() - Request::LEN >= next.payload()
    })
}

fn carry_out(handler: &dyn Handler, request: &Request, payload: Vec<u8>, out: &mut Vec<u8>) -> Result<(), VolumeError> {
    let (at, length) = (request.offset, u64::from(request.length));
    let fua = request.flags & command_flag::FUA != 0;
    match request.command {
        // What is asked of no bytes is unspecified; nothing is a good answer.
        Command::Read | Command::Write | Command::Trim | Command::WriteZeroes if length == 0 => Ok(()),
        Command::Read => {
            let start = out.len();
            out.resize(start + request.length as usize, 0);
            handler.read(at, &mut out[start..])
        }
        Command::Write => handler.write(at, payload, fua),
        Command::Trim => handler.zero(at, length, true, fua),
        Command::WriteZeroes => handler.zero(at, length, request.flags & command_flag::NO_HOLE == 0, fua),
        Command::Flush => handler.flush(),
        Command::Disconnect | Command::Other(_) => Ok(()),
    }
    .inspect_err(|error| warn!(%error, ?request, "an NBD request failed"))
}

fn to_errno(error: &VolumeError) -> u32 {
    match error {
        VolumeError::OutOfBounds { .. } => errno::INVAL,
        VolumeError::Io { source, .. } => match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => errno::NOSPC,
            ErrorKind::InvalidInput => errno::INVAL,
            ErrorKind::OutOfMemory => errno::NOMEM,
            _ => errno::IO,
        },
        _ => errno::IO,
    }
}

/// Fills `into`; false if the peer has ended the connection before the first byte.
fn read_or_end(reader: &mut BufReader<&UnixStream>, into: &mut [u8]) -> io::Result<bool> {
    loop {
        match reader.fill_buf() {
            Ok([]) => return Ok(false),
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    reader.read_exact(into).map(|()| true)
}

const _: () = assert!(proto::MAX_OPTION as usize <= READ_BUFFER);
