//! A world for whole cores: a witness, hosts that can hear each other or not, QEMUs, logs and standbys that do what they are asked
//! at once. Nothing in it fails by itself; a test cuts, kills and delays.
//!
//! What is here stands for what is outside of a core, as effects and events say it. The witness keeps its rule: a record is replaced only by
//! who names the one that is there.

#![allow(dead_code, reason = "each test uses what it needs")]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ninefold_control::{Answer, Operation, Refusal, Reply, Request};
use ninefold_core::effect::{
    Beginning, Close, Effect, GuestIoOrder, JobOrder, LogOrder, PrimaryOrder, RecoveryOrder, SessionOrder, VmOrder,
    WitnessRequest, Word,
};
use ninefold_core::event::{Event, Loaded, Observed, OfferId, RecoveryNews, RequestId, Seen, Source, WaiterId};
use ninefold_core::settings::{Budget, Settings};
use ninefold_core::time::{Boottime, Monotonic, Now};
use ninefold_core::{Core, LogFailure, TICK};
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::EventKind;
use ninefold_model::health::Health;
use ninefold_model::spec::{Accel, Boot, VmSpec};
use ninefold_model::status::{MachineStatus, VmStatus};
use ninefold_model::{Epoch, GuestState, Incarnation, Label, Record, Term, Tombstone};
use ninefold_replica::protocol::{self, Outcome};
use ninefold_replica::stream::{BlockInfo, Hello, Layout};
use ninefold_replica::target::Target;

/// What a gate does with output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Mute,
    Held,
    Open,
}

/// One host, its core and what it has.
pub struct Host {
    pub name: String,
    pub core: Core,
    /// What is to be told to the core, in order.
    inbox: VecDeque<Event>,
    /// All effects, in order.
    pub effects: Vec<Effect>,
    pub journal: Vec<EventKind>,
    pub replies: BTreeMap<RequestId, Reply>,
    /// As they were last told of, by their number.
    pub operations: BTreeMap<u64, Operation>,
    pub gate: Gate,
    /// Epochs up to this one were released.
    pub released: Epoch,
    /// The guest runs here, in the thread of this generation.
    pub runs: Option<u64>,
    generation: u64,
    /// The newest checkpoint that was taken.
    taken: Epoch,
    targets: Vec<Target>,
    /// A thread of the VM's that waits, and what it does when it is let go on.
    waits: BTreeMap<WaiterId, Waits>,
    last_id: u64,
    /// As a primary: sessions that are open.
    pub sessions: Vec<Term>,
    /// As a backup: the session, and the newest checkpoint that is held.
    pub backup: Option<(Term, Epoch)>,
    spec: Option<VmSpec>,
    /// Checkpoints that wait behind the first, which is being tried: session, epoch, whether it is the first.
    trying: Vec<(Term, Epoch, bool)>,
    offers: BTreeMap<OfferId, (usize, Hello)>,
    /// Since when each session, and the primary, was last heard.
    heard: BTreeMap<Term, Boottime>,
    pub log: Option<(u64, Epoch)>,
    /// No other one can be begun.
    log_broken: bool,
    /// A log that is on the disk of one that has not the VM: what it says of itself, and the term of its last checkpoint.
    pub found: Option<(protocol::LogStanding, Term)>,
    pub alive: bool,
    /// The witness does not hear it.
    pub cut_from_witness: bool,
    told_unreachable: bool,
    /// What the witness is to be asked as soon as it hears this host.
    unasked: Option<WitnessRequest>,
}

#[derive(Debug, Clone)]
enum Waits {
    Up { generation: u64 },
    First { target: Target, epoch: Epoch },
}

