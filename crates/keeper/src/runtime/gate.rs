//! What the VM says: held, released, let go at once.

use std::cell::Cell;

use ninefold_core::effect::GuestIoOrder;
use ninefold_core::event::{Event, Source};
use ninefold_core::still_ours;
use ninefold_core::time::Boottime;
use ninefold_model::Epoch;
use ninefold_transport::clock::Moment;

use super::{Runtime, boottime};
use crate::devices::guest_io::GuestIo;

impl Runtime {
    pub(super) fn guest_io(&mut self, order: GuestIoOrder) {
        let guest_io = &self.parts.guest_io;
        match order {
            GuestIoOrder::Hold { awake } => {
                self.at_work(awake, |guest_io, look| guest_io.hold(look));
                self.answer(Event::Looked(self.looked));
            }
            GuestIoOrder::Release { epoch, awake, oldest, announce } => self.release(epoch, awake, oldest, announce),
            GuestIoOrder::Open { by_log, awake } => {
                let owed = if by_log { Vec::new() } else { self.parts.disks.owed() };
                if !owed.is_empty() {
                    // A host that has just come to the VM is mute: what is said meanwhile must not be dropped.
                    self.at_work(awake, |guest_io, look| guest_io.hold(look));
                }
                self.owed = Some(owed);
                self.try_open(awake);
            }
            GuestIoOrder::TryOpen { awake } => self.try_open(awake),
            GuestIoOrder::StayShut => self.owed = None,
            GuestIoOrder::Mute => guest_io.mute(),
            GuestIoOrder::Attach(source) => self.attach(source),
            GuestIoOrder::Detach => guest_io.detach(),
            GuestIoOrder::Announce => drop(guest_io.announce(&|| true)),
            GuestIoOrder::ForgetConsole => guest_io.forget(),
            GuestIoOrder::ForgetAddresses => guest_io.forget_addresses(),
        }
    }

    fn release(&mut self, epoch: Epoch, awake: Boottime, oldest: Option<Boottime>, announce: bool) {
        let (timing, look) = (self.parts.config.vm.policy.timing, Cell::new(awake.max(self.looked)));
        let ours = || {
            let now = boottime(Moment::now());
            let ours = still_ours(look.get(), oldest, now, &timing);
            if ours {
                look.set(now);
            }
            ours
        };
        let kept = !self.parts.guest_io.release(epoch, &ours);
        let announced = announce && self.parts.guest_io.announce(&ours) > 0;
        // A long release is work, not a freeze. One that ended in a freeze leaves it to be found by the next tick.
        ours();
        self.looked = look.get();
        self.answer(Event::Released { kept, announced, looked: self.looked });
    }

    /// Does what may take a while with a gate that was full. That is work, not a freeze: it looks at the clock now and then.
    fn at_work(&mut self, awake: Boottime, work: impl FnOnce(&GuestIo, &dyn Fn())) {
        let (timing, look) = (self.parts.config.vm.policy.timing, Cell::new(awake.max(self.looked)));
        let seen = || {
            let now = boottime(Moment::now());
            if still_ours(look.get(), None, now, &timing) {
                look.set(now);
            }
        };
        work(&self.parts.guest_io, &seen);
        seen();
        self.looked = look.get();
    }

    /// Lets all output go if nothing is owed any more.
    fn try_open(&mut self, awake: Boottime) {
        let Some(owed) = &self.owed else { return };
        let owed = self.parts.disks.still_owed(owed);
        let open = owed.is_empty();
        if open {
            self.owed = None;
            self.at_work(awake, |guest_io, look| guest_io.pass(look));
        } else {
            self.owed = Some(owed);
        }
        self.answer(Event::Gate { open, looked: self.looked });
    }

    fn attach(&mut self, source: Option<Source>) {
        let ports = match source {
            Some(source) => self.waiting(source).and_then(|w| w.ports.take()),
            None => self.ports.take(),
        };
        if let Some(ports) = ports
            && let Err(error) = self.parts.guest_io.attach(ports)
        {
            tracing::error!(%error, "the VM's sockets cannot be served");
        }
    }
}
