//! The client that checks every acknowledged write: one persistent TCP connection to the guest's redis.
//!
//! A write is lost when it was acknowledged and a later answer shows that it is not there. The rules are in [`book`];
//! this module only moves bytes and notes when answers came.

mod book;
pub mod resp;

use std::collections::VecDeque;
use std::io::{BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{LabError, io_at};
use crate::netns::io_in_netns;
use book::{Book, Op, SLOTS};
use resp::Reply;

/// Answers this close together leave no gap worth keeping.
const GAP: Duration = Duration::from_millis(1);
/// Most gaps kept; the oldest are forgotten.
const MAX_GAPS: usize = 1 << 16;
const COUNTER: &str = "ledger:counter";

/// How the ledger works.
#[derive(Debug, Clone)]
pub struct LedgerOptions {
    /// Commands on their way at once, at least 1.
    pub in_flight: usize,
    /// How long to try to reach the server at first, and to wait for one answer, before the ledger gives up.
    pub patience: Duration,
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self { in_flight: 4, patience: Duration::from_secs(60) }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LedgerReport {
    /// Writes that the server acknowledged.
    pub acked: u64,
    /// Acknowledged writes that are not there.
    pub lost: u64,
    /// Writes carried out more often than they were sent.
    pub repeated: u64,
    /// Connections that broke.
    pub resets: u64,
    /// The longest time between two answers, milliseconds.
    pub longest_gap_ms: u64,
    /// What was wrong, in words (the first of it).
    pub complaints: Vec<String>,
}

#[derive(Debug)]
struct State {
    book: Book,
    gaps: VecDeque<(Instant, Instant)>,
    last: Instant,
    resets: u64,
    ended: bool,
    stop: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
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
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                book: Book::new(),
                gaps: VecDeque::new(),
                last: Instant::now(),
                resets: 0,
                ended: false,
                stop: false,
            }),
            changed: Condvar::new(),
        });
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

    /// How many writes have been acknowledged.
    pub fn acked(&self) -> u64 {
        self.shared.lock().book.acked
    }

    /// How often the connection broke.
    pub fn resets(&self) -> u64 {
        self.shared.lock().resets
    }

    /// Waits until `more` further writes are acknowledged. `false` when the deadline passes or the connection breaks
    /// before.
    pub fn wait_acks(&self, more: u64, deadline: Instant) -> bool {
        let mut state = self.shared.lock();
        let goal = state.book.acked.saturating_add(more);
        loop {
            if state.book.acked >= goal {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|_| !state.ended) else {
                return false;
            };
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The longest time without an answer since `mark`, the present silence included. A gap that began before the mark
    /// counts whole. Gaps under a millisecond count as none.
    pub fn gap_since(&self, mark: Instant) -> Duration {
        let state = self.shared.lock();
        let past = state.gaps.iter().filter(|(_, end)| *end >= mark).map(|(begin, end)| *end - *begin);
        let present = if state.ended { Duration::ZERO } else { state.last.elapsed() };
        past.chain([present]).filter(|gap| *gap >= GAP).max().unwrap_or_default()
    }

    /// Ends the writing, awaits the open answers, reads everything back and reports. Uses the same connection, or a new
    /// one if that broke.
    pub fn finish(mut self) -> Result<LedgerReport, LabError> {
        self.shared.lock().stop = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let broken = self.shared.lock().resets > 0;
        let mut stream = match broken {
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
        let longest = state.gaps.iter().map(|(begin, end)| *end - *begin).max().unwrap_or_default();
        Ok(LedgerReport {
            acked: state.book.acked,
            lost: state.book.lost,
            repeated: state.book.repeated,
            resets: state.resets,
            longest_gap_ms: longest.as_millis() as u64,
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
                state.ended = true;
                break;
            }
        }
        let mut to = stream;
        let reply = to.write_all(&out).map_err(io_at("write")).and_then(|()| resp::read(&mut reader));
        let now = Instant::now();
        let mut state = shared.lock();
        match reply {
            Ok(reply) => {
                if now - state.last >= GAP {
                    let begin = state.last;
                    state.gaps.push_back((begin, now));
                    if state.gaps.len() > MAX_GAPS {
                        state.gaps.pop_front();
                    }
                }
                state.last = now;
                state.book.answered(&reply);
                shared.changed.notify_all();
            }
            Err(error) => {
                state.book.broken();
                state.ended = true;
                // A connection that we shut down ourselves did not break.
                if !state.stop {
                    state.resets += 1;
                    tracing::warn!(%error, "the ledger's connection broke");
                }
                break;
            }
        }
    }
    shared.lock().ended = true;
    shared.changed.notify_all();
}

fn connect(netns: Option<&str>, server: SocketAddr, patience: Duration) -> Result<TcpStream, LabError> {
    let open = || {
        let stream = TcpStream::connect_timeout(&server, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(stream)
    };
    let what = format!("connect to {server}");
    match netns {
        Some(netns) => io_in_netns(netns, &what, open),
        None => open().map_err(io_at(what)),
    }
}

/// Waits until a redis answers a PING from inside a namespace. `false` when the deadline passes.
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
