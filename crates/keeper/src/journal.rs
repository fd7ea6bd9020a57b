//! What happened and what was measured, for whoever asks: bounded histories of events and checkpoints.
//!
//! * [`history`]: which events are kept, and which are folded

pub mod history;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use history::{History, Noted};
use ninefold_logging::stderr::FOLDED;
use ninefold_model::checkpoint::CheckpointRecord;
use ninefold_model::event::{Event, EventKind, Position};
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

    /// Events after this position, and folded ones to which something was added since; waits up to `wait` until there is one. A position of
    /// another life says nothing of this one: all follow it.
    pub fn events(&self, after: Position, wait: Duration) -> Vec<Event> {
        let until = Instant::now() + wait.min(Duration::from_secs(3600));
        let mut inner = lock(&self.inner.0);
        let after = if after.incarnation == inner.events.incarnation() { after.seq } else { 0 };
        loop {
            if inner.events.last() > after {
                return inner.events.since(after);
            }
            let Some(rest) = until.checked_duration_since(Instant::now()) else { return Vec::new() };
            inner = self.inner.1.wait_timeout(inner, rest).unwrap_or_else(PoisonError::into_inner).0;
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
    use super::*;

    /// A follower goes on from where it was; after a restart of the keeper it hears all, also where the numbers begin anew.
    #[test]
    fn a_position_of_another_life_is_before_everything() {
        let host: HostName = "a".parse().unwrap();
        let journal = Journal::new(host.clone(), Incarnation(5));
        for _ in 0..3 {
            journal.event(EventKind::WitnessReachable);
        }
        let all = journal.events(Position::START, Duration::ZERO);
        assert_eq!(
            all.iter().map(|e| (e.incarnation, e.seq)).collect::<Vec<_>>(),
            [1, 2, 3].map(|n| (Incarnation(5), n))
        );
        assert_eq!(journal.events(all[1].position(), Duration::ZERO).len(), 1);
        let anew = Journal::new(host, Incarnation(6));
        anew.event(EventKind::WitnessReachable);
        assert_eq!(anew.events(all[2].position(), Duration::ZERO).len(), 1, "it has said less than the former one");
    }
}
