//! What is said of a host's disks, and when a primary leaves them. Pure: what was seen goes in, what is to be done comes out.
//!
//! ```text
//!            an error                                no error, and it answers
//!   works ──────────────► fails ──────────────────────────────────────────────────► works
//!     │   no answer for SLOW        no answer for SLOW was given for CALM            ▲
//!     └──────────────────► slow ─────────────────────────────────────────────────────┘
//! ```
//!
//! A primary whose disk does not get on loses nothing by it as long as a backup has what the guest does: it goes on from
//! memory. But what it holds grows, up to a bound at which its guest stands still. So it leaves: a disk that fails, after
//! [`FAILS`] (one that is only full when more is held than should be); a disk that does not answer at all, after [`HANGS`]; one
//! that is so slow that the guest has been slowed down a good deal, after [`CROWDED_FOR`].

use std::time::Duration;

use crate::settings::Budget;
use crate::time::Monotonic;

/// An error that passes sooner is not worth a switchover.
pub const FAILS: Duration = Duration::from_secs(1);
/// A disk that has not answered for so long is slow, and that is said.
pub const SLOW: Duration = Duration::from_secs(2);
/// One that has answered for so long is slow no more.
pub const CALM: Duration = Duration::from_secs(5);
/// One that has neither answered for so long, nor got on with what it was asked, hangs. A log's disk is given the same time.
pub const HANGS: Duration = Duration::from_secs(10);
/// A host that has held so many for so long is left.
pub const CROWDED_FOR: Duration = Duration::from_secs(10);
/// A disk that is slow or hangs is not left by a VM that has come to it less than this before: if those of both hosts are slow,
/// nothing is won.
pub const SETTLED: Duration = Duration::from_secs(60);

/// Why a volume cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error with its causes.
    pub reason: String,
    /// The file system, or the thin device, is full: what is there can still be read.
    pub out_of_space: bool,
}

/// How a volume is when it is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Look {
    pub failure: Option<Failure>,
    /// For how long its disk has not answered, nor got on.
    pub stalled: Option<Duration>,
}

/// What is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Of the volume with this number.
    Failed(usize, String),
    Slow(usize, Duration),
    Recovered(usize),
    /// So many bytes are held: the guest's writes wait.
    Full(usize),
    /// They do not any more.
    Room,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Works,
    /// It last had not answered for long at that time.
    Slow(Monotonic),
    Fails(Failure),
}

/// See the [module](self).
#[derive(Debug)]
pub struct DiskWatch {
    volumes: Vec<State>,
    budget: Budget,
    full: bool,
    fails_since: Option<Monotonic>,
    crowded_since: Option<Monotonic>,
    /// No further attempt to leave before that.
    not_before: Option<Monotonic>,
}

impl DiskWatch {
    pub fn new(volumes: usize, budget: Budget) -> Self {
        Self {
            volumes: vec![State::Works; volumes],
            budget,
            full: false,
            fails_since: None,
            crowded_since: None,
            not_before: None,
        }
    }

