//! The world: hosts, a network, a witness, one queue of what happens when. Nothing here knows a real clock, a thread or chance but by
//! the plan's seed.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use ninefold_core::event::Event;
use ninefold_core::settings::{Budget, Settings};
use ninefold_core::time::{Boottime, Monotonic, Now};
use ninefold_core::{Core, TICK};
use ninefold_model::health::Watchdog;
use ninefold_model::spec::{Acknowledge, Boot, NonVolatile, VmSpec, VolumeSpec};
use ninefold_model::{HostName, Record, Term};
use ninefold_replica::stream::{BlockInfo, Layout};
use ninefold_replica::target::Target;

use crate::disk::{Applier, Disk};
use crate::guest::{BLOCKS, Node, Steps, Writes};
use crate::guest_io::GuestIo;
use crate::judge::Judge;
use crate::keeper::{Client, Keeper, LogJob, OnDisk};
use crate::network::{Connection, Msg};
use crate::parking::{Kept, Parking};
use crate::plan::{Moment, Plan, Setup};
use crate::rules::Rules;
use crate::trace::Trace;
use crate::volumes::Volumes;
use crate::witness::{Answer, Ask, Witness};

pub(crate) const MS: u64 = 1000;
/// What a guest's writes may hold of a keeper's memory.
pub(crate) const BUDGET: Budget = Budget { soft: 64 << 20, hard: 128 << 20 };
pub(crate) const TICK_US: u64 = TICK.as_micros() as u64;

/// Something that happens at its time.
struct Entry {
    at: u64,
    seq: u64,
    item: Item,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    // The earliest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

/// What happens.
#[derive(Debug)]
pub(crate) enum Item {
    /// It is time for this fault.
    Due(usize),
    /// It happens, also if the moment has not come that it waits for.
    Fault(usize),
    Passes(usize),
    /// In this keeper's process: not while the host stands still, and not once the process is gone.
    In {
        host: usize,
        keeper: u64,
        what: What,
    },
    Arrives {
        connection: u64,
        side: usize,
        msg: Msg,
    },
    WitnessGets {
        host: usize,
        keeper: u64,
        call: u64,
        from: Caller,
        ask: Ask,
    },
    Begins {
        host: usize,
    },
    PowerIsBack {
        host: usize,
    },
    /// What a cut has held up is sent again.
    SentAgain {
        connection: u64,
        side: usize,
    },
    /// The connections that a host had when it lost its power are known to be dead.
    Resets {
        connection: u64,
        side: usize,
    },
    Look,
}

/// What a keeper's thread comes to.
#[derive(Debug)]
pub(crate) enum What {
    Tick,
    Tell(Event),
    Read { connection: u64, side: usize, msg: Msg },
    WitnessSays { call: u64, from: Caller, answer: Option<Answer> },
    Alarm(u64),
    Connects { peers: Vec<usize>, failed: usize, quick: bool },
    GuestSteps { generation: u64 },
    Launched { generation: u64 },
    Held { generation: u64, target: Target, yes: bool },
    Copied { generation: u64, target: Target },
    Works { generation: u64 },
    Synced { session: Term },
    Beats { session: Term },
    Enters { connection: u64 },
    Built { connection: u64 },
    Loads { connection: u64 },
    StandbyDied { connection: u64 },
    DoorShuts { connection: u64 },
    LogDoes { id: u64, job: LogJob },
    LogNotes { id: u64 },
    LogLooked { id: u64 },
    LogLoaded { id: u64 },
    DiskBegins { alarm: u64 },
    DiskEnds,
    ButtonPressed,
    Dumped { generation: u64 },
    Reads { connection: u64 },
}

/// Who has asked the witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    Client,
    /// The thread that receives this connection.
    Door(u64),
}

