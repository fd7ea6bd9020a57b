//! The witness's client and the connector of a keeper: what their threads do, and when.

use ninefold_core::effect::{BackupSearch, WitnessRequest};
use ninefold_core::event::{Event, NotAsked};
use ninefold_replica::protocol::Outcome;

use crate::guest::PAGES;
use crate::keeper::{At, Standby};
use crate::network::{Connection, Msg};
use crate::witness::{Answer, Ask};
use crate::world::{Caller, MS, What, World};

const RETRY: u64 = 50 * MS;
const LOOK_AGAIN: u64 = 200 * MS;
const LOOK: u64 = 1000 * MS;
/// For one attempt to connect.
const PATIENCE: u64 = 1500 * MS;
/// The same for a host that was just there.
const QUICK: u64 = 60 * MS;

impl World {
    /// The core asks something. While a call is under way its thread hears of nothing else.
    pub(crate) fn ask(&mut self, host: usize, question: WitnessRequest) {
        self.keeper(host).client.queued.push_back(question);
        if self.keeper(host).client.call.is_none() {
            let soon = self.moment();
            self.alarm(host, soon);
        }
    }

    /// Takes in what was asked meanwhile.
    fn drain(&mut self, host: usize) {
        while let Some(question) = self.keeper(host).client.queued.pop_front() {
            let client = &mut self.keeper(host).client;
            if client.pending.is_some() && matches!(question, WitnessRequest::Look) {
                continue;
            }
            let starts = matches!(question, WitnessRequest::Start { .. });
            let before = client.pending.replace(question);
            if matches!(before, Some(WitnessRequest::Start { .. })) && !starts {
                self.tell_later(host, 1, Event::NotAsked(NotAsked::Superseded));
            }
        }
    }

    fn alarm(&mut self, host: usize, us: u64) {
        let client = &mut self.keeper(host).client;
        client.alarm += 1;
        let number = client.alarm;
        self.later(host, us, What::Alarm(number));
    }

    /// The client's thread has nothing to wait for.
    pub(crate) fn asks_witness(&mut self, host: usize) {
        let client = &mut self.keeper(host).client;
        if client.call.is_some() {
            return;
        }
        self.drain(host);
        let client = &mut self.keeper(host).client;
        if matches!(client.pending, Some(WitnessRequest::Cancel | WitnessRequest::Look)) {
            client.pending = None;
        }
        if let Some(WitnessRequest::Propose { again, .. }) = &mut client.pending
            && std::mem::take(again)
        {
            return self.alarm(host, LOOK_AGAIN);
        }
        let ask = match &client.pending {
            Some(WitnessRequest::Propose { expected, new, .. }) => {
                Ask::Swap { expected: expected.clone(), new: new.clone() }
            }
            _ => Ask::Read,
        };
        client.last_call += 1;
        let call = client.last_call;
        client.call = Some(call);
        self.send_to_witness(host, call, Caller::Client, ask);
    }

    /// A call has an answer, or has none in time.
    pub(crate) fn witness_says(&mut self, host: usize, call: u64, from: Caller, answer: Option<Answer>) {
        if let Caller::Door(connection) = from {
            return self.confirmed(host, connection, answer);
        }
        let client = &mut self.keeper(host).client;
        if client.call != Some(call) {
            return;
        }
        client.call = None;
        let reachable = answer.is_some();
        if client.unreachable == reachable {
            client.unreachable = !reachable;
            let error = (!reachable).then(|| "no answer".to_owned());
            self.tell(host, Event::Witness { error });
            if self.hosts[host].keeper.is_none() {
                return;
            }
        }
        // A newer question may have come meanwhile: the answer is to what was asked.
        let client = &mut self.keeper(host).client;
        let Some(answer) = answer else {
            if matches!(client.pending, Some(WitnessRequest::Start { .. })) {
                client.pending = None;
                self.tell(host, Event::NotAsked(NotAsked::Silent("no answer".into())));
            }
            if self.hosts[host].keeper.is_some() {
                let client = &self.keeper(host).client;
                let wait = match (client.queued.is_empty(), &client.pending) {
                    (false, _) => 1,
                    (true, Some(_)) => RETRY,
                    (true, None) => LOOK_AGAIN,
                };
                self.alarm(host, wait);
            }
            return;
        };
        let asked = self.keeper(host).client.pending.take();
        let event = match (asked, answer) {
            (Some(WitnessRequest::Propose { id, .. }), Answer::Won) => {
                Event::WitnessAnswer { id, outcome: Outcome::Won }
            }
            (Some(WitnessRequest::Propose { id, .. }), Answer::Lost(held)) => {
                Event::WitnessAnswer { id, outcome: Outcome::Lost(held) }
            }
            (Some(WitnessRequest::Propose { id, .. }), Answer::Refused(why)) => {
                Event::WitnessAnswer { id, outcome: Outcome::Refused(why) }
            }
            (Some(WitnessRequest::Start { force }), Answer::Holds(found)) => {
                let behind = self.found_behind(host);
                Event::StartFrom { found, force, behind }
            }
            (Some(WitnessRequest::Start { .. }), Answer::Refused(why)) => Event::NotAsked(NotAsked::Refuses(why)),
            (_, Answer::Holds(found)) => Event::WitnessHolds(found),
            (_, Answer::Refused(reason)) => Event::WitnessRefuses { reason },
            (_, Answer::Won | Answer::Lost(_)) => return self.alarm(host, 1),
        };
        self.tell(host, event);
        if self.hosts[host].keeper.is_some() && self.keeper(host).client.call.is_none() {
            let newer = !self.keeper(host).client.queued.is_empty();
            self.alarm(host, if newer { 1 } else { LOOK });
        }
    }

