//! A set of pages of one block: a bit for each.

/// Pages by their number. Its size is fixed.
#[derive(Debug)]
pub(super) struct PageSet {
    words: Vec<u64>,
    pages: u64,
    /// How many words were looked at in searches.
    #[cfg(test)]
    pub looked: std::cell::Cell<u64>,
}

impl PageSet {
    /// None of `pages` pages.
    pub(super) fn empty(pages: u64) -> PageSet {
        PageSet {
            words: vec![0; pages.div_ceil(64) as usize],
            pages,
            #[cfg(test)]
            looked: Default::default(),
        }
    }

    /// Puts a page in. Pages that the block does not have are ignored.
    pub(super) fn insert(&mut self, page: u64) {
        if page < self.pages {
            self.words[(page / 64) as usize] |= 1 << (page % 64);
        }
    }

    /// Puts the pages `first..end` in. Pages that the block does not have are ignored.
    pub(super) fn insert_range(&mut self, first: u64, end: u64) {
        each_word(first, end.min(self.pages), |word, mask| self.words[word] |= mask);
    }

    /// Puts all of `other`, a set of the same block, in.
    pub(super) fn add_all(&mut self, other: &PageSet) {
        for (ours, theirs) in self.words.iter_mut().zip(&other.words) {
            *ours |= theirs;
        }
    }

    /// How many pages are in it.
    pub(super) fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Moves all of `other`, a set of the same block, into this one.
    pub(super) fn take_all(&mut self, other: &mut PageSet) {
        for (ours, theirs) in self.words.iter_mut().zip(&mut other.words) {
            *ours |= std::mem::take(theirs);
        }
    }

    /// Empties it.
    pub(super) fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The first run at or behind page `from`, as long as it goes: its first page, and the page behind its last.
    pub(super) fn next_run(&self, from: u64) -> Option<(u64, u64)> {
        self.next_run_before(from, self.pages)
    }

    /// The same of the pages before `end`: no further is looked.
    pub(super) fn next_run_before(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        let end = end.min(self.pages);
        let first = self.next(from, end, 0)?;
        Some((first, self.next(first, end, !0).unwrap_or(end)))
    }

    /// The first run of the pages `from..end`, of at most `most` pages: no further is looked.
    pub(super) fn next_run_of(&self, most: u64, from: u64, end: u64) -> Option<(u64, u64)> {
        let first = self.next(from, end.min(self.pages), 0)?;
        self.next_run_before(first, first + most)
    }

    /// Takes the pages `first..end` out.
    pub(super) fn remove(&mut self, first: u64, end: u64) {
        each_word(first, end.min(self.pages), |word, mask| self.words[word] &= !mask);
    }

    /// Whether a page is in it.
    pub(super) fn contains(&self, page: u64) -> bool {
        page < self.pages && self.words[(page / 64) as usize] & (1 << (page % 64)) != 0
    }

    /// The first page from `from` on and before `end` that is in the set (`invert` is 0) or is not (`!0`).
    fn next(&self, from: u64, end: u64, invert: u64) -> Option<u64> {
        if from >= end {
            return None;
        }
        let start = (from / 64) as usize;
        let mut mask = !0 << (from % 64);
        for (index, word) in self.words[..end.div_ceil(64) as usize].iter().enumerate().skip(start) {
            #[cfg(test)]
            self.looked.set(self.looked.get() + 1);
            let found = (word ^ invert) & mask;
            if found != 0 {
                let page = index as u64 * 64 + u64::from(found.trailing_zeros());
                return (page < end).then_some(page);
            }
            mask = !0;
        }
        None
    }
}

/// Calls `with` for every word that pages `first..end` have bits in, with those bits.
fn each_word(first: u64, end: u64, mut with: impl FnMut(usize, u64)) {
    let mut at = first;
    while at < end {
        let (word, bit) = ((at / 64) as usize, at % 64);
        let count = (64 - bit).min(end - at);
        with(word, if count == 64 { !0 } else { ((1 << count) - 1) << bit });
        at += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn drain(set: &mut PageSet) -> (BTreeSet<u64>, usize) {
        let (mut found, mut runs, mut at) = (BTreeSet::new(), 0, 0);
        while let Some((first, end)) = set.next_run(at) {
            assert!(first >= at && end > first);
            set.remove(first, end);
            found.extend(first..end);
            (runs, at) = (runs + 1, end);
        }
        (found, runs)
    }

    proptest! {
        #[test]
        fn gives_back_what_was_put_in(
            pages in 1_u64..400,
            ours in prop::collection::vec(0_u64..400, 0..300),
            theirs in prop::collection::vec(0_u64..400, 0..50),
        ) {
            let (mut set, mut other) = (PageSet::empty(pages), PageSet::empty(pages));
            ours.iter().for_each(|p| set.insert(*p));
            theirs.iter().for_each(|p| other.insert(*p));
            set.take_all(&mut other);
            prop_assert_eq!(other.next_run(0), None);
            let expected: BTreeSet<u64> = ours.into_iter().chain(theirs).filter(|p| *p < pages).collect();
            let borders = expected.iter().filter(|p| **p == 0 || !expected.contains(&(**p - 1))).count();
            prop_assert_eq!(drain(&mut set), (expected, borders));
            prop_assert_eq!(set.next_run(0), None);
        }

        #[test]
        fn removes_exactly_a_range(pages in 1_u64..300, first in 0_u64..300, length in 0_u64..300) {
            let mut set = PageSet::empty(pages);
            (0..pages).for_each(|p| set.insert(p));
            set.remove(first, first + length);
            let expected: BTreeSet<u64> = (0..pages).filter(|p| *p < first || *p >= first + length).collect();
            prop_assert_eq!(drain(&mut set).0, expected);
        }
    }
}
