//! What is done of what the core says, effect by effect.

use std::sync::Arc;
use std::thread;

use ninefold_core::effect::{DisksOrder, Effect, GuestOrder, Metric, ParkingOrder};
use ninefold_core::event::{Event, WaiterId};
use ninefold_model::spec::Boot;

use super::Runtime;
use crate::config::KeeperConfig;
use crate::error::report;
use crate::msg::Msg;
use crate::primary::changed_blocks::ChangedBlocks;
use crate::primary::freeze::{self, End, Limits};

impl Runtime {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Publish(kind) => self.parts.journal.event(kind),
            Effect::Measure(metric) => self.measure(metric),
            Effect::Operation(operation) => self.parts.operations.note(operation),
            Effect::Reply { to, reply } => {
                if let Some(asks) = self.requests.remove(&to) {
                    let _ = asks.send(reply);
                }
            }
            Effect::ReportLog { to, held } => self.report_log(to, held),
            Effect::Name(label) => {
                let _ = self.parts.naming.send(label);
            }
            Effect::LetGo(waiter) => self.let_go(waiter),
            Effect::Ask(question) => {
                let _ = self.parts.proposer.send(question);
            }
            Effect::Find(wish) => self.parts.connector.ask(wish),
            Effect::ForgetPeer => self.link = None,
            Effect::AcceptOffer { offer, session, log } => self.accept(offer, session, log),
            Effect::RefuseOffer { offer, reason } => self.refuse(offer, reason),
            Effect::GuestIo(order) => self.guest_io(order),
            Effect::Disks(order) => self.disks(order),
            Effect::Parking(order) => match order {
                ParkingOrder::Announce(session) => self.parts.parking.announce(session),
                ParkingOrder::Clear => self.parts.parking.clear(),
                ParkingOrder::Expire => self.parts.parking.expire(),
            },
            Effect::Guest(order) => self.guest(order),
            Effect::Vm(order) => self.vm(order),
            Effect::Session { session, order } => self.session(session, order),
            Effect::Primary { session, order } => self.primary(session, order),
            Effect::Log { id, order } => self.log(id, order),
            Effect::Recovery { id, order } => self.recover(id, &order),
            Effect::Job { id, order } => self.job(id, order),
        }
    }

    fn let_go(&mut self, waiter: WaiterId) {
        if let Some((_, thread)) = self.waiter.take_if(|(id, _)| *id == waiter) {
            let _ = thread.send(());
        }
    }

    fn disks(&mut self, order: DisksOrder) {
        let disks = &self.parts.disks;
        match order {
            DisksOrder::Used => disks.used(),
            DisksOrder::Hold => disks.hold(),
            DisksOrder::Commit(epoch) => disks.commit(epoch),
            DisksOrder::GoThrough => disks.go_through(),
            DisksOrder::Discard => disks.discard(),
            DisksOrder::Over => disks.are_over(),
            DisksOrder::Remember(basis) => {
                let rest = ChangedBlocks::written(Arc::clone(disks));
                self.written.retain(|(of, _)| *of != basis);
                self.written.push((basis, rest));
            }
            DisksOrder::Forget(basis) => self.written.retain(|(of, _)| *of != basis),
        }
    }

    fn guest(&mut self, order: GuestOrder) {
        match order {
            GuestOrder::Tell(health) => self.told.set(health),
            GuestOrder::Frozen(frozen) => drop(self.told.frozen(frozen)),
            GuestOrder::Thaw { generation } => {
                let socket = KeeperConfig::agent_socket(&self.parts.config.vm_dir());
                let hears = self.hears_end(generation);
                if let Err(failed) = freeze::thaw_later(socket, Limits::default(), self.told.clone(), hears) {
                    self.answer(Event::FreezeEnds { generation, unsure: Some(report(&failed)) });
                }
            }
            GuestOrder::Search { text } => {
                let said = self.parts.guest_io.console_history();
                if said.windows(text.len().max(1)).any(|w| w == text.as_bytes()) {
                    self.answer(Event::ConsoleShows { text });
                }
            }
            GuestOrder::KeepImage { trial, record, image, before, reason } => {
                self.keep_image(trial, record, image, before, reason);
            }
        }
    }

    /// Hears how freezing or thawing the guest has ended.
    pub(super) fn hears_end(&self, generation: u64) -> impl FnOnce(End) + Send + 'static {
        let core = self.parts.core.clone();
        move |end| {
            let _ = core.send(Msg::Frozen { generation, end });
        }
    }

    /// A disk may be slow: a thread of its own writes.
    fn keep_image(&mut self, trial: u64, record: Option<Boot>, image: Boot, before: Option<Boot>, reason: String) {
        let (images, core) = (Arc::clone(&self.parts.images), self.parts.core.clone());
        let told = (image.clone(), before.clone(), reason.clone());
        let keep = move || {
            let failure = images.keep(record.as_ref()).err().map(|e| report(&e));
            let _ = core.send(Msg::ImageKept { trial, image, before, reason, failure });
        };
        if let Err(failed) = thread::Builder::new().name("images".into()).spawn(keep) {
            let (image, before, reason) = told;
            self.answer(Event::ImageKept { trial, image, before, reason, failure: Some(failed.to_string()) });
        }
    }

    fn measure(&self, metric: Metric) {
        let board = &self.parts.board;
        match metric {
            Metric::Role { role, protection, term } => board.role(role, protection, term),
            Metric::Waited(time) => board.waited(time),
            Metric::Checkpoint(record) => {
                board.checkpoint(&record);
                self.parts.journal.checkpoint(record);
            }
            Metric::Logged { bytes, us } => board.logged(bytes, us),
            Metric::Log(status) => board.log(&status),
            Metric::LogLost => board.log_lost(),
            Metric::GuestState(standing) => board.standing(standing),
            Metric::Volume { name, held, failed, stalled } => board.volume(&name, held, failed, stalled),
            Metric::WritesWait(wait) => board.writes_wait(wait),
            Metric::GuestFailed(failure, action) => board.guest_failed(failure, action),
            Metric::Trial(outcome) => board.trial(outcome),
            Metric::Failover(time) => board.failover(time),
            Metric::Counters { counters, committed } => board.counters(&counters, committed),
        }
    }
}
