//! What happens, as the core is told of it. All of it is data: what a thread waits for, a socket or a QEMU stays with whoever drives the
//! core, under the number or name that the event gives it.

use std::fmt;
use std::time::Duration;

use ninefold_control::{Mixture, Refusal, Request};
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::difference::Difference;
use ninefold_model::event::{EventKind, SnapshotFigures};
use ninefold_model::health::{DumpProgress, Failure, Freeze, Health};
use ninefold_model::spec::{Boot, VmSpec};
use ninefold_model::status::{MachineStatus, PauseSummary, SnapshotProgress, SyncProgress};
use ninefold_model::{Epoch, GuestState, HostName, Label, Record, Term, Tombstone, VmId, VolumeName};
use ninefold_replica::continuation::{Base, History};
use ninefold_replica::protocol::{self, Outcome, ProposalId};
use ninefold_replica::stream::{Hello, Layout};
use ninefold_replica::target::Target;

use crate::disk_watch::Look;
use crate::time::{Boottime, Monotonic};

/// Who asked for something over the control socket, and waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A thread that stands still until the core lets it go on. If the step that it came with does not, it will not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// A session that a primary offers. If the step that it came with neither accepts nor refuses it, it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfferId(pub u64);

/// A QEMU that waits with a checkpoint loaded, and where that has come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The primary of this session.
    Session(Term),
    /// This host's log, found by the attempt of this number.
    Log(u64),
    /// The job of this number: a snapshot, or a log that a person goes back in.
    Job(u64),
}

