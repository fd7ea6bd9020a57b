//! A blocking client of one keeper.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::{Event, EventKind, Position};
use ninefold_model::status::VmStatus;

use crate::answer::{Answer, Gap};
use crate::operation::{Operation, OperationId, State};
use crate::refusal::Refusal;
use crate::request::Request;
use crate::wire::{self, MAX_ANSWER};

/// The name of the control socket in a VM's run directory.
pub const SOCKET: &str = "keeper.sock";

/// How long an answer may take, beyond what the request itself asks to wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long an operation is waited for with one request.
const WAIT: Duration = Duration::from_secs(30);

/// Why a request got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no keeper answers at {socket}: is it running?")]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("the keeper at {socket} closed the connection")]
    Closed { socket: PathBuf },
    #[error("the keeper's answer makes no sense: {0}")]
    Garbled(String),
    #[error("{0}")]
    Refused(Refusal),
    /// By a keeper that is newer than this client.
    #[error("the keeper refuses with a code that is not known here: {code} {details}")]
    Unknown { code: String, details: String },
}

impl ClientError {
    /// Why the keeper refuses, if it does.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// What a keeper tells of its events.
#[derive(Debug, Clone, PartialEq)]
pub struct EventsPage {
    /// What may be missing before the first of them.
    pub gap: Option<Gap>,
    pub events: Vec<Event>,
    /// From where on to ask next.
    pub next: Position,
}

/// A client of one keeper. Each request uses a connection of its own, so a client can be shared and kept.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The keeper whose run directory this is.
    pub fn new(run_dir: &Path) -> Self {
        Self { socket: run_dir.join(SOCKET) }
    }

    /// Sends one request. Waits at most 30 s beyond what the request itself asks to wait.
    ///
    /// # Errors
    /// The keeper does not answer, or refuses.
    pub fn request(&self, request: &Request) -> Result<Answer, ClientError> {
        self.send(request, None)
    }

    fn send(&self, request: &Request, token: Option<&str>) -> Result<Answer, ClientError> {
        let unreachable = |source| ClientError::Unreachable { socket: self.socket.clone(), source };
        let wait = match request {
            Request::Events { wait_ms, .. } | Request::Operation { wait_ms, .. } => Duration::from_millis(*wait_ms),
            _ => Duration::ZERO,
        };
        let line = wire::write_request(request, token).map_err(|e| ClientError::Garbled(e.to_string()))?;
        let stream = UnixStream::connect(&self.socket).map_err(unreachable)?;
        let deadline = Instant::now() + PATIENCE.saturating_add(wait);
        let mut stream = Until { stream: &stream, deadline };
        stream.write_all(&line).map_err(unreachable)?;
        let mut answer = Vec::new();
        BufReader::new(stream).take(MAX_ANSWER).read_until(b'\n', &mut answer).map_err(unreachable)?;
        if answer.is_empty() {
            return Err(ClientError::Closed { socket: self.socket.clone() });
        }
        match wire::read_answer(&answer).map_err(|e| ClientError::Garbled(e.to_string()))? {
            wire::Read::Reply(reply) => reply.map_err(ClientError::Refused),
            wire::Read::Unknown { code, details } => Err(ClientError::Unknown { code, details: details.to_string() }),
        }
    }

