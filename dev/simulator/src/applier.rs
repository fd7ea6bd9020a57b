//! The thread of a keeper that writes to its host's [disk](crate::disk). Whoever waits for the disk is told when it has answered.

use std::time::Duration;

use ninefold_core::disk_watch::{Failure, Look};
use ninefold_core::event::{self, Event, VolumeSeen};
use ninefold_model::Epoch;

use crate::disk::Flush;
use crate::guest::{Node, Writes};
use crate::volumes::{Mode, Sealed, Wrote};
use crate::world::{MS, What, World};

/// An attempt that failed is repeated after this.
const RETRY: u64 = 250 * MS;
/// Where an acknowledgement means memory, epochs are gathered for so long.
const GATHER: u64 = 200 * MS;
/// How long a backup waits for its disk.
pub(crate) const LIMIT: u64 = 10_000 * MS;
/// A note that images may be behind lingers for so long.
const LINGER: u64 = 1000 * MS;

impl World {
    /// The volumes as a guest on this host reads them.
    pub(crate) fn view(&self, host: usize) -> Vec<Node> {
        let h = &self.hosts[host];
        h.keeper.as_ref().map_or_else(|| h.disk.cached.clone(), |k| k.volumes.over(&h.disk.cached))
    }

    pub(crate) fn volume_looks(&self, host: usize) -> Vec<VolumeSeen> {
        let h = &self.hosts[host];
        let Some(keeper) = &h.keeper else { return Vec::new() };
        let stalled = keeper.applier.busy.map(|since| Duration::from_micros(self.now - since));
        let failure = keeper.applier.failure.clone();
        let seen = VolumeSeen { look: Look { failure, stalled }, held: keeper.volumes.bytes() };
        vec![seen; self.spec.hardware.volumes.len()]
    }

    fn acknowledges_disk(&self) -> bool {
        self.plan.setup.disk
    }

    /// The guest writes. False: it has to wait.
    pub(crate) fn guest_writes(&mut self, host: usize, block: usize, node: Node) {
        let h = &mut self.hosts[host];
        let Some(keeper) = &mut h.keeper else { return };
        match keeper.volumes.write(block, node) {
            Wrote::InImage => {
                h.disk.write(block, node);
                self.reached_images(host, &vec![(block, node)]);
            }
            Wrote::InMemory if keeper.volumes.mode == Mode::Through => self.disk_works(host, false),
            Wrote::InMemory | Wrote::Refused => {}
        }
    }

    /// Something is to be written, at once or after a while.
    pub(crate) fn disk_works(&mut self, host: usize, hurry: bool) {
        let gathers = !hurry && !self.acknowledges_disk() && !self.plan.setup.log;
        let wait = if gathers { self.more.u64(1..GATHER) } else { self.more.u64(5..100) };
        let now = self.now;
        let rests = self.hosts[host].disk.rests();
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        let nothing = |s: &&Sealed| rests && s.committed && s.writes.is_empty();
        while let Some(first) = keeper.volumes.queue.front().filter(nothing) {
            keeper.applier.logged = first.number;
            keeper.volumes.queue.pop_front();
        }
        if keeper.applier.whole.is_some_and(|number| number <= keeper.applier.logged) {
            keeper.applier.whole = None;
            self.hosts[host].disk.mixture = false;
        }
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        let wanted = keeper.volumes.waits() || !keeper.applier.flushes.is_empty() || self.note_is_due(host);
        let Some(keeper) = self.hosts[host].keeper.as_mut().filter(|_| wanted) else { return };
        let at = now + wait;
        let applier = &mut keeper.applier;
        if applier.busy.is_some() || (applier.next > now && applier.next <= at) {
            return;
        }
        applier.alarm += 1;
        applier.next = at;
        let alarm = applier.alarm;
        self.later(host, wait, What::DiskBegins { alarm });
    }

