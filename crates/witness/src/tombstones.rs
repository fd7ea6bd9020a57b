//! What is left of VMs that were retired: so many tombstones at most, the oldest goes first.

use std::collections::{BTreeMap, HashMap};

use ninefold_model::Tombstone;
use ninefold_model::VmId;

/// Most tombstones that are kept. An id is never used twice, so an old one says little: whoever asks for a VM that was retired so many
/// retirements ago is told that it has no record.
pub const MAX_TOMBSTONES: usize = 4096;

/// All tombstones, in the order of their making.
#[derive(Debug, Default)]
pub struct Tombstones {
    by_id: HashMap<VmId, (u64, Tombstone)>,
    by_number: BTreeMap<u64, VmId>,
}

impl Tombstones {
    /// That of `vm`, if it was retired.
    #[must_use]
    pub fn get(&self, vm: VmId) -> Option<Tombstone> {
        self.by_id.get(&vm).map(|(_, tombstone)| *tombstone)
    }

    /// The number that the next one gets: they count up.
    #[must_use]
    pub fn next_number(&self) -> u64 {
        self.by_number.last_key_value().map_or(0, |(last, _)| last + 1)
    }

    /// Adds one. A second one of the same VM takes the place of the first.
    pub fn add(&mut self, number: u64, vm: VmId, tombstone: Tombstone) {
        if let Some((former, _)) = self.by_id.insert(vm, (number, tombstone)) {
            self.by_number.remove(&former);
        }
        self.by_number.insert(number, vm);
    }

    /// Those that have to go when `more` come, the oldest first.
    pub fn in_the_way(&self, more: usize) -> impl Iterator<Item = VmId> + '_ {
        let excess = (self.by_number.len() + more).saturating_sub(MAX_TOMBSTONES);
        self.by_number.values().copied().take(excess)
    }

    /// Forgets one.
    pub fn remove(&mut self, vm: VmId) {
        if let Some((number, _)) = self.by_id.remove(&vm) {
            self.by_number.remove(&number);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether nothing was ever retired.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use ninefold_model::Term;

    use super::*;

    #[test]
    fn the_oldest_goes_first_and_there_is_a_bound() {
        let mut all = Tombstones::default();
        let tombstone = Tombstone { term: Term(2), at_s: 7 };
        let id = |n: usize| VmId::random((n as u128) << 80);
        for n in 0..3 * MAX_TOMBSTONES {
            let gone: Vec<_> = all.in_the_way(1).collect();
            assert_eq!(gone, n.checked_sub(MAX_TOMBSTONES).map(id).into_iter().collect::<Vec<_>>());
            gone.into_iter().for_each(|vm| all.remove(vm));
            all.add(all.next_number(), id(n), tombstone);
            assert_eq!(all.get(id(n)), Some(tombstone));
        }
        assert_eq!((all.len(), all.by_number.len()), (MAX_TOMBSTONES, MAX_TOMBSTONES));
        assert_eq!(all.get(id(0)), None);
        assert_eq!(
            all.in_the_way(3).collect::<Vec<_>>(),
            [2, 2, 2].iter().zip(0..).map(|(n, m)| id(n * MAX_TOMBSTONES + m)).collect::<Vec<_>>()
        );
        // The same once more is one, the newest.
        all.add(all.next_number(), id(2 * MAX_TOMBSTONES), Tombstone { term: Term(3), at_s: 8 });
        assert_eq!((all.len(), all.by_number.len()), (MAX_TOMBSTONES, MAX_TOMBSTONES));
        assert_eq!(all.in_the_way(1).next(), Some(id(2 * MAX_TOMBSTONES + 1)));
    }
}
