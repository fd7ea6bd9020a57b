//! What the guest's clock shows, asked from outside: redis's `TIME` is the guest's wall clock in microseconds.
//!
//! A question takes time on its way, more where the guest is busy. How long each took is known, and with that how exact a drift is.

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

/// How far guest and host are apart, microseconds since some time. The guest read its clock at some time between the question and the
/// answer: it is ahead by `guest_ahead_us`, or by up to `way_us` less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset {
    /// When it was asked, by the host's CLOCK_MONOTONIC.
    pub at_us: i64,
    pub guest_ahead_us: i64,
    /// From the question to the answer.
    pub way_us: i64,
}

/// How much faster than the host's a guest's clock was.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Drift {
    /// Parts per million.
    pub ppm: f64,
    /// It was so much more at most, or less: what the questions' ways leave open.
    pub error_ppm: f64,
    /// Over which time.
    pub over: Duration,
}

impl std::fmt::Display for Drift {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} ± {:.1} ppm over {} s", self.ppm, self.error_ppm, self.over.as_secs())
    }
}

impl Offset {
    /// How much faster than the host's the guest's clock was since then, parts per million, if each of the two questions was as long on
    /// its way there.
    pub fn ppm_since(&self, before: &Offset) -> f64 {
        let apart = self.guest_ahead_us - before.guest_ahead_us;
        apart as f64 * 1e6 / (self.at_us - before.at_us).max(1) as f64
    }

    /// The same, and how exact that is: the guest read its clock in the middle of each question's way, or half of it earlier or later.
    pub fn drift_since(&self, before: &Offset) -> Drift {
        let middle = |o: &Offset| o.guest_ahead_us as f64 - o.way_us as f64 / 2.0;
        let time = (self.at_us - before.at_us).max(1);
        let ppm = |us: f64| us * 1e6 / time as f64;
        Drift {
            ppm: ppm(middle(self) - middle(before)),
            error_ppm: ppm((self.way_us + before.way_us) as f64 / 2.0),
            over: Duration::from_micros(time.unsigned_abs()),
        }
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
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let (at_us, way_us) = (micros(asked), micros(self.began.elapsed() - asked));
        Ok(Offset { at_us, guest_ahead_us: guest - at_us, way_us })
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

    /// Asks for a while; the question that was the shortest on its way says most exactly how far they are apart.
    ///
    /// # Errors
    /// As [`GuestClock::ask`].
    pub fn reading(&mut self, time: Duration) -> Result<Offset, LabError> {
        let begin = Instant::now();
        let mut best = self.ask()?;
        while begin.elapsed() < time {
            std::thread::sleep(INTERVAL);
            let now = self.ask()?;
            if now.way_us < best.way_us {
                best = now;
            }
        }
        Ok(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_loses_a_tenth() {
        let before = Offset { at_us: 1_000_000, guest_ahead_us: 500, way_us: 0 };
        let after = Offset { at_us: 3_000_000, guest_ahead_us: 500 - 200_000, way_us: 0 };
        assert_eq!(after.ppm_since(&before), -100_000.0);
        assert_eq!(before.ppm_since(&before), 0.0);
        let drift = after.drift_since(&before);
        assert_eq!(drift, Drift { ppm: -100_000.0, error_ppm: 0.0, over: Duration::from_secs(2) });
    }

    /// The clock may have been read at any time of a question's way: whatever it was, the drift is within the error that is told.
    #[test]
    fn the_error_covers_whenever_the_guest_read_its_clock() {
        let exact = 40.0;
        for (first_way, second_way) in [(0, 0), (3000, 200), (200, 3000), (5000, 5000)] {
            for (first_read, second_read) in [(0, 0), (first_way, 0), (0, second_way), (first_way, second_way)] {
                // Ten seconds lie between the two readings: the guest is 400 µs further ahead at the second.
                let offset = |at: i64, ahead: i64, read: i64, way: i64| Offset {
                    at_us: at,
                    guest_ahead_us: ahead + read,
                    way_us: way,
                };
                let before = offset(0, 70, first_read, first_way);
                let after = offset(10_000_000, 470, second_read, second_way);
                let drift = after.drift_since(&before);
                assert!((drift.ppm - exact).abs() <= drift.error_ppm + 1e-9, "{drift:?}");
                assert!((drift.error_ppm - (first_way + second_way) as f64 / 20.0).abs() < 1e-9, "{drift:?}");
            }
        }
    }
}
