//! When the next checkpoint is due. Pure: times are given in.
//!
//! A checkpoint costs the guest its pause, and output waits until the checkpoint after it is acknowledged. What is best
//! depends on what the guest does:
//!
//! * **Output waits and the guest has gone quiet** (it waits for an answer to what it sent): a pause costs it nothing, so
//!   the checkpoint is due at once.
//! * **All that waits are acknowledgements** of what the guest was sent: nobody misses them yet. The rest of what it is
//!   being sent is on its way, and a pause would only hold that up ([`PATIENCE`]). A busy guest is left alone for longer,
//!   for longest when what it was sent last seems to be the end of a message: who sent that most likely waits for the
//!   answer, not for acknowledgements.
//! * **Output waits and the guest is busy**: every pause takes from its work, so epochs are made long enough that the
//!   pauses stay below a share of its time ([`PAUSE_SHARE`]).
//! * **Nothing waits**: the longest epoch that the policy allows.

use std::time::Duration;

use ninefold_model::spec::EpochPolicy;

/// The share of a busy guest's time that pauses may take while output waits.
pub const PAUSE_SHARE: f64 = 0.08;
/// The shortest epoch of a busy guest.
pub const SHORTEST: Duration = Duration::from_millis(3);
/// How long acknowledgements alone may wait. Short beside a delayed acknowledgement (40 ms and more), long beside the
/// arrival of a request in several segments.
pub const PATIENCE: Duration = Duration::from_millis(8);
/// The same when the guest is busy: what it computes meanwhile is worth more.
pub const BUSY_PATIENCE: Duration = Duration::from_millis(50);
/// The same when nobody has more to send. Well below 200 ms, after which a sender would send again (RFC 6298 as Linux
/// has it).
pub const LONGEST_PATIENCE: Duration = Duration::from_millis(100);
/// A busy guest that has just said something may be about to say more and to go quiet. It is given so many times a
/// pause for that: taking two checkpoints instead of one would cost it as much.
const SETTLE: f64 = 3.0;
/// How often a guest whose output waits is looked at.
pub const LOOK_AGAIN: Duration = Duration::from_micros(150);
/// The same when all that waits are acknowledgements.
pub const LOOK_AT_PATIENT: Duration = Duration::from_millis(2);
/// Checkpoints that may be unacknowledged at a time: one on its way while the next is taken.
pub const MAX_IN_FLIGHT: u32 = 2;
/// Weight of a new pause in the running mean.
const WEIGHT: f64 = 0.2;

/// What is seen of the guest now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// How long it has run since the last pause.
    pub run: Duration,
    /// Output waits that belongs to the present epoch.
    pub output_waits: bool,
    /// For how long some of it has been waiting that is more than an acknowledgement.
    pub urgent_for: Option<Duration>,
    /// What it was sent last was not the end of a message: who sends may wait for acknowledgements.
    pub more_to_come: bool,
    /// It uses next to no CPU.
    pub quiet: bool,
    /// The gate fills up.
    pub gate_half_full: bool,
    /// Checkpoints taken and not yet acknowledged.
    pub in_flight: u32,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Now,
    /// Look again after this time, or when output appears or an acknowledgement arrives.
    In(Duration),
}

/// Decides when checkpoints are due.
#[derive(Debug, Clone)]
pub struct Pacer {
    policy: EpochPolicy,
    /// Running mean of the pauses, seconds.
    pause: f64,
}

impl Pacer {
    pub fn new(policy: EpochPolicy) -> Self {
        Self { policy, pause: 0.002 }
    }

    pub fn policy(&self) -> EpochPolicy {
        self.policy
    }

    pub fn set_policy(&mut self, policy: EpochPolicy) {
        self.policy = policy;
    }

    /// Takes in how long a pause was.
    pub fn paused(&mut self, pause: Duration) {
        self.pause += (pause.as_secs_f64() - self.pause) * WEIGHT;
    }

    /// The shortest epoch of a guest that is busy.
    fn busy_epoch(&self, longest: Duration) -> Duration {
        Duration::from_secs_f64(self.pause * (1.0 / PAUSE_SHARE - 1.0)).clamp(SHORTEST.min(longest), longest)
    }

