//! A set of bytes of an image.

use std::collections::BTreeMap;
use std::ops::Range;

/// How many ranges a set has at most.
pub const MOST: usize = 16 << 10;
/// To what the bounds of ranges are rounded first when a set has too many, bytes.
const COARSE: u64 = 64 << 10;

/// See the [module](self).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// How many ranges it has.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn put(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut first, mut last) = (start, end);
        // Those that touch it become one with it.
        while let Some((&at, &to)) = self.0.range(..=last).next_back().filter(|(_, to)| **to >= first) {
            self.0.remove(&at);
            (first, last) = (first.min(at), last.max(to));
        }
        self.0.insert(first, last);
    }

    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while let Some((&at, &to)) = self.0.range(..end).next_back().filter(|(_, to)| **to > start) {
            self.0.remove(&at);
            if to > end {
                self.0.insert(end, to);
            }
            if at < start {
                self.0.insert(at, start);
            }
        }
    }

    pub fn put_all(&mut self, others: &Ranges) {
        others.0.iter().for_each(|(&start, &end)| self.put(start, end));
    }

    pub fn remove_all(&mut self, others: &Ranges) {
        others.0.iter().for_each(|(&start, &end)| self.remove(start, end));
    }

    pub fn touches(&self, start: u64, end: u64) -> bool {
        start < end && self.0.range(..end).next_back().is_some_and(|(_, to)| *to > start)
    }

    /// Makes it larger until it has few ranges, but not larger than an image of `size` bytes.
    pub fn widen(&mut self, size: u64) {
        let mut grain = COARSE;
        while self.0.len() > MOST {
            let all = std::mem::take(&mut self.0);
            let up = |end: u64| end.checked_next_multiple_of(grain).unwrap_or(u64::MAX).min(size);
            all.into_iter().for_each(|(start, end)| self.put(start - start % grain, up(end)));
            grain = grain.saturating_mul(2);
        }
    }

    /// All of it in pieces of at most `bytes` bytes in at most `few` ranges. What is between those ranges goes with them.
    pub fn steps(&self, bytes: u64, few: usize) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut ranges = self.0.iter().map(|(&start, &end)| start..end).peekable();
        std::iter::from_fn(move || {
            let mut step: Option<Range<u64>> = None;
            let (mut left, mut count) = (bytes, 0);
            while left > 0
                && count < few
                && let Some(next) = ranges.peek_mut()
            {
                let end = next.end.min(next.start + left);
                left -= end - next.start;
                count += 1;
                step = Some(step.map_or(next.start, |step| step.start)..end);
                next.start = end;
                if next.is_empty() {
                    ranges.next();
                }
            }
            step
        })
    }

    /// Makes it smaller until it has few ranges.
    pub fn narrow(&mut self) {
        while self.0.len() > MOST {
            self.0.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 48;

    fn bytes(ranges: &Ranges) -> Vec<bool> {
        (0..SIZE as u64).map(|at| ranges.touches(at, at + 1)).collect()
    }

    proptest! {
        #[test]
        fn ranges_are_sets(ops in prop::collection::vec((any::<bool>(), 0..SIZE as u64, 0..16u64), 0..40)) {
            let mut truth = vec![false; SIZE];
            let mut ranges = Ranges::default();
            for (put, start, length) in ops {
                let end = (start + length).min(SIZE as u64);
                if put { ranges.put(start, end) } else { ranges.remove(start, end) }
                truth[start as usize..end as usize].fill(put);
                prop_assert_eq!(bytes(&ranges), &truth[..]);
                let runs = truth.iter().zip(std::iter::once(&false).chain(&truth)).filter(|(now, before)| **now && !**before);
                prop_assert_eq!(ranges.0.len(), runs.count(), "ranges that touch are one");
            }
        }

        /// No step is long, and together they are all of the set.
        #[test]
        fn steps_are_bounded_and_reach_over_all(
            puts in prop::collection::vec((0..SIZE as u64, 1..16u64), 0..12), most in 1..20u64, few in 1..4usize,
        ) {
            let mut ranges = Ranges::default();
            puts.iter().for_each(|(start, length)| ranges.put(*start, start + length));
            let (mut rest, mut last) = (ranges.clone(), 0);
            for step in ranges.steps(most, few) {
                prop_assert!(step.start >= last && !step.is_empty());
                let before = |ranges: &Ranges| ranges.0.iter().map(|(start, end)| end - start).sum::<u64>();
                let (bytes, count) = (before(&rest), rest.0.range(step.clone()).count());
                rest.remove(step.start, step.end);
                prop_assert!(bytes - before(&rest) <= most && count <= few);
                last = step.end;
            }
            prop_assert!(rest.is_empty());
        }
    }
}
