//! The thread that owns a VM: its guest, to whom it is copied, its checkpoints.

use std::collections::BTreeSet;

use ninefold_core::effect::{Held, VmOrder};
use ninefold_core::event::{Event, Source, WaiterId};
use ninefold_model::event::EventKind;
use ninefold_model::health::{Failure, Health};
use ninefold_model::spec::Accel;
use ninefold_model::status::MachineStatus;
use ninefold_model::{Activity, Epoch, GuestState};
use ninefold_replica::continuation::may_hold;
use ninefold_replica::pacing::MAX_IN_FLIGHT;
use ninefold_replica::target::{Basis, Target};

use crate::applier::LIMIT;
use crate::guest::{Checkpoint, Guest, Node, PAGES, Writes};
use crate::keeper::{Last, LogJob, Off, Stage, TargetState, Vm, Waits, Written};
use crate::network::{Msg, Rest};
use crate::plan::Moment;
use crate::step::NONE;
use crate::world::{BUDGET, MS, What, World};

/// The longest that the guest runs between two checkpoints.
const LONGEST: u64 = 100 * MS;
/// Checkpoints of which it is remembered which pages they had.
const RECENT: usize = MAX_IN_FLIGHT as usize + 2;
/// The shortest.
const SHORTEST: u64 = 3 * MS;

impl World {
    pub(crate) fn machine(&self) -> MachineStatus {
        MachineStatus {
            pid: 1,
            qemu: "10.0.2".into(),
            accel: Accel::Tcg,
            accel_reason: String::new(),
            run_state: "running".into(),
            generation: None,
        }
    }

    pub(crate) fn vm_order(&mut self, host: usize, order: VmOrder) {
        match order {
            VmOrder::Boot { generation, taken, .. } => {
                self.keeper(host).parking.clear();
                let images = self.view(host);
                let at = match self.keeper(host).relaunched.take() {
                    Some(former) => self.boots_again(host, &former),
                    None => self.boots(host),
                };
                let vm = Vm {
                    generation,
                    guest: Guest::boots(at, &images),
                    runs: false,
                    launched: false,
                    target_states: Vec::new(),
                    epoch: taken,
                    last: Last::No,
                    paused: false,
                    off: Off::No,
                    resumed: self.now,
                    alarm: 0,
                    orders: Default::default(),
                    asks: None,
                    memory: Default::default(),
                };
                self.keeper(host).vm = Some(vm);
                let takes = self.rng.u64(50 * MS..300 * MS);
                self.later(host, takes, What::Launched { generation });
            }
            VmOrder::Start { source, run: _ } => {
                self.comes(Moment::Resumes);
                self.starts(host, source);
            }
            VmOrder::Run { generation, source, standing, log, former_backups, taken, .. } => {
                let Some((_, guest)) = self.keeper(host).waiting.take_if(|(of, _)| *of == source) else {
                    let reason = "the standby is gone".into();
                    return self.keeper(host).answers.push_back(Event::VmLost { generation, reason });
                };
                let target_states = log.map(|id| {
                    let (stage, before) = (Stage::Joined, taken);
                    let (stale, since) = (BTreeSet::new(), self.now);
                    TargetState { target: Target::Log, log: Some(id), stage, acked: NONE, before, stale, since }
                });
                let memory = Written { resumed: former_backups.then(BTreeSet::new), ..Written::default() };
                let off = standing.activity == Activity::Off;
                let vm = Vm {
                    generation,
                    guest,
                    runs: true,
                    launched: true,
                    target_states: target_states.into_iter().collect(),
                    epoch: taken,
                    last: Last::No,
                    paused: false,
                    off: if off { Off::Seen } else { Off::No },
                    resumed: self.now,
                    alarm: 0,
                    orders: Default::default(),
                    asks: None,
                    memory,
                };
                self.keeper(host).vm = Some(vm);
                let soon = self.moment();
                self.tell_later(host, soon, Event::VmRunning { generation });
                self.later(host, soon, What::GuestSteps { generation });
                self.works_in(host, generation, soon + 1);
            }
            VmOrder::End { relaunch } => {
                let keeper = self.keeper(host);
                let former = keeper.vm.take().map(|vm| vm.guest);
                keeper.relaunched = former.filter(|_| relaunch);
            }
            order => {
                let Some(vm) = &mut self.keeper(host).vm else { return };
                vm.orders.push_back(order);
                let generation = vm.generation;
                let soon = self.moment();
                self.works_in(host, generation, soon);
            }
        }
    }

