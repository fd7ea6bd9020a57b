//! The events that a keeper remembers: a bounded history in which one loud fault hides no other. Pure: the times are given.
//!
//! Events that are *alike* (of one kind, about the same thing, the same text but for its numbers) are kept one by one as long as
//! they are few; when more come, they are *folded*: one entry stands for all of them, with the first, the last and how many they
//! were. From time to time a new entry begins. When the history is full the subject that has most entries loses its oldest.
//!
//! ```text
//!   event ──▶ subject (kind, whom it is about) ──▶ likeness ──▶ entry, entry, entry × 4,711
//!               a bucket of its own                 a bucket of its own
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use ninefold_logging::{Bucket, likeness};
use ninefold_model::event::{Event, EventKind};
use ninefold_model::{HostName, Incarnation};
use serde_json::Value;

/// Entries kept.
pub const ENTRIES: usize = 4096;
/// Events that are alike, kept one by one; then a new entry begins each ten minutes.
const ALIKE: u32 = 32;
const ALIKE_EACH: Duration = Duration::from_secs(600);
/// Entries of one subject, however its texts differ; then one more each minute.
const SUBJECT: u32 = 256;
const SUBJECT_EACH: Duration = Duration::from_secs(60);
/// The longest text in an event, bytes: a peer may have made it.
const TEXT: usize = 1024;
/// As much of a likeness as is compared, bytes.
const LIKENESS: usize = 1024;

/// What became of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Noted {
    /// It has an entry. The entry that had been folded until then, if there was one, stays as it is.
    New { event: Event, closed: Option<Event> },
    /// It was folded into this one.
    Folded(Event),
}

/// The events of one keeper.
#[derive(Debug)]
pub struct History {
    host: HostName,
    incarnation: Incarnation,
    most: usize,
    last: u64,
    /// The number of the latest event whose entry is gone; 0 when none is.
    forgotten: u64,
    /// By the number of the first of each.
    entries: BTreeMap<u64, Entry>,
    subjects: HashMap<String, Subject>,
}

#[derive(Debug)]
struct Entry {
    event: Event,
    subject: String,
    like: String,
}

#[derive(Debug)]
struct Subject {
    bucket: Bucket,
    entries: BTreeSet<u64>,
    likes: HashMap<String, Like>,
}

#[derive(Debug)]
struct Like {
    bucket: Bucket,
    entries: usize,
    /// The entry into which the next is folded.
    open: u64,
}

impl History {
    /// Nothing has happened yet. It keeps [`ENTRIES`] entries.
    pub fn new(host: HostName, incarnation: Incarnation) -> Self {
        Self::of(host, incarnation, ENTRIES)
    }

    fn of(host: HostName, incarnation: Incarnation, most: usize) -> Self {
        Self { host, incarnation, most, last: 0, forgotten: 0, entries: BTreeMap::new(), subjects: HashMap::new() }
    }

    /// The life of the keeper whose events these are.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The number of the latest event; 0 when there was none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The number of the latest event that is not known any more; 0 when all are.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Something happened, `unix_us` and `monotonic_us` as in [`Event`]. Times that go back do no harm: nothing is ordered by them.
    pub fn note(&mut self, kind: EventKind, unix_us: u64, monotonic_us: u64) -> Noted {
        let now = Duration::from_micros(monotonic_us);
        let (kind, about, like) = classify(kind);
        self.last += 1;
        let seq = self.last;
        let subject = self.subjects.entry(about.clone()).or_insert_with(|| Subject {
            bucket: Bucket::new(SUBJECT, SUBJECT_EACH, now),
            entries: BTreeSet::new(),
            likes: HashMap::new(),
        });
        // What is like nothing before and may have no entry is folded into the subject's latest.
        let open = subject.likes.get_mut(&like).map(|l| (l.bucket.has(now), l.open));
        let into = match open {
            Some((false, open)) => Some(open),
            _ if subject.bucket.take(now) => None,
            Some((true, open)) => Some(open),
            None => subject.entries.last().copied(),
        };
        if let Some(entry) = into.and_then(|first| self.entries.get_mut(&first)) {
            let event = &mut entry.event;
            let first = event.first();
            *event = Event {
                incarnation: self.incarnation,
                seq,
                unix_us,
                monotonic_us,
                times: event.times + 1,
                first: Some(first),
                kind,
                host: event.host.clone(),
            };
            return Noted::Folded(event.clone());
        }
        let closed = open.and_then(|(_, open)| self.entries.get(&open)).map(|e| e.event.clone());
        let known = subject.likes.entry(like.clone()).or_insert_with(|| Like {
            bucket: Bucket::new(ALIKE, ALIKE_EACH, now),
            entries: 0,
            open: seq,
        });
        known.bucket.take(now);
        (known.entries, known.open) = (known.entries + 1, seq);
        subject.entries.insert(seq);
        let (host, incarnation) = (self.host.clone(), self.incarnation);
        let event = Event { incarnation, seq, unix_us, monotonic_us, host, times: 1, first: None, kind };
        self.entries.insert(seq, Entry { event: event.clone(), subject: about, like });
        if self.entries.len() > self.most {
            self.forget_one();
        }
        Noted::New { event, closed: closed.filter(|e| e.times > 1) }
    }

