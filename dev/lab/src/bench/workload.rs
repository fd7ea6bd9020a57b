//! Asking the guest's workload server (see `guest/README.md`).

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{LabError, io_at};
use crate::lab::Lab;
use crate::netns::connect;
use crate::topology::{CLIENT, GUEST_IP};

/// Where the guest's workload server listens.
const PORT: u16 = 7000;
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The memory that is written to.
const DIRTY_MIB: u32 = 64;
const PAGE: f64 = 4096.0;

/// One connection, from the client's host. It outlives failovers.
#[derive(Debug)]
pub struct Workload {
    reader: BufReader<TcpStream>,
}

impl Workload {
    /// Connects.
    ///
    /// # Errors
    /// The client's namespace is gone, or nobody accepts the connection within a minute.
    pub fn connect(lab: &Lab) -> Result<Self, LabError> {
        let stream = connect(Some(&lab.netns(CLIENT)?), SocketAddr::new(GUEST_IP, PORT), PATIENCE)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends one command and waits for its answer; one that says `"ok":false` is an error.
    ///
    /// # Errors
    /// The connection breaks, no answer comes within a minute, or the answer is unreadable or says that the guest has not done
    /// it.
    pub fn ask(&mut self, command: &str) -> Result<Value, LabError> {
        let failed = |detail: String| LabError::Command { what: format!("the guest's workload '{command}'"), detail };
        self.reader.get_mut().write_all(format!("{command}\n").as_bytes()).map_err(io_at("write to the workload"))?;
        let mut line = String::new();
        self.reader.read_line(&mut line).map_err(io_at("read from the workload"))?;
        let answer: Value = serde_json::from_str(&line).map_err(|e| failed(format!("{e}: '{}'", line.trim())))?;
        match answer["ok"].as_bool() {
            Some(true) => Ok(answer),
            _ => Err(failed(answer["error"].as_str().unwrap_or("refused").to_owned())),
        }
    }

    fn number(&mut self, command: &str, key: &str) -> Result<u64, LabError> {
        let answer = self.ask(command)?;
        answer[key].as_u64().ok_or_else(|| LabError::Command {
            what: format!("the guest's workload '{command}'"),
            detail: format!("no '{key}' in {answer}"),
        })
    }

    /// How many iterations the guest does in `time` of its own.
    ///
    /// # Errors
    /// It fails as [`Workload::ask`] does, and when the answer has no number of iterations.
    pub fn iterations_in(&mut self, time: Duration) -> Result<u64, LabError> {
        self.number(&format!("cpu ms={}", time.as_millis().max(1)), "iterations")
    }

    /// Iterations a second, by the clock outside the guest.
    ///
    /// # Errors
    /// It fails as [`Workload::iterations_in`] does.
    pub fn cpu(&mut self, iterations: u64) -> Result<f64, LabError> {
        let begin = Instant::now();
        let done = self.number(&format!("cpu iterations={}", iterations.max(1)), "iterations")?;
        Ok(done as f64 / begin.elapsed().as_secs_f64())
    }

    /// Begins to write to memory; ends with [`Workload::stop`].
    ///
    /// # Errors
    /// It fails as [`Workload::ask`] does.
    pub fn dirty(&mut self, mbps: u32) -> Result<(), LabError> {
        self.dirty_all(DIRTY_MIB.into(), mbps)
    }

    /// The same to so much of the memory.
    ///
    /// # Errors
    /// It fails as [`Workload::ask`] does.
    pub fn dirty_all(&mut self, mib: u64, mbps: u32) -> Result<(), LabError> {
        self.ask(&format!("dirty pattern=sequential mib={mib} mbps={mbps}")).map(drop)
    }

    /// What has been dirtied so far, 10^6 bytes.
    ///
    /// # Errors
    /// It fails as [`Workload::ask`] does, and when the answer has no number of pages.
    pub fn dirtied(&mut self) -> Result<f64, LabError> {
        Ok(self.number("progress", "dirty_pages")? as f64 * PAGE / 1e6)
    }

    /// Writes once to every page of so much memory, and gives it back to the guest's kernel.
    ///
    /// # Errors
    /// It fails as [`Workload::dirtied`] does.
    pub fn fill(&mut self, mib: u64) -> Result<(), LabError> {
        self.ask(&format!("dirty pattern=sequential mib={mib} mbps=0"))?;
        let before = self.number("progress", "dirty_pages")?;
        // The guest tells nobody when it is through.
        while self.number("progress", "dirty_pages")?.saturating_sub(before) < (mib << 20) / PAGE as u64 {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stop()
    }

    /// 10^6 bytes a second that are dirtied now, over `time` of the clock outside the guest.
    ///
    /// # Errors
    /// It fails as [`Workload::dirtied`] does.
    pub fn dirty_rate(&mut self, time: Duration) -> Result<f64, LabError> {
        // Both answers wait for their commit alike, so the wait falls out of the difference.
        let before = self.number("progress", "dirty_pages")?;
        let begin = Instant::now();
        std::thread::sleep(time);
        let after = self.number("progress", "dirty_pages")?;
        Ok(after.saturating_sub(before) as f64 * PAGE / 1e6 / begin.elapsed().as_secs_f64())
    }

    /// Bytes a second that a disk job writes, by the clock outside the guest, after a moment that does not count.
    ///
    /// # Errors
    /// A job that fails, or one that the guest does not know.
    pub fn disk(
        &mut self,
        job: &str,
        volume: &str,
        threads: u32,
        warm_up: Duration,
        time: Duration,
    ) -> Result<f64, LabError> {
        self.ask(&format!("disk job={job} volume={volume} threads={threads}"))?;
        std::thread::sleep(warm_up);
        // Both answers wait for their commit alike, so the wait falls out of the difference.
        let before = self.number("progress", "disk_bytes")?;
        let begin = Instant::now();
        std::thread::sleep(time);
        let after = self.ask("progress")?;
        let rate = after["disk_bytes"].as_u64().unwrap_or(0).saturating_sub(before) as f64;
        let rate = rate / begin.elapsed().as_secs_f64();
        self.stop()?;
        match after["disk_errors"].as_u64() {
            Some(0) => Ok(rate),
            errors => Err(LabError::Command {
                what: format!("the guest's disk job '{job}'"),
                detail: format!("{errors:?} failed requests"),
            }),
        }
    }

    /// Gives `percent` % of a volume's blocks new contents and waits until they are flushed. Bytes written.
    ///
    /// # Errors
    /// A disk that fails, or one that the guest does not have.
    pub fn rewrite(&mut self, volume: &str, percent: u32) -> Result<u64, LabError> {
        self.number(&format!("rewrite volume={volume} percent={percent}"), "bytes")
    }

    /// Ends all background work.
    ///
    /// # Errors
    /// It fails as [`Workload::ask`] does.
    pub fn stop(&mut self) -> Result<(), LabError> {
        self.ask("stop").map(drop)
    }
}