    /// A request that is done with its answer, or begins an operation of which no more is asked.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn command(&self, request: &Request) -> Result<(), ClientError> {
        match self.request(request)? {
            Answer::Done | Answer::Begun { .. } => Ok(()),
            other => Err(garbled(&other)),
        }
    }

    /// Begins an operation. Repeated with the same token it is the same operation.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn begin(&self, request: &Request, token: Option<&str>) -> Result<Operation, ClientError> {
        match self.send(request, token)? {
            Answer::Begun { operation } => Ok(*operation),
            other => Err(garbled(&other)),
        }
    }

    /// The operation as it is; waits up to `wait` until it has ended.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn operation(&self, operation: OperationId, wait: Duration) -> Result<Operation, ClientError> {
        let wait_ms = millis(wait);
        match self.request(&Request::Operation { operation, wait_ms })? {
            Answer::Operation { operation } => Ok(*operation),
            other => Err(garbled(&other)),
        }
    }

    /// All operations that are known.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn operations(&self) -> Result<Vec<Operation>, ClientError> {
        match self.request(&Request::Operations)? {
            Answer::Operations { operations } => Ok(operations),
            other => Err(garbled(&other)),
        }
    }

    /// Ends an operation before its time, where that is possible. Answers how it is then.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn cancel(&self, operation: OperationId) -> Result<Operation, ClientError> {
        match self.request(&Request::Cancel { operation })? {
            Answer::Operation { operation } => Ok(*operation),
            other => Err(garbled(&other)),
        }
    }

    /// Begins an operation and waits until it has ended. Answers the event that tells most of it, if one does.
    ///
    /// # Errors
    /// As [`Client::request`]; or the operation fails, as if it had been refused.
    pub fn carry_out(&self, request: &Request) -> Result<Option<EventKind>, ClientError> {
        let mut operation = self.begin(request, None)?;
        loop {
            match operation.state {
                State::Running { .. } => operation = self.operation(operation.id, WAIT)?,
                State::Done { outcome } => return Ok(outcome.map(|event| *event)),
                State::Failed { error } => return Err(ClientError::Refused(error)),
            }
        }
    }

    /// How the VM and its keeper are.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn status(&self) -> Result<VmStatus, ClientError> {
        match self.request(&Request::Status)? {
            Answer::Status { status } => Ok(*status),
            other => Err(garbled(&other)),
        }
    }

    /// Events after `after` ([`Position::START`]: all); waits up to `wait` for the first one.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn events(&self, after: Position, wait: Duration) -> Result<EventsPage, ClientError> {
        self.events_after(Some(after), millis(wait))
    }

    /// Where the keeper's events have come to now: what happens from here on is after it.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn now(&self) -> Result<Position, ClientError> {
        Ok(self.events_after(None, 0)?.next)
    }

    fn events_after(&self, after: Option<Position>, wait_ms: u64) -> Result<EventsPage, ClientError> {
        match self.request(&Request::Events { after, wait_ms })? {
            Answer::Events { gap, events, next } => Ok(EventsPage { gap, events, next }),
            other => Err(garbled(&other)),
        }
    }

    /// The checkpoints measured after number `after` (a bounded history).
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn checkpoints(&self, after: u64) -> Result<Vec<CheckpointRecord>, ClientError> {
        match self.request(&Request::Checkpoints { after })? {
            Answer::Checkpoints { checkpoints } => Ok(checkpoints),
            other => Err(garbled(&other)),
        }
    }
}

/// A time as requests have it.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// An answer to something else.
fn garbled(answer: &Answer) -> ClientError {
    ClientError::Garbled(format!("{answer:?}"))
}

/// A stream with a deadline for all that is read and written, however slowly it comes.
struct Until<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Until<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// What a socket's own time-out is called.
fn late(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Until<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.read(buf).map_err(late)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        let mut stream = self.stream;
        stream.write(buf).map_err(late)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A keeper that answers one request with this line.
    fn answered(line: &'static str) -> Result<Answer, ClientError> {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
        let keeper = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            stream.write_all(line.as_bytes()).unwrap();
            request
        });
        let answer = Client::new(dir.path()).request(&Request::Stop);
        assert_eq!(keeper.join().unwrap(), "{\"request\":\"stop\",\"version\":1}\n");
        answer
    }

    #[test]
    fn each_answer_is_told_apart() {
        assert!(matches!(answered("{\"version\":1,\"answer\":\"done\"}\n"), Ok(Answer::Done)));
        let refused =
            answered("{\"version\":1,\"error\":{\"code\":\"not_running_here\",\"details\":{\"host\":\"b\"}}}\n");
        let refused = refused.unwrap_err();
        assert_eq!(refused.refusal().and_then(Refusal::host).map(|h| h.as_str()), Some("b"));
        assert!(
            matches!(answered("{\"error\":{\"code\":\"on_fire\"}}\n"), Err(ClientError::Unknown { code, .. }) if code == "on_fire")
        );
        assert!(matches!(answered("what?\n"), Err(ClientError::Garbled(_))));
        assert!(matches!(answered(""), Err(ClientError::Closed { .. })));
        let nobody = Client::new(Path::new("/nowhere")).request(&Request::Stop);
        assert!(matches!(nobody, Err(ClientError::Unreachable { .. })));
    }
}