    pub(crate) fn disk_begins(&mut self, host: usize, alarm: u64) {
        let takes = self.more.u64(100..3 * MS) + self.hosts[host].disk_slow;
        let now = self.now;
        let note_due = self.note_is_due(host);
        let h = &mut self.hosts[host];
        let Some(keeper) = &mut h.keeper else { return };
        let applier = &mut keeper.applier;
        if applier.busy.is_some() || applier.alarm != alarm {
            return;
        }
        applier.next = 0;
        let due = keeper.volumes.due();
        if due.is_none() && applier.flushes.is_empty() && !note_due && applier.failure.is_none() {
            return;
        }
        applier.busy = Some(now);
        applier.upto = due.unwrap_or(applier.logged);
        applier.flushes.iter_mut().for_each(|(taken, _)| *taken = true);
        self.later(host, takes, What::DiskEnds);
    }

    /// The disk has answered, if it does.
    pub(crate) fn disk_ends(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        let Some(keeper) = &mut h.keeper else { return };
        if h.disk.hangs > 0 {
            return self.later(host, 10 * MS, What::DiskEnds);
        }
        keeper.applier.busy = None;
        let out_of_space = h.disk.fails == 0 && h.disk.full > 0;
        let works = h.disk.fails == 0 && h.disk.full == 0;
        let mut reached = Writes::new();
        if works {
            let stuck = !keeper.volumes.nobody_rests() && !h.disk.lost.is_empty();
            let upto = keeper.applier.upto;
            h.disk.sync();
            while let Some(first) = keeper.volumes.queue.front().filter(|s| s.committed && s.number <= upto) {
                if stuck && !first.plain {
                    break;
                }
                for (block, node) in &first.writes {
                    h.disk.write(*block, *node);
                    if !first.plain {
                        h.disk.unsynced.remove(block);
                        h.disk.durable[*block] = *node;
                    }
                }
                reached.extend(first.writes.iter().copied());
                keeper.applier.logged = first.number;
                keeper.volumes.queue.pop_front();
            }
            h.disk.sync();
            keeper.applier.failure = (stuck && keeper.volumes.waits()).then(|| Failure {
                reason: "the image is not on the disk as it was written".into(),
                out_of_space: false,
            });
            if keeper.applier.whole.is_some_and(|number| number <= keeper.applier.logged) {
                (keeper.applier.whole, h.disk.mixture) = (None, false);
            }
        } else {
            if !out_of_space && self.rules.keeper.note_what_was_lost {
                h.disk.lost.append(&mut h.disk.unsynced);
            } else if !out_of_space {
                h.disk.unsynced.clear();
            }
            keeper.applier.failure = Some(Failure { reason: "its disk fails".into(), out_of_space });
        }
        let good = works && h.disk.lost.is_empty();
        let all = std::mem::take(&mut keeper.applier.flushes);
        let (done, later): (Vec<_>, Vec<_>) = all.into_iter().partition(|(taken, _)| *taken);
        keeper.applier.flushes = later;
        if works {
            self.note_is_kept(host);
        }
        self.reached_images(host, &reached);
        for (_, flush) in done {
            match flush {
                Flush::Gate if good => self.keeper(host).applier.owes = false,
                Flush::Gate => self.keeper(host).applier.flushes.push((false, Flush::Gate)),
                Flush::Guest { generation, disk } if good => self.guest_tells(host, generation, disk),
                Flush::Guest { .. } | Flush::Backup => {}
            }
        }
        self.check_acks(host);
        let Some(keeper) = &self.hosts[host].keeper else { return };
        if keeper.applier.failure.is_some() {
            return self.disk_again(host);
        }
        if keeper.volumes.waits() || !keeper.applier.flushes.is_empty() {
            self.disk_works(host, !keeper.applier.flushes.is_empty());
        } else if self.note_is_due(host) || keeper.applier.note.over.is_some() && self.hosts[host].disk.behind {
            self.disk_works_in(host, 50 * MS);
        }
    }

    fn disk_again(&mut self, host: usize) {
        self.disk_works_in(host, RETRY);
    }

    fn disk_works_in(&mut self, host: usize, us: u64) {
        let now = self.now;
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        let applier = &mut keeper.applier;
        if applier.busy.is_some() || applier.next > now {
            return;
        }
        applier.alarm += 1;
        applier.next = now + us;
        let alarm = applier.alarm;
        self.later(host, us, What::DiskBegins { alarm });
    }

    /// Somebody wants all that is there on the disk.
    pub(crate) fn flush(&mut self, host: usize, who: Flush) {
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        keeper.volumes.hurry();
        keeper.applier.flushes.push((false, who));
        self.disk_works(host, true);
    }

