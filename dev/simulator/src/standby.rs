//! A backup's side: the thread that receives a session, and what becomes of its standby.

use ninefold_core::event::{Event, Loaded, Source};
use ninefold_model::Term;
use ninefold_model::health::Health;
use ninefold_model::{Activity, GuestState};
use ninefold_replica::protocol::{self, LogRole};

use crate::guest::Checkpoint;
use crate::keeper::{At, LogJob, Primary, StandbyUse};
use crate::network::Msg;
use crate::volumes::Writes;
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
        if keeper.announced > session {
            return self.standby_over(host, connection);
        }
        let others = keeper.standbys.iter().any(|(id, s)| *id != connection && s.at != At::Door && s.at != At::Over);
        if others && now - since < FORMER {
            return self.later(host, MS, What::Enters { connection });
        }
        if let (Some(id), Some(hello)) = (log, keeper.standbys.get(&connection).and_then(|s| s.hello.clone())) {
            let role = LogRole::Backup { session, primary: hello.from };
            let standing = protocol::LogStanding::new(role);
            self.log_job(host, id, LogJob::Session { session, standing });
        }
        if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
            standby.at = At::Building;
        }
        let takes = self.rng.u64(20 * MS..300 * MS);
        self.later(host, takes, What::Built { connection });
    }

    pub(crate) fn standby_built(&mut self, host: usize, connection: u64) {
        let status = self.machine();
        let Some(standby) = self.keeper(host).standbys.get_mut(&connection) else { return };
        if standby.at != At::Building {
            return;
        }
        standby.at = At::Receiving;
        let session = standby.session;
        self.tell(host, Event::StandbyReady { session, status, base: None });
        if self.hosts[host].keeper.is_some() {
            self.standby_reads(host, connection);
        }
    }

    /// Reads what has come, if it does so now.
    fn standby_reads(&mut self, host: usize, connection: u64) {
        loop {
            let Some(keeper) = &mut self.hosts[host].keeper else { return };
            let Some(standby) = keeper.standbys.get_mut(&connection) else { return };
            if standby.at != At::Receiving {
                return;
            }
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
            Msg::Bye | Msg::End => {
                let silence = self.silence(connection, 1);
                self.stream_ends(host, connection);
                let reason = "the primary closed the connection".into();
                self.tell(host, Event::PrimaryGone { session, reason, silence });
                self.standby_is_whole(host, connection);
            }
            Msg::Volumes(blocks) => {
                self.hosts[host].mixture = true;
                for (block, node) in blocks {
                    self.hosts[host].images[block] = node;
                }
            }
            Msg::Checkpoint { checkpoint, term, rest } => {
                standby.first = false;
                if let Some(id) = standby.log {
                    standby.checkpoint = Some((*checkpoint).clone());
                    return self.log_job(host, id, LogJob::Received { session, term, checkpoint, rest, first });
                }
                let epoch = checkpoint.epoch;
                self.volumes_take(host, &checkpoint, rest.as_ref());
                if let Some(standby) = self.keeper(host).standbys.get_mut(&connection) {
                    standby.checkpoint = Some(*checkpoint);
                }
                self.tell(host, Event::Held { session, epoch, first });
            }
            _ => {}
        }
    }

    /// What comes with a checkpoint for the volumes reaches this host's images.
    pub(crate) fn volumes_take(&mut self, host: usize, checkpoint: &Checkpoint, rest: Option<&Writes>) {
        let writes = rest.unwrap_or(&checkpoint.writes);
        for (block, node) in writes {
            self.hosts[host].images[*block] = *node;
        }
        if rest.is_some() {
            self.hosts[host].mixture = false;
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
            return self.standby_over(host, connection);
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
            (_, Some(StandbyUse::End), _) if building => {
                // It ends when it has been built, and finds its connection closed.
                self.standby_over(host, connection);
            }
            (At::Waits, Some(StandbyUse::End), _) => self.standby_over(host, connection),
            (At::Waits, Some(StandbyUse::Load { .. }), Some(_)) => {
                standby.at = At::Loading;
                let takes = self.rng.u64(500..5 * MS);
                self.later(host, takes, What::Loads { connection });
            }
            _ => {}
        }
    }

    /// The devices are loaded, or are not.
    pub(crate) fn standby_loads(&mut self, host: usize, connection: u64) {
        let half = self.rng.bool();
        let fails = self.hosts[host].load_fails && half;
        let volumes = !self.spec.volumes.is_empty();
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
        self.standby_over(host, connection);
        let loaded = Box::new(self.loaded(&checkpoint, logged));
        if !self.tick_if_due(host) {
            return;
        }
        self.keeper(host).waiting = Some((Source::Session(session), checkpoint.guest));
        self.tell(host, Event::Loaded { session, loaded });
    }

    pub(crate) fn loaded(&mut self, checkpoint: &Checkpoint, logged: bool) -> Loaded {
        let activity = if checkpoint.guest.off { Activity::Off } else { Activity::Running };
        let health = Health { standing: GuestState { activity, paused: false }, ..Health::default() };
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

    fn standby_over(&mut self, host: usize, connection: u64) {
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
