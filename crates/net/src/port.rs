//! One NIC's relay between QEMU's socket and its TAP.
//!
//! ```text
//!                 ┌────────────── outgoing (mutex) ─────────────┐   ┌─── egress (mutex) ───┐
//!  QEMU's socket ─┤ splitter ──▶ gate (Open, Held, Mute)        ├──▶│ batch of ≤ 64 frames │──▶ TAP
//!                 └─────────────────────────────────────────────┘   └──────────────────────┘
//!  QEMU's socket ◀── queue (port's thread alone) ◀────────────────────────────────────────────── TAP
//! ```
//!
//! The port's thread waits for QEMU's socket, the TAP and an eventfd. QEMU's socket is always read: what the gate has no
//! room for is dropped. Frames leave
//!
//! * by the thread that calls [`NetPort::release`] while the gate holds, since waking another thread would cost more
//!   than the writes;
//! * by the port's thread while the gate is open.
//!
//! Either takes a batch out of the gate and writes it with `egress` locked but `outgoing` free, so that draining QEMU's
//! socket during a pause does not wait for writes to the TAP. Locks are taken in the order egress, outgoing. A full gate is a
//! thousand batches: `egress` is free between two of them, and who waits for it comes first.

mod counters;
mod incoming;
mod outgoing;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ninefold_model::Epoch;
use ninefold_model::spec::Mac;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

pub use counters::PortCounters;

use crate::addresses::{Addresses, PeerAddresses};
use crate::announce::{self, Announced};
use crate::gate::{Gate, Limits, Mode};
use crate::snoop;
use crate::tap::Tap;
use crate::twin::Twin;
use crate::wake::Wake;
use counters::Tally;
use incoming::Incoming;
pub use outgoing::BATCH_FRAMES;
use outgoing::{BATCH_BYTES, Batch, Outgoing};

/// Reads of 128 KiB in one drain: twice what the socket holds. A QEMU that goes on sending does not keep the checkpoint
/// thread; what is left belongs to the next epoch and leaves later, which is safe.
const MAX_DRAIN_READS: usize = 64;

/// After a poll(2) that failed.
const POLL_PAUSE: Duration = Duration::from_millis(100);

/// A port's settings.
#[derive(Debug, Clone, Copy)]
pub struct PortConfig {
    /// The guest's Ethernet address on this NIC.
    pub mac: Mac,
    /// The gate's bounds.
    pub limits: Limits,
}

impl PortConfig {
    /// The default bounds.
    #[must_use]
    pub fn new(mac: Mac) -> Self {
        Self { mac, limits: Limits::default() }
    }
}

/// Why a port could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the relay of TAP device '{tap}'")]
pub struct PortError {
    /// The TAP's name.
    pub tap: String,
    /// What the system said.
    pub source: io::Error,
}

/// What a release did, in frames and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Released {
    /// Written to the TAP.
    pub frames: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Kept in the gate, though they may leave, because nobody could say whether the VM is still ours.
    pub kept: u64,
}

/// What a drain of QEMU's socket brought.
#[derive(Default)]
struct Drained {
    any: bool,
    /// The checkpoint thread should know.
    wake: bool,
}

struct Shared {
    tap: Tap,
    mac: Mac,
    wake: Wake,
    tally: Tally,
    outgoing: Mutex<Outgoing>,
    egress: Mutex<Batch>,
    /// The guest's. Locked for a moment only, and no other lock is taken meanwhile.
    addresses: Mutex<Addresses>,
    /// Frames from the network with the guest's own Ethernet address.
    twin: Mutex<Twin>,
    /// There is another station that sends them, and nobody has asked since.
    has_twin: AtomicBool,
    /// How many threads wait for `egress`.
    waiting: AtomicUsize,
    /// Rings when QEMU's socket or the mode changed, or when the thread is to end.
    bell: OwnedFd,
    stop: AtomicBool,
}

/// One NIC's relay. See the [module](self). It begins mute; when dropped, its thread is joined and its TAP removed.
pub struct NetPort {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data stay consistent if a holder panicked: every change of them is whole before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NetPort {
    /// Starts the relay's thread, with the gate mute. `qemu` is the keeper's end of QEMU's socket, see
    /// [`socket_pair`](crate::socket_pair); it can also be given later by [`NetPort::attach`]. While the gate is mute
    /// frames from the network are dropped too: a standby must not hear them.
    ///
    /// # Errors
    /// No more threads or descriptors.
    pub fn start(config: PortConfig, tap: Tap, qemu: Option<OwnedFd>, wake: Wake) -> Result<Self, PortError> {
        let name = tap.name().to_owned();
        let failed = |source| PortError { tap: name.clone(), source };
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let shared = Arc::new(Shared {
            tap,
            mac: config.mac,
            wake,
            tally: Tally::default(),
            outgoing: Mutex::new(Outgoing::new(Gate::new(Mode::Mute, config.limits))),
            egress: Mutex::new(Batch::new()),
            addresses: Mutex::default(),
            twin: Mutex::default(),
            has_twin: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            bell,
            stop: AtomicBool::new(false),
        });
        if let Some(qemu) = qemu {
            lock(&shared.outgoing).attach(qemu).map_err(failed)?;
        }
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("net-{name}").chars().take(15).collect())
            .spawn(move || its.run())
            .map_err(failed)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The TAP's name.
    #[must_use]
    pub fn tap_name(&self) -> &str {
        self.shared.tap.name()
    }

