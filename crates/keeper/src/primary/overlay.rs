//! Which pages of a late scan were found by an early one already.

use ninefold_machine::PageRun;

/// A part of the late scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// These pages are in the early scan too, from its page number `at` on (counted over all its runs).
    Again { at: u64, run: PageRun },
    /// These are not.
    New(PageRun),
}

/// Splits the runs of `late` by those of `early` and gives the parts to `take`, in order. Both are ordered by block and
/// address, and their runs do not overlap (as one scan reports them). Linear in the number of runs; does not allocate.
pub fn split<E>(early: &[PageRun], late: &[PageRun], mut take: impl FnMut(Part) -> Result<(), E>) -> Result<(), E> {
    // `next` is the first early run that may reach the page at hand; `before` counts the pages of those before it.
    let (mut next, mut before) = (0, 0);
    for run in late {
        let end = run.first + u64::from(run.count);
        let mut first = run.first;
        while first < end {
            while let Some(e) = early.get(next)
                && (e.block, e.first + u64::from(e.count)) <= (run.block, first)
            {
                before += u64::from(e.count);
                next += 1;
            }
            let part = |stop: u64| PageRun { block: run.block, first, count: (stop - first) as u32 };
            let stop = match early.get(next).filter(|e| e.block == run.block && e.first < end) {
                Some(e) if e.first <= first => {
                    let stop = end.min(e.first + u64::from(e.count));
                    take(Part::Again { at: before + first - e.first, run: part(stop) })?;
                    stop
                }
                Some(e) => {
                    take(Part::New(part(e.first)))?;
                    e.first
                }
                None => {
                    take(Part::New(part(end)))?;
                    end
                }
            };
            first = stop;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    type Pages = BTreeSet<(u16, u64)>;

    fn pages() -> impl Strategy<Value = Pages> {
        prop::collection::btree_set((0u16..3, 0u64..40), 0..60)
    }

    fn runs(pages: &Pages) -> Vec<PageRun> {
        let mut runs: Vec<PageRun> = Vec::new();
        for &(block, page) in pages {
            match runs.last_mut() {
                Some(r) if r.block == block && r.first + u64::from(r.count) == page => r.count += 1,
                _ => runs.push(PageRun { block, first: page, count: 1 }),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn every_late_page_comes_once_and_is_found_where_it_was(early in pages(), late in pages()) {
            let places: Vec<(u16, u64)> = early.iter().copied().collect();
            let mut seen = Pages::new();
            let mut last = None;
            let done: Result<(), Infallible> = split(&runs(&early), &runs(&late), |part| {
                let (at, run) = match part {
                    Part::Again { at, run } => (Some(at), run),
                    Part::New(run) => (None, run),
                };
                for i in 0..u64::from(run.count) {
                    let page = (run.block, run.first + i);
                    assert!(Some(page) > last);
                    last = Some(page);
                    assert!(seen.insert(page));
                    assert_eq!(at.map(|at| places[(at + i) as usize]), early.contains(&page).then_some(page));
                }
                Ok(())
            });
            done.unwrap();
            prop_assert_eq!(seen, late);
        }
    }
}
