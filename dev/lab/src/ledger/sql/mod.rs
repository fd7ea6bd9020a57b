//! The client that checks every acknowledged transaction: some persistent connections to the guest's PostgreSQL.
//!
//! Each connection does one transaction after the other, statement by statement, as an application would: a fault finds
//! some of them half-way. The rules are in [`book`]; this module only talks to the server.
//!
//! ```text
//!            start                     cut: the server has lost its power
//!              │                        ┌──────────────┐
//!              ▼                        │              ▼
//!          SqlLedger ───────────────────┘           SqlBook
//!            │   ▲                                     │
//!     finish │   └─────────────────────────────────────┘ resume
//!            ▼
//!       LedgerReport
//! ```

mod book;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::{Client, Config, NoTls, Statement};

pub use book::SqlBook;
use book::{ACCOUNTS, BALANCE, Contents, Transfer};

use super::{LedgerOptions, LedgerReport, Pulse};
use crate::error::{LabError, io_at};
use crate::netns::connect;

/// The user and the database; the guest asks for no password.
pub const USER: &str = "postgres";

/// How a ledger is to come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    NotYet,
    /// Each connection finishes its transaction.
    Orderly,
    /// All of it stops where it is.
    Abrupt,
}

#[derive(Debug)]
struct Shared {
    book: Mutex<SqlBook>,
    pulse: Pulse,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, SqlBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running ledger. Dropping it ends it without the final check.
#[derive(Debug)]
pub struct SqlLedger {
    shared: Arc<Shared>,
    ending: watch::Sender<Ending>,
    thread: Option<JoinHandle<()>>,
    server: Server,
}

/// Where the server is and how to get there.
#[derive(Debug, Clone)]
struct Server {
    netns: Option<String>,
    address: SocketAddr,
    patience: Duration,
}

impl SqlLedger {
    /// Connects from inside a namespace (`None`: this one), makes the ledger's tables anew and begins with the
    /// transactions.
    ///
    /// # Errors
    /// When the server does not let it.
    pub fn start(netns: Option<&str>, server: SocketAddr, options: &LedgerOptions) -> Result<Self, LabError> {
        let server = Server { netns: netns.map(str::to_owned), address: server, patience: options.patience };
        let runtime = runtime()?;
        runtime.block_on(async {
            let client = server.connect().await?;
            let make = format!(
                "DROP TABLE IF EXISTS ledger_account, ledger_journal;
                 CREATE TABLE ledger_account (id int PRIMARY KEY, balance bigint NOT NULL);
                 CREATE TABLE ledger_journal (id bigint PRIMARY KEY, debit int NOT NULL, credit int NOT NULL,
                                              amount bigint NOT NULL);
                 INSERT INTO ledger_account SELECT n, {BALANCE} FROM generate_series(0, {}) n",
                ACCOUNTS - 1
            );
            client.batch_execute(&make).await.map_err(failed("make the ledger's tables"))
        })?;
        Self::run(runtime, server, SqlBook::default(), options)
    }

    /// Goes on with the tables and the book of a ledger that was [cut](Self::cut).
    ///
    /// # Errors
    /// When the server does not let it.
    pub fn resume(
        book: SqlBook,
        netns: Option<&str>,
        server: SocketAddr,
        options: &LedgerOptions,
    ) -> Result<Self, LabError> {
        let server = Server { netns: netns.map(str::to_owned), address: server, patience: options.patience };
        Self::run(runtime()?, server, book, options)
    }

