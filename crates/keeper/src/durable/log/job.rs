//! What the log's thread is given.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use ninefold_model::{Epoch, Term};
use ninefold_replica::stream::Reign;
use ninefold_replica::stream::{CheckpointAssembler, Hello, PageRun};
use ninefold_replica::target::Target;
use ninefold_volume::Batch;

use crate::backup::acknowledge::Acknowledger;
use crate::devices::disks::Disks;
use crate::devices::guest_io::HEALTH;
use crate::primary::capture::{Join, Taken};
use crate::primary::target::{NotTaken, Piece, ReplicationTarget};
use crate::runtime::side_channel::Wake;

/// Channels of a checkpoint but for the guest's health.
const CHANNELS: u8 = HEALTH;

/// What the thread is given.
#[derive(Debug)]
pub enum Job {
    /// A round of the copy of a VM that runs here.
    Round { pieces: Receiver<Piece> },
    /// A checkpoint of a VM that runs here, with what is needed beside it when it is the log's first.
    Checkpoint { taken: Arc<Taken>, join: Option<Box<Join>> },
    /// It has been told something beside its queue.
    Woken,
    /// A backup's session begins. Whatever comes from an earlier one is ignored from here on.
    Session(Box<Opening>),
    /// Pages of a backup's initial copy.
    Copy { session: Term, block: u16, first: u64, bytes: Vec<u8> },
    /// What was copied so far is to be durable soon.
    Settle(Term),
    /// A checkpoint that a backup has received.
    Received(Box<Received>),
    /// Say when all before this is done: which checkpoint the log ends with.
    Drain(SyncSender<Option<(Term, Epoch)>>),
}

impl Wake for Job {
    const WAKE: Self = Self::Woken;

    fn wakes(&self) -> bool {
        matches!(self, Self::Woken)
    }
}

/// This host's log of a non-volatile VM, for the VM's thread.
#[derive(Debug)]
pub struct LogTarget(pub SyncSender<Job>);

impl ReplicationTarget for LogTarget {
    fn name(&self) -> Target {
        Target::Log
    }

    fn round(&self, _: Epoch, pieces: Receiver<Piece>) -> Result<(), NotTaken> {
        Ok(self.0.try_send(Job::Round { pieces })?)
    }

    fn checkpoint(&self, taken: Arc<Taken>, join: Option<Box<Join>>) -> Result<(), NotTaken> {
        Ok(self.0.try_send(Job::Checkpoint { taken, join })?)
    }
}

/// How a backup's session begins.
#[derive(Debug)]
pub struct Opening {
    pub hello: Hello,
    /// What is left of a former session, if anything is.
    pub left: Option<Left>,
    /// Whether the log is gone on with. Otherwise another has begun, to which all of memory has to come.
    pub reply: SyncSender<bool>,
    /// Acknowledges what the log and the volumes have.
    pub acknowledger: Acknowledger,
}

/// With which checkpoint a log has to end, to be gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// The thread's own with the one that is in memory.
    Here { session: Term, epoch: Epoch },
    /// That of a former keeper with one of these: all that was written since the first of them is sent.
    OnDisk { reign: Reign, epochs: RangeInclusive<Epoch> },
}

/// A checkpoint as a backup has it before it is applied.
#[derive(Debug)]
pub struct Received {
    pub session: Term,
    pub epoch: Epoch,
    /// The term in which it was sent.
    pub term: Term,
    pub(super) runs: Vec<PageRun>,
    pub(super) bytes: Vec<u8>,
    pub(super) zeros: Vec<PageRun>,
    pub(super) state: Vec<u8>,
    pub(super) output: Vec<Vec<u8>>,
    /// If it has changed.
    pub(super) health: Vec<u8>,
    pub(super) volumes: Vec<Batch>,
}

impl Received {
    /// The operations on each volume.
    pub fn volumes(&self) -> &[Batch] {
        &self.volumes
    }

    /// Copies what an assembler holds, before it is put into memory.
    ///
    /// # Errors
    /// Operations on volumes that make no sense.
    pub fn of(session: Term, assembler: &mut CheckpointAssembler, disks: &Disks) -> Result<Option<Self>, String> {
        let volumes = disks.parse(|volume| assembler.take_volume_writes(volume))?;
        let (Some(pending), Some(checkpoint)) = (assembler.pending(), assembler.checkpoint()) else {
            return Ok(None);
        };
        Ok(Some(Self {
            session,
            epoch: checkpoint.epoch,
            term: checkpoint.term,
            runs: pending.pages().collect(),
            bytes: pending.content().to_vec(),
            zeros: pending.zeros().collect(),
            state: checkpoint.device_state.to_vec(),
            output: (0..CHANNELS).map(|channel| checkpoint.output(channel).to_vec()).collect(),
            health: checkpoint.output(HEALTH).to_vec(),
            volumes,
        }))
    }
}