    /// Events of which something happened after the one with this number, in the order in which it happened (the last time).
    pub fn since(&self, after: u64) -> Vec<Event> {
        let mut events: Vec<_> = self.entries.values().map(|e| &e.event).filter(|e| e.seq > after).cloned().collect();
        events.sort_by_key(|e| e.seq);
        events
    }

    /// The oldest entry of the subject that has most.
    fn forget_one(&mut self) {
        let most =
            self.subjects.values_mut().max_by_key(|s| (s.entries.len(), std::cmp::Reverse(s.entries.first().copied())));
        let Some(gone) = most.and_then(|s| s.entries.pop_first()).and_then(|first| self.entries.remove(&first)) else {
            return;
        };
        self.forgotten = self.forgotten.max(gone.event.seq);
        let Some(subject) = self.subjects.get_mut(&gone.subject) else { return };
        if let Some(like) = subject.likes.get_mut(&gone.like) {
            like.entries -= 1;
            if like.entries == 0 {
                subject.likes.remove(&gone.like);
            }
        }
        if subject.entries.is_empty() {
            self.subjects.remove(&gone.subject);
        }
    }
}

/// An event with its texts made short enough; what it is about; what is like it.
fn classify(kind: EventKind) -> (EventKind, String, String) {
    // All events have a JSON form: it is how they are told.
    let mut value = serde_json::to_value(&kind).unwrap_or_default();
    let cut = shorten(&mut value);
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let whom = match &kind {
        // Whoever is not known to be a host of ours: an address, a session.
        EventKind::Refused { peer, .. } if peer.parse::<HostName>().is_err() => "",
        EventKind::Refused { .. } => text("peer"),
        _ => ["volume", "backup", "primary", "to", "peer"]
            .map(text)
            .into_iter()
            .find(|t| !t.is_empty())
            .unwrap_or_default(),
    };
    let about = format!("{} {whom}", text("event"));
    let mut like = likeness(&without_numbers(value.clone()).to_string());
    if like.len() > LIKENESS {
        let end = (0..=LIKENESS).rev().find(|at| like.is_char_boundary(*at)).unwrap_or(0);
        like.truncate(end);
    }
    let kind = if cut { serde_json::from_value(value).unwrap_or(kind) } else { kind };
    (kind, about, like)
}

