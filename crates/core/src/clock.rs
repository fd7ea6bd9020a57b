//! What the core does when time passes: silent peers, this host's own freezes, the uplink, announcements.

use std::time::Duration;

use ninefold_model::Term;
use ninefold_model::event::EventKind;
use ninefold_model::status::Counters;
use ninefold_replica::protocol::{Input, Phase};

use crate::core::Core;
use crate::effect::{BackupSearch, Effect, GuestIoOrder, Metric, ParkingOrder, Word};
use crate::event::Frames;
use crate::replica::Replica;
use crate::settings::Settings;

impl Core {
    pub(crate) fn tick(&mut self) {
        self.check_still();
        self.check_peer();
        self.check_refusal();
        self.check_removal();
        self.check_failed_log();
        self.check_noting();
        self.check_spare();
        self.release_kept();
        self.check_uplink();
        self.health_tick();
        self.standing_tick();
        self.operations_tick();
        self.check_log();
        self.try_open_gate();
        self.check_volumes();
        self.check_survivors();
        self.parking(ParkingOrder::Expire);
        self.expire_kept_log();
        let now = self.now.monotonic;
        if let Some((since, plan)) = &mut self.announcing {
            self.announce |= plan.due(now.since(*since));
            if plan.next().is_none() {
                self.announcing = None;
            }
        }
        self.announce_alone();
        for twin in std::mem::take(&mut self.observed.twins) {
            let Settings { vm, bridges, .. } = &*self.settings;
            if let (Some(nic), Some(bridge)) = (vm.hardware.nics.get(twin), bridges.get(twin)) {
                let (mac, bridge) = (nic.mac, bridge.clone());
                self.event(EventKind::AddressTwice { mac, bridge });
            }
        }
        let waited = self.retry.is_none_or(|(failed, pause)| now.since(failed) >= pause);
        if self.wants_peer() && !self.looking && waited {
            self.looking = true;
            let mut but: Vec<_> = self.protocol.sessions().iter().map(|s| s.backup.clone()).collect();
            but.extend(self.who_rests().cloned());
            let wish = BackupSearch { but, first: self.holders(), last: self.former.clone() };
            self.effect(Effect::Find(wish));
        }
        // A VM that has become this host's meanwhile.
        self.hand_over_and_quit();
        self.done |= self.has_waited_to_quit();
        let Frames { out, incoming, held, dropped, stale } = self.observed.frames;
        self.counters = Counters {
            frames_out: out,
            frames_in: incoming,
            frames_held: held,
            frames_dropped: dropped,
            frames_stale: stale,
            ..self.counters
        };
        self.measure(Metric::Counters { counters: self.counters, committed: self.committed });
    }

    /// An announcement is output like any other: while a backup may take over, only its acknowledgement shows that it
    /// has not. So a bound primary announces with what it releases (`Action::Release`), and one that waits for the
    /// witness not at all.
    fn announce_alone(&mut self) {
        if self.protocol.speaks_freely() && std::mem::take(&mut self.announce) {
            self.guest_io(GuestIoOrder::Announce);
        }
    }

    fn check_peer(&mut self) {
        let limit = self.failure_timeout();
        let (now, thawed) = (self.now, self.stall.thawed);
        let silence = |session: Term| {
            let seen = self.observed.silences.iter().find(|(of, _)| *of == session);
            // One that was opened since the last look has said nothing for no time.
            seen.map_or(Duration::ZERO, |(_, silence)| *silence)
        };
        let lost = |r: &Replica| r.lost(limit, silence(r.session), now, thawed).map(|reason| (r.session, reason));
        for (session, reason) in self.replicas.iter().filter_map(lost).collect::<Vec<_>>() {
            self.lose_session(session, reason);
        }
        let beat_due = self.elapsed(self.last_beat) >= self.settings.vm.policy.timing.heartbeat();
        let Some(backup) = &self.backup else { return };
        let (session, gone, ready) = (backup.session, backup.gone, backup.ready);
        if beat_due && !gone {
            self.last_beat = now.monotonic;
            self.beats += 1;
            // So that the primary can tell when this host was with it. If this host begins to claim in this very tick, it has read nothing
            // since for longer than the primary relies on that.
            let echo_us = self.primary_echo();
            let beat = Word::Heartbeat { seq: self.beats, uplink: self.observed.uplink, echo_us };
            self.tell_primary(beat);
        }
        let Some(ready) = ready else { return };
        let silence = self.primary_silence();
        // After a stall of its own it counts from the thaw: what the primary said meanwhile has still to be read.
        let counted = silence.min(now.boottime.since(ready)).min(now.boottime.since(thawed));
        if !gone && counted > limit {
            let reason = format!("the primary was silent for {} ms", counted.as_millis());
            self.primary_gone(session, reason, silence, false);
        }
    }

    fn check_uplink(&mut self) {
        let Some(name) = self.settings.uplink.clone() else { return };
        if self.observed.uplink {
            self.uplink_lost = None;
            return;
        }
        let now = self.now.monotonic;
        let hold = Duration::from_millis(self.settings.vm.policy.timing.uplink_hold_ms.into());
        let since = *self.uplink_lost.get_or_insert(now);
        // The first that could serve the world.
        let bound = |r: &&Replica| r.uplink && self.protocol.phase(r.session) == Some(Phase::Bound);
        if let Some(to) = self.replicas.iter().find(bound).map(|r| r.backup.clone())
            && self.witness_trouble.is_none()
            && now.since(since) >= hold
            && self.final_epoch.is_none()
        {
            // Once an attempt: a failed one starts the hold anew.
            self.uplink_lost = Some(now + hold);
            let reason = format!("{name} has no carrier");
            self.input(Input::Switchover { to: Some(to), reason });
        }
    }
}
