//! A keeper's core takes an event; what it says is carried out, as the keeper's runtime does it.

use std::collections::BTreeSet;

use ninefold_control::OperationKind;
use ninefold_control::operation::State;
use ninefold_core::effect::{
    DisksOrder, Effect, GuestIoOrder, GuestOrder, Metric, ParkingOrder, PrimaryOrder, WitnessRequest,
};
use ninefold_core::event::{Event, Frames, Observed, OfferId};
use ninefold_core::still_ours;
use ninefold_core::time::Boottime;
use ninefold_model::Epoch;
use ninefold_model::event::EventKind;
use ninefold_model::spec::Timing;
use ninefold_replica::stream::Hello;

use crate::guest::{Node, Writes};
use crate::guest_io::Gate;
use crate::keeper::{StandbyUse, Waits};
use crate::network::Msg;
use crate::plan::Moment;
use crate::world::{BUDGET, MS, TICK_US, World};

impl World {
    /// Tells the core what happens.
    pub(crate) fn tell(&mut self, host: usize, event: Event) {
        if self.tick_if_due(host) {
            self.step(host, event);
        }
    }

    /// Before anything that has waited: a host that stood still must not act on it as if no time had passed. False if the keeper has ended.
    pub(crate) fn tick_if_due(&mut self, host: usize) -> bool {
        if self.hosts[host].keeper.is_some() && self.now - self.keeper(host).ticked >= TICK_US {
            self.tick(host);
        }
        self.hosts[host].keeper.is_some()
    }

    pub(crate) fn tell_offer(&mut self, host: usize, offer: OfferId, connection: u64, hello: Box<Hello>) {
        if self.tick_if_due(host) {
            self.keeper(host).offer = Some((offer, connection));
            self.step(host, Event::Offer { offer, hello });
        }
    }

    pub(crate) fn tick(&mut self, host: usize) {
        self.keeper(host).ticked = self.now;
        if self.keeper(host).standbys.values().any(|s| !s.acks.is_empty()) {
            self.check_acks(host);
            if self.hosts[host].keeper.is_none() {
                return;
            }
        }
        let observed = self.observe(host);
        self.step(host, Event::Tick(observed));
    }

    fn observe(&mut self, host: usize) -> Observed {
        let uplink = self.hosts[host].uplink;
        let volumes = self.volume_looks(host);
        let Some(keeper) = &self.hosts[host].keeper else { return Observed::default() };
        let silences = keeper.sessions.iter().map(|(name, s)| (*name, self.silence(s.connection, 0))).collect();
        let primary_silence = keeper.primary.as_ref().map(|p| (p.session, self.silence(p.connection, 1)));
        let logs = keeper.logs.iter().map(|(id, log)| (*id, log.busy.then_some(log.steps))).collect();
        Observed {
            uplink,
            silences,
            primary_silence,
            primary_echo: keeper.primary.as_ref().map_or(0, |p| p.echo),
            logs,
            volumes,
            held: keeper.volumes.bytes(),
            full: keeper.volumes.bytes() >= BUDGET.hard,
            frames: Frames::default(),
            twins: Vec::new(),
        }
    }

    /// One event, all that it has as a consequence, and the answers to that.
    fn step(&mut self, host: usize, event: Event) {
        self.keeper(host).answers.push_back(event);
        if !self.keeper(host).stepping {
            self.keeper(host).stepping = true;
            self.go_on(host);
        }
    }

