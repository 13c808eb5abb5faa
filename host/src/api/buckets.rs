//! Histograms as metrics show them: cumulative buckets, a count and a sum.

use std::time::Duration;

use vkog_runtime::Histogram;

/// The upper bounds of the buckets. A last one, without a bound, has all durations.
pub(super) const BOUNDS: [Duration; 8] = [
    Duration::from_nanos(100),
    Duration::from_micros(1),
    Duration::from_micros(10),
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
];

/// The numbers of a histogram.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Buckets {
    /// The number of durations.
    pub(super) count: u64,
    /// Their sum.
    pub(super) total: Duration,
    /// The number of durations up to each of the [`BOUNDS`].
    pub(super) at_most: [u64; BOUNDS.len()],
}

impl Buckets {
    /// Reads a histogram of all durations.
    pub(super) fn of(times: &Histogram) -> Self {
        // In this order: what is recorded in between is in every later number, too.
        let at_most = BOUNDS.map(|bound| times.at_most(bound));
        let count = times.count().max(at_most[BOUNDS.len() - 1]);
        Self { count, total: times.total(), at_most }
    }

    /// Raises these numbers to those of `count` durations, of which a sample was recorded. The count becomes exact, the rest is in
    /// proportion to the sample. No number falls, because Prometheus takes that for a restart.
    pub(super) fn raise(&mut self, sample: &Histogram, count: u64) {
        let sample = Self::of(sample);
        let factor = count as f64 / sample.count.max(1) as f64;
        self.count = self.count.max(count);
        self.total = self.total.max(sample.total.mul_f64(factor));
        for (shown, at_most) in self.at_most.iter_mut().zip(sample.at_most) {
            *shown = (*shown).max(((at_most as f64 * factor) as u64).min(self.count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_scaled_to_the_exact_count_and_no_number_falls() {
        let (sample, mut shown) = (Histogram::default(), Buckets::default());
        (0..3).for_each(|_| sample.record(Duration::from_micros(50)));
        sample.record_sample(Duration::from_millis(50), 1);
        shown.raise(&sample, 8);
        assert_eq!((shown.count, shown.at_most), (8, [0, 0, 0, 6, 6, 6, 8, 8]));
        assert_eq!(shown.total, Duration::from_micros(2 * (150 + 50_000)));
        // By the sample alone, fewer than 6 would be fast now.
        let before = shown;
        sample.record_sample(Duration::from_secs(2), 64);
        shown.raise(&sample, 9);
        assert_eq!((shown.count, shown.at_most), (9, [0, 0, 0, 6, 6, 6, 8, 8]));
        assert!(shown.total >= before.total);
    }

    #[test]
    fn a_histogram_of_all_durations_is_shown_as_it_is() {
        let times = Histogram::default();
        times.record(Duration::from_nanos(500));
        times.record(Duration::from_secs(5));
        let shown = Buckets::of(&times);
        assert_eq!((shown.count, shown.at_most), (2, [0, 1, 1, 1, 1, 1, 1, 1]));
    }
}