    /// The guest flushes, and then says so. What it waits for at the disk it need not wait for while output is held.
    pub(crate) fn guest_flushes(&mut self, host: usize, generation: u64, disk: Writes) {
        match self.hosts[host].keeper.as_ref().map(|k| k.volumes.mode) {
            Some(Mode::Held) => self.guest_tells(host, generation, disk),
            Some(Mode::Through) => self.flush(host, Flush::Guest { generation, disk }),
            _ => {}
        }
    }

    /// From now on what the guest does waits for its epoch: who waits for a flush is let go.
    pub(crate) fn volumes_hold(&mut self, host: usize) {
        let keeper = self.keeper(host);
        keeper.volumes.hold();
        let all = std::mem::take(&mut keeper.applier.flushes);
        let mut told = Vec::new();
        for (taken, flush) in all {
            match flush {
                Flush::Guest { generation, disk } => told.push((generation, disk)),
                other => self.keeper(host).applier.flushes.push((taken, other)),
            }
        }
        for (generation, disk) in told {
            self.guest_tells(host, generation, disk);
        }
    }

    /// Whether anything has to be on the disk before the gate opens. Asks for it.
    pub(crate) fn owes(&mut self, host: usize, by_log: bool) -> bool {
        let disk = self.acknowledges_disk() && !by_log;
        let h = &mut self.hosts[host];
        let Some(keeper) = &mut h.keeper else { return false };
        let missing = keeper.volumes.hurry() || !h.disk.rests();
        let owes = disk && missing && keeper.volumes.mode != Mode::Closed;
        keeper.applier.owes = owes;
        if owes {
            self.flush(host, Flush::Gate);
        }
        owes
    }

    /// It is not wanted any more.
    pub(crate) fn owes_nothing(&mut self, host: usize) {
        let applier = &mut self.keeper(host).applier;
        applier.owes = false;
        applier.flushes.retain(|(_, flush)| !matches!(flush, Flush::Gate));
    }

    // ---- the note that the images may be behind ----

    /// Somebody is about to be told what is in memory alone. Whether that is noted.
    pub(crate) fn falls_behind(&mut self, host: usize) -> bool {
        let h = &mut self.hosts[host];
        let Some(keeper) = &mut h.keeper else { return true };
        let note = &mut keeper.applier.note;
        (note.wanted, note.over, note.left) = (true, None, false);
        let noted = h.disk.behind;
        if !noted {
            self.disk_works(host, true);
        }
        noted
    }

    fn note_is_due(&self, host: usize) -> bool {
        let h = &self.hosts[host];
        let Some(keeper) = &h.keeper else { return false };
        let note = &keeper.applier.note;
        let whole = || !keeper.volumes.waits() && h.disk.rests();
        let lingered = |(since, ended): (u64, bool)| ended || self.now - since >= LINGER;
        (note.wanted && !h.disk.behind) || (h.disk.behind && note.over.is_some_and(lingered) && whole())
    }

    fn note_is_kept(&mut self, host: usize) {
        if self.note_is_due(host) {
            let h = &mut self.hosts[host];
            h.disk.behind = h.keeper.as_ref().is_some_and(|k| k.applier.note.wanted);
        }
    }

    /// Nobody is told such things any more: the VM is alone here, or has `ended`.
    pub(crate) fn is_over(&mut self, host: usize, ended: bool) {
        let now = self.now;
        let volumes = !self.spec.hardware.volumes.is_empty();
        let note = &mut self.keeper(host).applier.note;
        (note.wanted, note.left) = (false, false);
        let since = note.over.map_or(now, |(since, _)| since);
        note.over = Some((since, ended));
        if volumes && self.hosts[host].disk.behind {
            self.flush(host, Flush::Backup);
        }
    }

    pub(crate) fn parts(&mut self, host: usize) {
        let note = &mut self.keeper(host).applier.note;
        if !note.over.is_some_and(|(_, ended)| ended) {
            (note.wanted, note.over) = (false, None);
        }
    }

    // ---- a backup ----

