//! Samples of one quantity and what they say. Must never know what was measured.

use serde::Serialize;

/// What the rounds of one run gave for one quantity, in whatever unit they were taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds the sample of one round.
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.0.len()
    }

    /// What is told of them. `None` if there are none.
    pub fn figure(&self) -> Option<Figure> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&sorted, share);
        Some(Figure { low: at(0.25)?, median: at(0.5)?, high: at(0.75)?, rounds: sorted.len() })
    }

    /// Round by round, this less the base: what interleaved rounds are for. Both must have been
    /// sampled in the same rounds.
    pub fn above(&self, base: &Self) -> Self {
        self.with(base, |sample, base| sample - base)
    }

    /// Round by round, this as a share of the base.
    pub fn share_of(&self, base: &Self) -> Self {
        self.with(base, |sample, base| sample / base)
    }

    /// In another unit.
    pub fn times(&self, factor: f64) -> Self {
        self.0.iter().map(|sample| sample * factor).collect()
    }

    fn with(&self, base: &Self, each: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&base.0).map(|(sample, base)| each(*sample, *base)).collect())
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// The value below which `share` of the sorted samples lie, between two of them by proportion.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(below + (above - below) * place.fract())
}

/// Median and quartiles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// The first quartile.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The third quartile.
    pub high: f64,
    /// How many samples there were.
    pub rounds: usize,
}

impl Figure {
    /// The distance of the quartiles.
    pub fn spread(&self) -> f64 {
        self.high - self.low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_samples() {
        let figure = Samples::from_iter([4.0, 1.0, 3.0, 2.0]).figure();
        assert_eq!(figure, Some(Figure { low: 1.75, median: 2.5, high: 3.25, rounds: 4 }));
        assert_eq!(Samples::default().figure(), None);
    }

    #[test]
    fn what_drifts_for_both_does_not_count() {
        let base = Samples::from_iter([100.0, 200.0, 300.0]);
        let ours = Samples::from_iter([110.0, 210.0, 310.0]);
        let above = ours.above(&base).figure().expect("three samples");
        assert_eq!((above.median, above.spread()), (10.0, 0.0));
    }
}
