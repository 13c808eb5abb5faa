//! One reading of `/metrics` and `/plugins`, and the rates between two of them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::metrics::{Metric, metrics};

/// The methods whose requests are shown, in this order.
const METHODS: [&str; 7] = ["GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"];

/// The metrics and the plugins of a server at one time.
pub(super) struct Sample {
    taken: Instant,
    operations: BTreeMap<&'static str, Counts>,
    /// The calls of hooks, by plugin.
    hooks: BTreeMap<String, Counts>,
    pub(super) numbers: BTreeMap<String, f64>,
    pub(super) plugins: Vec<Plugin>,
}

/// A plugin, as `/plugins` lists it.
#[derive(Deserialize)]
pub(super) struct Plugin {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) quarantined: bool,
    hooks: Vec<Hook>,
}

#[derive(Deserialize)]
struct Hook {
    calls: u64,
    refusals: u64,
    panics: u64,
    overruns: u64,
}

/// The response of `/plugins`.
#[derive(Deserialize)]
pub(super) struct Plugins {
    pub(super) plugins: Vec<Plugin>,
}

/// The counters of a method or of a plugin, since the start of the server.
#[derive(Clone, Default)]
struct Counts {
    count: f64,
    failed: f64,
    seconds: f64,
    /// The number of durations up to each bound in seconds, in ascending order. The last bound is infinite.
    buckets: Vec<(f64, f64)>,
}

/// The activity between two samples.
pub(super) struct Rates {
    pub(super) per_second: f64,
    pub(super) failed_per_second: f64,
    /// The mean duration.
    pub(super) mean: Option<Duration>,
    pub(super) p50: Option<Quantile>,
    pub(super) p99: Option<Quantile>,
}

/// A quantile, as far as the buckets of a histogram determine it.
#[derive(Copy, Clone, Debug, PartialEq)]
pub(super) enum Quantile {
    /// About this duration.
    About(Duration),
    /// More than the largest bound.
    Over(Duration),
}

impl Sample {
    /// Reads a sample that was taken now.
    pub(super) fn new(text: &str, Plugins { plugins }: Plugins) -> Self {
        let mut sample = Self {
            taken: Instant::now(),
            operations: BTreeMap::new(),
            hooks: BTreeMap::new(),
            numbers: BTreeMap::new(),
            plugins,
        };
        for metric in metrics(text) {
            sample.add(&metric);
        }
        sample
    }

    fn add(&mut self, metric: &Metric<'_>) {
        let value = metric.value;
        if let Some(name) = metric.name.strip_prefix("vkog_request") {
            let method =
                METHODS.into_iter().find(|method| metric.label("method").is_some_and(|named| named == *method));
            let Some(counts) = method.map(|method| self.operations.entry(method).or_default()) else { return };
            match name {
                "s_total" => {
                    counts.count += value;
                    if metric.label("status").is_some_and(|status| status.starts_with(['4', '5'])) {
                        counts.failed += value;
                    }
                }
                "_seconds_bucket" => counts.add_bucket(metric),
                _ => {}
            }
        } else if let (Some(plugin), Some(name)) =
            (metric.label("plugin"), metric.name.strip_prefix("vkog_plugin_call_seconds_"))
        {
            let counts = self.hooks.entry(plugin.clone()).or_default();
            match name {
                "sum" => counts.seconds += value,
                "count" => counts.count += value,
                "bucket" => counts.add_bucket(metric),
                _ => {}
            }
        } else if metric.labels.is_empty() {
            self.numbers.insert(metric.name.to_owned(), value);
        }
    }

    /// Returns the methods that were ever used, with the rates since another sample.
    pub(super) fn operations(&self, before: Option<&Self>) -> impl Iterator<Item = (&'static str, Rates)> {
        let seconds = self.seconds_since(before);
        METHODS.into_iter().filter_map(move |method| {
            let now = self.operations.get(method).filter(|counts| counts.count > 0.0)?;
            let since = now.since(before.and_then(|before| before.operations.get(method)));
            Some((method, since.rates(since.count, since.failed, seconds)))
        })
    }

