//! Explores the protocol's state machine, the very one that the keeper runs, under message loss, duplication and
//! reordering, crashes, restarts, and a witness that is slow or never answers.
//!
//! Messages stay in the network for ever and can be delivered any number of times in any order; a message that is
//! never delivered is lost; a witness that never gets a request is down. Detection is not timed: any host may suspect
//! its peer at any moment, rightly or wrongly.
//!
//! The guest is abstract: its state is the list of all that it has emitted. That makes the invariants plain:
//!
//! * **I1** what is released is in a checkpoint that the backup held whole, or the releaser is alone by the witness;
//! * **I2** a backup resumes from the newest checkpoint it acknowledged, and from a whole one;
//! * **I3** all that was ever released, by whichever host, is in the history of the VM that speaks (what was emitted but
//!   never released is a loss that networks have); and no two hosts speak freely at the same time;
//! * **I4** a primary that calls itself protected has a session, and a backup that held a checkpoint of it.
//!
//! Each rule of the protocol is then switched off in turn, and the checker has to find the harm.

use std::collections::{BTreeMap, BTreeSet};

use ninefold_model::spec::Protection;
use ninefold_model::status::ProtectionState;
use ninefold_model::{Epoch, HostName, Record, Term};
use ninefold_replica::protocol::{Action, Input, Outcome, Phase, ProposalId, Protocol, Rules};
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

