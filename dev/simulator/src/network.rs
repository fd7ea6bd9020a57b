//! Connections between hosts: each is two ordered streams, which end. What is sent into a cut arrives when that is healed.

use std::collections::VecDeque;

use ninefold_core::effect::Word;
use ninefold_model::Term;
use ninefold_replica::stream::Hello;

use crate::guest::{Checkpoint, Writes};

/// What goes over a connection.
#[derive(Debug, Clone)]
pub enum Msg {
    Hello(Box<Hello>),
    /// A round of the initial copy of memory: pages.
    Round(Writes),
    /// Blocks of the primary's images as they are.
    Volumes(Writes),
    /// With the pages that this backup does not have, and `rest`, if it is the session's first.
    Checkpoint {
        checkpoint: Box<Checkpoint>,
        term: Term,
        pages: Writes,
        rest: Option<Rest>,
    },
    /// The primary's heartbeat, with its time.
    Beat(u64),
    Bound(Term),
    Relinquish(String),
    Bye,
    /// What a backup says, and the primary's time that its heartbeat names.
    Word(Word),
    /// The other side has closed it.
    End,
}

/// What comes with a session's first checkpoint for the volumes.
#[derive(Debug, Clone, Default)]
pub struct Rest {
    /// Blocks of the images as they are.
    pub left: Writes,
    /// All that is held at the primary, in order.
    pub held: Writes,
}

/// A connection. Its side 0 has opened it.
#[derive(Debug)]
pub struct Connection {
    pub hosts: [usize; 2],
    /// The keepers' incarnations.
    pub keepers: [u64; 2],
    /// When the newest message to this side arrives.
    pub last_arrival: [u64; 2],
    /// When this side has last read something, by its CLOCK_BOOTTIME.
    pub last_read: [u64; 2],
    /// Has come and is not read.
    pub unread: [u32; 2],
    /// This side sends nothing more, and reads nothing.
    pub closed: [bool; 2],
    /// To this side, and held up by a cut.
    pub held: [VecDeque<Msg>; 2],
}
