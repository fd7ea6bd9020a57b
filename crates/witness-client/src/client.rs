//! The client of the witness server.
//!
//! ```text
//!   call --> is there a connection? --yes--> ask --answer--> return
//!            | no                             |
//!            |                                +-- broken, cut off, or silent for half of the time
//!            v                                                  |
//!            connect, ask --answer--> return                    |
//!            ^  |                                               |
//!            |  +-- refused, broken, out of time ---> Unreachable
//!            +----- cut off, while there is time <--------------+
//! ```
//!
//! *Cut off* is a connection whose peer's kernel does not even acknowledge the request. TCP repeats that after 200 ms, then after twice as long,
//! and so on; when the way is whole again, a new connection is answered at once. So a call is repeated on a new one, again and again, each with
//! twice the time of the one before. That is safe because every call is idempotent. A witness that is slow acknowledges, and is waited for. One that
//! is far away acknowledges late: each connection knows from its handshake how late.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ninefold_model::{HostName, Label, Record, VmId};
use ninefold_transport::{Link, LinkHandle, Security, connect};

use crate::wire::{Answer, Call, Entry, FrameReader, FrameWriter, Request, VERSION, parse_response};
use crate::witness::{Retirement, Swap, Witness, WitnessError};

/// A request that is not acknowledged after so long, and after the time that the connection's handshake took, was sent into a cut: more than the
/// 40 ms for which a kernel may delay an acknowledgement, and, as a handshake goes there and back twice, more than the way takes.
const CUT_OFF: Duration = Duration::from_millis(60);
/// For the first attempt at a new connection; each further one has twice as long.
const QUICK: Duration = Duration::from_millis(60);

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a new connection with its handshake.
    pub connect: Duration,
    /// For a whole call, connecting included. A connection that was kept gets half of it to answer.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_millis(500), request: Duration::from_secs(1) }
    }
}

/// A blocking client: connects when needed, keeps its connection, one request at a time.
pub struct WitnessClient {
    addr: SocketAddr,
    witness: HostName,
    security: Security,
    timeouts: Timeouts,
    connection: Option<Connection>,
}

struct Connection {
    requests: FrameWriter,
    responses: FrameReader,
    link: LinkHandle,
    last_id: u64,
    /// After which a request that is not acknowledged was sent into a cut.
    cut_off: Duration,
}

impl WitnessClient {
    /// Does not connect yet. `witness` is the host that must answer at `addr`.
    pub fn new(addr: SocketAddr, witness: HostName, security: Security, timeouts: Timeouts) -> Self {
        Self { addr, witness, security, timeouts, connection: None }
    }

    /// Asks for a sign of life; connects if there is no connection. Call it now and then so that a compare-and-swap
    /// that matters finds a connection that works.
    ///
    /// # Errors
    /// The witness does not answer in time, answers something else, or refuses: see [`WitnessError`].
    pub fn ping(&mut self) -> Result<(), WitnessError> {
        match self.call(Call::Ping)? {
            Answer::Pong => Ok(()),
            other => Err(self.strange(&other)),
        }
    }

    /// All records, by id. Not a snapshot: each page is as of its reading.
    ///
    /// # Errors
    /// See [`WitnessError`].
    pub fn list(&mut self) -> Result<Vec<Entry>, WitnessError> {
        let mut all: Vec<Entry> = Vec::new();
        loop {
            let after = all.last().map(|entry| entry.vm);
            match self.call(Call::List { after })? {
                Answer::Page { records, more } => {
                    let more = more && !records.is_empty();
                    all.extend(records);
                    if !more {
                        return Ok(all);
                    }
                }
                other => return Err(self.strange(&other)),
            }
        }
    }

    fn call(&mut self, call: Call) -> Result<Answer, WitnessError> {
        let deadline = Instant::now() + self.timeouts.request;
        if let Some(mut kept) = self.connection.take() {
            let half = Instant::now() + self.timeouts.request / 2;
            if let Ok(answer) = kept.ask(&call, half) {
                return self.keep(kept, answer);
            }
        }
        let mut patience = QUICK;
        loop {
            let begun = Instant::now();
            let limit = patience.min(self.timeouts.connect).min(deadline.saturating_duration_since(begun));
            patience *= 2;
            let failed = match connect(self.addr, &self.witness, &self.security, limit) {
                Ok(link) => {
                    let mut fresh = Connection::new(link, begun.elapsed());
                    match fresh.ask(&call, deadline) {
                        Ok(answer) => return self.keep(fresh, answer),
                        Err(error @ AskError::CutOff) => self.unreachable(&error),
                        Err(error) => return Err(self.unreachable(&error)),
                    }
                }
                Err(error) if begun.elapsed() < limit => return Err(self.unreachable(&error)),
                Err(error) => self.unreachable(&error),
            };
            if Instant::now() >= deadline {
                return Err(failed);
            }
        }
    }