/// A host.
pub(crate) struct Host {
    pub name: HostName,
    pub power: bool,
    /// By these faults.
    pub frozen: Vec<usize>,
    pub still_since: Option<u64>,
    /// When it last went on, after so long that its backups may have lost patience.
    pub thawed: Option<u64>,
    pub back_after: u64,
    /// It freezes as soon as it is about to release something, by this fault.
    pub freezes_amid: Option<usize>,
    pub suspended: Option<u64>,
    /// For how long it has been suspended in all.
    pub asleep: u64,
    /// What its processes come to when they go on.
    pub backlog: Vec<(u64, What)>,
    /// Counts keepers.
    pub incarnation: u64,
    pub keeper: Option<Keeper>,
    pub disk: Disk,
    pub log: Option<OnDisk>,
    /// The memory of a standby whose keeper has gone.
    pub kept: Option<Kept>,
    pub disk_slow: u64,
    pub log_fails: Option<bool>,
    pub load_fails: bool,
    /// A fault has taken a standby from it, in this life of the VM.
    pub robbed: bool,
    pub uplink: bool,
    pub witness_cut: u32,
}

/// See the [module](self).
pub struct World {
    pub(crate) now: u64,
    seq: u64,
    queue: BinaryHeap<Entry>,
    pub(crate) rng: fastrand::Rng,
    /// For memory and disks: what they do changes nothing for who has neither.
    pub(crate) more: fastrand::Rng,
    pub(crate) plan: Plan,
    pub(crate) rules: Rules,
    pub(crate) spec: VmSpec,
    pub(crate) layout: Layout,
    pub(crate) hosts: Vec<Host>,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) last_connection: u64,
    /// How often the way from one host to another is cut, and by how much it is slower.
    pub(crate) cuts: Vec<Vec<u32>>,
    pub(crate) delays: Vec<Vec<u64>>,
    pub(crate) witness: Witness,
    pub(crate) steps: Steps,
    /// What the guest had on its volumes when it flushed them, by the step at which it says that it has.
    pub(crate) told: BTreeMap<Node, Writes>,
    pub(crate) judge: Judge,
    pub(crate) trace: Trace,
    pub(crate) faults_left: usize,
    /// Faults that have begun and not passed.
    pub(crate) going_on: usize,
    /// Faults that wait for their moment.
    pub(crate) lurking: Vec<usize>,
    pub(crate) happened: Vec<bool>,
}

impl World {
    /// The world of this plan, before anything has happened.
    pub fn new(plan: Plan, rules: Rules, trace: Trace) -> Self {
        let Setup { hosts, backups, volumes, log, disk, watchdog } = plan.setup;
        let volume = |n: usize| VolumeSpec::new(["one", "two"][n].parse().expect("a name"), (BLOCKS as u64) << 16);
        let json = serde_json::json!({
            "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "vm",
            "hardware": { "memory_mib": 1, "boot": "boot_sector" }, "policy": { "backups": backups },
        });
        let mut spec: VmSpec = serde_json::from_value(json).expect("a spec");
        spec.hardware.volumes = (0..volumes).map(volume).collect();
        let acknowledge = if disk { Acknowledge::Disk } else { Acknowledge::Memory };
        let of = |v: &VolumeSpec| (v.name.clone(), acknowledge);
        spec.policy.acknowledge = spec.hardware.volumes.iter().map(of).collect();
        spec.policy.non_volatile = log.then(NonVolatile::default);
        if let Some(watchdog) = watchdog.map(Watchdog::new) {
            spec.hardware.watchdog = Some(watchdog.device);
            spec.policy.watchdog = Some(watchdog.policy);
        }
        let block = BlockInfo { name: "ram".into(), used: 1 << 20, total: 1 << 20 };
        let host = |name: &str| Host {
            name: name.parse().expect("a name"),
            power: true,
            frozen: Vec::new(),
            still_since: None,
            thawed: None,
            back_after: 0,
            freezes_amid: None,
            suspended: None,
            asleep: 0,
            backlog: Vec::new(),
            incarnation: 0,
            keeper: None,
            disk: Disk::new(volumes * BLOCKS),
            log: None,
            kept: None,
            disk_slow: 0,
            log_fails: None,
            load_fails: false,
            robbed: false,
            uplink: true,
            witness_cut: 0,
        };
        let mut world = Self {
            now: 0,
            seq: 0,
            queue: BinaryHeap::new(),
            rng: fastrand::Rng::with_seed(plan.seed),
            more: fastrand::Rng::with_seed(plan.seed ^ 0x6d6f_7265),
            told: BTreeMap::new(),
            rules,
            spec,
            layout: Layout::new(vec![block]).expect("a layout"),
            hosts: ["a", "b", "c", "d"][..hosts].iter().map(|n| host(n)).collect(),
            connections: BTreeMap::new(),
            last_connection: 0,
            cuts: vec![vec![0; hosts]; hosts],
            delays: vec![vec![0; hosts]; hosts],
            witness: Witness::default(),
            steps: Steps::default(),
            judge: Judge::default(),
            trace,
            faults_left: plan.faults.len(),
            going_on: 0,
            lurking: Vec::new(),
            happened: vec![false; plan.faults.len()],
            plan,
        };
        for host in 0..hosts {
            let after = world.rng.u64(..20 * MS);
            world.after(after, Item::Begins { host });
        }
        for (n, timed) in world.plan.faults.clone().iter().enumerate() {
            world.at(timed.at_ms * MS, Item::Due(n));
        }
        world.after(10 * MS, Item::Look);
        world
    }

