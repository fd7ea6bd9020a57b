//! Explores the protocol's state machine, the very one that the keeper runs, under message loss, duplication and
//! reordering, crashes, restarts, and a witness that is slow or never answers.
//!
//! Messages stay in the network for ever and can be delivered any number of times in any order; a message that is
//! never delivered is lost; a witness that never gets a request is down. Detection is not timed: any host may suspect
//! its peer at any moment, rightly or wrongly.
//!
//! The guest is abstract: its state is the list of all that it has emitted. That makes the invariants plain:
//!
//! * **I1** what is released is in a checkpoint that every backup which may take over held whole, or the releaser is alone
//!   by the witness;
//! * **I2** a backup resumes from the newest checkpoint it acknowledged, and from a whole one;
//! * **I3** all that was ever released, by whichever host, is in the history of the VM that speaks (what was emitted but
//!   never released is a loss that networks have); and no two hosts speak freely at the same time;
//!   And a host that stood still, or that heard a backup late, while it was replaced, says nothing more at all. (One that was
//!   replaced a moment ago and could not notice may say what was committed before: the keeper's clock bounds that.)
//! * **L** a VM that is whole at a living host is not lost by an answer that proves nothing, nor won by a host that has given
//!   it up;
//! * **I4** a primary that calls itself protected has a session, and a backup that held a checkpoint of it;
//! * **E** a VM that is said to have stopped does not go on, nor does one go on from the log of the host that was told to stop it and that the
//!   witness names still; and of a VM that nobody has and nobody may take over, the host that had it says that it is lost or has stopped, as
//!   long as that host lives.
//!
//! Time is not in the model, but what the keeper's clock shows is: a host may stand still, and finds that out before it does
//! anything else; and before anything that could let output go a primary knows whether a backup may have lost patience with it
//! since it last answered ([`Replication::looks_at_its_clock`]).
//!
//! A VM may be logged. A host's disk keeps its log when the power is gone; everything else of all hosts is lost then.
//!
//! With two hosts the search begins when the VM boots. With three, what is interesting lies too deep for that: it begins
//! at several stages of a VM's life to which a script leads without faults ([`Stage`]).
//!
//! Each rule of the protocol is then switched off in turn, and the checker has to find the harm.

use std::collections::{BTreeMap, BTreeSet};

use ninefold_model::event::EventKind;
use ninefold_model::spec::Protection;
use ninefold_model::status::{ProtectionState, Role};
use ninefold_model::{Backup, Epoch, HostName, Record, Term};
use ninefold_replica::protocol::{
    Action, Input, LogRole, LogStanding, Outcome, Phase, ProposalId, Protocol, ReleasePolicy, Rules, Wanted,
};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

