//! The control socket: QEMU Machine Protocol (docs/interop/qmp-spec.rst of QEMU), blocking, over an inherited socket.
//!
//! ```text
//!   keeper                                  QEMU
//!     |   <-- {"QMP": {"version": ...}}      |     greeting
//!     |   --> qmp_capabilities               |
//!     |   <-- {"return": {}, "id": 1000}     |
//!     |   --> {"execute": ..., "id": n}      |     several may be sent before the first is answered;
//!     |   <-- {"event": "STOP", ...}         |     QEMU carries them out and answers in order;
//!     |   <-- {"return" or "error", "id": n} |     events come at any time between answers
//! ```
//!
//! Unknown events and members are tolerated. Anything else that is unexpected (no JSON, a line too long, an answer to
//! nothing, a missing answer) ends the connection's use: every later call fails, and the keeper ends that QEMU.
//! [`Qmp::send`] and [`Qmp::reply`] do not allocate unless they fail; the pause path uses only these.

use std::collections::VecDeque;
use std::fmt;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::{MachineError, Result};
use crate::version::QemuVersion;

/// Longest line accepted, bytes.
pub const MAX_LINE: usize = 1 << 20;
/// Events kept until someone asks; then the oldest go, counted.
pub const MAX_EVENTS: usize = 256;
/// Ids below are the caller's, for preformatted commands.
pub const FIRST_ID: u64 = 1000;
/// How long an ordinary command may take.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// How often [`Patience`] is asked.
const LOOK: Duration = Duration::from_millis(250);

/// Asked again and again while QEMU lives and does not answer: the command, and how long ago it was sent. Whether to go on
/// waiting.
pub type Patience = Box<dyn FnMut(&str, Duration) -> bool + Send>;

/// Something that QEMU said unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// QEMU's wall-clock time, microseconds since the Unix epoch. For people only.
    pub unix_us: u64,
}

/// Which event (qapi/run-state.json and others).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Stop,
    Resume,
    /// `guest`: by the guest itself.
    Reset {
        guest: bool,
    },
    /// The VM is powered off. `guest`: by the guest itself.
    Shutdown {
        guest: bool,
    },
    Powerdown,
    /// The guest has suspended itself to memory.
    Suspend,
    /// It was woken.
    Wakeup,
    GuestPanicked,
    Watchdog,
    /// A memory dump has ended. `ok`: it is whole.
    DumpCompleted {
        ok: bool,
    },
    Migration(MigrationStatus),
    /// Any other, by its name.
    Other(EventName),
}

/// The `status` of a MIGRATION event, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationStatus {
    Completed,
    Failed,
    /// On its way.
    Other,
}

/// An event's name, cut at 40 bytes, stored in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct EventName {
    bytes: [u8; 40],
    len: u8,
}

impl EventName {
    fn new(name: &str) -> Self {
        let mut len = name.len().min(40);
        while !name.is_char_boundary(len) {
            len -= 1;
        }
        let mut bytes = [0; 40];
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self { bytes, len: len as u8 }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Debug for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One line from QEMU. All members are borrowed from the input, so that parsing does not allocate.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, rename = "QMP")]
    greeting: Option<&'a RawValue>,
    #[serde(borrow, rename = "return")]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<ErrorBody<'a>>,
    #[serde(borrow)]
    event: Option<&'a str>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    timestamp: Option<Timestamp>,
}

#[derive(Deserialize)]
struct ErrorBody<'a> {
    #[serde(borrow)]
    class: &'a RawValue,
    #[serde(borrow)]
    desc: &'a RawValue,
}

#[derive(Deserialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

#[derive(Deserialize, Default)]
struct EventData<'a> {
    guest: Option<bool>,
    #[serde(borrow)]
    status: Option<&'a str>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Greeting {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: QemuVersion,
}

#[derive(Serialize)]
struct Command<'a, A> {
    execute: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<A>,
    id: u64,
}