    /// How things are now. `primary_for`: how long ago the VM has come here, if it is here; for ever if it was booted here. Answers why it should go to another host, if it
    /// should.
    pub fn look(
        &mut self,
        now: Monotonic,
        looks: &[Look],
        held: usize,
        primary_for: Option<Duration>,
        said: &mut Vec<Said>,
    ) -> Option<String> {
        for (n, (state, look)) in self.volumes.iter_mut().zip(looks).enumerate() {
            let stalled = look.stalled.filter(|time| *time >= SLOW);
            let next = match (&look.failure, stalled, &*state) {
                (Some(failure), ..) => State::Fails(failure.clone()),
                (None, Some(_), _) => State::Slow(now),
                (None, None, State::Slow(last)) if now.since(*last) < CALM => continue,
                (None, None, _) => State::Works,
            };
            match (&*state, &next) {
                (State::Fails(_), State::Fails(_))
                | (State::Slow(_), State::Slow(_))
                | (State::Works, State::Works) => {}
                (_, State::Fails(failure)) => said.push(Said::Failed(n, failure.reason.clone())),
                (_, State::Slow(_)) => said.push(Said::Slow(n, stalled.unwrap_or(SLOW))),
                (_, State::Works) => said.push(Said::Recovered(n)),
            }
            *state = next;
        }
        let (soft, crowded) = (self.budget.soft, self.budget.crowded());
        let full = held >= self.budget.hard || (self.full && held > crowded);
        if full != std::mem::replace(&mut self.full, full) {
            said.push(if full { Said::Full(held) } else { Said::Room });
        }
        let since = |on: bool, since: &mut Option<Monotonic>| {
            *since = on.then(|| since.unwrap_or(now));
            since.map(|since| now.since(since))
        };
        let bad = looks.iter().filter_map(|l| l.failure.as_ref()).find(|f| !f.out_of_space || held > soft);
        let fails = since(bad.is_some(), &mut self.fails_since).is_some_and(|time| time >= FAILS);
        let too_slow = since(held > crowded, &mut self.crowded_since).is_some_and(|time| time >= CROWDED_FOR);
        let primary_for = primary_for?;
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        let settled = primary_for >= SETTLED;
        let hangs = looks.iter().filter_map(|l| l.stalled).max().filter(|time| *time >= HANGS && settled);
        match (bad.filter(|_| fails), hangs) {
            (Some(failure), _) => Some(format!("a volume fails here: {}", failure.reason)),
            (None, Some(time)) => Some(format!("a disk has not answered here for {} s", time.as_secs())),
            (None, None) if too_slow && settled => {
                Some(format!("the disks here are slower than the guest: {} MiB are held", held >> 20))
            }
            (None, None) => None,
        }
    }

