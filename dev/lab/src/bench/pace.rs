//! How far a run is.

use std::time::{Duration, Instant};

/// How far a run is: told at the beginning of every stage, and once at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub what: String,
    /// Planned time of the stages behind and of all.
    pub done: Duration,
    pub total: Duration,
    /// What is probably left, from how the stages behind kept to their plan.
    pub left: Duration,
}

/// Follows a run through its stages.
#[derive(Debug)]
pub(super) struct Pace {
    begin: Instant,
    total: Duration,
    done: Duration,
}

impl Pace {
    /// A run begins that is planned to take so long.
    pub fn new(total: Duration) -> Self {
        Self { begin: Instant::now(), total, done: Duration::ZERO }
    }

    /// A stage begins.
    pub fn at(&self, what: String) -> Progress {
        // Stages that are behind say how fast the plan really passes.
        let pace = if self.done.is_zero() { 1.0 } else { self.begin.elapsed().as_secs_f64() / self.done.as_secs_f64() };
        let left = self.total.saturating_sub(self.done).mul_f64(pace);
        Progress { what, done: self.done, total: self.total, left }
    }

    /// A stage that was planned to take so long is behind.
    pub fn pass(&mut self, cost: Duration) {
        self.done += cost;
    }

    /// All stages are behind.
    pub fn end(&self) -> Progress {
        Progress { what: "done".into(), done: self.done, total: self.total, left: Duration::ZERO }
    }

    pub fn took(&self) -> Duration {
        self.begin.elapsed()
    }
}