    fn at(&mut self, at: u64, item: Item) {
        self.seq += 1;
        self.queue.push(Entry { at, seq: self.seq, item });
    }

    pub(crate) fn after(&mut self, us: u64, item: Item) {
        self.at(self.now + us, item);
    }

    /// In the keeper's process on this host, so much later.
    pub(crate) fn later(&mut self, host: usize, us: u64, what: What) {
        let keeper = self.hosts[host].incarnation;
        self.after(us, Item::In { host, keeper, what });
    }

    pub(crate) fn tell_later(&mut self, host: usize, us: u64, event: Event) {
        self.later(host, us, What::Tell(event));
    }

    /// From a few microseconds to a few hundred: what threads take.
    pub(crate) fn moment(&mut self) -> u64 {
        self.rng.u64(5..200)
    }

    pub(crate) fn boot_us(&self, _host: usize) -> u64 {
        self.now + 1_000_000
    }

    pub(crate) fn clocks(&self, host: usize) -> Now {
        let asleep = self.hosts[host].asleep;
        let boot = self.boot_us(host);
        Now { monotonic: Monotonic::from_micros(boot - asleep), boottime: Boottime::from_micros(boot) }
    }

    pub(crate) fn number(&self, name: &HostName) -> usize {
        self.hosts.iter().position(|h| h.name == *name).expect("a host of the run")
    }

    pub(crate) fn keeper(&mut self, host: usize) -> &mut Keeper {
        self.hosts[host].keeper.as_mut().expect("only a living keeper does anything")
    }

    pub(crate) fn still(&self, host: usize) -> bool {
        !self.hosts[host].frozen.is_empty() || self.hosts[host].suspended.is_some()
    }

    /// Lets time go on until all has been decided.
    pub fn run(&mut self) {
        while self.judge.verdict.is_none() {
            let Some(Entry { at, item, .. }) = self.queue.pop() else { break };
            self.now = at;
            self.happens(item);
        }
    }

    fn happens(&mut self, item: Item) {
        match item {
            Item::Due(n) => self.fault_is_due(n),
            Item::Fault(n) => self.fault(n),
            Item::Passes(n) => self.passes(n),
            Item::In { host, keeper, what } => {
                if self.hosts[host].incarnation != keeper || self.hosts[host].keeper.is_none() {
                    return;
                }
                if self.still(host) {
                    self.hosts[host].backlog.push((keeper, what));
                } else {
                    self.does(host, what);
                }
            }
            Item::Arrives { connection, side, msg } => self.arrives(connection, side, msg),
            Item::WitnessGets { host, keeper, call, from, ask } => self.witness_gets(host, keeper, call, from, ask),
            Item::Begins { host } => self.begins(host),
            Item::PowerIsBack { host } => self.hosts[host].power = true,
            Item::SentAgain { connection, side } => self.sent_again(connection, side),
            Item::Resets { connection, side } => {
                if let Some(c) = self.connections.get_mut(&connection) {
                    c.held[side].clear();
                    self.arrives(connection, side, Msg::End);
                }
            }
            Item::Look => self.look(),
        }
    }

