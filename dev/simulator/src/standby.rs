//! A backup's side: the thread that receives a session, and what becomes of its standby.

use ninefold_core::event::{Event, Loaded, Source};
use ninefold_model::Term;
use ninefold_model::{Activity, GuestState};
use ninefold_replica::continuation::{Base, History};
use ninefold_replica::protocol::{self, LogRole};
use ninefold_replica::stream::PageRun;

use crate::applier::LIMIT;
use crate::guest::{BLOCKS, Checkpoint, PAGES, Writes};
use crate::keeper::{At, LogJob, Primary, Standby, StandbyUse};
use crate::network::{Msg, Rest};
use crate::parking::{Kept, Parked};
use crate::witness::Ask;
use crate::world::{Caller, MS, What, World};

/// For the former session's thread to let go of its standby.
const FORMER: u64 = 2000 * MS;

impl World {
    /// Something has come over a connection that another host has opened.
    pub(crate) fn standby_hears(&mut self, host: usize, connection: u64, msg: Msg) {
        let now = self.now;
        let Some(standby) = self.keeper(host).standbys.get_mut(&connection) else { return };
        match (standby.at, msg) {
            (At::Door, Msg::Hello(hello)) => {
                (standby.session, standby.hello, standby.since) = (hello.term, Some(hello), now);
                self.has_read(connection, 1);
                self.send_to_witness(host, 0, Caller::Door(connection), Ask::Read);
            }
            (At::Door, Msg::End) if standby.hello.is_none() => {
                self.close(connection, 1);
                self.keeper(host).standbys.remove(&connection);
            }
            (At::Over, _) => {}
            (_, msg) => {
                standby.pending.push_back(msg);
                self.standby_reads(host, connection);
            }
        }
    }

    /// The core has accepted the session.
    pub(crate) fn session_accepted(&mut self, host: usize, connection: u64, session: Term, log: Option<u64>) {
        let keeper = self.keeper(host);
        if log.is_some_and(|id| !keeper.logs.contains_key(&id)) {
            keeper.standbys.remove(&connection);
            return self.close(connection, 1);
        }
        keeper.primary = Some(Primary { session, connection, echo: 0 });
        if let Some(standby) = keeper.standbys.get_mut(&connection) {
            (standby.at, standby.log) = (At::Entering, log);
        }
        let soon = self.moment();
        self.later(host, soon, What::Enters { connection });
    }

