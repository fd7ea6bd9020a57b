//! One console's or guest agent's relay between QEMU's socket and clients on a Unix socket.
//!
//! ```text
//!  QEMU's socket ──▶ gate (same epochs as the NICs') ──▶ history ──▶ client, client, …
//!  QEMU's socket ◀────────────────────────────────────────────────── client, client, …
//! ```
//!
//! The channel's thread waits for QEMU's socket, the listener, the clients and an eventfd; everything it shares is behind
//! one mutex, and no call that is made with it locked blocks. When the gate is full QEMU's socket is not read any more:
//! unlike a NIC, a console must not lose bytes and its guest can wait.
//!
//! While mute a channel accepts no clients: they are disconnected, and find the new primary.

mod client;
mod history;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_listen::{Acceptor, Bounds, Full, Tried};
use ninefold_model::Epoch;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::gate::{Gate, Limits, Mode, Push};
use crate::port::Released;
use crate::urgency::Urgency;
use crate::wake::Wake;
use client::Client;
use history::History;

/// Chunks released between two checks of whether the VM is still ours.
const BATCH_CHUNKS: usize = 64;

/// Bytes of a chunk at most, and of one read of a client.
const CHUNK: usize = 4096;

/// Reads in one drain, so that a QEMU that goes on sending does not keep the checkpoint thread. What is left belongs to
/// the next epoch.
const MAX_DRAIN_READS: usize = 1024;

/// After a poll(2) that failed.
const POLL_PAUSE: Duration = Duration::from_millis(100);

/// Bytes from clients that may wait for QEMU.
const INPUT: usize = 64 << 10;

/// Who may use a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelKind {
    /// Up to 16 clients at once, which all see what is said from now on, and the history first. When there are more, those of
    /// a process that has several give way.
    Console,
    /// One client at a time, and no history: a request and its answer belong together. It gives way when nothing has been said
    /// for a minute.
    Agent,
}

impl ChannelKind {
    fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Agent => "agent",
        }
    }

    /// A console's clients may sit and listen: one loses its place only if its process has several. An agent's client that
    /// has neither asked nor been told anything for a minute gives way to the next.
    fn bounds(self) -> Bounds {
        match self {
            Self::Console => Bounds { grace: Duration::from_secs(1), full: Full::Share, ..Bounds::new(16) },
            Self::Agent => Bounds { grace: Duration::from_secs(60), ..Bounds::new(1) },
        }
    }
}

/// A channel's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelConfig {
    /// Who may use it.
    pub kind: ChannelKind,
    /// Where clients connect. What lies there is replaced if it is a socket.
    pub path: PathBuf,
    /// The gate's bounds; items are chunks of up to 4 KiB.
    pub limits: Limits,
    /// Bytes of released output that a console remembers.
    pub history: usize,
}

impl ChannelConfig {
    /// The default bounds: 1 MiB in up to 4,096 chunks; 64 KiB of history.
    pub fn new(kind: ChannelKind, path: impl Into<PathBuf>) -> Self {
        let history = match kind {
            ChannelKind::Console => 64 << 10,
            ChannelKind::Agent => 0,
        };
        Self { kind, path: path.into(), limits: Limits { bytes: 1 << 20, items: 4096 }, history }
    }
}

/// Why a channel could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the channel '{}'", path.display())]
pub struct ChannelError {
    /// Where its clients were to connect.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// What a channel has done since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ChannelCounters {
    /// Bytes of the guest that were released.
    pub bytes_out: u64,
    /// Bytes of clients that QEMU took.
    pub bytes_in: u64,
    /// Bytes in the gate now.
    pub held: u64,
    /// Chunks dropped because the gate was or became mute.
    pub dropped_mute: u64,
    /// Committed chunks that were dropped because the VM was no longer this host's.
    pub stale: u64,
    /// Clients connected now.
    pub clients: u64,
    /// Clients disconnected because they did not read.
    pub slow_clients: u64,
}

