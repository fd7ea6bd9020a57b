//! What several rounds of the same measurement came to.

use serde::{Deserialize, Serialize};

/// A measurement's rounds, all of them: no outlier is left out. All 0 when there was none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// In order of time.
    pub rounds: Vec<f64>,
}

impl Spread {
    /// Takes the rounds in order of time.
    pub fn of(rounds: Vec<f64>) -> Self {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = match sorted.len() {
            0 => 0.0,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        };
        Self {
            median: middle,
            min: sorted.first().copied().unwrap_or(0.0),
            max: sorted.last().copied().unwrap_or(0.0),
            rounds,
        }
    }

    /// Round by round `of` / `to`: neighbours in time, so that a slow drift of the machine falls out.
    pub fn ratios(of: &[f64], to: &[f64]) -> Self {
        Self::of(of.iter().zip(to).filter(|(_, to)| **to > 0.0).map(|(of, to)| of / to).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ends() {
        let s = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((s.median, s.min, s.max), (2.0, 1.0, 3.0));
        assert_eq!(s.rounds, [3.0, 1.0, 2.0]);
        assert_eq!(Spread::of(vec![1.0, 4.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }

    #[test]
    fn ratios_are_of_neighbours() {
        // The machine gets slower and slower; the ratio does not change.
        assert_eq!(Spread::ratios(&[8.0, 4.0, 2.0], &[10.0, 5.0, 2.5]).rounds, [0.8, 0.8, 0.8]);
        assert_eq!(Spread::ratios(&[1.0], &[0.0]), Spread::default());
    }
}
