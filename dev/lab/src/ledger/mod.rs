//! Clients that check everything that was acknowledged to them, over connections that have to last.
//!
//! A client writes down what it sends before it sends it, and what was acknowledged when it was. At the end, and wherever
//! an answer tells something, what the server holds must be what was acknowledged: nothing less, and nothing that was not
//! sent.
//!
//! * [`redis`]: writes on one TCP connection · [`sql`]: transactions on several
//! * [`pulse`]: when answers came

pub mod pulse;
pub mod redis;
pub mod sql;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use pulse::Pulse;
pub use redis::{Ledger, await_answer, resp};
pub use sql::{SqlBook, SqlLedger};

/// Most complaints kept in words.
const MAX_WORDS: usize = 20;

/// How a ledger works.
#[derive(Debug, Clone)]
pub struct LedgerOptions {
    /// Commands (of SQL: transactions, each on a connection of its own) on their way at once, at least 1.
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
    /// Writes (of SQL: transactions) that the server acknowledged.
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

/// What was wrong, in words: the first of it.
fn complain(complaints: &mut Vec<String>, words: String) {
    if complaints.len() < MAX_WORDS {
        complaints.push(words);
    }
}
