//! `/metrics`: the metrics of the store, of requests and of plugins.

mod shared;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::access_log::{AccessLog, CLASSES, METHODS};
use super::buckets::{BOUNDS, Buckets};
use super::export::{Exports, Outcome};
use super::exposition::{Exposition, to_prometheus};
use crate::any_store::{AnyStore, Engine};
use crate::http::{ConnectionCounts, Response};
use crate::logging;
use vkog_plugin_host::{Chain, HookStats, Metric};
use vkog_store::{LocalStore, Store as _};

/// Encodes all metrics in one of the formats.
pub(super) fn text(
    engine: &Arc<Engine>,
    log: &'static AccessLog,
    connections: &Arc<ConnectionCounts>,
    exports: &Arc<Exports>,
    exposition: Exposition,
) -> Response {
    let mut registry = Registry::default();
    let (engine, connections, exports) = (Arc::clone(engine), Arc::clone(connections), Arc::clone(exports));
    registry.register_collector(Box::new(Numbers { engine, log, connections, exports }));
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = encode(&mut text, &registry);
    if exposition == Exposition::Prometheus {
        text = to_prometheus(&text);
    }
    Response::new(200, text.into_bytes())
        .with_header("Content-Type", exposition.content_type())
        .with_header("Vary", "Accept")
}

/// The sources of the metrics, which are read at each request.
struct Numbers {
    engine: Arc<Engine>,
    log: &'static AccessLog,
    connections: Arc<ConnectionCounts>,
    exports: Arc<Exports>,
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Numbers")
    }
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.store(&mut encoder)?;
        if let Some(bytes) = resident_memory() {
            let (name, help) = ("process_resident_memory_bytes", "The resident memory of the process");
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&bytes)?;
        }
        self.requests(&mut encoder)?;
        self.connections(&mut encoder)?;
        self.exports(&mut encoder)?;
        let help = "Log lines that were dropped, because standard error was not read, full or closed";
        counter(
            encoder.encode_descriptor("vkog_log_lines_dropped", help, None, MetricType::Counter)?,
            logging::dropped(),
        )?;
        self.plugins(&mut encoder)
    }
}

/// Returns the resident memory of this process, in bytes, where the system reports it in `/proc`.
fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    kibibytes.parse::<u64>().ok().map(|number| number << 10)
}