type Output = u8;
type History = Vec<Output>;
/// A record with hosts as numbers: term, primary, backups with their sessions.
type Flat = (Term, usize, Vec<(usize, Term)>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Msg {
    Propose {
        from: usize,
        id: ProposalId,
        expected: Option<Flat>,
        new: Flat,
    },
    Answer {
        to: usize,
        id: ProposalId,
        won: bool,
        /// What the register held then.
        held: Option<Flat>,
    },
    /// An answer of a witness that has lost its register, or refuses.
    Worthless {
        to: usize,
        id: ProposalId,
        answer: Worthless,
    },
    /// A session's messages are addressed to one incarnation of the backup: see the protocol's documentation.
    Offer {
        from: usize,
        to: usize,
        at: u32,
        session: Term,
    },
    /// Each checkpoint travels in parts.
    Part {
        to: usize,
        at: u32,
        session: Term,
        epoch: Epoch,
        first: bool,
        part: u8,
        history: History,
    },
    Ack {
        to: usize,
        session: Term,
        epoch: Epoch,
    },
    Bound {
        to: usize,
        at: u32,
        session: Term,
        record: Flat,
    },
    Relinquish {
        to: usize,
        at: u32,
        session: Term,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Worthless {
    NoRecord,
    /// It names a host that does not have the VM, in a term before all others.
    Older,
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Vm {
    history: History,
    paused: bool,
}

/// A primary's connection to a backup.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Connection {
    session: Term,
    to: usize,
    at: u32,
    /// The first epoch that went over it.
    first: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Host {
    protocol: Protocol,
    incarnation: u32,
    vm: Option<Vm>,
    /// Output held: its epoch once that is closed.
    held: Vec<(Option<Epoch>, Output)>,
    holding: bool,
    /// Primary: epochs captured since it has been one.
    captured: u64,
    capture_final: bool,
    /// Primary: epochs captured before it was last in doubt.
    doubted: u64,
    /// It has had every occasion to learn that another host has the VM.
    replaced: bool,
    connections: Vec<Connection>,
    /// Backup: the session's primary, parts received and the newest whole checkpoint.
    primary: usize,
    /// The VM was to be stopped here.
    stopping: bool,
    parts: BTreeSet<(Epoch, u8)>,
    whole: Option<(Epoch, History)>,
    /// Of a logged VM.
    log: Option<Logging>,
    /// The VM is this host's, and its checkpoint is being loaded.
    loading: Option<(Epoch, History)>,
    /// What the log is to note before it is proposed.
    noting: Option<(ProposalId, Record)>,
}

/// A log that is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Logging {
    standing: LogStanding,
    /// Checkpoints that are not yet on the disk; which of them is the session's first, for a backup.
    queue: Vec<(Epoch, History, bool)>,
    /// It is what is on the disk.
    published: bool,
}

/// A log as it survives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct OnDisk {
    standing: LogStanding,
    held: (Epoch, History),
    /// A session goes on with it, and may have written some of what came after `held` to it and to the volumes.
    behind: bool,
}

impl Host {
    fn connection(&self, session: Term) -> Option<&Connection> {
        self.connections.iter().find(|c| c.session == session)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    hosts: Vec<Option<Host>>,
    witness: Option<Record>,
    messages: BTreeSet<Msg>,
    released: BTreeSet<Output>,
    emitted: Output,
    /// The longest history that each backup acknowledged in each session, and the session's primary.
    committed: BTreeMap<(Term, usize), (usize, Epoch, History)>,
    crashes: u8,
    suspicions: u8,
    stalls: u8,
    /// Sessions in which a backup took its living primary for dead: it had heard nothing for so long.
    silent: BTreeSet<Term>,
    switchovers: u8,
    incarnations: u32,
    takeovers: u8,
    protections: u8,
    disks: Vec<Option<OnDisk>>,
    worthless: u8,
    power_losses: u8,
    recoveries: u8,
    failed_loads: u8,
    given_back: u8,
    stops: u8,
    /// It is said to have.
    stopped: bool,
    /// Whose proposal the witness has granted last.
    granted: u32,
    /// Incarnations that have had the VM, and have not said that it has ended.
    had: BTreeSet<u32>,
    violation: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Emit(usize),
    /// A checkpoint to all backups that have had one, and the first one of this session.
    Checkpoint(usize, Option<Term>),
    Connect(usize, usize),
    /// A primary stood still until now, for however long.
    StandStill(usize),
    /// A host takes its peer in this session for dead.
    Suspect(usize, Term),
    Crash(usize),
    LoseMachine(usize),
    Restart(usize),
    Switchover(usize, usize),
    Unprotect(usize),
    Protect(usize),
    /// The owner has the VM stopped.
    Stop(usize),
    /// A primary's log gets its first checkpoint.
    LogJoin(usize),
    /// The oldest checkpoint that waits for the disk gets there.
    Log(usize),
    /// The disk fails, and takes one more note or not.
    LogFails(usize, bool),
    /// The log has noted what is to be proposed.
    Noted(usize),
    /// A backup cannot go on with the VM, or is told to end, before it has asked for it.
    GiveUp(usize),
    /// What a host has won is loaded, and runs.
    Run(usize),
    /// It cannot be loaded; or so the shell says.
    CannotLoad(usize),
    /// A host reads what the witness holds.
    Look(usize),
    /// The witness answers a proposal, and has lost its register or will not do it.
    Worthless(Msg, Worthless),
    PowerLoss,
    /// A standby tries to go on from its log.
    Recover(usize),
    Deliver(Msg),
}

/// Where the search begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The VM is about to boot on the first host.
    Boot,
    /// A session with the second host is open.
    Syncing,
    /// The second host is bound, a session with the third is open.
    OneBound,
    /// The third host has acknowledged its first checkpoint, and nobody has yet heard of that.
    OneBinding,
    AllBound,
    /// The last host is not bound any more, and has not noticed. What was said since is released; the other backups do not know by which
    /// record.
    OneLeft,
    /// The first host is dead. The second has won the VM and loads it, the third has lost its claim.
    Won,
}

#[derive(Clone)]
struct Replication {
    rules: Rules,
    emits: Output,
    crashes: u8,
    suspicions: u8,
    stalls: u8,
    /// Primaries know how long ago their backups last answered.
    looks_at_its_clock: bool,
    switchovers: u8,
    max_term: u64,
    max_epochs: u64,
    /// Parts of a checkpoint.
    parts: u8,
    stages: &'static [Stage],
    names: Vec<HostName>,
    logged: bool,
    power_losses: u8,
    worthless: u8,
    /// How often a host cannot load what it has won.
    failed_loads: u8,
    /// How often the owner has the VM stopped.
    stops: u8,
}

impl Replication {
    /// One backup, as most VMs have it.
    fn pair(rules: Rules) -> Self {
        Self {
            rules,
            emits: 2,
            crashes: 1,
            suspicions: 2,
            stalls: 1,
            looks_at_its_clock: true,
            switchovers: 0,
            max_term: 5,
            max_epochs: 3,
            parts: 2,
            stages: &[Stage::Boot],
            names: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            logged: false,
            power_losses: 0,
            worthless: 0,
            failed_loads: 0,
            stops: 0,
        }
    }

    /// One backup, which is bound: what follows from there is found in fewer states.
    fn bound_pair(rules: Rules) -> Self {
        Self { stages: &[Stage::AllBound], ..Self::pair(rules) }
    }

    /// A logged VM on one host or two.
    fn logged(rules: Rules, hosts: usize) -> Self {
        let mut pair = Self { logged: true, power_losses: 2, parts: 1, suspicions: 1, ..Self::pair(rules) };
        pair.names.truncate(hosts);
        pair
    }

    /// Two backups.
    fn star(rules: Rules, stages: &'static [Stage]) -> Self {
        let names = ["a", "b", "c"].map(|n| n.parse().unwrap()).to_vec();
        Self { names, max_term: 8, parts: 1, stages, ..Self::pair(rules) }
    }

    fn index(&self, name: &HostName) -> usize {
        self.names.iter().position(|n| n == name).unwrap()
    }

    fn wanted(&self) -> Wanted {
        Wanted { protection: Protection::FaultTolerant, backups: self.names.len() - 1 }
    }

    fn fresh(&self, host: usize, incarnation: u32) -> Host {
        Host {
            protocol: Protocol::with_rules(self.names[host].clone(), self.wanted(), self.rules)
                .numbered_from(incarnation * 1000),
            incarnation,
            vm: None,
            held: Vec::new(),
            holding: false,
            captured: 0,
            capture_final: false,
            doubted: 0,
            replaced: false,
            connections: Vec::new(),
            primary: 0,
            stopping: false,
            parts: BTreeSet::new(),
            whole: None,
            log: None,
            loading: None,
            noting: None,
        }
    }

    fn flatten(&self, r: &Record) -> Flat {
        (r.term, self.index(&r.primary), r.backups.iter().map(|b| (self.index(&b.host), b.session)).collect())
    }

    fn unflatten(&self, (term, primary, backups): Flat) -> Record {
        let backups = backups.into_iter().map(|(b, session)| Backup { host: self.names[b].clone(), session });
        Record { term, primary: self.names[primary].clone(), backups: backups.collect() }
    }

    /// `host` lets `output` go out into the world.
    fn release(&self, w: &mut World, host: usize, output: Output) {
        w.released.insert(output);
        let Some(record) = &w.witness else { return };
        let owner = self.index(&record.primary);
        if w.hosts[host].as_ref().is_some_and(|h| h.replaced) {
            w.violation = Some("I3: a host that stood still or heard late speaks after it was replaced");
        }
        let committed = if owner == host {
            let holds = |b: &Backup| w.committed.get(&(b.session, self.index(&b.host)));
            record.backups.iter().all(|b| holds(b).is_some_and(|(_, _, h)| h.contains(&output)))
        } else {
            w.committed.values().any(|(p, _, h)| *p == host && h.contains(&output))
        };
        if !committed {
            w.violation = Some("I1: released what not every backup holds");
        }
        let logs = w.hosts[host].as_ref().is_some_and(|h| h.holding && h.log.as_ref().is_some_and(|log| log.published));
        if logs && w.disks[host].as_ref().is_none_or(|disk| !disk.held.1.contains(&output)) {
            w.violation = Some("I1: released what is not in the log");
        }
        // The host that the witness names carries on all that was ever released. While backups are bound they may too; that
        // is checked when one resumes.
        if let Some(vm) = w.hosts[owner].as_ref().and_then(|h| h.vm.as_ref())
            && !w.released.iter().all(|o| vm.history.contains(o))
        {
            w.violation = Some("I3: something was released that is not in the history of the VM that speaks");
        }
    }

    fn input(&self, w: &mut World, host: usize, input: Input) {
        let silent = |h: &Host| h.connections.iter().any(|c| w.silent.contains(&c.session));
        if w.hosts[host].as_ref().is_some_and(|h| !h.protocol.doubts() && h.vm.is_some() && silent(h)) {
            self.doubt(w, host);
        }
        self.handle(w, host, input);
    }

    /// `host` may have been replaced without having noticed, and its clock says so.
    fn doubt(&self, w: &mut World, host: usize) {
        let named = w.witness.as_ref().is_none_or(|r| self.index(&r.primary) == host);
        let Some(h) = w.hosts[host].as_mut() else { return };
        h.replaced |= !named;
        h.doubted = h.captured;
        if self.looks_at_its_clock {
            self.handle(w, host, Input::Doubt);
        }
    }

    fn handle(&self, w: &mut World, host: usize, input: Input) {
        let mut actions = Vec::new();
        if let Some(h) = w.hosts[host].as_mut() {
            h.protocol.handle(input, &mut actions);
        }
        for action in actions {
            self.act(w, host, action);
        }
    }

    fn act(&self, w: &mut World, host: usize, action: Action) {
        let h = w.hosts[host].as_mut().unwrap();
        match action {
            Action::Prepare { id, new } => {
                h.noting = Some((id, new));
                if h.log.is_none() {
                    self.noted(w, host);
                }
            }
            // It is the same message.
            Action::AskAgain { .. } => {}
            Action::Propose { id, expected, new } => {
                w.messages.insert(Msg::Propose {
                    from: host,
                    id,
                    expected: expected.map(|r| self.flatten(&r)),
                    new: self.flatten(&new),
                });
            }
            Action::Boot => {
                h.vm = Some(Vm { history: Vec::new(), paused: false });
                w.had.insert(h.incarnation);
            }
            Action::ResumeFrom { epoch } => {
                let whole = h.whole.take();
                // A backup may hold a whole one that its log, and so its primary, has not heard of yet.
                let logs = h.log.is_some();
                let Some((at, history)) = whole.filter(|(e, _)| *e == epoch || (logs && *e > epoch)) else {
                    w.violation = Some("I2: resumed from something that is not a whole checkpoint");
                    return;
                };
                h.loading = Some((at, history));
                w.had.insert(h.incarnation);
                if w.failed_loads == self.failed_loads {
                    self.run(w, host);
                }
            }
            Action::Hold => h.holding = true,
            Action::Release { epoch } => self.release_up_to(w, host, epoch),
            Action::OpenGate => {
                h.holding = false;
                for (_, output) in std::mem::take(&mut h.held) {
                    self.release(w, host, output);
                }
            }
            Action::GoOn => {
                h.capture_final = false;
                if let Some(vm) = h.vm.as_mut() {
                    vm.paused = false;
                }
            }
            Action::OpenSession { session, peer } => {
                let to = self.index(&peer);
                let at = w.hosts[to].as_ref().map_or(0, |h| h.incarnation);
                let h = w.hosts[host].as_mut().unwrap();
                h.connections.push(Connection { session, to, at, first: None });
                w.messages.insert(Msg::Offer { from: host, to, at, session });
            }
            Action::CloseSession { session } => h.connections.retain(|c| c.session != session),
            Action::TakeFinalCheckpoint => h.capture_final = true,
            Action::SendBound { session, record, first } => {
                if let Some(&Connection { to, at, .. }) = h.connection(session) {
                    let record = self.flatten(&record);
                    w.messages.insert(Msg::Bound { to, at, session, record });
                }
                w.protections += u8::from(first);
            }
            Action::SendRelinquish { session, .. } => {
                if let Some(&Connection { to, at, .. }) = h.connection(session) {
                    w.messages.insert(Msg::Relinquish { to, at, session });
                }
            }
            Action::AcceptSession { .. } => {
                h.stopping = false;
                h.parts.clear();
                h.whole = None;
                h.log = None;
                if let Some(role) = h.protocol.log_role().filter(|_| self.logged) {
                    let standing = LogStanding::new(role);
                    // Of a former backup's it goes on with what is there.
                    w.disks[host] = w.disks[host]
                        .take()
                        .filter(|d| matches!(d.standing.role, LogRole::Backup { .. }))
                        .map(|disk| OnDisk { standing: standing.clone(), behind: true, ..disk });
                    h.log = Some(Logging { standing, queue: Vec::new(), published: false });
                }
            }
            Action::SendAck { session, epoch } => {
                let primary = h.primary;
                let logged = w.disks[host].as_ref().map(|disk| &disk.held).filter(|_| h.log.is_some());
                if let Some((e, history)) = logged.or(h.whole.as_ref())
                    && *e == epoch
                {
                    w.committed.insert((session, host), (primary, epoch, history.clone()));
                }
                w.messages.insert(Msg::Ack { to: primary, session, epoch });
            }
            Action::StandDown => {
                let (protocol, stopping) = (h.protocol.clone(), h.stopping);
                *h = Host { protocol, stopping, ..self.fresh(host, h.incarnation) };
            }
            Action::Emit(EventKind::GaveBack { .. }) => w.given_back += 1,
            Action::Emit(EventKind::Lost { .. }) => drop(w.had.remove(&h.incarnation)),
            Action::Emit(EventKind::Stopped { .. }) => {
                w.had.remove(&h.incarnation);
                w.stopped = true;
                w.disks[host] = None;
                if w.witness.as_ref().is_none_or(|r| self.index(&r.primary) != host || !r.is_alone()) {
                    w.violation = Some("E: a VM is said to have stopped, and somebody may take it over");
                }
            }
            Action::RefuseSession { .. } | Action::Refuse(_) | Action::Emit(_) => {}
        }
    }

    /// What is loaded runs.
    fn run(&self, w: &mut World, host: usize) {
        let h = w.hosts[host].as_mut().unwrap();
        let Some((at, history)) = h.loading.take() else { return };
        if w.stopped {
            w.violation = Some("E: a VM that has stopped goes on");
        }
        if !w.released.iter().all(|o| history.contains(o)) {
            w.violation = Some("I2: resumed from a state older than what was released");
        }
        h.vm = Some(Vm { history: history.clone(), paused: false });
        h.holding = false;
        h.captured = 0;
        h.doubted = 0;
        let went_on = h.log.as_mut().filter(|log| log.published).map(|log| log.queue.clear());
        if w.power_losses == 0 {
            w.takeovers += 1;
        } else {
            w.recoveries += 1;
        }
        if went_on.is_some() {
            // The log goes on where it ends, and the guest runs when it has all that came.
            if let Some(disk) = &mut w.disks[host] {
                disk.held = (at, history);
            }
            self.input(w, host, Input::LogFirst { epoch: Epoch(1) });
        } else {
            w.hosts[host].as_mut().unwrap().log = None;
        }
        self.input(w, host, Input::Resumed);
    }

    fn release_up_to(&self, w: &mut World, host: usize, epoch: Epoch) {
        loop {
            let h = w.hosts[host].as_mut().unwrap();
            match h.held.first() {
                Some((Some(e), _)) if *e <= epoch => {
                    let (_, output) = h.held.remove(0);
                    self.release(w, host, output);
                }
                _ => break,
            }
        }
    }

    /// What is to be proposed is noted in the log, if there is one.
    fn noted(&self, w: &mut World, host: usize) {
        let h = w.hosts[host].as_mut().unwrap();
        let Some((id, new)) = h.noting.take() else { return };
        if let Some(log) = &mut h.log {
            if let Some(role) = h.protocol.log_role() {
                log.standing.role = role;
            }
            log.standing.propose(new);
            if let Some(disk) = w.disks[host].as_mut().filter(|_| log.published) {
                disk.standing = log.standing.clone();
            }
        }
        self.input(w, host, Input::Prepared { id });
    }

    /// Somebody asks for the VM of another, and has it now. Whoever that is goes on with it, or can after a restart.
    fn won(&self, w: &mut World, host: usize, id: ProposalId, new: &Record) {
        let Some(h) = w.hosts[host].as_ref().filter(|h| h.incarnation == id / 1000) else { return };
        let allows = |disk: &OnDisk| disk.standing.allows(new, &self.names[host]);
        if !h.protocol.may_have_won() && h.vm.is_none() && !w.disks[host].as_ref().is_some_and(allows) {
            w.violation = Some("L: a VM is won by a host that has given it up");
        }
    }

    /// A logged primary's log gets checkpoints.
    fn logs(h: &Host) -> bool {
        h.vm.is_some() && h.log.is_some()
    }

    fn log_join(&self, w: &mut World, host: usize) {
        let h = w.hosts[host].as_mut().unwrap();
        let Some(role) = h.protocol.log_role() else { return };
        let epoch = Epoch(h.captured + 1);
        if h.noting.is_some() {
            return;
        }
        h.log = Some(Logging { standing: LogStanding::new(role), queue: Vec::new(), published: false });
        w.disks[host] = None;
        self.input(w, host, Input::LogFirst { epoch });
        self.checkpoint(w, host, None);
    }

    /// The oldest checkpoint in a log's queue becomes durable.
    fn log(&self, w: &mut World, host: usize) {
        let h = w.hosts[host].as_mut().unwrap();
        let Some(log) = h.log.as_mut().filter(|log| !log.queue.is_empty()) else { return };
        let (epoch, history, first) = log.queue.remove(0);
        log.published = true;
        w.disks[host] = Some(OnDisk { standing: log.standing.clone(), held: (epoch, history), behind: false });
        let input = match h.protocol.backing() {
            Some(session) => Input::CheckpointHeld { session, epoch, first },
            None => Input::LogHolds { epoch },
        };
        self.input(w, host, input);
    }

    fn recover(&self, w: &mut World, host: usize) {
        let (Some(record), Some(disk)) = (w.witness.clone(), w.disks[host].clone()) else { return };
        let h = w.hosts[host].as_mut().unwrap();
        h.whole = Some(disk.held.clone());
        h.log = Some(Logging { standing: disk.standing.clone(), queue: Vec::new(), published: true });
        let (standing, epoch) = (disk.standing, disk.held.0);
        let (stopping, named) = (h.stopping, self.index(&record.primary) == host);
        self.input(w, host, Input::Recover { standing, epoch, record });
        let h = w.hosts[host].as_mut().unwrap();
        if !h.protocol.awaits_witness() {
            (h.whole, h.log) = (None, None);
        } else if disk.behind {
            w.violation = Some("I2: a host goes on from a log that is a mixture");
        } else if stopping && named {
            w.violation = Some("E: a VM goes on from its log where its owner has had it stopped");
        }
    }

    /// Nobody has the VM and nobody may take it over, and the host that had it last does not say so, nor waits for what would tell it.
    fn is_silent(&self, w: &World) -> bool {
        let Some(record) = w.witness.as_ref().filter(|r| r.is_alone()) else { return false };
        let Some(h) = &w.hosts[self.index(&record.primary)] else { return false };
        let had = w.granted == h.incarnation && w.had.contains(&h.incarnation);
        let waits = h.protocol.is_gone() || h.protocol.is_spare() || h.protocol.awaits_witness();
        had && h.protocol.role() == Role::Standby && h.vm.is_none() && h.loading.is_none() && !waits
    }

    fn checkpoint(&self, w: &mut World, host: usize, joins: Option<Term>) {
        let h = w.hosts[host].as_mut().unwrap();
        h.captured += 1;
        let epoch = Epoch(h.captured);
        if let Some(session) = joins {
            for c in h.connections.iter_mut().filter(|c| c.session == session) {
                c.first = Some(epoch.0);
            }
            self.input(w, host, Input::FirstCheckpoint { session, epoch });
        }
        let h = w.hosts[host].as_mut().unwrap();
        for (e, _) in &mut h.held {
            e.get_or_insert(epoch);
        }
        let vm = h.vm.as_mut().unwrap();
        let last = std::mem::take(&mut h.capture_final);
        vm.paused |= last;
        let history = vm.history.clone();
        if let Some(log) = &mut h.log {
            log.queue.push((epoch, history.clone(), false));
        }
        for c in h.connections.iter().filter(|c| c.first.is_some()) {
            let first = c.first == Some(epoch.0);
            for part in 0..self.parts {
                let (to, at, session, history) = (c.to, c.at, c.session, history.clone());
                w.messages.insert(Msg::Part { to, at, session, epoch, first, part, history });
            }
        }
        if last {
            self.input(w, host, Input::FinalTaken { epoch });
        }
    }

    fn deliver(&self, w: &mut World, msg: Msg) {
        if let Msg::Offer { to, at, .. }
        | Msg::Part { to, at, .. }
        | Msg::Bound { to, at, .. }
        | Msg::Relinquish { to, at, .. } = &msg
            && w.hosts[*to].as_ref().is_none_or(|h| h.incarnation != *at)
        {
            return;
        }
        match msg {
            Msg::Propose { from, id, expected, new } => {
                let new = self.unflatten(new);
                let expected = expected.map(|r| self.unflatten(r));
                let current = w.witness.as_ref();
                let won = current == expected.as_ref() || current == Some(&new);
                if won {
                    if current != Some(&new) && expected.is_some_and(|e| e.primary != new.primary) {
                        self.won(w, from, id, &new);
                    }
                    w.witness = Some(new);
                    w.granted = id / 1000;
                }
                let held = w.witness.as_ref().map(|r| self.flatten(r));
                w.messages.insert(Msg::Answer { to: from, id, won, held });
            }
            Msg::Answer { to, id, won, held } => {
                let outcome = if won { Outcome::Won } else { Outcome::Lost(held.map(|r| self.unflatten(r))) };
                self.input(w, to, Input::Answer { id, outcome });
            }
            Msg::Worthless { to, id, answer } => {
                let outcome = match answer {
                    Worthless::NoRecord => Outcome::Lost(None),
                    Worthless::Older => {
                        let primary = self.names[(to + 1) % self.names.len()].clone();
                        Outcome::Lost(Some(Record { term: Term(0), primary, backups: Vec::new() }))
                    }
                    Worthless::Refused => Outcome::Refused(String::new()),
                };
                let is_whole = |w: &World| w.hosts[to].as_ref().is_some_and(|h| h.vm.is_some() || h.whole.is_some());
                let before = is_whole(w);
                self.input(w, to, Input::Answer { id, outcome });
                if before && !is_whole(w) {
                    w.violation = Some("L: a VM is ended by an answer that proves nothing");
                }
            }
            Msg::Offer { from, to, session, .. } => {
                self.input(w, to, Input::Offer { from: self.names[from].clone(), session });
                if let Some(h) = w.hosts[to].as_mut()
                    && h.protocol.backing() == Some(session)
                {
                    h.primary = from;
                }
            }
            Msg::Part { to, session, epoch, first, part, history, .. } => {
                let Some(h) = w.hosts[to].as_mut() else {
                    return;
                };
                let due = h.whole.as_ref().map_or(first, |(e, _)| epoch == e.next() && !first);
                let ours = h.protocol.backing() == Some(session)
                    || (!self.rules.no_ack_while_claiming && h.protocol.awaits_witness());
                if !ours || (self.rules.ack_in_order && !due) {
                    return;
                }
                h.parts.insert((epoch, part));
                if (0..self.parts).all(|part| h.parts.contains(&(epoch, part))) {
                    h.parts.clear();
                    h.whole = Some((epoch, history.clone()));
                    match &mut h.log {
                        Some(log) => log.queue.push((epoch, history, first)),
                        None => self.input(w, to, Input::CheckpointHeld { session, epoch, first }),
                    }
                }
            }
            Msg::Ack { to, session, epoch } => {
                if !self.rules.release_only_acked {
                    // Broken on purpose: any sign of life of the backup counts as an acknowledgement of everything.
                    self.input(w, to, Input::Acked { session, epoch: Epoch(u64::MAX) });
                }
                if w.hosts[to].as_ref().is_some_and(|h| h.protocol.doubts() && epoch.0 > h.doubted) {
                    self.input(w, to, Input::Sure { session });
                }
                self.input(w, to, Input::Acked { session, epoch });
            }
            Msg::Bound { to, session, record, .. } => {
                let record = self.unflatten(record);
                self.input(w, to, Input::BoundNotice { session, record });
            }
            Msg::Relinquish { to, session, .. } => {
                self.input(w, to, Input::PrimaryLost { session, reason: String::new() });
            }
        }
    }

    fn suspect(&self, w: &mut World, host: usize, session: Term) {
        let Some(h) = w.hosts[host].as_mut() else {
            return;
        };
        h.connections.retain(|c| c.session != session);
        let reason = String::new();
        let input = if h.protocol.backing() == Some(session) {
            Input::PrimaryLost { session, reason }
        } else {
            Input::SessionLost { session, reason }
        };
        self.input(w, host, input);
    }

    /// Whether the other end of `host`'s session is really gone.
    fn is_gone(w: &World, host: usize, session: Term) -> bool {
        let Some(h) = &w.hosts[host] else { return true };
        match h.connection(session) {
            Some(c) => {
                let peer = w.hosts[c.to].as_ref().filter(|p| p.incarnation == c.at);
                peer.is_none_or(|p| c.first.is_some() && p.protocol.backing() != Some(session))
            }
            None => w.hosts[h.primary].as_ref().and_then(|p| p.connection(session)).is_none(),
        }
    }

    fn emit(&self, w: &mut World, host: usize) {
        w.emitted += 1;
        let output = w.emitted;
        let h = w.hosts[host].as_mut().unwrap();
        h.vm.as_mut().unwrap().history.push(output);
        if h.holding {
            h.held.push((None, output));
        } else {
            self.release(w, host, output);
        }
    }

    /// What a winner has does not load. Of one that runs nobody could say so, and the protocol must not believe it.
    fn cannot_load(&self, w: &mut World, host: usize) {
        w.failed_loads += 1;
        let h = w.hosts[host].as_mut().unwrap();
        (h.vm, h.loading, h.whole) = (None, None, None);
        self.input(w, host, Input::CannotResume { reason: String::new() });
    }

    /// A host reads the witness's record. A backup that was overtaken takes its primary for lost.
    fn look(&self, w: &mut World, host: usize) {
        let (Some(record), Some(h)) = (w.witness.clone(), w.hosts[host].as_ref()) else { return };
        match h.protocol.backing().filter(|_| h.protocol.is_overtaken(&record)) {
            Some(session) => self.input(w, host, Input::PrimaryLost { session, reason: String::new() }),
            None => self.input(w, host, Input::Observed(record)),
        }
    }

    /// The world at a stage. Nothing that was sent on the way there is still in the network.
    fn at(&self, stage: Stage) -> World {
        let hosts = (0u32..).zip(&self.names).map(|(i, _)| Some(self.fresh(i as usize, i + 1))).collect::<Vec<_>>();
        let mut w = World {
            incarnations: hosts.len() as u32,
            hosts,
            witness: None,
            messages: BTreeSet::new(),
            released: BTreeSet::new(),
            emitted: 0,
            committed: BTreeMap::new(),
            crashes: 0,
            suspicions: 0,
            stalls: 0,
            silent: BTreeSet::new(),
            switchovers: 0,
            takeovers: 0,
            protections: 0,
            disks: self.names.iter().map(|_| None).collect(),
            worthless: 0,
            power_losses: 0,
            recoveries: 0,
            failed_loads: 0,
            given_back: 0,
            stops: 0,
            stopped: false,
            granted: 0,
            had: BTreeSet::new(),
            violation: None,
        };
        self.input(&mut w, 0, Input::Start { found: None, force: false });
        if stage == Stage::Boot {
            return w;
        }
        self.quiesce(&mut w, |_| true);
        for backup in 1..self.names.len() {
            self.input(&mut w, 0, Input::PeerAvailable { peer: self.names[backup].clone() });
            self.quiesce(&mut w, |_| true);
            if stage == Stage::Syncing {
                break;
            }
            let last = backup == self.names.len() - 1;
            if last && stage == Stage::OneBound {
                break;
            }
            let session = w.hosts[0].as_ref().unwrap().connections.last().map(|c| c.session);
            self.checkpoint(&mut w, 0, session);
            self.quiesce(&mut w, |m| !last || stage != Stage::OneBinding || !matches!(m, Msg::Ack { .. }));
        }
        if stage == Stage::OneLeft {
            let session = w.hosts[0].as_ref().unwrap().connections.last().unwrap().session;
            self.suspect(&mut w, 0, session);
            self.quiesce(&mut w, |m| !matches!(m, Msg::Bound { .. }));
            self.emit(&mut w, 0);
            self.checkpoint(&mut w, 0, None);
            self.quiesce(&mut w, |m| !matches!(m, Msg::Bound { .. }));
            assert!(!w.released.is_empty());
        }
        if stage == Stage::Won {
            let sessions: Vec<_> = w.hosts[0].as_ref().unwrap().connections.iter().map(|c| (c.to, c.session)).collect();
            w.hosts[0] = None;
            for (host, session) in sessions {
                self.suspect(&mut w, host, session);
                self.quiesce(&mut w, |_| true);
            }
            assert!(w.hosts[1].as_ref().unwrap().loading.is_some());
        }
        if stage != Stage::OneBinding {
            w.messages.clear();
        }
        w
    }

    /// Delivers what is in the network, each message once, and does what logs have to do, until nothing comes of it.
    fn quiesce(&self, w: &mut World, wanted: impl Fn(&Msg) -> bool) {
        loop {
            if let Some(msg) = w.messages.iter().find(|m| wanted(m)).cloned() {
                w.messages.remove(&msg);
                self.deliver(w, msg);
                continue;
            }
            let queued = |h: &Host| h.log.as_ref().is_some_and(|log| !log.queue.is_empty());
            if let Some(host) = w.hosts.iter().position(|h| h.as_ref().is_some_and(queued)) {
                self.log(w, host);
                continue;
            }
            let noting = |h: &Host| h.noting.is_some();
            let Some(host) = w.hosts.iter().position(|h| h.as_ref().is_some_and(noting)) else { return };
            self.noted(w, host);
        }
    }
}

impl Model for Replication {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        self.stages.iter().map(|stage| self.at(*stage)).collect()
    }

    fn actions(&self, w: &World, steps: &mut Vec<Step>) {
        for (i, host) in w.hosts.iter().enumerate() {
            let Some(h) = host else {
                steps.push(Step::Restart(i));
                continue;
            };
            if w.crashes < self.crashes {
                steps.push(Step::Crash(i));
                if h.vm.is_some() {
                    steps.push(Step::LoseMachine(i));
                }
            }
            if h.log.as_ref().is_some_and(|log| !log.queue.is_empty()) {
                steps.push(Step::Log(i));
            }
            if h.noting.is_some() {
                steps.push(Step::Noted(i));
            }
            let asked = h.protocol.may_have_won() && h.noting.is_none();
            if self.logged && h.whole.is_some() && h.vm.is_none() && !asked && w.crashes < self.crashes {
                steps.push(Step::GiveUp(i));
            }
            if h.loading.is_some() {
                steps.push(Step::Run(i));
            }
            let asks = h.protocol.claims() && h.protocol.may_have_won() && h.whole.is_some();
            if w.failed_loads < self.failed_loads && (h.loading.is_some() || h.vm.is_some() || asks) {
                steps.push(Step::CannotLoad(i));
            }
            if h.protocol.is_spare()
                || h.protocol.is_gone()
                || w.witness.as_ref().is_some_and(|r| h.protocol.is_overtaken(r))
            {
                steps.push(Step::Look(i));
            }
            let waits = h.protocol.role() == Role::Standby && !h.protocol.is_spare();
            if h.vm.is_none() && waits && w.disks[i].is_some() {
                steps.push(Step::Recover(i));
            }
            let sessions = h.protocol.backing().into_iter().chain(h.connections.iter().map(|c| c.session));
            let suspects = sessions.filter(|s| w.suspicions < self.suspicions || Self::is_gone(w, i, *s));
            steps.extend(suspects.map(|s| Step::Suspect(i, s)));
            let Some(vm) = &h.vm else { continue };
            // With nothing held there is nothing to doubt.
            if h.holding && w.stalls < self.stalls {
                steps.push(Step::StandStill(i));
            }
            if !vm.paused && w.emitted < self.emits {
                steps.push(Step::Emit(i));
            }
            if h.protocol.wants_peer() {
                let others = (0..w.hosts.len()).filter(|&o| o != i && w.hosts[o].is_some());
                let free = others.filter(|&o| h.protocol.sessions().iter().all(|s| s.backup != self.names[o]));
                steps.extend(free.map(|o| Step::Connect(i, o)));
            }
            let room = h.connections.iter().all(|c| c.first.is_none_or(|f| h.captured + 1 - f < self.max_epochs))
                && (!self.logged || h.captured < self.max_epochs);
            if self.logged && !vm.paused && h.log.is_none() && room {
                steps.push(Step::LogJoin(i));
            }
            // A backup whose disk fails is none any more: as after a crash.
            if Self::logs(h) && w.crashes < self.crashes {
                steps.extend([Step::LogFails(i, false), Step::LogFails(i, true)]);
            }
            if !vm.paused && room {
                if Self::logs(h) || h.connections.iter().any(|c| c.first.is_some()) {
                    steps.push(Step::Checkpoint(i, None));
                }
                let syncing = h.connections.iter().filter(|c| c.first.is_none());
                steps.extend(syncing.map(|c| Step::Checkpoint(i, Some(c.session))));
            }
            if w.switchovers < self.switchovers {
                let bound = |s: Term| h.protocol.phase(s) == Some(Phase::Bound);
                steps.extend(h.connections.iter().filter(|c| bound(c.session)).map(|c| Step::Switchover(i, c.to)));
                if h.connections.iter().any(|c| bound(c.session)) {
                    steps.push(Step::Unprotect(i));
                }
            }
            if h.protocol.wanted().protection == Protection::None {
                steps.push(Step::Protect(i));
            }
            if w.stops < self.stops {
                steps.push(Step::Stop(i));
            }
        }
        if w.power_losses < self.power_losses && w.hosts.iter().any(Option::is_some) {
            steps.push(Step::PowerLoss);
        }
        if w.worthless < self.worthless {
            let proposals = w.messages.iter().filter(|m| matches!(m, Msg::Propose { .. }));
            let answers = [Worthless::NoRecord, Worthless::Older, Worthless::Refused];
            steps.extend(proposals.flat_map(|m| answers.map(|answer| Step::Worthless(m.clone(), answer))));
        }
        steps.extend(w.messages.iter().cloned().map(Step::Deliver));
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut w = last.clone();
        match step {
            Step::Emit(i) => self.emit(&mut w, i),
            Step::Checkpoint(i, joins) => self.checkpoint(&mut w, i, joins),
            Step::Connect(i, to) => self.input(&mut w, i, Input::PeerAvailable { peer: self.names[to].clone() }),
            Step::StandStill(i) => {
                w.stalls += 1;
                self.doubt(&mut w, i);
            }
            Step::Suspect(i, session) => {
                let wrongly = !Self::is_gone(last, i, session);
                w.suspicions += u8::from(wrongly);
                if wrongly && last.hosts[i].as_ref().is_some_and(|h| h.protocol.backing() == Some(session)) {
                    w.silent.insert(session);
                }
                self.suspect(&mut w, i, session);
            }
            Step::Crash(i) => {
                w.crashes += 1;
                w.hosts[i] = None;
            }
            Step::LoseMachine(i) => {
                w.crashes += 1;
                let h = w.hosts[i].as_mut().unwrap();
                h.vm = None;
                self.input(&mut w, i, Input::MachineLost { reason: String::new() });
            }
            Step::Restart(i) => {
                w.incarnations += 1;
                w.hosts[i] = Some(self.fresh(i, w.incarnations));
            }
            Step::Switchover(i, to) => {
                w.switchovers += 1;
                let to = Some(self.names[to].clone());
                self.input(&mut w, i, Input::Switchover { to, reason: String::new() });
            }
            Step::Unprotect(i) => {
                w.switchovers += 1;
                let none = Wanted { protection: Protection::None, ..self.wanted() };
                self.input(&mut w, i, Input::Want(none));
            }
            Step::Protect(i) => self.input(&mut w, i, Input::Want(self.wanted())),
            Step::Stop(i) => {
                w.stops += 1;
                w.hosts[i].as_mut().unwrap().stopping = true;
                self.input(&mut w, i, Input::Stop { reason: String::new() });
            }
            Step::LogJoin(i) => self.log_join(&mut w, i),
            Step::Log(i) => self.log(&mut w, i),
            Step::LogFails(i, noted) => {
                w.crashes += 1;
                w.hosts[i].as_mut().unwrap().log = None;
                // There is nothing left to note it in.
                self.noted(&mut w, i);
                if let Some(disk) = w.disks[i].as_mut().filter(|_| noted) {
                    disk.standing.behind = true;
                }
                self.input(&mut w, i, Input::LogLost { noted });
            }
            Step::Noted(i) => self.noted(&mut w, i),
            Step::Run(i) => self.run(&mut w, i),
            Step::CannotLoad(i) => self.cannot_load(&mut w, i),
            Step::Look(i) => self.look(&mut w, i),
            Step::GiveUp(i) => {
                w.crashes += 1;
                let h = w.hosts[i].as_mut().unwrap();
                h.protocol.abandon();
                self.act(&mut w, i, Action::StandDown);
            }
            Step::Worthless(msg, answer) => {
                w.worthless += 1;
                if let Msg::Propose { from, id, .. } = msg {
                    w.messages.insert(Msg::Worthless { to: from, id, answer });
                }
            }
            Step::PowerLoss => {
                w.power_losses += 1;
                w.hosts.fill(None);
            }
            Step::Recover(i) => self.recover(&mut w, i),
            Step::Deliver(msg) => self.deliver(&mut w, msg),
        }
        (w != *last).then_some(w)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1, I2, I3, E whenever something is released, goes on or ends", |_, w: &World| {
                w.violation.is_none()
            }),
            Property::always("I3: one host speaks freely", |m: &Self, w: &World| {
                let alone = |i| w.witness.as_ref().is_some_and(|r| m.index(&r.primary) == i && r.is_alone());
                let free = w
                    .hosts
                    .iter()
                    .enumerate()
                    .filter(|(i, h)| h.as_ref().is_some_and(|h| h.vm.is_some() && (!h.holding || alone(*i))));
                free.count() <= 1
            }),
            Property::always("I4: protected means protected", |_, w: &World| {
                w.hosts.iter().flatten().all(|h| {
                    h.protocol.protection() != Some(ProtectionState::Protected)
                        || h.connections.iter().any(|c| w.committed.contains_key(&(c.session, c.to)))
                })
            }),
            Property::always(END_IS_SAID, |m: &Self, w: &World| !m.is_silent(w)),
            Property::sometimes("a VM becomes protected", |_, w: &World| w.protections > 0),
            Property::sometimes("two backups are bound", |_, w: &World| {
                w.witness.as_ref().is_some_and(|r| r.backups.len() > 1)
            }),
            Property::sometimes("a backup takes over", |_, w: &World| w.takeovers > 0),
            Property::sometimes("a VM goes on from its log", |_, w: &World| w.recoveries > 0),
            Property::sometimes("and once more", |_, w: &World| w.recoveries > 1),
            Property::sometimes("output flows after a loss of power", |m: &Self, w: &World| {
                w.recoveries > 0 && w.released.contains(&m.emits)
            }),
            Property::sometimes(GOES_ON, |m: &Self, w: &World| {
                w.hosts.iter().flatten().any(|h| {
                    let bound = |c: &Connection| h.protocol.phase(c.session) == Some(Phase::Bound);
                    let before = |c: &&Connection| c.first.is_some_and(|first| first <= h.doubted);
                    !h.protocol.doubts() && h.connections.iter().filter(before).any(bound)
                }) && w.released.contains(&m.emits)
            }),
            Property::sometimes(STOPPED, |_, w: &World| w.stopped),
            Property::sometimes(GIVEN_BACK, |_, w: &World| w.given_back > 0 && w.takeovers > 0),
            Property::sometimes("a second takeover", |_, w: &World| w.takeovers > 1),
            Property::sometimes("output flows after a takeover", |m: &Self, w: &World| {
                w.takeovers > 0 && w.released.contains(&m.emits)
            }),
        ]
    }

    fn within_boundary(&self, w: &World) -> bool {
        w.witness.as_ref().is_none_or(|r| r.term.0 <= self.max_term)
    }
}

