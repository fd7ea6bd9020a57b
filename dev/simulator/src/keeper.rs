//! A keeper's process: its core, and what its threads are at. All of it is gone when the process is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ninefold_core::Core;
use ninefold_core::effect::{Effect, VmOrder, WitnessRequest};
use ninefold_core::event::{Event, OfferId, Source, WaiterId};
use ninefold_model::health::Health;
use ninefold_model::{Epoch, Record, Term};
use ninefold_replica::continuation::{Base, History};
use ninefold_replica::protocol;
use ninefold_replica::stream::{Hello, Reign};
use ninefold_replica::target::{Basis, Target};

use crate::disk::Applier;
use crate::guest::{Checkpoint, Guest, Node, Writes};
use crate::guest_io::GuestIo;
use crate::network::{Msg, Rest};
use crate::parking::{Parked, Parking};
use crate::volumes::Volumes;

/// See the [module](self).
pub struct Keeper {
    pub core: Core,
    /// When it was last told of the time.
    pub ticked: u64,
    pub answers: VecDeque<Event>,
    /// Effects that are still to be carried out, by a keeper that was frozen amid them.
    pub undone: VecDeque<Effect>,
    pub stepping: bool,
    pub waiter: Option<(WaiterId, Waits)>,
    pub offer: Option<(OfferId, u64)>,
    pub last_id: u64,
    /// A host that could be the backup.
    pub link: Option<u64>,
    pub guest_io: GuestIo,
    /// The gate was to open, and something was owed first.
    pub opening: bool,
    pub volumes: Volumes,
    pub applier: Applier,
    /// What has reached the images since.
    pub written: Vec<(Basis, BTreeSet<usize>)>,
    pub vm: Option<Vm>,
    /// What checkpoints are to say of the guest's health.
    pub told: Health,
    /// The guest whose QEMU is being launched anew.
    pub relaunched: Option<Guest>,
    pub waiting: Option<(Source, Guest)>,
    pub sessions: BTreeMap<Term, Session>,
    pub primary: Option<Primary>,
    pub standbys: BTreeMap<u64, Standby>,
    pub parking: Parking,
    pub client: Client,
    pub looking: bool,
    pub turns: usize,
    pub logs: BTreeMap<u64, Log>,
    pub recovery: Option<(u64, bool)>,
    /// A log that is loaded, of the attempt of this number.
    pub recovered: Option<u64>,
    pub looked: u64,
    pub quitting: bool,
}

/// A thread that waits for the core's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    Started { generation: u64 },
    First { generation: u64, target: Target },
}

/// The VM's thread.
#[derive(Debug)]
pub struct Vm {
    pub generation: u64,
    pub guest: Guest,
    /// QEMU is there, and the guest is let run.
    pub runs: bool,
    pub launched: bool,
    pub target_states: Vec<TargetState>,
    pub epoch: Epoch,
    pub last: Last,
    /// After the last checkpoint.
    pub paused: bool,
    pub off: Off,
    /// When the guest ran again.
    pub resumed: u64,
    /// When its thread looks next.
    pub alarm: u64,
    pub orders: VecDeque<VmOrder>,
    /// It waits for output to be held for this one.
    pub asks: Option<Target>,
    pub memory: Written,
}

/// Which pages of a guest's memory it has written since when.
#[derive(Debug, Default)]
pub struct Written {
    /// The last checkpoint.
    pub epoch: BTreeSet<usize>,
    /// The last few, with their numbers.
    pub recent: VecDeque<(Epoch, BTreeSet<usize>)>,
    /// It was resumed from a checkpoint that others hold, too.
    pub resumed: Option<BTreeSet<usize>>,
    /// The last checkpoint that the backup of this session had acknowledged when it went.
    pub left: Vec<(Term, BTreeSet<usize>)>,
}

