//! What the thread is given that sends to a backup.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use ninefold_model::{Epoch, Term};
use ninefold_replica::target::Target;

use crate::primary::capture::{Join, Taken};
use crate::primary::target::{NotTaken, Piece, ReplicationTarget};
use crate::runtime::side_channel::Wake;

/// What the sender is given.
#[derive(Debug)]
pub enum Job {
    Round {
        round: Epoch,
        pieces: Receiver<Piece>,
    },
    /// Which of these blocks does the backup have otherwise?
    Sums {
        volume: u16,
        first: u64,
        sums: Vec<u8>,
    },
    /// A round of the volumes' copy: operations on volumes, whole ones.
    Volumes {
        round: Epoch,
        pieces: Receiver<(u16, Vec<u8>)>,
    },
    /// With what is needed beside it when it is the session's first.
    Checkpoint {
        taken: Arc<Taken>,
        join: Option<Box<Join>>,
    },
    /// It has been told something beside its queue.
    Woken,
}

impl Wake for Job {
    const WAKE: Self = Self::Woken;

    fn wakes(&self) -> bool {
        matches!(self, Self::Woken)
    }
}

/// The backup of a session, for the VM's thread.
#[derive(Debug)]
pub struct SessionTarget {
    /// The term that names the session.
    pub session: Term,
    pub jobs: SyncSender<Job>,
}

impl ReplicationTarget for SessionTarget {
    fn name(&self) -> Target {
        Target::Session(self.session)
    }

    fn round(&self, round: Epoch, pieces: Receiver<Piece>) -> Result<(), NotTaken> {
        Ok(self.jobs.try_send(Job::Round { round, pieces })?)
    }

    fn checkpoint(&self, taken: Arc<Taken>, join: Option<Box<Join>>) -> Result<(), NotTaken> {
        Ok(self.jobs.try_send(Job::Checkpoint { taken, join })?)
    }
}

/// Questions that may be unanswered.
pub const QUESTIONS: usize = 3;

/// A backup's answer to checksums: where its own differ, a bit for each block.
#[derive(Debug)]
pub struct Answer {
    pub volume: u16,
    pub first: u64,
    pub bits: Vec<u8>,
}