    /// Goes on with the effects of the step at hand, and with its answers. A host may freeze in between.
    pub(crate) fn go_on(&mut self, host: usize) {
        loop {
            while let Some(effect) = self.keeper(host).undone.pop_front() {
                let releases = matches!(
                    effect,
                    Effect::GuestIo(
                        GuestIoOrder::Release { .. } | GuestIoOrder::Open { .. } | GuestIoOrder::TryOpen { .. }
                    )
                );
                if releases && let Some(fault) = self.hosts[host].freezes_amid.take() {
                    self.keeper(host).undone.push_front(effect);
                    self.freezes(host, fault);
                    return;
                }
                self.trace.effect(self.now, &self.hosts[host].name, &effect);
                self.carry_out(host, effect);
            }
            let now = self.clocks(host);
            let keeper = self.keeper(host);
            let Some(event) = keeper.answers.pop_front() else { break };
            let mut effects = Vec::new();
            let name = &self.hosts[host].name;
            self.trace.event(self.now, name, &event);
            if let Some(keeper) = &mut self.hosts[host].keeper {
                keeper.core.step(now, event, &mut effects);
                keeper.undone.extend(effects);
            }
        }
        self.stepped(host);
    }

    /// What the core has not taken up is over.
    fn stepped(&mut self, host: usize) {
        let keeper = self.keeper(host);
        keeper.stepping = false;
        let (waiter, offer) = (keeper.waiter.take(), keeper.offer.take());
        keeper.recovered = None;
        let wanted = keeper.core.loaded();
        keeper.waiting.take_if(|(source, _)| Some(*source) != wanted);
        let done = keeper.core.is_done() && !keeper.quitting;
        if let Some((_, waits)) = waiter {
            self.not_let_go(host, waits);
        }
        if let Some((_, connection)) = offer {
            self.close(connection, 1);
            self.keeper(host).standbys.remove(&connection);
        }
        if done {
            self.keeper(host).quitting = true;
            self.step(host, Event::End);
            self.keeper_ends(host);
        }
    }

    fn answer(&mut self, host: usize, event: Event) {
        self.keeper(host).answers.push_back(event);
    }

    fn carry_out(&mut self, host: usize, effect: Effect) {
        match effect {
            Effect::Publish(kind) => self.published(host, &kind),
            Effect::Measure(metric) => {
                if let Metric::Role { role, protection, term } = metric {
                    self.says_role(host, role, protection, term);
                }
            }
            Effect::Reply { to: _, reply } => self.operator_hears(reply.is_err()),
            Effect::Operation(operation) => {
                let failed = matches!(operation.state, State::Failed { .. });
                // It was asked for where the VM is not any more.
                self.judge.protect_again |= failed && operation.kind == OperationKind::Protect;
                self.operator_hears(failed && operation.kind == OperationKind::Start);
            }
            // Nobody renames a VM here.
            Effect::ReportLog { .. } | Effect::Name(_) => {}
            Effect::LetGo(waiter) => {
                if let Some((_, waits)) = self.keeper(host).waiter.take_if(|(id, _)| *id == waiter) {
                    self.let_go(host, waits);
                }
            }
            Effect::Ask(question) => {
                if matches!(question, WitnessRequest::Propose { again: false, .. }) {
                    self.comes(Moment::Proposes);
                }
                self.ask(host, question);
            }
            Effect::Find(wish) => self.find(host, wish),
            Effect::ForgetPeer => self.forget_peer(host),
            Effect::AcceptOffer { offer, session, log } => {
                if let Some((_, connection)) = self.keeper(host).offer.take_if(|(id, _)| *id == offer) {
                    self.session_accepted(host, connection, session, log);
                }
            }
            Effect::RefuseOffer { offer, reason } => {
                if let Some((_, connection)) = self.keeper(host).offer.take_if(|(id, _)| *id == offer) {
                    let refuse = ninefold_core::effect::Word::Refuse { reason };
                    self.send(connection, 1, Msg::Word(refuse));
                    self.close(connection, 1);
                    self.keeper(host).standbys.remove(&connection);
                }
            }
            Effect::GuestIo(order) => self.guest_io(host, order),
            Effect::Disks(order) => self.disks(host, order),
            Effect::Parking(order) => {
                let now = self.now;
                let parking = &mut self.keeper(host).parking;
                match order {
                    ParkingOrder::Announce(session) => parking.announce(session),
                    ParkingOrder::Clear => parking.clear(),
                    ParkingOrder::Expire => parking.expire(now),
                }
            }
            Effect::Guest(order) => {
                if let GuestOrder::Tell(health) = order {
                    self.keeper(host).told = health;
                } else if let GuestOrder::KeepImage { trial, record: _, image, before, reason } = order {
                    let failure = (self.more.u8(..3) == 0).then(|| "its disk is full".to_owned());
                    self.tell_later(host, MS, Event::ImageKept { trial, image, before, reason, failure });
                }
            }
            Effect::Vm(order) => self.vm_order(host, order),
            Effect::Session { session, order } => self.session_order(host, session, order),
            Effect::Primary { session, order } => self.primary_order(host, session, order),
            Effect::Log { id, order } => self.log_order(host, id, order),
            Effect::Recovery { id, order } => self.recovery_order(host, id, &order),
            Effect::Job { .. } => {}
        }
    }

