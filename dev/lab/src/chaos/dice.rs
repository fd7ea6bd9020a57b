//! Numbers that look random and are the same for the same seed on every machine, for ever: SplitMix64.
//!
//! Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

/// A generator. Not for secrets.
#[derive(Debug, Clone)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// Those of `seed`, of its part number `part`: each part has numbers of its own.
    pub fn new(seed: u64, part: u64) -> Self {
        let mut dice = Self { state: seed };
        let mixed = dice.next();
        Self { state: mixed ^ part.wrapping_mul(0xd1b5_4a32_d192_ed03) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0 to `n` - 1; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        // The bias is less than 2^-32 for the small numbers that are asked for.
        self.next().checked_rem(n).unwrap_or(0)
    }

    /// One of `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Between `low` (at least 1) and `high`, each power of two as likely as any other: short times are as frequent as long ones.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let doublings = high.max(1).ilog2() - low.max(1).ilog2();
        let base = low.max(1) << self.below(u64::from(doublings) + 1);
        self.between(base, base * 2).min(high)
    }

    /// `true` in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these; the slice must not be empty.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_publication() {
        // The reference implementation's first numbers for the seed 1234567.
        let mut dice = Dice { state: 1_234_567 };
        assert_eq!([dice.next(), dice.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn a_spread_keeps_its_bounds_and_reaches_both_ends() {
        let mut dice = Dice::new(1, 1);
        let all: Vec<_> = (0..10_000).map(|_| dice.spread(10, 3000)).collect();
        assert!(all.iter().all(|n| (10..=3000).contains(n)));
        assert!(all.iter().any(|n| *n < 20) && all.iter().any(|n| *n > 2500));
    }
}