    pub(crate) fn vm(&mut self, host: usize, generation: u64) -> Option<&mut Vm> {
        self.hosts[host].keeper.as_mut()?.vm.as_mut().filter(|vm| vm.generation == generation)
    }

    /// The guest of a loaded QEMU is let run.
    fn starts(&mut self, host: usize, source: Source) {
        let fails = std::mem::take(&mut self.hosts[host].load_fails);
        let there = self.keeper(host).waiting.as_ref().is_some_and(|(of, _)| *of == source);
        let answer = if there && !fails {
            let guest = self.keeper(host).waiting.as_ref().map(|(_, guest)| guest.clone());
            if let Some(guest) = guest {
                self.resumes(host, &guest);
            }
            Event::GuestStarted { layout: self.layout.clone(), status: self.machine() }
        } else {
            self.keeper(host).waiting = None;
            self.judge_holders("a standby that did not run");
            Event::GuestNotStarted { reason: "it does not run".into() }
        };
        self.keeper(host).answers.push_back(answer);
    }

    pub(crate) fn launched(&mut self, host: usize, generation: u64) {
        let (status, layout) = (self.machine(), self.layout.clone());
        let Some(vm) = self.vm(host, generation) else { return };
        vm.launched = true;
        let keeper = self.keeper(host);
        keeper.last_id += 1;
        let up = WaiterId(keeper.last_id);
        self.tell_with(host, up, Waits::Started { generation }, Event::VmStarted { generation, status, layout, up });
    }

    fn tell_with(&mut self, host: usize, id: WaiterId, waits: Waits, event: Event) {
        if self.tick_if_due(host) {
            self.keeper(host).waiter = Some((id, waits));
            self.tell(host, event);
        }
    }

    pub(crate) fn guest_runs(&mut self, host: usize, generation: u64) {
        let now = self.now;
        let images = self.view(host);
        let Some(vm) = self.vm(host, generation) else { return };
        (vm.runs, vm.resumed) = (true, now);
        // It reads its volumes as it finds them.
        vm.guest.disk = images;
        let soon = self.moment();
        self.tell_later(host, soon, Event::VmRunning { generation });
        self.later(host, soon, What::GuestSteps { generation });
        self.works_in(host, generation, soon);
    }

    /// The guest does something: it computes, writes, says something.
    pub(crate) fn guest_steps(&mut self, host: usize, generation: u64) {
        let next = self.rng.u64(300..6 * MS);
        let now = self.now;
        let Some(vm) = self.vm(host, generation) else { return };
        if vm.off != Off::No {
            return;
        }
        let runs = vm.runs && !vm.paused && now >= vm.resumed && vm.guest.runs();
        let before = vm.guest.at;
        self.later(host, next, What::GuestSteps { generation });
        if !runs {
            return;
        }
        let held = self.keeper(host).volumes.bytes();
        if held >= BUDGET.hard {
            // Its writes wait, and it with them.
            return;
        }
        let node = self.steps.after(before);
        let blocks = self.hosts[host].disk.cached.len();
        let block = (blocks > 0 && self.rng.u8(..3) == 0).then(|| self.rng.usize(..blocks));
        let says = self.rng.u8(..3) == 0;
        let flushes = blocks > 0 && !self.plan.setup.log && self.more.u8(..4) == 0;
        let page = self.more.usize(..PAGES);
        let Some(vm) = self.vm(host, generation) else { return };
        vm.makes(node, page);
        if let Some(block) = block {
            vm.guest.disk[block] = node;
            self.guest_writes(host, block, node);
        }
        if says && self.keeper(host).guest_io.say(node) {
            self.leaves(host, node);
        }
        if flushes && let Some(vm) = self.vm(host, generation) {
            let disk = vm.guest.disk.iter().copied().enumerate().collect();
            self.guest_flushes(host, generation, disk);
        }
    }