    /// From now on serves the QEMU at the other end of `qemu`; the former one's socket is closed. What the gate holds
    /// stays there.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking.
    pub fn attach(&self, qemu: OwnedFd) -> io::Result<()> {
        lock(&self.shared.outgoing).attach(qemu)?;
        self.shared.ring();
        Ok(())
    }

    /// Closes QEMU's socket.
    pub fn detach(&self) {
        lock(&self.shared.outgoing).detach();
        self.shared.ring();
    }

    /// Reads QEMU's socket until it is empty and closes `epoch`: all that the guest has sent and that belongs to no
    /// epoch yet belongs to this one. To be called while the guest is stopped. Epochs grow from call to call until the
    /// gate is opened or muted. Returns how many frames the gate holds.
    ///
    /// Does not allocate and waits for no I/O; it may wait for one read (128 KiB) of the port's thread.
    pub fn drain_and_close(&self, epoch: Epoch) -> usize {
        let mut outgoing = lock(&self.shared.outgoing);
        self.shared.drain(&mut outgoing);
        outgoing.gate.close_epoch(epoch);
        self.shared.tally.gate(&outgoing.gate);
        let (held, open) = (outgoing.gate.len(), outgoing.gate.mode() == Mode::Open);
        drop(outgoing);
        if open && held > 0 {
            // Nobody else comes to let out what was found here.
            self.shared.ring();
        }
        held
    }

    /// Reads QEMU's socket until it is empty, so that QEMU has room for what it has begun to write. To be called right before
    /// the guest is stopped or reset.
    ///
    /// QEMU drops what it has not got rid of then, but not its count of how much of a frame is written: after half of one
    /// (a write of up to 36,000 bytes is whole or not at all, that of a longer frame may stop in between) the next begins in its
    /// middle, and QEMU aborts if that one is shorter (`net/stream.c`: `send_index`; `net/net.c`:
    /// `net_vm_change_state_handler`).
    ///
    /// Nobody can call this before a guest resets itself. What its NIC has not got rid of is dropped then, whole frames: those of a
    /// guest whose MTU is 35,000 or less. One with a larger MTU may end its own QEMU in this way, as it may in others.
    ///
    /// Does not allocate and waits for no I/O, as [`NetPort::drain_and_close`].
    pub fn make_room(&self) {
        let mut outgoing = lock(&self.shared.outgoing);
        let read = self.shared.drain(&mut outgoing);
        let open = outgoing.gate.mode() == Mode::Open;
        drop(outgoing);
        if read.any && open {
            self.shared.ring();
        }
        if read.wake {
            (self.shared.wake)();
        }
    }

    /// The backup holds every epoch up to `epoch`: writes their frames to the TAP, in the calling thread.
    ///
    /// `still_ours` is asked before each batch of at most 64 frames. If it says no, what may leave stays in the gate until the
    /// next call that lets it: a host that was frozen in the middle and thaws writes 64 frames at most before it knows more.
    /// So it must tell from a clock that runs on while the host is frozen, or suspended.
    pub fn release(&self, epoch: Epoch, still_ours: &dyn Fn() -> bool) -> Released {
        lock(&self.shared.outgoing).gate.allow(epoch);
        self.shared.flush(still_ours)
    }

    /// From now on frames wait for their epochs. When this returns, frames leave by [`NetPort::release`] alone. `look` is called
    /// before each batch of those that leave first: a thousand take a while.
    pub fn hold(&self, look: &dyn Fn()) {
        self.let_out(Mode::Held, look);
    }

    /// From now on frames leave at once. What was held leaves first, with `look` called before each batch. Only for a host that
    /// the witness named as the primary without a backup.
    pub fn open(&self, look: &dyn Fn()) -> Released {
        self.let_out(Mode::Open, look)
    }

    /// Writes what may leave, in the calling thread. The port's thread hears of the mode when that is done.
    fn let_out(&self, mode: Mode, look: &dyn Fn()) -> Released {
        self.set_gate(mode);
        let released = self.shared.flush(&|| {
            look();
            true
        });
        self.shared.ring();
        released
    }