const ALWAYS: [&str; 4] = [
    "I1, I2, I3, E whenever something is released, goes on or ends",
    "I3: one host speaks freely",
    "I4: protected means protected",
    END_IS_SAID,
];
const END_IS_SAID: &str = "E: an end is said";

fn explore(model: Replication, states: usize, expected: &[&'static str]) {
    let checker = model.checker().threads(2).target_state_count(states).spawn_bfs().join();
    for name in ALWAYS {
        if let Some(path) = checker.discovery(name) {
            panic!("{name} is violated:\n{path}");
        }
    }
    for name in expected {
        assert!(checker.discovery(name).is_some(), "never seen in {} states: {name}", checker.unique_state_count());
    }
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
}

/// The checker must find harm when a rule is off.
fn finds_harm(model: Replication) {
    finds(model, &ALWAYS);
}

/// It must find one of these.
fn finds(model: Replication, properties: &[&'static str]) {
    assert!(model.rules != Rules::ALL || !model.looks_at_its_clock);
    let checker = model
        .checker()
        .threads(2)
        // The search ends with what it finds: two to three times as far as that has been. Two threads do not go the same way twice.
        .target_state_count(8_000_000)
        .finish_when(HasDiscoveries::AnyOf(properties.iter().copied().collect()))
        .spawn_bfs()
        .join();
    let found = properties.iter().find_map(|name| checker.discovery(name).map(|path| (name, path)));
    let Some((name, path)) = found else {
        panic!("no harm found in {} states without the rule", checker.unique_state_count());
    };
    println!("{name}, after {} steps, in {} states", path.into_actions().len(), checker.unique_state_count());
}

const STOPPED: &str = "a VM has stopped";
const GIVEN_BACK: &str = "a VM goes on that was given back";
const GOES_ON: &str = "a primary that stood still goes on in the same session";
const TAKEN_OVER: [&str; 2] = ["a VM becomes protected", "a backup takes over"];

#[test]
fn the_invariants_hold_with_one_backup() {
    explore(Replication::pair(Rules::ALL), 1_000_000, &TAKEN_OVER);
}

#[test]
fn the_invariants_hold_with_one_backup_through_a_switchover() {
    let model = Replication { switchovers: 1, suspicions: 1, crashes: 1, emits: 1, ..Replication::pair(Rules::ALL) };
    explore(model, 1_000_000, &TAKEN_OVER);
}

#[test]
fn the_invariants_hold_while_the_witness_answers_what_proves_nothing() {
    let model = Replication { worthless: 2, ..Replication::bound_pair(Rules::ALL) };
    explore(model, 500_000, &TAKEN_OVER);
}

/// A backup of a logged VM may take it over, and may find at any moment that it cannot.
fn bound_and_logged(rules: Rules) -> Replication {
    Replication { stages: &[Stage::AllBound], worthless: 1, max_term: 6, ..Replication::logged(rules, 2) }
}

#[test]
fn the_invariants_hold_while_a_backup_gives_up() {
    explore(bound_and_logged(Rules::ALL), 500_000, &["a backup takes over"]);
}

#[test]
fn the_invariants_hold_while_a_second_backup_is_bound() {
    let stages = &[Stage::OneBound, Stage::OneBinding];
    explore(Replication::star(Rules::ALL, stages), 1_000_000, &["two backups are bound", "a backup takes over"]);
}

#[test]
fn the_invariants_hold_with_two_backups() {
    let model = Replication::star(Rules::ALL, &[Stage::AllBound]);
    explore(model, 1_000_000, &["a backup takes over", "output flows after a takeover"]);
}

/// The host that is first cannot go on with what it has won.
fn gives_back(rules: Rules, stages: &'static [Stage]) -> Replication {
    let star = Replication::star(rules, stages);
    Replication { failed_loads: 1, crashes: 1, stalls: 0, suspicions: 2, emits: 1, ..star }
}

#[test]
fn the_invariants_hold_when_a_winner_gives_the_vm_back() {
    explore(gives_back(Rules::ALL, &[Stage::Won]), 500_000, &[GIVEN_BACK]);
    explore(Replication { crashes: 0, ..gives_back(Rules::ALL, &[Stage::OneLeft]) }, 500_000, &[]);
}

#[test]
fn the_invariants_hold_when_the_power_goes() {
    let expected = ["a VM goes on from its log", "output flows after a loss of power"];
    explore(Replication::logged(Rules::ALL, 1), 1_000_000, &expected);
    explore(Replication::logged(Rules::ALL, 2), 1_000_000, &["a VM goes on from its log"]);
}

/// The VM's QEMU may die while its backup is released, because it is stopped or unprotected.
fn ends(rules: Rules) -> Replication {
    Replication {
        stops: 1,
        switchovers: 1,
        suspicions: 1,
        crashes: 2,
        stalls: 0,
        emits: 1,
        ..Replication::bound_pair(rules)
    }
}

/// And it has a log.
fn ends_logged(rules: Rules) -> Replication {
    Replication { logged: true, parts: 1, worthless: 1, ..ends(rules) }
}

#[test]
fn a_vm_that_ends_is_said_to_end_and_stays_so() {
    explore(ends(Rules::ALL), 300_000, &[STOPPED]);
    explore(ends_logged(Rules::ALL), 300_000, &[STOPPED]);
}

#[test]
fn the_invariants_hold_with_two_backups_through_a_switchover() {
    let model = Replication { switchovers: 1, emits: 1, ..Replication::star(Rules::ALL, &[Stage::AllBound]) };
    explore(model, 1_000_000, &["a backup takes over"]);
}

/// Breadth first does not come to the second failover. Random walks do: longer lives, more crashes, more terms.
fn walk(model: &Replication, seed: u64, walks: usize, expected: &[&'static str]) {
    let properties = model.properties();
    let mut seen = BTreeMap::new();
    let mut random = Random(seed);
    let mut steps = 0;
    let starts = model.init_states();
    for walk in 0..walks {
        let mut world = starts[walk % starts.len()].clone();
        let (mut new, mut delivered) = (BTreeSet::new(), BTreeSet::new());
        for step in 0..2000 {
            let mut choices = Vec::new();
            model.actions(&world, &mut choices);
            if choices.is_empty() {
                break;
            }
            let choice = choices.swap_remove(random.below(choices.len()));
            // What was delivered comes again now and then.
            if let Step::Deliver(msg) = &choice
                && !delivered.insert(msg.clone())
                && random.below(20) > 0
            {
                continue;
            }
            // Faults are rare, or there would be no life between them.
            let fault = match choice {
                Step::Crash(_) | Step::LoseMachine(_) | Step::Switchover(..) | Step::Unprotect(_) => true,
                Step::PowerLoss | Step::LogFails(..) | Step::StandStill(_) => true,
                Step::GiveUp(_) | Step::Worthless(..) => true,
                // A VM that is being loaded is lost by this as often as not: a life of many such would be short.
                Step::CannotLoad(host) => world.hosts[host].as_ref().is_some_and(|h| h.vm.is_some()),
                Step::Suspect(host, session) => !Replication::is_gone(&world, host, session),
                _ => false,
            };
            // It is the last thing that becomes of a VM.
            let ends = matches!(choice, Step::Stop(_));
            if (fault && random.below(100) > 0) || (ends && random.below(1000) > 0) {
                continue;
            }
            let Some(next) = model.next_state(&world, choice.clone()) else { continue };
            if !model.within_boundary(&next) {
                break;
            }
            world = next;
            steps += 1;
            for property in &properties {
                let holds = (property.condition)(model, &world);
                match property.expectation {
                    Expectation::Always => {
                        assert!(holds, "{} is violated in walk {walk} at step {step} by {choice:?}", property.name);
                    }
                    _ if holds => drop(new.insert(property.name)),
                    _ => {}
                }
            }
        }
        for name in new {
            *seen.entry(name).or_insert(0) += 1;
        }
    }
    println!("{steps} steps in {walks} walks; seen in so many: {seen:?}");
    for name in expected {
        assert!(seen.contains_key(name), "never seen: {name}");
    }
}

/// Lives that are longer, with more of everything.
fn long(model: Replication) -> Replication {
    Replication {
        emits: 30,
        crashes: 6,
        suspicions: 8,
        stalls: 8,
        worthless: 6,
        switchovers: 4,
        failed_loads: 6,
        stops: 1,
        max_term: 60,
        max_epochs: 30,
        ..model
    }
}

#[test]
fn the_invariants_hold_on_long_random_walks() {
    let model = long(Replication::pair(Rules::ALL));
    let expected = ["a VM becomes protected", "a second takeover", "output flows after a takeover", GOES_ON];
    walk(&model, 20_260, 2000, &expected);
}

#[test]
fn the_invariants_hold_on_long_random_walks_with_two_backups() {
    let model = long(Replication::star(Rules::ALL, &[Stage::Boot, Stage::OneBound, Stage::AllBound]));
    walk(&model, 20_261, 2000, &["two backups are bound", "a second takeover", "output flows after a takeover"]);
}

#[test]
fn the_invariants_hold_on_long_random_walks_of_logged_vms() {
    for (hosts, seed) in [(1, 20_263), (2, 20_264)] {
        let model = Replication { power_losses: 5, ..long(Replication::logged(Rules::ALL, hosts)) };
        walk(&model, seed, 2000, &["and once more", "output flows after a loss of power"]);
    }
    let star = long(Replication::star(Rules::ALL, &[Stage::Boot]));
    let star = Replication { power_losses: 5, logged: true, ..star };
    walk(&star, 20_265, 2000, &["and once more", "two backups are bound"]);
}

#[test]
#[ignore = "takes minutes"]
fn the_invariants_hold_on_very_many_random_walks() {
    for model in [Replication::pair(Rules::ALL), Replication::star(Rules::ALL, &[Stage::Boot, Stage::AllBound])] {
        walk(&long(model), 20_262, 40_000, &["a second takeover"]);
    }
}

/// Numbers that look random and are the same in every run (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

#[test]
fn harm_is_found_when_output_is_not_held_from_the_first_checkpoint() {
    finds_harm(Replication::pair(Rules { hold_from_first_checkpoint: false, ..Rules::ALL }));
}

#[test]
fn harm_is_found_when_unacknowledged_output_is_released() {
    finds_harm(Replication::pair(Rules { release_only_acked: false, ..Rules::ALL }));
}

#[test]
fn harm_is_found_when_a_primary_speaks_alone_without_the_witness() {
    finds_harm(Replication::pair(Rules { win_before_speaking_alone: false, ..Rules::ALL }));
}

#[test]
fn harm_is_found_when_a_backup_resumes_without_the_witness() {
    finds_harm(Replication::pair(Rules { win_before_resuming: false, ..Rules::ALL }));
}

#[test]
fn harm_is_found_when_checkpoints_are_acknowledged_out_of_order() {
    finds_harm(Replication::pair(Rules { ack_in_order: false, ..Rules::ALL }));
}

#[test]
fn harm_is_found_when_a_claiming_backup_acknowledges() {
    finds_harm(Replication {
        stalls: 0,
        ..Replication::bound_pair(Rules { no_ack_while_claiming: false, ..Rules::ALL })
    });
}

#[test]
fn harm_is_found_when_a_primary_in_doubt_goes_on() {
    finds_harm(Replication::bound_pair(Rules { ask_when_in_doubt: false, ..Rules::ALL }));
}

#[test]
fn harm_is_found_when_a_late_answer_counts_as_any() {
    finds_harm(Replication { looks_at_its_clock: false, stalls: 0, ..Replication::pair(Rules::ALL) });
}

#[test]
fn harm_is_found_when_a_term_names_two_sessions() {
    finds_harm(Replication::star(Rules { one_session_a_term: false, ..Rules::ALL }, &[Stage::Syncing]));
}

#[test]
fn harm_is_found_when_a_lost_backup_is_not_reported() {
    finds_harm(Replication::pair(Rules { say_when_unprotected: false, ..Rules::ALL }));
}

#[test]
fn harm_is_found_when_output_leaves_before_all_have_acknowledged() {
    finds_harm(Replication::star(Rules { release: ReleasePolicy::One, ..Rules::ALL }, &[Stage::AllBound]));
}

#[test]
fn harm_is_found_when_a_backup_counts_only_once_it_is_bound() {
    finds_harm(Replication::star(Rules { count_before_bound: false, ..Rules::ALL }, &[Stage::OneBinding]));
}

#[test]
fn harm_is_found_when_a_backup_claims_from_a_record_without_its_session() {
    finds_harm(Replication::star(Rules { claim_own_session: false, ..Rules::ALL }, &[Stage::OneBound]));
}

#[test]
fn harm_is_found_when_output_does_not_wait_for_the_log() {
    finds_harm(Replication::logged(Rules { wait_for_log: false, ..Rules::ALL }, 1));
}

#[test]
fn harm_is_found_when_a_host_goes_on_from_any_log() {
    finds_harm(Replication::logged(Rules { only_allowed_logs: false, ..Rules::ALL }, 2));
}

#[test]
fn harm_is_found_when_a_lost_log_is_left_as_it_is() {
    finds_harm(Replication::logged(Rules { invalidate_a_lost_log: false, ..Rules::ALL }, 1));
}

#[test]
fn harm_is_found_when_an_answer_that_proves_nothing_ends_a_vm() {
    let rules = Rules { end_only_for_another: false, ..Rules::ALL };
    finds_harm(Replication { worthless: 1, ..Replication::pair(rules) });
}

#[test]
fn harm_is_found_when_a_host_asks_before_it_has_noted_what() {
    finds_harm(bound_and_logged(Rules { prepare_before_asking: false, ..Rules::ALL }));
}

#[test]
fn harm_is_found_when_a_backup_claims_from_a_record_that_is_yet_to_come() {
    let rules = Rules { claim_from_what_was: false, ..Rules::ALL };
    finds_harm(Replication { emits: 0, suspicions: 1, crashes: 0, parts: 1, ..Replication::pair(rules) });
}

#[test]
fn harm_is_found_when_a_host_that_has_run_gives_back() {
    finds_harm(gives_back(Rules { give_back_before_running: false, ..Rules::ALL }, &[Stage::Won]));
}

#[test]
fn harm_is_found_when_what_was_asked_for_is_taken_for_lost() {
    let rules = Rules { wait_for_what_was_asked: false, ..Rules::ALL };
    finds(ends(rules), &[END_IS_SAID]);
    // It goes on from its log although it was to be stopped.
    finds(Replication { switchovers: 0, ..ends_logged(rules) }, &[ALWAYS[0]]);
}

#[test]
fn harm_is_found_when_a_vm_is_given_to_whom_it_was_not_bound() {
    let model = gives_back(Rules { give_back_to_the_bound: false, ..Rules::ALL }, &[Stage::OneLeft]);
    finds_harm(Replication { crashes: 0, ..model });
}