    fn let_go(&mut self, host: usize, waits: Waits) {
        let soon = self.moment();
        match waits {
            Waits::Started { generation } => self.guest_runs(host, generation),
            Waits::First { generation, target } => {
                self.later(host, soon, crate::world::What::Held { generation, target, yes: true });
            }
        }
    }

    fn not_let_go(&mut self, host: usize, waits: Waits) {
        let soon = self.moment();
        match waits {
            Waits::Started { generation } => {
                let reason = "it is not wanted any more".into();
                self.tell_later(host, soon, Event::VmLost { generation, reason });
            }
            Waits::First { generation, target } => {
                self.later(host, soon, crate::world::What::Held { generation, target, yes: false });
            }
        }
    }

    // ---- the gate ----

    fn ours(&mut self, host: usize, awake: Boottime, oldest: Option<Boottime>) -> bool {
        let now = self.clocks(host).boottime;
        let keeper = self.keeper(host);
        let look = awake.max(Boottime::from_micros(keeper.looked));
        let ours = still_ours(look, oldest, now, &Timing::default());
        if ours {
            keeper.looked = now.as_micros();
        } else {
            keeper.looked = look.as_micros();
        }
        ours
    }

    fn guest_io(&mut self, host: usize, order: GuestIoOrder) {
        match order {
            GuestIoOrder::Hold { awake } => {
                self.ours(host, awake, None);
                let keeper = self.keeper(host);
                keeper.guest_io.hold();
                let looked = Boottime::from_micros(keeper.looked);
                self.answer(host, Event::Looked(looked));
            }
            GuestIoOrder::Release { epoch, awake, oldest, announce } => {
                self.comes(Moment::Releases);
                let ours = self.ours(host, awake, oldest);
                let (leaves, kept) = self.keeper(host).guest_io.release(epoch, ours);
                for node in leaves {
                    self.leaves(host, node);
                }
                let looked = Boottime::from_micros(self.keeper(host).looked);
                self.answer(host, Event::Released { kept, announced: announce && ours, looked });
            }
            GuestIoOrder::TryOpen { .. } if !self.keeper(host).opening => {}
            GuestIoOrder::Open { awake, .. } | GuestIoOrder::TryOpen { awake } => {
                self.ours(host, awake, None);
                self.keeper(host).opening = true;
                let owes = match order {
                    GuestIoOrder::Open { by_log, .. } => self.owes(host, by_log),
                    _ => self.keeper(host).applier.owes,
                };
                if owes && self.rules.keeper.open_when_durable {
                    self.keeper(host).guest_io.hold();
                    let looked = Boottime::from_micros(self.keeper(host).looked);
                    return self.answer(host, Event::Gate { open: false, looked });
                }
                self.keeper(host).opening = false;
                let leaves = self.keeper(host).guest_io.pass();
                for node in leaves {
                    self.leaves(host, node);
                }
                let looked = Boottime::from_micros(self.keeper(host).looked);
                self.answer(host, Event::Gate { open: true, looked });
            }
            GuestIoOrder::StayShut => {
                self.keeper(host).opening = false;
                self.owes_nothing(host);
            }
            GuestIoOrder::Mute => self.keeper(host).guest_io.mute(),
            _ => {}
        }
    }