    /// From now on nothing leaves or enters, and what was held is dropped. When this returns, no thread is writing to
    /// the TAP any more.
    pub fn mute(&self) {
        self.set_gate(Mode::Mute);
        self.shared.ring();
        drop(self.shared.egress());
    }

    fn set_gate(&self, mode: Mode) {
        let mut outgoing = lock(&self.shared.outgoing);
        outgoing.gate.set_mode(mode);
        self.shared.tally.gate(&outgoing.gate);
    }

    /// The gate's mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        lock(&self.shared.outgoing).gate.mode()
    }

    /// Since when the oldest frame of the epoch that is not yet closed waits.
    #[must_use]
    pub fn waiting(&self) -> Option<Instant> {
        self.shared.tally.waiting()
    }

    /// Since when the oldest frame of that epoch waits that somebody may wait for.
    #[must_use]
    pub fn urgent(&self) -> Option<Instant> {
        self.shared.tally.urgent()
    }

    /// Whether the last data that came for the guest over TCP was not the end of what its sender had to send.
    #[must_use]
    pub fn more_to_come(&self) -> bool {
        self.shared.tally.more_to_come()
    }

    /// Whether the gate is half full.
    #[must_use]
    pub fn wants_checkpoint(&self) -> bool {
        self.shared.tally.wants_checkpoint()
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> PortCounters {
        self.shared.tally.read()
    }

    /// Sends one announcement of the guest's place, if the gate is not mute, the TAP's link is up and `still_ours` says yes. Returns
    /// how many frames were sent. When to announce is for the caller to say.
    pub fn announce(&self, still_ours: &dyn Fn() -> bool) -> usize {
        let _egress = self.shared.egress();
        let mut sent = 0;
        // Muting sets the mode, then waits for `egress`: so the mode read here holds until the frames are out.
        if self.mode() == Mode::Mute || !self.shared.tap.has_link() || !still_ours() {
            return 0;
        }
        announce::frames(self.shared.mac, &self.addresses(), |frame| {
            sent += usize::from(self.shared.tap.write(frame).is_ok());
        });
        sent
    }

    /// The guest's addresses on this NIC, as learnt from its frames and others'.
    #[must_use]
    pub fn addresses(&self) -> Vec<Announced> {
        lock(&self.shared.addresses).announced(Instant::now())
    }

    /// Grows when these change. Does not allocate and hardly waits.
    #[must_use]
    pub fn address_changes(&self) -> u64 {
        lock(&self.shared.addresses).changes()
    }

    /// Appends the addresses for a backup, which hears none of them, as those of NIC number `nic`.
    pub fn tell_addresses(&self, nic: usize, lines: &mut String) {
        lock(&self.shared.addresses).tell(nic, Instant::now(), lines);
    }

    /// Takes over what the host that ran the VM has told of NIC number `nic`.
    pub fn learn_addresses(&self, nic: usize, told: &PeerAddresses<'_>) {
        lock(&self.shared.addresses).replace(nic, told, Instant::now());
    }

    /// Whether another station has been heard to use the guest's Ethernet address. Says so once, and again when it has been silent in
    /// between.
    pub fn take_twin(&self) -> bool {
        self.shared.has_twin.swap(false, Ordering::Relaxed)
    }

    /// Forgets the guest's addresses: it is another life of it, which has not spoken yet.
    pub fn forget_addresses(&self) {
        lock(&self.shared.addresses).clear();
    }
}

impl Drop for NetPort {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ring();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(tap = self.tap_name(), "the relay's thread had panicked");
        }
    }
}

impl std::fmt::Debug for NetPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetPort").field("tap", &self.tap_name()).finish_non_exhaustive()
    }
}

impl Shared {
    fn ring(&self) {
        // It fails only when the counter is full, and then it has been rung.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Reads QEMU's socket until it is empty, or often enough.
    fn drain(&self, outgoing: &mut Outgoing) -> Drained {
        let now = Instant::now();
        let mut drained = Drained::default();
        for _ in 0..MAX_DRAIN_READS {
            let read = outgoing.read(now, &self.tally);
            drained.wake |= read.wake;
            if !read.more {
                break;
            }
            drained.any = true;
        }
        drained
    }

    fn is_open(&self) -> bool {
        lock(&self.outgoing).gate.mode() == Mode::Open
    }

    /// The right to write to the TAP. Mutexes are not fair: who holds this for long looks at `waiting`.
    fn egress(&self) -> MutexGuard<'_, Batch> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let egress = lock(&self.egress);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        egress
    }

    /// Writes all that may leave.
    fn flush(&self, still_ours: &dyn Fn() -> bool) -> Released {
        let mut released = Released::default();
        while self.write_batch(still_ours, &mut released) {}
        released
    }

