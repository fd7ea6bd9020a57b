//! What goes wrong, and how it passes.

use ninefold_control::{Mixture, Request};
use ninefold_core::event::{Event, RequestId, Seen};

use crate::keeper::At;
use crate::plan::{Fault, Moment};
use crate::world::{Item, MS, What, World};

/// How long a fault waits for its moment.
const LURKS: u64 = 2000 * MS;

impl World {
    pub(crate) fn fault_is_due(&mut self, n: usize) {
        if self.plan.faults[n].behind.is_none() {
            return self.fault(n);
        }
        self.lurking.push(n);
        self.after(LURKS, Item::Fault(n));
    }

    /// Such a moment has come: what has waited for it happens soon.
    pub(crate) fn comes(&mut self, moment: Moment) {
        for n in std::mem::take(&mut self.lurking) {
            match self.plan.faults[n].behind {
                Some((of, us)) if of == moment => self.after(us, Item::Fault(n)),
                _ => self.lurking.push(n),
            }
        }
    }

    pub(crate) fn fault(&mut self, n: usize) {
        // It has happened already, if its moment has come.
        if std::mem::replace(&mut self.happened[n], true) {
            return;
        }
        self.lurking.retain(|of| *of != n);
        self.going_on += 1;
        let mut fault = self.plan.faults[n].fault.clone();
        let now = self.now;
        self.trace.fault(now, &fault);
        let lasts = fault.lasts().map_or(0, |ms| *ms * MS);
        self.after(lasts.max(1), Item::Passes(n));
        match fault {
            Fault::KillKeeper { host, back_ms } => {
                self.keeper_dies(host, true);
                self.after(back_ms * MS, Item::Begins { host });
            }
            Fault::Quit { host, back_ms } => {
                if self.hosts[host].keeper.is_some() {
                    self.hosts[host].back_after = back_ms * MS;
                    self.tell_later(host, 0, Event::Quit);
                }
            }
            Fault::KillQemu { host } => {
                let Some(keeper) = &mut self.hosts[host].keeper else { return };
                if let Some(vm) = keeper.vm.take_if(|vm| vm.launched) {
                    let generation = vm.generation;
                    let dies = self.rng.u64(1..20 * MS);
                    self.tell_later(host, dies, Event::VmLost { generation, reason: "QEMU ended".into() });
                    self.judge_holders("the VM's QEMU was killed");
                }
            }
            Fault::KillStandby { host } => {
                let Some(keeper) = &mut self.hosts[host].keeper else { return };
                keeper.waiting = None;
                keeper.parking.dies();
                self.hosts[host].robbed = true;
                let Some(keeper) = &mut self.hosts[host].keeper else { return };
                let alive = keeper.standbys.iter_mut().filter(|(_, s)| !matches!(s.at, At::Door | At::Over));
                let mut dead = Vec::new();
                for (id, standby) in alive {
                    standby.alive = false;
                    dead.push(*id);
                }
                for connection in dead {
                    let found = self.rng.u64(1..40 * MS);
                    self.later(host, found, What::StandbyDied { connection });
                }
                self.judge_holders("a standby was killed");
            }
            Fault::LoadFails { host } => {
                (self.hosts[host].load_fails, self.hosts[host].robbed) = (true, true);
            }
            Fault::Freeze { host, amid: true, .. } => self.hosts[host].freezes_amid = Some(n),
            Fault::Freeze { host, amid: false, .. } => self.freezes(host, n),
            Fault::Suspend { host, .. } => {
                let h = &mut self.hosts[host];
                if h.suspended.is_none() && h.power {
                    h.suspended = Some(now);
                    h.still_since.get_or_insert(now);
                }
            }
            Fault::PowerOff { host, back_ms } => self.loses_power(host, back_ms * MS),
            Fault::PowerLoss { back_ms } => {
                for host in 0..self.hosts.len() {
                    let later = self.rng.u64(..500 * MS);
                    self.loses_power(host, back_ms * MS + later);
                }
            }
            Fault::Cut { from, to, .. } => self.cuts[from][to] += 1,
            Fault::Isolate { host, .. } => self.isolate(host, true),
            Fault::Delay { from, to, by_ms, .. } => self.delays[from][to] += by_ms * MS,
            Fault::Reset { a, b } => {
                let between = |hosts: [usize; 2]| hosts == [a, b] || hosts == [b, a];
                let ids: Vec<u64> =
                    self.connections.iter().filter(|(_, c)| between(c.hosts)).map(|(id, _)| *id).collect();
                for connection in ids {
                    for side in 0..2 {
                        self.after(1, Item::Resets { connection, side });
                    }
                }
            }
            Fault::WitnessDown { .. } => self.witness.down += 1,
            Fault::WitnessSlow { by_ms, .. } => self.witness.slow += by_ms * MS,
            Fault::WitnessMute { .. } => self.witness.mute += 1,
            Fault::WitnessLate { by_ms, .. } => self.witness.late += by_ms * MS,
            Fault::WitnessForgets { changes, .. } => self.witness.forgets = Some(changes),
            Fault::WitnessRefuses { .. } => self.witness.refuses += 1,
            Fault::WitnessCut { host, .. } => self.hosts[host].witness_cut += 1,
            Fault::DiskSlow { host, by_ms, .. } => self.hosts[host].disk_slow += by_ms * MS,
            Fault::LogFails { host, noted } => {
                (self.hosts[host].log_fails, self.hosts[host].robbed) = (Some(noted), true);
            }
            Fault::VolumesFail { host, full, .. } => {
                self.judge.disk_failed = true;
                let disk = &mut self.hosts[host].disk;
                *(if full { &mut disk.full } else { &mut disk.fails }) += 1;
            }
            Fault::DiskHangs { host, .. } => {
                self.judge.disk_failed = true;
                self.hosts[host].disk.hangs += 1;
            }
            Fault::Uplink { host, .. } => self.hosts[host].uplink = false,
            Fault::StartElsewhere { host } => {
                if self.judge.lost.is_some() && self.runner().is_none() {
                    self.judge.forced.insert(host);
                    self.request(host, Request::Start { force: true });
                }
            }
            Fault::Switchover => self.requests(Request::Switchover),
            Fault::Unprotect { .. } => self.requests(Request::Unprotect),
            Fault::Asks(request) => self.requests(request),
            Fault::Suspends => {
                if let Some(host) = self.runner() {
                    self.suspends(host);
                }
            }
            Fault::GuestFails => {
                if let Some(host) = self.runner() {
                    self.guest_fails(host);
                }
            }
            Fault::PowersOff => {
                if let Some(host) = self.runner() {
                    self.switches_off(host);
                }
            }
        }
    }

