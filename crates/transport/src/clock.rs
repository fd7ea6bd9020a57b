//! Clocks. There are two, for two kinds of question.
//!
//! * *May I still believe what I knew?* How long a peer has been silent, and whether this host has stood still itself. That
//!   must be told from CLOCK_BOOTTIME, which runs on while the host is suspended: the peers go on living meanwhile. See [`Moment`].
//! * *Has somebody else had time enough?* Time-outs for peers, disks and QEMU. For that CLOCK_MONOTONIC is right, which is what
//!   `std::time::Instant` reads on Linux: the time in which nobody here could have listened does not count against them.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in microseconds (`clock_gettime(2)`): the same for every process on a machine, not across machines. For
/// events and measurements: nothing is decided by it.
pub fn monotonic_us() -> u64 {
    micros(ClockId::Monotonic)
}

fn micros(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // Both clocks start at boot: neither part can be negative.
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// A moment of CLOCK_BOOTTIME, in microseconds: the clock that does not stand still while the host is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self(micros(ClockId::Boottime))
    }

    /// How long ago this was, the time included in which the host was suspended; zero for a moment that is still to come.
    pub fn elapsed(self) -> Duration {
        Duration::from_micros(Self::now().0.saturating_sub(self.0))
    }

    /// Microseconds of CLOCK_BOOTTIME.
    pub fn as_micros(self) -> u64 {
        self.0
    }

    /// The reverse of [`Moment::as_micros`].
    pub fn from_micros(us: u64) -> Self {
        Self(us)
    }
}
