//! What QEMU's two offsets are to be. Pure: it is given all times.

/// A pair that belongs together: the host's clocks, or QEMU's two numbers (offsets to them while the guest runs, the guest's
/// own time while it stands still). `clock` in nanoseconds, `ticks` of the TSC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Reading {
    pub clock: i64,
    pub ticks: i64,
}

impl Reading {
    fn plus(self, other: Reading) -> Reading {
        Reading { clock: self.clock.wrapping_add(other.clock), ticks: self.ticks.wrapping_add(other.ticks) }
    }

    fn minus(self, other: Reading) -> Reading {
        Reading { clock: self.clock.wrapping_sub(other.clock), ticks: self.ticks.wrapping_sub(other.ticks) }
    }

    fn at_least(self, other: Reading) -> Reading {
        Reading { clock: self.clock.max(other.clock), ticks: self.ticks.max(other.ticks) }
    }

    /// What `clock` nanoseconds are at the rate of this span, which has some.
    fn at_rate(self, clock: i64) -> Reading {
        let ticks = i128::from(self.ticks) * i128::from(clock) / i128::from(self.clock);
        Reading { clock, ticks: i64::try_from(ticks).unwrap_or(0) }
    }
}

/// The offsets that the guest is to have for as long as it lives here.
///
/// What passes between [`Timeline::go_on`] and QEMU's own reading of its clocks is lost for the moment, some 0.1 ms. The next
/// pause gives it back, because the offsets are not those of the last pause but those of the first: errors do not add up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Timeline {
    /// Not known before the guest has been stopped once.
    offsets: Option<Reading>,
    /// What the guest has seen when it was stopped. None when it stood still before.
    still: Option<Reading>,
    /// A gap, as far as the guest has not been given it yet.
    owed: Reading,
    /// Of the host's clock, when the guest was last given some of it.
    given: i64,
    /// So much is given at once at most, nanoseconds; None: any.
    most: Option<i64>,
}

/// A gap that is slewed is given back by so much of the time that passes.
const SLEW: i64 = 20;

impl Timeline {
    /// Of a guest that is given no more than `most` nanoseconds at once. What it is not given is lost to it.
    pub(super) fn at_most(most: Option<i64>) -> Timeline {
        Timeline { most, ..Timeline::default() }
    }

    /// From what the guest has seen to what it would see, or as far as it may.
    fn bounded(&self, still: Reading, target: Reading) -> Reading {
        let leap = target.minus(still);
        match self.most.filter(|most| leap.clock > *most) {
            Some(most) => still.plus(leap.at_rate(most)),
            None => target,
        }
    }

    /// QEMU had `before` when it was told to stop the guest and has `still` now.
    pub(super) fn stopped(&mut self, before: Reading, still: Reading) {
        if before == still {
            // Somebody else has stopped it, and says when it goes on. That time is not ours to give.
            self.forget();
            return;
        }
        // QEMU makes its offset to the TSC larger when that has begun anew, after a suspension of the host.
        self.offsets = Some(self.offsets.map_or(before, |known| known.at_least(before)));
        self.still = Some(still);
    }

    /// The pause ends at `now`: what to write. Never less than the guest has seen. None when the guest stood still before.
    pub(super) fn go_on(&mut self, now: Reading) -> Option<Reading> {
        let (still, offsets) = (self.still.take()?, self.offsets?);
        let target = offsets.plus(now).plus(self.due(now)).at_least(still);
        let target = self.bounded(still, target);
        self.offsets = Some(target.minus(now));
        Some(target)
    }

    /// What is due of the gap.
    fn due(&mut self, now: Reading) -> Reading {
        if !self.owes() {
            return Reading::default();
        }
        let part = self.owed.at_rate((now.clock.saturating_sub(self.given) / SLEW).clamp(0, self.owed.clock));
        self.owed = self.owed.minus(part);
        self.given = now.clock;
        part
    }

    /// Whether a part of a gap is still to be given.
    pub(super) fn owes(&self) -> bool {
        self.owed.clock > 0
    }

    /// The guest has stood still and is not given that time.
    pub(super) fn forget(&mut self) {
        (self.offsets, self.still) = (None, None);
    }

    /// A guest that has seen `still` in another QEMU begins to run at `now`, `gap` later, which it is given at once or is owed:
    /// what to write.
    pub(super) fn begin(&mut self, still: Reading, now: Reading, gap: Reading, slewed: bool) -> Reading {
        let (given, owed) = if slewed { (Reading::default(), gap) } else { (gap, Reading::default()) };
        let target = self.bounded(still, still.plus(given).at_least(still));
        *self = Timeline { offsets: Some(target.minus(now)), still: None, owed, given: now.clock, most: self.most };
        target
    }
}

/// `nanoseconds` as the TSC counts them, which is measured between two readings.
pub(super) fn span(nanoseconds: u64, early: Reading, now: Reading) -> Reading {
    let passed = now.minus(early);
    let clock = i64::try_from(nanoseconds).unwrap_or(i64::MAX);
    match (passed.clock, passed.ticks) {
        (1.., 1..) => passed.at_rate(clock),
        _ => Reading { clock, ticks: 0 },
    }
}