    /// The guest has flushed its volumes, and says what was on them then.
    pub(crate) fn guest_tells(&mut self, host: usize, generation: u64, disk: Writes) {
        let now = self.now;
        let page = self.more.usize(..PAGES);
        let Some(vm) = self.vm(host, generation) else { return };
        if !vm.runs || vm.paused || vm.off != Off::No || now < vm.resumed || !vm.guest.runs() {
            return;
        }
        let before = vm.guest.at;
        let node = self.steps.after(before);
        if let Some(vm) = self.vm(host, generation) {
            vm.makes(node, page);
        }
        self.told.insert(node, disk);
        if self.keeper(host).guest_io.say(node) {
            self.leaves(host, node);
        }
    }

    /// The guest switches itself off.
    pub(crate) fn switches_off(&mut self, host: usize) {
        let Some(vm) = self.hosts[host].keeper.as_mut().and_then(|k| k.vm.as_mut()) else { return };
        if !vm.runs || vm.paused || vm.off != Off::No || !vm.guest.runs() {
            return;
        }
        vm.guest.off = true;
        vm.off = Off::Seen;
        let generation = vm.generation;
        let joined = vm.target_states.iter().any(|s| s.stage == Stage::Joined);
        let epoch = joined.then(|| vm.epoch.next());
        let standing = GuestState { activity: Activity::Off, paused: false };
        self.tell_later(host, 1, Event::Stands { generation, standing, epoch });
        self.works_in(host, generation, 2);
    }

    /// Whoever was copied to has all but little of it.
    pub(crate) fn copied(&mut self, host: usize, generation: u64, target: Target) {
        self.round(host, generation, target);
        let now = self.now;
        let Some(vm) = self.vm(host, generation) else { return };
        if let Some(target_state) = vm.target_states.iter_mut().find(|s| s.target == target) {
            (target_state.stage, target_state.since) = (Stage::Ready, now);
        }
        self.works_in(host, generation, 1);
    }

    /// Sends what the target does not have, while the guest writes on.
    fn round(&mut self, host: usize, generation: u64, target: Target) {
        let session = target.session().and_then(|s| self.keeper(host).sessions.get(&s)).map(|s| s.connection);
        let Some(vm) = self.vm(host, generation) else { return };
        let Some(target_state) = vm.target_states.iter_mut().find(|s| s.target == target) else { return };
        let stale = std::mem::take(&mut target_state.stale);
        let pages = stale.into_iter().map(|page| (page, vm.guest.memory[page])).collect();
        if let Some(connection) = session {
            self.send(connection, 0, Msg::Round(pages));
        }
    }

    /// The core has said whether output is held for this one.
    pub(crate) fn output_held(&mut self, host: usize, generation: u64, target: Target, yes: bool) {
        let Some(vm) = self.vm(host, generation) else { return };
        if vm.asks.take_if(|t| *t == target).is_none() {
            return;
        }
        if yes {
            if let Some(target_state) = vm.target_states.iter_mut().find(|s| s.target == target) {
                target_state.stage = Stage::Asked;
            }
        } else {
            vm.target_states.retain(|s| s.target != target);
            let reason = "output is not held in time".into();
            self.tell_later(host, 1, Event::CannotReplicate { generation, target, reason });
        }
        // Nothing of what has been ordered meanwhile comes in between.
        self.checkpoint(host, generation);
    }

