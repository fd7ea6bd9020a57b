//! What happened and what was measured, for whoever asks: bounded histories of events and checkpoints.
//!
//! * [`history`]: which events are kept, and which are folded

pub mod history;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use history::{History, Noted};
use ninefold_control::{EventsPage, Gap, GapCause};
use ninefold_logging::stderr::FOLDED;
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::{EventKind, Position};
use ninefold_model::series::{Series, Summary};
use ninefold_model::status::PauseSummary;
use ninefold_model::{HostName, Incarnation};
use ninefold_transport::clock::monotonic_us;

/// Checkpoints kept: 200 s at 25 ms.
const CHECKPOINTS: usize = 8192;

/// The histories. Shared by the threads that write and those that answer questions.
#[derive(Debug, Clone)]
pub struct Journal {
    inner: Arc<(Mutex<Inner>, Condvar)>,
}

#[derive(Debug)]
struct Inner {
    events: History,
    checkpoints: VecDeque<CheckpointRecord>,
    last_checkpoint: u64,
}

fn lock(m: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Nothing has happened yet in this life of the keeper of `host`.
    pub fn new(host: HostName, incarnation: Incarnation) -> Self {
        let inner = Inner { events: History::new(host, incarnation), checkpoints: VecDeque::new(), last_checkpoint: 0 };
        Self { inner: Arc::new((Mutex::new(inner), Condvar::new())) }
    }

    /// Notes an event, and logs it unless it only repeats others.
    pub fn event(&self, kind: EventKind) {
        let unix_us =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(0));
        let noted = lock(&self.inner.0).events.note(kind, unix_us, monotonic_us());
        self.inner.1.notify_all();
        if let Noted::New { event, closed } = noted {
            for event in closed.iter().chain([&event]) {
                tracing::info!(target: FOLDED, event = %serde_json::to_string(event).unwrap_or_default());
            }
        }
    }

    /// The place of the last event there is: what comes from here on is after it.
    pub fn end(&self) -> Position {
        let inner = lock(&self.inner.0);
        Position { incarnation: inner.events.incarnation(), seq: inner.events.last() }
    }

    /// Events after this position, and folded ones to which something was added since; waits up to `wait` until there is one. A position of
    /// another life says nothing of this one: all follow it, after a gap, which is told at once.
    pub fn events(&self, after: Position, wait: Duration) -> EventsPage {
        let until = Instant::now() + wait.min(Duration::from_secs(3600));
        let mut inner = lock(&self.inner.0);
        let incarnation = inner.events.incarnation();
        let same = after.incarnation == incarnation;
        let seq = if same { after.seq } else { 0 };
        loop {
            let gap = if !same && after != Position::START {
                Some(GapCause::Restart)
            } else {
                (inner.events.forgotten() > seq).then_some(GapCause::Forgotten)
            };
            let gap = gap.map(|cause| Gap { after, cause, incarnation });
            let left = until.saturating_duration_since(Instant::now());
            if inner.events.last() > seq || gap.is_some() || left.is_zero() {
                let next = Position { incarnation, seq: inner.events.last().max(seq) };
                return EventsPage { gap, events: inner.events.since(seq), next };
            }
            inner = self.inner.1.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes a checkpoint once it is acknowledged.
    pub fn checkpoint(&self, mut record: CheckpointRecord) {
        let mut inner = lock(&self.inner.0);
        inner.last_checkpoint += 1;
        record.seq = inner.last_checkpoint;
        if inner.checkpoints.len() == CHECKPOINTS {
            inner.checkpoints.pop_front();
        }
        inner.checkpoints.push_back(record);
    }

    /// Checkpoints with a number above `after`.
    pub fn checkpoints(&self, after: u64) -> Vec<CheckpointRecord> {
        lock(&self.inner.0).checkpoints.iter().filter(|c| c.seq > after).copied().collect()
    }

    /// The pauses of the last checkpoints (at most 1,000).
    pub fn pauses(&self) -> Option<PauseSummary> {
        let pauses: Series = lock(&self.inner.0).checkpoints.iter().rev().take(1000).map(|c| c.pause_us).collect();
        let Summary { count, p50, p99, max, .. } = pauses.summary();
        (count > 0).then_some(PauseSummary { count, p50, p99, max })
    }
}

#[cfg(test)]
mod tests {
    use ninefold_model::event::Event;

    use super::*;

    /// A follower goes on from where it was; after a restart of the keeper it hears all, also where the numbers begin anew, and that there is a gap.
    #[test]
    fn a_position_of_another_life_is_before_everything() {
        let host: HostName = "a".parse().unwrap();
        let journal = Journal::new(host.clone(), Incarnation(5));
        for _ in 0..3 {
            journal.event(EventKind::WitnessReachable);
        }
        let now = |journal: &Journal, after| journal.events(after, Duration::ZERO);
        let all = now(&journal, Position::START);
        let at = |incarnation, seq| Position { incarnation: Incarnation(incarnation), seq };
        assert_eq!(all.events.iter().map(Event::position).collect::<Vec<_>>(), [at(5, 1), at(5, 2), at(5, 3)]);
        assert_eq!((all.gap, all.next), (None, at(5, 3)));
        assert_eq!(now(&journal, at(5, 2)).events.len(), 1);
        // A gap is told at once: nothing may happen for long.
        let anew = Journal::new(host, Incarnation(6));
        let gap = Some(Gap { after: at(5, 3), cause: GapCause::Restart, incarnation: Incarnation(6) });
        let quiet = anew.events(all.next, Duration::from_secs(3600));
        assert_eq!(quiet, EventsPage { gap, events: Vec::new(), next: at(6, 0) });
        assert_eq!(now(&anew, quiet.next), EventsPage { gap: None, events: Vec::new(), next: at(6, 0) });
        anew.event(EventKind::WitnessReachable);
        let told = now(&anew, all.next);
        assert_eq!(
            (told.gap, told.events.len(), told.next),
            (gap, 1, at(6, 1)),
            "it has said less than the former one"
        );
        assert_eq!(now(&anew, quiet.next).gap, None);
    }

    /// Who asks too seldom learns that he has missed something.
    #[test]
    fn what_is_forgotten_is_a_gap() {
        let journal = Journal::new("a".parse().unwrap(), Incarnation(5));
        let gap = |seq| journal.events(Position { incarnation: Incarnation(5), seq }, Duration::ZERO).gap;
        for n in 0..history::ENTRIES {
            let reason = format!("{}: {n}", "x".repeat(n % 200));
            journal.event(EventKind::Refused { peer: format!("host-{}", n % 500), reason });
        }
        assert_eq!(gap(0), None);
        for n in 0..10 {
            journal.event(EventKind::Refused { peer: format!("more-{n}"), reason: "no".into() });
        }
        assert_eq!(gap(0).map(|g| g.cause), Some(GapCause::Forgotten));
        assert_eq!(gap(history::ENTRIES as u64), None, "what is gone was told to whoever is here");
    }
}
