//! What the [judge](crate::judge) sees: outputs, what each host holds, how the VM is when all faults have passed. And the VM's owner, who
//! starts it.

use ninefold_control::Request;
use ninefold_core::event::Source;
use ninefold_model::status::{ProtectionState, Role};
use ninefold_model::{Activity, Epoch, Record, Term};

use crate::guest::{Guest, Node};
use crate::judge::Verdict;
use crate::keeper::{At, Off};
use crate::plan::Fault;
use crate::world::{Item, MS, World};

/// A late frame is one that leaves so long after another host has won the VM: the failure timeout, and one call to the witness.
const LATE: u64 = 1300 * MS;
/// How long a primary may call itself protected when its backup is gone.
const UNNOTICED: u64 = 1000 * MS;
/// How long it may take after the last fault until all is well.
const HEALS: u64 = 100_000 * MS;
/// How long a primary may stay on a disk that fails: a second until it leaves, two more if nothing comes of it.
const LEAVES: u64 = 5000 * MS;
/// All is well when it has been so for this long.
const SETTLED: u64 = 300 * MS;

impl World {
    /// This host has won the VM, or changed who may take it over, by what this keeper asked for.
    pub(crate) fn record_changed(&mut self, host: usize, keeper: u64) {
        let now = self.now;
        self.judge.changed = now;
        let records = &self.witness.records;
        let before = records.len().checked_sub(2).map(|n| &records[n]);
        let (Some(record), Some(before)) = (self.record(), before) else { return };
        let h = &self.hosts[host];
        let lives = h.incarnation == keeper && h.keeper.is_some() && !h.robbed;
        let won = before.primary != record.primary && self.judge.lost.is_none() && !self.judge.stopped;
        if won && lives && !self.holds(host, record) {
            let words = format!("{} wins the VM, and has given it up", h.name);
            self.judge.harm(now, "L", words);
        }
        // One that was asked for by a host that has ended since may bind those alone who hold nothing any more.
        self.judge_holders("the record has changed");
    }

    /// A step of the guest is told to the world.
    pub(crate) fn observe_output(&mut self, host: usize, node: Node, open: bool) {
        let (now, name) = (self.now, self.hosts[host].name.clone());
        self.trace.say(now, &name, || format!("says {node}{}", if open { ", at once" } else { "" }));
        let spoken = self.judge.spoken;
        if self.steps.has(node, spoken) {
            self.judge.spoken = node;
        } else if !self.steps.has(spoken, node) {
            let words = format!("{name} says {node}, which does not follow what has been said: {spoken}");
            return self.judge.harm(now, "I3", words);
        }
        if let Some(disk) = self.told.remove(&node) {
            self.judge.promised = disk.into_iter().map(|(_, node)| node).collect();
            if self.record().is_some_and(|r| r.is_alone() && r.primary == name) {
                self.judge.promised_alone = Some((host, self.judge.promised.clone()));
            }
        }
        let Some(record) = self.record().cloned() else {
            return self.judge.harm(now, "I3", format!("{name} speaks, and has never won the VM"));
        };
        let owner = self.number(&record.primary);
        if owner != host {
            let (changed, thawed) = (self.judge.changed, self.hosts[host].thawed);
            if thawed.is_some_and(|at| at > changed) {
                let words = format!("{name} stood still, was replaced by {}, and speaks", record.primary);
                self.judge.harm(now, "I3", words);
            } else if now - changed > LATE {
                let words = format!("{name} speaks {} ms after {} had won", (now - changed) / MS, record.primary);
                self.judge.harm(now, "I3", words);
            }
            return;
        }
        for backup in &record.backups {
            let b = self.number(&backup.host);
            let holds = self.judge.acked.get(&(b, backup.session)).is_some_and(|at| self.steps.has(*at, node));
            if !holds {
                let words = format!("{name} says {node}, which {} does not hold, and may take over", backup.host);
                return self.judge.harm(now, "I1", words);
            }
        }
    }

    /// A backup says that it holds a checkpoint.
    pub(crate) fn acknowledges(&mut self, host: usize, session: Term, epoch: Epoch) {
        if let Some(at) = self.judge.taken.get(&(session, epoch)) {
            self.judge.acked.insert((host, session), *at);
        }
    }