/// Something happens.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time goes on: at least every [`TICK`](crate::TICK).
    Tick(Observed),
    /// Somebody asks over the control socket; `seen` is what the keeper has looked at for that.
    Request {
        id: RequestId,
        request: Request,
        /// By which the client knows the operation that this begins.
        token: Option<String>,
        seen: Seen,
    },
    /// SIGTERM: hand the VM over if possible, and end.
    Quit,
    /// The keeper ends.
    End,

    // From the witness's client.
    WitnessAnswer {
        id: ProposalId,
        outcome: Outcome,
    },
    /// What the witness was read to hold.
    WitnessHolds(Option<Record>),
    /// The witness does not even let the record be read.
    WitnessRefuses {
        reason: String,
    },
    /// The witness's record, for a VM that is to start.
    StartFrom {
        found: Option<Record>,
        force: bool,
        behind: Option<Behind>,
    },
    /// The witness's record is not to be had for a VM that is to start.
    NotAsked(NotAsked),
    /// The witness has said of the VM, to whatever it was asked, that it was retired.
    WitnessRetired(Tombstone),
    /// The witness's record, for a VM that is to be retired.
    RetireFrom {
        found: Option<Record>,
        force: bool,
    },
    /// The VM was not retired, or not as far as is known here.
    RetireFailed(Refusal),
    /// What the VM is called, by the witness.
    Labelled(Label),
    /// This host calls the VM so now; or why it cannot.
    Named {
        label: Label,
        failure: Option<String>,
    },
    /// The VM was not renamed, or not as far as is known here.
    RenameFailed(Refusal),
    /// The witness can be reached again, or why not.
    Witness {
        error: Option<String>,
    },

    // From the thread of the VM of this generation.
    /// QEMU is there, its guest not yet running: serve its sockets, then let the thread go on.
    VmStarted {
        generation: u64,
        status: MachineStatus,
        layout: Layout,
        up: WaiterId,
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
    /// QEMU lives and has not answered this step for so long.
    Stuck {
        generation: u64,
        step: String,
        waited: Duration,
    },
    /// The guest has stopped patting its watchdog, or has panicked. It stands still.
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
    /// The first checkpoint for this target is about to be taken: hold all output, then let the thread go on.
    FirstCheckpoint {
        generation: u64,
        target: Target,
        epoch: Epoch,
        held: WaiterId,
    },
    /// The final checkpoint of a switchover was taken; the guest is paused.
    FinalTaken {
        generation: u64,
        epoch: Epoch,
    },
    /// The VM cannot be copied to this target any more.
    CannotReplicate {
        generation: u64,
        target: Target,
        reason: String,
    },
    /// It is not remembered what was written since the checkpoint that this target holds.
    BaseForgotten {
        generation: u64,
        target: Target,
    },
    /// The volumes are copied but for what the guest has written lately. `rounds` sync rounds were sent.
    VolumesSynced {
        session: Term,
        rounds: u32,
        bytes: u64,
    },
    /// The committed image is on record, or why it is not.
    ImageKept {
        /// The trial that has committed it.
        trial: u64,
        image: Boot,
        before: Option<Boot>,
        reason: String,
        failure: Option<String>,
    },
    /// This image is on record as the committed one by now; none: that of the configuration.
    ImageOnRecord(Option<Boot>),
    /// The console has said this text.
    ConsoleShows {
        text: String,
    },

    // About connections.
    /// A host that could be the backup is connected.
    PeerConnected {
        peer: HostName,
    },
    /// No host that could be the backup answers.
    NoPeer {
        reason: String,
    },
    /// A primary opens a session here.
    Offer {
        offer: OfferId,
        hello: Box<Hello>,
    },
    RefusedPeer {
        peer: String,
        reason: String,
    },

    // From a primary's session.
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
    /// The backup has loaded the first checkpoint once: what is left before it acknowledges that is its disks'.
    SessionTried {
        session: Term,
    },
    /// With when the last byte of that checkpoint was sent.
    Acked {
        session: Term,
        epoch: Epoch,
        sent: Option<Boottime>,
    },
    /// A checkpoint has been sent, and what was measured of it; the guest ran again at `resumed`.
    Sent {
        session: Term,
        epoch: Epoch,
        resumed: Monotonic,
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
        echo: Option<Boottime>,
    },

    // From the thread of the log of this number.
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
    /// The log of a VM that has ended is removed, so that nothing could be gone on from any more; or it cannot be.
    LogRemoved {
        id: u64,
        removed: bool,
    },
    /// What came of the attempt of this number to go on from the log.
    Recovery {
        id: u64,
        news: RecoveryNews,
    },
    /// What came of the job of this number: taking a snapshot, starting from one, going back in the log.
    Job {
        id: u64,
        news: JobNews,
    },
    /// Freezing or thawing the guest's file systems has come to an end; `unsure`: why they may be frozen still.
    FreezeEnds {
        generation: u64,
        unsure: Option<String>,
    },

    // From the receiver of a backup's session.
    /// The backup's QEMU is there, and what it holds already.
    StandbyReady {
        session: Term,
        status: MachineStatus,
        base: Option<Base>,
    },
    /// Where this host's volume differs from the primary's, from block `first` on.
    Differs {
        session: Term,
        volume: u16,
        first: u64,
        bits: Vec<u8>,
    },
    /// The session's first checkpoint was loaded once: it can be.
    Tried {
        session: Term,
    },
    /// A checkpoint is held; `first` of its session.
    Held {
        session: Term,
        epoch: Epoch,
        first: bool,
    },
    /// A checkpoint, and what follows it, cannot be acknowledged: its disk fails, or does not answer. It is whole all the same, and can be
    /// gone on from.
    CannotAcknowledge {
        session: Term,
        reason: String,
    },
    BoundTo {
        session: Term,
        term: Term,
    },
    /// The primary has said that this host may take over. It was last heard so long ago.
    Relinquished {
        session: Term,
        reason: String,
        silence: Duration,
    },
    /// The stream has ended; nothing more comes. The primary was last heard so long ago.
    PrimaryGone {
        session: Term,
        reason: String,
        silence: Duration,
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

    // Answers to effects: they come before any other event.
    /// To [`GuestIoOrder::Hold`](crate::effect::GuestIoOrder::Hold): this host was seen not to stand still at that time.
    Looked(Boottime),
    /// To [`GuestIoOrder::Release`](crate::effect::GuestIoOrder::Release).
    Released {
        /// Something was not let go, and waits.
        kept: bool,
        /// The announcement that was due has been sent.
        announced: bool,
        looked: Boottime,
    },
    /// To [`GuestIoOrder::Open`](crate::effect::GuestIoOrder::Open) and `TryOpen`: whether output leaves at once now. Otherwise something has to
    /// be on this host's disks first.
    Gate {
        open: bool,
        looked: Boottime,
    },
    /// To [`VmOrder::Start`](crate::effect::VmOrder::Start): the guest runs, or stands still as it should.
    GuestStarted {
        layout: Layout,
        status: MachineStatus,
    },
    /// To the same: its QEMU is gone.
    GuestNotStarted {
        reason: String,
    },
    /// To [`JobOrder::Take`](crate::effect::JobOrder::Take).
    SnapshotBegun {
        id: u64,
        request: RequestId,
        outcome: Result<(), Refusal>,
    },
}

/// Why there is no record of the witness's for a VM that is to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAsked {
    /// The witness does not answer, for this reason.
    Silent(String),
    /// It answers that it does not let this host read the record, for this reason.
    Refuses(String),
    /// This host has had to ask it for something else.
    Superseded,
}

