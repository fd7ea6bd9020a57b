//! Whether this host still knows what it believes to know: it may have stood still, or hear its backups late.
//!
//! A backup takes over when it has heard nothing for the failure timeout. So a primary may speak as long as it can tell that each
//! backup has had something from it within that time: then none has lost patience. It can tell from what comes back: an
//! acknowledgement of a checkpoint, or a heartbeat that names the newest of its own. All times are its own clock's.
//!
//! Once it cannot tell any more, or has itself stood still, it is in doubt ([`Input::Doubt`]): it releases nothing, asks the
//! witness, and reads meanwhile what has come. Everything else goes on as ever.

use ninefold_model::event::EventKind;
use ninefold_model::spec::Timing;
use ninefold_model::status::Role;
use ninefold_model::{Epoch, Term};
use ninefold_replica::protocol::Input;

use crate::core::{Core, TICK};
use crate::effect::{GuestIoOrder, Metric};
use crate::time::Boottime;

/// What the core knows of its own time.
pub(crate) struct StallSide {
    /// When this host was last seen not to stand still.
    pub(crate) awake: Boottime,
    /// When it last went on after it had stood still: what others were due to say before has perhaps still to be read.
    pub(crate) thawed: Boottime,
    /// When the present doubt arose.
    doubted: Boottime,
    /// Something may leave and was kept.
    kept: bool,
    /// It is being tried to let go what was kept.
    again: bool,
    /// An announcement goes with what is being released.
    announces: bool,
    /// So many releases have been ordered of which it is not known what came.
    releasing: u32,
}

impl StallSide {
    pub(crate) fn new(now: Boottime) -> Self {
        Self { awake: now, thawed: now, doubted: now, kept: false, again: false, announces: false, releasing: 0 }
    }

    /// It was seen not to stand still at this time.
    pub(crate) fn looked(&mut self, at: Boottime) {
        self.awake = self.awake.max(at);
    }

    pub(crate) fn reset(&mut self) {
        self.kept = false;
    }
}

/// Asked before each batch that leaves. Yes, as long as this host has not stood still since it was last seen awake (`look`) and each of
/// its backups has had something from it within the failure timeout (the oldest such thing was sent at `oldest`). After a yes this host
/// has been seen awake `now`.
pub fn still_ours(look: Boottime, oldest: Option<Boottime>, now: Boottime, timing: &Timing) -> bool {
    now.since(look) < timing.look_limit() && oldest.is_none_or(|sent| now.since(sent) < timing.failure_timeout())
}

impl Core {
    /// This host was frozen, suspended or starved, for so long that its peers may have lost patience. As a primary it must assume
    /// that it has been replaced until it knows better. Neither as a primary nor as a backup must it take its own deafness for
    /// the others' silence.
    pub(crate) fn check_still(&mut self) {
        let now = self.now.boottime;
        let still = now.since(self.stall.awake);
        self.stall.awake = now;
        self.measure(Metric::Waited(still.saturating_sub(TICK)));
        if still < self.settings.vm.policy.timing.stall_limit() {
            return;
        }
        self.stall.thawed = now;
        self.log.stood_still();
        if self.protocol.role() != Role::Standby {
            self.event(EventKind::StoodStill { ms: u64::try_from(still.as_millis()).unwrap_or(u64::MAX) });
        }
        self.doubt();
    }

    fn doubt(&mut self) {
        self.stall.doubted = self.now.boottime;
        self.input(Input::Doubt);
    }

    /// Before anything that could let output go: hears late, then doubts.
    pub(crate) fn doubt_if_late(&mut self, input: &Input) {
        let limit = self.failure_timeout();
        if *input != Input::Doubt
            && self.protocol.role() == Role::Primary
            && !self.protocol.doubts()
            && self.oldest().is_some_and(|sent| self.now.boottime.since(sent) >= limit)
        {
            self.doubt();
        }
    }

    /// When the oldest of the things was sent by which each backup that holds a checkpoint is known to have been with us.
    fn oldest(&self) -> Option<Boottime> {
        self.replicas.iter().filter(|r| r.acked.is_some()).map(|r| r.with_us).min()
    }

    /// A backup has answered what was sent then. It had not begun to claim when it did.
    pub(crate) fn heard(&mut self, session: Term, sent: Option<Boottime>) {
        let (Some(sent), Some(replica)) = (sent, self.replica(session)) else { return };
        replica.with_us = replica.with_us.max(sent);
        if self.protocol.doubts() && sent > self.stall.doubted {
            self.input(Input::Sure { session });
        }
    }

    /// The witness has said that nobody has taken the VM over. When it did: that is at most one call ago.
    pub(crate) fn confirmed(&mut self) {
        let now = self.now.boottime;
        self.replicas.iter_mut().for_each(|r| r.with_us = now);
    }

    /// Lets what belongs to these epochs go, as long as it is certain whose the VM is.
    pub(crate) fn release(&mut self, epoch: Epoch) {
        let (awake, oldest) = (self.stall.awake, self.oldest());
        let announce = std::mem::take(&mut self.announce);
        self.guest_io(GuestIoOrder::Release { epoch, awake, oldest, announce });
        // A second release before the first is answered takes nothing from that.
        self.stall.announces |= announce;
        self.stall.releasing += 1;
    }

    /// Whether all has left that may leave. What may not yet, because a backup has not got it, does not count.
    pub(crate) fn has_let_go(&self) -> bool {
        match self.holding {
            true => self.stall.releasing == 0 && !self.stall.kept,
            false => !self.opening,
        }
    }

    /// What came of it. A long release is work, not a freeze. One that ended in a freeze leaves it to be found by the next tick.
    pub(crate) fn released(&mut self, kept: bool, announced: bool, looked: Boottime) {
        self.stall.kept = kept;
        self.announce |= std::mem::take(&mut self.stall.announces) && !announced;
        self.stall.releasing = self.stall.releasing.saturating_sub(1);
        self.stall.looked(looked);
        let again = std::mem::take(&mut self.stall.again);
        if again && kept && self.now.boottime.since(self.stall.awake) < self.settings.vm.policy.timing.look_limit() {
            self.doubt();
        }
        self.stop_when_off();
    }

    /// What was kept in the middle of a release leaves when there is no doubt any more.
    pub(crate) fn release_kept(&mut self) {
        if self.stall.kept && !self.protocol.doubts() && self.holding {
            // Of no further epoch.
            self.stall.again = true;
            self.release(Epoch(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The moment `ms` milliseconds before the tests' present.
    fn ago(ms: u64) -> Boottime {
        Boottime::from_micros((3_600_000 - ms) * 1000)
    }

    #[test]
    fn a_primary_that_stood_still_for_as_long_as_a_backup_may_wait_doubts() {
        let limit = |failure_timeout_ms| Timing { failure_timeout_ms, ..Timing::default() }.stall_limit();
        assert_eq!(limit(250), Duration::from_millis(170));
        assert_eq!(limit(100), Timing::MIN_STILL);
    }

    #[test]
    fn nothing_leaves_once_a_backup_may_have_lost_patience() {
        let asked = |look: u64, oldest: Option<u64>| still_ours(ago(look), oldest.map(ago), ago(0), &Timing::default());
        assert!(asked(20, None) && asked(20, Some(20)));
        assert!(!asked(125, None), "it stood still");
        assert!(!asked(20, Some(250)), "an answer to what was sent 250 ms ago says nothing of now");
    }
}
