//! When answers came: how many, the silences between them, and the connections that broke.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Answers this close together leave no gap worth keeping.
const GAP: Duration = Duration::from_millis(1);
/// Most gaps kept; the oldest are forgotten.
const MAX_GAPS: usize = 1 << 16;

/// What a ledger's client has heard up to now; others may wait for more.
#[derive(Debug)]
pub struct Pulse {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    acked: u64,
    gaps: VecDeque<(Instant, Instant)>,
    last: Instant,
    resets: u64,
    ended: bool,
}

impl Pulse {
    /// Nothing heard but `acked` acknowledgements, long ago; the first silence begins now.
    pub(super) fn new(acked: u64) -> Self {
        let state = State { acked, gaps: VecDeque::new(), last: Instant::now(), resets: 0, ended: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much has been acknowledged.
    pub fn acked(&self) -> u64 {
        self.lock().acked
    }

    /// How often a connection broke.
    pub fn resets(&self) -> u64 {
        self.lock().resets
    }

    /// Waits until `more` further writes are acknowledged. `false` when the deadline passes or the client's last
    /// connection ends before.
    pub fn wait_acks(&self, more: u64, deadline: Instant) -> bool {
        self.wait_total(self.acked().saturating_add(more), deadline)
    }

    /// Waits until `goal` writes in all are acknowledged; `false` as in [`Pulse::wait_acks`].
    pub fn wait_total(&self, goal: u64, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            if state.acked >= goal {
                return true;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|_| !state.ended) else {
                return false;
            };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The longest time without an answer since `mark`, the present silence included. A gap that began before the mark
    /// counts whole. Gaps under a millisecond count as none.
    pub fn gap_since(&self, mark: Instant) -> Duration {
        let state = self.lock();
        let past = state.gaps.iter().filter(|(_, end)| *end >= mark).map(|(begin, end)| *end - *begin);
        let present = if state.ended { Duration::ZERO } else { state.last.elapsed() };
        past.chain([present]).filter(|gap| *gap >= GAP).max().unwrap_or_default()
    }

    /// The longest of all gaps that have ended.
    pub(super) fn longest_gap(&self) -> Duration {
        self.lock().gaps.iter().map(|(begin, end)| *end - *begin).max().unwrap_or_default()
    }

    /// An answer came; it makes the acknowledged writes `acked`.
    pub(super) fn answer(&self, acked: u64) {
        let now = Instant::now();
        let mut state = self.lock();
        if now - state.last >= GAP {
            let begin = state.last;
            state.gaps.push_back((begin, now));
            if state.gaps.len() > MAX_GAPS {
                state.gaps.pop_front();
            }
        }
        state.last = now;
        state.acked = acked;
        self.changed.notify_all();
    }

    /// A connection broke.
    pub(super) fn reset(&self) {
        self.lock().resets += 1;
    }

    /// No answer will come any more.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}
