//! The client that checks every acknowledged write: one persistent TCP connection to the guest's redis.
//!
//! A write is lost when it was acknowledged and a later answer shows that it is not there. The rules are in [`book`];
//! this module only moves bytes and notes when answers came.

mod book;
pub mod resp;

use std::io::{BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{LedgerOptions, LedgerReport, Pulse};
use crate::error::{LabError, io_at};
use crate::netns::connect;
use crate::netns::io_in_netns;
use book::{Book, Op, SLOTS};
use resp::Reply;

const COUNTER: &str = "ledger:counter";

#[derive(Debug)]
struct State {
    book: Book,
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    pulse: Pulse,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running ledger. Dropping it ends it without the final check.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    stream: TcpStream,
    thread: Option<JoinHandle<()>>,
    /// For the final check after a reset.
    netns: Option<String>,
    server: SocketAddr,
    patience: Duration,
}

impl Ledger {
    /// Connects from inside a namespace (`None`: this one), clears the ledger's keys and begins to write.
    ///
    /// # Errors
    /// The namespace is not there, nobody accepts the connection in time, it breaks, or the server does not clear the keys.
    pub fn start(netns: Option<&str>, server: SocketAddr, options: &LedgerOptions) -> Result<Self, LabError> {
        let mut stream = connect(netns, server, options.patience)?;
        let mut clear = vec!["DEL".to_owned(), COUNTER.to_owned()];
        clear.extend((0..SLOTS).map(slot_key));
        let words: Vec<_> = clear.iter().map(String::as_str).collect();
        let mut out = Vec::new();
        resp::command(&mut out, &words);
        stream.write_all(&out).map_err(io_at(format!("write to {server}")))?;
        // No byte beyond the one answer can be in the reader's buffer: nothing more was asked.
        match resp::read(&mut BufReader::new(&stream))? {
            Reply::Integer(_) => {}
            other => return Err(LabError::Resp(format!("{other:?}"))),
        }
        let shared =
            Arc::new(Shared { state: Mutex::new(State { book: Book::new(), stop: false }), pulse: Pulse::new(0) });
        let theirs = Arc::clone(&shared);
        let clone = stream.try_clone().map_err(io_at("duplicate a socket"))?;
        let in_flight = options.in_flight.max(1);
        let thread = std::thread::spawn(move || run(&clone, &theirs, in_flight));
        Ok(Self {
            shared,
            stream,
            thread: Some(thread),
            netns: netns.map(str::to_owned),
            server,
            patience: options.patience,
        })
    }

    /// When answers came.
    pub fn pulse(&self) -> &Pulse {
        &self.shared.pulse
    }

    /// See [`Pulse::acked`].
    pub fn acked(&self) -> u64 {
        self.pulse().acked()
    }

    /// See [`Pulse::resets`].
    pub fn resets(&self) -> u64 {
        self.pulse().resets()
    }

    /// See [`Pulse::wait_acks`].
    pub fn wait_acks(&self, more: u64, deadline: Instant) -> bool {
        self.pulse().wait_acks(more, deadline)
    }

    /// See [`Pulse::gap_since`].
    pub fn gap_since(&self, mark: Instant) -> Duration {
        self.pulse().gap_since(mark)
    }

    /// Ends the writing, awaits the open answers, reads everything back and reports. Uses the same connection, or a new
    /// one if that broke.
    ///
    /// # Errors
    /// No new connection can be made, the connection breaks, or the server's answers are not what was written there.
    pub fn finish(mut self) -> Result<LedgerReport, LabError> {
        self.shared.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let resets = self.resets();
        let mut stream = match resets > 0 {
            true => connect(self.netns.as_deref(), self.server, self.patience)?,
            false => self.stream.try_clone().map_err(io_at("duplicate a socket"))?,
        };
        let mut out = Vec::new();
        resp::command(&mut out, &["GET", COUNTER]);
        for slot in 0..SLOTS {
            resp::command(&mut out, &["GET", &slot_key(slot)]);
        }
        stream.write_all(&out).map_err(io_at(format!("write to {}", self.server)))?;
        let mut reader = BufReader::new(&stream);
        let mut state = self.shared.lock();
        let count = number(&resp::read(&mut reader)?)?.unwrap_or(0);
        state.book.final_counter(i64::try_from(count).unwrap_or(i64::MAX));
        for slot in 0..SLOTS {
            let found = number(&resp::read(&mut reader)?)?;
            state.book.final_slot(slot, found);
        }
        Ok(LedgerReport {
            acked: state.book.acked,
            lost: state.book.lost,
            repeated: state.book.repeated,
            resets,
            longest_gap_ms: self.shared.pulse.longest_gap().as_millis() as u64,
            complaints: state.book.complaints.clone(),
        })
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.lock().stop = true;
            let _ = self.stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

fn slot_key(slot: usize) -> String {
    format!("ledger:slot:{slot}")
}

fn number(reply: &Reply) -> Result<Option<u64>, LabError> {
    match reply {
        Reply::Bulk(None) => Ok(None),
        Reply::Bulk(Some(text)) => {
            let text = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
            text.map(Some).ok_or_else(|| LabError::Resp(format!("{reply:?} is no number")))
        }
        other => Err(LabError::Resp(format!("{other:?}"))),
    }
}

/// The writing thread: fills the window, reads one answer, again.
fn run(stream: &TcpStream, shared: &Shared, in_flight: usize) {
    let mut reader = BufReader::new(stream);
    let mut out = Vec::new();
    loop {
        out.clear();
        {
            let mut state = shared.lock();
            while !state.stop && state.book.in_flight() < in_flight {
                match state.book.send() {
                    Op::Incr => resp::command(&mut out, &["INCR", COUNTER]),
                    Op::Set { slot, value } => {
                        resp::command(&mut out, &["SET", &slot_key(slot), &value.to_string()]);
                    }
                }
            }
            if state.book.in_flight() == 0 {
                break;
            }
        }
        let mut to = stream;
        let reply = to.write_all(&out).map_err(io_at("write")).and_then(|()| resp::read(&mut reader));
        let mut state = shared.lock();
        match reply {
            Ok(reply) => {
                state.book.answered(&reply);
                shared.pulse.answer(state.book.acked);
            }
            Err(error) => {
                state.book.broken();
                // A connection that we shut down ourselves did not break.
                if !state.stop {
                    shared.pulse.reset();
                    tracing::warn!(%error, "the ledger's connection broke");
                }
                break;
            }
        }
    }
    shared.pulse.end();
}

/// Waits until a redis answers a PING from inside a namespace. `false` when the deadline passes.
///
/// # Errors
/// The namespace is not there or cannot be entered.
pub fn await_answer(netns: &str, server: SocketAddr, deadline: Instant) -> Result<bool, LabError> {
    let attempt = Duration::from_millis(500);
    loop {
        let begin = Instant::now();
        let answered = io_in_netns(netns, "try a redis", || {
            let try_it = || -> Result<Reply, LabError> {
                let mut stream = connect(None, server, attempt)?;
                let mut out = Vec::new();
                resp::command(&mut out, &["PING"]);
                stream.write_all(&out).map_err(io_at("write"))?;
                resp::read(&mut BufReader::new(&stream))
            };
            Ok(matches!(try_it(), Ok(Reply::Simple(pong)) if pong == "PONG"))
        })?;
        if answered {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        // A refusal comes at once (redis is not up yet); silence has taken its time already.
        std::thread::sleep(Duration::from_millis(20).saturating_sub(begin.elapsed()));
    }
}