struct State {
    qemu: Option<Arc<OwnedFd>>,
    gate: Gate,
    history: History,
    clients: Vec<Client>,
    /// From clients, for QEMU.
    input: Vec<u8>,
    /// QEMU is given nothing.
    input_held: bool,
    /// QEMU has been given something that it has perhaps not read.
    input_sent: bool,
    counters: ChannelCounters,
}

struct Shared {
    listener: Acceptor<UnixListener>,
    path: PathBuf,
    wake: Wake,
    state: Mutex<State>,
    /// Rings when something changed that the thread waits for, or when it is to end.
    bell: OwnedFd,
    stop: AtomicBool,
}

/// One console's or guest agent's relay. See the [module](self). It begins mute; when dropped, its thread is joined, its
/// clients are disconnected and its socket is removed.
pub struct ByteChannel {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl ByteChannel {
    /// Starts the relay's thread, with the gate mute. `qemu` is the keeper's end of QEMU's socket; it can also be given
    /// later by [`ByteChannel::attach`].
    ///
    /// # Errors
    /// The path cannot be bound, or no more threads or descriptors.
    pub fn start(config: ChannelConfig, qemu: Option<OwnedFd>, wake: Wake) -> Result<Self, ChannelError> {
        let path = config.path.clone();
        let failed = |source| ChannelError { path: path.clone(), source };
        let shared = Arc::new(Shared {
            listener: Acceptor::new(
                config.kind.name(),
                listen(&config.path).map_err(failed)?,
                config.kind.bounds(),
                Vec::new(),
            ),
            path: config.path,
            wake,
            state: Mutex::new(State {
                qemu: None,
                gate: Gate::new(Mode::Mute, config.limits),
                history: History::new(config.history),
                clients: Vec::with_capacity(config.kind.bounds().places),
                input: Vec::with_capacity(INPUT),
                input_held: false,
                input_sent: false,
                counters: ChannelCounters::default(),
            }),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?,
            stop: AtomicBool::new(false),
        });
        if let Some(qemu) = qemu {
            shared.lock().attach(qemu).map_err(failed)?;
        }
        let its = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name(config.kind.name().to_owned()).spawn(move || its.run()).map_err(failed)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Where clients connect.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// From now on serves the QEMU at the other end of `qemu`; the former one's socket is closed.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking.
    pub fn attach(&self, qemu: OwnedFd) -> io::Result<()> {
        self.shared.lock().attach(qemu)?;
        self.shared.ring();
        Ok(())
    }

    /// Closes QEMU's socket.
    pub fn detach(&self) {
        self.shared.lock().detach();
        self.shared.ring();
    }

    /// Reads QEMU's socket until it is empty or the gate full, and closes `epoch`; see
    /// [`NetPort::drain_and_close`](crate::NetPort::drain_and_close). Returns how many bytes the gate holds.
    pub fn drain_and_close(&self, epoch: Epoch) -> usize {
        let mut state = self.shared.lock();
        let now = Instant::now();
        let mut reads = 0;
        while reads < MAX_DRAIN_READS && state.read_qemu(now).more {
            reads += 1;
        }
        state.gate.close_epoch(epoch);
        let (held, open) = (state.gate.bytes(), state.gate.mode() == Mode::Open);
        drop(state);
        if open && held > 0 {
            // Nobody else comes to let out what was found here.
            self.shared.ring();
        }
        held
    }

    /// Appends to `to` what the guest said in `epoch`, which was closed and not yet released: it travels with the
    /// checkpoint, and the backup adds it to its history by [`ByteChannel::append_history`].
    pub fn epoch_bytes(&self, epoch: Epoch, to: &mut Vec<u8>) {
        self.shared.lock().gate.each_in(epoch, |chunk| to.extend_from_slice(chunk));
    }

    /// From now on QEMU is given no input; answers whether it has read all that it was given, for it may take some time. A
    /// QEMU writes input into the guest's memory also while the guest stands still, and a checkpoint must be of one moment.
    pub fn hold_input(&self) -> bool {
        let mut state = self.shared.lock();
        state.input_held = true;
        // What cannot be asked is not waited for.
        let unread = |qemu: &Arc<OwnedFd>| crate::unread::is_any(qemu).unwrap_or(false);
        state.input_sent = state.input_sent && state.qemu.as_ref().is_some_and(unread);
        !state.input_sent
    }

    /// QEMU does not read what it was given: nobody in the guest has asked for it. That is not to be waited for again.
    pub fn input_is_stuck(&self) {
        self.shared.lock().input_sent = false;
    }

    /// From now on QEMU is given what has waited, and what comes.
    pub fn let_input(&self) {
        let mut state = self.shared.lock();
        state.input_held = false;
        let waits = !state.input.is_empty();
        drop(state);
        if waits {
            self.shared.ring();
        }
    }

    /// The backup holds every epoch up to `epoch`: hands their bytes to the clients. `still_ours` is asked before each
    /// batch of at most 64 chunks, see [`NetPort::release`](crate::NetPort::release). Counts chunks as frames.
    pub fn release(&self, epoch: Epoch, still_ours: &dyn Fn() -> bool) -> Released {
        let mut state = self.shared.lock();
        state.gate.allow(epoch);
        let released = state.flush(still_ours);
        drop(state);
        // QEMU's socket may be read again, and clients may have more to take than they took.
        if released != Released::default() {
            self.shared.ring();
        }
        released
    }

    /// From now on output waits for its epoch.
    pub fn hold(&self) {
        self.set_mode(Mode::Held);
    }

    /// From now on output leaves at once. What was held leaves first.
    pub fn open(&self) -> Released {
        self.set_mode(Mode::Open)
    }

    /// From now on nothing leaves or enters; what was held is dropped, and so are the clients.
    pub fn mute(&self) {
        self.set_mode(Mode::Mute);
    }

    fn set_mode(&self, mode: Mode) -> Released {
        let mut state = self.shared.lock();
        state.gate.set_mode(mode);
        let released = state.flush(&|| true);
        if mode == Mode::Mute {
            state.clients.iter_mut().for_each(Client::disconnect);
            state.input.clear();
        }
        drop(state);
        self.shared.ring();
        released
    }

    /// The gate's mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.shared.lock().gate.mode()
    }

