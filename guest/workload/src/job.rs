//! Background threads that can be stopped, and the counters that they leave.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::disk::VolumeError;
use crate::memory::TooLittle;

/// Counts that threads raise and everyone reads. Plain statistics: relaxed order is enough.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a job's threads share with their owner.
#[derive(Debug)]
pub struct Shared {
    stop: AtomicBool,
    /// Work done: pages, spinner iterations, rounds or bytes, as the job says.
    pub done: Count,
    /// Words that were not what they should have been, or requests that failed.
    pub errors: Count,
    started: Instant,
}

impl Shared {
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Guest monotonic time since the job began, microseconds.
    pub fn elapsed_us(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }
}

/// Why a job did not start.
#[derive(Debug)]
pub enum StartError {
    Memory(TooLittle),
    Threads(std::io::Error),
    Volume(VolumeError),
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory(e) => e.fmt(f),
            Self::Volume(e) => e.fmt(f),
            Self::Threads(e) => write!(f, "no more threads: {e}"),
        }
    }
}

/// A running job. Dropping it stops its threads and waits for them.
#[derive(Debug)]
pub struct Job {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Job {
    /// Starts one thread for each of `work`; each is to return soon after [`Shared::stopped`] says so.
    ///
    /// # Errors
    /// When the guest gives no more threads; those already started are stopped.
    pub fn start<F>(work: Vec<F>) -> std::io::Result<Self>
    where
        F: FnOnce(&Shared) + Send + 'static,
    {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            done: Count::default(),
            errors: Count::default(),
            started: Instant::now(),
        });
        let mut job = Self { shared, threads: Vec::with_capacity(work.len()) };
        for body in work {
            let shared = Arc::clone(&job.shared);
            job.threads.push(std::thread::Builder::new().spawn(move || body(&shared))?);
        }
        Ok(job)
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic aborts the process, so a thread that ended has ended well.
            let _ = thread.join();
        }
    }
}
