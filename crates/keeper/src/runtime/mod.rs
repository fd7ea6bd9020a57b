//! What drives the core: one thread that tells it what happens and does what it says.
//!
//! ```text
//!   control socket ─┐                 ┌─────────────┐
//!   witness ────────┤                 │    Core     │          ┌─► witness's client
//!   VM's thread ────┼─► Msg ─► Event ─┤ (no I/O, no ├─ Effect ─┼─► VM's thread, sessions, log, connector
//!   sessions ───────┤    clocks, ticks│   clock)    │          ├─► guest I/O, volumes
//!   standby ────────┘                 └─────────────┘          └─► journal, metrics, who has asked
//! ```
//!
//! What the core decides is in [`ninefold_core`]. Here is what it decides about: handles of threads, connections, QEMUs that wait. They
//! are kept under the numbers and names that events and effects have for them.
//!
//! * `inbox`: what a message says · `observe`: what is seen at a tick
//! * `carry_out`: effects · `gate`: what the VM says · `vm`: its QEMU · `sessions`, `primary`: connections · `durable`: log, snapshots

mod carry_out;
pub(crate) mod connector;
mod durable;
mod gate;
mod inbox;
pub(crate) mod launch;
mod observe;
mod primary;
pub(crate) mod priority;
pub(crate) mod proposer;
mod sessions;
pub(crate) mod side_channel;
mod vm;
#[cfg(test)]
pub(crate) mod waits;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::Instant;

use ninefold_control::Reply;
use ninefold_core::effect::{Effect, WitnessRequest};
use ninefold_core::event::{Event, RequestId, Source, WaiterId};
use ninefold_core::settings::{Budget, Settings};
use ninefold_core::time::{Boottime, Monotonic, Now};
use ninefold_core::{Core, TICK};
use ninefold_machine::Ports;
use ninefold_machine::command_line::{CPU, MACHINE};
use ninefold_model::{Label, Term};
use ninefold_replica::target::Basis;
use ninefold_transport::Link;
use ninefold_transport::clock::{self, Moment};
use ninefold_volume::{budget, checksums};

use self::durable::{Job, Recovered, Snapshot};
use self::inbox::Offer;
use self::primary::Primary;
use self::sessions::Open;
use self::vm::Waiting;
use crate::backup::loaded::Wanted;
use crate::backup::parking::Parking;
use crate::config::KeeperConfig;
use crate::control::journal::Journal;
use crate::control::metrics::Board;
use crate::control::operations::Operations;
use crate::devices::disks::Disks;
use crate::devices::guest_io::GuestIo;
use crate::durable::log::LogHandle;
use crate::durable::recovery::Recovery;
use crate::health::dumps::Dumps;
use crate::health::images::Images;
use crate::health::shared::SharedHealth;
use crate::msg::Msg;
use crate::primary::changed_blocks::ChangedBlocks;
use crate::primary::vm::VmHandle;
use crate::primary::waker::Waker;
use crate::runtime::connector::Connector;

/// What the runtime is started with.
pub struct Parts {
    pub config: Arc<KeeperConfig>,
    /// What the VM is called.
    pub label: Label,
    /// Told to call it otherwise.
    pub naming: Sender<Label>,
    pub guest_io: Arc<GuestIo>,
    pub disks: Arc<Disks>,
    pub images: Arc<Images>,
    pub journal: Journal,
    pub operations: Operations,
    pub board: Arc<Board>,
    pub waker: Waker,
    pub inbox: Receiver<Msg>,
    pub core: Sender<Msg>,
    pub proposer: Sender<WitnessRequest>,
    pub connector: Connector,
    pub parking: Arc<Parking>,
}

/// See the [module](self).
pub struct Runtime {
    parts: Parts,
    core: Core,
    /// Of the step at hand.
    effects: Vec<Effect>,
    /// To effects: the core hears them before anything else.
    answers: VecDeque<Event>,
    /// Who waits for an answer.
    requests: HashMap<RequestId, Sender<Reply>>,
    last_request: u64,
    last_waiter: u64,
    last_offer: u64,
    /// What came with the event at hand. What the core does not take up is dropped after the step.
    waiter: Option<(WaiterId, SyncSender<()>)>,
    offer: Option<Offer>,
    ports: Option<Ports>,
    recovered: Option<Recovered>,
    /// Dropped, the thread that takes it ends.
    snapshot: Option<Snapshot>,
    /// The snapshot of this number is being taken. Dropped, it is given up.
    taking: Option<(u64, Wanted)>,
    /// A host that could be the backup.
    link: Option<Link>,
    vm: Option<VmHandle>,
    /// Of a VM that is to be booted anew: its former thread.
    former: Option<JoinHandle<()>>,
    /// QEMUs that wait with a checkpoint loaded.
    waiting: Vec<Waiting>,
    sessions: BTreeMap<Term, Open>,
    /// What has reached the images since a backup went that may come back, or since the VM was resumed.
    written: Vec<(Basis, ChangedBlocks)>,
    /// The session in which this host is the backup.
    primary: Option<Primary>,
    logs: BTreeMap<u64, LogHandle>,
    recovery: Option<Recovery>,
    job: Option<Job>,
    /// What has to be on this host's disks before output leaves at once.
    owed: Option<Vec<(usize, u64)>>,
    /// When this host was last seen not to stand still while something was being let go.
    looked: Boottime,
    told: SharedHealth,
    dumps: Dumps,
    /// Whether the uplink works: sessions tell it.
    uplink: Arc<AtomicBool>,
    /// Of the image on record, as the core knows it.
    image_version: u64,
}