    /// Blocks of a resync come.
    pub(crate) fn resync_writes(&mut self, host: usize, blocks: &Writes) {
        if blocks.is_empty() {
            return;
        }
        let h = &mut self.hosts[host];
        h.disk.mixture = true;
        if let Some(keeper) = &mut h.keeper {
            keeper.applier.whole = None;
        }
        blocks.iter().for_each(|(block, node)| h.disk.write(*block, *node));
    }

    /// A checkpoint's writes are in memory, whole.
    pub(crate) fn receives(&mut self, host: usize, epoch: Epoch, writes: Writes) -> u64 {
        let h = &mut self.hosts[host];
        let Some(keeper) = &mut h.keeper else { return 0 };
        let number = keeper.volumes.receive(epoch, writes);
        if h.disk.mixture && keeper.applier.whole.is_none() {
            keeper.applier.whole = Some(number);
        }
        self.disk_works(host, false);
        number
    }

    /// Who waits for the disk to acknowledge something does so, if it may; or says that it cannot.
    pub(crate) fn check_acks(&mut self, host: usize) {
        let disk = self.acknowledges_disk();
        let now = self.now;
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        let ids: Vec<u64> = keeper.standbys.iter().filter(|(_, s)| !s.acks.is_empty()).map(|(id, _)| *id).collect();
        for connection in ids {
            loop {
                let behind = disk || self.spec.hardware.volumes.is_empty() || self.falls_behind(host);
                let h = &mut self.hosts[host];
                let Some(keeper) = &mut h.keeper else { return };
                let Some(standby) = keeper.standbys.get_mut(&connection) else { break };
                let Some(&(epoch, first, number, since)) = standby.acks.front() else { break };
                let session = standby.session;
                let durable = !disk || !self.rules.keeper.acknowledge_from_disk || number <= keeper.applier.logged;
                let why = match &keeper.applier.failure {
                    Some(failure) => Some(failure.reason.clone()),
                    None if now - since > LIMIT => Some("it takes too long".into()),
                    None => None,
                };
                if let Some(reason) = why {
                    standby.acks.clear();
                    standby.mute = true;
                    self.tell(host, Event::CannotAcknowledge { session, reason });
                    break;
                }
                if !(h.disk.rests() && durable && behind) {
                    let asked = keeper.applier.flushes.iter().any(|(_, f)| matches!(f, Flush::Backup));
                    if !h.disk.rests() && !asked {
                        self.flush(host, Flush::Backup);
                    }
                    break;
                }
                standby.acks.pop_front();
                self.tell(host, Event::Held { session, epoch, first });
            }
        }
    }

    /// Whether a backup's session may write: nothing of an earlier one is on its way to the disk. None: not yet.
    pub(crate) fn may_enter(&mut self, host: usize) -> Option<Result<(), String>> {
        let h = &self.hosts[host];
        let keeper = h.keeper.as_ref()?;
        if self.spec.hardware.volumes.is_empty() {
            return Some(Ok(()));
        }
        if let Some(failure) = &keeper.applier.failure {
            return Some(Err(failure.reason.clone()));
        }
        if keeper.volumes.queue.is_empty() && (h.disk.unsynced.is_empty() || !h.disk.lost.is_empty()) {
            return Some(Ok(()));
        }
        let asked = keeper.applier.flushes.iter().any(|(_, f)| matches!(f, Flush::Backup));
        if !asked {
            self.flush(host, Flush::Backup);
        }
        None
    }
}

impl World {
    /// A keeper begins on the disk as it is. What an earlier one's flush has lost is written again as it is read.
    pub(crate) fn disk_is_opened(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if h.disk.fails == 0 && h.disk.full == 0 {
            for block in std::mem::take(&mut h.disk.lost) {
                h.disk.durable[block] = h.disk.cached[block];
            }
        }
        let left = h.disk.behind;
        if let Some(keeper) = &mut h.keeper {
            keeper.applier.note.left = left;
        }
    }
}

impl World {
    /// The note of an earlier keeper that the images are behind, as long as nobody has had the VM here since.
    pub(crate) fn found_behind(&self, host: usize) -> Option<event::Behind> {
        let left = self.hosts[host].keeper.as_ref()?.applier.note.left;
        left.then(|| event::Behind { volume: self.spec.hardware.volumes[0].name.clone(), since: None })
    }
}