    fn obey(&mut self, host: usize, generation: u64, order: VmOrder) {
        let now = self.now;
        let all_that_left = self.rules.core.remember_the_last_acknowledged;
        let Some(vm) = self.vm(host, generation) else { return };
        let joined = |vm: &Vm| vm.target_states.iter().any(|s| s.stage == Stage::Joined);
        let added = match order {
            VmOrder::AddSession { session, held, .. } => Some((Target::Session(session), None, held)),
            VmOrder::AddLog { id } => Some((Target::Log, Some(id), None)),
            VmOrder::RemoveTarget { target, comes_back } => {
                vm.leaves(target, comes_back, all_that_left);
                None
            }
            VmOrder::Pause(paused) => {
                vm.guest.health.standing.paused = paused;
                return self.stands(host, generation);
            }
            VmOrder::Wake => {
                vm.guest.health.standing.activity = Activity::Running;
                return self.stands(host, generation);
            }
            VmOrder::Reset => {
                vm.guest.health.pending = None;
                None
            }
            VmOrder::PowerButton => {
                if self.more.u8(..3) > 0 {
                    let takes = self.more.u64(MS..500 * MS);
                    self.later(host, takes, What::ButtonPressed);
                }
                return;
            }
            VmOrder::Dump { .. } => {
                let takes = self.more.u64(MS..200 * MS);
                return self.later(host, takes, What::Dumped { generation });
            }
            VmOrder::ForgetLeft(session) => {
                vm.memory.left.retain(|(of, _)| *of != session);
                None
            }
            VmOrder::ForgetSurvivors => {
                vm.memory.resumed = None;
                None
            }
            VmOrder::TakeFinal => {
                if joined(vm) {
                    vm.last = Last::Wanted;
                }
                None
            }
            VmOrder::GoOn => {
                vm.last = Last::No;
                if std::mem::take(&mut vm.paused) && vm.off == Off::No {
                    vm.resumed = now;
                }
                None
            }
            VmOrder::Acked { target, epoch } => {
                if let Some(target_state) = vm.target_states.iter_mut().find(|s| s.target == target) {
                    target_state.acked = target_state.acked.max(epoch);
                }
                None
            }
            _ => None,
        };
        if let Some((target, log, held)) = added {
            vm.target_states.retain(|s| s.target != target);
            let little = held.is_some();
            let Some(stale) = held.map_or_else(|| Some((0..PAGES).collect()), |held| vm.stale(&held)) else {
                return self.tell_later(host, 1, Event::BaseForgotten { generation, target });
            };
            let before = NONE;
            let stage = if little { Stage::Ready } else { Stage::Copying };
            vm.target_states.push(TargetState { target, log, stage, acked: NONE, before, stale, since: now });
            let takes = self.rng.u64(2 * MS..250 * MS);
            if little {
                // It goes with the first checkpoint, mostly.
                if takes.is_multiple_of(4) {
                    self.round(host, generation, target);
                }
                return;
            }
            self.later(host, takes, What::Copied { generation, target });
        }
    }

    /// How the guest stands has changed, which the next checkpoint says.
    fn stands(&mut self, host: usize, generation: u64) {
        let Some(vm) = self.vm(host, generation) else { return };
        let standing = vm.guest.health.standing;
        let joined = vm.target_states.iter().any(|s| s.stage == Stage::Joined);
        let epoch = joined.then(|| vm.epoch.next());
        self.tell_later(host, 1, Event::Stands { generation, standing, epoch });
        self.works_in(host, generation, 2);
    }

    /// The guest suspends itself.
    pub(crate) fn suspends(&mut self, host: usize) {
        let Some(vm) = self.hosts[host].keeper.as_mut().and_then(|k| k.vm.as_mut()) else { return };
        if vm.runs && !vm.paused && vm.off == Off::No && vm.guest.runs() {
            vm.guest.health.standing.activity = Activity::Suspended;
            let generation = vm.generation;
            self.stands(host, generation);
        }
    }