/// What a line turned out to be; places are in the input buffer.
enum Message {
    Greeting(Range<usize>),
    Event,
    Return { id: u64, value: Range<usize> },
    Error { id: u64, class: Range<usize>, desc: Range<usize> },
}

/// The client.
pub struct Qmp {
    socket: UnixStream,
    input: Box<[u8]>,
    /// Unread input.
    pending: Range<usize>,
    /// No line ends before this place.
    searched: usize,
    events: VecDeque<Event>,
    lost_events: u64,
    /// By the events that came before the latest answer; and how often it was.
    suspended: bool,
    suspensions: u64,
    next_id: u64,
    /// When the latest command was sent.
    asked: Instant,
    patience: Option<Patience>,
    closed: bool,
    broken: bool,
}

impl fmt::Debug for Qmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qmp").field("closed", &self.closed).field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Qmp {
    /// Reads the greeting and leaves negotiation mode. Answers QEMU's version too.
    ///
    /// # Errors
    /// `Protocol`, `Timeout`.
    pub fn connect(socket: UnixStream, timeout: Duration) -> Result<(Qmp, QemuVersion)> {
        let mut qmp = Qmp {
            socket,
            input: vec![0; MAX_LINE].into_boxed_slice(),
            pending: 0..0,
            searched: 0,
            events: VecDeque::with_capacity(MAX_EVENTS),
            lost_events: 0,
            suspended: false,
            suspensions: 0,
            next_id: FIRST_ID,
            asked: Instant::now(),
            patience: None,
            closed: false,
            broken: false,
        };
        let deadline = Instant::now() + timeout;
        let greeting = match qmp.next_message(Some(deadline), "greeting")? {
            Some(Message::Greeting(place)) => place,
            _ => return Err(qmp.protocol_error("the first line is no greeting")),
        };
        let greeting: Greeting = match serde_json::from_slice(&qmp.input[greeting]) {
            Ok(greeting) => greeting,
            Err(_) => return Err(qmp.protocol_error("a greeting without version")),
        };
        qmp.run("qmp_capabilities", None::<()>)?;
        Ok((qmp, greeting.version.qemu))
    }

    /// Becomes readable when an event (or the end of the connection) arrives for [`Qmp::poll_events`]. One that came along
    /// with the answer to a command has been read already: call that once before waiting for this.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// From now on no answer is given up after a time: `patience` is asked instead.
    pub fn set_patience(&mut self, patience: Patience) {
        self.patience = Some(patience);
    }

    /// QEMU has closed the connection: it has ended or is about to.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Executes a command and parses what it returns.
    ///
    /// # Errors
    /// `Refused` when QEMU answers with an error; `Protocol`, `Timeout` when the connection is of no use any more.
    pub fn execute<T: DeserializeOwned>(&mut self, command: &str, arguments: Option<impl Serialize>) -> Result<T> {
        self.execute_within(command, arguments, None, TIMEOUT)
    }

    /// As [`Qmp::execute`], for commands whose answer does not matter.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn run(&mut self, command: &str, arguments: Option<impl Serialize>) -> Result<()> {
        self.execute::<IgnoredAny>(command, arguments).map(drop)
    }

    /// As [`Qmp::execute`], with a descriptor for QEMU (`getfd`, `add-fd`).
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn execute_with_fd<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Option<impl Serialize>,
        fd: BorrowedFd<'_>,
    ) -> Result<T> {
        self.execute_within(command, arguments, Some(fd), TIMEOUT)
    }

    /// As [`Qmp::execute`], with a time limit of its own.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn execute_within<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Option<impl Serialize>,
        fd: Option<BorrowedFd<'_>>,
        timeout: Duration,
    ) -> Result<T> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&Command { execute: command, arguments, id })
            .map_err(|error| MachineError::Protocol { reason: format!("{command}: {error}") })?;
        line.push(b'\n');
        self.send_with(&line, fd, command, timeout)?;
        let value = self.reply_value(id, command, timeout)?;
        match serde_json::from_slice(&self.input[value]) {
            Ok(value) => Ok(value),
            Err(error) => Err(self.protocol_error(&format!("{command}: unexpected answer: {error}"))),
        }
    }

    /// Sends preformatted commands, whole lines. Their ids are below [`FIRST_ID`], and [`Qmp::reply`] is called for each
    /// in the same order before anything else is executed.
    ///
    /// # Errors
    /// `Protocol`, `Timeout`.
    pub fn send(&mut self, lines: &[u8], command: &str) -> Result<()> {
        self.send_with(lines, None, command, TIMEOUT)
    }

    /// Awaits the answer to the command with this id.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn reply(&mut self, id: u64, command: &str, timeout: Duration) -> Result<()> {
        self.reply_value(id, command, timeout).map(drop)
    }

    /// Takes what has arrived without waiting. Answers how many events wait for [`Qmp::next_event`].
    ///
    /// # Errors
    /// `Protocol`, also when QEMU has closed the connection.
    pub fn poll_events(&mut self) -> Result<usize> {
        while let Some(message) = self.next_message(None, "event")? {
            self.expect_event(message)?;
        }
        Ok(self.events.len())
    }

    /// The oldest event not yet taken.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Events that were dropped because nobody took them.
    pub fn lost_events(&self) -> u64 {
        self.lost_events
    }

    /// Whether the guest was suspended when QEMU gave its latest answer, and for the how manieth time: by the events before it,
    /// whether anybody has taken them or not.
    pub fn suspended(&self) -> Option<u64> {
        self.suspended.then_some(self.suspensions)
    }

    /// The guest goes on from a state in which it was suspended, which no event says.
    pub(crate) fn set_suspended(&mut self) {
        self.suspended = true;
        self.suspensions += 1;
    }

    /// Waits for a MIGRATION event that ends a migration; true when it completed. Other events stay queued.
    pub(crate) fn await_migration(&mut self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let end = |e: &Event| match e.kind {
                EventKind::Migration(MigrationStatus::Completed) => Some(true),
                EventKind::Migration(MigrationStatus::Failed) => Some(false),
                _ => None,
            };
            let found = self.events.iter().find_map(end);
            self.events.retain(|e| !matches!(e.kind, EventKind::Migration(_)));
            if let Some(completed) = found {
                return Ok(completed);
            }
            match self.next_message(Some(deadline), "migrate-incoming")? {
                Some(message) => self.expect_event(message)?,
                None => return Err(self.protocol_error("no message")),
            }
        }
    }

    fn expect_event(&mut self, message: Message) -> Result<()> {
        match message {
            Message::Event => Ok(()),
            Message::Greeting(_) => Err(self.protocol_error("a second greeting")),
            Message::Return { id, .. } | Message::Error { id, .. } => {
                Err(self.protocol_error(&format!("an answer to {id}, which nobody asked")))
            }
        }
    }

    fn protocol_error(&mut self, reason: &str) -> MachineError {
        self.broken = true;
        MachineError::Protocol { reason: reason.to_owned() }
    }

    fn timed_out(&mut self, command: &str, timeout: Option<Duration>) -> MachineError {
        self.broken = true;
        MachineError::Timeout {
            command: command.to_owned(),
            millis: timeout.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn usable(&self) -> Result<()> {
        let reason = match (self.closed, self.broken) {
            (true, _) => "the connection is closed",
            (false, true) => "the connection is of no use after an earlier error",
            (false, false) => return Ok(()),
        };
        Err(MachineError::Protocol { reason: reason.to_owned() })
    }

    fn send_with(
        &mut self,
        mut line: &[u8],
        fd: Option<BorrowedFd<'_>>,
        command: &str,
        timeout: Duration,
    ) -> Result<()> {
        self.usable()?;
        self.asked = Instant::now();
        let deadline = self.asked + timeout;
        let mut fd = fd;
        while !line.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = match fd {
                None => rustix::net::send(&self.socket, line, flags),
                Some(fd) => {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    let fds = [fd];
                    control.push(SendAncillaryMessage::ScmRights(&fds));
                    rustix::net::sendmsg(&self.socket, &[IoSlice::new(line)], &mut control, flags)
                }
            };
            match sent {
                Ok(sent) => {
                    line = &line[sent..];
                    fd = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if !self.wait_patiently(PollFlags::OUT, deadline, command)? {
                        return Err(self.timed_out(command, Some(timeout)));
                    }
                }
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    self.closed = true;
                    return Err(self.protocol_error("the connection is closed"));
                }
                Err(error) => {
                    self.broken = true;
                    return Err(MachineError::os("sending to QMP")(error));
                }
            }
        }
        Ok(())
    }

    /// Awaits an answer; where its value is in the input buffer.
    fn reply_value(&mut self, wanted: u64, command: &str, timeout: Duration) -> Result<Range<usize>> {
        let deadline = Instant::now() + timeout;
        loop {
            let message = match self.next_message(Some(deadline), command) {
                Ok(Some(message)) => message,
                Ok(None) => return Err(self.protocol_error("no message")),
                Err(MachineError::Timeout { .. }) => {
                    return Err(self.timed_out(command, Some(timeout)));
                }
                Err(error) => return Err(error),
            };
            match message {
                Message::Event => {}
                Message::Return { id, value } if id == wanted => return Ok(value),
                Message::Error { id, class, desc } if id == wanted => {
                    let text = |place: Range<usize>| {
                        serde_json::from_slice::<String>(&self.input[place])
                            .unwrap_or_else(|_| "(unreadable)".to_owned())
                    };
                    return Err(MachineError::Refused {
                        command: command.to_owned(),
                        class: text(class),
                        message: text(desc),
                    });
                }
                Message::Return { id, .. } | Message::Error { id, .. } => {
                    return Err(self.protocol_error(&format!("{command}: an answer to {id} instead of {wanted}")));
                }
                Message::Greeting(_) => return Err(self.protocol_error("a second greeting")),
            }
        }
    }

    /// The next message. Without deadline: None when none is there yet.
    fn next_message(&mut self, deadline: Option<Instant>, command: &str) -> Result<Option<Message>> {
        self.usable()?;
        loop {
            let Some(line) = self.next_line(deadline, command)? else {
                return Ok(None);
            };
            if self.input[line.clone()].iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return match self.parse(line.clone()) {
                Some(Message::Event) => Ok(Some(Message::Event)),
                Some(message) => Ok(Some(message)),
                None => {
                    let start = &self.input[line.start..line.end.min(line.start + 80)];
                    let reason = format!("not understood: '{}'", start.escape_ascii());
                    Err(self.protocol_error(&reason))
                }
            };
        }
    }

    /// Where the next line is in the input buffer. It stays there until the next call.
    fn next_line(&mut self, deadline: Option<Instant>, command: &str) -> Result<Option<Range<usize>>> {
        loop {
            if let Some(at) = self.input[self.searched..self.pending.end].iter().position(|b| *b == b'\n') {
                let end = self.searched + at;
                let line = self.pending.start..end;
                self.pending.start = end + 1;
                self.searched = end + 1;
                return Ok(Some(line));
            }
            self.searched = self.pending.end;
            if self.pending.is_empty() {
                self.pending = 0..0;
                self.searched = 0;
            } else if self.pending.end == self.input.len() {
                if self.pending.start == 0 {
                    return Err(self.protocol_error(&format!("a line of more than {MAX_LINE} bytes")));
                }
                self.input.copy_within(self.pending.clone(), 0);
                self.searched -= self.pending.start;
                self.pending = 0..self.pending.len();
            }
            let place = self.pending.end..self.input.len();
            match rustix::net::recv(&self.socket, &mut self.input[place], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => {
                    self.closed = true;
                    let cut = if self.pending.is_empty() { "" } else { " in the middle of a line" };
                    return Err(self.protocol_error(&format!("the connection was closed{cut}")));
                }
                Ok((count, _)) => self.pending.end += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match deadline {
                    None => return Ok(None),
                    Some(deadline) => {
                        if !self.wait_patiently(PollFlags::IN, deadline, command)? {
                            return Err(self.timed_out(command, None));
                        }
                    }
                },
                Err(error) => {
                    self.broken = true;
                    return Err(MachineError::os("receiving from QMP")(error));
                }
            }
        }
    }

    /// Understands a line; queues it when it is an event.
    fn parse(&mut self, place: Range<usize>) -> Option<Message> {
        let base = self.input.as_ptr() as usize;
        let line: Line<'_> = serde_json::from_slice(&self.input[place]).ok()?;
        let inside = |value: &RawValue| {
            let start = value.get().as_ptr() as usize - base;
            start..start + value.get().len()
        };
        match line {
            Line { event: Some(name), value: None, error: None, .. } => {
                let data: EventData<'_> =
                    line.data.and_then(|d| serde_json::from_str(d.get()).ok()).unwrap_or_default();
                let guest = data.guest.unwrap_or(false);
                let kind = match name {
                    "STOP" => EventKind::Stop,
                    "RESUME" => EventKind::Resume,
                    "RESET" => EventKind::Reset { guest },
                    "SHUTDOWN" => EventKind::Shutdown { guest },
                    "POWERDOWN" => EventKind::Powerdown,
                    "SUSPEND" => EventKind::Suspend,
                    "WAKEUP" => EventKind::Wakeup,
                    "GUEST_PANICKED" => EventKind::GuestPanicked,
                    "WATCHDOG" => EventKind::Watchdog,
                    "DUMP_COMPLETED" => EventKind::DumpCompleted { ok: data.error.is_none() },
                    "MIGRATION" => EventKind::Migration(match data.status {
                        Some("completed") => MigrationStatus::Completed,
                        Some("failed") => MigrationStatus::Failed,
                        _ => MigrationStatus::Other,
                    }),
                    other => EventKind::Other(EventName::new(other)),
                };
                let unix_us = line.timestamp.map_or(0, |t| {
                    let us = t.seconds.saturating_mul(1_000_000).saturating_add(t.microseconds);
                    u64::try_from(us).unwrap_or(0)
                });
                match kind {
                    EventKind::Suspend => self.set_suspended(),
                    EventKind::Wakeup | EventKind::Reset { .. } => self.suspended = false,
                    _ => {}
                }
                if self.events.len() == MAX_EVENTS {
                    self.events.pop_front();
                    self.lost_events += 1;
                }
                self.events.push_back(Event { kind, unix_us });
                Some(Message::Event)
            }
            Line { greeting: Some(greeting), value: None, error: None, event: None, .. } => {
                Some(Message::Greeting(inside(greeting)))
            }
            Line { value: Some(value), error: None, event: None, greeting: None, .. } => {
                let id = line.id?.get().parse().ok()?;
                Some(Message::Return { id, value: inside(value) })
            }
            Line { error: Some(error), value: None, event: None, greeting: None, .. } => {
                // QEMU answers what it could not read as a command without id.
                let id = match line.id {
                    Some(id) => id.get().parse().ok()?,
                    None => 0,
                };
                Some(Message::Error { id, class: inside(error.class), desc: inside(error.desc) })
            }
            _ => None,
        }
    }

    /// Waits until the socket is ready; false at the deadline, or when there is no patience left.
    fn wait_patiently(&mut self, flags: PollFlags, deadline: Instant, command: &str) -> Result<bool> {
        let Some(mut patience) = self.patience.take() else { return self.wait(flags, deadline) };
        let ready = loop {
            match self.wait(flags, Instant::now() + LOOK) {
                Ok(false) if patience(command, self.asked.elapsed()) => {}
                other => break other,
            }
        };
        self.patience = Some(patience);
        ready
    }

    /// Waits until the socket is ready; false at the deadline.
    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.socket, flags)], Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(MachineError::os("poll of QMP")(error)),
            }
        }
    }

    /// Tells the other side that nothing more will come.
    pub fn close(&mut self) {
        let _ = self.socket.flush();
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.closed = true;
    }
}
