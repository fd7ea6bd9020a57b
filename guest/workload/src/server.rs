//! Connections, and the one set of background jobs that they share.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::command::{Command, JobKind};
use crate::job::{Job, StartError};
use crate::reply::Reply;
use crate::{checksum, cpu, dirty, disk};

/// The longest line taken, bytes.
const MAX_LINE: u64 = 512;
/// Connections served at once; more are closed at once.
const MAX_CONNECTIONS: usize = 64;

/// What all connections share.
#[derive(Debug)]
struct Workload {
    started: Instant,
    jobs: Mutex<Jobs>,
    connections: AtomicUsize,
}

#[derive(Debug, Default)]
struct Jobs {
    dirty: Option<Job>,
    spin: Option<Job>,
    checksum: Option<Job>,
    disk: Option<Job>,
}

/// Serves until the listener fails for good.
pub fn serve(listener: &TcpListener) {
    let workload = Workload { started: Instant::now(), jobs: Mutex::default(), connections: AtomicUsize::new(0) };
    std::thread::scope(|scope| {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            if workload.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
                workload.connections.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let workload = &workload;
            let served = std::thread::Builder::new().spawn_scoped(scope, move || {
                // A connection that breaks is its client's affair.
                let _ = workload.converse(stream);
                workload.connections.fetch_sub(1, Ordering::Relaxed);
            });
            if served.is_err() {
                workload.connections.fetch_sub(1, Ordering::Relaxed);
            }
        }
    });
}

impl Workload {
    fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut lines = BufReader::new(stream.try_clone()?);
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                stream.write_all(Reply::error(&"line too long or cut off").as_bytes())?;
                return Ok(());
            }
            let answer = match Command::parse(&String::from_utf8_lossy(&line)) {
                Ok(command) => self.obey(command),
                Err(e) => Reply::error(&e),
            };
            stream.write_all(answer.as_bytes())?;
        }
    }

    fn obey(&self, command: Command) -> String {
        match command {
            Command::Ping => self.state("ping", &self.jobs()),
            Command::Progress => self.state("progress", &self.jobs()),
            Command::Stop(which) => {
                let mut jobs = self.jobs();
                // The counters as they were; the jobs end with the drop below, before the answer goes out.
                let state = self.state("stop", &jobs);
                for kind in JobKind::ALL {
                    if which.is_none_or(|w| w == kind) {
                        jobs.slot(kind).take();
                    }
                }
                state
            }
            Command::Dirty(how) => self.replace("dirty", JobKind::Dirty, || dirty::start(how)),
            Command::Spin { threads } => {
                self.replace("spin", JobKind::Spin, || cpu::spin(threads).map_err(StartError::Threads))
            }
            Command::Checksum { mib, seed } => {
                self.replace("checksum", JobKind::Checksum, || checksum::start(mib, seed))
            }
            Command::Disk { job, volume, threads } => {
                self.replace("disk", JobKind::Disk, || disk::start(job, &volume, threads))
            }
            Command::Rewrite { volume, percent } => {
                let done = disk::Volume::open(&volume)
                    .and_then(|volume| disk::rewrite(&volume, percent).map_err(disk::VolumeError::Io));
                match done {
                    Ok(done) => {
                        let mut reply = Reply::to("rewrite");
                        reply.number("bytes", done.bytes).number("us", done.us);
                        reply.finish()
                    }
                    Err(e) => Reply::error(&e),
                }
            }
            Command::Cpu { amount, threads } => match cpu::run(amount, threads) {
                Ok(done) => {
                    let mut reply = Reply::to("cpu");
                    reply
                        .number("iterations", done.iterations)
                        .number("us", done.us)
                        .text("result", &format!("{:016x}", done.result));
                    reply.finish()
                }
                Err(e) => Reply::error(&e),
            },
        }
    }

    /// The old job of the kind goes first, with its memory.
    fn replace(&self, name: &str, kind: JobKind, start: impl FnOnce() -> Result<Job, StartError>) -> String {
        let mut jobs = self.jobs();
        jobs.slot(kind).take();
        match start() {
            Ok(job) => {
                *jobs.slot(kind) = Some(job);
                self.state(name, &jobs)
            }
            Err(e) => Reply::error(&e),
        }
    }

    fn state(&self, command: &str, jobs: &Jobs) -> String {
        let mut reply = Reply::to(command);
        reply.number("uptime_us", self.started.elapsed().as_micros() as u64);
        if let Some(job) = &jobs.spin {
            reply.number("spin", job.shared().done.get()).number("spin_us", job.shared().elapsed_us());
        }
        if let Some(job) = &jobs.dirty {
            reply.number("dirty_pages", job.shared().done.get()).number("dirty_us", job.shared().elapsed_us());
        }
        if let Some(job) = &jobs.checksum {
            reply
                .number("checksum_rounds", job.shared().done.get())
                .number("checksum_errors", job.shared().errors.get())
                .number("checksum_us", job.shared().elapsed_us());
        }
        if let Some(job) = &jobs.disk {
            reply
                .number("disk_bytes", job.shared().done.get())
                .number("disk_errors", job.shared().errors.get())
                .number("disk_us", job.shared().elapsed_us());
        }
        reply.finish()
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    fn slot(&mut self, kind: JobKind) -> &mut Option<Job> {
        match kind {
            JobKind::Dirty => &mut self.dirty,
            JobKind::Spin => &mut self.spin,
            JobKind::Checksum => &mut self.checksum,
            JobKind::Disk => &mut self.disk,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(stream: &TcpStream, line: &str) -> String {
        (&mut &*stream).write_all(format!("{line}\n").as_bytes()).expect("write");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("answer");
        answer
    }

    fn connect() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        std::thread::spawn(move || serve(&listener));
        TcpStream::connect(address).expect("connect")
    }

    #[test]
    fn one_answer_a_line() {
        let c = connect();
        assert!(ask(&c, "ping").starts_with("{\"ok\":true,\"command\":\"ping\",\"uptime_us\":"));
        assert!(ask(&c, "nonsense").contains("unknown command"));
        assert!(ask(&c, "cpu iterations=3 threads=2").contains("\"iterations\":6,"));
        assert!(ask(&c, "dirty pattern=hot mib=1 mbps=1").contains("\"dirty_pages\":"));
        assert!(ask(&c, "checksum mib=1").contains("\"checksum_errors\":0"));
        assert!(ask(&c, "spin").contains("\"spin\":"));
        assert!(ask(&c, "dirty pattern=hot mib=1048576").contains("can be had"));
        assert!(ask(&c, "disk job=fsync volume=none").contains("no disk has the serial number 'none'"));
        assert!(ask(&c, "rewrite volume=none percent=1").contains("no disk"));
        let state = ask(&c, "progress");
        // The refused `dirty` had stopped the one before.
        assert!(state.contains("\"spin\":") && !state.contains("\"dirty_pages\":"));
        assert!(ask(&c, "stop").contains("\"checksum_rounds\":"));
        assert!(!ask(&c, "progress").contains("spin"));
    }

    #[test]
    fn long_lines_end_the_connection() {
        let c = connect();
        assert!(ask(&c, &"x".repeat(4000)).contains("too long"));
    }
}