    /// A keeper begins, if it can.
    pub(crate) fn begins(&mut self, host: usize) {
        if !self.hosts[host].power || self.hosts[host].keeper.is_some() {
            return;
        }
        self.hosts[host].incarnation += 1;
        let now = self.clocks(host);
        let volumes = self.spec.hardware.volumes.len();
        let settings = Settings {
            host: self.hosts[host].name.clone(),
            vm: self.spec.clone(),
            label: ninefold_model::Label { name: self.spec.name.clone(), number: 0 },
            boot: Boot::BootSector { image: "/x".into() },
            bridges: Vec::new(),
            uplink: Some("up".into()),
            pid: 1,
            machine: "pc".into(),
            cpu: "cpu".into(),
            incarnation: ninefold_model::Incarnation(1),
            volume_blocks: vec![BLOCKS as u64; volumes],
            budget: BUDGET,
        };
        let core = Core::with_rules(settings, None, now, self.rules.core);
        let looked = self.boot_us(host);
        let kept = self.hosts[host].kept.take();
        let keeper = Keeper {
            core,
            ticked: self.now,
            answers: Default::default(),
            undone: Default::default(),
            stepping: false,
            waiter: None,
            offer: None,
            // So that nothing of a former keeper's is taken for this one's.
            last_id: 0,
            link: None,
            guest_io: GuestIo::default(),
            opening: false,
            volumes: Volumes::default(),
            applier: Applier::default(),
            written: Vec::new(),
            vm: None,
            told: Default::default(),
            relaunched: None,
            waiting: None,
            sessions: BTreeMap::new(),
            primary: None,
            standbys: BTreeMap::new(),
            parking: Parking::with(kept, self.now),
            client: Client::default(),
            looking: false,
            turns: 0,
            logs: BTreeMap::new(),
            recovery: None,
            recovered: None,
            looked,
            quitting: false,
        };
        self.trace.say(self.now, &self.hosts[host].name, || "its keeper begins".into());
        self.hosts[host].keeper = Some(keeper);
        self.disk_is_opened(host);
        self.later(host, 1, What::Tick);
        self.later(host, 1, What::Alarm(0));
    }

    /// What a process comes to.
    fn does(&mut self, host: usize, what: What) {
        // What a keeper was about to do when it froze comes first.
        if !self.keeper(host).undone.is_empty() {
            self.go_on(host);
            if self.still(host) {
                let keeper = self.hosts[host].incarnation;
                return self.hosts[host].backlog.push((keeper, what));
            }
        }
        match what {
            What::Tick => {
                if self.now - self.keeper(host).ticked >= TICK_US {
                    self.tick(host);
                }
                if self.hosts[host].keeper.is_some() {
                    self.later(host, TICK_US, What::Tick);
                }
            }
            What::Tell(event) => self.tell(host, event),
            What::Read { connection, side, msg } => self.reads(host, connection, side, msg),
            What::WitnessSays { call, from, answer } => self.witness_says(host, call, from, answer),
            What::Alarm(number) => {
                if self.keeper(host).client.alarm == number {
                    self.asks_witness(host);
                }
            }
            What::Connects { peers, failed, quick } => self.connects(host, &peers, failed, quick),
            What::GuestSteps { generation } => self.guest_steps(host, generation),
            What::Launched { generation } => self.launched(host, generation),
            What::Held { generation, target, yes } => self.output_held(host, generation, target, yes),
            What::Copied { generation, target } => self.copied(host, generation, target),
            What::Works { generation } => self.vm_works(host, generation),
            What::Synced { session } => self.synced(host, session),
            What::Beats { session } => self.beats(host, session),
            What::Enters { connection } => self.standby_enters(host, connection),
            What::Built { connection } => self.standby_built(host, connection),
            What::Loads { connection } => self.standby_loads(host, connection),
            What::StandbyDied { connection } => self.standby_died(host, connection),
            What::DoorShuts { connection } => self.door_shuts(host, connection),
            What::LogDoes { id, job } => self.log_does(host, id, job),
            What::LogNotes { id } => self.log_notes(host, id),
            What::LogLooked { id } => self.log_looked(host, id),
            What::LogLoaded { id } => self.log_loaded(host, id),
            What::DiskBegins { alarm } => self.disk_begins(host, alarm),
            What::DiskEnds => self.disk_ends(host),
            What::ButtonPressed => self.switches_off(host),
            What::Dumped { generation } => self.dumped(host, generation),
            What::Reads { connection } => self.standby_reads(host, connection),
        }
    }

