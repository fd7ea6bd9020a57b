//! What is done about a guest that fails, and about an image on trial. Pure: no clock, no I/O.
//!
//! ```text
//!                 Trial                         Healthy
//!   COMMITTED ─────────────► ON TRIAL ───────────────────────► COMMITTED (the new image)
//!       ▲  │                    │ Failed, time is up, does not start, asked to
//!       │  │ Failed             ▼
//!       │  ▼              FellBack, Relaunch ──► COMMITTED (the old image)
//!    Reset, Dump + Reset, Relaunch, Stop;
//!    Stop anyway after more than `times` failures `within_s` seconds
//! ```
//!
//! The core owns it and does what it decides. A failure in a trial ends the trial whatever the watchdog's action is (with a
//! dump first, if the action is to dump), and does not count towards the limit.

use std::time::Duration;

use ninefold_model::GuestState;
use ninefold_model::event::EventKind;
use ninefold_model::health::{Failure, Health, HealthySign, MAX_TIMES, Trial, Watchdog, WatchdogAction};
use ninefold_model::spec::Boot;

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The VM boots here: what was found before does not count any more. `committed` is the image on record.
    Boots { watchdog: Option<Watchdog>, committed: Option<Boot> },
    /// The VM was taken over, with what its last checkpoint says.
    TookOver { watchdog: Option<Watchdog>, health: Health },
    /// So much time has passed in which the guest ran.
    Passed(Duration),
    /// The guest has failed and stands still.
    Failed(Failure),
    /// The dump that was asked for has ended, well or not.
    Dumped,
    /// The owner wants to try an image.
    Trial { image: Boot, within: Duration, sign: HealthySign },
    /// The guest was found healthy, and how.
    Healthy { reason: String },
    /// The image that this trial has committed in place of `before` cannot be kept.
    NotKept { trial: u64, before: Option<Boot>, reason: String },
    /// The owner ends the trial.
    FallBack,
    /// QEMU did not start, or has ended, with the image on trial.
    TrialLost { reason: String },
}

/// Why a request about images is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// An image is on trial already.
    OnTrial,
    /// None is.
    NothingOnTrial,
    /// The guest has failed, and its memory is being written.
    Dumping,
    /// A trial needs time.
    NoTime,
}

/// What is to be done, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Reset the guest and let it run.
    Reset,
    /// Write the guest's memory to a file; `Dumped` when that has ended.
    Dump,
    /// End this QEMU and boot the VM from [`Policy::image`].
    Relaunch {
        reason: String,
    },
    /// Stop the VM.
    Stop {
        reason: String,
    },
    /// Keep `image` on record as the committed one, which this trial has found healthy; `NotKept` with `before` if that fails.
    Keep {
        trial: u64,
        image: Boot,
        before: Option<Boot>,
        reason: String,
    },
    /// The request cannot be carried out.
    Refuse(Refused),
    Emit(Happened),
}

/// An event, comparable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    Failed { failure: Failure, action: WatchdogAction, count: u32 },
    TrialStarted { image: Boot, within_ms: u64 },
    FellBack { trial: u64, image: Boot, reason: String },
}

impl From<Happened> for EventKind {
    fn from(happened: Happened) -> Self {
        match happened {
            Happened::Failed { failure: Failure::Watchdog, action, count } => Self::WatchdogFired { action, count },
            Happened::Failed { failure: Failure::Panic, action, count } => Self::GuestPanicked { action, count },
            Happened::TrialStarted { image, within_ms } => Self::TrialStarted { image, within_ms },
            Happened::FellBack { trial: _, image, reason } => Self::FellBack { image, reason },
        }
    }
}

/// What follows a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Then {
    Reset,
    FallBack { reason: String },
}

