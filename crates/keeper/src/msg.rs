//! What the keeper's threads tell its core.

use std::sync::mpsc::{Sender, SyncSender};
use std::time::{Duration, Instant};

use ninefold_control::{Refusal, Reply, Request};
use ninefold_core::LogFailure;
use ninefold_core::event::{NotAsked, Seen};
use ninefold_machine::Ports;
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::difference::Difference;
use ninefold_model::event::{EventKind, SnapshotFigures};
use ninefold_model::health::{DumpProgress, Failure, Freeze};
use ninefold_model::spec::Boot;
use ninefold_model::status::{MachineStatus, SnapshotProgress, SyncProgress};
use ninefold_model::{Epoch, GuestState, Label, Record, Term, Tombstone};
use ninefold_replica::continuation::Base;
use ninefold_replica::protocol::{self, Outcome, ProposalId};
use ninefold_replica::stream::{Hello, Layout};
use ninefold_replica::target::Target;
use ninefold_snapshot::log::Log;
use ninefold_transport::clock::Moment;
use ninefold_transport::{Link, LinkHandle, LinkWriter};

use crate::backup::loaded::Loaded;
use crate::backup::offer::Answer;
use crate::primary::changed_blocks::ChangedBlocks;
use crate::primary::freeze::End;
use crate::primary::snapshot::job::SnapshotTarget;

/// A message to the core.
pub enum Msg {
    /// Somebody asks over the control socket; `seen` is what was looked at for that.
    Request {
        request: Request,
        token: Option<String>,
        seen: Seen,
        reply: Sender<Reply>,
    },
    /// SIGTERM: hand the VM over if possible, and end.
    Quit,

    // From the proposer.
    WitnessAnswer {
        id: ProposalId,
        outcome: Outcome,
    },
    /// What it was read to hold.
    WitnessHolds(Option<Record>),
    /// It does not even let the record be read.
    WitnessRefuses {
        reason: String,
    },
    /// The witness's record, for a VM that is to boot.
    StartFrom {
        found: Option<Record>,
        force: bool,
    },
    /// There is none to be had.
    NotAsked(NotAsked),
    /// The witness has said of the VM that it was retired.
    WitnessRetired(Tombstone),
    /// The witness's record, for a VM that is to be retired.
    RetireFrom {
        found: Option<Record>,
        force: bool,
    },
    RetireFailed(Refusal),
    /// What the VM is called, by the witness.
    Labelled(Label),
    /// It is called so here now, or why it cannot be.
    Named {
        label: Label,
        failure: Option<String>,
    },
    RenameFailed(Refusal),
    /// Reachable again, or why not.
    Witness {
        error: Option<String>,
    },

    // From the VM's thread.
    /// QEMU is there, its guest not yet running: serve its sockets, then say so.
    VmStarted {
        generation: u64,
        status: MachineStatus,
        layout: Layout,
        ports: Ports,
        up: SyncSender<()>,
    },
    VmRunning {
        generation: u64,
    },
    /// How the guest stands has changed; with the checkpoint that will say so, if one is to be taken.
    Stands {
        generation: u64,
        standing: GuestState,
        epoch: Option<Epoch>,
    },
    VmLost {
        generation: u64,
        reason: String,
    },
    /// The guest has powered off. If it has backups, its last checkpoint has been taken or is about to be told as the
    /// final one.
    VmShutdown {
        generation: u64,
    },
    /// The guest has stopped patting its watchdog, or has panicked. It stands still.
    /// QEMU lives and has not answered this step for so long.
    Stuck {
        generation: u64,
        step: String,
        waited: Duration,
    },
    GuestFailed {
        generation: u64,
        failure: Failure,
    },
    DumpProgress {
        generation: u64,
        progress: DumpProgress,
    },
    /// A memory dump has ended: `Dumped` or `DumpFailed`.
    Dumped {
        generation: u64,
        outcome: EventKind,
    },
    SyncProgress {
        target: Target,
        progress: SyncProgress,
    },
    /// The first checkpoint for it is being taken: hold all output, then say so.
    FirstCheckpoint {
        generation: u64,
        target: Target,
        epoch: Epoch,
        held: SyncSender<()>,
    },
    /// The final checkpoint of a switchover was taken; the guest is paused.
    FinalTaken {
        generation: u64,
        epoch: Epoch,
    },
    /// It cannot be copied to any more (the VM cannot be followed, memory cannot be read).
    CannotReplicate {
        generation: u64,
        target: Target,
        reason: String,
    },

    /// It is not remembered what was written since the checkpoint that it holds.
    BaseForgotten {
        generation: u64,
        target: Target,
    },

    /// The volumes are copied but for what the guest has written lately. `rounds` sync rounds were sent.
    VolumesSynced {
        session: Term,
        rounds: u32,
        bytes: u64,
        rest: ChangedBlocks,
    },

    /// The committed image is on record, or why it is not.
    ImageKept {
        trial: u64,
        image: Boot,
        before: Option<Boot>,
        reason: String,
        failure: Option<String>,
    },

