//! The two clocks of a host, as values: whoever drives the core reads them, or makes them up.
//!
//! * *May I still believe what I knew?* How long a peer has been silent, and whether this host has stood still itself, is told from
//!   [`Boottime`], which runs on while the host is suspended: the peers go on living meanwhile.
//! * *Has somebody else had time enough?* Time-outs for peers, disks and QEMU are told from [`Monotonic`]: the time in which nobody
//!   here could have listened does not count against them.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

macro_rules! clock {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// The moment at which the clock shows so many microseconds.
            pub const fn from_micros(us: u64) -> Self {
                Self(us)
            }

            /// What the clock shows, in microseconds.
            pub const fn as_micros(self) -> u64 {
                self.0
            }

            /// How long `earlier` was before this; zero if it comes after it.
            pub const fn since(self, earlier: Self) -> Duration {
                Duration::from_micros(self.0.saturating_sub(earlier.0))
            }
        }

        impl Add<Duration> for $name {
            type Output = Self;

            fn add(self, time: Duration) -> Self {
                Self(self.0.saturating_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)))
            }
        }

        impl AddAssign<Duration> for $name {
            fn add_assign(&mut self, time: Duration) {
                *self = *self + time;
            }
        }

        /// Not before the clock began.
        impl Sub<Duration> for $name {
            type Output = Self;

            fn sub(self, time: Duration) -> Self {
                Self(self.0.saturating_sub(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)))
            }
        }
    };
}

clock! {
    /// A moment of CLOCK_MONOTONIC, which stands still while the host is suspended.
    Monotonic
}

clock! {
    /// A moment of CLOCK_BOOTTIME, which runs on while the host is suspended.
    Boottime
}

/// What both clocks show at an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub monotonic: Monotonic,
    pub boottime: Boottime,
}

impl Now {
    /// So much later by both clocks: on a host that was not suspended meanwhile.
    pub fn later(self, time: Duration) -> Self {
        Self { monotonic: self.monotonic + time, boottime: self.boottime + time }
    }
}

/// In microseconds, for measurements.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