    /// The guest stops patting its watchdog, and stands still.
    pub(crate) fn guest_fails(&mut self, host: usize) {
        let watched = self.plan.setup.watchdog.is_some();
        let Some(vm) = self.hosts[host].keeper.as_mut().and_then(|k| k.vm.as_mut()).filter(|_| watched) else { return };
        if vm.runs && !vm.paused && vm.off == Off::No && vm.guest.runs() {
            vm.guest.health.pending = Some(Failure::Watchdog);
            let (generation, failure) = (vm.generation, Failure::Watchdog);
            self.tell_later(host, 1, Event::GuestFailed { generation, failure });
        }
    }

    /// Its memory is in a file, or there is no room for that.
    pub(crate) fn dumped(&mut self, host: usize, generation: u64) {
        let outcome = match self.more.u8(..3) {
            0 => EventKind::DumpFailed { reason: "there is no room".into() },
            _ => EventKind::Dumped { path: "/dump".into(), bytes: 1, took_ms: 1 },
        };
        if self.vm(host, generation).is_some() {
            self.tell(host, Event::Dumped { generation, outcome });
        }
    }

    /// Whether a first checkpoint may be taken as far as the disks go: what it makes of them is noted before, if that takes no time.
    fn is_noted(&mut self, host: usize, since: u64) -> bool {
        self.spec.hardware.volumes.is_empty()
            || self.plan.setup.log
            || self.falls_behind(host)
            || self.now - since >= LIMIT / 5
    }

    /// The thread does what is due.
    pub(crate) fn vm_works(&mut self, host: usize, generation: u64) {
        let Some(vm) = self.vm(host, generation) else { return };
        if !vm.runs || vm.asks.is_some() {
            return;
        }
        vm.alarm = 0;
        while let Some(order) = self.vm(host, generation).and_then(|vm| vm.orders.pop_front()) {
            self.obey(host, generation, order);
        }
        let now = self.now;
        let waits = self.keeper(host).guest_io.waits();
        let Some(vm) = self.vm(host, generation) else { return };
        let joined = vm.target_states.iter().any(|s| s.stage == Stage::Joined);
        if vm.off == Off::Seen {
            if joined && vm.last != Last::Taken {
                vm.last = Last::Wanted;
                return self.checkpoint(host, generation);
            }
            vm.off = Off::Reported;
            return self.tell_later(host, 1, Event::VmShutdown { generation });
        }
        if vm.last == Last::Taken || vm.off != Off::No {
            return;
        }
        let ready = vm.target_states.iter().any(|s| s.stage == Stage::Ready);
        let of = |s: &TargetState| vm.epoch.0.saturating_sub(s.acked.0);
        let in_flight = vm.target_states.iter().filter(|s| s.stage == Stage::Joined).map(of).max().unwrap_or(0);
        let room = in_flight < u64::from(MAX_IN_FLIGHT);
        let run = now.saturating_sub(vm.resumed);
        let due = if waits { SHORTEST } else { LONGEST };
        if vm.last == Last::Wanted || (room && (ready || (joined && run >= due))) {
            return self.checkpoint(host, generation);
        }
        if joined || ready {
            let wait = if room { due.saturating_sub(run).clamp(500, 5 * MS) } else { 20 * MS };
            // One alarm: what is older is no more than a look too many.
            self.works_in(host, generation, wait);
        }
    }

    /// Has the thread look again, unless it does so before then anyway.
    fn works_in(&mut self, host: usize, generation: u64, us: u64) {
        let (now, at) = (self.now, self.now + us.max(1));
        let Some(vm) = self.vm(host, generation) else { return };
        if vm.alarm <= now || at < vm.alarm {
            vm.alarm = at;
            self.later(host, us.max(1), What::Works { generation });
        }
    }