    /// Returns the rates of the hooks of a plugin since another sample.
    pub(super) fn hooks_of(&self, plugin: &Plugin, before: Option<&Self>) -> Rates {
        let none = Counts::default();
        let now = self.hooks.get(&plugin.name).unwrap_or(&none);
        let since = now.since(before.and_then(|before| before.hooks.get(&plugin.name)));
        // The histograms count a sample of the calls.
        let old = before.and_then(|before| before.plugins.iter().find(|old| old.name == plugin.name));
        let calls = difference(plugin.calls() as f64, old.map_or(0.0, |old| old.calls() as f64));
        let errors = difference(plugin.errors() as f64, old.map_or(0.0, |old| old.errors() as f64));
        since.rates(calls, errors, self.seconds_since(before))
    }

    /// Returns the seconds since another sample; `None` without one.
    fn seconds_since(&self, before: Option<&Self>) -> Option<f64> {
        before.map(|before| self.taken.duration_since(before.taken).as_secs_f64())
    }

    /// Returns a metric without labels.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.numbers.get(name).copied()
    }
}

impl Plugin {
    fn calls(&self) -> u64 {
        self.hooks.iter().map(|hook| hook.calls).sum()
    }

    /// Returns the number of calls that rejected the operation.
    pub(super) fn refusals(&self) -> u64 {
        self.hooks.iter().map(|hook| hook.refusals).sum()
    }

    /// Returns the number of calls that panicked or exceeded the budget.
    pub(super) fn errors(&self) -> u64 {
        self.hooks.iter().map(|hook| hook.panics + hook.overruns).sum()
    }
}

/// Returns how far a counter has grown. One that is lower than before was restarted with its server.
fn difference(now: f64, before: f64) -> f64 {
    if now < before { now } else { now - before }
}

impl Counts {
    /// Adds a bucket of a histogram. Hooks of one plugin are added up.
    fn add_bucket(&mut self, metric: &Metric<'_>) {
        let Some(bound) = metric.label("le").and_then(|bound| bound.parse::<f64>().ok()) else { return };
        match self.buckets.iter_mut().find(|(other, _)| *other == bound) {
            Some((_, count)) => *count += metric.value,
            None => self.buckets.push((bound, metric.value)),
        }
    }

    /// Returns the growth since another sample. If nothing was counted, the quantiles are those since the start.
    fn since(&self, before: Option<&Self>) -> Self {
        let Some(before) = before else { return self.clone() };
        let bucket = |(index, (bound, count)): (usize, &(f64, f64))| {
            let old = before.buckets.get(index).map_or(0.0, |(_, count)| *count);
            (*bound, difference(*count, old))
        };
        Self {
            count: difference(self.count, before.count),
            failed: difference(self.failed, before.failed),
            seconds: difference(self.seconds, before.seconds),
            buckets: self.buckets.iter().enumerate().map(bucket).collect(),
        }
    }

    fn rates(&self, count: f64, failed: f64, seconds: Option<f64>) -> Rates {
        let rate = |count: f64| seconds.filter(|seconds| *seconds > 0.0).map_or(0.0, |seconds| count / seconds);
        let mean =
            (self.count > 0.0).then(|| Duration::try_from_secs_f64(self.seconds / self.count).unwrap_or_default());
        let (per_second, failed_per_second) = (rate(count), rate(failed));
        Rates { per_second, failed_per_second, mean, p50: self.quantile(0.5), p99: self.quantile(0.99) }
    }