/// See the [module](self).
pub struct World {
    pub now: Now,
    pub hosts: Vec<Host>,
    pub witness: Option<Record>,
    /// It says that the VM was retired.
    pub tombstone: Option<Tombstone>,
    /// How often the VM was renamed.
    renamed: u64,
    /// No host can call the VM so.
    pub name_taken: bool,
    /// The hosts do not hear each other.
    pub cut: bool,
    /// Something lies unread on each connection.
    pub unread: bool,
    /// The log's disk does not answer.
    pub log_hangs: bool,
    /// A QEMU that is launched is long in coming.
    pub launch_hangs: bool,
    /// A backup loads its first checkpoint, to try it, and is not done: see [`World::has_loaded`].
    pub loads: bool,
    /// What may leave stays in the middle of a release: the host cannot tell any more whose the VM is.
    pub keeps: bool,
    /// No announcement is made.
    pub keeps_announcements: bool,
    /// Something that output may tell of has still to be on this host's disks.
    pub owes: bool,
    /// When a claim is won, and before its host hears more: what happens then.
    pub at_win: Option<AtWin>,
    /// Output does.
    waits_for_log: bool,
    last_request: u64,
}

/// See [`World::at_win`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtWin {
    /// The log that the host kept as a backup fails, and cannot note that; its disk answers no more, nor does the witness.
    LogFails,
}

fn status() -> MachineStatus {
    MachineStatus {
        pid: 1,
        qemu: "8.2.2".into(),
        accel: Accel::Kvm,
        accel_reason: String::new(),
        run_state: "running".into(),
        generation: None,
    }
}

fn layout() -> Layout {
    let bytes = 64 << 20;
    Layout::new(vec![BlockInfo { name: "pc.ram".into(), used: bytes, total: bytes }]).unwrap()
}

/// A VM of two hosts, kept as `policy` says.
pub fn spec(policy: serde_json::Value) -> VmSpec {
    with_volumes(serde_json::json!([]), policy)
}

/// The same with volumes.
pub fn with_volumes(volumes: serde_json::Value, policy: serde_json::Value) -> VmSpec {
    serde_json::from_value(serde_json::json!({
        "id": "3f0e1c4a-7d52-4b60-9c1f-5a2e8d90b7c4", "name": "db",
        "hardware": { "memory_mib": 64, "boot": "boot_sector", "volumes": volumes }, "policy": policy
    }))
    .unwrap()
}

impl World {
    /// Hosts a, b, … of this VM, none of which has it.
    pub fn new(hosts: usize, vm: &VmSpec) -> Self {
        let now = Now { monotonic: Monotonic::from_micros(10_000_000), boottime: Boottime::from_micros(20_000_000) };
        let host = |n: usize| {
            let name = char::from(b'a' + n as u8).to_string();
            let settings = Settings {
                host: name.parse().unwrap(),
                vm: vm.clone(),
                label: Label { name: vm.name.clone(), number: 0 },
                boot: Boot::BootSector { image: "/x".into() },
                bridges: Vec::new(),
                uplink: None,
                pid: 7,
                machine: "q35".into(),
                cpu: "host".into(),
                incarnation: Incarnation(1),
                volume_blocks: vm.hardware.volumes.iter().map(|v| v.size.div_ceil(65536)).collect(),
                budget: Budget { soft: 64 << 20, hard: 512 << 20 },
            };
            Host {
                core: Core::new(settings, None, now),
                name,
                inbox: VecDeque::new(),
                effects: Vec::new(),
                journal: Vec::new(),
                replies: BTreeMap::new(),
                gate: Gate::Mute,
                released: Epoch(0),
                runs: None,
                generation: 0,
                taken: Epoch(0),
                targets: Vec::new(),
                waits: BTreeMap::new(),
                last_id: 0,
                operations: BTreeMap::new(),
                sessions: Vec::new(),
                backup: None,
                spec: None,
                trying: Vec::new(),
                offers: BTreeMap::new(),
                heard: BTreeMap::new(),
                log: None,
                log_broken: false,
                found: None,
                alive: true,
                cut_from_witness: false,
                told_unreachable: false,
                unasked: None,
            }
        };
        let hosts = (0..hosts).map(host).collect();
        let waits_for_log = vm.policy.non_volatile.is_none_or(|n| n.hold_output);
        Self {
            now,
            hosts,
            witness: None,
            tombstone: None,
            renamed: 0,
            name_taken: false,
            cut: false,
            unread: false,
            log_hangs: false,
            launch_hangs: false,
            loads: false,
            keeps: false,
            keeps_announcements: false,
            owes: false,
            at_win: None,
            waits_for_log,
            last_request: 0,
        }
    }

