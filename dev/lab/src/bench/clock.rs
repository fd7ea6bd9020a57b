//! How well the guest's clock keeps time: against the host's, under the loads that its pauses depend on.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::plan::{ClockLoad, MIDDLE_RANGE, Mode, PIPELINED};
use super::redis::Call;
use super::subject::Subject;
use crate::error::LabError;
use crate::guest_clock::{Drift, GuestClock};

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

/// How long a drift is measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// At least.
    pub least: Duration,
    /// Longer, until it is so exact ...
    pub error_ppm: f64,
    /// ... but no longer than this.
    pub most: Duration,
}

impl Span {
    /// About this time, however exact that is.
    pub fn of(time: Duration) -> Self {
        Self { least: time, error_ppm: f64::INFINITY, most: time }
    }
}

/// How much faster than the host's the guest's clock is under a load. `rate`: requests a second that the guest answers.
///
/// # Errors
/// A VM that cannot be brought into the mode; a guest that does not answer.
pub fn measure(subject: &mut Subject, load: ClockLoad, span: Span, rate: f64) -> Result<Drift, LabError> {
    subject.enter(if load == ClockLoad::Unprotected { Mode::Unprotected } else { Mode::Adaptive })?;
    let mut clock = GuestClock::connect(&subject.lab)?;
    if load == ClockLoad::Dirty100 {
        subject.workload.dirty(100)?;
    }
    let (clients, pipeline) = PIPELINED;
    let call = Call { test: "set", clients, pipeline, range: MIDDLE_RANGE, requests: 0 };
    let asking = span.least / 4;
    let before = clock.reading(asking)?;
    let began = Instant::now();
    let drift = loop {
        // Half of the time lies between the first two readings. A full pipeline is not asked into: what waits behind it would be measured.
        match load {
            ClockLoad::Redis => drop(call.lasting(span.least / 2, rate).run(&subject.lab)?),
            _ => std::thread::sleep(span.least / 2),
        }
        let drift = clock.reading(asking)?.drift_since(&before);
        if drift.error_ppm <= span.error_ppm || began.elapsed() >= span.most {
            break drift;
        }
    };
    if load == ClockLoad::Dirty100 {
        subject.workload.stop()?;
    }
    Ok(drift)
}
