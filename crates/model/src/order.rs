//! One order for what the keepers of several hosts say. Pure.
//!
//! No clock is common to several machines, so the order is made of what there is, the surer before the less sure:
//!
//! 1. What one keeper says is in the order of its positions. No clock has a part in it.
//! 2. Whoever has *made* a version of the witness's record did so after all earlier versions were made, and whoever has *seen* a version did so after
//!    that was made ([`EventKind::of_record`]).
//! 3. What neither of these orders is in the order of the hosts' clocks. Where these differ by more than the time between two events, that order may be
//!    wrong.
//!
//! ```text
//!   a (clock right)       booted, made 1 ── protected, made 2 ────────────── stood_down, seen 3
//!   b (an hour behind)           backup_ready ───────── took_over, made 3
//!                         ▼
//!   backup_ready, booted, protected, took_over, stood_down
//! ```
//!
//! An epoch orders nothing more: it counts within one session, and of the events that name one, those that also name a term have made that version alone.
//!
//! [`EventKind::of_record`]: crate::event::EventKind::of_record

use std::collections::BTreeMap;

use crate::HostName;
use crate::event::{Event, OfRecord, Position};

/// What one keeper says, in its order, and how far it has been taken.
struct Queue {
    host: HostName,
    events: Vec<Event>,
    next: usize,
    /// For each place the earliest version of the record that is made there or later.
    made: Vec<u64>,
}

impl Queue {
    fn new(host: HostName, mut events: Vec<Event>) -> Self {
        // Where a folded event is first told, its first was.
        events.sort_by_key(|e| Position { seq: e.first().seq, ..e.position() });
        let mut made = vec![u64::MAX; events.len() + 1];
        for (place, event) in events.iter().enumerate().rev() {
            made[place] = match of_record(event) {
                Some(OfRecord::Made(term)) => made[place + 1].min(term.0),
                _ => made[place + 1],
            };
        }
        Self { host, events, next: 0, made }
    }

    fn head(&self) -> Option<&Event> {
        self.events.get(self.next)
    }

    /// What is not to come before this one.
    fn waits_for(&self, other: &Queue) -> bool {
        let earliest = other.made[other.next];
        match self.head().and_then(of_record) {
            Some(OfRecord::Made(term)) => earliest < term.0,
            Some(OfRecord::Seen(term)) => earliest <= term.0,
            None => false,
        }
    }
}

/// What an event tells of the record; a folded one names that of its last alone.
fn of_record(event: &Event) -> Option<OfRecord> {
    event.kind.of_record().filter(|_| event.times == 1)
}

