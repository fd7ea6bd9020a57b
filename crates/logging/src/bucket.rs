//! A token bucket: so many at once, then one more each time that a period has passed. Pure: the time is given.

use std::time::Duration;

/// How often something may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    burst: u32,
    each: Duration,
    left: u32,
    /// When the last token was put in, or the bucket was full.
    since: Duration,
}

impl Bucket {
    /// A full one: `burst` at once, then one for each `each`, which is not zero. `now` is on any clock that does not go back.
    pub fn new(burst: u32, each: Duration, now: Duration) -> Self {
        Self { burst, each, left: burst, since: now }
    }

    /// Whether it may happen now.
    pub fn has(&mut self, now: Duration) -> bool {
        let due = now.saturating_sub(self.since).as_nanos() / self.each.as_nanos().max(1);
        if due > 0 {
            let due = u32::try_from(due).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(due).min(self.burst);
            self.since = if self.left == self.burst { now } else { self.since + self.each * due };
        }
        self.left > 0
    }

    /// Lets it happen, if it may.
    pub fn take(&mut self, now: Duration) -> bool {
        let may = self.has(now);
        self.left -= u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_at_once_then_few() {
        let (t0, each) = (Duration::from_secs(9), Duration::from_secs(1));
        let mut bucket = Bucket::new(4, each, t0);
        assert_eq!((0..100).filter(|_| bucket.take(t0)).count(), 4);
        assert_eq!(
            (0..1000).filter(|ms| bucket.take(t0 + Duration::from_millis(ms * 10))).count(),
            9,
            "in ten seconds"
        );
        // After a quiet time all is as at first; a clock that goes back gives nothing.
        assert_eq!((0..100).filter(|_| bucket.take(t0 + 1000 * each)).count(), 4);
        assert!(!bucket.take(Duration::ZERO));
    }
}
