//! How many refused connections are worth an event: a few at once, then one now and then that says how many there were. Whoever
//! is refused could otherwise push all other events out of the journal.

use std::time::{Duration, Instant};

/// Refusals told one by one.
const BURST: u32 = 64;

/// Decides which refusals are told. Pure: the time is given.
#[derive(Debug)]
pub struct Refusals {
    /// After which time there may be one more.
    each: Duration,
    left: u32,
    since: Instant,
    untold: u64,
}

impl Refusals {
    /// None so far. One more is told after each of these times, which is not zero.
    pub fn new(each: Duration, now: Instant) -> Self {
        Self { each, left: BURST, since: now, untold: 0 }
    }

    /// One more was refused. Its reason as it is to be told, if it is: with how many were not told since the last.
    pub fn tell(&mut self, reason: String, now: Instant) -> Option<String> {
        let due = now.saturating_duration_since(self.since).as_nanos() / self.each.as_nanos().max(1);
        if due > 0 {
            self.left = self.left.saturating_add(u32::try_from(due).unwrap_or(BURST)).min(BURST);
            self.since = now;
        }
        if self.left == 0 {
            self.untold += 1;
            return None;
        }
        self.left -= 1;
        match std::mem::take(&mut self.untold) {
            0 => Some(reason),
            others => Some(format!("{reason} (and {others} more were refused)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: Duration = Duration::from_secs(1);

    #[test]
    fn many_refusals_are_few_events() {
        let t0 = Instant::now();
        let mut refusals = Refusals::new(EACH, t0);
        let told: Vec<_> = (0..10_000).filter_map(|_| refusals.tell("no".into(), t0)).collect();
        assert_eq!(told, vec!["no"; BURST as usize]);
        assert_eq!(refusals.tell("no".into(), t0 + EACH), Some("no (and 9936 more were refused)".into()));
        assert_eq!(refusals.tell("no".into(), t0 + EACH), None);
        // After a quiet time all is as at first.
        let later = t0 + 1000 * EACH;
        assert_eq!((0..100).filter_map(|_| refusals.tell("no".into(), later)).count(), BURST as usize);
    }
}