    /// Asks host `at`; the answer is in its `replies`.
    pub fn ask(&mut self, at: usize, request: Request) -> RequestId {
        self.ask_with(at, request, None)
    }

    /// The same with a token.
    pub fn ask_with(&mut self, at: usize, request: Request, token: Option<&str>) -> RequestId {
        self.last_request += 1;
        let id = RequestId(self.last_request);
        self.tell(at, Event::Request { id, request, token: token.map(Into::into), seen: Seen::default() });
        self.settle();
        id
    }

    /// What host `at` answers at once.
    pub fn answer(&mut self, at: usize, request: Request) -> Reply {
        let id = self.ask(at, request);
        self.hosts[at].replies.get(&id).cloned().expect("an answer")
    }

    /// The operation that host `at` begins for this request, by its number.
    pub fn begin(&mut self, at: usize, request: Request) -> u64 {
        match self.answer(at, request) {
            Ok(Answer::Begun { operation }) => operation.id.number,
            other => panic!("{other:?}"),
        }
    }

    pub fn status(&mut self, at: usize) -> VmStatus {
        match self.answer(at, Request::Status) {
            Ok(Answer::Status { status }) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Something happens at host `at`. What follows from it is done by [`World::settle`].
    pub fn tell(&mut self, at: usize, event: Event) {
        self.hosts[at].inbox.push_back(event);
    }

    /// Until nothing is left to be done.
    pub fn settle(&mut self) {
        while let Some(at) = (0..self.hosts.len()).find(|at| self.hosts[*at].alive && !self.hosts[*at].inbox.is_empty())
        {
            if let Some(event) = self.hosts[at].inbox.pop_front() {
                self.step(at, event);
            }
        }
    }

    /// One event, with the answers to its effects.
    fn step(&mut self, at: usize, event: Event) {
        let mut answers = VecDeque::from([event]);
        while let Some(event) = answers.pop_front() {
            let mut effects = Vec::new();
            self.hosts[at].core.step(self.now, event, &mut effects);
            for effect in effects {
                self.hosts[at].effects.push(effect.clone());
                answers.extend(self.carry_out(at, effect));
            }
        }
    }

    /// Lets time go by, tick by tick. Guests take a checkpoint at each.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now.monotonic + time;
        while self.now.monotonic < until {
            self.now = self.now.later(TICK);
            for at in 0..self.hosts.len() {
                if self.hosts[at].alive {
                    self.checkpoint(at);
                    let observed = self.observe(at);
                    self.tell(at, Event::Tick(observed));
                    self.reach_witness(at);
                }
                self.settle();
            }
        }
    }

    /// Host `at` stands still, while time goes by for the others.
    pub fn pass_without(&mut self, at: usize, time: Duration) {
        self.hosts[at].alive = false;
        self.pass(time);
        self.hosts[at].alive = true;
    }

    /// Host `at` is gone, and the connections with it.
    pub fn kill(&mut self, at: usize) {
        self.hosts[at].alive = false;
        self.break_connections(at, "the connection is broken");
        self.settle();
    }

    fn break_connections(&mut self, of: usize, reason: &str) {
        for at in 0..self.hosts.len() {
            if at == of {
                continue;
            }
            for session in self.hosts[of].sessions.clone() {
                if self.hosts[at].backup.is_some_and(|(its, _)| its == session) {
                    let reason = reason.to_owned();
                    self.tell(at, Event::PrimaryGone { session, reason, silence: Duration::ZERO });
                    self.tell(at, Event::StandbyWaits { session });
                }
            }
            if let Some((session, _)) = self.hosts[of].backup
                && self.hosts[at].sessions.contains(&session)
            {
                self.tell(at, Event::SessionEnded { session, reason: reason.to_owned() });
            }
        }
    }

    fn observe(&self, at: usize) -> Observed {
        let host = &self.hosts[at];
        let silence = |session: &Term| {
            let heard = if self.cut { host.heard.get(session).copied() } else { None };
            match self.unread {
                true => Duration::ZERO,
                // What has come was read a moment ago.
                false => self.now.boottime.since(heard.unwrap_or(self.now.boottime)).max(Duration::from_millis(1)),
            }
        };
        Observed {
            uplink: true,
            silences: host.sessions.iter().map(|session| (*session, silence(session))).collect(),
            primary_silence: host.backup.as_ref().map(|(session, _)| (*session, silence(session))),
            primary_echo: if self.cut { 0 } else { self.now.boottime.as_micros() },
            logs: host.log.iter().map(|(id, _)| (*id, self.log_hangs.then_some(1))).collect(),
            ..Observed::default()
        }
    }

    /// The hosts hear each other no more.
    pub fn cut(&mut self) {
        self.cut = true;
        let now = self.now.boottime;
        for host in &mut self.hosts {
            let sessions = host.sessions.iter().copied().chain(host.backup.map(|(session, _)| session));
            host.heard.extend(sessions.map(|session| (session, now)));
        }
    }

    fn reach_witness(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.cut_from_witness != host.told_unreachable {
            host.told_unreachable = host.cut_from_witness;
            let error = host.cut_from_witness.then(|| "no route".to_owned());
            self.tell(at, Event::Witness { error });
            let question = if self.hosts[at].cut_from_witness { None } else { self.hosts[at].unasked.take() };
            if let Some(question) = question {
                self.asked(at, question);
            }
        }
    }

    /// The guest's host takes a checkpoint for all that get them.
    fn checkpoint(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.runs.is_none() || host.targets.is_empty() {
            return;
        }
        host.taken = host.taken.next();
        let (epoch, targets) = (host.taken, host.targets.clone());
        for target in targets {
            self.send(at, target, epoch);
        }
    }

    fn send(&mut self, at: usize, target: Target, epoch: Epoch) {
        let record = CheckpointRecord { epoch: epoch.0, ..CheckpointRecord::default() };
        match target {
            Target::Session(session) => {
                self.tell(at, Event::Sent { session, epoch, resumed: self.now.monotonic, record });
                let of = (0..self.hosts.len()).find(|b| self.hosts[*b].backup.is_some_and(|(its, _)| its == session));
                if let Some(b) = of.filter(|b| !self.cut && self.hosts[*b].alive) {
                    let first = self.hosts[b].backup.is_some_and(|(_, held)| held == Epoch(0));
                    self.hosts[b].backup = Some((session, epoch));
                    if self.loads {
                        return self.hosts[b].trying.push((session, epoch, first));
                    }
                    if first {
                        self.tell(b, Event::Tried { session });
                    }
                    self.takes(b, session, epoch, first);
                }
            }
            Target::Log => {
                if let Some((id, _)) = self.hosts[at].log.filter(|_| !self.log_hangs) {
                    let first = (self.hosts[at].log == Some((id, Epoch(0)))).then_some(Duration::ZERO);
                    self.hosts[at].log = Some((id, epoch));
                    self.tell(at, Event::LogHolds { id, epoch, first, commit_bytes: 1, bytes: 1, commit_us: 1 });
                }
            }
            Target::Snapshot => {}
        }
    }

    /// A backup has a checkpoint, and so has its log, if it keeps one.
    fn takes(&mut self, at: usize, session: Term, epoch: Epoch, first: bool) {
        match &mut self.hosts[at].log {
            Some(_) if self.log_hangs => return,
            Some((_, held)) => *held = epoch,
            None => {}
        }
        self.tell(at, Event::Held { session, epoch, first });
    }

    /// The first checkpoint is loaded at host `at`, whose disks take what they are given or do not.
    pub fn has_loaded(&mut self, at: usize, disks: bool) {
        self.loads = !disks;
        let waiting = if disks { std::mem::take(&mut self.hosts[at].trying) } else { self.hosts[at].trying.clone() };
        if let Some((session, ..)) = waiting.first() {
            self.tell(at, Event::Tried { session: *session });
        }
        for (session, epoch, first) in waiting.into_iter().filter(|_| disks) {
            self.takes(at, session, epoch, first);
        }
        self.settle();
    }

    /// Does it; what it is answered with.
    fn carry_out(&mut self, at: usize, effect: Effect) -> Vec<Event> {
        let now = self.now;
        match effect {
            Effect::Publish(kind) => self.hosts[at].journal.push(kind),
            Effect::Operation(operation) => {
                self.hosts[at].operations.insert(operation.id.number, operation);
            }
            Effect::Reply { to, reply } => drop(self.hosts[at].replies.insert(to, reply)),
            Effect::Ask(question) => self.asked(at, question),
            Effect::Name(label) => {
                let failure = self.name_taken.then(|| "another VM has it".to_owned());
                self.tell(at, Event::Named { label, failure });
            }
            Effect::LetGo(waiter) => self.let_go(at, waiter),
            Effect::Find(wish) => {
                let free = |b: &usize| {
                    let host = &self.hosts[*b];
                    *b != at && host.alive && !wish.but.iter().any(|h| h.as_str() == host.name)
                };
                let found = (0..self.hosts.len()).find(free).filter(|_| !self.cut);
                let event = match found {
                    Some(b) => Event::PeerConnected { peer: self.hosts[b].name.parse().unwrap() },
                    None => Event::NoPeer { reason: "nobody answers".into() },
                };
                self.tell(at, event);
            }
            Effect::AcceptOffer { offer, session, .. } => {
                let (_, hello) = self.hosts[at].offers.remove(&offer).expect("an offer");
                self.hosts[at].backup = Some((session, Epoch(0)));
                self.hosts[at].spec = Some(hello.spec);
                self.tell(at, Event::StandbyReady { session, status: status(), base: None });
            }
            Effect::RefuseOffer { offer, reason } => {
                let (from, hello) = self.hosts[at].offers.remove(&offer).expect("an offer");
                self.tell(from, Event::SessionEnded { session: hello.term, reason });
            }
            Effect::GuestIo(order) => return self.guest_io(at, order),
            Effect::Vm(order) => return self.vm(at, order),
            Effect::Session { session, order } => self.session(at, session, order),
            Effect::Primary { session, order } => self.primary(at, session, order),
            Effect::Log { id, order } => self.log(at, id, order),
            Effect::Recovery { id, order: RecoveryOrder::Look } => {
                let found = self.hosts[at].found.clone();
                let news = found.map_or(RecoveryNews::Nothing, |(standing, term)| RecoveryNews::Found {
                    standing,
                    epoch: Epoch(9),
                    term,
                });
                self.tell(at, Event::Recovery { id, news });
            }
            Effect::Job { id, order: JobOrder::Take { request, .. } } => {
                return vec![Event::SnapshotBegun { id, request, outcome: Ok(()) }];
            }
            Effect::Measure(_)
            | Effect::ReportLog { .. }
            | Effect::ForgetPeer
            | Effect::Disks(_)
            | Effect::Parking(_)
            | Effect::Guest(_)
            | Effect::Recovery { .. }
            | Effect::Job { .. } => {}
        }
        let _ = now;
        Vec::new()
    }

    fn asked(&mut self, at: usize, question: WitnessRequest) {
        if self.hosts[at].cut_from_witness {
            match question {
                WitnessRequest::Propose { .. } => self.hosts[at].unasked = Some(question),
                WitnessRequest::Cancel => self.hosts[at].unasked = None,
                WitnessRequest::Start { .. }
                | WitnessRequest::Look
                | WitnessRequest::Retire { .. }
                | WitnessRequest::Bury { .. }
                | WitnessRequest::Rename { .. } => {}
            }
            return;
        }
        if let (Some(tombstone), false) = (self.tombstone, question == WitnessRequest::Cancel) {
            return self.tell(at, Event::WitnessRetired(tombstone));
        }
        match question {
            WitnessRequest::Retire { force } => self.tell(at, Event::RetireFrom { found: self.witness.clone(), force }),
            WitnessRequest::Bury { expected, .. } if self.witness.as_ref() == Some(&expected) => self.bury(at),
            WitnessRequest::Bury { .. } => self.tell(at, Event::RetireFailed(Refusal::Overtaken)),
            WitnessRequest::Rename { .. } if self.witness.is_none() => {
                self.tell(at, Event::RenameFailed(Refusal::NoRecord))
            }
            WitnessRequest::Rename { name } => {
                self.renamed += 1;
                let label = Label { name, number: self.renamed };
                // The others look once a second.
                for host in 0..self.hosts.len() {
                    self.tell(host, Event::Labelled(label.clone()));
                }
            }
            WitnessRequest::Propose { id, expected, new, .. } => {
                let won = self.witness == expected;
                let outcome = if won {
                    self.witness = Some(new);
                    Outcome::Won
                } else {
                    Outcome::Lost(self.witness.clone())
                };
                self.tell(at, Event::WitnessAnswer { id, outcome });
                if won && self.hosts[at].backup.is_some() {
                    match self.at_win.take() {
                        Some(AtWin::LogFails) => self.log_fails(at),
                        None => {}
                    }
                }
            }
            WitnessRequest::Start { force } => {
                let found = self.witness.clone();
                self.tell(at, Event::StartFrom { found, force, behind: None });
            }
            WitnessRequest::Look => self.tell(at, Event::WitnessHolds(self.witness.clone())),
            WitnessRequest::Cancel => {}
        }
    }

    /// The VM is retired, by whoever is told so first.
    pub fn bury(&mut self, at: usize) {
        let term = self.witness.take().map_or(Term(1), |record| record.term.next());
        self.tombstone = Some(Tombstone { term, at_s: 7 });
        self.tell(at, Event::WitnessRetired(Tombstone { term, at_s: 7 }));
    }

    /// The log of host `at` fails and cannot note it; its disk answers no more, and neither does the witness.
    pub fn log_fails(&mut self, at: usize) {
        let (id, _) = self.hosts[at].log.take().expect("a log");
        self.hosts[at].log_broken = true;
        self.hosts[at].cut_from_witness = true;
        self.tell(at, Event::LogFailed { id, failure: LogFailure { noted: false, reason: "it is broken".into() } });
    }

    fn let_go(&mut self, at: usize, waiter: WaiterId) {
        match self.hosts[at].waits.remove(&waiter).expect("a thread that waits") {
            Waits::Up { generation } => {
                self.hosts[at].runs = Some(generation);
                self.tell(at, Event::VmRunning { generation });
            }
            Waits::First { target, epoch } => {
                let waits = target != Target::Log || self.waits_for_log;
                assert!(!waits || self.hosts[at].gate != Gate::Open, "output leaves in the epoch of {target}");
                self.hosts[at].targets.push(target);
                self.send(at, target, epoch);
            }
        }
    }

    fn wait(&mut self, at: usize, waits: Waits) -> WaiterId {
        let host = &mut self.hosts[at];
        host.last_id += 1;
        let id = WaiterId(host.last_id);
        host.waits.insert(id, waits);
        id
    }

    fn first(&mut self, at: usize, target: Target) {
        let host = &mut self.hosts[at];
        host.taken = host.taken.next();
        let (epoch, generation) = (host.taken, host.generation);
        let held = self.wait(at, Waits::First { target, epoch });
        self.tell(at, Event::FirstCheckpoint { generation, target, epoch, held });
    }

    fn guest_io(&mut self, at: usize, order: GuestIoOrder) -> Vec<Event> {
        let looked = self.now.boottime;
        let host = &mut self.hosts[at];
        match order {
            GuestIoOrder::Hold { .. } => {
                host.gate = Gate::Held;
                vec![Event::Looked(looked)]
            }
            GuestIoOrder::Release { epoch, announce, .. } => {
                if !self.keeps {
                    host.released = host.released.max(epoch);
                }
                let announced = announce && !self.keeps_announcements;
                vec![Event::Released { kept: self.keeps, announced, looked }]
            }
            GuestIoOrder::Open { .. } | GuestIoOrder::TryOpen { .. } if self.owes => {
                vec![Event::Gate { open: false, looked }]
            }
            GuestIoOrder::Open { .. } | GuestIoOrder::TryOpen { .. } => {
                host.gate = Gate::Open;
                vec![Event::Gate { open: true, looked }]
            }
            GuestIoOrder::Mute => {
                host.gate = Gate::Mute;
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn vm(&mut self, at: usize, order: VmOrder) -> Vec<Event> {
        match order {
            VmOrder::Boot { generation, taken, .. } => {
                self.hosts[at].generation = generation;
                (self.hosts[at].taken, self.hosts[at].released) = (taken, Epoch(0));
                if self.launch_hangs {
                    return Vec::new();
                }
                let up = self.wait(at, Waits::Up { generation });
                self.tell(at, Event::VmStarted { generation, status: status(), layout: layout(), up });
            }
            VmOrder::Start { .. } => return vec![Event::GuestStarted { layout: layout(), status: status() }],
            VmOrder::Run { generation, taken, .. } => {
                let host = &mut self.hosts[at];
                (host.generation, host.runs) = (generation, Some(generation));
                (host.taken, host.released) = (taken, Epoch(0));
                self.tell(at, Event::VmRunning { generation });
            }
            VmOrder::End { .. } => {
                let host = &mut self.hosts[at];
                host.runs = None;
                host.targets.clear();
            }
            VmOrder::AddSession { session, .. } => self.first(at, Target::Session(session)),
            VmOrder::AddLog { .. } => self.first(at, Target::Log),
            VmOrder::RemoveTarget { target, .. } => self.hosts[at].targets.retain(|t| *t != target),
            VmOrder::TakeFinal => {
                let host = &mut self.hosts[at];
                host.taken = host.taken.next();
                let (epoch, generation, targets) = (host.taken, host.generation, host.targets.clone());
                host.runs = None;
                self.tell(at, Event::FinalTaken { generation, epoch });
                targets.into_iter().for_each(|target| self.send(at, target, epoch));
            }
            VmOrder::GoOn => {
                let host = &mut self.hosts[at];
                host.runs = Some(host.generation);
            }
            _ => {}
        }
        Vec::new()
    }

    /// The host that is the backup of this session.
    fn backup_of(&self, session: Term) -> Option<usize> {
        (0..self.hosts.len()).find(|b| self.hosts[*b].backup.is_some_and(|(its, _)| its == session))
    }

    fn primary_of(&self, session: Term) -> Option<usize> {
        (0..self.hosts.len()).find(|a| self.hosts[*a].sessions.contains(&session))
    }

    fn session(&mut self, at: usize, session: Term, order: SessionOrder) {
        let backup = self.backup_of(session).filter(|b| !self.cut && self.hosts[*b].alive);
        match order {
            SessionOrder::Open { peer, hello } => {
                let b = self.hosts.iter().position(|h| h.name == peer.as_str()).expect("a host");
                self.hosts[at].sessions.push(session);
                let host = &mut self.hosts[b];
                host.last_id += 1;
                let offer = OfferId(host.last_id);
                host.offers.insert(offer, (at, (*hello).clone()));
                self.tell(b, Event::Offer { offer, hello });
            }
            SessionOrder::Sync { .. } => self.tell(at, Event::VolumesSynced { session, rounds: 0, bytes: 0 }),
            SessionOrder::Bound(term) => {
                if let Some(b) = backup {
                    self.tell(b, Event::BoundTo { session, term });
                }
            }
            SessionOrder::Relinquish { reason, .. } => {
                if let Some(b) = backup {
                    self.tell(b, Event::Relinquished { session, reason, silence: Duration::ZERO });
                    self.tell(b, Event::StandbyWaits { session });
                }
            }
            SessionOrder::Close(close) => {
                self.hosts[at].sessions.retain(|s| *s != session);
                if let Some(b) = backup {
                    let reason = if close == Close::Farewell { "the session has ended" } else { "closed" };
                    self.tell(b, Event::PrimaryGone { session, reason: reason.into(), silence: Duration::ZERO });
                    self.tell(b, Event::StandbyWaits { session });
                }
            }
        }
    }

    fn primary(&mut self, at: usize, session: Term, order: PrimaryOrder) {
        let primary = self.primary_of(session).filter(|a| !self.cut && self.hosts[*a].alive);
        match order {
            PrimaryOrder::Say(Word::Ready) => {
                if let Some(a) = primary {
                    self.tell(a, Event::SessionReady { session });
                }
            }
            PrimaryOrder::Say(Word::Tried) => {
                if let Some(a) = primary {
                    self.tell(a, Event::SessionTried { session });
                }
            }
            PrimaryOrder::Say(Word::Ack { epoch }) => {
                if let Some(a) = primary {
                    self.tell(a, Event::Acked { session, epoch, sent: Some(self.now.boottime) });
                }
            }
            PrimaryOrder::Say(Word::Heartbeat { uplink, echo_us, .. }) => {
                if let Some(a) = primary {
                    let echo = (echo_us > 0).then(|| Boottime::from_micros(echo_us));
                    self.tell(a, Event::PeerBeat { session, up: uplink, echo });
                }
            }
            PrimaryOrder::Load { .. } => {
                let Some((_, epoch)) = self.hosts[at].backup else { return };
                let spec = self.hosts[at].spec.clone().expect("a spec");
                let keeps_a_log = spec.policy.non_volatile.is_some();
                let logged = self.hosts[at].log.is_some_and(|(_, held)| held == epoch);
                if keeps_a_log && !logged && !spec.hardware.volumes.is_empty() {
                    // As the keeper's thread has it: what the log has not taken the volumes have not.
                    let reason = "the log did not take the last checkpoint".into();
                    return self.tell(at, Event::LoadFailed { session, reason });
                }
                let health = Health { standing: GuestState::default(), ..Health::default() };
                let (load_us, tracked, history) = (0, logged, None);
                let loaded = Box::new(Loaded { spec, epoch, health, load_us, tracked, history, logged });
                self.tell(at, Event::Loaded { session, loaded });
            }
            PrimaryOrder::Drop => {
                self.hosts[at].backup = None;
                if let Some(a) = primary {
                    self.tell(a, Event::SessionEnded { session, reason: "the backup closed the connection".into() });
                }
            }
            // The stream ends, and the last whole checkpoint waits for the witness's word.
            PrimaryOrder::Cut if self.hosts[at].backup.is_some() => self.tell(at, Event::StandbyWaits { session }),
            PrimaryOrder::Say(_) | PrimaryOrder::Park | PrimaryOrder::Cut => {}
        }
    }

    fn log(&mut self, at: usize, id: u64, order: LogOrder) {
        match order {
            LogOrder::Start { beginning, .. } => {
                if self.hosts[at].log_broken {
                    return;
                }
                self.hosts[at].log = Some((id, Epoch(0)));
                if let Beginning::New { .. } = beginning {
                    self.tell(at, Event::LogBegun { id });
                }
            }
            LogOrder::Stand { ticket, .. } if !self.log_hangs => self.tell(at, Event::Stood { id, ticket }),
            LogOrder::Remove => {
                self.hosts[at].log = None;
                if !self.log_hangs {
                    self.tell(at, Event::LogRemoved { id, removed: true });
                }
            }
            LogOrder::Drop => drop(self.hosts[at].log.take_if(|(its, _)| *its == id)),
            LogOrder::Stand { .. } | LogOrder::Reign(_) | LogOrder::Term(_) => {}
        }
    }
}

/// The QEMU that a core waits for.
pub fn waits_for(core: &Core) -> Option<Source> {
    core.loaded()
}
