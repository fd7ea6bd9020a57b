//! A session that a primary offers, and what the core says to it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, SyncSender};

use ninefold_transport::LinkWriter;

use crate::durable::log::job::Job;

/// What becomes of a standby whose primary is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandbyUse {
    /// This host has the VM. If it cannot go on with it, `others` can.
    Load { others: bool },
    /// Another backup has it.
    Park,
}

/// What the core says to a session that is offered.
pub enum Answer {
    Accepted(Accepted),
    /// Its writer comes back: the primary is told so.
    Refused {
        writer: LinkWriter,
        reason: String,
    },
}

/// What a session gets that is accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The thread of this host's log, for a non-volatile VM.
    pub log: Option<SyncSender<Job>>,
    /// Closed without a word when the standby is of no use any more.
    pub verdict: Receiver<StandbyUse>,
    /// The time in the newest heartbeat of the primary's.
    pub echo: Arc<AtomicU64>,
}
