//! How often it is told that something has happened again. Pure: the time is given.

use std::collections::HashMap;
use std::time::Duration;

use ninefold_model::HostName;
use ninefold_model::event::{Event, Position};

/// Between two lines about the same thing.
const EACH: Duration = Duration::from_secs(10);

/// Folded events as they are followed: each is told at once, and when it goes on then once in ten seconds, with how often it was.
#[derive(Debug, Default)]
pub struct Repeats {
    /// By host and by the place of the first: when it was told, and what is to be told next.
    told: HashMap<(HostName, Position), (Duration, Option<Event>)>,
}

impl Repeats {
    /// An event comes: itself, if it is to be told now. `now` is on any clock that does not go back.
    pub fn take(&mut self, event: Event, now: Duration) -> Option<Event> {
        if event.times == 1 {
            return Some(event);
        }
        let key = (event.host.clone(), Position { seq: event.first().seq, ..event.position() });
        match self.told.get_mut(&key) {
            Some((told, held)) if now.saturating_sub(*told) < EACH => {
                *held = Some(event);
                None
            }
            _ => {
                self.told.insert(key, (now, None));
                Some(event)
            }
        }
    }

    /// Those whose time has come, by the time when they last were.
    pub fn due(&mut self, now: Duration) -> Vec<Event> {
        let mut due = Vec::new();
        self.told.retain(|_, (told, held)| {
            if now.saturating_sub(*told) < EACH {
                return true;
            }
            *told = now;
            // Quiet ones are forgotten: the next is told at once.
            held.take().map(|event| due.push(event)).is_some()
        });
        due.sort_by_cached_key(|e| (e.unix_us, e.host.clone(), e.position()));
        due
    }
}

#[cfg(test)]
mod tests {
    use ninefold_model::Incarnation;
    use ninefold_model::event::{EventKind, Moment};

    use super::*;

    fn event(first: u64, seq: u64) -> Event {
        let first = (first < seq).then_some(Moment { seq: first, unix_us: 0, monotonic_us: 0 });
        let count = first.map_or(1, |f| seq - f.seq + 1);
        let host = "a".parse().unwrap();
        Event {
            incarnation: Incarnation(1),
            seq,
            unix_us: seq,
            monotonic_us: 0,
            host,
            times: count,
            first,
            kind: EventKind::WitnessReachable,
        }
    }

    #[test]
    fn a_loud_one_is_told_now_and_then_and_hides_no_other() {
        let mut repeats = Repeats::default();
        let (mut lines, mut other) = (Vec::new(), 0);
        for tick in 0..1000 {
            let now = Duration::from_millis(tick * 100);
            lines.extend(repeats.due(now));
            lines.extend(repeats.take(event(1, tick + 1), now));
            if tick % 100 == 50 {
                other += u64::from(repeats.take(event(5000 + tick, 5000 + tick), now).is_some());
            }
        }
        assert_eq!((lines.len(), other), (11, 10), "{lines:?}");
        // The last of them is told, too.
        let rest = repeats.due(Duration::from_secs(200));
        assert_eq!(rest.iter().map(|e| e.times).collect::<Vec<_>>(), [1000]);
        assert!(repeats.due(Duration::from_secs(300)).is_empty() && repeats.told.is_empty());
    }
}
