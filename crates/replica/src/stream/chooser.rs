//! Which encoding pays on the present link. Pure: no clock, no I/O.

use std::time::Duration;

use super::encoder::{EncodeStats, Mode};

/// Passes of less than this say nothing about the link: its latency hides its rate.
const MIN_BYTES: u64 = 64 << 10;
/// A new sample's weight in the running means: 1/8.
const WEIGHT: f64 = 0.125;
/// Every so many samples another mode is tried, so that its figures do not grow old.
const TRY_EVERY: u32 = 64;
/// The best mode must beat the present one by this much, so that two equal ones do not take turns.
const MARGIN: f64 = 0.95;

/// What one pass cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub mode: Mode,
    /// Bytes of the pages looked at.
    pub bytes_in: u64,
    /// Bytes sent for them.
    pub bytes_out: u64,
    /// Time spent encoding.
    pub encode: Duration,
    /// Time spent sending: up to the acknowledgement where that is known, else that in the writer.
    pub send: Duration,
}

impl Sample {
    /// A sample of what an encoder reported in `mode`.
    pub fn of(mode: Mode, stats: &EncodeStats) -> Self {
        Self {
            mode,
            bytes_in: stats.bytes_in,
            bytes_out: stats.bytes_out,
            encode: stats.encode_time,
            send: stats.write_time,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Seconds of encoding for each byte looked at.
    encode: f64,
    /// Bytes sent for each byte looked at.
    ratio: f64,
}

/// Picks the mode that brings a byte of guest memory to the receiver in the least time:
/// `encode seconds + ratio × link seconds`, all three as running means. Modes not yet tried are tried once each, then
/// the best is used, and every 64th sample goes to another in turn.
#[derive(Debug, Clone)]
pub struct ModeChooser {
    modes: &'static [Mode],
    figures: [Option<Figures>; 4],
    /// Seconds for each byte on the link.
    link: Option<f64>,
    best: Mode,
    samples: u32,
    turn: usize,
}

impl ModeChooser {
    /// For an encoder with or without a shadow.
    pub fn new(has_shadow: bool) -> Self {
        let modes = if has_shadow { &Mode::ALL[..] } else { &[Mode::Raw, Mode::Lz4] };
        Self { modes, figures: [None; 4], link: None, best: Mode::Raw, samples: 0, turn: 0 }
    }

    /// Takes in what a pass cost. Small passes are ignored.
    pub fn record(&mut self, sample: &Sample) {
        if sample.bytes_in < MIN_BYTES || !self.modes.contains(&sample.mode) {
            return;
        }
        let bytes = sample.bytes_in as f64;
        let new = Figures { encode: sample.encode.as_secs_f64() / bytes, ratio: sample.bytes_out as f64 / bytes };
        let slot = &mut self.figures[sample.mode as usize];
        *slot =
            Some(slot.map_or(new, |old| Figures {
                encode: mean(old.encode, new.encode),
                ratio: mean(old.ratio, new.ratio),
            }));
        if sample.bytes_out >= MIN_BYTES {
            let new = sample.send.as_secs_f64() / sample.bytes_out as f64;
            self.link = Some(self.link.map_or(new, |old| mean(old, new)));
        }
        self.samples = self.samples.wrapping_add(1);
        self.best = self.cheapest();
    }

    /// The mode for the next pass.
    pub fn mode(&mut self) -> Mode {
        if let Some(&untried) = self.modes.iter().find(|&&m| self.figures[m as usize].is_none()) {
            return untried;
        }
        if self.samples % TRY_EVERY == TRY_EVERY - 1 {
            self.turn = (self.turn + 1) % self.modes.len();
            return self.modes[self.turn];
        }
        self.best
    }

    /// Seconds that a byte of guest memory takes in `mode`, as far as that is known.
    pub fn cost(&self, mode: Mode) -> Option<f64> {
        let figures = self.figures[mode as usize]?;
        Some(figures.encode + figures.ratio * self.link.unwrap_or(0.0))
    }

    fn cheapest(&self) -> Mode {
        let present = self.cost(self.best).unwrap_or(f64::INFINITY);
        self.modes
            .iter()
            .filter_map(|&m| Some((m, self.cost(m)?)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .filter(|&(_, cost)| cost < present * MARGIN)
            .map_or(self.best, |(m, _)| m)
    }
}

fn mean(old: f64, new: f64) -> f64 {
    old + (new - old) * WEIGHT
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine on which a byte costs so many nanoseconds to encode and shrinks to such a part, per mode.
    fn run(chooser: &mut ModeChooser, link_ns: f64, rounds: usize) -> Mode {
        for _ in 0..rounds {
            let mode = chooser.mode();
            let (encode_ns, ratio) = match mode {
                Mode::Raw => (0.2, 1.0),
                Mode::Delta => (0.3, 0.4),
                Mode::Lz4 => (1.5, 0.5),
                Mode::DeltaLz4 => (1.0, 0.25),
            };
            let (bytes_in, bytes_out) = (8 << 20, (ratio * f64::from(8 << 20)) as u64);
            chooser.record(&Sample {
                mode,
                bytes_in,
                bytes_out,
                encode: Duration::from_secs_f64(encode_ns * bytes_in as f64 / 1e9),
                send: Duration::from_secs_f64(link_ns * bytes_out as f64 / 1e9),
            });
        }
        chooser.best
    }

    #[test]
    fn a_fast_link_gets_raw_pages_and_a_slow_one_small_ones() {
        let mut chooser = ModeChooser::new(true);
        assert_eq!(run(&mut chooser, 0.05, 200), Mode::Raw);
        // The link changes under it: 1 Gbit/s, then something in between, then back.
        assert_eq!(run(&mut chooser, 8.0, 200), Mode::DeltaLz4);
        assert_eq!(run(&mut chooser, 1.0, 200), Mode::Delta);
        assert_eq!(run(&mut chooser, 0.05, 200), Mode::Raw);
    }

    #[test]
    fn without_a_shadow_no_patches_are_chosen() {
        let mut chooser = ModeChooser::new(false);
        for _ in 0..300 {
            assert!(!chooser.mode().uses_shadow());
            run(&mut chooser, 8.0, 1);
        }
        assert_eq!(chooser.best, Mode::Lz4);
    }

    #[test]
    fn small_passes_change_nothing() {
        let mut chooser = ModeChooser::new(true);
        let mode = chooser.mode();
        chooser.record(&Sample {
            mode,
            bytes_in: MIN_BYTES - 1,
            bytes_out: 10,
            encode: Duration::ZERO,
            send: Duration::from_secs(1),
        });
        assert_eq!((chooser.cost(mode), chooser.mode()), (None, mode));
    }
}