/// What a saved device state says that the guest has seen: QEMU's section `timer`, version 2: an instance (32 bits, 0), the
/// version (32 bits), the ticks, eight unused bytes, the clock; all big-endian.
pub(super) fn saved(state: &[u8]) -> Option<Reading> {
    let at = section(state)?;
    let number = |at: usize| Some(i64::from_be_bytes(state.get(at..at + 8)?.try_into().ok()?));
    Some(Reading { clock: number(at + 16)?, ticks: number(at)? })
}

/// Where that section's ticks are. Only if there is one such section.
fn section(state: &[u8]) -> Option<usize> {
    const HEAD: &[u8] = b"\x05timer\0\0\0\0\0\0\0\x02";
    let mut found = state.windows(HEAD.len() + 24).enumerate().filter(|(_, window)| window.starts_with(HEAD));
    let (at, _) = found.next()?;
    found.next().is_none().then_some(at + HEAD.len())
}

/// A state that was saved while the guest's clocks ran has the offsets to the host's. Puts there what the guest sees at `now`
/// instead; false if the state has no such section. Does not allocate.
pub(super) fn settle(state: &mut [u8], now: Reading) -> bool {
    let (Some(at), Some(offsets)) = (section(state), saved(state)) else { return false };
    let still = offsets.plus(now);
    for (number, at) in [(still.ticks, at), (still.clock, at + 16)] {
        let Some(place) = state.get_mut(at..at + 8) else { return false };
        place.copy_from_slice(&number.to_be_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a state says that was saved while the guest's clocks ran.
    #[test]
    fn offsets_become_what_the_guest_sees() {
        let head = b"..\x05timer\0\0\0\0\0\0\0\x02";
        let mut state = [&head[..], &(-70_i64).to_be_bytes(), &[0; 8], &(-900_i64).to_be_bytes(), b".."].concat();
        assert!(settle(&mut state, Reading { clock: 1000, ticks: 100 }));
        assert_eq!(saved(&state), Some(Reading { clock: 100, ticks: 30 }));
        assert!(!settle(&mut state[5..], Reading::default()), "nothing is known of such a state");
        let mut twice = [state.clone(), state].concat();
        assert!(!settle(&mut twice, Reading::default()));
    }

    /// The time of a hardware watchdog leaps with the clock, and the guest cannot answer before it has run.
    #[test]
    fn a_long_pause_is_not_given_to_a_guest_with_a_watchdog() {
        let mut timeline = Timeline::at_most(Some(500));
        timeline.stopped(Reading { clock: 10, ticks: 30 }, at(1000));
        let target = timeline.go_on(at(9000)).unwrap();
        assert_eq!(target.clock, 1500);
        assert!((target.ticks - at(1500).ticks).abs() < 100, "{target:?}");
        // From there on as ever.
        timeline.stopped(target.minus(at(9000)), target.plus(Reading { clock: 100, ticks: 300 }));
        assert_eq!(timeline.go_on(at(9300)).unwrap().clock, 1800);
        assert_eq!(timeline.begin(at(5), at(9400), Reading { clock: 900, ticks: 2700 }, false).clock, 505);
    }

    fn at(clock: i64) -> Reading {
        // A TSC of 3 GHz that began elsewhere.
        Reading { clock, ticks: clock * 3 + 77 }
    }

    /// QEMU's own arithmetic.
    struct Qemu {
        numbers: Reading,
        runs: bool,
    }

    impl Qemu {
        fn stop(&mut self, now: Reading) -> (Reading, Reading) {
            let before = self.numbers;
            if std::mem::take(&mut self.runs) {
                self.numbers = self.numbers.plus(now);
            }
            (before, self.numbers)
        }

        fn cont(&mut self, now: Reading) {
            if !std::mem::replace(&mut self.runs, true) {
                self.numbers = self.numbers.minus(now);
            }
        }

        fn sees(&self, now: Reading) -> Reading {
            if self.runs { self.numbers.plus(now) } else { self.numbers }
        }
    }

    proptest! {
        /// However long pauses and QEMU's reactions are: the guest's time is never more than one reaction behind, and never
        /// goes back.
        #[test]
        fn no_pause_is_lost(pauses in prop::collection::vec((1i64..50_000_000, 1i64..50_000_000, 0i64..1_000_000), 1..200)) {
            let mut time = 5_000_000_000;
            let mut qemu = Qemu { numbers: Reading::default(), runs: false };
            qemu.cont(at(time));
            let born = at(time);
            let mut timeline = Timeline::default();
            let mut seen = Reading::default();
            for (ran, paused, reaction) in pauses {
                time += ran;
                let (before, still) = qemu.stop(at(time));
                prop_assert!(still.at_least(seen) == still, "time went back");
                timeline.stopped(before, still);
                time += paused;
                let target = timeline.go_on(at(time)).unwrap();
                prop_assert_eq!(target, at(time).minus(born));
                qemu.numbers = target;
                time += reaction;
                qemu.cont(at(time));
                seen = qemu.sees(at(time));
                prop_assert_eq!(at(time).minus(born).minus(seen).clock, reaction);
            }
        }
    }

    #[test]
    fn a_guest_that_somebody_else_has_stopped_is_given_nothing() {
        let mut qemu = Qemu { numbers: Reading::default(), runs: false };
        qemu.cont(at(1000));
        qemu.stop(at(5000));
        let mut timeline = Timeline::default();
        let (before, still) = qemu.stop(at(7000));
        timeline.stopped(before, still);
        assert_eq!(timeline.go_on(at(9000)), None);
        // From there on it is as with a new guest.
        qemu.cont(at(10_000));
        let (before, still) = qemu.stop(at(11_000));
        timeline.stopped(before, still);
        assert_eq!(timeline.go_on(at(15_000)).unwrap().clock, 4000 + 5000);
    }

    #[test]
    fn a_tsc_that_has_begun_anew_does_not_take_the_guest_back() {
        let mut qemu = Qemu { numbers: Reading::default(), runs: false };
        qemu.cont(at(1000));
        let mut timeline = Timeline::default();
        let (before, still) = qemu.stop(at(5000));
        timeline.stopped(before, still);
        let reset = Reading { clock: 6000, ticks: 3 };
        let target = timeline.go_on(reset).unwrap();
        assert_eq!(target, Reading { clock: 5000, ticks: still.ticks });
        qemu.numbers = target;
        qemu.cont(reset);
        let later = Reading { clock: 7000, ticks: 3003 };
        let (before, still) = qemu.stop(later);
        timeline.stopped(before, still);
        let later = Reading { clock: 8000, ticks: 6003 };
        assert_eq!(timeline.go_on(later).unwrap(), Reading { clock: 7000, ticks: target.ticks + 6000 });
    }

    #[test]
    fn a_gap_is_given_back_in_both_clocks() {
        let gap = span(500_000_000, at(1_000_000), at(2_000_000_000));
        assert_eq!(gap, Reading { clock: 500_000_000, ticks: 1_500_000_000 });
        let still = Reading { clock: 40, ticks: 90 };
        let mut timeline = Timeline::default();
        assert_eq!(timeline.begin(still, at(10), gap, false), still.plus(gap));
        assert_eq!(timeline.begin(still, at(10), span(0, at(0), at(5)), false), still);
        // The next pause gives back what QEMU took to start.
        let mut qemu = Qemu { numbers: still, runs: false };
        qemu.cont(at(1010));
        let (before, seen) = qemu.stop(at(3010));
        timeline.stopped(before, seen);
        assert_eq!(timeline.go_on(at(4010)).unwrap().clock, 40 + 4000);
        // Clocks that cannot be measured by each other give no ticks, and no step back.
        assert_eq!(span(1000, at(5), at(5)), Reading { clock: 1000, ticks: 0 });
    }

    #[test]
    fn a_gap_that_is_slewed_is_given_back_little_by_little_and_as_a_whole() {
        let (ms, still) = (1_000_000, Reading { clock: 40, ticks: 90 });
        let gap = span(300 * ms as u64, at(0), at(1000 * ms));
        let mut timeline = Timeline::default();
        let mut qemu = Qemu { numbers: timeline.begin(still, at(0), gap, true), runs: false };
        assert_eq!(qemu.numbers, still);
        let mut time = 0;
        while timeline.owes() {
            let began = time;
            qemu.cont(at(time));
            time += 90 * ms;
            let (before, seen) = qemu.stop(at(time));
            timeline.stopped(before, seen);
            time += 10 * ms;
            let target = timeline.go_on(at(time)).unwrap();
            let faster = target.minus(qemu.numbers).clock - 10 * ms;
            assert!((0..=5 * ms).contains(&faster), "{faster} ns in {} ns", time - began);
            qemu.numbers = target;
        }
        assert_eq!(time, 20 * 300 * ms);
        assert_eq!(qemu.numbers, still.plus(gap).plus(at(time)).minus(at(0)));
    }

    #[test]
    fn the_saved_time_is_understood_or_not_at_all() {
        let mut state = b"QEVM junk\x05timer\0\0\0\0\0\0\0\x02".to_vec();
        state.extend_from_slice(&123_i64.to_be_bytes());
        state.extend_from_slice(&[0; 8]);
        state.extend_from_slice(&456_i64.to_be_bytes());
        assert_eq!(saved(&state), Some(Reading { clock: 456, ticks: 123 }));
        assert_eq!(saved(&state[..state.len() - 1]), None, "cut");
        let twice = [state.clone(), state].concat();
        assert_eq!(saved(&twice), None, "ambiguous");
        assert_eq!(saved(&[]), None);
    }
}
