//! Which lines of a log are printed. Those that are alike are printed a few times, then one a minute that says how many there were;
//! one place in the program prints no more than one line in ten seconds for long, however its texts differ. Pure: the time is given.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use crate::{Bucket, likeness};

/// Lines that are alike, printed one by one; then one each minute.
const ALIKE: u32 = 16;
const ALIKE_EACH: Duration = Duration::from_secs(60);
/// Lines of one place in the program.
const HERE: u32 = 128;
const HERE_EACH: Duration = Duration::from_secs(10);
/// Kinds of line that are told apart at one place. Further ones share one.
const KINDS: usize = 64;
/// After so long a kind of line that was told makes room for another.
const FORGET: Duration = Duration::from_secs(3600);
/// Between two searches for what was not printed and can be.
const LOOK: Duration = Duration::from_secs(10);
/// The longest line, bytes.
pub const LONGEST: usize = 4096;

/// What to do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineAction {
    /// It is printed, and says that so many that are like it were not, since the last that was.
    Print { missed: u64 },
    /// It is counted.
    Count,
}

/// Lines that were only counted: the latest of them, and how many they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    pub latest: String,
    pub times: u64,
}

/// What was printed lately, for each place `P` in the program.
#[derive(Debug)]
pub struct Lines<P> {
    places: HashMap<P, Place>,
    looked: Duration,
}

#[derive(Debug)]
struct Place {
    bucket: Bucket,
    kinds: HashMap<String, Kind>,
}

#[derive(Debug)]
struct Kind {
    bucket: Bucket,
    used: Duration,
    missed: u64,
    /// The last that was missed.
    latest: String,
}

impl<P: Eq + Hash> Default for Lines<P> {
    fn default() -> Self {
        Self { places: HashMap::new(), looked: Duration::ZERO }
    }
}

impl<P: Eq + Hash> Lines<P> {
    /// A line of this place comes at this time, on any clock that does not go back.
    pub fn judge(&mut self, place: P, text: &str, now: Duration) -> LineAction {
        let place = self
            .places
            .entry(place)
            .or_insert_with(|| Place { bucket: Bucket::new(HERE, HERE_EACH, now), kinds: HashMap::new() });
        let mut like = likeness(clip(text));
        if !place.kinds.contains_key(&like) && place.kinds.len() >= KINDS {
            place.kinds.retain(|_, kind| kind.missed > 0 || now.saturating_sub(kind.used) < FORGET);
            if place.kinds.len() >= KINDS {
                like.clear();
            }
        }
        let kind = place.kinds.entry(like).or_insert_with(|| Kind {
            bucket: Bucket::new(ALIKE, ALIKE_EACH, now),
            used: now,
            missed: 0,
            latest: String::new(),
        });
        kind.used = now;
        if kind.bucket.has(now) && place.bucket.take(now) {
            kind.bucket.take(now);
            kind.latest.clear();
            return LineAction::Print { missed: std::mem::take(&mut kind.missed) };
        }
        kind.missed += 1;
        kind.latest.clear();
        kind.latest.push_str(clip(text));
        LineAction::Count
    }

    /// Lines that were only counted and that have since ceased to come, if it is time to look for some: they are told now.
    pub fn missed(&mut self, now: Duration) -> Vec<Missed> {
        if now.saturating_sub(self.looked) < LOOK {
            return Vec::new();
        }
        self.looked = now;
        let mut all = Vec::new();
        for place in self.places.values_mut() {
            for kind in place.kinds.values_mut().filter(|k| k.missed > 0) {
                let quiet = now.saturating_sub(kind.used) >= ALIKE_EACH;
                if quiet && kind.bucket.has(now) && place.bucket.take(now) {
                    kind.bucket.take(now);
                    let latest = std::mem::take(&mut kind.latest);
                    all.push(Missed { latest, times: std::mem::take(&mut kind.missed) });
                }
            }
        }
        all
    }
}

/// The beginning of a text, short enough for a line.
pub fn clip(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_loud_fault_is_a_few_lines_and_hides_no_other() {
        let mut lines = Lines::default();
        let (mut printed, mut told) = (0, 0);
        // Four times a second for a day.
        for n in 0..4 * 86_400 {
            let now = SECOND * n / 4;
            if let LineAction::Print { missed } = lines.judge("a", &format!("10.0.0.1:{}: no", n % 60_000), now) {
                printed += 1;
                told += 1 + missed;
            }
            assert_eq!(lines.missed(now), [], "it has not ceased");
        }
        assert!((1400..1500).contains(&printed), "{printed}: one a minute");
        let day = SECOND * 86_400;
        assert_eq!(lines.judge("a", "the disk is full", day), LineAction::Print { missed: 0 });
        let rest = lines.missed(day + SECOND * 100);
        assert_eq!(rest.len(), 1);
        assert!(rest[0].latest.contains(&format!(":{}: no", (4 * 86_400 - 1) % 60_000)), "{rest:?}");
        assert_eq!(told + rest[0].times, 4 * 86_400, "each is told of");
    }

    #[test]
    fn a_place_that_says_something_else_each_time_is_bounded() {
        let mut lines = Lines::default();
        let text = |n: u32| -> String { n.to_string().bytes().map(|b| char::from(b - b'0' + b'a')).collect() };
        let mut printed = 0;
        for n in 0..100_000 {
            printed += u32::from(lines.judge("a", &text(n), SECOND * n / 100) != LineAction::Count);
        }
        assert!(printed < 128 + 101, "{printed}");
        assert!(lines.places["a"].kinds.len() <= KINDS + 1);
        assert_eq!(lines.judge("b", "another place", SECOND * 1000), LineAction::Print { missed: 0 });
    }

    proptest! {
        #[test]
        fn counts_are_exact(script in prop::collection::vec((0_u8..3, 0_u8..200, 0_u64..30_000), 0..600)) {
            let mut lines = Lines::default();
            let (mut now, mut told, mut all) = (Duration::ZERO, 0, 0);
            for (place, text, ms) in script {
                now += Duration::from_millis(ms);
                let text = format!("v{text}");
                all += 1;
                if let LineAction::Print { missed } = lines.judge(place, &text, now) {
                    told += 1 + missed;
                }
                told += lines.missed(now).iter().map(|m| m.times).sum::<u64>();
            }
            // However much waits, it is told when it is quiet.
            for _ in 0..200 {
                now += Duration::from_secs(3600);
                told += lines.missed(now).iter().map(|m| m.times).sum::<u64>();
            }
            prop_assert_eq!(told, all);
        }
    }
}