/// See the [module](self).
#[derive(Debug, Clone)]
pub struct Policy {
    watchdog: Option<Watchdog>,
    /// The image of the VM's specification.
    configured: Boot,
    committed: Option<Boot>,
    trial: Option<OnTrial>,
    /// Numbers trials, for as long as the keeper lives: what becomes of one is not taken for another's.
    last_trial: u64,
    /// Failures that were acted on, by their age, oldest first.
    failures: Vec<Duration>,
    dumping: Option<Then>,
}

#[derive(Debug, Clone)]
struct OnTrial {
    number: u64,
    image: Boot,
    within: Duration,
    left: Duration,
    sign: HealthySign,
}

impl Policy {
    pub fn new(watchdog: Option<Watchdog>, configured: Boot, committed: Option<Boot>) -> Self {
        Self { watchdog, configured, committed, trial: None, last_trial: 0, failures: Vec::new(), dumping: None }
    }

    /// The image that the guest runs, or boots from next.
    pub fn image(&self) -> &Boot {
        self.trial.as_ref().map_or_else(|| self.committed(), |t| &t.image)
    }

    /// The committed image.
    pub fn committed(&self) -> &Boot {
        self.committed.as_ref().unwrap_or(&self.configured)
    }

    pub fn watchdog(&self) -> Option<&Watchdog> {
        self.watchdog.as_ref()
    }

    /// The number of the trial that is under way.
    pub fn trial_number(&self) -> Option<u64> {
        self.trial.as_ref().map(|t| t.number)
    }

    /// By what an image on trial is found healthy.
    pub fn sign(&self) -> Option<&HealthySign> {
        self.trial.as_ref().map(|t| &t.sign)
    }

    pub fn trial(&self) -> Option<Trial> {
        self.trial.as_ref().map(|t| Trial {
            image: t.image.clone(),
            within_ms: millis(t.within),
            left_ms: millis(t.left),
            sign: t.sign.clone(),
        })
    }

    /// What a backup has to know.
    pub fn health(&self) -> Health {
        Health {
            committed: self.committed.clone(),
            trial: self.trial(),
            failures_ms: self.failures.iter().map(|age| millis(*age)).collect(),
            pending: None,
            standing: GuestState::default(),
            freeze: None,
        }
    }

    /// Failures within the watchdog's period.
    pub fn failures(&self) -> u32 {
        u32::try_from(self.failures.len()).unwrap_or(u32::MAX)
    }

    /// Takes one input; appends what is to be done, in order.
    pub fn handle(&mut self, input: Input, out: &mut Vec<Decision>) {
        match input {
            Input::Boots { watchdog, committed } => {
                let last_trial = self.last_trial;
                *self = Self { last_trial, ..Self::new(watchdog, self.configured.clone(), committed) };
            }
            Input::TookOver { watchdog, health } => self.took_over(watchdog, health, out),
            Input::Passed(time) => self.passed(time, out),
            Input::Failed(failure) => self.failed(failure, out),
            Input::Dumped => match self.dumping.take() {
                Some(Then::Reset) => out.push(Decision::Reset),
                Some(Then::FallBack { reason }) => self.fall_back(reason, out),
                None => {}
            },
            Input::Trial { image, within, sign } => self.begin_trial(image, within, sign, out),
            Input::Healthy { reason } => self.healthy(reason, out),
            Input::NotKept { trial, before, reason } => {
                let image = self.committed().clone();
                self.committed = before;
                let reason = format!("the image cannot be kept: {reason}");
                out.push(Decision::Emit(Happened::FellBack { trial, image, reason: reason.clone() }));
                // A later trial boots an image of its own.
                if self.trial.is_none() {
                    out.push(Decision::Relaunch { reason });
                }
            }
            Input::FallBack if self.trial.is_some() => self.fall_back("asked for".into(), out),
            Input::FallBack => {
                out.push(Decision::Refuse(Refused::NothingOnTrial));
            }
            Input::TrialLost { reason } => {
                if self.trial.is_some() {
                    self.fall_back(reason, out);
                }
            }
        }
    }

