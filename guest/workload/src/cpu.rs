//! A fixed amount of CPU work, and the free-running spinner. Neither touches memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::command::CpuAmount;
use crate::job::{Job, Shared};
use crate::rng::Rng;

/// Generator steps in one iteration.
const STEPS: u32 = 1000;

/// What the work came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// By all threads together.
    pub iterations: u64,
    /// Guest monotonic time.
    pub us: u64,
    /// For a number of iterations (not for a time) the same on every run: a wrong one means a wrong CPU state.
    pub result: u64,
}

/// Works in the foreground, on `threads` threads at once.
///
/// # Errors
/// When the guest gives no threads.
pub fn run(amount: CpuAmount, threads: u64) -> std::io::Result<Done> {
    let start = Instant::now();
    let (iterations, result) = std::thread::scope(|scope| -> std::io::Result<(u64, u64)> {
        let mut workers = Vec::new();
        for n in 0..threads {
            workers.push(std::thread::Builder::new().spawn_scoped(scope, move || one(amount, n, start))?);
        }
        // A panic aborts the process, so there is no failed join to tell apart.
        Ok(workers.into_iter().filter_map(|w| w.join().ok()).fold((0, 0), |(i, r), (n, x)| (i + n, r ^ x)))
    })?;
    Ok(Done { iterations, us: start.elapsed().as_micros() as u64, result })
}

fn one(amount: CpuAmount, thread: u64, start: Instant) -> (u64, u64) {
    let mut rng = Rng::new(thread);
    let mut last = 0;
    let mut done = 0;
    loop {
        let enough = match amount {
            CpuAmount::Iterations(n) => done >= n,
            CpuAmount::Millis(ms) => start.elapsed() >= Duration::from_millis(ms),
        };
        if enough {
            return (done, last);
        }
        last = iteration(&mut rng);
        done += 1;
    }
}

fn iteration(rng: &mut Rng) -> u64 {
    for _ in 1..STEPS {
        black_box(rng.next());
    }
    rng.next()
}

/// Starts the spinner; [`Shared::done`] counts iterations.
///
/// # Errors
/// When the guest gives no threads.
pub fn spin(threads: u64) -> std::io::Result<Job> {
    let work = (0..threads)
        .map(|n| {
            move |shared: &Shared| {
                let mut rng = Rng::new(n);
                while !shared.stopped() {
                    black_box(iteration(&mut rng));
                    shared.done.add(1);
                }
            }
        })
        .collect();
    Job::start(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iterations_are_exact_and_repeatable() {
        let a = run(CpuAmount::Iterations(50), 2).expect("threads");
        let b = run(CpuAmount::Iterations(50), 2).expect("threads");
        assert_eq!((a.iterations, a.result), (100, b.result));
        assert_ne!(a.result, run(CpuAmount::Iterations(51), 2).expect("threads").result);
    }

    #[test]
    fn time_is_kept() {
        let done = run(CpuAmount::Millis(5), 1).expect("threads");
        assert!(done.us >= 5000 && done.iterations > 0);
    }

    #[test]
    fn spinner_counts_until_dropped() {
        let job = spin(2).expect("threads");
        while job.shared().done.get() < 10 {
            std::thread::yield_now();
        }
    }
}
