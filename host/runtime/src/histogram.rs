//! Histograms of durations, recorded by many threads.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The number of buckets for each power of two of nanoseconds: a quantile is at most an eighth too high.
const SPLIT: u64 = 8;
/// The buckets go up to 2⁴⁰ ns, 18 minutes.
const BUCKETS: usize = 39 * SPLIT as usize;

/// A histogram of durations. Any thread may record and read.
pub struct Histogram {
    counts: Box<[AtomicU64]>,
    total_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), total_ns: AtomicU64::new(0) }
    }
}

/// The bucket of a duration.
fn bucket(ns: u64) -> usize {
    let exponent = u64::from(ns.max(1).ilog2());
    let index = if ns < SPLIT { ns } else { (exponent - 2) * SPLIT + (ns >> (exponent - 3)) % SPLIT };
    (index as usize).min(BUCKETS - 1)
}

/// The end of a bucket, exclusive, in nanoseconds.
fn end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SPLIT { bucket + 1 } else { (SPLIT + bucket % SPLIT + 1) << (bucket / SPLIT - 1) }
}

impl Histogram {
    /// Records a duration.
    pub fn record(&self, time: Duration) {
        self.record_sample(time, 1);
    }

    /// Records a duration that stands for `count` durations, all but one of which were not measured.
    pub fn record_sample(&self, time: Duration, count: u64) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)].fetch_add(count, Relaxed);
        self.total_ns.fetch_add(ns.saturating_mul(count), Relaxed);
    }

    /// The number of durations that were recorded.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// The sum of all durations that were recorded.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.total_ns.load(Relaxed))
    }

    /// A quantile: the duration that this part (0 to 1) of those recorded did not exceed, at most an eighth too high. `None` if
    /// nothing was recorded.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = (self.count() as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count.load(Relaxed);
            seen >= rank
        });
        found.map(|bucket| Duration::from_nanos(end(bucket)))
    }

    /// The number of recorded durations up to this one. A bucket that ends later is not counted.
    pub fn at_most(&self, time: Duration) -> u64 {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let within = self.counts.iter().enumerate().take_while(|(index, _)| end(*index) <= ns);
        within.map(|(_, count)| count.load(Relaxed)).sum()
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} times, p50 {:?}, p99 {:?}", self.count(), self.quantile(0.5), self.quantile(0.99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_lies_in_its_bucket_and_buckets_are_narrow() {
        for ns in (0..10_000).chain((10..40).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1])) {
            let bucket = bucket(ns);
            let start = if bucket == 0 { 0 } else { end(bucket - 1) };
            assert!((start..end(bucket)).contains(&ns), "{ns} ns in bucket {bucket} from {start} to {}", end(bucket));
            assert!(end(bucket) - start <= (ns / SPLIT).max(1), "bucket {bucket} is wide");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_at_most_an_eighth_too_high() {
        let histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        (1..=1000).for_each(|us| histogram.record(Duration::from_micros(us)));
        for (part, exact) in [(0.0, 1), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let (found, exact) = (histogram.quantile(part).expect("recorded"), Duration::from_micros(exact));
            assert!(found > exact && found <= exact * 9 / 8 + Duration::from_nanos(1), "{part}: {found:?}");
        }
        assert_eq!((histogram.count(), histogram.total()), (1000, Duration::from_micros(500_500)));
        assert_eq!(histogram.at_most(Duration::from_secs(1)), 1000);
        let half = histogram.at_most(Duration::from_micros(500));
        assert!((430..=500).contains(&half), "{half}");
    }
}