impl Numbers {
    fn store(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (entries, size) = self.engine.store().totals();
        let writable = u64::from(self.engine.store().closed().is_none() && self.engine.store().full().is_none());
        for (name, help, value) in [
            ("vkog_entries", "Entries in the store", entries),
            ("vkog_entry_bytes", "The sum of the lengths of all keys and values", size),
            ("vkog_requests_under_way", "Requests in flight", self.log.in_flight()),
            (
                "vkog_writable",
                "Whether the store is writable: 0 after a failed write, on a full disk, and while a shared store accepts no writes",
                writable,
            ),
            ("vkog_watchers", "Active watchers", self.engine.store().watching()),
            (
                "vkog_watch_history_bytes",
                "The memory of the changes from which a watch can resume",
                self.engine.store().history_bytes(),
            ),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        let revision = self.engine.revision();
        encoder
            .encode_descriptor("vkog_revision", "The last assigned revision", None, MetricType::Gauge)?
            .encode_gauge(&revision)?;
        match self.engine.store() {
            AnyStore::Local(store) => files(encoder, store),
            AnyStore::Shared(shared) => shared::encode(encoder, shared),
        }
    }

    fn plugins(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let chain = self.engine.plugins().chain();
        hooks(encoder, &chain)?;
        let mut quarantined = encoder.encode_descriptor(
            "vkog_plugin_quarantined",
            "Whether the plugin is quarantined after repeated panics",
            None,
            MetricType::Gauge,
        )?;
        for member in chain.members() {
            let value = u64::from(member.is_quarantined());
            quarantined.encode_family(&[("plugin", member.name())])?.encode_gauge(&value)?;
        }
        let mut published = BTreeSet::new();
        for member in chain.members() {
            for (name, metric) in self.engine.plugins().context().metrics(member.name()) {
                let name = own_name(member.name(), &name, metric.is_gauge);
                // Two plugin names can give the same metric name, which has fewer characters; the first one is published.
                if published.insert(name.clone()) {
                    own(encoder, &name, &metric)?;
                }
            }
        }
        Ok(())
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests with a response";
        let mut family = encoder.encode_descriptor("vkog_requests", help, None, MetricType::Counter)?;
        for (method, name) in METHODS.into_iter().enumerate() {
            for (class, status) in CLASSES.into_iter().enumerate() {
                let count = self.log.responses(method, class);
                if count > 0 {
                    counter(family.encode_family(&[("method", name), ("status", status)])?, count)?;
                }
            }
        }
        let help =
            "Time from the head to the response; the count is exact, buckets and sum are extrapolated from a sample";
        let mut family =
            encoder.encode_descriptor("vkog_request", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (method, name) in METHODS.into_iter().enumerate() {
            let times = self.log.times(method);
            if times.count > 0 {
                histogram(family.encode_family(&[("method", name)])?, &times)?;
            }
        }
        Ok(())
    }

    fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ConnectionCounts { accepted, refused, rejected_requests, .. } = &*self.connections;
        let help = "Open connections (hyper only)";
        encoder
            .encode_descriptor("vkog_connections", help, None, MetricType::Gauge)?
            .encode_gauge(&self.connections.open())?;
        for (name, help, value) in [
            ("vkog_connections_accepted", "Accepted connections (hyper only)", accepted.load(Relaxed)),
            (
                "vkog_connections_refused",
                "Connections refused at the connection limit (hyper only)",
                refused.load(Relaxed),
            ),
            (
                "vkog_requests_rejected",
                "Requests rejected before they were routed: malformed, or beyond a limit of the engine (hyper only)",
                rejected_requests.load(Relaxed),
            ),
        ] {
            counter(encoder.encode_descriptor(name, help, None, MetricType::Counter)?, value)?;
        }
        Ok(())
    }

    fn exports(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Whether an export is running";
        encoder
            .encode_descriptor("vkog_exports_running", help, None, MetricType::Gauge)?
            .encode_gauge(&u64::from(self.exports.is_running()))?;
        let mut family =
            encoder.encode_descriptor("vkog_exports", "Exports that have ended", None, MetricType::Counter)?;
        for (outcome, name) in Outcome::ALL {
            counter(family.encode_family(&[("outcome", name)])?, self.exports.ended(outcome))?;
        }
        let help = "The sum of the lengths of all exports";
        counter(encoder.encode_descriptor("vkog_export_bytes", help, None, MetricType::Counter)?, self.exports.bytes())
    }
}

/// Encodes the metrics of a store in files: of its log and of its snapshots.
fn files(encoder: &mut DescriptorEncoder<'_>, store: &LocalStore) -> fmt::Result {
    let failing = u64::from(store.snapshot_failure().is_some());
    for (name, help, value) in [
        ("vkog_log_bytes", "The length of the log", store.log_len()),
        ("vkog_snapshot_failing", "Whether the last snapshot failed", failing),
    ] {
        encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
    }
    let (written, failed) = store.snapshots();
    for (name, help, value) in [
        ("vkog_snapshots", "Snapshots that were written", written),
        ("vkog_snapshots_failed", "Snapshots that failed", failed),
    ] {
        counter(encoder.encode_descriptor(name, help, None, MetricType::Counter)?, value)?;
    }
    let help = "Time to sync the log to disk";
    let descriptor = encoder.encode_descriptor("vkog_fsync", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    histogram(descriptor, &Buckets::of(store.syncs()))?;
    let mode = store.fsync().to_string();
    encoder
        .encode_descriptor("vkog_fsync_mode", "The value of --fsync", None, MetricType::Gauge)?
        .encode_family(&[("mode", mode.as_str())])?
        .encode_gauge(&1)
}

/// A function that is called with the labels of each hook, how often it was called, and how it behaved.
type EachHook<'a> = dyn FnMut(&[(&str, &str); 2], u64, &HookStats) -> fmt::Result + 'a;

/// Encodes a metric of one hook.
type Number = fn(u64, &HookStats) -> u64;

fn hooks(encoder: &mut DescriptorEncoder<'_>, chain: &Chain) -> fmt::Result {
    let each = |then: &mut EachHook<'_>| {
        chain.members().iter().try_for_each(|member| {
            chain
                .stats(member)
                .try_for_each(|(hook, calls, stats)| then(&[("plugin", member.name()), ("hook", hook)], calls, stats))
        })
    };
    let counters: [(&str, &str, Number); 4] = [
        ("vkog_plugin_calls", "Calls of the plugin's hook", |calls, _| calls),
        ("vkog_plugin_refusals", "Calls that refused", |_, stats| stats.refusals()),
        ("vkog_plugin_panics", "Calls that panicked", |_, stats| stats.panics()),
        ("vkog_plugin_overruns", "Calls that took longer than the plugin's budget", |_, stats| stats.overruns()),
    ];
    for (name, help, number) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        each(&mut |labels, calls, stats| counter(family.encode_family(labels)?, number(calls, stats)))?;
    }
    let help = "How long calls took: of the first, then of one in 256; of all where there is a budget";
    let mut family =
        encoder.encode_descriptor("vkog_plugin_call", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    each(&mut |labels, _, stats| histogram(family.encode_family(labels)?, &Buckets::of(stats.times())))
}

fn counter(mut encoder: MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<[(&str, &str); 0], _, u64>(&value, None)
}

fn histogram(mut encoder: MetricEncoder<'_>, times: &Buckets) -> fmt::Result {
    let mut below = 0;
    let mut buckets = Vec::with_capacity(BOUNDS.len() + 1);
    for (bound, at_most) in BOUNDS.into_iter().zip(times.at_most) {
        buckets.push((bound.as_secs_f64(), at_most - below));
        below = at_most;
    }
    buckets.push((f64::INFINITY, times.count - below));
    encoder.encode_histogram::<[(&str, &str); 0]>(times.total.as_secs_f64(), times.count, &buckets, None)
}

/// Returns the name of a plugin's metric among all metrics. The encoder adds `_total` to the name of a counter.
fn own_name(plugin: &str, name: &str, is_gauge: bool) -> String {
    let letter = |char: char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '_' };
    let plugin: String = plugin.chars().map(letter).collect();
    let name = if is_gauge { name } else { name.strip_suffix("_total").unwrap_or(name) };
    format!("vkog_plugin_{plugin}_{name}")
}

