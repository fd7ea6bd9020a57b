//! What the core wants done, as data. Whoever drives it does it in the order in which it comes, and before the next event.
//!
//! That order is what safety rests on:
//!
//! * output is muted and what was done to the volumes discarded before anything else of a VM is taken down;
//! * output and volumes are held before the thread is let go on that takes the first checkpoint for a target;
//! * what is proposed to the witness is noted in the log before: the note's answer ([`Event::Stood`](crate::event::Event::Stood)) comes first;
//! * what is written to the volumes is remembered for an absent backup before anything more reaches them;
//! * an event that people act on is published when it is so: that a VM has stopped, after its log is removed.
//!
//! Some effects have an answer ([`Event`](crate::event::Event) says which). Answers are given to the core before anything else, in the order
//! of their effects, after the other effects of the step.

use std::time::Duration;

use ninefold_control::{Operation, Reply};
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::EventKind;
use ninefold_model::health::{Failure, Health, WatchdogAction};
use ninefold_model::spec::{Boot, EpochPolicy};
use ninefold_model::status::{Counters, LogStatus, ProtectionState, Role};
use ninefold_model::{Epoch, GuestState, HostName, Label, Record, SnapshotName, Term, VmName, VolumeName};
use ninefold_replica::protocol::{self, ProposalId};
use ninefold_replica::stream::{Hello, PageRun};
use ninefold_replica::target::{Basis, Target};

use crate::event::{OfferId, RequestId, Source, WaiterId};
use crate::time::Boottime;

/// Something is to be done.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Puts an event into the journal.
    Publish(EventKind),
    /// Counts or shows something.
    Measure(Metric),
    /// Answers a request.
    Reply {
        to: RequestId,
        reply: Reply,
    },
    /// An operation has begun, has got on or has ended: this is how it is.
    Operation(Operation),
    /// Answers a request with what this host's log would be gone back to; `held` is what the witness holds, or why that is not known.
    ReportLog {
        to: RequestId,
        held: Result<Option<Record>, String>,
    },
    /// This host calls the VM so.
    Name(Label),
    /// Lets a thread go on.
    LetGo(WaiterId),
    /// Asks the witness.
    Ask(WitnessRequest),
    /// Looks for a backup.
    Find(BackupSearch),
    /// Closes the connection of a host that could have been the backup.
    ForgetPeer,
    /// Begins the offered session. With `log`, it begins only if the log of this number is kept.
    AcceptOffer {
        offer: OfferId,
        session: Term,
        log: Option<u64>,
    },
    RefuseOffer {
        offer: OfferId,
        reason: String,
    },
    GuestIo(GuestIoOrder),
    Disks(DisksOrder),
    Parking(ParkingOrder),
    Guest(GuestOrder),
    Vm(VmOrder),
    /// About a primary's session.
    Session {
        session: Term,
        order: SessionOrder,
    },
    /// About the session in which this host is the backup.
    Primary {
        session: Term,
        order: PrimaryOrder,
    },
    /// About the log of this number.
    Log {
        id: u64,
        order: LogOrder,
    },
    /// About the attempt of this number to go on from the log.
    Recovery {
        id: u64,
        order: RecoveryOrder,
    },
    /// About the job of this number.
    Job {
        id: u64,
        order: JobOrder,
    },
}

/// A question to the witness. A newer one replaces an unanswered older one; who waits for that is told so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WitnessRequest {
    Propose {
        id: ProposalId,
        expected: Option<Record>,
        new: Record,
        /// It has been answered, by what proves nothing: not at once.
        again: bool,
    },
    /// Read the record and answer the request that waits for it.
    Start { force: bool },
    /// Read the record, for a VM that is to be retired.
    Retire { force: bool },
    /// Retire the VM if the record is still this one. `forced`: another host is its primary.
    Bury { expected: Record, forced: bool },
    /// Call the VM so, unless something else is asked.
    Rename { name: VmName },
    /// Read the record now, if nothing else is asked.
    Look,
    /// What was proposed is not wanted any more. A proposal on its way may win all the same.
    Cancel,
}

