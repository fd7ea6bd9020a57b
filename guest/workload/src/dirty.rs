//! Memory written in patterns, at a rate.

use std::hint::black_box;
use std::time::Duration;

use crate::command::{Dirty, Pattern};
use crate::job::{Job, Shared, StartError};
use crate::memory::{self, PAGE_BYTES, PAGE_WORDS, Page};
use crate::rng::Rng;

/// Pages written between two looks at the clock and at the stop flag.
const BATCH: u64 = 16;

/// Starts dirtying; [`Shared::done`] counts pages.
///
/// # Errors
/// When the guest has too little memory or gives no threads.
pub fn start(how: Dirty) -> Result<Job, StartError> {
    let shares = memory::take(how.mib, how.threads).map_err(StartError::Memory)?;
    let work =
        shares.into_iter().zip(0..).map(|(pages, n)| move |shared: &Shared| write(pages, how, n, shared)).collect();
    Job::start(work).map_err(StartError::Threads)
}

fn write(mut pages: Vec<Page>, how: Dirty, thread: u64, shared: &Shared) {
    let mut rng = Rng::new(thread);
    let mut cursor = 0;
    let mut written = 0;
    while !shared.stopped() {
        if ahead(written, how, shared.elapsed_us()) {
            // The guest's timer decides how fine this is; the rate holds on average.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        for _ in 0..BATCH {
            let index = next_page(how.pattern, &mut cursor, pages.len(), &mut rng);
            touch(how.pattern, &mut pages[index], &mut rng);
        }
        // The compiler must believe that somebody reads it.
        black_box(&mut pages);
        written += BATCH;
        shared.done.add(BATCH);
    }
}

/// Has this thread written all that its share of the rate allows by now?
fn ahead(written: u64, how: Dirty, elapsed_us: u64) -> bool {
    // mbps is bytes a microsecond.
    let allowed = u128::from(how.mbps) * u128::from(elapsed_us) / u128::from(how.threads);
    how.mbps != 0 && u128::from(written) * u128::from(PAGE_BYTES) > allowed
}

/// Which page is written next; moves `cursor`.
fn next_page(pattern: Pattern, cursor: &mut usize, pages: usize, rng: &mut Rng) -> usize {
    match pattern {
        Pattern::Sequential | Pattern::Stride | Pattern::SameValue => {
            let index = *cursor % pages;
            *cursor = index + 1;
            index
        }
        Pattern::Random => rng.below(pages),
        Pattern::Hot if rng.below(16) == 0 => rng.below(pages),
        Pattern::Hot => rng.below(pages.div_ceil(16)),
    }
}

fn touch(pattern: Pattern, page: &mut Page, rng: &mut Rng) {
    match pattern {
        Pattern::Sequential | Pattern::Random | Pattern::Hot => page.0.fill_with(|| rng.next()),
        Pattern::Stride => page.0[rng.below(PAGE_WORDS)] = rng.next(),
        // Through black_box, else the stores of what is there already would be dropped.
        Pattern::SameValue => page.0.iter_mut().for_each(|w| *w = black_box(*w)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_shared_out() {
        let how = Dirty { pattern: Pattern::Random, mbps: 10, mib: 1, threads: 2 };
        // 5 MB/s for each thread: after one second 1220 pages.
        assert!(!ahead(1220, how, 1_000_000));
        assert!(ahead(1221, how, 1_000_000));
        assert!(!ahead(u64::MAX, Dirty { mbps: 0, ..how }, 0));
    }

    #[test]
    fn patterns_stay_inside_and_cover() {
        let mut rng = Rng::new(1);
        for pattern in [Pattern::Sequential, Pattern::Random, Pattern::Stride, Pattern::SameValue, Pattern::Hot] {
            for pages in [1, 2, 17, 256] {
                let mut cursor = 0;
                let mut hits = vec![0_u32; pages];
                for _ in 0..pages * 64 {
                    hits[next_page(pattern, &mut cursor, pages, &mut rng)] += 1;
                }
                assert!(hits.iter().all(|h| *h > 0) || matches!(pattern, Pattern::Random | Pattern::Hot));
                if pattern == Pattern::Hot && pages == 256 {
                    assert!(hits[..16].iter().sum::<u32>() > hits[16..].iter().sum::<u32>() * 8);
                }
            }
        }
    }

    #[test]
    fn contents_follow_the_pattern() {
        let mut rng = Rng::new(1);
        let mut page = Page([7; PAGE_WORDS]);
        touch(Pattern::SameValue, &mut page, &mut rng);
        assert_eq!(page, Page([7; PAGE_WORDS]));
        touch(Pattern::Stride, &mut page, &mut rng);
        assert_eq!(page.0.iter().filter(|w| **w != 7).count(), 1);
        touch(Pattern::Sequential, &mut page, &mut rng);
        assert!(page.0.iter().filter(|w| **w != 7).count() > 500);
    }

    #[test]
    fn runs_and_stops() {
        let job = start(Dirty { pattern: Pattern::Random, mbps: 0, mib: 1, threads: 2 }).expect("1 MiB");
        while job.shared().done.get() < 1000 {
            std::thread::yield_now();
        }
    }
}
