//! What all volumes of a VM hold in memory together, and how its writes are slowed down by that.
//!
//! ```text
//!   held:   0 ──────────── SOFT ───────────────────────────── HARD ───────── STILL
//!   a write: at once          delayed, the longer the more is held   waits     no pause falls due
//! ```
//!
//! * Over [`SOFT`] each byte costs time: 20 ns times what is held over it, divided by what is left up to [`HARD`]. So the guest
//!   comes down to what the disk, or the backup, takes; one write waits [`LONGEST`] at most.
//! * At [`HARD`] a write waits until something has gone. Reads do, too, that come behind it: the guest stands still, and its host
//!   keeps its memory.
//! * **A pause waits for nobody**: QEMU's `stop` waits for the requests that are under way, so those are let in at once while one
//!   begins ([`Budget::pausing`]). That is at most what QEMU has outstanding, less than [`OUTSTANDING`]; when [`STILL`] is reached
//!   by it no further pause may fall due ([`Budget::allows_pause`]).

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Held bytes over which a checkpoint is wanted and writes are slowed down.
pub const SOFT: usize = 64 << 20;
/// Held bytes at which writes wait.
pub const HARD: usize = 512 << 20;
/// Held bytes from which on no pause falls due.
pub const STILL: usize = HARD + (128 << 20);
/// What one pause lets in, bytes, at most: a queue of 256 requests of a MiB.
pub const OUTSTANDING: usize = 256 << 20;
/// Half-way between [`SOFT`] and [`HARD`] a byte is delayed for so long, seconds: 50 MB/s.
const DELAY: f64 = 20e-9;
/// One write is delayed for at most so long, below [`HARD`].
pub const LONGEST: Duration = Duration::from_millis(250);

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Budget {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    /// A pause has begun and its `stop` is not answered.
    pausing: bool,
    /// Counts what lets go of all who wait.
    released: u64,
    /// Writes that wait for room.
    waiting: usize,
}

/// How long a write of so many bytes is delayed while so many are held: see the [module](self).
pub fn delay(bytes: usize, held: usize) -> Duration {
    let over = held.saturating_sub(SOFT);
    let left = HARD.saturating_sub(held).max(1);
    let seconds = bytes as f64 * DELAY * over as f64 / left as f64;
    if seconds >= LONGEST.as_secs_f64() { LONGEST } else { Duration::from_secs_f64(seconds) }
}

impl Budget {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many bytes more are held.
    pub(crate) fn take(&self, bytes: usize) {
        self.lock().held += bytes;
    }

    /// So many are held no more.
    pub(crate) fn give(&self, bytes: usize) {
        let mut state = self.lock();
        state.held = state.held.saturating_sub(bytes);
        drop(state);
        self.changed.notify_all();
    }

    /// All volumes' held bytes.
    pub fn held(&self) -> usize {
        self.lock().held
    }

    /// Whether writes wait for room, as they do at [`HARD`].
    pub fn is_full(&self) -> bool {
        self.lock().held >= HARD
    }

    /// Whether a pause may fall due: the writes that it lets in must be bounded.
    pub fn allows_pause(&self) -> bool {
        self.lock().held < STILL
    }

    /// A pause begins, or its `stop` has been answered. While it begins no write is delayed.
    pub fn pausing(&self, yes: bool) {
        self.lock().pausing = yes;
        if yes {
            self.changed.notify_all();
        }
    }

    /// Lets go of whoever waits now: the VM has ended here.
    pub(crate) fn release(&self) {
        self.lock().released += 1;
        self.changed.notify_all();
    }

    /// So many bytes more are held, of a write that is to be [delayed](Self::delay) after this, in the round that is answered: who
    /// is released in between is not kept waiting.
    pub(crate) fn take_for_delay(&self, bytes: usize) -> u64 {
        let mut state = self.lock();
        state.held += bytes;
        state.released
    }

    /// Delays a write of so many bytes, which are in what is held.
    pub(crate) fn delay(&self, bytes: usize, round: u64) {
        let mut state = self.lock();
        let until = Instant::now() + delay(bytes, state.held);
        while !state.pausing && state.released == round {
            let full = state.held >= HARD;
            let left = until.saturating_duration_since(Instant::now());
            state = if full {
                state.waiting += 1;
                let mut state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.waiting -= 1;
                state
            } else if left.is_zero() {
                return;
            } else {
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    /// How many writes wait for room: for tests.
    #[doc(hidden)]
    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn the_more_is_held_the_longer_a_write_is_delayed_and_never_without_a_bound() {
        assert_eq!(delay(MIB, SOFT), Duration::ZERO);
        let half = SOFT + (HARD - SOFT) / 2;
        let at_half = delay(MIB, half).as_secs_f64();
        assert!((at_half - MIB as f64 * DELAY).abs() < 1e-6, "{at_half}");
        let mut last = Duration::ZERO;
        for held in (SOFT..=HARD + 10 * MIB).step_by(8 * MIB) {
            let now = delay(MIB, held);
            assert!(now >= last && now <= LONGEST, "{held}");
            last = now;
        }
        assert_eq!(last, LONGEST);
        // What is charged is what an operation takes, not what it reaches over: a discard of 2 GiB takes next to nothing.
        assert!(delay(128, half) < Duration::from_millis(1));
    }

    /// At the bound a write waits; room, a pause and the end of the VM let it go on.
    #[test]
    fn a_write_waits_at_the_bound_until_something_lets_it_in() {
        type LetIn = fn(&Budget);
        let ways: [LetIn; 3] = [|b| b.give(HARD), |b| b.pausing(true), |b| b.release()];
        for let_in in ways {
            let budget = Arc::new(Budget::default());
            budget.take(HARD);
            assert!(budget.is_full() && budget.allows_pause());
            let its = Arc::clone(&budget);
            let round = budget.take_for_delay(0);
            let writer = thread::spawn(move || its.delay(1, round));
            while budget.waiting() == 0 {
                thread::yield_now();
            }
            // Less is held, and it is still too much.
            budget.take(1);
            budget.give(1);
            while budget.waiting() == 0 {
                thread::yield_now();
            }
            assert!(!writer.is_finished());
            let_in(&budget);
            writer.join().unwrap();
        }
    }

    #[test]
    fn what_pauses_let_in_is_bounded() {
        let budget = Budget::default();
        budget.take(STILL - 1);
        budget.pausing(true);
        budget.take(1);
        budget.delay(1, 0);
        budget.pausing(false);
        assert!(!budget.allows_pause());
        budget.give(1);
        assert!(budget.allows_pause());
    }
}
