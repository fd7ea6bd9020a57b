//! Whether this host still knows what it believes to know: it may have stood still, or hear its backups late.
//!
//! A backup takes over when it has heard nothing for the failure timeout. So a primary may speak as long as it can tell that each
//! backup has had something from it within that time: then none has lost patience. It can tell from what comes back: an
//! acknowledgement of a checkpoint, or a heartbeat that names the newest of its own. All times are its own clock's.
//!
//! Once it cannot tell any more, or has itself stood still, it is in doubt ([`Input::Doubt`]): it releases nothing, asks the
//! witness, and reads meanwhile what has come. Everything else goes on as ever.

use std::cell::Cell;
use std::time::Duration;

use ninefold_model::event::EventKind;
use ninefold_model::status::Role;
use ninefold_model::{Epoch, Term};
use ninefold_replica::protocol::Input;
use ninefold_transport::clock::Moment;

use super::{Core, TICK};
use crate::config::Timing;
use crate::outlets::Outlets;

/// What the core knows of its own time.
pub(super) struct StallSide {
    /// When this host was last seen not to stand still.
    awake: Moment,
    /// When it last went on after it had stood still: what others were due to say before has perhaps still to be read.
    pub(super) thawed: Moment,
    /// When the present doubt arose.
    doubted: Moment,
    /// Something may leave and was kept.
    kept: bool,
}

impl StallSide {
    pub(super) fn new() -> Self {
        let now = Moment::now();
        Self { awake: now, thawed: now, doubted: now, kept: false }
    }

    /// It is awake now; for how long it had not been seen to be.
    pub(super) fn wake(&mut self) -> Duration {
        let still = self.awake.elapsed();
        self.awake = Moment::now();
        still
    }

    pub(super) fn reset(&mut self) {
        self.kept = false;
    }
}

/// Asked before each batch that leaves. Yes, as long as this host has not stood still since the last time (`look`) and each of
/// its backups has had something from it within the failure timeout (the oldest such thing was sent at `oldest`).
fn still_ours(look: &Cell<Moment>, oldest: Option<Moment>, timing: &Timing) -> bool {
    let ours = look.get().elapsed() < timing.look_limit()
        && oldest.is_none_or(|sent| sent.elapsed() < timing.failure_timeout());
    if ours {
        look.set(Moment::now());
    }
    ours
}

impl Core {
    /// This host was frozen, suspended or starved, for so long that its peers may have lost patience. As a primary it must assume
    /// that it has been replaced until it knows better. Neither as a primary nor as a backup must it take its own deafness for
    /// the others' silence.
    pub(super) fn check_still(&mut self) {
        let still = self.stall.wake();
        self.parts.board.waited(still.saturating_sub(TICK));
        if still < self.parts.config.timing.stall_limit() {
            return;
        }
        self.stall.thawed = Moment::now();
        self.log.stood_still();
        if self.protocol.role() != Role::Standby {
            self.event(EventKind::StoodStill { ms: u64::try_from(still.as_millis()).unwrap_or(u64::MAX) });
        }
        self.doubt();
    }

    fn doubt(&mut self) {
        self.stall.doubted = Moment::now();
        self.input(Input::Doubt);
    }

    /// Before anything that could let output go: hears late, then doubts.
    pub(super) fn doubt_if_late(&mut self, input: &Input) {
        let limit = self.failure_timeout();
        if *input != Input::Doubt
            && self.protocol.role() == Role::Primary
            && !self.protocol.doubts()
            && self.oldest().is_some_and(|sent| sent.elapsed() >= limit)
        {
            self.doubt();
        }
    }

    /// When the oldest of the things was sent by which each backup that holds a checkpoint is known to have been with us.
    fn oldest(&self) -> Option<Moment> {
        self.replicas.iter().filter(|r| r.acked.is_some()).map(|r| r.with_us).min()
    }

    /// A backup has answered what was sent then. It had not begun to claim when it did.
    pub(super) fn heard(&mut self, session: Term, sent: Option<Moment>) {
        let (Some(sent), Some(replica)) = (sent, self.replica(session)) else { return };
        replica.with_us = replica.with_us.max(sent);
        if self.protocol.doubts() && sent > self.stall.doubted {
            self.input(Input::Sure { session });
        }
    }

    /// The witness has said that nobody has taken the VM over. When it did: that is at most one call ago.
    pub(super) fn confirmed(&mut self) {
        let now = Moment::now();
        self.replicas.iter_mut().for_each(|r| r.with_us = now);
    }

    /// Lets what belongs to these epochs go, as long as it is certain whose the VM is.
    pub(super) fn release(&mut self, epoch: Epoch) {
        let (timing, oldest) = (self.parts.config.timing, self.oldest());
        let look = Cell::new(self.stall.awake);
        let ours = || still_ours(&look, oldest, &timing);
        self.stall.kept = !self.parts.outlets.release(epoch, &ours);
        if std::mem::take(&mut self.announce) && self.parts.outlets.announce(&ours) == 0 {
            self.announce = true;
        }
        // A long release is work, not a freeze. One that ended in a freeze leaves it to be found by the next tick.
        ours();
        self.stall.awake = look.get();
    }

    /// What was kept in the middle of a release leaves when there is no doubt any more.
    pub(super) fn release_kept(&mut self) {
        if self.stall.kept && !self.protocol.doubts() && self.holding {
            // Of no further epoch.
            self.release(Epoch(0));
            if self.stall.kept && self.stall.awake.elapsed() < self.parts.config.timing.look_limit() {
                self.doubt();
            }
        }
    }

    /// Does what may take a while with a gate that was full. That is work, not a freeze: it looks at the clock now and then.
    pub(super) fn at_work(&mut self, work: impl FnOnce(&Outlets, &dyn Fn())) {
        let timing = self.parts.config.timing;
        let look = Cell::new(self.stall.awake);
        let seen = || {
            still_ours(&look, None, &timing);
        };
        work(&self.parts.outlets, &seen);
        seen();
        self.stall.awake = look.get();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moment `ms` milliseconds ago. (The clock counts from boot; a machine that has just booted has few moments behind it.)
    fn ago(ms: u64) -> Moment {
        Moment::from_micros(Moment::now().as_micros().saturating_sub(ms * 1000))
    }

    #[test]
    fn a_primary_that_stood_still_for_as_long_as_a_backup_may_wait_doubts() {
        let limit = |failure_timeout_ms| Timing { failure_timeout_ms, ..Timing::default() }.stall_limit();
        assert_eq!(limit(250), Duration::from_millis(170));
        assert_eq!(limit(100), Timing::MIN_STILL);
    }

    #[test]
    fn nothing_leaves_once_a_backup_may_have_lost_patience() {
        let asked = |look: u64, oldest: Option<u64>| {
            let cell = Cell::new(ago(look));
            let before = cell.get();
            let ours = still_ours(&cell, oldest.map(ago), &Timing::default());
            assert_eq!(cell.get() != before, ours, "only one that is certain has looked");
            ours
        };
        assert!(asked(20, None) && asked(20, Some(20)));
        assert!(!asked(125, None), "it stood still");
        assert!(!asked(20, Some(250)), "an answer to what was sent 250 ms ago says nothing of now");
    }
}