    /// A guest is let run that was loaded from a checkpoint.
    pub(crate) fn resumes(&mut self, host: usize, guest: &Guest) {
        let (now, name) = (self.now, self.hosts[host].name.clone());
        let spoken = self.judge.spoken;
        self.judge.takeovers += 1;
        self.trace.say(now, &name, || format!("goes on from {}", guest.at));
        if !self.steps.has(guest.at, spoken) {
            let words = format!("{name} goes on from {}, and {spoken} has been said", guest.at);
            return self.judge.harm(now, "I2", words);
        }
        if self.record().is_none_or(|r| r.primary != name) {
            return self.judge.harm(now, "I3", format!("{name} goes on, and has not won the VM"));
        }
        let view = self.view(host);
        if view != guest.disk {
            let words = format!("{name} goes on with volumes {view:?}, and the guest has written {:?}", guest.disk);
            self.judge.harm(now, "volumes", words);
        }
    }

    /// The guest begins anew. Answers its first step.
    pub(crate) fn boots(&mut self, host: usize) -> Node {
        let (now, name) = (self.now, self.hosts[host].name.clone());
        let judge = &mut self.judge;
        if judge.life.is_some() && !judge.stopped && judge.lost.is_none() {
            judge.harm(now, "L", format!("{name} boots the VM anew, and it was lost by nothing"));
        }
        self.boots_from(host);
        let node = self.steps.after(0);
        self.hosts.iter_mut().for_each(|h| h.robbed = false);
        let judge = &mut self.judge;
        (judge.life, judge.spoken, judge.stopped, judge.lost) = (Some(node), node, false, None);
        judge.durable = false;
        judge.promised.clear();
        judge.promised_alone = None;
        judge.acked.clear();
        judge.lives += 1;
        self.trace.say(now, &name, || format!("boots, with {node}"));
        node
    }

    /// The guest is given up, and another is booted in its place. Answers its first step, which follows all that the former one has done.
    pub(crate) fn boots_again(&mut self, host: usize, former: &Guest) -> Node {
        let (now, name) = (self.now, self.hosts[host].name.clone());
        let view = self.view(host);
        if view != former.disk {
            let words = format!("{name} boots again from {view:?}, and the guest had written {:?}", former.disk);
            self.judge.harm(now, "volumes", words);
        }
        let node = self.steps.after(former.at);
        self.trace.say(now, &name, || format!("boots again, with {node}"));
        node
    }

    /// It begins anew from the volumes of this host. If nobody has forced that they have all that clients were told of them; where an acknowledgement
    /// means the disk, those of a host that the witness names as a backup do so in any case, and any host's have what it has said while it was alone.
    fn boots_from(&mut self, host: usize) {
        let (now, name) = (self.now, self.hosts[host].name.clone());
        if self.hosts[host].disk.mixture {
            let words = format!("{name} boots from volumes that are of no one moment");
            return self.judge.harm(now, "volumes", words);
        }
        let (Some(life), Some(named)) = (self.judge.life, self.judge.start.take()) else { return };
        let setup = self.plan.setup;
        let forced = std::mem::take(&mut self.judge.forced).contains(&host);
        let (named, force) = if forced { (false, true) } else { named };
        let promised = if setup.disk { named || !force } else { !force && !self.judge.disk_failed };
        let alone = self.judge.promised_alone.take().filter(|(of, _)| *of == host && setup.disk);
        let told = match (promised, alone) {
            (true, _) => self.judge.promised.clone(),
            (false, Some((_, told))) => told,
            (false, None) => return,
        };
        if setup.log {
            return;
        }
        let view = self.view(host);
        let steps = &self.steps;
        let has = |(have, told): (&Node, &Node)| {
            have == told || (steps.has(*have, life) && (!steps.has(*told, life) || steps.has(*have, *told)))
        };
        if !view.iter().zip(&told).all(has) {
            let words = format!("{name} boots from {view:?}, and clients were told of {told:?}");
            self.judge.harm(now, "volumes", words);
        }
    }

    pub(crate) fn says_role(&mut self, host: usize, role: Role, protection: Option<ProtectionState>, term: Term) {
        self.judge.roles.insert(host, (role, protection, term));
    }