    /// Its turn comes when the former session's thread has ended.
    pub(crate) fn standby_enters(&mut self, host: usize, connection: u64) {
        let now = self.now;
        let keeper = self.keeper(host);
        let Some(standby) = keeper.standbys.get(&connection) else { return };
        let (session, since, log) = (standby.session, standby.since, standby.log);
        if keeper.parking.announced > session || keeper.parking.session > session {
            return self.standby_over(host, connection);
        }
        let others = keeper.standbys.iter().any(|(id, s)| *id != connection && s.at != At::Door && s.at != At::Over);
        if others && now - since < FORMER {
            return self.later(host, MS, What::Enters { connection });
        }
        match self.may_enter(host) {
            Some(Ok(())) => {}
            None if now - since < LIMIT => return self.later(host, 2 * MS, What::Enters { connection }),
            // What is parked stays so: the disk may be in time for the next session.
            not => {
                let reason = not.and_then(Result::err).unwrap_or_else(|| "its disk does not answer".into());
                self.keeper(host).parking.session = session;
                self.standby_over(host, connection);
                return self.tell(host, Event::LoadFailed { session, reason });
            }
        }
        let base = self.continues(host, connection);
        let goes_on = base.is_some();
        let keeper = self.keeper(host);
        if let (Some(id), Some(hello)) = (log, keeper.standbys.get(&connection).and_then(|s| s.hello.clone())) {
            let role = LogRole::Backup { session, primary: hello.from };
            let standing = protocol::LogStanding::new(role);
            self.log_job(host, id, LogJob::Session { session, standing });
        }
        if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
            (standby.at, standby.base) = (At::Building, base);
        }
        let takes = self.rng.u64(20 * MS..300 * MS);
        let takes = if goes_on { takes / 100 } else { takes };
        self.later(host, takes, What::Built { connection });
    }

    /// The session goes on with what is parked here, or left of an earlier keeper's standby, if its primary knows what has changed since.
    fn continues(&mut self, host: usize, connection: u64) -> Option<Base> {
        let compares = self.rules.keeper.compare_after_a_keeper;
        let is_lost = !self.hosts[host].disk.lost.is_empty();
        let keeper = self.keeper(host);
        let standby = keeper.standbys.get_mut(&connection)?;
        let hello = standby.hello.clone()?;
        let parked = keeper.parking.enter(standby.session);
        if standby.log.is_some() {
            // Its log begins anew with each session here, and so does it.
            keeper.parking.take_kept();
            return None;
        }
        let origin = hello.origin.as_ref()?;
        let mut base = match parked.and_then(|parked| Some((parked.history.base(origin)?, parked))) {
            Some((base, parked)) => {
                standby.memory.clone_from(&parked.memory);
                standby.noted = Some((parked.history.origin().reign, parked.history.last()));
                standby.former = Some(parked);
                base
            }
            None => {
                let kept = keeper.parking.take_kept().filter(|kept| hello.reign == Some(kept.reign))?;
                let mut base = History::begin(kept.reign, kept.epoch).base(origin)?;
                standby.noted = Some((kept.reign, kept.epoch));
                standby.memory = kept.memory;
                base.volumes_in_doubt = compares;
                base
            }
        };
        base.volumes_in_doubt |= is_lost;
        Some(base)
    }

    pub(crate) fn standby_built(&mut self, host: usize, connection: u64) {
        let status = self.machine();
        let Some(standby) = self.keeper(host).standbys.get_mut(&connection) else { return };
        if standby.at != At::Building {
            return;
        }
        standby.at = At::Receiving;
        let (session, base) = (standby.session, standby.base.take());
        self.tell(host, Event::StandbyReady { session, status, base });
        if self.hosts[host].keeper.is_some() {
            self.standby_reads(host, connection);
        }
    }

    /// Reads what has come, if it does so now.
    pub(crate) fn standby_reads(&mut self, host: usize, connection: u64) {
        loop {
            let Some(keeper) = &mut self.hosts[host].keeper else { return };
            let Some(standby) = keeper.standbys.get_mut(&connection) else { return };
            if standby.at != At::Receiving {
                return;
            }
            let writes = matches!(standby.pending.front(), Some(Msg::Volumes(blocks)) if !blocks.is_empty());
            if writes && self.hosts[host].disk.hangs > 0 {
                // What a resync writes is waited for.
                return self.later(host, 20 * MS, What::Reads { connection });
            }
            let Some(standby) = self.keeper(host).standbys.get_mut(&connection) else { return };
            let Some(msg) = standby.pending.pop_front() else { return };
            self.has_read(connection, 1);
            self.standby_takes(host, connection, msg);
        }
    }

    fn standby_takes(&mut self, host: usize, connection: u64, msg: Msg) {
        let Some(standby) = self.keeper(host).standbys.get_mut(&connection) else { return };
        let (session, first) = (standby.session, standby.first);
        match msg {
            Msg::Bound(term) => self.tell(host, Event::BoundTo { session, term }),
            Msg::Beat(time) => {
                if let Some(primary) = self.keeper(host).primary.as_mut().filter(|p| p.connection == connection) {
                    primary.echo = time;
                }
            }
            Msg::Relinquish(reason) => {
                let silence = self.silence(connection, 1);
                self.stream_ends(host, connection);
                self.tell(host, Event::Relinquished { session, reason, silence });
                self.standby_is_whole(host, connection);
            }
            msg @ (Msg::Bye | Msg::End) => {
                standby.parted |= matches!(msg, Msg::Bye);
                let silence = self.silence(connection, 1);
                self.stream_ends(host, connection);
                let reason = "the primary closed the connection".into();
                self.tell(host, Event::PrimaryGone { session, reason, silence });
                self.standby_is_whole(host, connection);
            }
            Msg::Round(pages) => {
                if !pages.is_empty() {
                    self.is_touched(host, connection);
                }
                if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
                    pages.iter().for_each(|(page, node)| standby.memory[*page] = *node);
                }
            }
            Msg::Volumes(blocks) => {
                let disk = &self.hosts[host].disk;
                let differ = |(block, node): &(usize, _)| disk.cached[*block] != *node || disk.lost.contains(block);
                let blocks: Writes = blocks.into_iter().filter(differ).collect();
                if blocks.is_empty() {
                    return;
                }
                self.is_touched(host, connection);
                if self.hosts[host].disk.fails > 0 || self.hosts[host].disk.full > 0 {
                    self.standby_over(host, connection);
                    return self.tell(host, Event::LoadFailed { session, reason: "its disk fails".into() });
                }
                self.resync_writes(host, &blocks);
            }
            Msg::Checkpoint { checkpoint, term, pages, rest } => {
                let held = rest.as_ref().map_or(&checkpoint.writes, |rest| &rest.held);
                let Some(standby) = self.hosts[host].keeper.as_mut().and_then(|k| k.standbys.get_mut(&connection))
                else {
                    return;
                };
                standby.first = false;
                standby.takes(&checkpoint, &pages, held, first);
                if let Some(id) = standby.log {
                    standby.checkpoint = Some((*checkpoint).clone());
                    return self.log_job(host, id, LogJob::Received { session, term, checkpoint, rest, first });
                }
                let (epoch, now) = (checkpoint.epoch, self.now);
                let number = self.volumes_take(host, &checkpoint, rest.as_ref());
                if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
                    standby.checkpoint = Some(*checkpoint);
                    if !standby.mute {
                        standby.acks.push_back((epoch, first, number, now));
                    }
                }
                if first {
                    self.tell(host, Event::Tried { session });
                }
                self.check_acks(host);
            }
            _ => {}
        }
    }

    /// What comes with a checkpoint for the volumes reaches this host's images.
    pub(crate) fn volumes_take(&mut self, host: usize, checkpoint: &Checkpoint, rest: Option<&Rest>) -> u64 {
        if let Some(Rest { left, .. }) = rest {
            self.resync_writes(host, left);
        }
        let writes = rest.map_or(&checkpoint.writes, |rest| &rest.held);
        self.receives(host, checkpoint.epoch, writes.clone())
    }

    /// Something was written to the standby's memory, or the volumes, that is of no whole checkpoint.
    fn is_touched(&mut self, host: usize, connection: u64) {
        if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
            standby.former = None;
        }
    }

    fn stream_ends(&mut self, host: usize, connection: u64) {
        if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
            standby.at = At::Waits;
            standby.pending.clear();
        }
    }

    /// The stream has ended: if there is a checkpoint, it waits for the witness's word.
    fn standby_is_whole(&mut self, host: usize, connection: u64) {
        let Some(keeper) = &mut self.hosts[host].keeper else { return };
        let Some(standby) = keeper.standbys.get(&connection) else { return };
        if standby.checkpoint.is_none() {
            // It is as the former session left it, and may be kept; nothing else waits for it.
            if standby.former.is_none() || standby.parted {
                return self.standby_over(host, connection);
            }
            if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
                standby.logged = Some(false);
            }
            return self.try_sentence(host, connection);
        }
        let (session, log) = (standby.session, standby.log);
        let soon = self.moment();
        self.tell_later(host, soon, Event::StandbyWaits { session });
        match log {
            // Before the devices are loaded it is asked how far the log is.
            Some(id) => self.log_job(host, id, LogJob::Drain { connection }),
            None => {
                if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
                    standby.logged = Some(false);
                }
            }
        }
        self.try_sentence(host, connection);
    }

    /// The core ends the connection.
    pub(crate) fn standby_cut(&mut self, host: usize, connection: u64) {
        let Some(standby) = self.keeper(host).standbys.get_mut(&connection) else {
            return self.close(connection, 1);
        };
        let receives = standby.at == At::Receiving;
        self.close(connection, 1);
        if receives {
            // The thread sees the stream end, at its next read.
            if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
                standby.at = At::Waits;
                standby.pending.clear();
                let session = standby.session;
                let reason = "the connection is cut".into();
                let silence = std::time::Duration::ZERO;
                self.tell_later(host, 1, Event::PrimaryGone { session, reason, silence });
                self.standby_is_whole(host, connection);
            }
        }
    }

    /// The core has said what becomes of the standby.
    pub(crate) fn sentence(&mut self, host: usize, connection: u64, verdict: StandbyUse) {
        let Some(standby) = self.keeper(host).standbys.get_mut(&connection) else { return };
        if standby.verdict.is_none() {
            standby.verdict = Some(verdict);
        }
        self.try_sentence(host, connection);
    }

    pub(crate) fn try_sentence(&mut self, host: usize, connection: u64) {
        let Some(standby) = self.keeper(host).standbys.get_mut(&connection) else { return };
        let building = matches!(standby.at, At::Entering | At::Building);
        match (standby.at, standby.verdict, standby.logged) {
            // It ends when it has been built, and finds its connection closed.
            (_, Some(StandbyUse::End), _) if building => self.standby_over(host, connection),
            (_, Some(StandbyUse::Park), _) if building => self.parks(host, connection),
            (At::Waits, Some(StandbyUse::End), _) => self.standby_over(host, connection),
            (At::Waits, Some(StandbyUse::Park), Some(_)) => self.parks(host, connection),
            (At::Waits, Some(StandbyUse::Load { .. }), Some(_)) => {
                standby.at = At::Loading;
                let takes = self.rng.u64(500..5 * MS);
                self.later(host, takes, What::Loads { connection });
            }
            _ => {}
        }
    }

    /// The standby is kept for the next session, if it is of any use to one.
    fn parks(&mut self, host: usize, connection: u64) {
        let now = self.now;
        let Some(standby) = self.keeper(host).standbys.get_mut(&connection) else { return };
        let (session, alive) = (standby.session, standby.alive && !standby.parted && standby.log.is_none());
        let parked = match (standby.history.take(), standby.former.take()) {
            (Some(history), _) => Some(Parked { history, memory: standby.memory.clone() }),
            (None, Some(former)) => Some(Parked { memory: standby.memory.clone(), ..former }),
            (None, None) => None,
        };
        if let Some(parked) = parked.filter(|_| alive) {
            self.keeper(host).parking.park(session, now, parked);
        }
        self.standby_over(host, connection);
    }

    /// What a keeper that ends leaves of its standby's memory. All of the last checkpoint need not be there yet.
    pub(crate) fn leaves_memory(&mut self, host: usize) {
        let (whole, part) = (self.more.bool(), self.more.u64(..));
        let notes = self.rules.keeper.note_what_is_whole;
        let h = &mut self.hosts[host];
        let Some(keeper) = &h.keeper else { return };
        let mut standbys = keeper.standbys.values().filter(|s| s.alive && s.at != At::Over);
        let kept = standbys.find_map(|standby| {
            let (reign, epoch) = standby.noted?;
            let (epoch, memory) = match &standby.earlier {
                Some((before, earlier)) if !whole => {
                    let partly = |page: usize| if part >> page & 1 == 1 { standby.memory[page] } else { earlier[page] };
                    (if notes { *before } else { epoch }, (0..PAGES).map(partly).collect())
                }
                _ => (epoch, standby.memory.clone()),
            };
            Some(Kept { reign, epoch, memory })
        });
        h.kept = kept.or_else(|| keeper.parking.leaves());
    }

    /// The devices are loaded, or are not.
    pub(crate) fn standby_loads(&mut self, host: usize, connection: u64) {
        let half = self.rng.bool();
        let fails = self.hosts[host].load_fails && half;
        let volumes = !self.spec.hardware.volumes.is_empty();
        let several = self.spec.policy.backups > 1;
        let Some(standby) = self.keeper(host).standbys.get(&connection) else { return };
        if standby.at != At::Loading {
            return;
        }
        let (session, logged, has_log) = (standby.session, standby.logged == Some(true), standby.log.is_some());
        let Some(checkpoint) = standby.checkpoint.clone() else { return };
        if fails || (has_log && !logged && volumes) {
            if fails {
                self.hosts[host].load_fails = false;
            }
            self.standby_over(host, connection);
            if fails {
                self.judge_holders("a standby that could not be loaded");
            }
            return self.tell(host, Event::LoadFailed { session, reason: "it cannot be loaded".into() });
        }
        let history = standby.history.clone().filter(|_| several);
        let memory = standby.memory.clone();
        self.standby_over(host, connection);
        let mut loaded = Box::new(self.loaded(&checkpoint, logged));
        if memory != checkpoint.guest.memory {
            let words = format!("{memory:?} is loaded as the memory of {:?}", checkpoint.guest);
            self.judge.harm(self.now, "memory", words);
        }
        if !logged && history.is_some() {
            (loaded.history, loaded.tracked) = (history, true);
        }
        if !self.tick_if_due(host) {
            return;
        }
        self.keeper(host).waiting = Some((Source::Session(session), checkpoint.guest));
        self.tell(host, Event::Loaded { session, loaded });
    }

    pub(crate) fn loaded(&mut self, checkpoint: &Checkpoint, logged: bool) -> Loaded {
        let mut health = checkpoint.guest.health.clone();
        if checkpoint.guest.off {
            health.standing = GuestState { activity: Activity::Off, paused: false };
        }
        Loaded {
            spec: self.spec.clone(),
            epoch: checkpoint.epoch,
            health,
            load_us: 1000,
            tracked: logged,
            history: None,
            logged,
        }
    }

    /// The standby's QEMU has died, and its thread has found out.
    pub(crate) fn standby_died(&mut self, host: usize, connection: u64) {
        let Some(standby) = self.keeper(host).standbys.get(&connection) else { return };
        if matches!(standby.at, At::Door | At::Over) {
            return;
        }
        let session = standby.session;
        self.standby_over(host, connection);
        self.tell(host, Event::LoadFailed { session, reason: "the standby's QEMU has ended".into() });
    }

    pub(crate) fn standby_over(&mut self, host: usize, connection: u64) {
        if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
            standby.at = At::Over;
            standby.pending.clear();
        }
        // The connection is the core's, to be closed when it drops the session. If that was refused, nobody else closes it.
        let mine = self.keeper(host).primary.as_ref().is_some_and(|p| p.connection == connection);
        if !mine {
            self.keeper(host).standbys.remove(&connection);
            self.close(connection, 1);
        }
    }
}

impl Standby {
    /// A checkpoint is whole: it is put into memory.
    fn takes(&mut self, checkpoint: &Checkpoint, pages: &Writes, held: &Writes, first: bool) {
        let runs = |of: &Writes, each: usize| {
            let run = move |(at, _): &(usize, _)| PageRun {
                block: (*at / each) as u16,
                first: (*at % each) as u64,
                count: 1,
            };
            of.iter().map(run).collect::<Vec<_>>()
        };
        let reign = self.hello.as_ref().and_then(|hello| hello.reign);
        let before = self.history.as_ref().map(|history| history.last());
        self.earlier = before.filter(|_| !first).map(|epoch| (epoch, self.memory.clone()));
        pages.iter().for_each(|(page, node)| self.memory[*page] = *node);
        match &mut self.history {
            Some(history) if !first => {
                let (pages, blocks) = (runs(pages, usize::MAX), runs(held, BLOCKS));
                history.record(checkpoint.epoch, pages.into_iter(), blocks.into_iter());
            }
            history => *history = reign.map(|reign| History::begin(reign, checkpoint.epoch)),
        }
        self.former = None;
        self.noted = reign.map(|reign| (reign, checkpoint.epoch));
    }
}