    fn keep(&mut self, connection: Connection, answer: Answer) -> Result<Answer, WitnessError> {
        self.connection = Some(connection);
        match answer {
            Answer::Refused { reason } => Err(WitnessError::Refused(reason)),
            answer => Ok(answer),
        }
    }

    /// An answer to another question. The connection is not used again.
    fn strange(&mut self, answer: &Answer) -> WitnessError {
        self.connection = None;
        let reason = format!("an answer that does not fit: {answer:?}");
        WitnessError::Unreachable { addr: self.addr.to_string(), reason }
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> WitnessError {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(deeper) = cause {
            reason = format!("{reason}: {deeper}");
            cause = deeper.source();
        }
        WitnessError::Unreachable { addr: self.addr.to_string(), reason }
    }
}

impl Connection {
    /// A connection whose handshake has taken so long.
    fn new(link: Link, handshake: Duration) -> Self {
        let handle = link.handle();
        let (reader, writer) = link.split();
        Self {
            requests: FrameWriter::new(writer, handle.clone()),
            responses: FrameReader::new(reader, handle.clone()),
            link: handle,
            last_id: 0,
            cut_off: CUT_OFF + handshake,
        }
    }

    fn ask(&mut self, call: &Call, deadline: Instant) -> Result<Answer, AskError> {
        self.last_id += 1;
        let request = Request { version: VERSION, id: self.last_id, call: call.clone() };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AskError::Late);
        }
        self.requests.send(&request, left)?;
        while !self.link.readable_within(self.cut_off.min(deadline.saturating_duration_since(Instant::now())))? {
            if self.link.unacknowledged()? > 0 {
                return Err(AskError::CutOff);
            }
            if Instant::now() >= deadline {
                return Err(AskError::Late);
            }
        }
        let response = parse_response(self.responses.read(deadline)?)?;
        // A server that could not read the request cannot name it.
        let unread = response.id == 0 && matches!(response.answer, Answer::Refused { .. });
        if response.id != request.id && !unread {
            return Err(AskError::WrongId);
        }
        Ok(response.answer)
    }
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no answer in time")]
    Late,
    #[error("it does not acknowledge what is sent to it")]
    CutOff,
    #[error("an answer to another request")]
    WrongId,
    #[error(transparent)]
    Send(#[from] std::io::Error),
    #[error(transparent)]
    Frame(#[from] crate::wire::FrameError),
    #[error(transparent)]
    Message(#[from] crate::wire::BadMessage),
}

impl Witness for WitnessClient {
    fn read_labelled(&mut self, vm: VmId) -> Result<Option<(Record, Label)>, WitnessError> {
        match self.call(Call::Read { vm })? {
            Answer::Value { record, label } => Ok(record.zip(label)),
            Answer::Retired { tombstone } => Err(WitnessError::Retired { vm, tombstone }),
            other => Err(self.strange(&other)),
        }
    }

    fn compare_and_swap(
        &mut self,
        vm: VmId,
        label: &Label,
        expected: Option<&Record>,
        new: &Record,
    ) -> Result<Swap, WitnessError> {
        let call = Call::CompareAndSwap { vm, label: label.clone(), expected: expected.cloned(), new: new.clone() };
        match self.call(call)? {
            Answer::Won { record } if record == *new => Ok(Swap::Won(record)),
            Answer::Lost { record } => Ok(Swap::Lost(record)),
            Answer::Retired { tombstone } => Err(WitnessError::Retired { vm, tombstone }),
            other => Err(self.strange(&other)),
        }
    }

    fn rename(&mut self, vm: VmId, label: &Label) -> Result<Option<Label>, WitnessError> {
        match self.call(Call::Rename { vm, label: label.clone() })? {
            Answer::Value { label, .. } => Ok(label),
            Answer::Retired { tombstone } => Err(WitnessError::Retired { vm, tombstone }),
            other => Err(self.strange(&other)),
        }
    }

    fn retire(&mut self, vm: VmId, expected: &Record, forced: bool) -> Result<Retirement, WitnessError> {
        match self.call(Call::Retire { vm, expected: expected.clone(), forced })? {
            Answer::Retired { tombstone } => Ok(Retirement::Done(tombstone)),
            Answer::Lost { record } => Ok(Retirement::Lost(record)),
            other => Err(self.strange(&other)),
        }
    }
}
