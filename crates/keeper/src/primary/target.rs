//! One to whom a running VM is copied, as the VM's thread sees it: the backup of a session, this host's log, a snapshot.
//!
//! Each is first sent all of the memory in rounds, while the guest runs, and then checkpoints. What they make of that is theirs: a
//! session sends it, a log makes it durable, a snapshot becomes a file. The VM's thread must not wait for any of them, so each has a
//! queue of its own with a bound, and says when that is full.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, TrySendError};

use ninefold_machine::PageRun;
use ninefold_model::Epoch;
use ninefold_replica::stream;
use ninefold_replica::target::Target;
use ninefold_volume::PointInTime;

use crate::primary::capture::{Join, Taken};

/// See the [module](self). None of this waits.
pub trait ReplicationTarget: Debug + Send {
    /// Its name on this host.
    fn name(&self) -> Target;

    /// What else is asked of it if it wants one checkpoint alone.
    fn single(&self) -> Option<&dyn SingleCheckpoint> {
        None
    }

    /// A round of the copy begins; `pieces` ends with it.
    ///
    /// # Errors
    /// [`NotTaken`]; without room the round is offered again, when the target has rung the waker.
    fn round(&self, round: Epoch, pieces: Receiver<Piece>) -> Result<(), NotTaken>;

    /// A checkpoint; the first of a target has what it needs beside it.
    ///
    /// # Errors
    /// [`NotTaken`]. A queue has room for as many checkpoints as can be unacknowledged: the target is given up.
    fn checkpoint(&self, taken: Arc<Taken>, join: Option<Box<Join>>) -> Result<(), NotTaken>;
}

/// One that wants a single checkpoint, with the volumes as they are then. Output does not wait for it.
pub trait SingleCheckpoint {
    /// The volumes, to be frozen at the checkpoint.
    fn volumes(&self) -> &[Arc<PointInTime>];

    /// Nothing but the checkpoint is missing. It is taken as soon as `go` is set; the waker is to be rung then.
    ///
    /// # Errors
    /// [`NotTaken`].
    fn prepared(&self, go: Arc<AtomicBool>) -> Result<(), NotTaken>;
}

/// Why a target does not take what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// Its queue is full.
    NoRoom,
    /// Its thread has ended.
    Ended,
}

impl<T> From<TrySendError<T>> for NotTaken {
    fn from(error: TrySendError<T>) -> Self {
        match error {
            TrySendError::Full(_) => Self::NoRoom,
            TrySendError::Disconnected(_) => Self::Ended,
        }
    }
}

/// A piece of a round of the copy.
#[derive(Debug)]
pub struct Piece {
    pub runs: Vec<PageRun>,
    /// The contents of the runs, one behind the other.
    pub bytes: Vec<u8>,
}

/// Runs of pages in the stream's terms. What is in `to` is replaced.
pub fn translate(from: &[PageRun], to: &mut Vec<stream::PageRun>) {
    to.clear();
    to.extend(from.iter().map(|r| stream::PageRun { block: r.block, first: r.first, count: r.count }));
}
