//! A primary's sessions: what is sent, and what comes back.

use std::collections::BTreeSet;

use ninefold_core::effect::{Close, SessionOrder, Word};
use ninefold_core::event::Event;
use ninefold_core::time::Boottime;
use ninefold_model::Term;

use crate::guest::BLOCKS;
use crate::keeper::Session;
use crate::network::Msg;
use crate::world::{MS, What, World};

const HEARTBEAT: u64 = 40 * MS;

impl World {
    pub(crate) fn session_order(&mut self, host: usize, name: Term, order: SessionOrder) {
        let connection = self.keeper(host).sessions.get(&name).map(|s| s.connection);
        match (order, connection) {
            (SessionOrder::Open { peer, hello }, _) => {
                let to = self.number(&peer);
                let link = self.keeper(host).link.take();
                let good = |id: &u64| self.connections.get(id).is_some_and(|c| c.hosts[1] == to);
                let Some(connection) = link.filter(good) else {
                    let reason = "the peer is gone".into();
                    return self.keeper(host).answers.push_back(Event::SessionEnded { session: name, reason });
                };
                let boot = self.boot_us(host);
                if let Some(c) = self.connections.get_mut(&connection) {
                    c.last_read[0] = boot;
                }
                let session = Session {
                    connection,
                    term: name,
                    sent_at: boot,
                    sent: Default::default(),
                    since: None,
                    over: false,
                };
                self.keeper(host).sessions.insert(name, session);
                self.send(connection, 0, Msg::Hello(hello));
                self.later(host, HEARTBEAT, What::Beats { session: name });
            }
            (SessionOrder::Sync { known }, Some(connection)) => {
                let takes = self.rng.u64(2 * MS..120 * MS);
                if let Some(failure) = self.keeper(host).applier.failure.clone() {
                    let reason = failure.reason;
                    return self.tell_later(host, 1, Event::SessionEnded { session: name, reason });
                }
                if let Some(session) = self.keeper(host).sessions.get_mut(&name) {
                    session.since = Some(BTreeSet::new());
                }
                // All is compared, or it is known where the two differ: that is sent while the guest writes on.
                let images = &self.hosts[host].disk.cached;
                let blocks: BTreeSet<usize> = match known {
                    None => (0..images.len()).collect(),
                    Some(known) => {
                        let keeper = self.hosts[host].keeper.as_ref();
                        let written = keeper.and_then(|k| k.written.iter().find(|(of, _)| *of == known.basis));
                        let runs = known.blocks.iter().flat_map(|run| {
                            (run.first..run.first + u64::from(run.count))
                                .map(|block| usize::from(run.block) * BLOCKS + block as usize)
                        });
                        runs.chain(written.into_iter().flat_map(|(_, set)| set.iter().copied())).collect()
                    }
                };
                let blocks: Vec<_> = blocks.into_iter().map(|block| (block, images[block])).collect();
                let takes = if blocks.len() < images.len() { takes / 8 } else { takes };
                self.send(connection, 0, Msg::Volumes(blocks));
                self.later(host, takes, What::Synced { session: name });
            }
            (SessionOrder::Bound(term), Some(connection)) => {
                if let Some(session) = self.keeper(host).sessions.get_mut(&name) {
                    session.term = term;
                }
                self.says(host, name, connection, Msg::Bound(term));
            }
            (SessionOrder::Relinquish { epoch: _, reason }, Some(connection)) => {
                self.says(host, name, connection, Msg::Relinquish(reason));
            }
            (SessionOrder::Close(close), Some(connection)) => {
                self.keeper(host).sessions.remove(&name);
                if close == Close::Farewell {
                    self.send(connection, 0, Msg::Bye);
                }
                self.close(connection, 0);
            }
            (_, None) => {}
        }
    }

    fn says(&mut self, host: usize, name: Term, connection: u64, msg: Msg) {
        let boot = self.boot_us(host);
        if let Some(session) = self.keeper(host).sessions.get_mut(&name) {
            session.sent_at = boot;
        }
        self.send(connection, 0, msg);
    }

    /// Some of what was written during the copy goes with the first checkpoint.
    pub(crate) fn synced(&mut self, host: usize, session: Term) {
        if self.keeper(host).sessions.contains_key(&session) {
            self.tell(host, Event::VolumesSynced { session, rounds: 1, bytes: 1 });
        }
    }

    pub(crate) fn beats(&mut self, host: usize, session: Term) {
        let boot = self.boot_us(host);
        let Some(open) = self.keeper(host).sessions.get_mut(&session) else { return };
        if open.over {
            return;
        }
        let since = boot - open.sent_at;
        let (connection, due) = (open.connection, since >= HEARTBEAT);
        let wait = if due { HEARTBEAT } else { HEARTBEAT - since };
        if due {
            open.sent_at = boot;
            self.send(connection, 0, Msg::Beat(boot));
        }
        let late = self.rng.u64(1..500);
        self.later(host, wait + late, What::Beats { session });
    }

    /// The backup says something.
    pub(crate) fn session_hears(&mut self, host: usize, connection: u64, msg: Msg) {
        let rules = self.rules;
        let keeper = self.keeper(host);
        let Some((&session, open)) = keeper.sessions.iter_mut().find(|(_, s)| s.connection == connection) else {
            return;
        };
        if open.over {
            return;
        }
        let newest = open.sent.back().map(|(epoch, _)| *epoch);
        if !rules.core.protocol.release_only_acked
            && let (Msg::Word(Word::Heartbeat { .. }), Some(epoch)) = (&msg, newest)
        {
            // Broken on purpose: any sign of life counts as an acknowledgement of all that was sent.
            self.tell(host, Event::Acked { session, epoch, sent: None });
            return;
        }
        let event = match msg {
            Msg::End => {
                open.over = true;
                Event::SessionEnded { session, reason: "the backup closed the connection".into() }
            }
            Msg::Word(Word::Refuse { reason }) => {
                open.over = true;
                Event::SessionEnded { session, reason: format!("the backup refuses: {reason}") }
            }
            Msg::Word(Word::Ready) => Event::SessionReady { session },
            Msg::Word(Word::Tried) => Event::SessionTried { session },
            Msg::Word(Word::Ack { epoch }) => {
                let mut sent = None;
                while open.sent.front().is_some_and(|(of, _)| *of <= epoch) {
                    sent = open.sent.pop_front().map(|(_, at)| Boottime::from_micros(at));
                }
                Event::Acked { session, epoch, sent }
            }
            Msg::Word(Word::Heartbeat { uplink, echo_us, .. }) => {
                let echo = (echo_us > 0).then(|| Boottime::from_micros(echo_us));
                Event::PeerBeat { session, up: uplink, echo }
            }
            Msg::Word(Word::Base { epoch, changes }) => Event::Base { session, epoch, changes },
            _ => return,
        };
        self.tell(host, event);
    }
}