impl fmt::Display for NotAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(reason) => f.write_str(reason),
            Self::Refuses(reason) => write!(f, "the witness refuses: {reason}"),
            Self::Superseded => f.write_str("this host has had to ask the witness for something else"),
        }
    }
}

/// A volume whose image may be behind what clients were told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    pub volume: VolumeName,
    /// Since when, in words, where that is known.
    pub since: Option<String>,
}

/// What the keeper has looked at for a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// For `Status`: the pauses of the last checkpoints.
    pub pauses: Option<PauseSummary>,
    /// For `Start` and `Restore`: by what the volumes have become a mixture, if they have.
    pub mixture: Option<Mixture>,
    /// For the same: the snapshot whose restore was cut off.
    pub unfinished: Option<String>,
    /// For `Rename`: the other VM that has the name on this host.
    pub taken: Option<VmId>,
    /// For `Trial`: why the image cannot be tried here.
    pub unusable: Option<String>,
}

/// What the keeper sees at a tick.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Whether the uplink has a carrier. True if none is watched, or it cannot be told.
    pub uplink: bool,
    /// For how long each session's backup has said nothing.
    pub silences: Vec<(Term, Duration)>,
    /// For how long the primary of the session in which this host is the backup has said nothing.
    pub primary_silence: Option<(Term, Duration)>,
    /// The time in the newest heartbeat of that primary's that had been read *before* its silence was looked at, microseconds of its clock; 0 if
    /// none had been. So what this host says of it is older than any silence in which it begins to claim.
    pub primary_echo: u64,
    /// Where the threads of logs are, by their number: another figure whenever one has got on; none while it is not at work.
    pub logs: Vec<(u64, Option<u64>)>,
    /// The VM's volumes, in order.
    pub volumes: Vec<VolumeSeen>,
    /// Bytes of the guest's writes that are held in memory, of all volumes together.
    pub held: usize,
    /// They are so many that its writes wait.
    pub full: bool,
    pub frames: Frames,
    /// NICs, by number, whose Ethernet address another station has been heard to use.
    pub twins: Vec<usize>,
}

/// A volume as it is seen at a tick.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeSeen {
    pub look: Look,
    /// Bytes of it that are held in memory.
    pub held: usize,
}

/// What the gate has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Frames {
    pub out: u64,
    pub incoming: u64,
    pub held: u64,
    pub dropped: u64,
    pub stale: u64,
}

/// A QEMU that waits with a checkpoint loaded: what the core has to know of it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The VM as it was booted, with the files and devices of this host.
    pub spec: VmSpec,
    pub epoch: Epoch,
    /// The guest's health as of the checkpoint.
    pub health: Health,
    /// From the end of the stream until the devices were loaded.
    pub load_us: u64,
    /// Whatever is written since the checkpoint is tracked: this host's log ends with it, or other backups hold it, too.
    pub tracked: bool,
    /// Of the checkpoints that other backups hold, too.
    pub history: Option<History>,
    /// This host's log ends with the checkpoint.
    pub logged: bool,
}

/// What came of an attempt to go on from the log.
#[derive(Debug, Clone)]
pub enum RecoveryNews {
    /// There is no log.
    Nothing,
    /// There is one, and it is damaged or of another VM. Its files are as they were.
    Unusable(String),
    /// There is a good one.
    Found {
        standing: protocol::LogStanding,
        epoch: Epoch,
        /// That of the record under which its last checkpoint was taken, as its host knew it.
        term: Term,
    },
    /// Its last checkpoint is loaded into a QEMU that waits. The log can be gone on with.
    Loaded(Box<Loaded>),
    Failed(String),
}

/// What came of a job.
#[derive(Debug, Clone)]
pub enum JobNews {
    /// A snapshot is ready for the VM: what is sent there becomes the snapshot.
    Ready,
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

/// Why a log can go on no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFailure {
    /// The log says itself that it is behind, or there is none that could be believed. Otherwise it would be gone on from after a loss of
    /// power, with what was let go since missing: the witness has to invalidate it first.
    pub noted: bool,
    pub reason: String,
}

/// Of which the log knows nothing.
impl From<String> for LogFailure {
    fn from(reason: String) -> Self {
        Self { noted: false, reason }
    }
}