/// The backup that is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupSearch {
    /// Any host but these.
    pub but: Vec<HostName>,
    /// Those that were there a moment ago, and need little: they are asked before all others.
    pub first: Vec<HostName>,
    /// The one that is asked when no other answers: it is probably dead, and to find that out takes its time.
    pub last: Option<HostName>,
}

/// For the metrics.
#[derive(Debug, Clone)]
pub enum Metric {
    Role {
        role: Role,
        protection: Option<ProtectionState>,
        term: Term,
    },
    /// The core was late by so much.
    Waited(Duration),
    /// A checkpoint that all backups hold; for the history of checkpoints, too.
    Checkpoint(CheckpointRecord),
    /// The log has taken so many bytes within so many microseconds.
    Logged {
        bytes: u64,
        us: u64,
    },
    Log(LogStatus),
    LogLost,
    GuestState(Option<GuestState>),
    Volume {
        name: VolumeName,
        held: usize,
        failed: bool,
        stalled: Duration,
    },
    WritesWait(bool),
    GuestFailed(Failure, WatchdogAction),
    Trial(TrialOutcome),
    /// A failover took so long.
    Failover(Duration),
    Counters {
        counters: Counters,
        committed: Epoch,
    },
}

/// How a trial of an image ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrialOutcome {
    Committed,
    FellBack,
}

/// About what the VM says, and hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestIoOrder {
    /// From now on output waits for its epoch. Answered with `Looked`. `awake`: when this host was last seen not to stand still.
    Hold { awake: Boottime },
    /// Lets the epochs up to this one go, as long as this host has not stood still since `awake` and `oldest`, when the oldest thing was
    /// sent that a backup is known to have had, is not too long ago ([`still_ours`](crate::still_ours)); then makes the announcement that is
    /// due. Answered with `Released`.
    Release { epoch: Epoch, awake: Boottime, oldest: Option<Boottime>, announce: bool },
    /// From now on output leaves at once, what was held first. Unless there is a log (`by_log`), which has its own order, all that the
    /// volumes owe is on the disk before: meanwhile output is held. Answered with `Gate`.
    Open { by_log: bool, awake: Boottime },
    /// The same, if what was owed then is on the disk by now.
    TryOpen { awake: Boottime },
    /// What `Open` has begun is not wanted any more: output waits for its epoch.
    StayShut,
    /// From now on nothing leaves; what was held is dropped.
    Mute,
    /// Serves the sockets of a QEMU: of the VM that has just started, or of a loaded one.
    Attach(Option<Source>),
    /// Closes QEMU's sockets.
    Detach,
    /// Tells the network where the VM is.
    Announce,
    /// Forgets the console's history.
    ForgetConsole,
    /// Forgets the guest's addresses.
    ForgetAddresses,
}

/// About the VM's volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DisksOrder {
    /// A VM runs here, or is about to: who fills unused volumes is to write no more.
    Used,
    /// From now on what the guest does waits for its epoch.
    Hold,
    /// All epochs up to this one may reach the images.
    Commit(Epoch),
    /// The VM runs here, alone: what it does reaches the images.
    GoThrough,
    /// The VM is not here any more: what was not committed is dropped.
    Discard,
    /// The VM has ended for good.
    Over,
    /// Remembers from now on what reaches the images, for a backup that may come with what it holds.
    Remember(Basis),
    Forget(Basis),
}

/// About standbys that wait for a session that suits them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParkingOrder {
    /// This session is accepted: older ones that have not begun will not.
    Announce(Term),
    /// Ends what is parked.
    Clear,
    /// Ends what has waited for too long.
    Expire,
}

