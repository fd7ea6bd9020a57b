//! The monotonic clock, as signs of life and events use it.

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in microseconds (`clock_gettime(2)`): the same for every process on a machine, not across machines.
pub fn monotonic_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // The clock starts at boot: neither part can be negative.
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}
