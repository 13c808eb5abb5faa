//! The metrics of a store that several servers share.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{counter, histogram};
use crate::any_store::SharedHost;
use crate::api::buckets::Buckets;

/// Encodes them. Does not wait for other machines.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, shared: &SharedHost) -> fmt::Result {
    let (store, status) = (shared.store(), shared.store().status());
    for (name, help, value) in [
        ("vkog_store_connected", "Whether the shared store is connected", Some(u64::from(status.connected))),
        (
            "vkog_store_leader",
            "Whether this server removes expired entries of the shared store",
            Some(u64::from(status.leads)),
        ),
        ("vkog_store_members", "Servers on the shared store", Some(status.members.len() as u64)),
        ("vkog_store_database_bytes", "The size of the shared store's database", status.database_bytes),
        (
            "vkog_store_database_limit_bytes",
            "The maximum size of the shared store's database",
            status.database_bytes_max,
        ),
    ] {
        if let Some(value) = value {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
    }
    let help = "The time since the shared store last reported that this server has all changes";
    encoder
        .encode_descriptor("vkog_store_lag", help, Some(&Unit::Seconds), MetricType::Gauge)?
        .encode_gauge(&store.lag().as_secs_f64())?;
    let help = "Writes that were decided again, because another server was faster";
    counter(encoder.encode_descriptor("vkog_store_conflicts", help, None, MetricType::Counter)?, store.conflicts())?;
    let help = "Time until the shared store reports the outcome of a write";
    let descriptor =
        encoder.encode_descriptor("vkog_store_commit", help, Some(&Unit::Seconds), MetricType::Histogram)?;
    histogram(descriptor, &Buckets::of(store.commit_times()))
}