/// About the guest's health, and its file systems.
#[derive(Debug, Clone)]
pub enum GuestOrder {
    /// What checkpoints say of its health from now on.
    Tell(Health),
    /// Whether its file systems are frozen, or may be.
    Frozen(bool),
    /// Has its file systems thawed. Ends with `FreezeEnds`.
    Thaw { generation: u64 },
    /// Answered with `ConsoleShows` if the console has said this text.
    Search { text: String },
    /// Puts the committed image on record; none: that of the configuration. Ends with `ImageKept`, which repeats the rest.
    KeepImage { trial: u64, record: Option<Boot>, image: Boot, before: Option<Boot>, reason: String },
}

/// About the QEMU that runs the VM, and the thread that owns it.
#[derive(Debug, Clone)]
pub enum VmOrder {
    /// Launches a QEMU from this image, once its former one is gone, and what is parked has let go of the volumes. Its checkpoints
    /// follow on `taken`.
    Boot {
        generation: u64,
        image: Boot,
        policy: EpochPolicy,
        taken: Epoch,
    },
    /// Has the guest of a loaded QEMU run, or (without `run`) finds out what it is. Answered with `GuestStarted` or `GuestNotStarted`.
    Start {
        source: Source,
        run: bool,
    },
    /// Gives a loaded QEMU to its thread. If it is tracked, the `log` of that number gets all checkpoints from the first on, and for
    /// `former_backups` it is remembered what is written.
    Run {
        generation: u64,
        source: Source,
        policy: EpochPolicy,
        standing: GuestState,
        log: Option<u64>,
        former_backups: bool,
        taken: Epoch,
    },
    /// Has QEMU killed. With `relaunch` the next boot waits until it is gone.
    End {
        relaunch: bool,
    },
    /// Copy the VM to the backup of this session, after so many rounds of the volumes, then give it every checkpoint.
    AddSession {
        session: Term,
        rounds: u32,
        held: Option<Held>,
    },
    /// The same with the log of this number.
    AddLog {
        id: u64,
    },
    /// Copy the VM to the snapshot that this job takes: with one checkpoint.
    AddSnapshot {
        job: u64,
    },
    /// It is not copied to any more. If it may come back, what it is missing is remembered.
    RemoveTarget {
        target: Target,
        comes_back: bool,
    },
    /// The backup of this session does not come back.
    ForgetLeft(Term),
    /// Nobody comes any more who holds what the VM was resumed from.
    ForgetSurvivors,
    /// Take a last checkpoint and leave the guest paused.
    TakeFinal,
    /// Go on after a switchover that failed.
    GoOn,
    /// This target holds all epochs up to this one.
    Acked {
        target: Target,
        epoch: Epoch,
    },
    Policy(EpochPolicy),
    /// Press the reset button, and let the guest run.
    Reset,
    /// Write the guest's memory to a file; keep so many of those.
    Dump {
        keep: u32,
    },
    /// Its owner pauses the guest, or lets it go on.
    Pause(bool),
    /// Its owner wakes the guest.
    Wake,
    /// Its owner presses the power button.
    PowerButton,
}

/// What a backup holds already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub basis: Basis,
    /// Where it may be different from that, beside what was written since.
    pub differs: Vec<PageRun>,
}

/// About a primary's session.
#[derive(Debug, Clone)]
pub enum SessionOrder {
    /// Opens it, over the connection that has come. If that cannot be: `SessionEnded`.
    Open {
        peer: HostName,
        hello: Box<Hello>,
    },
    /// Makes the backup's volumes equal: ends with `VolumesSynced`, or `SessionEnded`.
    Sync {
        known: Option<Known>,
    },
    /// The witness holds a record of this term that binds the backup: it is told so soon.
    Bound(Term),
    /// The backup may take the VM over, which is at `epoch`: it hears it behind all that was given to the sender before.
    Relinquish {
        epoch: Epoch,
        reason: String,
    },
    Close(Close),
}

/// How a session is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// At once.
    Cut,
    /// Once what is queued has been sent.
    Finish,
    /// The same, and the backup hears that what it holds is of no use to the next session.
    Farewell,
}