type Output = u8;
type History = Vec<Output>;
/// A record with hosts as numbers.
type Flat = (Term, usize, Option<usize>, bool);

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
    },
    /// A session's messages are addressed to one incarnation of the backup: see the protocol's documentation.
    Offer {
        to: usize,
        at: u32,
        session: Term,
    },
    /// Each checkpoint travels in two parts.
    Part {
        to: usize,
        at: u32,
        session: Term,
        epoch: Epoch,
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
    },
    Relinquish {
        to: usize,
        at: u32,
        session: Term,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Vm {
    history: History,
    paused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Host {
    protocol: Protocol,
    incarnation: u32,
    vm: Option<Vm>,
    /// Output held: its epoch once that is closed.
    held: Vec<(Option<Epoch>, Output)>,
    holding: bool,
    /// Primary: epochs captured in this session, and the final one of a switchover.
    captured: u64,
    final_epoch: Option<Epoch>,
    capture_final: bool,
    session_open: bool,
    peer_incarnation: u32,
    /// Backup: parts received and the newest whole checkpoint.
    parts: BTreeSet<(Epoch, u8)>,
    whole: Option<(Epoch, History)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    hosts: Vec<Option<Host>>,
    witness: Option<Record>,
    messages: BTreeSet<Msg>,
    released: BTreeSet<Output>,
    emitted: Output,
    /// The longest history that a backup acknowledged in each session, and the session's primary.
    committed: BTreeMap<Term, (usize, Epoch, History)>,
    crashes: u8,
    suspicions: u8,
    switchovers: u8,
    incarnations: u32,
    takeovers: u8,
    protections: u8,
    violation: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Emit(usize),
    Checkpoint(usize),
    Connect(usize),
    Suspect(usize),
    Crash(usize),
    LoseMachine(usize),
    Restart(usize),
    Switchover(usize),
    Unprotect(usize),
    Protect(usize),
    Deliver(Msg),
}

#[derive(Clone)]
struct Replication {
    rules: Rules,
    emits: Output,
    crashes: u8,
    suspicions: u8,
    switchovers: u8,
    max_term: u64,
    max_epochs: u64,
    names: Vec<HostName>,
}

impl Replication {
    fn new(rules: Rules) -> Self {
        Self {
            rules,
            emits: 2,
            crashes: 1,
            suspicions: 2,
            switchovers: 0,
            max_term: 5,
            max_epochs: 3,
            names: vec!["a".parse().unwrap(), "b".parse().unwrap()],
        }
    }

    fn index(&self, name: &HostName) -> usize {
        self.names.iter().position(|n| n == name).unwrap()
    }

    fn fresh(&self, host: usize, incarnation: u32) -> Host {
        Host {
            protocol: Protocol::with_rules(self.names[host].clone(), Protection::FaultTolerant, self.rules)
                .numbered_from(incarnation * 1000),
            incarnation,
            vm: None,
            held: Vec::new(),
            holding: false,
            captured: 0,
            final_epoch: None,
            capture_final: false,
            session_open: false,
            peer_incarnation: 0,
            parts: BTreeSet::new(),
            whole: None,
        }
    }

    fn flatten(&self, r: &Record) -> Flat {
        (r.term, self.index(&r.primary), r.backup.as_ref().map(|b| self.index(b)), r.synced)
    }

    fn unflatten(&self, (term, primary, backup, synced): Flat) -> Record {
        Record { term, primary: self.names[primary].clone(), backup: backup.map(|b| self.names[b].clone()), synced }
    }

    /// `host` lets `output` go out into the world.
    fn release(&self, w: &mut World, host: usize, output: Output) {
        w.released.insert(output);
        let owner = w.witness.as_ref().map_or(0, |r| self.index(&r.primary));
        let alone = owner == host && w.witness.as_ref().is_some_and(|r| !r.synced);
        let committed = w.committed.values().any(|(p, _, h)| *p == host && h.contains(&output));
        if !alone && !committed {
            w.violation = Some("I1: released what no backup holds");
        }
        // The host that the witness names carries on all that was ever released. While the record is synced its
        // backup may too; that is checked when it resumes.
        if let Some(vm) = w.hosts[owner].as_ref().and_then(|h| h.vm.as_ref())
            && !w.released.iter().all(|o| vm.history.contains(o))
        {
            w.violation = Some("I3: something was released that is not in the history of the VM that speaks");
        }
    }

    fn input(&self, w: &mut World, host: usize, input: Input) {
        let mut actions = Vec::new();
        if let Some(h) = w.hosts[host].as_mut() {
            h.protocol.handle(input, &mut actions);
        }
        for action in actions {
            self.act(w, host, action);
        }
    }

    fn act(&self, w: &mut World, host: usize, action: Action) {
        let peer = 1 - host;
        let peer_incarnation = w.hosts[peer].as_ref().map_or(0, |h| h.incarnation);
        let h = w.hosts[host].as_mut().unwrap();
        let at = h.peer_incarnation;
        match action {
            Action::Propose { id, expected, new } => {
                w.messages.insert(Msg::Propose {
                    from: host,
                    id,
                    expected: expected.map(|r| self.flatten(&r)),
                    new: self.flatten(&new),
                });
            }
            Action::Boot => h.vm = Some(Vm { history: Vec::new(), paused: false }),
            Action::ResumeFrom { epoch } => {
                let whole = h.whole.take();
                let Some((held, history)) = whole.filter(|(e, _)| *e == epoch) else {
                    w.violation = Some("I2: resumed from something that is not a whole checkpoint");
                    return;
                };
                if !w.released.iter().all(|o| history.contains(o)) {
                    w.violation = Some("I2: resumed from a state older than what was released");
                }
                h.vm = Some(Vm { history, paused: false });
                h.session_open = false;
                h.holding = false;
                w.takeovers += 1;
                let _ = held;
            }
            Action::Hold => h.holding = true,
            Action::Release { epoch } => self.release_up_to(w, host, epoch),
            Action::OpenGate => {
                h.holding = false;
                h.capture_final = false;
                h.final_epoch = None;
                if let Some(vm) = h.vm.as_mut() {
                    vm.paused = false;
                }
                for (_, output) in std::mem::take(&mut h.held) {
                    self.release(w, host, output);
                }
            }
            Action::OpenSession { session, .. } => {
                h.captured = 0;
                h.session_open = true;
                h.peer_incarnation = peer_incarnation;
                w.messages.insert(Msg::Offer { to: peer, at: peer_incarnation, session });
            }
            Action::CloseSession { .. } => h.session_open = false,
            Action::TakeFinalCheckpoint { .. } => h.capture_final = true,
            Action::SendBound { session } => {
                w.messages.insert(Msg::Bound { to: peer, at, session });
                w.protections += 1;
            }
            Action::SendRelinquish { session, .. } => {
                w.messages.insert(Msg::Relinquish { to: peer, at, session });
            }
            Action::AcceptSession { .. } => {
                h.parts.clear();
                h.whole = None;
            }
            Action::SendAck { session, epoch } => {
                if let Some((e, history)) = &h.whole
                    && *e == epoch
                {
                    w.committed.insert(session, (peer, epoch, history.clone()));
                }
                w.messages.insert(Msg::Ack { to: peer, session, epoch });
            }
            Action::StandDown => {
                h.vm = None;
                h.held.clear();
                h.holding = false;
                h.session_open = false;
                h.final_epoch = None;
                h.capture_final = false;
                h.parts.clear();
                h.whole = None;
            }
            Action::RefuseSession { .. } | Action::Refuse { .. } | Action::Emit(_) => {}
        }
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

    fn checkpoint(&self, w: &mut World, host: usize) {
        let h = w.hosts[host].as_ref().unwrap();
        let Some(session) = h.protocol.session() else {
            return;
        };
        if h.captured == 0 {
            self.input(w, host, Input::FirstCheckpoint { session });
        }
        let h = w.hosts[host].as_mut().unwrap();
        h.captured += 1;
        let epoch = Epoch(h.captured);
        for (e, _) in &mut h.held {
            e.get_or_insert(epoch);
        }
        let vm = h.vm.as_mut().unwrap();
        if h.capture_final {
            h.capture_final = false;
            h.final_epoch = Some(epoch);
            vm.paused = true;
        }
        let history = vm.history.clone();
        let at = h.peer_incarnation;
        for part in 0..2 {
            w.messages.insert(Msg::Part { to: 1 - host, at, session, epoch, part, history: history.clone() });
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
                let current = w.witness.as_ref();
                let won = current == expected.map(|r| self.unflatten(r)).as_ref() || current == Some(&new);
                if won {
                    w.witness = Some(new);
                }
                w.messages.insert(Msg::Answer { to: from, id, won });
            }
            Msg::Answer { to, id, won } => {
                let outcome = if won { Outcome::Won } else { Outcome::Lost(w.witness.clone()) };
                self.input(w, to, Input::Answer { id, outcome });
            }
            Msg::Offer { to, session, .. } => {
                self.input(w, to, Input::Offer { from: self.names[1 - to].clone(), session });
            }
            Msg::Part { to, session, epoch, part, history, .. } => {
                let Some(h) = w.hosts[to].as_mut() else {
                    return;
                };
                let next = h.whole.as_ref().map_or(Epoch(1), |(e, _)| e.next());
                let ours = h.protocol.session() == Some(session)
                    || (!self.rules.no_ack_while_claiming && h.protocol.awaits_witness());
                if !ours || (self.rules.ack_in_order && epoch != next) {
                    return;
                }
                h.parts.insert((epoch, part));
                if h.parts.contains(&(epoch, 1 - part)) {
                    h.parts.clear();
                    h.whole = Some((epoch, history));
                    self.input(w, to, Input::CheckpointHeld { session, epoch });
                }
            }
            Msg::Ack { to, session, epoch } => {
                if !self.rules.release_only_acked {
                    // Broken on purpose: any sign of life of the backup counts as an acknowledgement of everything.
                    self.input(w, to, Input::Acked { session, epoch: Epoch(u64::MAX) });
                }
                self.input(w, to, Input::Acked { session, epoch });
                if w.hosts[to].as_ref().is_some_and(|h| h.final_epoch == Some(epoch)) {
                    self.input(w, to, Input::FinalAcked { session });
                }
            }
            Msg::Bound { to, session, .. } => self.input(w, to, Input::BoundNotice { session }),
            Msg::Relinquish { to, session, .. } => {
                self.input(w, to, Input::PrimaryLost { session, reason: String::new() });
            }
        }
    }

    fn suspect(&self, w: &mut World, host: usize) {
        let Some(h) = w.hosts[host].as_mut() else {
            return;
        };
        let Some(session) = h.protocol.session() else {
            return;
        };
        h.session_open = false;
        let primary = h.protocol.phase().is_some();
        let reason = String::new();
        let input =
            if primary { Input::SessionLost { session, reason } } else { Input::PrimaryLost { session, reason } };
        self.input(w, host, input);
    }
}

impl Model for Replication {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut w = World {
            hosts: vec![Some(self.fresh(0, 1)), Some(self.fresh(1, 2))],
            witness: None,
            messages: BTreeSet::new(),
            released: BTreeSet::new(),
            emitted: 0,
            committed: BTreeMap::new(),
            crashes: 0,
            suspicions: 0,
            switchovers: 0,
            incarnations: 2,
            takeovers: 0,
            protections: 0,
            violation: None,
        };
        self.input(&mut w, 0, Input::Start { found: None, force: false });
        vec![w]
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
            if w.suspicions < self.suspicions && h.protocol.session().is_some() {
                steps.push(Step::Suspect(i));
            }
            let Some(vm) = &h.vm else { continue };
            if !vm.paused && w.emitted < self.emits {
                steps.push(Step::Emit(i));
            }
            if h.protocol.wants_peer() && w.hosts[1 - i].is_some() {
                steps.push(Step::Connect(i));
            }
            if h.session_open && !vm.paused && h.captured < self.max_epochs {
                steps.push(Step::Checkpoint(i));
            }
            if w.switchovers < self.switchovers && matches!(h.protocol.phase(), Some(Phase::Bound { .. })) {
                steps.push(Step::Switchover(i));
                steps.push(Step::Unprotect(i));
            }
            if h.protocol.wanted() == Protection::None {
                steps.push(Step::Protect(i));
            }
        }
        steps.extend(w.messages.iter().cloned().map(Step::Deliver));
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut w = last.clone();
        match step {
            Step::Emit(i) => {
                w.emitted += 1;
                let output = w.emitted;
                let h = w.hosts[i].as_mut().unwrap();
                h.vm.as_mut().unwrap().history.push(output);
                if h.holding {
                    h.held.push((None, output));
                } else {
                    self.release(&mut w, i, output);
                }
            }
            Step::Checkpoint(i) => self.checkpoint(&mut w, i),
            Step::Connect(i) => {
                let peer = self.names[1 - i].clone();
                self.input(&mut w, i, Input::PeerAvailable { peer });
            }
            Step::Suspect(i) => {
                w.suspicions += 1;
                self.suspect(&mut w, i);
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
            Step::Switchover(i) => {
                w.switchovers += 1;
                self.input(&mut w, i, Input::Switchover { reason: String::new() });
            }
            Step::Unprotect(i) => {
                w.switchovers += 1;
                self.input(&mut w, i, Input::Want(Protection::None));
            }
            Step::Protect(i) => self.input(&mut w, i, Input::Want(Protection::FaultTolerant)),
            Step::Deliver(msg) => self.deliver(&mut w, msg),
        }
        (w != *last).then_some(w)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("I1, I2, I3 at every release and resumption", |_, w: &World| w.violation.is_none()),
            Property::always("I3: one host speaks freely", |m: &Self, w: &World| {
                let free = w.hosts.iter().enumerate().filter(|(i, h)| {
                    h.as_ref().is_some_and(|h| {
                        h.vm.is_some() && !h.holding
                            || h.vm.is_some()
                                && w.witness.as_ref().is_some_and(|r| m.index(&r.primary) == *i && !r.synced)
                    })
                });
                free.count() <= 1
            }),
            Property::always("I4: protected means protected", |_, w: &World| {
                w.hosts.iter().flatten().all(|h| {
                    h.protocol.protection() != Some(ProtectionState::Protected)
                        || h.session_open && h.protocol.session().is_some_and(|s| w.committed.contains_key(&s))
                })
            }),
            Property::sometimes("a VM becomes protected", |_, w: &World| w.protections > 0),
            Property::sometimes("a backup takes over", |_, w: &World| w.takeovers > 0),
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

const ALWAYS: [&str; 3] =
    ["I1, I2, I3 at every release and resumption", "I3: one host speaks freely", "I4: protected means protected"];

fn explore(model: Replication, states: usize) -> usize {
    let checker = model.checker().threads(2).target_state_count(states).spawn_bfs().join();
    for name in ALWAYS {
        if let Some(path) = checker.discovery(name) {
            panic!("{name} is violated:\n{path}");
        }
    }
    for name in ["a VM becomes protected", "a backup takes over"] {
        assert!(checker.discovery(name).is_some(), "never seen in {} states: {name}", checker.unique_state_count());
    }
    checker.unique_state_count()
}

/// The checker must find harm when `rules` has one rule off.
fn finds_harm(rules: Rules, tune: impl FnOnce(&mut Replication)) {
    assert_ne!(rules, Rules::ALL);
    let mut model = Replication::new(rules);
    tune(&mut model);
    let checker = model
        .checker()
        .threads(2)
        .target_state_count(3_000_000)
        .finish_when(HasDiscoveries::AnyOf(ALWAYS.into_iter().collect()))
        .spawn_bfs()
        .join();
    assert!(
        ALWAYS.iter().any(|name| checker.discovery(name).is_some()),
        "no harm found in {} states without the rule",
        checker.unique_state_count()
    );
}

#[test]
fn the_invariants_hold() {
    let states = explore(Replication::new(Rules::ALL), 1_500_000);
    println!("{states} states");
}

#[test]
fn the_invariants_hold_through_a_switchover() {
    let model = Replication { switchovers: 1, suspicions: 1, crashes: 1, emits: 1, ..Replication::new(Rules::ALL) };
    let states = explore(model, 1_500_000);
    println!("{states} states");
}

/// Breadth first does not come to the second failover. Random walks do: longer lives, more crashes, more terms.
#[test]
fn the_invariants_hold_on_long_random_walks() {
    let model = Replication {
        emits: 6,
        crashes: 4,
        suspicions: 4,
        switchovers: 2,
        max_term: 16,
        max_epochs: 4,
        ..Replication::new(Rules::ALL)
    };
    let properties = model.properties();
    let mut seen = BTreeSet::new();
    let mut random = Random(20_260);
    let mut steps = 0;
    for walk in 0..3000 {
        let mut world = model.init_states().remove(0);
        for step in 0..1000 {
            let mut choices = Vec::new();
            model.actions(&world, &mut choices);
            let choice = choices.swap_remove(random.below(choices.len()));
            // Faults are rare, or there would be no life between them.
            let fault = !matches!(choice, Step::Emit(_) | Step::Checkpoint(_) | Step::Connect(_) | Step::Deliver(_));
            if fault && random.below(30) > 0 {
                continue;
            }
            let Some(next) = model.next_state(&world, choice.clone()) else { continue };
            if !model.within_boundary(&next) {
                break;
            }
            world = next;
            steps += 1;
            for property in &properties {
                let holds = (property.condition)(&model, &world);
                match property.expectation {
                    Expectation::Always => {
                        assert!(holds, "{} is violated in walk {walk} at step {step} by {choice:?}", property.name);
                    }
                    _ if holds => drop(seen.insert(property.name)),
                    _ => {}
                }
            }
        }
    }
    for name in ["a VM becomes protected", "a second takeover", "output flows after a takeover"] {
        assert!(seen.contains(name), "never seen: {name}");
    }
    println!("{steps} steps");
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
    finds_harm(Rules { hold_from_first_checkpoint: false, ..Rules::ALL }, |_| {});
}

#[test]
fn harm_is_found_when_unacknowledged_output_is_released() {
    finds_harm(Rules { release_only_acked: false, ..Rules::ALL }, |_| {});
}

#[test]
fn harm_is_found_when_a_primary_speaks_alone_without_the_witness() {
    finds_harm(Rules { win_before_speaking_alone: false, ..Rules::ALL }, |_| {});
}

#[test]
fn harm_is_found_when_a_backup_resumes_without_the_witness() {
    finds_harm(Rules { win_before_resuming: false, ..Rules::ALL }, |_| {});
}

#[test]
fn harm_is_found_when_checkpoints_are_acknowledged_out_of_order() {
    finds_harm(Rules { ack_in_order: false, ..Rules::ALL }, |_| {});
}

#[test]
fn harm_is_found_when_a_claiming_backup_acknowledges() {
    finds_harm(Rules { no_ack_while_claiming: false, ..Rules::ALL }, |_| {});
}

#[test]
fn harm_is_found_when_a_term_names_two_sessions() {
    finds_harm(Rules { one_session_a_term: false, ..Rules::ALL }, |_| {});
}

#[test]
fn harm_is_found_when_a_lost_backup_is_not_reported() {
    finds_harm(Rules { say_when_unprotected: false, ..Rules::ALL }, |_| {});
}