/// Cuts texts that are too long; whether there were any.
fn shorten(value: &mut Value) -> bool {
    match value {
        Value::String(text) if text.len() > TEXT => {
            let end = (0..=TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
            true
        }
        Value::Array(all) => all.iter_mut().fold(false, |cut, v| shorten(v) | cut),
        Value::Object(all) => all.values_mut().fold(false, |cut, v| shorten(v) | cut),
        _ => false,
    }
}

/// Terms, epochs and durations differ each time.
fn without_numbers(value: Value) -> Value {
    match value {
        Value::Number(_) => Value::Null,
        Value::Array(all) => all.into_iter().map(without_numbers).collect(),
        Value::Object(all) => all.into_iter().map(|(k, v)| (k, without_numbers(v))).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use ninefold_model::Term;
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn history(most: usize) -> History {
        History::of("a".parse().unwrap(), Incarnation(7), most)
    }

    fn refused(peer: &str, reason: &str) -> EventKind {
        EventKind::Refused { peer: peer.into(), reason: reason.into() }
    }

    fn failed(volume: &str) -> EventKind {
        EventKind::VolumeFailed { volume: volume.parse().unwrap(), reason: "no room".into() }
    }

    #[test]
    fn a_loud_fault_hides_no_other() {
        let mut history = history(ENTRIES);
        history.note(EventKind::Booted { term: Term(1) }, 1, 1);
        history.note(refused("b", "the VM's volumes are configured otherwise here"), 2, 2);
        let mut lines = 0;
        // Four times a second for two days.
        let times = 4 * 86_400 * 2;
        for n in 0..times {
            let at = n * SECOND / 4;
            let noted = history.note(refused(&format!("10.0.0.7:{}", n % 60_000), "CertificateExpired"), at, at);
            lines += u64::from(matches!(noted, Noted::New { .. }));
        }
        let events = history.since(0);
        assert_eq!((&events[0].kind, events[0].seq), (&EventKind::Booted { term: Term(1) }, 1));
        assert!(matches!(&events[1].kind, EventKind::Refused { peer, .. } if peer == "b"), "not hidden by a stranger");
        let loud: Vec<_> = events.iter().filter(|e| e.seq > 2).collect();
        assert!(loud.len() <= ENTRIES && lines < 144 * 3, "{lines}");
        let (last, first) = (loud.last().unwrap(), loud.last().unwrap().first.unwrap());
        assert_eq!(
            (last.seq, last.unix_us),
            (times + 2, (times - 1) * SECOND / 4),
            "it is told as it was the last time"
        );
        assert_eq!(last.seq - first.seq + 1, last.times, "no others came between");
        // A follower sees that it has happened again, and only that.
        let after = history.last();
        assert_eq!(history.since(after), []);
        history.note(refused("10.0.0.7:9", "CertificateExpired"), 5, 5);
        assert_eq!(
            history.since(after).iter().map(|e| (e.seq, e.times)).collect::<Vec<_>>(),
            [(times + 3, last.times + 1)]
        );
    }

    #[test]
    fn what_is_rare_is_never_folded() {
        let mut history = history(ENTRIES);
        for week in 0..1000 {
            let at = week * 7 * 86_400 * SECOND;
            let noted = history.note(EventKind::Booted { term: Term(week) }, at, at);
            assert!(matches!(noted, Noted::New { closed: None, .. }));
        }
        assert_eq!(history.since(0).len(), 1000);
    }

    #[test]
    fn two_volumes_are_two() {
        let mut history = history(ENTRIES);
        for _ in 0..100 {
            history.note(failed("data1"), 0, 0);
        }
        let noted = history.note(failed("data2"), 0, 0);
        assert!(matches!(noted, Noted::New { closed: None, .. }), "{noted:?}");
        // The loud one begins anew after a while; its entry is closed with how many they were.
        let noted = history.note(failed("data1"), 0, 601 * SECOND);
        let Noted::New { event, closed: Some(closed) } = noted else { panic!("{noted:?}") };
        assert_eq!((event.times, closed.times, closed.first().seq), (1, 69, 32));
    }

    #[test]
    fn texts_are_bounded() {
        let mut history = history(ENTRIES);
        history.note(refused("b", &"é".repeat(1 << 20)), 0, 0);
        let EventKind::Refused { reason, .. } = &history.since(0)[0].kind else { panic!() };
        assert!((1000..=TEXT + 3).contains(&reason.len()) && reason.ends_with('…'), "{}", reason.len());
    }

    fn any_event() -> impl Strategy<Value = EventKind> {
        prop_oneof![
            (0_u64..5).prop_map(|t| EventKind::Booted { term: Term(t) }),
            (0_u8..3, "[a-z]{0,2}").prop_map(|(h, r)| refused(&format!("h{h}"), &r)),
            (0_u8..9, "[a-z]{1,4}").prop_map(|(h, r)| refused(&format!("10.0.0.{h}:1"), &r)),
            (0_u8..4).prop_map(|v| failed(&format!("v{v}"))),
            Just(EventKind::WitnessReachable),
            "[a-z]{0,1}".prop_map(|reason| EventKind::WitnessUnreachable { reason }),
        ]
    }

    proptest! {
        #[test]
        fn bounded_exact_and_nothing_is_lost(script in prop::collection::vec((any_event(), 0_u64..40_000), 0..1500)) {
            // More than there are subjects.
            const MOST: usize = 24;
            let mut history = history(MOST);
            let mut unbounded = super::History::of("a".parse().unwrap(), Incarnation(7), usize::MAX);
            let (mut at, mut follower, mut seen) = (0, 0, 0);
            let mut subjects = std::collections::HashSet::new();
            for (n, (kind, ms)) in script.iter().enumerate() {
                at += ms * 1000;
                subjects.insert(classify(kind.clone()).1);
                history.note(kind.clone(), at, at);
                unbounded.note(kind.clone(), at, at);
                prop_assert!(history.entries.len() <= MOST);
                prop_assert_eq!(history.subjects.values().map(|s| s.entries.len()).sum::<usize>(), history.entries.len());
                for subject in history.subjects.values() {
                    prop_assert_eq!(subject.likes.values().map(|l| l.entries).sum::<usize>(), subject.entries.len());
                }
                if n % 7 == 0 {
                    let new = history.since(follower);
                    // Whoever follows sees the latest, in order, and nothing twice.
                    prop_assert!(new.is_sorted_by(|a, b| a.seq < b.seq));
                    prop_assert_eq!(&new.last().unwrap().kind, kind);
                    follower = new.last().unwrap().seq;
                    prop_assert_eq!(follower, history.last());
                    seen += 1;
                }
            }
            prop_assert_eq!(seen, script.len().div_ceil(7));
            let kept: std::collections::HashSet<_> =
                history.entries.values().map(|e| e.subject.clone()).collect();
            prop_assert_eq!(kept, subjects, "none is hidden by another");
            let count: u64 = unbounded.since(0).iter().map(|e| e.times).sum();
            prop_assert_eq!(count, script.len() as u64);
            for entry in history.entries.iter() {
                prop_assert_eq!(*entry.0, entry.1.event.first().seq, "in the order of the first");
            }
        }
    }
}
