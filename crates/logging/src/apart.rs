//! A log that is written by a thread of its own: whoever takes it may be slow, or hang, and nobody who says something waits for that.
//!
//! ```text
//!   threads ──► lines, a bounded queue ──► this thread ──► standard error: a pipe, a socket of the system's log, a file on a disk that hangs
//!                 └─ full: counted as lost, which is said when there is room again
//! ```

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that may wait to be written. Each is [bounded](crate::lines) itself.
const LINES: usize = 1024;
/// How often it is looked whether there is room for who waits until all is written.
const LOOK: Duration = Duration::from_millis(1);

enum Job {
    Line(Vec<u8>),
    /// All before this is written.
    Settled(SyncSender<()>),
}

/// See the [module](self).
#[derive(Clone)]
pub struct Apart {
    jobs: SyncSender<Job>,
    lost: Arc<AtomicU64>,
}

impl Apart {
    /// Starts the thread. What it says goes to `out`, whose errors are passed over: there is nobody to tell.
    ///
    /// # Errors
    /// No more threads.
    pub fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (jobs, work) = sync_channel(LINES);
        let lost = Arc::<AtomicU64>::default();
        let its = Arc::clone(&lost);
        thread::Builder::new().name("stderr".into()).spawn(move || run(out, &work, &its))?;
        Ok(Self { jobs, lost })
    }

    /// Waits until all that was said before is written, but for no longer than `limit`.
    pub fn settle(&self, limit: Duration) {
        let begun = Instant::now();
        let left = || limit.saturating_sub(begun.elapsed());
        let (done, settled) = sync_channel(1);
        let mut job = Job::Settled(done);
        while let Err(refused) = self.jobs.try_send(job) {
            match refused {
                TrySendError::Full(again) if !left().is_zero() => job = again,
                _ => return,
            }
            thread::sleep(LOOK);
        }
        let _ = settled.recv_timeout(left());
    }
}

/// One write is one line, or several that belong together.
impl Write for Apart {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.jobs.try_send(Job::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn run(mut out: impl Write, work: &Receiver<Job>, lost: &AtomicU64) {
    while let Ok(job) = work.recv() {
        let missed = lost.swap(0, Ordering::Relaxed);
        if missed > 0 {
            let _ = writeln!(out, "{missed} lines of this log are lost: whoever takes them was too slow");
        }
        match job {
            Job::Line(line) => drop(out.write_all(&line)),
            Job::Settled(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use super::*;

    /// Takes nothing until it is told to.
    struct Hung {
        let_go: Option<Receiver<()>>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Hung {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(let_go) = self.let_go.take() {
                let _ = let_go.recv();
            }
            self.taken.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_who_takes_the_log_and_what_is_lost_is_counted() {
        let (lets_go, let_go) = channel();
        let taken = Arc::<Mutex<Vec<u8>>>::default();
        let mut log = Apart::to(Hung { let_go: Some(let_go), taken: Arc::clone(&taken) }).unwrap();
        // More than may wait.
        let said = 3 * LINES;
        for n in 0..said {
            log.write_all(format!("line {n}\n").as_bytes()).unwrap();
        }
        assert!(taken.lock().unwrap().is_empty());
        log.settle(Duration::ZERO);
        lets_go.send(()).unwrap();
        log.settle(Duration::from_secs(60));
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().filter(|l| l.starts_with("line ")).collect();
        let written = lines.len();
        let lost: usize = text
            .lines()
            .filter_map(|l| l.strip_suffix(" lines of this log are lost: whoever takes them was too slow"))
            .map(|n| n.parse::<usize>().unwrap())
            .sum();
        assert!(written >= LINES && lost > 0, "{written} {lost}");
        assert_eq!(written + lost, said);
        // What is lost may be said between any two, as the thread may begin late.
        assert_eq!(lines[..2], ["line 0", "line 1"], "in their order");
    }
}