    // ---- looking for a backup ----

    pub(crate) fn find(&mut self, host: usize, wish: BackupSearch) {
        if std::mem::replace(&mut self.keeper(host).looking, true) {
            return;
        }
        let turn = self.keeper(host).turns;
        self.keeper(host).turns += 1;
        let all = self.hosts.len();
        let others: Vec<usize> = (0..all).filter(|n| *n != host).collect();
        let mut peers: Vec<usize> = (0..others.len()).map(|n| others[(n + turn) % others.len()]).collect();
        let name = |n: &usize| &self.hosts[*n].name;
        peers.retain(|p| !wish.but.contains(name(p)));
        peers.sort_by_key(|p| (!wish.first.contains(name(p)), wish.last.as_ref() == Some(name(p))));
        let quick = !wish.first.is_empty();
        let soon = self.moment();
        self.later(host, soon, What::Connects { peers, failed: 0, quick });
    }

    /// Tries the next of them. The way there and back was open, and somebody was there: it is connected.
    pub(crate) fn connects(&mut self, host: usize, peers: &[usize], failed: usize, quick: bool) {
        let Some((peer, rest)) = peers.split_first() else {
            self.keeper(host).looking = false;
            return self.tell(host, Event::NoPeer { reason: format!("{failed} do not answer") });
        };
        let open = self.reaches(host, *peer) && self.reaches(*peer, host);
        let there = self.hosts[*peer].keeper.is_some() && !self.still(*peer);
        if !(open && there) {
            let refused = open && self.hosts[*peer].keeper.is_none();
            let patience = match (refused, quick) {
                (true, _) => self.rng.u64(100..1000),
                (false, true) => QUICK,
                (false, false) => PATIENCE,
            };
            let pause = if rest.is_empty() { if quick { 20 * MS } else { 250 * MS } } else { 0 };
            let peers = rest.to_vec();
            return self.later(host, patience + pause, What::Connects { peers, failed: failed + 1, quick });
        }
        self.last_connection += 1;
        let id = self.last_connection;
        let (mine, theirs) = (self.boot_us(host), self.boot_us(*peer));
        let connection = Connection {
            hosts: [host, *peer],
            keepers: [self.hosts[host].incarnation, self.hosts[*peer].incarnation],
            last_arrival: [self.now; 2],
            last_read: [mine, theirs],
            unread: [0; 2],
            closed: [false; 2],
            held: Default::default(),
        };
        self.connections.insert(id, connection);
        let standby = Standby {
            session: Default::default(),
            hello: None,
            at: At::Door,
            since: self.now,
            pending: Default::default(),
            log: None,
            checkpoint: None,
            first: true,
            verdict: None,
            asked_log: false,
            logged: None,
            alive: true,
            memory: vec![0; PAGES],
            earlier: None,
            history: None,
            former: None,
            base: None,
            noted: None,
            parted: false,
            acks: Default::default(),
            mute: false,
        };
        self.keeper(*peer).standbys.insert(id, standby);
        self.later(*peer, 5000 * MS, What::DoorShuts { connection: id });
        let before = {
            let keeper = self.keeper(host);
            keeper.looking = false;
            keeper.link.replace(id)
        };
        if let Some(before) = before {
            self.close(before, 0);
        }
        let peer = self.hosts[*peer].name.clone();
        self.tell(host, Event::PeerConnected { peer });
    }

    pub(crate) fn forget_peer(&mut self, host: usize) {
        if let Some(link) = self.keeper(host).link.take() {
            self.close(link, 0);
        }
    }

    /// Nobody has said Hello in time.
    pub(crate) fn door_shuts(&mut self, host: usize, connection: u64) {
        let waits = |s: &Standby| s.at == At::Door && s.hello.is_none();
        if self.keeper(host).standbys.get(&connection).is_some_and(waits) {
            self.close(connection, 1);
            self.keeper(host).standbys.remove(&connection);
        }
    }

    /// The witness has been asked whether it knows the session's primary.
    fn confirmed(&mut self, host: usize, connection: u64, answer: Option<Answer>) {
        let Some(standby) = self.keeper(host).standbys.get(&connection) else { return };
        if standby.at != At::Door || standby.asked_log {
            return;
        }
        let Some(hello) = standby.hello.clone() else { return };
        let good = match &answer {
            Some(Answer::Holds(Some(record))) => record.primary == hello.from && record.term >= hello.term,
            _ => false,
        };
        if !good {
            let reason = "the witness does not confirm it".to_owned();
            let refuse = ninefold_core::effect::Word::Refuse { reason: reason.clone() };
            self.send(connection, 1, Msg::Word(refuse));
            self.close(connection, 1);
            self.keeper(host).standbys.remove(&connection);
            let peer = hello.from.to_string();
            return self.tell(host, Event::RefusedPeer { peer, reason });
        }
        let keeper = self.keeper(host);
        if let Some(standby) = keeper.standbys.get_mut(&connection) {
            standby.asked_log = true;
        }
        keeper.last_id += 1;
        let offer = ninefold_core::event::OfferId(keeper.last_id);
        self.tell_offer(host, offer, connection, hello);
    }
}