    /// Something that the guest said leaves the host, to all the world.
    pub(crate) fn leaves(&mut self, host: usize, node: Node) {
        let open = self.keeper(host).guest_io.gate == Gate::Open;
        self.observe_output(host, node, open);
    }

    // ---- volumes ----

    fn disks(&mut self, host: usize, order: DisksOrder) {
        if self.spec.hardware.volumes.is_empty() {
            return;
        }
        let keeper = self.keeper(host);
        match order {
            DisksOrder::Hold => self.volumes_hold(host),
            DisksOrder::Commit(epoch) => {
                keeper.volumes.commit(epoch);
                self.disk_works(host, false);
            }
            DisksOrder::GoThrough => {
                keeper.volumes.go_through();
                self.disk_works(host, false);
                self.is_over(host, false);
            }
            DisksOrder::Discard => {
                keeper.volumes.discard();
                self.disk_works(host, false);
                self.parts(host);
            }
            DisksOrder::Remember(basis) => {
                keeper.written.retain(|(of, _)| *of != basis);
                keeper.written.push((basis, BTreeSet::new()));
            }
            DisksOrder::Forget(basis) => keeper.written.retain(|(of, _)| *of != basis),
            DisksOrder::Over => self.is_over(host, true),
            DisksOrder::Used => {}
        }
    }

    /// It is remembered what has reached the images.
    pub(crate) fn reached_images(&mut self, host: usize, writes: &Writes) {
        let keeper = self.keeper(host);
        let since = keeper.sessions.values_mut().filter_map(|s| s.since.as_mut());
        for set in since.chain(keeper.written.iter_mut().map(|(_, set)| set)) {
            set.extend(writes.iter().map(|(block, _)| *block));
        }
    }

    // ---- the session in which this host is the backup ----

    fn primary_order(&mut self, host: usize, session: ninefold_model::Term, order: PrimaryOrder) {
        let Some(primary) = &self.keeper(host).primary else { return };
        if primary.session != session {
            return;
        }
        let connection = primary.connection;
        match order {
            PrimaryOrder::Say(word) => {
                if let ninefold_core::effect::Word::Ack { epoch } = word {
                    self.acknowledges(host, session, epoch);
                    self.comes(Moment::Acks);
                }
                if let ninefold_core::effect::Word::Refuse { .. } = word {
                    self.refuses(host, session);
                }
                self.send(connection, 1, Msg::Word(word));
            }
            PrimaryOrder::Load { others } => self.sentence(host, connection, StandbyUse::Load { others }),
            PrimaryOrder::Park => self.sentence(host, connection, StandbyUse::Park),
            PrimaryOrder::Cut => self.standby_cut(host, connection),
            PrimaryOrder::Drop => {
                self.keeper(host).primary = None;
                self.standby_cut(host, connection);
                self.sentence(host, connection, StandbyUse::End);
            }
        }
    }

    fn published(&mut self, host: usize, kind: &EventKind) {
        let named = self.record().is_some_and(|r| r.primary == self.hosts[host].name);
        match kind {
            EventKind::Stopped { .. } => self.judge.vm_stopped(),
            EventKind::NonVolatile { .. } if named => self.judge.durable = true,
            EventKind::LogLost { .. } if named => self.judge.durable = false,
            EventKind::PrimaryLost { .. } => self.comes(Moment::Claims),
            EventKind::BackupReady { .. } => self.comes(Moment::AcksFirst),
            _ => {}
        }
    }
}

/// The epoch before any.
pub(crate) const NONE: Epoch = Epoch(0);