    // About connections.
    /// A host that could be the backup is connected.
    PeerConnected {
        link: Link,
    },
    /// No host that could be the backup answers.
    NoPeer {
        reason: String,
    },
    /// A primary opened a session here.
    Offer {
        hello: Box<Hello>,
        writer: LinkWriter,
        handle: LinkHandle,
        go: SyncSender<Answer>,
    },
    RefusedPeer {
        peer: String,
        reason: String,
    },

    // From the primary's session.
    /// What the backup holds already of what the VM went on from; as it came. Comes before `SessionReady`.
    Base {
        session: Term,
        epoch: Epoch,
        changes: Vec<u8>,
    },
    /// In what the backup's file differs from the VM that runs. Comes before `SessionReady`.
    ConfiguredOtherwise {
        session: Term,
        differences: Vec<Difference>,
    },
    SessionReady {
        session: Term,
    },
    /// The backup has loaded the first checkpoint once.
    SessionTried {
        session: Term,
    },
    /// With when the last byte of that checkpoint was sent.
    Acked {
        session: Term,
        epoch: Epoch,
        sent: Option<Moment>,
    },
    /// A checkpoint has been sent, and what was measured of it; the guest ran again at `resumed`.
    Sent {
        session: Term,
        epoch: Epoch,
        resumed: Instant,
        record: CheckpointRecord,
    },
    SessionEnded {
        session: Term,
        reason: String,
    },
    /// A heartbeat: whether the backup's uplink works, and when the newest heartbeat of ours was sent that it had read.
    PeerBeat {
        session: Term,
        up: bool,
        echo: Option<Moment>,
    },

    // From the log's thread.
    /// This host's log has the epoch; `first`: it has become a log with it, and how long that took.
    LogHolds {
        id: u64,
        epoch: Epoch,
        first: Option<Duration>,
        commit_bytes: u64,
        bytes: u64,
        commit_us: u64,
    },
    /// A log that is made anew is there; what was in its place is gone.
    LogBegun {
        id: u64,
    },
    /// What was asked to be noted is, or cannot be: `LogFailed` says so then.
    Stood {
        id: u64,
        ticket: u64,
    },
    LogFailed {
        id: u64,
        failure: LogFailure,
    },
    /// The log of a VM that has ended is removed, or cannot be.
    LogRemoved {
        id: u64,
        removed: bool,
    },
    /// What came of an attempt to go on from the log.
    Recovery {
        id: u64,
        news: RecoveryEvent,
    },

    /// What became of a snapshot.
    Snapshot {
        id: u64,
        news: SnapshotEvent,
    },

    /// What became of the request to freeze the guest's file systems, or to thaw them.
    Frozen {
        generation: u64,
        end: End,
    },

    // From the backup's receiver.
    StandbyReady {
        session: Term,
        status: MachineStatus,
        /// What it holds already.
        base: Option<Base>,
    },
    /// Where this host's volume differs from the primary's, from block `first` on.
    Differs {
        session: Term,
        volume: u16,
        first: u64,
        bits: Vec<u8>,
    },
    /// The first checkpoint was loaded once: it can be.
    Tried {
        session: Term,
    },
    /// `first` of its session.
    Held {
        session: Term,
        epoch: Epoch,
        /// It is the session's first.
        first: bool,
    },
    /// A checkpoint, and what follows it, cannot be acknowledged: what that means does not come true. It is whole all the same.
    CannotAcknowledge {
        session: Term,
        reason: String,
    },
    BoundTo {
        session: Term,
        term: Term,
    },
    Relinquished {
        session: Term,
        reason: String,
    },
    /// The stream has ended; nothing more comes.
    PrimaryGone {
        session: Term,
        reason: String,
    },
    /// The last checkpoint is in memory, whole, and waits for the witness's word.
    StandbyWaits {
        session: Term,
    },
    /// The last checkpoint is in memory and its devices are loaded.
    Loaded {
        session: Term,
        loaded: Box<Loaded>,
    },
    LoadFailed {
        session: Term,
        reason: String,
    },
}

/// What comes of an attempt to go on from this host's log.
#[derive(Debug)]
pub enum RecoveryEvent {
    /// There is no log.
    Nothing,
    /// There is one, and it is damaged or of another VM. Its files are as they were.
    Unusable(String),
    /// There is a good one.
    Found {
        standing: protocol::LogStanding,
        epoch: Epoch,
        /// That of its last commit.
        term: Term,
    },
    /// Its last checkpoint is loaded into a QEMU that waits.
    Loaded {
        loaded: Box<Loaded>,
        log: Box<Log>,
        health: Vec<u8>,
    },
    Failed(String),
}

/// What comes of a snapshot that is taken or loaded, and of a log that a person goes back in.
#[derive(Debug)]
pub enum SnapshotEvent {
    /// Ready for the VM.
    Ready(SnapshotTarget),
    Progress(SnapshotProgress),
    /// With how the guest's file systems are in it, if they were to be frozen.
    Taken(SnapshotFigures, Option<Freeze>),
    /// It could not be taken.
    Failed(String),
    /// A QEMU is loaded with it.
    Loaded(Box<Loaded>),
    /// The VM cannot be started from it.
    NotLoaded(String),
}