impl Written {
    /// The guest writes a page.
    pub fn note(&mut self, page: usize) {
        self.epoch.insert(page);
        self.resumed.iter_mut().chain(self.left.iter_mut().map(|(_, pages)| pages)).for_each(|pages| {
            pages.insert(page);
        });
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    No,
    Wanted,
    Taken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Off {
    No,
    Seen,
    Reported,
}

/// Whoever the VM is copied to.
#[derive(Debug)]
pub struct TargetState {
    pub target: Target,
    pub log: Option<u64>,
    pub stage: Stage,
    pub acked: Epoch,
    /// The newest checkpoint when it joined.
    pub before: Epoch,
    /// Pages that it does not have as they are, until it has joined.
    pub stale: BTreeSet<usize>,
    /// Since when it waits for its first checkpoint.
    pub since: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Copying,
    Ready,
    /// Output is held for it.
    Asked,
    Joined,
}

/// A primary's session.
#[derive(Debug)]
pub struct Session {
    pub connection: u64,
    /// The newest term in which it is bound, or that of the session.
    pub term: Term,
    /// When something was last sent.
    pub sent_at: u64,
    /// Checkpoints on their way, and when each was sent.
    pub sent: VecDeque<(Epoch, u64)>,
    /// What has reached the images since the volumes' copy began.
    pub since: Option<BTreeSet<usize>>,
    pub over: bool,
}

/// A backup's connection to its primary.
#[derive(Debug)]
pub struct Primary {
    pub session: Term,
    pub connection: u64,
    /// The time in its newest heartbeat.
    pub echo: u64,
}

/// A thread that receives a session.
#[derive(Debug)]
pub struct Standby {
    pub session: Term,
    pub hello: Option<Box<Hello>>,
    pub at: At,
    pub since: u64,
    /// Has come and is not read.
    pub pending: VecDeque<Msg>,
    pub log: Option<u64>,
    pub checkpoint: Option<Checkpoint>,
    pub first: bool,
    pub verdict: Option<StandbyUse>,
    pub asked_log: bool,
    pub logged: Option<bool>,
    /// Its QEMU lives.
    pub alive: bool,
    /// What is in its memory.
    pub memory: Vec<Node>,
    /// With the number of its last whole checkpoint before that, and the pages that came with the last.
    pub earlier: Option<(Epoch, Vec<Node>)>,
    /// Of its checkpoints in this session.
    pub history: Option<History>,
    /// What it has gone on from: nothing has been written to it since.
    pub former: Option<Parked>,
    /// What it holds already, until the primary is told.
    pub base: Option<Base>,
    /// Of which checkpoint its memory is noted to be.
    pub noted: Option<(Reign, Epoch)>,
    /// The primary has said farewell.
    pub parted: bool,
    /// Checkpoints that wait for the disk to be acknowledged: number, first of the session, batch, since when.
    pub acks: VecDeque<(Epoch, bool, u64, u64)>,
    /// One could not be: none is from then on.
    pub mute: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Hello is awaited, the witness asked, the core.
    Door,
    Entering,
    Building,
    Receiving,
    /// The stream has ended: the witness's word is awaited.
    Waits,
    Loading,
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandbyUse {
    Load { others: bool },
    Park,
    End,
}

/// The witness's client.
#[derive(Debug, Default)]
pub struct Client {
    /// What its thread has not heard yet.
    pub queued: VecDeque<WitnessRequest>,
    pub pending: Option<WitnessRequest>,
    /// The call that is under way.
    pub call: Option<u64>,
    pub last_call: u64,
    /// Which alarm is the present one.
    pub alarm: u64,
    pub unreachable: bool,
}

/// A log's thread.
#[derive(Debug)]
pub struct Log {
    pub state: LogState,
    pub jobs: VecDeque<LogJob>,
    pub note: Option<(u64, protocol::LogStanding)>,
    pub busy: bool,
    pub steps: u64,
    pub session: Term,
    /// Of what is given to it from here on.
    pub term: Term,
    pub reigns: bool,
    pub standing: Option<protocol::LogStanding>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogState {
    Nothing,
    New,
    Log,
    Failed,
}

#[derive(Debug, Clone)]
pub enum LogJob {
    /// Begins anew.
    Begin(protocol::LogStanding),
    /// A backup's session begins, of the standby on this connection.
    Session {
        session: Term,
        standing: protocol::LogStanding,
    },
    Checkpoint {
        checkpoint: Box<Checkpoint>,
        rest: Option<Writes>,
    },
    Received {
        session: Term,
        term: Term,
        checkpoint: Box<Checkpoint>,
        rest: Option<Rest>,
        first: bool,
    },
    Drain {
        connection: u64,
    },
    Remove,
}

/// A log as it survives.
#[derive(Debug, Clone)]
pub struct OnDisk {
    pub standing: protocol::LogStanding,
    pub checkpoint: Checkpoint,
    /// All that was written to the volumes since the log has begun.
    pub writes: Writes,
    pub at: (Term, Epoch),
    /// That of the last checkpoint.
    pub term: Term,
}

impl OnDisk {
    /// Whether its host may go on from it under this record.
    pub fn allows(&self, record: &Record, host: &ninefold_model::HostName) -> bool {
        self.standing.allows(record, host)
    }
}