    /// Returns the duration that this part of all durations does not exceed, by linear interpolation within its bucket.
    fn quantile(&self, part: f64) -> Option<Quantile> {
        let (_, all) = self.buckets.last().filter(|(_, all)| *all > 0.0)?;
        let rank = all * part;
        let at = self.buckets.iter().position(|(_, count)| *count >= rank)?;
        let (bound, count) = self.buckets[at];
        let (low, below) = at.checked_sub(1).map_or((0.0, 0.0), |at| self.buckets[at]);
        let duration = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        if bound.is_infinite() {
            return Some(Quantile::Over(duration(low)));
        }
        let share = if count > below { (rank - below) / (count - below) } else { 1.0 };
        Some(Quantile::About(duration(low + (bound - low) * share)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn sample(text: &str, plugins: &str) -> Sample {
        Sample::new(text, serde_json::from_str(plugins).expect("a list of plugins"))
    }

    const TEXT: &str = "\
# TYPE vkog_requests counter
vkog_requests_total{method=\"GET\",status=\"2xx\"} 90
vkog_requests_total{method=\"GET\",status=\"4xx\"} 10
vkog_requests_total{method=\"PUT\",status=\"2xx\"} 0
vkog_request_seconds_bucket{method=\"GET\",le=\"0.001\"} 50
vkog_request_seconds_bucket{method=\"GET\",le=\"0.01\"} 98
vkog_request_seconds_bucket{method=\"GET\",le=\"+Inf\"} 100
vkog_entries 7
";

    #[test]
    fn rates_are_those_between_two_samples_and_quantiles_interpolate() {
        let before = sample("", "{\"plugins\":[]}");
        let mut now = sample(TEXT, "{\"plugins\":[]}");
        now.taken = before.taken + Duration::from_secs(2);
        let operations: Vec<_> = now.operations(Some(&before)).collect();
        let [(method, get)] = &operations[..] else { panic!("one method was used") };
        assert_eq!((*method, get.per_second, get.failed_per_second), ("GET", 50.0, 5.0));
        assert_eq!(get.p50, Some(Quantile::About(Duration::from_millis(1))));
        assert_eq!(get.p99, Some(Quantile::Over(Duration::from_millis(10))));
        assert_eq!(now.number("vkog_entries"), Some(7.0));
    }

    #[test]
    fn a_restarted_counter_counts_from_0() {
        let before = sample("vkog_requests_total{method=\"GET\",status=\"2xx\"} 500\n", "{\"plugins\":[]}");
        let mut now = sample(TEXT, "{\"plugins\":[]}");
        now.taken = before.taken + Duration::from_secs(1);
        let rates: Vec<_> = now.operations(Some(&before)).map(|(_, rates)| rates.per_second).collect();
        assert_eq!(rates, [100.0]);
    }

    #[test]
    fn the_calls_of_all_hooks_of_a_plugin_are_added_up() {
        let plugins = |calls: u64| {
            format!(
                "{{\"plugins\":[{{\"name\":\"bytes\",\"version\":\"1\",\"quarantined\":false,\"hooks\":[\
                 {{\"calls\":{calls},\"refusals\":1,\"panics\":1,\"overruns\":2}},\
                 {{\"calls\":4,\"refusals\":2,\"panics\":0,\"overruns\":0}}]}}]}}"
            )
        };
        let text = "\
vkog_plugin_call_seconds_sum{plugin=\"bytes\",hook=\"guard_put\"} 0.004
vkog_plugin_call_seconds_count{plugin=\"bytes\",hook=\"guard_put\"} 2
vkog_plugin_call_seconds_sum{plugin=\"bytes\",hook=\"after_put\"} 0.002
vkog_plugin_call_seconds_count{plugin=\"bytes\",hook=\"after_put\"} 1
";
        let before = sample("", &plugins(0));
        let mut now = sample(text, &plugins(8));
        now.taken = before.taken + Duration::from_secs(4);
        let rates = now.hooks_of(&now.plugins[0], Some(&before));
        assert_eq!((rates.per_second, rates.mean), (2.0, Some(Duration::from_millis(2))));
        assert_eq!((now.plugins[0].refusals(), now.plugins[0].errors()), (3, 3));
    }
}
