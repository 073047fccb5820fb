//! Percentiles of measured times.

use std::fmt;
use std::time::Duration;

/// Times in their order.
#[derive(Debug)]
pub(crate) struct Percentiles(Vec<Duration>);

impl Percentiles {
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that this part of them does not exceed; zero if there are none.
    pub(crate) fn at(&self, part: f64) -> Duration {
        let last = self.0.len().saturating_sub(1);
        // The nearest rank of a few thousand numbers.
        let rank = (last as f64 * part).round() as usize;
        self.0.get(rank.min(last)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {:.2?}, p99 {:.2?}", self.at(0.5), self.at(0.99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let times = Percentiles::of((0..=100).rev().map(Duration::from_millis).collect());
        assert_eq!((times.at(0.5).as_millis(), times.at(0.99).as_millis(), times.count()), (50, 99, 101));
        assert_eq!(Percentiles::of(Vec::new()).at(0.5), Duration::ZERO);
    }
}