    /// Since when the oldest byte of the epoch that is not yet closed waits.
    #[must_use]
    pub fn waiting(&self) -> Option<Instant> {
        self.shared.lock().gate.waiting()
    }

    /// Whether the gate is half full.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        self.shared.lock().gate.wants_checkpoint()
    }

    /// The last of the output that was released.
    #[must_use]
    pub fn history(&self) -> Vec<u8> {
        self.shared.lock().history.to_vec()
    }

    /// The last of what the guest has said up to and with `epoch`, which was closed: what was released, and what waits to be.
    /// It is what the history will be when `epoch` is released, and the history of a backup whose first checkpoint this is.
    #[must_use]
    pub fn history_up_to(&self, epoch: Epoch) -> Vec<u8> {
        let state = self.shared.lock();
        let mut bytes = state.history.to_vec();
        state.gate.each_up_to(epoch, |chunk| bytes.extend_from_slice(chunk));
        bytes.drain(..bytes.len().saturating_sub(state.history.size()));
        bytes
    }

    /// Adds to the history what was released elsewhere: on a backup, the history that came with the first copy and the
    /// bytes that come with each checkpoint.
    pub fn append_history(&self, bytes: &[u8]) {
        self.shared.lock().history.append(bytes);
    }

    /// Forgets the history, before another copy of it comes.
    pub fn clear_history(&self) {
        self.shared.lock().history.clear();
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> ChannelCounters {
        let state = self.shared.lock();
        let counts = state.gate.counts();
        ChannelCounters {
            held: state.gate.bytes() as u64,
            dropped_mute: counts.dropped_mute,
            stale: counts.stale,
            clients: state.clients.iter().filter(|c| c.is_connected()).count() as u64,
            ..state.counters
        }
    }
}

impl Drop for ByteChannel {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(path = %self.path().display(), "the channel's thread had panicked");
        }
        let _ = std::fs::remove_file(&self.shared.path);
    }
}