/// A number that a plugin publishes.
fn own(encoder: &mut DescriptorEncoder<'_>, name: &str, metric: &Metric) -> fmt::Result {
    let help = escaped(&metric.help);
    let help = help.strip_suffix('.').unwrap_or(&help);
    if metric.is_gauge {
        encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&metric.value())
    } else {
        counter(encoder.encode_descriptor(name, help, None, MetricType::Counter)?, metric.value() as u64)
    }
}

/// Formats a help text for OpenMetrics, as one line. The encoder escapes the values of labels, but not help texts.
fn escaped(help: &str) -> String {
    let help = help.replace('\\', r"\\").replace('\n', r"\n").replace('"', "\\\"");
    // The format has no escape for these characters, and some parsers end a line at them.
    help.replace(|char: char| char.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_help_text_is_one_line_with_its_escapes() {
        assert_eq!(escaped("a\nb \\ \"c\"\r\u{85}d"), r#"a\nb \\ \"c\"  d"#);
        assert_eq!(escaped("Entries that expire."), "Entries that expire.");
    }

    #[test]
    fn a_number_is_named_after_its_plugin_in_letters_that_a_name_may_have() {
        assert_eq!(own_name("json-Only", "seen_total", false), "vkog_plugin_json_only_seen");
        assert_eq!(own_name("x", "seen_total", true), "vkog_plugin_x_seen_total");
    }
}
