//! Which encoding pays on the present link. Pure: no clock, no I/O.

use std::time::Duration;

use super::encoder::{EncodeStats, Mode};

/// Passes over less than this say nothing about encoding.
const MIN_BYTES: u64 = 64 << 10;
/// Passes that send less than this say nothing about the link: its latency hides its rate.
const MIN_SENT: u64 = 512 << 10;
/// A new sample's weight in the running means: 1/8.
const WEIGHT: f64 = 0.125;
/// Every so many samples another mode is tried, so that its figures do not grow old. Seldom: what is sent without a
/// shadow is not known to it afterwards.
const TRY_EVERY: u32 = 512;
/// A trial is so many samples long.
const TRIAL: u32 = 8;
/// Those at its beginning do not count: a shadow has to fill before patches show what they are worth.
const WARMING: u32 = 3;
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
    /// Time spent sending: up to the acknowledgement where that is known (the receiver's work is part of it), else that
    /// in the writer.
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

/// What is expected of the modes before anything was measured: the orders of magnitude of `docs/stream.md`.
const EXPECTED: [Figures; 4] = {
    let mut all = [Figures { encode: 0.0, ratio: 1.0 }; 4];
    all[Mode::Raw as usize] = Figures { encode: 0.25e-9, ratio: 1.0 };
    all[Mode::Lz4 as usize] = Figures { encode: 2.0e-9, ratio: 0.4 };
    all[Mode::Delta as usize] = Figures { encode: 0.4e-9, ratio: 0.1 };
    all[Mode::DeltaLz4 as usize] = Figures { encode: 0.45e-9, ratio: 0.08 };
    all
};
/// The same of the link, with encryption and what the receiver does: about 1 GB/s.
const EXPECTED_LINK: f64 = 1e-9;

/// Picks the mode that brings a byte of guest memory to the receiver in the least time:
/// `encode seconds + ratio × link seconds`, all three as running means. After every 512 samples another mode is tried for
/// a few, in turn, unless its encoding alone takes longer than all that the best one needs.
#[derive(Debug, Clone)]
pub struct ModeChooser {
    modes: &'static [Mode],
    figures: [Figures; 4],
    /// Seconds for each byte on the link.
    link: f64,
    best: Mode,
    /// The mode on trial, and how many of its samples have come.
    trial: Option<(Mode, u32)>,
    /// Samples since the last trial.
    samples: u32,
    turn: usize,
}

impl ModeChooser {
    /// For an encoder with or without a shadow.
    pub fn new(has_shadow: bool) -> Self {
        let modes = if has_shadow { &Mode::ALL[..] } else { &[Mode::Raw, Mode::Lz4] };
        let best = if has_shadow { Mode::Delta } else { Mode::Raw };
        Self { modes, figures: EXPECTED, link: EXPECTED_LINK, best, trial: None, samples: 0, turn: 0 }
    }

    /// Takes in what a pass cost. Small passes are ignored.
    pub fn record(&mut self, sample: &Sample) {
        if sample.bytes_in < MIN_BYTES || !self.modes.contains(&sample.mode) {
            return;
        }
        if let Some((mode, seen)) = &mut self.trial {
            // Samples of passes that were begun before the trial still come in.
            if *mode != sample.mode {
                return;
            }
            *seen += 1;
            if *seen <= WARMING {
                return;
            }
        }
        let bytes = sample.bytes_in as f64;
        let new = Figures { encode: sample.encode.as_secs_f64() / bytes, ratio: sample.bytes_out as f64 / bytes };
        let fresh = matches!(self.trial, Some((_, seen)) if seen == WARMING + 1);
        let slot = &mut self.figures[sample.mode as usize];
        *slot = if fresh {
            new
        } else {
            Figures { encode: mean(slot.encode, new.encode), ratio: mean(slot.ratio, new.ratio) }
        };
        if sample.bytes_out >= MIN_SENT {
            self.link = mean(self.link, sample.send.as_secs_f64() / sample.bytes_out as f64);
        }
        self.best = self.cheapest();
        self.plan();
    }

    /// Ends a trial that has gone on for long enough, and begins one when it is time.
    fn plan(&mut self) {
        match self.trial {
            Some((_, seen)) if seen < TRIAL => {}
            Some(_) => {
                self.samples = 0;
                self.trial = None;
            }
            None => {
                self.samples += 1;
                if self.samples >= TRY_EVERY {
                    self.samples = 0;
                    self.turn = (self.turn + 1) % self.modes.len();
                    let mode = self.modes[self.turn];
                    if mode != self.best && self.figures[mode as usize].encode < self.cost(self.best) {
                        self.trial = Some((mode, 0));
                    }
                }
            }
        }
    }

    /// The mode for the next pass.
    pub fn mode(&self) -> Mode {
        self.trial.map_or(self.best, |(mode, _)| mode)
    }

    /// Seconds that a byte of guest memory takes in `mode`, as far as that is known.
    pub fn cost(&self, mode: Mode) -> f64 {
        let figures = self.figures[mode as usize];
        figures.encode + figures.ratio * self.link
    }

    fn cheapest(&self) -> Mode {
        let present = self.cost(self.best);
        self.modes
            .iter()
            .map(|&m| (m, self.cost(m)))
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
        assert_eq!(run(&mut chooser, 8.0, 6000), Mode::DeltaLz4);
        assert_eq!(run(&mut chooser, 1.0, 6000), Mode::Delta);
        assert_eq!(run(&mut chooser, 0.05, 6000), Mode::Raw);
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
    fn what_cannot_pay_is_not_tried() {
        let mut chooser = ModeChooser::new(true);
        for _ in 0..10_000 {
            assert_ne!(chooser.mode(), Mode::Lz4);
            run(&mut chooser, 0.5, 1);
        }
    }

    #[test]
    fn patches_get_the_time_to_show_what_they_are_worth() {
        let mut chooser = ModeChooser::new(true);
        let mut known = 0;
        chooser.best = Mode::Raw;
        for _ in 0..6000 {
            let mode = chooser.mode();
            // The first patches after any other mode are whole pages.
            known = if mode.uses_shadow() { known + 1 } else { 0 };
            let (encode_ns, ratio) = match mode {
                Mode::Raw => (0.2, 1.0),
                Mode::Lz4 => (1.5, 0.5),
                _ if known < 3 => (1.0, 1.0),
                Mode::Delta => (0.3, 0.05),
                Mode::DeltaLz4 => (0.4, 0.05),
            };
            let (bytes_in, bytes_out) = (4 << 20, (ratio * f64::from(4 << 20)) as u64);
            chooser.record(&Sample {
                mode,
                bytes_in,
                bytes_out,
                encode: Duration::from_secs_f64(encode_ns * bytes_in as f64 / 1e9),
                send: Duration::from_secs_f64(0.5 * bytes_out as f64 / 1e9),
            });
        }
        assert_eq!(chooser.best, Mode::Delta);
    }

    #[test]
    fn small_passes_change_nothing() {
        let mut chooser = ModeChooser::new(true);
        let mode = chooser.mode();
        let before = chooser.cost(mode);
        chooser.record(&Sample {
            mode,
            bytes_in: MIN_BYTES - 1,
            bytes_out: 10,
            encode: Duration::ZERO,
            send: Duration::from_secs(1),
        });
        assert_eq!((chooser.cost(mode), chooser.mode()), (before, mode));
    }
}
