//! When a VM's new place is told to the network after a switch.

use std::time::Duration;

/// When announcements are made, milliseconds after the switch: densely at first, when a frame may be lost or a thawed
/// host may finish writing what it had committed, and for 5 s, so that such a late frame does not draw the VM's address
/// to the wrong switch port for long.
pub const SCHEDULE_MS: [u64; 10] = [0, 20, 50, 150, 300, 600, 1000, 2000, 3000, 5000];

/// The times that are still to come. Pure: the caller says how much time has passed since the switch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnnouncePlan {
    done: usize,
}

impl AnnouncePlan {
    /// At the time of the switch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// When the next announcement is due, counted from the switch; `None` when all have been made.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        SCHEDULE_MS.get(self.done).map(|ms| Duration::from_millis(*ms))
    }

    /// Whether to announce now, `since` the switch. Times that were missed are made up for by one announcement.
    pub fn due(&mut self, since: Duration) -> bool {
        let before = self.done;
        while self.next().is_some_and(|at| at <= since) {
            self.done += 1;
        }
        self.done > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_runs_through_its_schedule() {
        let mut plan = AnnouncePlan::new();
        let mut made = Vec::new();
        while let Some(at) = plan.next() {
            assert!(at.is_zero() || !plan.due(at - Duration::from_millis(1)));
            assert!(plan.due(at));
            assert!(!plan.due(at));
            made.push(at.as_millis() as u64);
        }
        assert_eq!(made, SCHEDULE_MS);
        assert!(!plan.due(Duration::from_secs(60)));
    }

    #[test]
    fn missed_times_are_made_up_for_once() {
        let mut plan = AnnouncePlan::new();
        assert!(plan.due(Duration::from_millis(700)));
        assert_eq!(plan.next(), Some(Duration::from_millis(1000)));
    }
}