impl std::fmt::Debug for ByteChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteChannel").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

/// Binds `path`, in place of a socket that a killed keeper left there.
fn listen(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::FileTypeExt;

    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What one read of QEMU's socket brought.
struct Read {
    more: bool,
    wake: bool,
}

impl State {
    fn attach(&mut self, qemu: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&qemu, true)?;
        self.detach();
        self.qemu = Some(Arc::new(qemu));
        Ok(())
    }

    fn detach(&mut self) {
        self.qemu = None;
        (self.input_held, self.input_sent) = (false, false);
        self.input.clear();
    }

    fn read_qemu(&mut self, now: Instant) -> Read {
        let nothing = Read { more: false, wake: false };
        let Some(qemu) = &self.qemu else {
            return nothing;
        };
        let mut chunk = [0; CHUNK];
        // A mute gate swallows everything.
        let room = if self.gate.mode() == Mode::Mute { CHUNK } else { self.gate.room().min(CHUNK) };
        if room == 0 {
            return nothing;
        }
        match rustix::io::read(qemu, &mut chunk[..room]) {
            Ok(n) if n > 0 => {
                let wanted = self.gate.wants_checkpoint();
                let push = self.gate.push(&chunk[..n], Urgency::Urgent, now);
                let wake = push == Push::Held { first: true } || self.gate.wants_checkpoint() && !wanted;
                Read { more: true, wake }
            }
            Err(Errno::INTR) => Read { more: true, wake: false },
            Err(Errno::AGAIN) => nothing,
            ended => {
                if let Err(e) = ended {
                    tracing::warn!(error = %e, "QEMU's channel socket failed");
                }
                self.detach();
                nothing
            }
        }
    }

    /// Hands out all that may leave.
    fn flush(&mut self, still_ours: &dyn Fn() -> bool) -> Released {
        let mut released = Released::default();
        loop {
            if self.gate.may_leave() == 0 {
                break;
            }
            if !still_ours() {
                released.kept += self.gate.may_leave() as u64;
                break;
            }
            let Self { gate, history, clients, .. } = self;
            let chunks = gate.pop_allowed(BATCH_CHUNKS, usize::MAX, |chunk| {
                released.bytes += chunk.len() as u64;
                history.append(chunk);
                clients.iter_mut().for_each(|c| c.queue(chunk));
            });
            released.frames += chunks as u64;
        }
        self.counters.bytes_out += released.bytes;
        self.send_to_clients();
        released
    }

    fn send_to_clients(&mut self) {
        for client in &mut self.clients {
            if client.send() == client::Sent::Slow {
                self.counters.slow_clients += 1;
            }
        }
    }

    fn send_input(&mut self) {
        let Some(qemu) = &self.qemu else {
            self.input.clear();
            return;
        };
        // A standby hears nothing.
        if self.input.is_empty() || self.input_held || self.gate.mode() == Mode::Mute {
            return;
        }
        let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
        match rustix::net::send(qemu, &self.input, flags) {
            Ok(n) => {
                self.input_sent = true;
                self.input.drain(..n);
                self.counters.bytes_in += n as u64;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // QEMU is gone; the reading side closes the socket.
            Err(_) => self.input.clear(),
        }
    }

    fn read_clients(&mut self) {
        let Self { clients, input, .. } = self;
        for client in clients.iter_mut() {
            if input.len() + CHUNK <= INPUT {
                client.read(input, CHUNK);
            }
        }
        // Whoever was first is last the next time: one that says much does not silence the others.
        if clients.len() > 1 {
            clients.rotate_left(1);
        }
        self.send_input();
    }

    /// Lets in those that wait; answers how long to leave the others waiting.
    fn accept(&mut self, listener: &Acceptor<UnixListener>) -> Option<Duration> {
        // Bounded: what else waits makes the listener readable again.
        for _ in 0..16 {
            let guest = match listener.try_accept() {
                Tried::Guest(guest) => guest,
                Tried::Nobody => return None,
                Tried::Later(pause) => return Some(pause),
            };
            if self.gate.mode() == Mode::Mute {
                continue;
            }
            if let Ok(mut client) = Client::new(guest) {
                self.history.each(|bytes| client.queue(bytes));
                client.send();
                self.clients.push(client);
            }
        }
        None
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state stays consistent if a holder panicked: every change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        // It fails only when the counter is full, and then it has been rung.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// The channel's thread.
    fn run(&self) {
        // The listener is not asked before.
        let mut deaf_until: Option<Instant> = None;
        while !self.stop.load(Ordering::Acquire) {
            let mut state = self.lock();
            state.clients.retain(Client::is_connected);
            let qemu = state.qemu.clone();
            let mut qemu_events = PollFlags::empty();
            if state.gate.room() > 0 || state.gate.mode() == Mode::Mute {
                qemu_events |= PollFlags::IN;
            }
            if !state.input.is_empty() && !state.input_held && state.gate.mode() != Mode::Mute {
                qemu_events |= PollFlags::OUT;
            }
            let hear = state.input.len() + CHUNK <= INPUT;
            // A client of which nothing is asked is not waited for: its end would be told again and again.
            let clients: Vec<_> = state
                .clients
                .iter()
                .map(|c| (c.stream(), c.events(hear)))
                .filter(|(_, events)| !events.is_empty())
                .collect();
            drop(state);

            let mut fds = Vec::with_capacity(clients.len() + 3);
            fds.push(PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN));
            let deaf = deaf_until.map(|until| until.saturating_duration_since(Instant::now()));
            let deaf = deaf.filter(|left| !left.is_zero());
            if deaf.is_none() {
                fds.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
            }
            fds.extend(clients.iter().map(|(stream, events)| PollFd::from_borrowed_fd(stream.as_fd(), *events)));
            // With no room nothing is asked of QEMU's socket; its end would then be told again and again.
            if let Some(qemu) = qemu.as_ref().filter(|_| !qemu_events.is_empty()) {
                fds.push(PollFd::from_borrowed_fd(qemu.as_fd(), qemu_events));
            }
            let limit = deaf.and_then(|left| Timespec::try_from(left).ok());
            if let Err(e) = poll(&mut fds, limit.as_ref())
                && e != Errno::INTR
            {
                tracing::error!(path = %self.path.display(), error = %e, "the channel cannot wait for its sockets");
                // Out of memory, most likely: it passes, and the guest's console must not end with it.
                std::thread::sleep(POLL_PAUSE);
            }
            if !fds[0].revents().is_empty() {
                let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
            }
            let knock = deaf.is_none() && !fds[1].revents().is_empty();
            drop(fds);

            let mut state = self.lock();
            let mut wake = false;
            // Every socket is non-blocking: those with nothing to say cost one call.
            for _ in 0..64 {
                let read = state.read_qemu(Instant::now());
                wake |= read.wake;
                if !read.more {
                    break;
                }
            }
            if state.gate.mode() == Mode::Open {
                state.flush(&|| true);
            } else {
                state.send_to_clients();
            }
            state.read_clients();
            if knock {
                deaf_until = state.accept(&self.listener).map(|pause| Instant::now() + pause);
            }
            drop(state);
            if wake {
                (self.wake)();
            }
        }
    }
}