    /// The same for an open gate, by the port's thread. It makes way for whoever else has to write: they have the better
    /// priority, or run on another processor.
    fn flush_open(&self) {
        // It does not wait for its turn only to find that there is nothing to write: QEMU's socket is to be read.
        while lock(&self.outgoing).gate.may_leave() > 0 && self.write_batch(&|| true, &mut Released::default()) {
            while self.waiting.load(Ordering::Relaxed) > 0 {
                std::thread::yield_now();
            }
        }
    }

    /// Writes a batch of what may leave. False: there was none, or it was not to be written.
    fn write_batch(&self, still_ours: &dyn Fn() -> bool, released: &mut Released) -> bool {
        let mut batch = self.egress();
        let may_leave = lock(&self.outgoing).gate.may_leave();
        if may_leave == 0 {
            return false;
        }
        if !still_ours() {
            released.kept += may_leave as u64;
            return false;
        }
        batch.clear();
        let mut outgoing = lock(&self.outgoing);
        outgoing.gate.pop_allowed(BATCH_FRAMES, BATCH_BYTES, |frame| batch.push(frame));
        self.tally.gate(&outgoing.gate);
        drop(outgoing);
        for frame in batch.frames() {
            self.guest_sends(frame);
            if self.tap.write(frame).is_ok() {
                released.frames += 1;
                released.bytes += frame.len() as u64;
                self.tally.frame_out(frame.len());
            } else {
                self.tally.failed_out();
            }
        }
        true
    }

    /// A frame from the guest goes to the network.
    fn guest_sends(&self, frame: &[u8]) {
        if snoop::sender(frame) == Some(self.mac) {
            snoop::words(frame, |vlan, word| lock(&self.addresses).guest_said(vlan, word, Instant::now()));
        }
    }

    /// A frame for the guest has come from the network.
    fn network_sends(&self, frame: &[u8]) {
        if snoop::sender(frame) == Some(self.mac) {
            if lock(&self.twin).heard(Instant::now()) {
                self.has_twin.store(true, Ordering::Relaxed);
            }
        } else {
            snoop::words(frame, |vlan, word| lock(&self.addresses).other_said(vlan, word, Instant::now()));
        }
        // Last, so that who sees the frame counted finds all of it done.
        self.tally.came(frame);
    }

    /// The port's thread.
    fn run(&self) {
        let mut incoming = Incoming::new();
        let mut tap_failed = false;
        while !self.stop.load(Ordering::Acquire) {
            let (qemu, generation, mute) = {
                let outgoing = lock(&self.outgoing);
                (outgoing.qemu(), outgoing.generation(), outgoing.gate.mode() == Mode::Mute)
            };
            incoming.serve(generation);
            let mut tap_events = PollFlags::empty();
            if !tap_failed {
                tap_events = PollFlags::IN;
            }
            let mut qemu_events = PollFlags::IN;
            if incoming.wants_to_send() && !mute {
                qemu_events |= PollFlags::OUT;
            }
            let (bell, tap) = (self.bell.as_fd(), self.tap.as_fd());
            let mut fds = [
                PollFd::from_borrowed_fd(bell, PollFlags::IN),
                PollFd::from_borrowed_fd(if tap_failed { bell } else { tap }, tap_events),
                PollFd::from_borrowed_fd(qemu.as_ref().map_or(bell, |q| q.as_fd()), qemu_events),
            ];
            let watched = if qemu.is_some() { 3 } else { 2 };
            if let Err(e) = poll(&mut fds[..watched], None)
                && e != rustix::io::Errno::INTR
            {
                tracing::error!(tap = self.tap.name(), error = %e, "the relay cannot wait for its sockets");
                // Out of memory, most likely: it passes, and the guest's network must not end with it.
                std::thread::sleep(POLL_PAUSE);
                continue;
            }
            let [bell, tap, qemu_now] = fds.map(|fd| fd.revents());
            if !bell.is_empty() {
                let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
                if self.is_open() {
                    self.flush_open();
                }
                // What was waited for may be out of date.
                continue;
            }
            if qemu.is_some() && qemu_now.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.take_from_qemu(generation);
            }
            if tap.intersects(PollFlags::IN | PollFlags::ERR) || qemu_now.contains(PollFlags::OUT) {
                let to = qemu.as_deref().filter(|_| !mute);
                if let Err(e) = incoming.pump(&self.tap, to, &self.tally, &|frame| self.network_sends(frame)) {
                    tracing::error!(tap = self.tap.name(), error = %e, "the TAP device does not read");
                    tap_failed = true;
                }
            }
        }
    }

    /// One read of QEMU's socket, and what follows from it.
    fn take_from_qemu(&self, generation: u64) {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.generation() != generation {
            return;
        }
        let read = outgoing.read(Instant::now(), &self.tally);
        drop(outgoing);
        if self.is_open() {
            self.flush_open();
        }
        if read.wake {
            (self.wake)();
        }
    }
}