    /// It has been tried. If nothing comes of it, it is tried again after a while.
    pub fn tried(&mut self, now: Monotonic) {
        self.not_before = Some(now + 2 * FAILS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOFT: usize = 64 << 20;
    const HARD: usize = 512 << 20;
    const BUDGET: Budget = Budget { soft: SOFT, hard: HARD };
    const CROWDED: usize = BUDGET.crowded();
    const LONG: Option<Duration> = Some(Duration::from_secs(3600));

    fn stalled(seconds: u64) -> Look {
        Look { stalled: Some(Duration::from_secs(seconds)), ..Look::default() }
    }

    fn fails(out_of_space: bool) -> Look {
        Look { failure: Some(Failure { reason: "broken".into(), out_of_space }), ..Look::default() }
    }

    /// A watch and a clock that somebody turns.
    struct Bench(DiskWatch, Monotonic);

    impl Bench {
        fn new() -> Self {
            Self(DiskWatch::new(1, BUDGET), Monotonic::from_micros(0))
        }

        fn after(&mut self, time: Duration, look: &Look, held: usize) -> (Vec<Said>, Option<String>) {
            self.1 += time;
            let mut said = Vec::new();
            let leave = self.0.look(self.1, std::slice::from_ref(look), held, LONG, &mut said);
            (said, leave)
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_disk_that_hangs_without_an_error_is_said_to_be_slow_and_left() {
        let mut bench = Bench::new();
        assert_eq!(bench.after(SECOND, &stalled(1), 0), (vec![], None));
        assert_eq!(bench.after(SECOND, &stalled(2), 0), (vec![Said::Slow(0, SLOW)], None));
        assert_eq!(bench.after(SECOND * 7, &stalled(9), 0), (vec![], None));
        let (said, leave) = bench.after(SECOND, &stalled(10), 0);
        assert!(said.is_empty() && leave.as_ref().is_some_and(|why| why.contains("has not answered")), "{leave:?}");
        // Not at once again.
        bench.0.tried(bench.1);
        assert_eq!(bench.after(SECOND, &stalled(11), 0), (vec![], None));
        assert!(bench.after(SECOND, &stalled(12), 0).1.is_some());
    }

    /// One that answers now and then is not said to work again each time.
    #[test]
    fn a_slow_disk_is_said_to_be_one_once() {
        let mut bench = Bench::new();
        assert_eq!(bench.after(SECOND, &stalled(2), 0).0, [Said::Slow(0, SLOW)]);
        for _ in 0..5 {
            assert_eq!(bench.after(SECOND, &Look::default(), 0).0, []);
            assert_eq!(bench.after(SECOND * 3, &stalled(3), 0).0, []);
        }
        assert_eq!(bench.after(CALM, &Look::default(), 0).0, [Said::Recovered(0)]);
    }

    #[test]
    fn a_disk_that_fails_is_left_and_one_that_is_full_only_when_much_is_held() {
        let mut bench = Bench::new();
        let (said, leave) = bench.after(SECOND, &fails(false), 0);
        assert_eq!((said, leave), (vec![Said::Failed(0, "broken".into())], None));
        assert!(bench.after(FAILS, &fails(false), 0).1.is_some());
        let mut bench = Bench::new();
        bench.after(SECOND, &fails(true), SOFT);
        assert_eq!(bench.after(FAILS * 9, &fails(true), SOFT), (vec![], None));
        bench.after(SECOND, &fails(true), SOFT + 1);
        assert!(bench.after(FAILS, &fails(true), SOFT + 1).1.is_some());
        assert_eq!(bench.after(SECOND, &Look::default(), 0), (vec![Said::Recovered(0)], None));
    }

    /// A host whose disk is slower than its guest; not if the VM has just come from another.
    #[test]
    fn a_disk_that_is_slower_than_its_guest_is_left() {
        let mut bench = Bench::new();
        assert_eq!(bench.after(SECOND, &Look::default(), CROWDED + 1), (vec![], None));
        let (_, leave) = bench.after(CROWDED_FOR, &Look::default(), CROWDED + 1);
        assert!(leave.as_ref().is_some_and(|why| why.contains("slower than the guest")), "{leave:?}");
        let mut said = Vec::new();
        let young = Some(SETTLED.saturating_sub(SECOND));
        assert_eq!(bench.0.look(bench.1, &[Look::default()], CROWDED + 1, young, &mut said), None);
        assert_eq!(bench.after(SECOND, &Look::default(), CROWDED), (vec![], None));
        assert_eq!(bench.after(SECOND, &Look::default(), CROWDED + 1), (vec![], None), "the time begins anew");
        // Who is not the primary leaves nothing.
        assert_eq!(bench.0.look(bench.1, &[stalled(60)], HARD, None, &mut said), None);
    }

    /// If the disks of both hosts hang, the VM does not change its host every ten seconds.
    #[test]
    fn a_disk_that_hangs_is_not_left_by_a_vm_that_has_just_come() {
        let (mut bench, mut said) = (Bench::new(), Vec::new());
        let mut leave = |here: Duration| bench.0.look(bench.1, &[stalled(30)], 0, Some(here), &mut said);
        assert_eq!(leave(SETTLED.saturating_sub(SECOND)), None);
        assert!(leave(SETTLED).is_some());
        assert_eq!(said, [Said::Slow(0, SECOND * 30)], "it is said all the same");
    }

    #[test]
    fn a_guest_that_stands_still_is_told_of() {
        let mut bench = Bench::new();
        assert_eq!(bench.after(SECOND, &Look::default(), HARD - 1).0, []);
        assert_eq!(bench.after(SECOND, &Look::default(), HARD).0, [Said::Full(HARD)]);
        assert_eq!(bench.after(SECOND, &Look::default(), HARD - 1).0, [], "it is at the bound");
        assert_eq!(bench.after(SECOND, &Look::default(), CROWDED).0, [Said::Room]);
    }
}
