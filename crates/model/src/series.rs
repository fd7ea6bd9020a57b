//! Percentiles of a series of measurements.

use serde::{Deserialize, Serialize};

/// A series of whole numbers (the unit is the caller's), kept complete.
#[derive(Debug, Clone, Default)]
pub struct Series {
    values: Vec<u64>,
}

/// A series in few numbers, in the series' unit. All 0 for an empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    pub count: u64,
    pub min: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
    /// Rounded down.
    pub mean: u64,
}

impl Series {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, value: u64) {
        self.values.push(value);
    }

    /// In order of arrival.
    pub fn values(&self) -> &[u64] {
        &self.values
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The smallest value that at least `percent` % of the values do not exceed (nearest rank); `None` for an empty
    /// series.
    pub fn percentile(&self, percent: f64) -> Option<u64> {
        let mut sorted = self.values.clone();
        sorted.sort_unstable();
        nearest_rank(&sorted, percent)
    }

    /// The usual figures.
    pub fn summary(&self) -> Summary {
        let mut sorted = self.values.clone();
        sorted.sort_unstable();
        let at = |percent| nearest_rank(&sorted, percent).unwrap_or(0);
        let count = sorted.len() as u64;
        let sum: u128 = sorted.iter().map(|v| u128::from(*v)).sum();
        Summary {
            count,
            min: at(0.0),
            p50: at(50.0),
            p99: at(99.0),
            max: at(100.0),
            mean: (sum / u128::from(count.max(1))) as u64,
        }
    }
}

impl FromIterator<u64> for Series {
    fn from_iter<I: IntoIterator<Item = u64>>(values: I) -> Self {
        Self { values: values.into_iter().collect() }
    }
}

impl Extend<u64> for Series {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, values: I) {
        self.values.extend(values);
    }
}

fn nearest_rank(sorted: &[u64], percent: f64) -> Option<u64> {
    let rank = (percent.clamp(0.0, 100.0) / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let series: Series = (1..=100).rev().collect();
        let s = series.summary();
        assert_eq!((s.count, s.min, s.p50, s.p99, s.max, s.mean), (100, 1, 50, 99, 100, 50));
        assert_eq!(series.percentile(99.5), Some(100));
        assert_eq!(Series::new().summary(), Summary::default());
        assert_eq!(Series::from_iter([7]).summary().p99, 7);
    }
}