    /// Something was taken from somebody: does anybody hold the VM still?
    pub(crate) fn judge_holders(&mut self, why: &str) {
        if self.judge.life.is_none() || self.judge.lost.is_some() {
            return;
        }
        let Some(record) = self.record() else { return };
        let hosts = std::iter::once(&record.primary).chain(record.backups.iter().map(|b| &b.host));
        let hosts: Vec<usize> = hosts.map(|name| self.number(name)).collect();
        let log_speaks = |host: &usize| {
            let h = &self.hosts[*host];
            h.log.as_ref().is_some_and(|log| log.allows(record, &h.name))
        };
        let logs_fail = self.plan.faults.iter().any(|timed| matches!(timed.fault, Fault::LogFails { .. }));
        if self.judge.durable && !logs_fail && !hosts.iter().any(log_speaks) {
            let words = format!("no log speaks of {record:?}: {why}");
            return self.judge.harm(self.now, "L", words);
        }
        if !hosts.iter().any(|host| self.holds(*host, record)) {
            let now = self.now;
            self.trace.judge(now, || format!("nobody holds the VM any more: {why}"));
            self.judge.lost = Some(why.to_owned());
        }
    }

    /// A backup gives up what it holds because its disk fails, for a primary that it has heard. If that one's QEMU has died meanwhile, both have failed.
    pub(crate) fn refuses(&mut self, host: usize, session: Term) {
        let primary = self.record().map(|r| self.number(&r.primary));
        let died = primary.and_then(|n| self.hosts[n].keeper.as_ref()).is_some_and(|k| k.vm.is_none());
        let Some(keeper) = self.hosts[host].keeper.as_mut().filter(|_| died) else { return };
        for standby in keeper.standbys.values_mut().filter(|s| s.session == session && s.mute) {
            standby.alive = false;
        }
        self.judge_holders("a backup whose disk fails was given up, and its primary's QEMU has died");
    }

    fn holds(&self, host: usize, record: &Record) -> bool {
        let h = &self.hosts[host];
        if h.log.as_ref().is_some_and(|log| log.allows(record, &h.name)) {
            return true;
        }
        let Some(keeper) = &h.keeper else { return false };
        let mine = record.primary == h.name;
        let counts = |session: Term| mine || record.binds(&h.name, session);
        let standby = keeper
            .standbys
            .values()
            .any(|s| s.alive && s.checkpoint.is_some() && s.at != At::Over && counts(s.session));
        let waits = keeper.waiting.as_ref().is_some_and(|(source, _)| match source {
            Source::Session(session) => counts(*session),
            Source::Log(_) | Source::Job(_) => mine,
        });
        standby || waits || (mine && keeper.vm.is_some())
    }

    pub(crate) fn operator_hears(&mut self, refused: bool) {
        if refused {
            self.judge.tries += 1;
        }
    }

    /// Looks at all of it, every now and then.
    pub(crate) fn look(&mut self) {
        self.after(10 * MS, Item::Look);
        self.operator();
        self.check_said_protected();
        self.check_disk();
        let now = self.now;
        if self.faults_left > 0 {
            return;
        }
        let healed = *self.judge.healed.get_or_insert(now);
        if self.all_is_well() {
            let since = *self.judge.good.get_or_insert(now);
            if now - since >= SETTLED {
                self.judge.verdict = Some(Verdict::Fine);
            }
            return;
        }
        self.judge.good = None;
        if now - healed > HEALS {
            let (rule, words) = match self.runner() {
                None if self.judge.lost.is_none() && !self.judge.stopped => {
                    ("L", "the VM is gone, and was lost by nothing")
                }
                None => ("liveness", "the VM cannot be started again"),
                Some(_) => ("liveness", "the VM is not protected again"),
            };
            self.judge.harm(now, rule, words.into());
        }
    }

    fn all_is_well(&self) -> bool {
        let Some(record) = self.record() else { return false };
        let owner = self.number(&record.primary);
        let runs = |h: &crate::world::Host| {
            h.keeper.as_ref().is_some_and(|k| k.vm.as_ref().is_some_and(|vm| vm.runs && !vm.paused && vm.guest.runs()))
        };
        let wanted = usize::from(self.plan.setup.backups);
        let says = self.judge.roles.get(&owner);
        let protected =
            says.is_some_and(|(role, p, _)| *role == Role::Primary && *p == Some(ProtectionState::Protected));
        let alone = self.hosts.iter().filter(|h| runs(h)).count() == 1;
        alone && runs(&self.hosts[owner]) && protected && record.backups.len() == wanted
    }

