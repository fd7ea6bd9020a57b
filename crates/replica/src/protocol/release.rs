//! When what the guest has said may leave: which of those that hold its checkpoints are waited for.

use ninefold_model::Epoch;

/// A policy over who holds what. Each of those that count is named by the newest epoch whose output need not wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReleasePolicy {
    /// All that count hold the epoch: whoever of them takes over has all that was said.
    All,
    /// One of them does. The model checker shows what that costs: another may take over without it. Safe only where it is
    /// agreed by a vote who takes over.
    One,
}

impl ReleasePolicy {
    /// The newest epoch whose output may leave; `None` when nobody counts.
    pub fn newest(self, holders: impl Iterator<Item = Epoch>) -> Option<Epoch> {
        match self {
            Self::All => holders.min(),
            Self::One => holders.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_or_the_quickest_is_waited_for() {
        let holders = || [5, 3, 9].into_iter().map(Epoch);
        assert_eq!(ReleasePolicy::All.newest(holders()), Some(Epoch(3)));
        assert_eq!(ReleasePolicy::One.newest(holders()), Some(Epoch(9)));
        assert_eq!(ReleasePolicy::All.newest(std::iter::empty()), None);
    }
}