    /// Whether a checkpoint is due.
    pub fn due(&self, seen: &Observation) -> Due {
        if seen.in_flight >= MAX_IN_FLIGHT {
            return Due::In(Duration::from_millis(20));
        }
        let after = |length: Duration| match length.checked_sub(seen.run) {
            None | Some(Duration::ZERO) => Due::Now,
            Some(rest) => Due::In(rest),
        };
        match self.policy {
            EpochPolicy::Adaptive { .. } if seen.gate_half_full => Due::Now,
            // As often as a busy guest is checkpointed: what is held may wait for something that no checkpoint helps.
            EpochPolicy::Fixed { ms } if seen.gate_half_full => {
                after(self.busy_epoch(Duration::from_millis(ms.into())))
            }
            EpochPolicy::Fixed { ms } => after(Duration::from_millis(ms.into())),
            EpochPolicy::Adaptive { max_ms } => {
                let longest = Duration::from_millis(max_ms.into());
                if !seen.output_waits {
                    return after(longest);
                }
                let soon = |due: Due, look: Duration| match due {
                    Due::Now => Due::Now,
                    Due::In(rest) => Due::In(rest.min(look)),
                };
                let Some(urgent_for) = seen.urgent_for else {
                    let patience = match (seen.quiet, seen.more_to_come) {
                        (true, _) => PATIENCE,
                        (false, true) => BUSY_PATIENCE,
                        (false, false) => LONGEST_PATIENCE,
                    };
                    return soon(after(patience.min(longest)), LOOK_AT_PATIENT);
                };
                // A second checkpoint while one is on its way would not be acknowledged sooner than after it.
                if seen.quiet && seen.in_flight == 0 {
                    return Due::Now;
                }
                let settled = Duration::from_secs_f64(self.pause * SETTLE).saturating_sub(urgent_for);
                soon(after(self.busy_epoch(longest).max(seen.run + settled)), LOOK_AGAIN)
            }
        }
    }
}

/// Fewer dirty pages than this are copied in the pause: a scan more would cost as much.
const WORTH_COPYING: u64 = 400;
/// After an early copy that was mostly in vain, so many checkpoints go without.
const WAIT_AFTER_VAIN: u32 = 32;

/// Decides whether pages are copied once before the pause, while the guest runs. That pays when many are dirty and few
/// of them are written again at once.
#[derive(Debug, Clone, Default)]
pub struct EarlyCopy {
    last_dirty: u64,
    wait: u32,
}

impl EarlyCopy {
    /// Whether the next checkpoint should.
    pub fn wanted(&mut self) -> bool {
        if self.wait > 0 {
            self.wait -= 1;
            return false;
        }
        self.last_dirty >= WORTH_COPYING
    }