/// Puts events into one order, whichever way they came here.
pub fn in_order(events: Vec<Event>) -> Vec<Event> {
    let mut by_host: BTreeMap<HostName, Vec<Event>> = BTreeMap::new();
    let count = events.len();
    for event in events {
        by_host.entry(event.host.clone()).or_default().push(event);
    }
    let mut queues: Vec<_> = by_host.into_iter().map(|(host, events)| Queue::new(host, events)).collect();
    let mut ordered = Vec::with_capacity(count);
    loop {
        let time = |q: &Queue| q.head().map(|e| e.first().unix_us);
        let waits = |q: &Queue| queues.iter().any(|other| other.host != q.host && q.waits_for(other));
        let heads = || queues.iter().enumerate().filter(|(_, q)| q.head().is_some());
        // All wait for each other only if a keeper's own order is at odds with the record's; then its own counts.
        let free = heads().filter(|(_, q)| !waits(q)).min_by_key(|(_, q)| time(q));
        let Some((place, _)) = free.or_else(|| heads().min_by_key(|(_, q)| time(q))) else { return ordered };
        let queue = &mut queues[place];
        ordered.extend(queue.head().cloned());
        queue.next += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{EventKind, Moment};
    use crate::{Epoch, Incarnation, Term};

    const SECOND: u64 = 1_000_000;
    const HOUR: u64 = 3600;

    /// What a host says, every other second, from this second of its clock on.
    fn host(name: &str, begins: u64, kinds: Vec<EventKind>) -> Vec<Event> {
        let event = |(n, kind): (u64, EventKind)| Event {
            incarnation: Incarnation(1),
            seq: n + 1,
            unix_us: (begins + 2 * n) * SECOND,
            monotonic_us: 0,
            host: name.parse().unwrap(),
            times: 1,
            first: None,
            kind,
        };
        (0..).zip(kinds).map(event).collect()
    }

    fn told(events: &[Event]) -> Vec<String> {
        let name = |kind: &EventKind| serde_json::to_value(kind).unwrap()["event"].as_str().unwrap().to_owned();
        events.iter().map(|e| format!("{} {}", e.host, name(&e.kind))).collect()
    }

    fn protected(term: u64) -> EventKind {
        let backup = "b".parse().unwrap();
        EventKind::Protected { term: Term(term), backup, sync_ms: 0, bytes: 0, volume_bytes: 0, continued: false }
    }

    fn took_over(term: u64) -> EventKind {
        EventKind::TookOver { term: Term(term), epoch: Epoch(9), phases: Default::default() }
    }

    fn stood_down(term: u64) -> EventKind {
        EventKind::StoodDown { term: Term(term), reason: String::new() }
    }

    fn ready() -> EventKind {
        EventKind::BackupReady { primary: "a".parse().unwrap(), epoch: Epoch(1) }
    }

    #[test]
    fn the_record_orders_hosts_whose_clocks_differ() {
        let a = host("a", 9000, vec![EventKind::Booted { term: Term(1) }, protected(2), stood_down(3)]);
        for (b_begins, expected) in [
            // Right: what the record does not order is as it was.
            (9001, ["a booted", "b backup_ready", "a protected", "b took_over", "a stood_down"]),
            // An hour behind, and an hour ahead.
            (9001 - HOUR, ["b backup_ready", "a booted", "a protected", "b took_over", "a stood_down"]),
            (9001 + HOUR, ["a booted", "a protected", "b backup_ready", "b took_over", "a stood_down"]),
        ] {
            let b = host("b", b_begins, vec![ready(), took_over(3)]);
            let mut all: Vec<_> = a.iter().chain(&b).cloned().collect();
            assert_eq!(told(&in_order(all.clone())), expected, "{b_begins}");
            all.reverse();
            assert_eq!(told(&in_order(all)), expected, "whichever way they came");
        }
    }

    #[test]
    fn what_one_keeper_says_is_in_its_order() {
        // Its clock is set back by an hour, and then it is started anew.
        let mut all = host("a", 9000, vec![EventKind::Paused, EventKind::Resumed]);
        all[1].unix_us -= HOUR * SECOND;
        let mut later = host("a", 9001 - HOUR, vec![EventKind::Woke]);
        later[0].incarnation = Incarnation(2);
        let order = ["a paused", "a resumed", "a woke"];
        assert_eq!(told(&in_order([later.clone(), all.clone()].concat())), order);
        // Another's event, earlier by the clock than all but the second, comes where the order allows it.
        let b = host("b", 8999, vec![EventKind::Suspended]);
        let order = ["b suspended", "a paused", "a resumed", "a woke"];
        assert_eq!(told(&in_order([b, all, later].concat())), order);
    }

    #[test]
    fn a_folded_event_is_where_its_first_was() {
        let mut all = host("a", 9000, vec![EventKind::WitnessReachable, EventKind::Paused]);
        all[0] = Event {
            seq: 9,
            times: 5,
            first: Some(Moment { seq: 1, unix_us: 9000 * SECOND, monotonic_us: 0 }),
            unix_us: 9900 * SECOND,
            ..all[0].clone()
        };
        all.reverse();
        all.extend(host("b", 9003, vec![EventKind::Resumed]));
        assert_eq!(told(&in_order(all)), ["a witness_reachable", "a paused", "b resumed"]);
    }

    /// A keeper says of two versions what no record can have been: nothing is lost, and its own order counts.
    #[test]
    fn what_contradicts_itself_is_told_all_the_same() {
        let a = host("a", 9000, vec![took_over(5), took_over(2)]);
        let b = host("b", 9000, vec![took_over(4), took_over(1)]);
        let all = in_order([a, b].concat());
        assert_eq!(all.len(), 4);
        let terms = |host: &str| {
            let of_host = all.iter().filter(|e| e.host.as_str() == host);
            of_host.map(|e| e.seq).collect::<Vec<_>>()
        };
        assert_eq!((terms("a"), terms("b")), (vec![1, 2], vec![1, 2]));
    }

    proptest! {
        /// Whatever the clocks show: of what really happened the order keeps each keeper's own, and the record's.
        #[test]
        fn nothing_comes_before_what_it_came_of(
            steps in prop::collection::vec((0_usize..3, 0_u8..4), 0..60),
            clocks in prop::array::uniform3(0_u64..1000),
            shuffle in any::<u64>(),
        ) {
            let (mut term, mut said, mut happened) = (0, [0; 3], Vec::new());
            for (at, (host, what)) in (0..).zip(steps) {
                said[host] += 1;
                let kind = match what {
                    0 => { term += 1; took_over(term) }
                    1 if term > 0 => stood_down(term),
                    _ => EventKind::Paused,
                };
                happened.push(Event {
                    incarnation: Incarnation(said[host] / 5),
                    seq: said[host],
                    unix_us: at + clocks[host],
                    monotonic_us: 0,
                    host: ["a", "b", "c"][host].parse().unwrap(),
                    times: 1,
                    first: None,
                    kind,
                });
            }
            let mut mixed = happened.clone();
            mixed.sort_by_key(|e| (e.seq ^ shuffle).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let ordered = in_order(mixed);
            prop_assert_eq!(ordered.len(), happened.len());
            for host in ["a", "b", "c"] {
                let of = |all: &[Event]| all.iter().filter(|e| e.host.as_str() == host).map(Event::position).collect::<Vec<_>>();
                prop_assert_eq!(of(&ordered), of(&happened));
            }
            let mut made = 0;
            for event in &ordered {
                match event.kind.of_record() {
                    Some(OfRecord::Made(term)) => { prop_assert_eq!(term.0, made + 1); made = term.0; }
                    Some(OfRecord::Seen(term)) => prop_assert!(term.0 <= made),
                    None => {}
                }
            }
        }
    }
}
