//! What the guest's clock shows, asked from outside: redis's `TIME` is the guest's wall clock in microseconds.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::boot::redis;
use crate::error::{LabError, io_at};
use crate::lab::Lab;
use crate::netns::connect;
use crate::topology::CLIENT;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// From one question to the next.
const INTERVAL: Duration = Duration::from_millis(10);

/// One connection, from the client's host. It outlives failovers.
#[derive(Debug)]
pub struct GuestClock {
    reader: BufReader<TcpStream>,
    began: Instant,
    last_us: i64,
    /// How often it has shown less than before.
    pub steps_back: u64,
}

/// How far guest and host are apart, microseconds since some time: what of the question's way is in it is in all alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// When, by the host's CLOCK_MONOTONIC.
    pub at_us: i64,
    pub guest_ahead_us: i64,
}

impl Offset {
    /// How much faster than the host's the guest's clock was since then, parts per million.
    pub fn ppm_since(&self, before: &Offset) -> f64 {
        let apart = self.guest_ahead_us - before.guest_ahead_us;
        apart as f64 * 1e6 / (self.at_us - before.at_us).max(1) as f64
    }
}

impl GuestClock {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(lab: &Lab) -> Result<Self, LabError> {
        let stream = connect(Some(&lab.netns(CLIENT)?), redis(), PATIENCE)?;
        Ok(Self { reader: BufReader::new(stream), began: Instant::now(), last_us: 0, steps_back: 0 })
    }

    /// Asks once.
    ///
    /// # Errors
    /// No answer within a minute, or none that is a time.
    pub fn ask(&mut self) -> Result<Offset, LabError> {
        let asked = self.began.elapsed();
        self.reader.get_mut().write_all(b"*1\r\n$4\r\nTIME\r\n").map_err(io_at("ask redis for the time"))?;
        // An array of two: seconds and microseconds, each a string with its length before it.
        let mut lines = [(); 5].map(|()| String::new());
        for line in &mut lines {
            self.reader.read_line(line).map_err(io_at("read the time from redis"))?;
        }
        let number = |line: &str| line.trim().parse::<i64>().ok();
        let (Some(seconds), Some(micros)) = (number(&lines[2]), number(&lines[4])) else {
            return Err(LabError::Command { what: "redis TIME".into(), detail: lines.concat() });
        };
        let guest = seconds.saturating_mul(1_000_000).saturating_add(micros);
        self.steps_back += u64::from(guest < self.last_us);
        self.last_us = guest;
        let at_us = i64::try_from(asked.as_micros()).unwrap_or(i64::MAX);
        Ok(Offset { at_us, guest_ahead_us: guest - at_us })
    }

    /// Asks for a while. The question that was answered by the earliest clock was the quickest on its way.
    ///
    /// # Errors
    /// As [`GuestClock::ask`].
    pub fn offset(&mut self, time: Duration) -> Result<Offset, LabError> {
        let begin = Instant::now();
        let mut best = self.ask()?;
        while begin.elapsed() < time {
            std::thread::sleep(INTERVAL);
            let now = self.ask()?;
            if now.guest_ahead_us < best.guest_ahead_us {
                best = now;
            }
        }
        Ok(best)
    }

    /// How much faster than the host's the guest's clock is, parts per million: over `time`, of which a quarter at each end is
    /// asked in.
    ///
    /// # Errors
    /// As [`GuestClock::ask`].
    pub fn drift(&mut self, time: Duration) -> Result<f64, LabError> {
        let before = self.offset(time / 4)?;
        std::thread::sleep(time / 2);
        Ok(self.offset(time / 4)?.ppm_since(&before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_loses_a_tenth() {
        let before = Offset { at_us: 1_000_000, guest_ahead_us: 500 };
        let after = Offset { at_us: 3_000_000, guest_ahead_us: 500 - 200_000 };
        assert_eq!(after.ppm_since(&before), -100_000.0);
        assert_eq!(before.ppm_since(&before), 0.0);
    }
}
