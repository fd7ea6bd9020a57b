//! Memory that checks itself: filled from a seeded generator, verified word by word, filled anew, for ever.
//!
//! A page that a failover brought back from the wrong epoch holds words of another round, and is counted.

use std::hint::black_box;

use crate::job::{Job, Shared, StartError};
use crate::memory::{self, Page};
use crate::rng::Rng;

/// Starts checking; [`Shared::done`] counts whole rounds and [`Shared::errors`] wrong words.
///
/// # Errors
/// When the guest has too little memory or gives no thread.
pub fn start(mib: u64, seed: u64) -> Result<Job, StartError> {
    let shares = memory::take(mib, 1).map_err(StartError::Memory)?;
    let work = shares.into_iter().map(|pages| move |shared: &Shared| check(pages, seed, shared)).collect();
    Job::start(work).map_err(StartError::Threads)
}

fn check(mut pages: Vec<Page>, seed: u64, shared: &Shared) {
    let mut round = 0_u64;
    while fill(&mut pages, seed.wrapping_add(round), shared) {
        // Else the compiler may know what it has just written.
        black_box(&mut pages);
        if !verify(&pages, seed.wrapping_add(round), shared) {
            return;
        }
        shared.done.add(1);
        round += 1;
    }
}

/// False when told to stop.
fn fill(pages: &mut [Page], seed: u64, shared: &Shared) -> bool {
    let mut rng = Rng::new(seed);
    for page in pages {
        if shared.stopped() {
            return false;
        }
        page.0.fill_with(|| rng.next());
    }
    true
}

/// False when told to stop.
fn verify(pages: &[Page], seed: u64, shared: &Shared) -> bool {
    let mut rng = Rng::new(seed);
    for page in pages {
        if shared.stopped() {
            return false;
        }
        let wrong = page.0.iter().filter(|w| **w != rng.next()).count();
        if wrong > 0 {
            shared.errors.add(wrong as u64);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_rounds_and_sees_a_wrong_word() {
        let job = start(1, 5).expect("1 MiB");
        while job.shared().done.get() < 3 {
            std::thread::yield_now();
        }
        assert_eq!(job.shared().errors.get(), 0);

        let mut pages = vec![Page([0; memory::PAGE_WORDS]); 4];
        assert!(fill(&mut pages, 9, job.shared()));
        pages[2].0[17] ^= 1;
        assert!(verify(&pages, 9, job.shared()));
        assert_eq!(job.shared().errors.get(), 1);
    }
}
