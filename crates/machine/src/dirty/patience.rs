//! For how long the guest's writes may wait for a reader, in all.
//!
//! A bound for each wait would bound nothing: a reader that takes a little away just before each of them ends would let the guest
//! crawl for hours. So the time is added up, and what the reader takes away makes good a part of it: a reader that is fast enough
//! keeps its moment, however long it takes, and one that is not loses it after a second or two.

use std::time::{Duration, Instant};

/// So much time may have been waited that is not made good.
const MOST: Duration = Duration::from_secs(1);
/// So much is made good by each chunk (1 MiB) that is taken away: the guest writes 20 MiB a second at least.
const MADE_GOOD: Duration = Duration::from_millis(50);

/// See the [module](self). What time it is, is for the caller to say.
#[derive(Debug)]
pub(super) struct Patience {
    most: Duration,
    /// Waited, and not made good.
    owed: Duration,
    /// Waited in all.
    total: Duration,
    /// Since when somebody waits.
    since: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { most: MOST, owed: Duration::ZERO, total: Duration::ZERO, since: None }
    }
}

impl Patience {
    /// A write waits from now on, if none did before.
    pub(super) fn wait(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Whether a write waits.
    pub(super) fn waits(&self) -> bool {
        self.since.is_some()
    }

    /// For how long those that wait still do so; zero when they have waited long enough, None when none waits.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        let waited = now.saturating_duration_since(self.since?);
        Some(self.most.saturating_sub(self.owed + waited))
    }

    /// A chunk is taken away, so that nobody waits until there is again no room. False when that comes too late.
    pub(super) fn taken(&mut self, now: Instant) -> bool {
        let in_time = self.left(now).is_none_or(|left| !left.is_zero());
        self.stop(now);
        self.owed = self.owed.saturating_sub(MADE_GOOD);
        in_time
    }

    /// Nobody waits any more.
    pub(super) fn stop(&mut self, now: Instant) {
        let waited = self.since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.owed += waited;
        self.total += waited;
    }

    /// How long it was waited in all.
    pub(super) fn total(&self, now: Instant) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// One that has no end.
    pub(super) fn endless() -> Patience {
        Patience { most: Duration::MAX, ..Patience::default() }
    }

    /// A write waits already, since then.
    #[cfg(test)]
    pub(super) fn waits_since(&mut self, since: Instant) {
        self.since = Some(since);
    }

    /// One that waits for so long.
    #[cfg(test)]
    pub(super) fn of(most: Duration) -> Patience {
        Patience { most, ..Patience::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that waits whenever it may, and a reader that takes one chunk in each step: after how many it has lost, of so many.
    fn lost_after(step: Duration, chunks: u32) -> Option<u32> {
        let (mut patience, mut now) = (Patience::default(), Instant::now());
        (1..=chunks).find(|_| {
            patience.wait(now);
            now += step;
            !patience.taken(now)
        })
    }

    #[test]
    fn a_reader_that_takes_a_little_in_each_wait_loses_the_moment_and_a_fast_one_never_does() {
        assert_eq!(lost_after(Duration::from_millis(500), 10_000), Some(3), "2 MiB a second");
        assert_eq!(lost_after(Duration::from_millis(100), 10_000), Some(19), "10 MiB a second");
        assert_eq!(lost_after(Duration::from_millis(50), 10_000), None, "20 MiB a second");
        assert_eq!(lost_after(Duration::from_millis(5), 10_000), None);
    }

    #[test]
    fn what_was_waited_is_added_up_and_time_in_which_nobody_waits_is_not() {
        let (mut patience, begin) = (Patience::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(patience.left(at(0)), None);
        patience.wait(at(1000));
        patience.wait(at(1200));
        assert_eq!(patience.left(at(1300)), Some(Duration::from_millis(700)));
        assert_eq!(patience.total(at(1300)), Duration::from_millis(300));
        assert!(patience.taken(at(1400)));
        assert!(!patience.waits());
        assert!(patience.taken(at(60_000)), "50 ms are made good twice");
        patience.wait(at(70_000));
        assert_eq!(patience.left(at(70_100)), Some(Duration::from_millis(600)));
        assert_eq!(patience.left(at(71_000)), Some(Duration::ZERO));
        assert_eq!(patience.total(at(71_000)), Duration::from_millis(1400));
    }
}