impl Runtime {
    pub fn new(parts: Parts) -> Self {
        let config = &parts.config;
        let settings = Settings {
            host: config.host.name.clone(),
            vm: config.vm.clone(),
            label: parts.label.clone(),
            boot: parts.images.configured().clone(),
            bridges: config.host.bridges.clone(),
            uplink: config.host.uplink.clone(),
            pid: std::process::id(),
            incarnation: parts.operations.incarnation(),
            machine: MACHINE.into(),
            cpu: CPU.into(),
            volume_blocks: parts.disks.iter().map(|d| checksums::blocks(d.served.size())).collect(),
            budget: Budget { soft: budget::SOFT, hard: budget::HARD },
        };
        let (image_version, committed) = parts.images.record();
        let now = now();
        Self {
            core: Core::new(settings, committed, now),
            effects: Vec::new(),
            answers: VecDeque::new(),
            requests: HashMap::new(),
            last_request: 0,
            last_waiter: 0,
            last_offer: 0,
            waiter: None,
            offer: None,
            ports: None,
            recovered: None,
            snapshot: None,
            taking: None,
            link: None,
            vm: None,
            former: None,
            waiting: Vec::new(),
            sessions: BTreeMap::new(),
            written: Vec::new(),
            primary: None,
            logs: BTreeMap::new(),
            recovery: None,
            job: None,
            owed: None,
            looked: now.boottime,
            told: SharedHealth::default(),
            dumps: Dumps::new(&config.host.dumps, &config.vm.id.to_string()),
            uplink: Arc::new(AtomicBool::new(true)),
            image_version,
            parts,
        }
    }

    /// Until SIGTERM.
    pub fn run(mut self) {
        priority::raise();
        let mut ticked = Moment::now();
        while !self.core.is_done() {
            let msg = match self.parts.inbox.recv_timeout(TICK) {
                Ok(msg) => Some(msg),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Before anything that has waited: a host that stood still must not act on it as if no time had passed.
            if ticked.elapsed() >= TICK {
                ticked = Moment::now();
                let observed = self.observe();
                self.step(Event::Tick(observed));
            }
            if let Some(event) = msg.and_then(|msg| self.event_of(msg)) {
                self.step(event);
            }
        }
        self.step(Event::End);
    }

    /// Tells the core what happens and does all that it says.
    fn step(&mut self, event: Event) {
        let (version, committed) = self.parts.images.record_after(self.image_version);
        if version != self.image_version {
            self.image_version = version;
            self.one(Event::ImageOnRecord(committed));
        }
        self.one(event);
        while let Some(answer) = self.answers.pop_front() {
            self.one(answer);
        }
        // A thread that is not let go on hears of it by this.
        (self.waiter, self.offer, self.ports, self.recovered) = (None, None, None, None);
        self.snapshot = None;
        let wanted = self.core.loaded();
        self.waiting.retain(|waiting| Some(waiting.source) == wanted);
    }

    fn one(&mut self, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        self.core.step(now(), event, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
    }

    /// The core hears this before anything else.
    fn answer(&mut self, event: Event) {
        self.answers.push_back(event);
    }

    fn waiting(&mut self, source: Source) -> Option<&mut Waiting> {
        self.waiting.iter_mut().find(|w| w.source == source)
    }
}

/// Both clocks.
fn now() -> Now {
    Now { monotonic: Monotonic::from_micros(clock::monotonic_us()), boottime: boottime(Moment::now()) }
}

fn boottime(moment: Moment) -> Boottime {
    Boottime::from_micros(moment.as_micros())
}

/// When that was, by the core's clock.
fn monotonic(instant: Instant) -> Monotonic {
    let now = Monotonic::from_micros(clock::monotonic_us());
    now - instant.elapsed()
}