    fn run(runtime: Runtime, server: Server, book: SqlBook, options: &LedgerOptions) -> Result<Self, LabError> {
        let clients = runtime.block_on(async {
            let mut clients = Vec::new();
            for _ in 0..options.in_flight.max(1) {
                clients.push(Session::open(&server).await?);
            }
            Ok::<_, LabError>(clients)
        })?;
        let pulse = Pulse::new(book.acked());
        let shared = Arc::new(Shared { book: Mutex::new(book), pulse });
        let (ending, ended) = watch::channel(Ending::NotYet);
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            runtime.block_on(all(clients, &theirs, ended));
            // Whatever still runs is dropped with the runtime; its transactions are open in the book.
            drop(runtime);
            theirs.pulse.end();
        });
        Ok(Self { shared, ending, thread: Some(thread), server })
    }

    /// When acknowledgements came.
    pub fn pulse(&self) -> &Pulse {
        &self.shared.pulse
    }

    /// Transactions that have been begun and not acknowledged.
    pub fn under_way(&self) -> u64 {
        self.shared.book().doubtful()
    }

    fn end(&mut self, how: Ending) {
        // The thread may have ended by itself: nobody listens then.
        let _ = self.ending.send(how);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Lets go of the server, which has lost its power, with transactions under way: none of the connections counts as
    /// broken. Hands over the book.
    pub fn cut(mut self) -> SqlBook {
        self.end(Ending::Abrupt);
        let mut book = std::mem::take(&mut *self.shared.book());
        book.all_broken();
        book
    }

    /// Ends the transactions in an orderly way, reads everything back on a new connection and reports.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub fn finish(mut self) -> Result<LedgerReport, LabError> {
        self.end(Ending::Orderly);
        let contents = runtime()?.block_on(async {
            let client = self.server.connect().await?;
            timeout(self.server.patience, read(&client)).await.map_err(|_| self.server.silent())?
        })?;
        let book = self.shared.book();
        let findings = book.check(&contents);
        Ok(LedgerReport {
            acked: book.acked(),
            lost: findings.lost,
            repeated: findings.repeated,
            resets: self.pulse().resets(),
            longest_gap_ms: self.pulse().longest_gap().as_millis() as u64,
            complaints: findings.complaints,
        })
    }
}

impl Drop for SqlLedger {
    fn drop(&mut self) {
        self.end(Ending::Abrupt);
    }
}

impl Server {
    async fn connect(&self) -> Result<Client, LabError> {
        let stream = connect(self.netns.as_deref(), self.address, self.patience)?;
        let what = format!("connect to {}", self.address);
        stream.set_nonblocking(true).map_err(io_at(what.clone()))?;
        let stream = tokio::net::TcpStream::from_std(stream).map_err(io_at(what.clone()))?;
        let mut config = Config::new();
        config.user(USER).dbname(USER);
        let connected = timeout(self.patience, config.connect_raw(stream, NoTls)).await;
        let (client, connection) = connected.map_err(|_| self.silent())?.map_err(failed(what))?;
        // Its errors come to the client's callers too.
        tokio::spawn(async { drop(connection.await) });
        Ok(client)
    }

    fn silent(&self) -> LabError {
        LabError::Timeout {
            what: format!("answer of the database at {}", self.address),
            after: self.patience,
            detail: String::new(),
        }
    }
}

/// One connection with its statements.
struct Session {
    client: Client,
    change: Statement,
    note: Statement,
    patience: Duration,
}

impl Session {
    async fn open(server: &Server) -> Result<Self, LabError> {
        let client = server.connect().await?;
        let change = "UPDATE ledger_account SET balance = balance + $2 WHERE id = $1";
        let note = "INSERT INTO ledger_journal (id, debit, credit, amount) VALUES ($1, $2, $3, $4)";
        let change = client.prepare(change).await.map_err(failed("prepare a statement"))?;
        let note = client.prepare(note).await.map_err(failed("prepare a statement"))?;
        Ok(Self { client, change, note, patience: server.patience })
    }

    /// Does a transaction, up to the acknowledgement of its COMMIT.
    async fn transact(&mut self, transfer: &Transfer) -> Result<(), tokio_postgres::Error> {
        let Self { client, change, note, .. } = self;
        let transaction = client.transaction().await?;
        for (account, amount) in transfer.changes() {
            transaction.execute(change, &[&(account as i32), &amount]).await?;
        }
        let (debit, credit) = (transfer.debit as i32, transfer.credit as i32);
        transaction.execute(note, &[&transfer.id, &debit, &credit, &transfer.amount]).await?;
        transaction.commit().await
    }