    fn took_over(&mut self, watchdog: Option<Watchdog>, health: Health, out: &mut Vec<Decision>) {
        let Health { committed, trial, failures_ms, pending, standing: _, freeze: _ } = health;
        self.watchdog = watchdog;
        self.committed = committed;
        self.last_trial += 1;
        let number = self.last_trial;
        self.trial = trial.map(|t| OnTrial {
            number,
            image: t.image,
            within: Duration::from_millis(t.within_ms),
            left: Duration::from_millis(t.left_ms),
            sign: t.sign,
        });
        let surplus = failures_ms.len().saturating_sub(MAX_TIMES as usize);
        self.failures = failures_ms[surplus..].iter().map(|ms| Duration::from_millis(*ms)).collect();
        self.dumping = None;
        self.forget_old();
        if let Some(failure) = pending {
            self.failed(failure, out);
        }
    }

    fn passed(&mut self, time: Duration, out: &mut Vec<Decision>) {
        self.failures.iter_mut().for_each(|age| *age = age.saturating_add(time));
        self.forget_old();
        // The guest stands still while its memory is written.
        if self.dumping.is_some() {
            return;
        }
        if let Some(trial) = &mut self.trial {
            trial.left = trial.left.saturating_sub(time);
            if trial.left.is_zero() {
                let reason = format!("it was not found healthy within {} s", trial.within.as_secs_f64());
                self.fall_back(reason, out);
            }
        }
    }

    fn forget_old(&mut self) {
        let within = Duration::from_secs(self.watchdog.as_ref().map_or(0, |w| w.policy.within_s.into()));
        self.failures.retain(|age| *age < within);
    }

    fn failed(&mut self, failure: Failure, out: &mut Vec<Decision>) {
        let Some(watchdog) = &self.watchdog else { return };
        if self.dumping.is_some() {
            return;
        }
        let (action, times) = (watchdog.policy.action, watchdog.policy.times);
        if self.trial.is_some() {
            let reason = failure.to_string();
            let shown = if action == WatchdogAction::Dump { action } else { WatchdogAction::FallBack };
            out.push(Decision::Emit(Happened::Failed { failure, action: shown, count: 0 }));
            if action == WatchdogAction::Dump {
                self.dumping = Some(Then::FallBack { reason });
                out.push(Decision::Dump);
            } else {
                self.fall_back(reason, out);
            }
            return;
        }
        let count = self.failures() + 1;
        if count > times {
            let within = watchdog.policy.within_s;
            out.push(Decision::Emit(Happened::Failed { failure, action: WatchdogAction::Stop, count }));
            out.push(Decision::Stop { reason: format!("the guest failed {count} times within {within} s: {failure}") });
            return;
        }
        self.failures.push(Duration::ZERO);
        out.push(Decision::Emit(Happened::Failed { failure, action, count }));
        match action {
            WatchdogAction::Reset => out.push(Decision::Reset),
            WatchdogAction::Dump => {
                self.dumping = Some(Then::Reset);
                out.push(Decision::Dump);
            }
            WatchdogAction::FallBack => out.push(Decision::Relaunch { reason: format!("the guest failed: {failure}") }),
            WatchdogAction::Stop => out.push(Decision::Stop { reason: format!("the guest failed: {failure}") }),
        }
    }

    fn begin_trial(&mut self, image: Boot, within: Duration, sign: HealthySign, out: &mut Vec<Decision>) {
        let refusal = if self.trial.is_some() {
            Some(Refused::OnTrial)
        } else if self.dumping.is_some() {
            Some(Refused::Dumping)
        } else if within.is_zero() {
            Some(Refused::NoTime)
        } else {
            None
        };
        if let Some(refused) = refusal {
            out.push(Decision::Refuse(refused));
            return;
        }
        let within_ms = millis(within);
        self.last_trial += 1;
        self.trial = Some(OnTrial { number: self.last_trial, image: image.clone(), within, left: within, sign });
        out.push(Decision::Emit(Happened::TrialStarted { image, within_ms }));
        out.push(Decision::Relaunch { reason: "an image is tried".into() });
    }