    pub(crate) fn passes(&mut self, n: usize) {
        self.faults_left -= 1;
        self.going_on -= 1;
        let now = self.now;
        match self.plan.faults[n].fault.clone() {
            Fault::Freeze { host, .. } => {
                let h = &mut self.hosts[host];
                h.freezes_amid.take_if(|of| *of == n);
                if h.frozen.contains(&n) {
                    h.frozen.retain(|of| *of != n);
                    self.thaws(host);
                }
            }
            Fault::Suspend { host, .. } => {
                if let Some(since) = self.hosts[host].suspended.take() {
                    self.hosts[host].asleep += now - since;
                    self.healed();
                    self.thaws(host);
                }
            }
            Fault::Cut { from, to, .. } => {
                self.cuts[from][to] -= 1;
                self.healed();
            }
            Fault::Isolate { host, .. } => {
                self.isolate(host, false);
                self.healed();
            }
            Fault::Delay { from, to, by_ms, .. } => self.delays[from][to] -= by_ms * MS,
            Fault::WitnessDown { .. } => self.witness.down -= 1,
            Fault::WitnessSlow { by_ms, .. } => self.witness.slow -= by_ms * MS,
            Fault::WitnessMute { .. } => self.witness.mute -= 1,
            Fault::WitnessLate { by_ms, .. } => self.witness.late -= by_ms * MS,
            Fault::WitnessForgets { .. } => self.witness.forgets = None,
            Fault::WitnessRefuses { .. } => self.witness.refuses -= 1,
            Fault::WitnessCut { host, .. } => self.hosts[host].witness_cut -= 1,
            Fault::DiskSlow { host, by_ms, .. } => self.hosts[host].disk_slow -= by_ms * MS,
            Fault::VolumesFail { host, full, .. } => {
                let disk = &mut self.hosts[host].disk;
                *(if full { &mut disk.full } else { &mut disk.fails }) -= 1;
            }
            Fault::DiskHangs { host, .. } => self.hosts[host].disk.hangs -= 1,
            Fault::Uplink { host, .. } => self.hosts[host].uplink = true,
            Fault::Unprotect { .. } => self.judge.protect_again = true,
            _ => {}
        }
    }

