//! What the thread that writes a snapshot is given.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender};

use ninefold_model::Epoch;
use ninefold_replica::target::Target;
use ninefold_volume::PointInTime;

use crate::primary::capture::{Join, Taken};
use crate::primary::target::{NotTaken, Piece, ReplicationTarget, SingleCheckpoint};

/// What the thread that writes a snapshot is given.
#[derive(Debug)]
pub enum Job {
    /// A round of the copy, where memory cannot be held as it is at one moment.
    Round {
        pieces: Receiver<Piece>,
    },
    /// All but the checkpoint is there: that is taken as soon as `go` is set. The waker is to be rung then.
    Prepared {
        go: Arc<AtomicBool>,
    },
    Checkpoint {
        taken: Arc<Taken>,
        join: Box<Join>,
    },
}

/// The snapshot that is being taken, for the VM's thread.
#[derive(Debug)]
pub struct SnapshotTarget {
    pub jobs: SyncSender<Job>,
    pub frozen: Vec<Arc<PointInTime>>,
}

impl ReplicationTarget for SnapshotTarget {
    fn name(&self) -> Target {
        Target::Snapshot
    }

    fn single(&self) -> Option<&dyn SingleCheckpoint> {
        Some(self)
    }

    fn round(&self, _: Epoch, pieces: Receiver<Piece>) -> Result<(), NotTaken> {
        Ok(self.jobs.try_send(Job::Round { pieces })?)
    }

    fn checkpoint(&self, taken: Arc<Taken>, join: Option<Box<Join>>) -> Result<(), NotTaken> {
        // It has one checkpoint, its first.
        let join = join.ok_or(NotTaken::Ended)?;
        Ok(self.jobs.try_send(Job::Checkpoint { taken, join })?)
    }
}

impl SingleCheckpoint for SnapshotTarget {
    fn volumes(&self) -> &[Arc<PointInTime>] {
        &self.frozen
    }

    fn prepared(&self, go: Arc<AtomicBool>) -> Result<(), NotTaken> {
        // There is room: the thread takes a round before it is sent the next.
        Ok(self.jobs.try_send(Job::Prepared { go })?)
    }
}