    fn healthy(&mut self, reason: String, out: &mut Vec<Decision>) {
        if self.dumping.is_some() || self.trial.is_none() {
            out.push(Decision::Refuse(Refused::NothingOnTrial));
            return;
        }
        let Some(trial) = self.trial.take() else { return };
        let before = self.committed.take();
        // The image of the specification needs no record.
        self.committed = (trial.image != self.configured).then(|| trial.image.clone());
        out.push(Decision::Keep { trial: trial.number, image: trial.image, before, reason });
    }

    /// What this host's record of the committed image has to say.
    pub fn record(&self) -> Option<&Boot> {
        self.committed.as_ref()
    }

    fn fall_back(&mut self, reason: String, out: &mut Vec<Decision>) {
        let Some(trial) = self.trial.take() else { return };
        self.dumping = None;
        let OnTrial { number, image, .. } = trial;
        out.push(Decision::Emit(Happened::FellBack { trial: number, image, reason: reason.clone() }));
        out.push(Decision::Relaunch { reason: format!("the image on trial failed: {reason}") });
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use ninefold_model::health::WatchdogPolicy;
    use proptest::prelude::*;

    use super::*;

    fn image(n: u8) -> Boot {
        Boot::BootSector { image: format!("/image-{n}").into() }
    }

    fn policy(action: WatchdogAction, times: u32) -> Policy {
        let policy = WatchdogPolicy { times, within_s: 60, ..WatchdogPolicy::new(action) };
        Policy::new(Some(Watchdog { policy, ..Watchdog::new(action) }), image(0), None)
    }

    fn take(p: &mut Policy, input: Input) -> Vec<Decision> {
        let mut out = Vec::new();
        p.handle(input, &mut out);
        // Events are checked where they matter.
        out.retain(|d| !matches!(d, Decision::Emit(_)));
        out
    }

    fn trial(n: u8, seconds: u64) -> Input {
        Input::Trial { image: image(n), within: Duration::from_secs(seconds), sign: HealthySign::Asked }
    }

    const FIRED: Input = Input::Failed(Failure::Watchdog);

    fn relaunches(out: &[Decision]) -> bool {
        matches!(out, [Decision::Relaunch { .. }])
    }

    #[test]
    fn each_action() {
        assert_eq!(take(&mut policy(WatchdogAction::Reset, 3), FIRED), [Decision::Reset]);
        let mut dumps = policy(WatchdogAction::Dump, 3);
        assert_eq!(take(&mut dumps, FIRED), [Decision::Dump]);
        assert_eq!(take(&mut dumps, FIRED), [], "one at a time");
        assert_eq!(take(&mut dumps, Input::Dumped), [Decision::Reset]);
        assert_eq!(take(&mut dumps, Input::Dumped), [], "a dump that somebody else asked for");
        assert!(relaunches(&take(&mut policy(WatchdogAction::FallBack, 3), FIRED)));
        assert!(matches!(take(&mut policy(WatchdogAction::Stop, 3), FIRED)[..], [Decision::Stop { .. }]));
        let mut none = Policy::new(None, image(0), None);
        assert_eq!(take(&mut none, FIRED), [], "nobody asked for it");
    }

    #[test]
    fn a_loop_ends() {
        let mut p = policy(WatchdogAction::Reset, 2);
        assert_eq!(take(&mut p, FIRED), [Decision::Reset]);
        assert_eq!(take(&mut p, Input::Failed(Failure::Panic)), [Decision::Reset]);
        assert!(matches!(take(&mut p, FIRED)[..], [Decision::Stop { .. }]));
        let mut p = policy(WatchdogAction::Reset, 2);
        for _ in 0..10 {
            assert_eq!(take(&mut p, FIRED), [Decision::Reset], "seldom enough");
            take(&mut p, Input::Passed(Duration::from_secs(31)));
        }
    }

    #[test]
    fn a_trial_that_is_healthy() {
        let mut p = policy(WatchdogAction::Reset, 3);
        assert!(relaunches(&take(&mut p, trial(1, 10))));
        assert_eq!((p.image(), p.committed()), (&image(1), &image(0)));
        assert!(matches!(take(&mut p, trial(2, 10))[..], [Decision::Refuse(_)]));
        assert_eq!(take(&mut p, Input::Passed(Duration::from_secs(9))), []);
        let kept = take(&mut p, Input::Healthy { reason: "asked".into() });
        assert_eq!(kept, [Decision::Keep { trial: 1, image: image(1), before: None, reason: "asked".into() }]);
        assert_eq!(take(&mut p, Input::Passed(Duration::from_secs(9))), [], "the trial is over");
        assert_eq!((p.image(), p.committed(), p.record()), (&image(1), &image(1), Some(&image(1))));
        // Back to what the specification says: nothing to remember.
        take(&mut p, trial(0, 10));
        take(&mut p, Input::Healthy { reason: String::new() });
        assert_eq!((p.image(), p.record()), (&image(0), None));
    }

    #[test]
    fn a_trial_that_is_not() {
        for action in [WatchdogAction::Reset, WatchdogAction::Stop, WatchdogAction::FallBack] {
            let mut p = policy(action, 1);
            take(&mut p, trial(1, 10));
            assert!(relaunches(&take(&mut p, FIRED)), "{action}");
            assert_eq!((p.image(), p.trial()), (&image(0), None));
            assert_eq!(p.failures(), 0, "the committed image is not to blame");
        }
        let mut p = policy(WatchdogAction::Dump, 1);
        take(&mut p, trial(1, 10));
        assert_eq!(take(&mut p, Input::Failed(Failure::Panic)), [Decision::Dump]);
        assert_eq!(take(&mut p, Input::Passed(Duration::from_secs(60))), [], "it stands still");
        assert!(relaunches(&take(&mut p, Input::Dumped)));
        take(&mut p, trial(1, 10));
        assert_eq!(take(&mut p, Input::Passed(Duration::from_secs(9))), []);
        assert!(relaunches(&take(&mut p, Input::Passed(Duration::from_secs(1)))));
        take(&mut p, trial(1, 10));
        assert!(relaunches(&take(&mut p, Input::FallBack)));
        assert!(matches!(take(&mut p, Input::FallBack)[..], [Decision::Refuse(_)]));
        take(&mut p, trial(1, 10));
        assert!(relaunches(&take(&mut p, Input::TrialLost { reason: "no such file".into() })));
        assert_eq!(take(&mut p, Input::TrialLost { reason: String::new() }), []);
    }

    #[test]
    fn an_image_that_cannot_be_kept_is_not_committed() {
        let mut p = policy(WatchdogAction::Reset, 3);
        take(&mut p, trial(1, 10));
        take(&mut p, Input::Healthy { reason: String::new() });
        assert!(relaunches(&take(&mut p, Input::NotKept { trial: 1, before: None, reason: "disk full".into() })));
        assert_eq!(p.image(), &image(0));
    }

    #[test]
    fn a_failure_that_nobody_acted_on_is_acted_on_after_a_take_over() {
        let watchdog = Some(Watchdog::new(WatchdogAction::Reset));
        let mut p = Policy::new(None, image(0), None);
        let health = Health { pending: Some(Failure::Panic), ..Health::default() };
        assert_eq!(take(&mut p, Input::TookOver { watchdog, health }), [Decision::Reset]);
    }

    fn input() -> impl Strategy<Value = Input> {
        prop_oneof![
            4 => (0..40u64).prop_map(|s| Input::Passed(Duration::from_secs(s))),
            4 => prop_oneof![Just(FIRED), Just(Input::Failed(Failure::Panic))],
            3 => Just(Input::Dumped),
            2 => (0..4u8, 0..30u64).prop_map(|(n, s)| trial(n, s)),
            1 => Just(Input::Healthy { reason: "asked".into() }),
            1 => Just(Input::FallBack),
            1 => Just(Input::TrialLost { reason: "no".into() }),
        ]
    }

    fn action() -> impl Strategy<Value = WatchdogAction> {
        use WatchdogAction::{Dump, FallBack, Reset, Stop};
        prop_oneof![Just(Reset), Just(Dump), Just(FallBack), Just(Stop)]
    }

    proptest! {
        /// Whatever happens: at most `times` failures within the period are acted on otherwise than by stopping; a trial
        /// ends in its time; the committed image changes only when the one on trial was found healthy.
        #[test]
        fn bounded(action in action(), times in 0..4u32, inputs in prop::collection::vec(input(), 0..80)) {
            let mut p = policy(action, times);
            let mut now = Duration::ZERO;
            let mut acted: Vec<Duration> = Vec::new();
            let mut ran = Duration::ZERO;
            for input in inputs {
                let (committed, on_trial) = (p.committed().clone(), p.trial());
                let mut out = Vec::new();
                p.handle(input.clone(), &mut out);
                if let Input::Passed(time) = input {
                    now += time;
                    ran += time;
                }
                for decision in &out {
                    match decision {
                        Decision::Emit(Happened::Failed { action, count, .. }) if on_trial.is_none() => {
                            prop_assert!(*count <= times + 1);
                            if *action != WatchdogAction::Stop {
                                acted.push(now);
                            }
                        }
                        Decision::Stop { .. } => prop_assert!(out.len() == 2),
                        Decision::Relaunch { .. } if p.trial().is_some() => ran = Duration::ZERO,
                        Decision::Relaunch { .. } => prop_assert_eq!(p.image(), p.committed()),
                        _ => {}
                    }
                }
                acted.retain(|at| now - *at < Duration::from_secs(60));
                prop_assert!(acted.len() <= times as usize);
                if p.committed() != &committed {
                    let healthy = matches!(input, Input::Healthy { .. });
                    prop_assert!(healthy);
                    prop_assert_eq!(Some(p.committed()), on_trial.as_ref().map(|t| &t.image));
                }
                if let Some(trial) = p.trial() {
                    prop_assert!(trial.left_ms > 0 && trial.left_ms <= trial.within_ms);
                    let dumps = p.dumping.is_some();
                    prop_assert!(dumps || ran < Duration::from_millis(trial.within_ms) || action == WatchdogAction::Dump);
                }
            }
        }

        /// A host that takes over decides as the former one would have.
        #[test]
        fn a_take_over_changes_nothing(
            action in action(),
            times in 0..4u32,
            before in prop::collection::vec(input(), 0..40),
            after in prop::collection::vec(input(), 0..40),
        ) {
            let mut old = policy(action, times);
            before.into_iter().for_each(|i| old.handle(i, &mut Vec::new()));
            // A dump is not taken over: the failure that led to it is pending, or is to come again.
            old.handle(Input::Dumped, &mut Vec::new());
            let mut new = Policy::new(None, image(0), None);
            let health = serde_json::from_str(&serde_json::to_string(&old.health()).unwrap()).unwrap();
            prop_assert_eq!(take(&mut new, Input::TookOver { watchdog: old.watchdog.clone(), health }), []);
            // Each keeper numbers trials for itself.
            new.last_trial = old.last_trial;
            if let (Some(new), Some(old)) = (&mut new.trial, &old.trial) {
                new.number = old.number;
            }
            for input in after {
                let (mut a, mut b) = (Vec::new(), Vec::new());
                old.handle(input.clone(), &mut a);
                new.handle(input, &mut b);
                prop_assert_eq!(a, b);
                prop_assert_eq!(old.health(), new.health());
            }
        }
    }
}