    /// Takes a checkpoint for all that have joined or are ready to.
    fn checkpoint(&mut self, host: usize, generation: u64) {
        let Some(vm) = self.vm(host, generation) else { return };
        let last = vm.last == Last::Wanted;
        let epoch = vm.epoch.next();
        let ready = vm.target_states.iter().find(|s| s.stage == Stage::Ready).map(|s| s.since);
        let noted = last || ready.is_none_or(|since| self.is_noted(host, since));
        let Some(vm) = self.vm(host, generation) else { return };
        let joined = |s: &TargetState| matches!(s.stage, Stage::Joined | Stage::Asked);
        if !noted && !vm.target_states.iter().any(joined) {
            return self.works_in(host, generation, 2 * MS);
        }
        if noted
            && !last
            && let Some(target_state) = vm.target_states.iter().find(|s| s.stage == Stage::Ready)
        {
            let target = target_state.target;
            vm.asks = Some(target);
            let keeper = self.keeper(host);
            keeper.last_id += 1;
            let held = WaiterId(keeper.last_id);
            let event = Event::FirstCheckpoint { generation, target, epoch, held };
            return self.tell_with(host, held, Waits::First { generation, target }, event);
        }
        let gets = |s: &TargetState| matches!(s.stage, Stage::Joined | Stage::Asked);
        if !vm.target_states.iter().any(gets) {
            self.through_if_alone(host);
            return self.works_in(host, generation, MS);
        }
        vm.epoch = epoch;
        let guest = vm.guest.clone();
        let Health { pending, standing, .. } = guest.health;
        let keeper = self.keeper(host);
        keeper.guest_io.seal(epoch);
        let writes = keeper.volumes.seal(epoch);
        let queued = keeper.volumes.held();
        let health = Health { pending, standing, ..keeper.told.clone() };
        let checkpoint = Checkpoint { epoch, guest: Guest { health, ..guest }, writes };
        self.disk_works(host, false);
        let pause = self.rng.u64(200..2 * MS);
        let now = self.now;
        let Some(vm) = self.vm(host, generation) else { return };
        vm.resumed = now + pause;
        if last {
            (vm.last, vm.paused) = (Last::Taken, true);
            let off = vm.off == Off::Seen;
            if off {
                vm.off = Off::Reported;
                self.tell_later(host, 1, Event::VmShutdown { generation });
            }
            // The core knows it before anybody can have it.
            self.tell_later(host, 2, Event::FinalTaken { generation, epoch });
        }
        let Some(vm) = self.vm(host, generation) else { return };
        let mut to = Vec::new();
        let written = std::mem::take(&mut vm.memory.epoch);
        if vm.memory.recent.len() == RECENT {
            vm.memory.recent.pop_front();
        }
        vm.memory.recent.push_back((epoch, written.clone()));
        vm.target_states.iter_mut().filter(|s| s.stage != Stage::Joined).for_each(|s| s.stale.extend(&written));
        for target_state in vm.target_states.iter_mut().filter(|s| gets(s)) {
            // A switchover's last is for those that have joined.
            if target_state.stage == Stage::Asked && last {
                continue;
            }
            let joins = target_state.stage == Stage::Asked;
            if joins {
                let before = Epoch(epoch.0 - 1);
                (target_state.stage, target_state.acked, target_state.before) = (Stage::Joined, before, before);
            }
            let pages = if joins { std::mem::take(&mut target_state.stale) } else { written.clone() };
            to.push((target_state.target, target_state.log, joins, pages));
        }
        for (target, log, joins, pages) in to {
            let pages = pages.into_iter().map(|page| (page, checkpoint.guest.memory[page])).collect();
            self.give(host, target, log, &checkpoint, (pages, joins.then_some(&queued)), pause);
        }
        self.through_if_alone(host);
        self.works_in(host, generation, pause + SHORTEST);
    }

    /// What a checkpoint that nobody is to have has sealed is the guest's own again.
    fn through_if_alone(&mut self, host: usize) {
        if let Some(keeper) = &mut self.hosts[host].keeper
            && keeper.volumes.is_alone()
        {
            keeper.volumes.go_through();
            self.disk_works(host, false);
        }
    }

