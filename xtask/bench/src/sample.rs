//! Samples of one quantity and what they say. Must never know what was measured.

use serde::{Deserialize, Serialize};

/// What the rounds of one run gave for one quantity, in whatever unit they were taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Samples {
    values: Vec<f64>,
    /// What they would be if there were no difference to the base.
    no_difference: Option<f64>,
}

impl Samples {
    /// Adds the sample of one round.
    pub fn push(&mut self, sample: f64) {
        self.values.push(sample);
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.values.len()
    }

    /// What is told of them. `None` if there are none.
    pub fn figure(&self) -> Option<Figure> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&sorted, share);
        let (low, median, high) = (at(0.25)?, at(0.5)?, at(0.75)?);
        Some(Figure { low, median, high, rounds: sorted.len(), no_difference: self.no_difference })
    }

    /// Round by round, this less the base: what interleaved rounds are for. Both must have been
    /// sampled in the same rounds.
    pub fn above(&self, base: &Self) -> Self {
        self.with(base, Some(0.0), |sample, base| sample - base)
    }

    /// Round by round, both together.
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, None, |sample, other| sample + other)
    }

    /// Round by round, this as a share of the base.
    pub fn share_of(&self, base: &Self) -> Self {
        self.with(base, Some(1.0), |sample, base| sample / base)
    }

    /// The same where nobody asks whether there is a difference: how many times the base, or
    /// whether a curve is flat.
    pub fn multiple_of(&self, base: &Self) -> Self {
        Self { no_difference: None, ..self.share_of(base) }
    }

    /// The same samples in another unit.
    pub fn each(&self, change: impl Fn(f64) -> f64) -> Self {
        let values = self.values.iter().copied().map(&change).collect();
        Self { values, no_difference: self.no_difference.map(change) }
    }

    fn with(
        &self,
        base: &Self,
        no_difference: Option<f64>,
        each: impl Fn(f64, f64) -> f64,
    ) -> Self {
        let pairs = self.values.iter().zip(&base.values);
        let values = pairs.map(|(sample, base)| each(*sample, *base)).collect();
        Self { values, no_difference }
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self { values: samples.into_iter().collect(), no_difference: None }
    }
}

/// The value below which `share` of the sorted samples lie, between two of them by proportion.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(below + (above - below) * place.fract())
}

/// Median and quartiles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The first quartile.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The third quartile.
    pub high: f64,
    /// How many samples there were.
    pub rounds: usize,
    /// Of a comparison: what it would be if there were no difference, 0 or 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_difference: Option<f64>,
}

impl Figure {
    /// The distance of the quartiles.
    pub fn spread(&self) -> f64 {
        self.high - self.low
    }

    /// Of a comparison: whether the difference is smaller than the spread, so that this run does
    /// not show one.
    pub fn is_within_noise(&self) -> bool {
        self.no_difference.is_some_and(|none| (self.median - none).abs() < self.spread())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_samples() {
        let figure = Samples::from_iter([4.0, 1.0, 3.0, 2.0]).figure();
        let (low, median, high) = (1.75, 2.5, 3.25);
        assert_eq!(figure, Some(Figure { low, median, high, rounds: 4, no_difference: None }));
        assert_eq!(Samples::default().figure(), None);
    }

    #[test]
    fn what_drifts_for_both_does_not_count() {
        let base = Samples::from_iter([100.0, 200.0, 300.0]);
        let ours = Samples::from_iter([110.0, 210.0, 310.0]);
        let above = ours.above(&base).figure().expect("three samples");
        assert_eq!((above.median, above.spread()), (10.0, 0.0));
    }

    #[test]
    fn a_difference_below_its_spread_is_noise() {
        let base = Samples::from_iter([100.0, 100.0, 100.0]);
        let noisy = Samples::from_iter([90.0, 101.0, 110.0]);
        let clear = Samples::from_iter([150.0, 151.0, 152.0]);
        let is_noise = |samples: Samples| samples.figure().expect("three").is_within_noise();
        assert!(is_noise(noisy.above(&base)) && is_noise(noisy.share_of(&base)));
        assert!(!is_noise(clear.above(&base)) && !is_noise(clear.share_of(&base)));
        assert!(!is_noise(noisy), "of what is compared with nothing nobody can say");
    }
}