    /// A host's processes go on, with all that has come meanwhile.
    pub(crate) fn goes_on(&mut self, host: usize) {
        if self.still(host) {
            return;
        }
        let backlog = std::mem::take(&mut self.hosts[host].backlog);
        for (n, (keeper, what)) in (1..).zip(backlog) {
            self.after(n, Item::In { host, keeper, what });
        }
    }

    // ---- the network ----

    /// Whether what is sent from one host to another gets there now.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        self.cuts[from][to] == 0 && self.hosts[to].power && self.hosts[to].suspended.is_none()
    }

    pub(crate) fn delay(&mut self, from: usize, to: usize) -> u64 {
        self.rng.u64(40..300) + self.delays[from][to]
    }

    /// Sends on a connection, from this side.
    pub(crate) fn send(&mut self, connection: u64, side: usize, msg: Msg) {
        let Some(c) = self.connections.get(&connection) else { return };
        if c.closed[side] {
            return;
        }
        let (from, to) = (c.hosts[side], c.hosts[1 - side]);
        let bulk = match &msg {
            Msg::Round(_) | Msg::Volumes(_) => self.rng.u64(..5 * MS),
            Msg::Checkpoint { .. } => self.rng.u64(..2 * MS),
            _ => 0,
        };
        let delay = self.delay(from, to) + bulk;
        let now = self.now;
        if let Some(c) = self.connections.get_mut(&connection) {
            let at = (c.last_arrival[1 - side] + 1).max(now + delay);
            c.last_arrival[1 - side] = at;
            self.at(at, Item::Arrives { connection, side: 1 - side, msg });
        }
    }

    /// This side closes it: what was sent before still arrives.
    pub(crate) fn close(&mut self, connection: u64, side: usize) {
        self.send(connection, side, Msg::End);
        if let Some(c) = self.connections.get_mut(&connection) {
            c.closed[side] = true;
            c.unread[side] = 0;
        }
    }

    fn arrives(&mut self, connection: u64, side: usize, msg: Msg) {
        let Some(c) = self.connections.get(&connection) else { return };
        let (from, to, keeper) = (c.hosts[1 - side], c.hosts[side], c.keepers[side]);
        if !self.hosts[to].power || self.hosts[to].incarnation != keeper || self.hosts[to].keeper.is_none() {
            return;
        }
        let held = !self.reaches(from, to) || !c.held[side].is_empty();
        let Some(c) = self.connections.get_mut(&connection) else { return };
        if held {
            return c.held[side].push_back(msg);
        }
        if c.closed[side] {
            return;
        }
        c.unread[side] += 1;
        self.after(0, Item::In { host: to, keeper, what: What::Read { connection, side, msg } });
    }

    /// A way may be open again: what was held up arrives, in its order, as TCP sends again after a pause that has grown.
    pub(crate) fn healed(&mut self) {
        let held = |c: &Connection, side: usize| !c.held[side].is_empty();
        let due: Vec<(u64, usize)> =
            self.connections.iter().flat_map(|(id, c)| (0..2).filter(|s| held(c, *s)).map(|s| (*id, s))).collect();
        for (connection, side) in due {
            let again = self.rng.u64(..200 * MS);
            self.after(again, Item::SentAgain { connection, side });
        }
    }

    fn sent_again(&mut self, connection: u64, side: usize) {
        let Some(c) = self.connections.get(&connection) else { return };
        if !self.reaches(c.hosts[1 - side], c.hosts[side]) {
            return;
        }
        let held = self.connections.get_mut(&connection).map(|c| std::mem::take(&mut c.held[side]));
        for msg in held.unwrap_or_default() {
            self.arrives(connection, side, msg);
        }
    }

    /// For how long nothing has come to this side.
    pub(crate) fn silence(&self, connection: u64, side: usize) -> Duration {
        let Some(c) = self.connections.get(&connection) else { return Duration::MAX };
        if c.unread[side] > 0 {
            return Duration::ZERO;
        }
        Duration::from_micros(self.boot_us(c.hosts[side]) - c.last_read[side])
    }

    fn reads(&mut self, host: usize, connection: u64, side: usize, msg: Msg) {
        let boot = self.boot_us(host);
        let Some(c) = self.connections.get_mut(&connection) else { return };
        if c.closed[side] {
            return;
        }
        if side == 1 {
            // Its thread may be busy.
            return self.standby_hears(host, connection, msg);
        }
        c.unread[0] = c.unread[0].saturating_sub(1);
        c.last_read[0] = boot;
        self.session_hears(host, connection, msg);
    }

    /// Something was read on this side.
    pub(crate) fn has_read(&mut self, connection: u64, side: usize) {
        let Some(host) = self.connections.get(&connection).map(|c| c.hosts[side]) else { return };
        let boot = self.boot_us(host);
        if let Some(c) = self.connections.get_mut(&connection) {
            c.unread[side] = c.unread[side].saturating_sub(1);
            c.last_read[side] = boot;
        }
    }

    /// All of a keeper's connections end. Its host's kernel says so, unless it has no power.
    pub(crate) fn ends_connections(&mut self, host: usize, says_so: bool) {
        let mine: Vec<(u64, usize)> = self
            .connections
            .iter()
            .flat_map(|(id, c)| (0..2).filter(|s| c.hosts[*s] == host && !c.closed[*s]).map(|s| (*id, s)))
            .collect();
        for (id, side) in mine {
            if says_so {
                self.close(id, side);
            } else if let Some(c) = self.connections.get_mut(&id) {
                c.closed[side] = true;
            }
        }
    }

    // ---- the witness ----

    /// Sends a question to the witness; the answer, if one comes, is for this call.
    pub(crate) fn send_to_witness(&mut self, host: usize, call: u64, from: Caller, ask: Ask) {
        let keeper = self.hosts[host].incarnation;
        let delay = self.rng.u64(100..600) + self.witness.late;
        if self.hosts[host].witness_cut == 0 {
            self.after(delay, Item::WitnessGets { host, keeper, call, from, ask });
        }
        // For one call, however it goes on.
        self.later(host, 1000 * MS, What::WitnessSays { call, from, answer: None });
    }

    fn witness_gets(&mut self, host: usize, keeper: u64, call: u64, from: Caller, ask: Ask) {
        if self.witness.down > 0 {
            return;
        }
        let name = self.hosts[host].name.clone();
        let shown = if self.trace.is_on() { format!("{ask:?}") } else { String::new() };
        let (answer, changed) = self.witness.answer(&name, ask);
        if changed || self.trace.is_on() {
            self.trace.witness(self.now, &name, &shown, &answer);
        }
        if changed {
            self.record_changed(host, keeper);
            self.comes(Moment::Wins);
        }
        let muted = self.witness.mute > 0 || self.hosts[host].witness_cut > 0;
        let delay = self.rng.u64(100..600) + self.witness.slow;
        if !muted {
            let answer = Some(answer);
            self.after(delay, Item::In { host, keeper, what: What::WitnessSays { call, from, answer } });
        }
    }

    pub(crate) fn record(&self) -> Option<&Record> {
        self.witness.record()
    }
}
