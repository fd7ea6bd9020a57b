//! A set of pages of all blocks.

use super::page_set::PageSet;
use super::{DirtySet, PageRun};
use crate::blocks::BlockLayout;

/// Pages of all RAM blocks, a bit for each: what several scans have found, each page once.
#[derive(Debug)]
pub struct PageMap {
    blocks: Vec<PageSet>,
}

impl PageMap {
    /// An empty set with room for every page; 32 KiB for each GiB of memory.
    pub fn for_layout(layout: &BlockLayout) -> PageMap {
        PageMap { blocks: layout.blocks.iter().map(|block| PageSet::empty(block.pages())).collect() }
    }

    /// One that has room for no page.
    pub fn empty() -> PageMap {
        PageMap { blocks: Vec::new() }
    }

    /// Puts pages in. Those that no block has are ignored. Does not allocate.
    pub fn insert(&mut self, runs: &[PageRun]) {
        for run in runs {
            if let Some(set) = self.blocks.get_mut(usize::from(run.block)) {
                set.insert_range(run.first, run.first + u64::from(run.count));
            }
        }
    }

    /// Puts all pages of `other` in, a set for the same layout. Does not allocate.
    pub fn insert_all(&mut self, other: &PageMap) {
        for (ours, theirs) in self.blocks.iter_mut().zip(&other.blocks) {
            ours.add_all(theirs);
        }
    }

    /// How many pages are in it.
    pub fn pages(&self) -> u64 {
        self.blocks.iter().map(PageSet::count).sum()
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.blocks.iter_mut().for_each(PageSet::clear);
    }

    /// Moves all pages to `out`, which has room for the worst case of the same layout ([`DirtySet::for_layout`]) and is
    /// emptied first: in the order of blocks and addresses, as one scan would report them. Does not allocate.
    pub fn drain_into(&mut self, out: &mut DirtySet) {
        out.clear();
        for (block, set) in self.blocks.iter_mut().enumerate() {
            let mut at = 0;
            while let Some((mut first, end)) = set.next_run(at) {
                while first < end {
                    let count = u32::try_from(end - first).unwrap_or(u32::MAX);
                    out.push(PageRun { block: block as u16, first, count }, usize::MAX);
                    first += u64::from(count);
                }
                at = end;
            }
            set.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{Block, PAGE_SIZE};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Pages = BTreeSet<(u16, u64)>;

    fn pages(runs: &[PageRun]) -> Pages {
        runs.iter().flat_map(|r| (r.first..r.first + u64::from(r.count)).map(|p| (r.block, p))).collect()
    }

    fn some_runs() -> impl Strategy<Value = Vec<PageRun>> {
        let run = (0u16..2, 0u64..200, 1u32..90).prop_map(|(block, first, count)| PageRun { block, first, count });
        prop::collection::vec(run, 0..12)
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out_once_and_in_order(a in some_runs(), b in some_runs()) {
            let block = |name: &str, pages: u64| Block { name: name.into(), used: pages * PAGE_SIZE, total: pages * PAGE_SIZE };
            let layout = BlockLayout { blocks: vec![block("one", 150), block("two", 64)] };
            let (mut map, mut other) = (PageMap::for_layout(&layout), PageMap::for_layout(&layout));
            map.insert(&a);
            other.insert(&b);
            map.insert_all(&other);
            let expected: Pages =
                pages(&a).union(&pages(&b)).copied().filter(|&(b, p)| p < [150, 64][usize::from(b)]).collect();
            prop_assert_eq!(map.pages(), expected.len() as u64);
            let mut out = DirtySet::for_layout(&layout);
            map.drain_into(&mut out);
            prop_assert_eq!(map.pages(), 0);
            prop_assert_eq!(out.pages(), expected.len() as u64);
            prop_assert_eq!(pages(out.runs()), expected);
            let ordered = out.runs().windows(2).all(|w| (w[0].block, w[0].first + u64::from(w[0].count)) < (w[1].block, w[1].first));
            prop_assert!(ordered, "they are in order and do not touch: {:?}", out.runs());
        }
    }
}