    /// Takes in a checkpoint: its pages, those copied before the pause, those copied in it.
    pub fn learned(&mut self, dirty: u64, early: u64, again: u64) {
        self.last_dirty = dirty;
        if early > 0 && again > early / 2 {
            self.wait = WAIT_AFTER_VAIN;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Observation = Observation {
        run: Duration::from_millis(1),
        output_waits: false,
        urgent_for: None,
        more_to_come: true,
        quiet: true,
        gate_half_full: false,
        in_flight: 0,
    };

    fn adaptive() -> Pacer {
        Pacer::new(EpochPolicy::Adaptive { max_ms: 100 })
    }

    #[test]
    fn a_silent_guest_runs_to_the_longest_epoch() {
        assert_eq!(adaptive().due(&IDLE), Due::In(Duration::from_millis(99)));
        assert_eq!(adaptive().due(&Observation { run: Duration::from_millis(100), ..IDLE }), Due::Now);
    }

    #[test]
    fn output_of_a_quiet_guest_is_committed_at_once() {
        assert_eq!(
            adaptive().due(&Observation { output_waits: true, urgent_for: Some(Duration::from_millis(50)), ..IDLE }),
            Due::Now
        );
    }

    #[test]
    fn acknowledgements_alone_wait_a_little() {
        let acks = Observation { output_waits: true, ..IDLE };
        assert_eq!(adaptive().due(&acks), Due::In(LOOK_AT_PATIENT), "it may be written to");
        assert_eq!(adaptive().due(&Observation { run: PATIENCE, ..acks }), Due::Now);
        let short = Pacer::new(EpochPolicy::Adaptive { max_ms: 2 });
        assert_eq!(short.due(&acks), Due::In(Duration::from_millis(1)));
    }

    #[test]
    fn acknowledgements_of_a_busy_guest_wait_until_somebody_may_miss_them() {
        let busy = Observation { output_waits: true, quiet: false, run: PATIENCE, ..IDLE };
        assert_eq!(adaptive().due(&busy), Due::In(LOOK_AT_PATIENT), "it may go quiet");
        assert_eq!(adaptive().due(&Observation { run: BUSY_PATIENCE, ..busy }), Due::Now);
        let whole = Observation { more_to_come: false, ..busy };
        assert_eq!(adaptive().due(&Observation { run: BUSY_PATIENCE, ..whole }), Due::In(LOOK_AT_PATIENT));
        let long = Pacer::new(EpochPolicy::Adaptive { max_ms: 1000 });
        assert_eq!(long.due(&Observation { run: LONGEST_PATIENCE, ..whole }), Due::Now);
        assert_eq!(long.due(&Observation { run: PATIENCE, quiet: true, ..whole }), Due::Now);
    }

    #[test]
    fn a_busy_guest_keeps_its_time() {
        let mut pacer = adaptive();
        for _ in 0..100 {
            pacer.paused(Duration::from_millis(2));
        }
        let busy =
            Observation { output_waits: true, urgent_for: Some(Duration::from_millis(50)), quiet: false, ..IDLE };
        assert!(matches!(pacer.due(&busy), Due::In(_)));
        // 2 ms of pause are 8 % of 25 ms.
        assert!(matches!(pacer.due(&Observation { run: Duration::from_millis(22), ..busy }), Due::In(_)));
        assert_eq!(pacer.due(&Observation { run: Duration::from_millis(24), ..busy }), Due::Now);
    }

    #[test]
    fn a_busy_guest_may_finish_what_it_says() {
        let long = Observation { output_waits: true, quiet: false, run: Duration::from_millis(60), ..IDLE };
        let just = Observation { urgent_for: Some(Duration::from_millis(1)), ..long };
        assert!(matches!(adaptive().due(&just), Due::In(_)));
        assert_eq!(adaptive().due(&Observation { quiet: true, ..just }), Due::Now);
        assert_eq!(adaptive().due(&Observation { urgent_for: Some(Duration::from_millis(7)), ..long }), Due::Now);
    }

    #[test]
    fn a_filling_gate_does_not_wait() {
        let full = Observation {
            output_waits: true,
            urgent_for: Some(Duration::from_millis(50)),
            quiet: false,
            gate_half_full: true,
            ..IDLE
        };
        assert_eq!(adaptive().due(&full), Due::Now);
        assert!(matches!(adaptive().due(&Observation { in_flight: MAX_IN_FLIGHT, ..full }), Due::In(_)));
    }

    #[test]
    fn pages_are_copied_early_where_it_pays() {
        let mut early = EarlyCopy::default();
        assert!(!early.wanted());
        early.learned(100, 0, 0);
        assert!(!early.wanted(), "too few to be worth it");
        early.learned(2000, 0, 0);
        assert!(early.wanted());
        early.learned(2000, 2000, 100);
        assert!(early.wanted());
        early.learned(2000, 2000, 1900);
        assert!(!early.wanted(), "all was written again");
        for _ in 0..WAIT_AFTER_VAIN {
            early.wanted();
        }
        assert!(early.wanted(), "tried again after a while");
    }

    #[test]
    fn a_fixed_epoch_is_fixed() {
        let pacer = Pacer::new(EpochPolicy::Fixed { ms: 25 });
        assert_eq!(
            pacer.due(&Observation { output_waits: true, urgent_for: Some(Duration::from_millis(50)), ..IDLE }),
            Due::In(Duration::from_millis(24))
        );
        assert_eq!(pacer.due(&Observation { run: Duration::from_millis(26), ..IDLE }), Due::Now);
    }
}