    fn check_said_protected(&mut self) {
        let now = self.now;
        for host in 0..self.hosts.len() {
            let h = &self.hosts[host];
            let says = self.judge.roles.get(&host);
            let claims = says.is_some_and(|(r, p, _)| *r == Role::Primary && *p == Some(ProtectionState::Protected));
            let still = !h.frozen.is_empty() || h.suspended.is_some() || h.keeper.is_none();
            let backed = || {
                self.hosts.iter().any(|b| {
                    b.keeper.as_ref().is_some_and(|k| {
                        k.standbys
                            .values()
                            .any(|s| s.at != At::Door && s.hello.as_ref().is_some_and(|hello| hello.from == h.name))
                    })
                })
            };
            if !claims || still || backed() {
                self.judge.unbacked.remove(&host);
                continue;
            }
            let since = *self.judge.unbacked.entry(host).or_insert(now);
            if now - since > UNNOTICED {
                let words = format!("{} calls itself protected, and has had no backup for a second", h.name);
                self.judge.harm(now, "I4", words);
            }
        }
    }

    /// A primary whose disk fails leaves it for a backup that can have the VM. Not if anything else goes wrong as well.
    fn check_disk(&mut self) {
        let now = self.now;
        let since = |runner: usize| {
            let record = self.record().filter(|r| r.primary == self.hosts[runner].name && !r.is_alone())?;
            let keeper = self.hosts[runner].keeper.as_ref()?;
            let failure = keeper.applier.failure.as_ref().filter(|failure| !failure.out_of_space);
            let vm = keeper.vm.as_ref().filter(|vm| vm.runs && vm.off == Off::No);
            let well =
                self.going_on == 1 && record.backups.iter().all(|b| self.hosts[self.number(&b.host)].disk.fails == 0);
            (well && failure.is_some() && vm.is_some()).then_some(runner)
        };
        let Some(runner) = self.runner().and_then(since) else { return self.judge.on_failing = None };
        let (of, at) = *self.judge.on_failing.get_or_insert((runner, now));
        if of != runner {
            self.judge.on_failing = None;
        } else if now - at > LEAVES {
            let words = format!("{} runs the VM on a disk that fails, and has a backup", self.hosts[runner].name);
            self.judge.harm(now, "liveness", words);
        }
    }

    /// The VM's owner: starts it, also after it has ended, and wants it protected.
    fn operator(&mut self) {
        let now = self.now;
        if now - self.judge.asked < 500 * MS && now > 50 * MS {
            return;
        }
        if std::mem::take(&mut self.judge.protect_again) {
            if self.runner().is_none() {
                self.judge.protect_again = true;
            }
            self.requests(Request::Protect);
        }
        let runner = self.runner().filter(|_| self.judge.healed.is_some());
        let guest = runner.and_then(|n| self.hosts[n].keeper.as_ref()?.vm.as_ref()).map(|vm| vm.guest.health.standing);
        if let Some(standing) = guest.filter(|standing| !standing.runs() && standing.activity != Activity::Off) {
            self.judge.asked = now;
            return self.requests(if standing.paused { Request::Resume } else { Request::Wake });
        }
        let gone = self.judge.life.is_none() || self.judge.stopped || self.judge.lost.is_some();
        let here = self.hosts.iter().any(|h| h.keeper.as_ref().is_some_and(|k| k.vm.is_some() || k.waiting.is_some()));
        if !gone || here {
            self.judge.tries = 0;
            return;
        }
        self.judge.asked = now;
        let mut host = self.record().map_or(0, |r| self.number(&r.primary));
        // Not while the witness may hear of it so late that the VM is another host's by then: a call of before may have to time out first.
        let calm = self.judge.healed.is_some_and(|healed| now - healed > 2000 * MS);
        let force = self.judge.tries >= 3 && self.record().is_some() && calm;
        // Where an acknowledgement means the disk, the one that was the backup has all that was told.
        let backup = self.record().and_then(|r| r.backups.first()).map(|b| self.number(&b.host));
        if let Some(backup) = backup.filter(|_| force && self.plan.setup.disk && self.judge.tries.is_multiple_of(2)) {
            host = backup;
        }
        let bound = self.record().is_some_and(|r| r.backups.iter().any(|b| b.host == self.hosts[host].name));
        self.judge.start = Some((bound, force));
        if self.judge.tries >= 10 && self.hosts[host].disk.mixture {
            // A person brings the volumes back from elsewhere.
            (self.hosts[host].disk.mixture, self.judge.start) = (false, None);
        }
        self.request(host, Request::Start { force });
    }
}