    fn isolate(&mut self, host: usize, yes: bool) {
        let change = |n: &mut u32| if yes { *n += 1 } else { *n -= 1 };
        for other in (0..self.hosts.len()).filter(|o| *o != host) {
            change(&mut self.cuts[host][other]);
            change(&mut self.cuts[other][host]);
        }
        change(&mut self.hosts[host].witness_cut);
    }

    pub(crate) fn freezes(&mut self, host: usize, fault: usize) {
        let now = self.now;
        let h = &mut self.hosts[host];
        if h.power {
            h.frozen.push(fault);
            h.still_since.get_or_insert(now);
            self.trace.say(now, &self.hosts[host].name, || "stands still".into());
        }
    }

    fn thaws(&mut self, host: usize) {
        if self.still(host) {
            return;
        }
        let now = self.now;
        self.trace.say(now, &self.hosts[host].name, || "goes on".into());
        let h = &mut self.hosts[host];
        if h.still_since.take().is_some_and(|since| now - since >= 170 * MS) {
            h.thawed = Some(now);
        }
        self.goes_on(host);
    }

    fn loses_power(&mut self, host: usize, back: u64) {
        if !self.hosts[host].power {
            return;
        }
        let now = self.now;
        if let Some(since) = self.hosts[host].suspended.take() {
            self.hosts[host].asleep += now - since;
        }
        self.keeper_dies(host, false);
        let h = &mut self.hosts[host];
        (h.power, h.still_since, h.kept) = (false, None, None);
        h.disk.loses_power();
        h.frozen.clear();
        self.after(back, Item::Begins { host });
        self.after(back.saturating_sub(1), Item::PowerIsBack { host });
        // Its peers hear of it when it is there again.
        let theirs: Vec<(u64, usize)> = self
            .connections
            .iter()
            .flat_map(|(id, c)| (0..2).filter(|s| c.hosts[1 - s] == host && !c.closed[*s]).map(|s| (*id, s)))
            .collect();
        for (connection, side) in theirs {
            let heard = back + self.rng.u64(..300 * MS);
            self.after(heard, Item::Resets { connection, side });
        }
    }

    /// A keeper's process is gone, with its QEMUs and all that it knew.
    pub(crate) fn keeper_dies(&mut self, host: usize, says_so: bool) {
        if self.hosts[host].keeper.is_none() {
            return;
        }
        if says_so {
            self.leaves_memory(host);
        }
        self.hosts[host].keeper = None;
        self.judge.ended(host);
        self.hosts[host].backlog.clear();
        self.hosts[host].freezes_amid = None;
        let now = self.now;
        self.trace.say(now, &self.hosts[host].name, || "its keeper is gone".into());
        self.ends_connections(host, says_so);
        self.judge_holders("a keeper has ended");
    }

    /// A keeper has done what it was told and ends.
    pub(crate) fn keeper_ends(&mut self, host: usize) {
        self.keeper_dies(host, true);
        let back = self.hosts[host].back_after;
        self.after(back.max(1), Item::Begins { host });
    }

    /// The host on which the VM runs, as far as there is one.
    pub(crate) fn runner(&self) -> Option<usize> {
        let runs = |h: &crate::world::Host| h.keeper.as_ref().is_some_and(|k| k.vm.as_ref().is_some_and(|vm| vm.runs));
        let named = self.record().map(|r| self.number(&r.primary)).filter(|n| runs(&self.hosts[*n]));
        named.or_else(|| self.hosts.iter().position(runs))
    }

    /// An owner asks for something where the VM runs.
    pub(crate) fn requests(&mut self, request: Request) {
        if let Some(host) = self.runner() {
            self.request(host, request);
        }
    }

    pub(crate) fn request(&mut self, host: usize, request: Request) {
        if self.hosts[host].keeper.is_some() {
            let id = RequestId(1);
            let mixture = self.hosts[host].disk.mixture.then_some(Mixture::Resync);
            let seen = Seen { mixture, ..Seen::default() };
            self.tell_later(host, 1, Event::Request { id, request, token: None, seen });
        }
    }
}
