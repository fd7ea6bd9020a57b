//! What the core does when time passes: silent peers, this host's own freezes, the uplink, announcements.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ninefold_model::event::EventKind;
use ninefold_model::status::Counters;
use ninefold_replica::protocol::{Input, Phase};
use ninefold_replica::stream::{Heartbeat, Record, write_record};
use ninefold_transport::clock::Moment;

use super::replica::Replica;
use super::{Core, QUIT_LIMIT};
use crate::connector::Wish;

impl Core {
    pub(super) fn tick(&mut self) {
        self.last_tick = Moment::now();
        self.check_still();
        self.check_peer();
        self.check_failed_log();
        self.check_noting();
        self.check_spare();
        self.release_kept();
        self.check_uplink();
        self.health_tick();
        self.standing_tick();
        self.check_log();
        self.try_open_gate();
        self.check_volumes();
        self.check_survivors();
        self.parts.parking.expire();
        self.log.expire_kept();
        if let Some((since, plan)) = &mut self.announcing {
            self.announce |= plan.due(since.elapsed());
            if plan.next().is_none() {
                self.announcing = None;
            }
        }
        self.announce_alone();
        let outlets = Arc::clone(&self.parts.outlets);
        for nic in outlets.twins().filter_map(|n| self.parts.config.vm.nics.get(n).cloned()) {
            self.event(EventKind::AddressTwice { mac: nic.mac, bridge: nic.bridge });
        }
        let waited = self.retry.is_none_or(|(failed, pause)| failed.elapsed() >= pause);
        if self.wants_peer() && !self.looking && waited {
            self.looking = true;
            let but = self.protocol.sessions().iter().map(|s| s.backup.clone()).collect();
            self.parts.connector.ask(Wish { but, first: self.holders(), last: self.former.clone() });
        }
        // A VM that has become this host's meanwhile.
        self.hand_over_and_quit();
        if self.quitting.as_ref().is_some_and(|q| q.since.elapsed() > QUIT_LIMIT) {
            self.done = true;
        }
        self.counters.frames_held = 0;
        let mut counters =
            Counters { frames_out: 0, frames_in: 0, frames_dropped: 0, frames_stale: 0, ..self.counters };
        self.parts.outlets.count(&mut counters);
        self.counters = counters;
        self.parts.board.counters(&counters, self.committed);
    }

    /// An announcement is output like any other: while a backup may take over, only its acknowledgement shows that it
    /// has not. So a bound primary announces with what it releases (`Action::Release`), and one that waits for the
    /// witness not at all.
    pub(super) fn announce_alone(&mut self) {
        if self.protocol.speaks_freely() && std::mem::take(&mut self.announce) {
            self.parts.outlets.announce(&|| true);
        }
    }

    pub(super) fn check_peer(&mut self) {
        let limit = self.failure_timeout();
        let heard = self.stall.thawed;
        let lost = |r: &Replica| r.lost(limit, heard).map(|reason| (r.name(), reason));
        for (session, reason) in self.replicas.iter().filter_map(lost).collect::<Vec<_>>() {
            self.lose_session(session, reason);
        }
        let heartbeat = self.parts.config.timing.heartbeat();
        let uplink = self.uplink.load(Ordering::Relaxed);
        let beat_due = self.last_beat.elapsed() >= heartbeat;
        let Some(backup) = &mut self.backup else { return };
        if beat_due && !backup.gone {
            self.last_beat = Instant::now();
            self.beats += 1;
            // So that the primary can tell when this host was with it.
            let time_us = backup.echo.load(Ordering::Relaxed);
            let beat = Heartbeat { session: backup.session.0, seq: self.beats, uplink, time_us };
            // An error shows as the end of the stream.
            let _ = write_record(&mut backup.writer, &mut backup.scratch, &Record::Heartbeat(beat));
            let _ = std::io::Write::flush(&mut backup.writer);
        }
        let Some(ready) = backup.ready else { return };
        // After a stall of its own it counts from the thaw: what the primary said meanwhile has still to be read.
        let silence = backup.handle.silence().min(ready.elapsed()).min(heard.elapsed());
        if !backup.gone && silence > limit {
            let session = backup.session;
            self.primary_gone(session, format!("the primary was silent for {} ms", silence.as_millis()), false);
        }
    }

    pub(super) fn check_uplink(&mut self) {
        let Some(name) = &self.parts.config.uplink else { return };
        let up = ninefold_net::uplink_running(name).unwrap_or(true);
        self.uplink.store(up, Ordering::Relaxed);
        if up {
            self.uplink_lost = None;
            return;
        }
        let since = *self.uplink_lost.get_or_insert_with(Instant::now);
        let hold = Duration::from_millis(self.parts.config.timing.uplink_hold_ms.into());
        // The first that could serve the world.
        let bound = |r: &&Replica| r.uplink && self.protocol.phase(r.name()) == Some(Phase::Bound);
        if let Some(to) = self.replicas.iter().find(bound).map(|r| r.backup.clone())
            && self.witness_error.is_none()
            && since.elapsed() >= hold
            && self.final_epoch.is_none()
        {
            // Once an attempt: a failed one starts the hold anew.
            self.uplink_lost = Some(Instant::now() + hold);
            let reason = format!("{name} has no carrier");
            self.input(Input::Switchover { to: Some(to), reason });
        }
    }
}