/// In what a backup's volumes are known to differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Since when it was remembered what was written.
    pub basis: Basis,
    /// A run's `block` is the number of the volume, its pages are the blocks of which checksums are made.
    pub blocks: Vec<PageRun>,
}

/// About the session in which this host is the backup.
#[derive(Debug, Clone)]
pub enum PrimaryOrder {
    Say(Word),
    /// What becomes of the standby: the checkpoint that it holds is loaded.
    Load {
        /// If this host cannot go on with it, others can.
        others: bool,
    },
    /// Another backup has the VM: the standby is kept for a session that suits it.
    Park,
    /// Cuts the connection; the receiver's thread goes on with what it holds.
    Cut,
    /// The session is over: closes the connection when what was said has been written.
    Drop,
}

/// What a backup says to its primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// What it holds already.
    Base {
        epoch: Epoch,
        changes: Vec<u8>,
    },
    /// In what its file differs from the VM, as JSON.
    Differences {
        json: Vec<u8>,
    },
    /// Its QEMU is there.
    Ready,
    VolumeDiffers {
        volume: u16,
        first: u64,
        bits: Vec<u8>,
    },
    /// It has loaded the first checkpoint once.
    Tried,
    /// It holds this checkpoint.
    Ack {
        epoch: Epoch,
    },
    /// It lives, and had read the primary's heartbeat of that time (0: none) when it had not begun to claim.
    Heartbeat {
        seq: u64,
        uplink: bool,
        echo_us: u64,
    },
    /// It is no backup.
    Refuse {
        reason: String,
    },
}

/// About this host's log.
#[derive(Debug, Clone)]
pub enum LogOrder {
    /// Starts its thread for a reign or session. If that cannot be: `LogFailed`.
    Start { reign: Term, beginning: Beginning },
    /// Notes this, then says that the note of this number, and all before, are durable (`Stood`).
    Stand { ticket: u64, standing: protocol::LogStanding },
    /// What is given from here on is of this reign.
    Reign(Term),
    /// What is given from here on is given under the record of this term. A reign has several, one after the other.
    Term(Term),
    /// The VM has ended for good: removes its files, whatever else waits for the thread, and lets go of it. Ends with `LogRemoved`.
    Remove,
    /// Lets go of it; its files stay.
    Drop,
}

/// How a log begins.
#[derive(Debug, Clone)]
pub enum Beginning {
    /// Anew; what is there is removed.
    New { hello: Box<Hello>, standing: protocol::LogStanding },
    /// With a backup's session.
    Awaited,
    /// Where it ends, as the attempt of this number to go on from it has found.
    Continued { recovery: u64 },
}

/// About going on from the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryOrder {
    /// Looks for one. Changes nothing.
    Look,
    /// Loads what was found.
    Load,
    /// It is not wanted any more. If it is not being loaded, it ends without a trace.
    Drop,
}

/// About snapshots, and a log that a person goes back in.
#[derive(Debug, Clone)]
pub enum JobOrder {
    /// Begins to take a snapshot. Answered with `SnapshotBegun`.
    Take {
        request: RequestId,
        name: SnapshotName,
        parent: Option<SnapshotName>,
        hello: Box<Hello>,
        /// The session's term.
        term: Term,
        /// The version of the QEMU that runs.
        qemu: String,
        freeze: FreezePlan,
        generation: u64,
    },
    /// Loads a snapshot, as it was or as a clone; without a name goes back in the log, under the witness's `record`. If it cannot
    /// begin: `NotLoaded`.
    Load { name: Option<SnapshotName>, clone: bool, record: Option<Record> },
    /// Lets go of it. `gone_on`: the VM goes on from it; otherwise it leaves no trace.
    End { gone_on: bool },
}

/// What becomes of the guest's file systems around a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FreezePlan {
    /// They are not to be frozen.
    Never,
    /// They cannot be, for this reason.
    Cannot(String),
    /// If its agent does so; `required`: else there is no snapshot.
    Ask { required: bool },
}