    fn give(
        &mut self,
        host: usize,
        target: Target,
        log: Option<u64>,
        checkpoint: &Checkpoint,
        (pages, queued): (Writes, Option<&Writes>),
        pause: u64,
    ) {
        let images = self.hosts[host].disk.cached.clone();
        match target {
            Target::Session(name) => {
                let boot = self.boot_us(host);
                let (epoch, resumed) = (checkpoint.epoch, self.clocks(host).monotonic);
                let Some(session) = self.keeper(host).sessions.get_mut(&name) else { return };
                // The images as they are, but for what is held; that comes with it.
                let rest = queued.map(|queued| {
                    let since = session.since.take().unwrap_or_default();
                    let left = since.into_iter().map(|block| (block, images[block])).collect();
                    Rest { left, held: queued.clone() }
                });
                session.sent.push_back((epoch, boot));
                session.sent_at = boot;
                let (connection, term) = (session.connection, session.term);
                self.judge.takes(name, epoch, checkpoint.guest.at);
                let checkpoint = Box::new(checkpoint.clone());
                self.send(connection, 0, Msg::Checkpoint { checkpoint, term, pages, rest });
                let record = record(epoch);
                self.tell_later(host, pause + 50, Event::Sent { session: name, epoch, resumed, record });
            }
            Target::Log => {
                let Some(id) = log else { return };
                let rest = queued.cloned();
                self.log_job(host, id, LogJob::Checkpoint { checkpoint: Box::new(checkpoint.clone()), rest });
            }
            Target::Snapshot => {}
        }
    }
}

impl Vm {
    /// The guest makes a step, and writes a page.
    fn makes(&mut self, node: Node, page: usize) {
        self.guest.at = node;
        self.guest.memory[page] = node;
        self.memory.note(page);
        self.target_states.iter_mut().filter(|s| s.stage != Stage::Joined).for_each(|s| {
            s.stale.insert(page);
        });
    }

    /// A target has gone. One that may come back with what it has acknowledged is remembered.
    fn leaves(&mut self, target: Target, comes_back: bool, all_that_left: bool) {
        let Some(at) = self.target_states.iter().position(|s| s.target == target) else {
            if let (Target::Session(session), false) = (target, comes_back) {
                self.memory.left.retain(|(of, _)| *of != session);
            }
            return;
        };
        let target_state = self.target_states.remove(at);
        let Some(session) = target.session().filter(|_| comes_back) else { return };
        let known = self.memory.recent.front().map_or(self.epoch, |(oldest, _)| Epoch(oldest.0 - 1));
        let since =
            if all_that_left { may_hold(target_state.before.next(), target_state.acked) } else { target_state.acked };
        if target_state.stage != Stage::Joined || target_state.acked <= target_state.before || since < known {
            return;
        }
        let missed = self.memory.recent.iter().filter(|(epoch, _)| *epoch > since).flat_map(|(_, pages)| pages);
        let written = missed.chain(&self.memory.epoch).copied().collect();
        self.memory.left.push((session, written));
    }

    /// Where one that holds a checkpoint differs from the guest; none if it is not remembered.
    fn stale(&self, held: &Held) -> Option<BTreeSet<usize>> {
        let written = match held.basis {
            Basis::Resumed => self.memory.resumed.as_ref()?,
            Basis::Left(session) => self.memory.left.iter().find(|(of, _)| *of == session).map(|(_, pages)| pages)?,
        };
        let runs = held.differs.iter().filter(|run| run.block == 0);
        let differs = runs.flat_map(|run| (run.first..run.first + u64::from(run.count)).map(|page| page as usize));
        Some(written.iter().copied().chain(differs.filter(|page| *page < PAGES)).collect())
    }
}

fn record(epoch: Epoch) -> ninefold_model::checkpoint::CheckpointRecord {
    ninefold_model::checkpoint::CheckpointRecord {
        seq: 0,
        epoch: epoch.0,
        run_us: 0,
        stop_us: 0,
        save_us: 0,
        scan_us: 0,
        copy_us: 0,
        cont_us: 0,
        pause_us: 0,
        dirty_pages: 1,
        held_pages: 0,
        early_pages: 0,
        again_pages: 0,
        state_bytes: 0,
        wire_bytes: 1,
        commit_us: 0,
    }
}