    /// One transaction after the other, until told to end or the connection breaks.
    async fn work(mut self, shared: Arc<Shared>, ending: watch::Receiver<Ending>) {
        while *ending.borrow() == Ending::NotYet {
            let transfer = shared.book().begin();
            match timeout(self.patience, self.transact(&transfer)).await {
                Ok(Ok(())) => {
                    let mut book = shared.book();
                    book.committed(transfer.id);
                    shared.pulse.answer(book.acked());
                }
                Ok(Err(error)) if refused(&error) => shared.book().aborted(transfer.id, &words(&error)),
                broken => {
                    shared.book().broken(transfer.id);
                    shared.pulse.reset();
                    let why =
                        broken.map_or_else(|_| "no answer".into(), |e| e.err().map_or(String::new(), |e| words(&e)));
                    tracing::warn!(why, "a connection of the ledger broke");
                    return;
                }
            }
        }
    }
}

/// Whether the server has said that a transaction is not done, and stays to do others.
fn refused(error: &tokio_postgres::Error) -> bool {
    use tokio_postgres::error::Severity;
    error.as_db_error().is_some_and(|e| matches!(e.parsed_severity(), Some(Severity::Error)))
}

/// The client's own text leaves out what the server said.
fn words(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |e| format!("{}: {}", e.severity(), e.message()))
}

fn failed(what: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> LabError {
    |e| LabError::Command { what: what.into(), detail: words(&e) }
}

/// All connections, until each has ended or all are to stop where they are.
async fn all(sessions: Vec<Session>, shared: &Arc<Shared>, mut ended: watch::Receiver<Ending>) {
    let mut running = JoinSet::new();
    for session in sessions {
        running.spawn(session.work(Arc::clone(shared), ended.clone()));
    }
    let all = async { while running.join_next().await.is_some() {} };
    let abrupt = async {
        // An error means that the ledger is gone, which is abrupt too.
        let _ = ended.wait_for(|e| *e == Ending::Abrupt).await;
    };
    tokio::select! {
        () = all => {}
        () = abrupt => {}
    }
}

async fn read(client: &Client) -> Result<Contents, LabError> {
    // One statement each would do; in one snapshot it is the same even if somebody still writes.
    let begin = "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY";
    client.batch_execute(begin).await.map_err(failed("begin to read the ledger's tables"))?;
    let rows = client.query("SELECT id, debit, credit, amount FROM ledger_journal", &[]).await;
    let rows = rows.map_err(failed("read the journal"))?;
    let journal = rows.iter().map(|row| Transfer {
        id: row.get(0),
        debit: row.get::<_, i32>(1) as u32,
        credit: row.get::<_, i32>(2) as u32,
        amount: row.get(3),
    });
    let journal = journal.collect();
    let rows = client.query("SELECT id, balance FROM ledger_account", &[]).await;
    let rows = rows.map_err(failed("read the accounts"))?;
    let balances = rows.iter().map(|row| (row.get::<_, i32>(0) as u32, row.get(1))).collect();
    Ok(Contents { journal, balances })
}

/// Runs SQL statements on a connection of their own.
///
/// # Errors
/// What the server says.
pub fn execute(netns: Option<&str>, server: SocketAddr, statements: &str) -> Result<(), LabError> {
    let patience = LedgerOptions::default().patience;
    let server = Server { netns: netns.map(str::to_owned), address: server, patience };
    runtime()?.block_on(async {
        let client = server.connect().await?;
        client.batch_execute(statements).await.map_err(failed("execute SQL"))
    })
}

/// Waits until a PostgreSQL answers a query from inside a namespace. `false` when the deadline passes.
///
/// # Errors
/// No such namespace.
pub fn await_answer(netns: &str, server: SocketAddr, deadline: Instant) -> Result<bool, LabError> {
    let attempt = Duration::from_millis(500);
    let server = Server { netns: Some(netns.to_owned()), address: server, patience: attempt };
    let runtime = runtime()?;
    loop {
        let begin = Instant::now();
        let answered = runtime.block_on(async {
            match server.connect().await {
                Ok(client) => timeout(attempt, client.batch_execute("SELECT 1")).await.is_ok_and(|r| r.is_ok()),
                Err(_) => false,
            }
        });
        if answered {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        // A refusal comes at once (it is not up yet, or is recovering); silence has taken its time already.
        std::thread::sleep(Duration::from_millis(20).saturating_sub(begin.elapsed()));
    }
}

fn runtime() -> Result<Runtime, LabError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    built.map_err(io_at("start a runtime for the database's client"))
}
