//! What scans find.

use super::page_run::PageRun;
use crate::blocks::BlockLayout;

/// Room for the result of scans. Never reallocated.
#[derive(Debug)]
pub struct DirtySet {
    runs: Vec<PageRun>,
    pages: u64,
    capacity: usize,
}

impl DirtySet {
    /// Room for the worst case of one scan: every second page of every block. 16 bytes per two pages of address space;
    /// the kernel gives memory only to what is really used.
    pub fn for_layout(layout: &BlockLayout) -> DirtySet {
        Self::with_capacity(layout.blocks.iter().map(|b| b.pages().div_ceil(2) as usize).sum::<usize>())
    }

    /// Room for `capacity` runs.
    pub fn with_capacity(capacity: usize) -> DirtySet {
        DirtySet { runs: Vec::with_capacity(capacity), pages: 0, capacity }
    }

    /// The runs, per scan in the order of blocks and addresses; within a scan they do not touch or overlap.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// Pages in all runs.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Empties it; the room stays.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.pages = 0;
    }

    /// Runs that it has room for, in all.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn room(&self) -> usize {
        self.capacity - self.runs.len()
    }

    /// Appends; joins with the run before when they touch and belong to the same scan.
    pub(super) fn push(&mut self, run: PageRun, joinable_from: usize) {
        self.pages += u64::from(run.count);
        if self.runs.len() > joinable_from
            && let Some(last) = self.runs.last_mut()
            && last.block == run.block
            && last.first + u64::from(last.count) == run.first
            && let Some(count) = last.count.checked_add(run.count)
        {
            last.count = count;
            return;
        }
        self.runs.push(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_runs_of_one_scan_join() {
        let mut set = DirtySet::with_capacity(4);
        let run = |block, first, count| PageRun { block, first, count };
        set.push(run(0, 1, 2), 0);
        set.push(run(0, 3, 1), 0);
        set.push(run(0, 5, 1), 0);
        set.push(run(1, 6, 1), 0);
        set.push(run(1, 7, 1), 3);
        assert_eq!(set.runs(), [run(0, 1, 3), run(0, 5, 1), run(1, 6, 1), run(1, 7, 1)]);
        assert_eq!((set.pages(), set.room()), (6, 0));
        set.clear();
        assert!(set.is_empty() && set.room() == 4);
    }
}
