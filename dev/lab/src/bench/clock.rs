//! How well the guest's clock keeps time: against the host's, under the loads that its pauses depend on.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::{MIDDLE_RANGE, Mode, PIPELINED};
use super::redis::Call;
use super::subject::Subject;
use crate::error::LabError;
use crate::guest_clock::GuestClock;

/// What the guest does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClockLoad {
    /// Idle, without protection.
    Unprotected,
    /// Idle, protected.
    Idle,
    /// Protected, and 100 MB/s are written to memory.
    Dirty100,
    /// Protected, under redis-benchmark with pipelining.
    Redis,
}

impl ClockLoad {
    /// In the order in which they are measured.
    pub const ALL: [ClockLoad; 4] = [Self::Unprotected, Self::Idle, Self::Dirty100, Self::Redis];
}

impl fmt::Display for ClockLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unprotected => "idle, unprotected",
            Self::Idle => "idle",
            Self::Dirty100 => "dirtying, 100 MB/s",
            Self::Redis => "SET pipelined",
        })
    }
}

/// How much faster than the host's the guest's clock was, parts per million; 0 of what was not measured.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ClockFigures {
    pub unprotected: f64,
    pub idle: f64,
    pub dirty_100: f64,
    pub redis: f64,
}

impl ClockFigures {
    /// Enters the figure of one load.
    pub fn set(&mut self, load: ClockLoad, ppm: f64) {
        *match load {
            ClockLoad::Unprotected => &mut self.unprotected,
            ClockLoad::Idle => &mut self.idle,
            ClockLoad::Dirty100 => &mut self.dirty_100,
            ClockLoad::Redis => &mut self.redis,
        } = ppm;
    }
}

/// Parts per million over about `time`. `rate`: requests a second that the guest answers.
pub fn measure(subject: &mut Subject, load: ClockLoad, time: Duration, rate: f64) -> Result<f64, LabError> {
    subject.enter(if load == ClockLoad::Unprotected { Mode::Unprotected } else { Mode::Adaptive })?;
    let mut clock = GuestClock::connect(&subject.lab)?;
    let ppm = match load {
        ClockLoad::Unprotected | ClockLoad::Idle => clock.drift(time)?,
        ClockLoad::Dirty100 => {
            subject.workload.dirty(100)?;
            let ppm = clock.drift(time)?;
            subject.workload.stop()?;
            ppm
        }
        ClockLoad::Redis => {
            let (clients, pipeline) = PIPELINED;
            let call = Call { test: "set", clients, pipeline, range: MIDDLE_RANGE, requests: 0 };
            // The clock is read before and after: what waits behind a full pipeline would be measured otherwise.
            let before = clock.offset(time / 8)?;
            call.lasting(time, rate).run(&subject.lab)?;
            clock.offset(time / 8)?.ppm_since(&before)
        }
    };
    Ok(ppm)
}
