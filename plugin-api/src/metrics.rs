//! Numbers of a plugin's own, which the host publishes among its metrics.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::host::Host;

/// A number that only grows, such as how many requests were refused. Cheap to copy; for any thread.
#[derive(Copy, Clone, Debug)]
pub struct Counter(&'static AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}

/// A number that grows and shrinks, such as how many bytes are held. Cheap to copy; for any thread.
#[derive(Copy, Clone, Debug)]
pub struct Gauge(&'static AtomicI64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds to it, or takes away from it.
    pub fn add(&self, difference: i64) {
        self.0.fetch_add(difference, Ordering::Relaxed);
    }
}

impl Host {
    /// A counter among the host's metrics, `vkog_plugin_NAME_...` with the plugin's name. The name is of lower-case
    /// letters, digits and underscores and should end in `_total`. Asked for again it is the same number, also by the
    /// instance that a reload puts in this one's place. In a host that publishes none it counts all the same.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// struct Mine {
    ///     refused: Counter,
    /// }
    ///
    /// impl Plugin for Mine {
    ///     type Settings = NoSettings;
    ///
    ///     fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
    ///         Ok(Mine { refused: host.counter("refused_total", "Writes that were refused.") })
    ///     }
    /// }
    ///
    /// impl BeforePut for Mine {
    ///     fn before_put(&self, _: &mut Before<'_, Put>) -> Verdict {
    ///         self.refused.add(1);
    ///         Err(Refusal::new(403, "read only"))
    ///     }
    /// }
    /// ```
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        // SAFETY: an `AtomicU64` is laid out as an `u64`; the host leaks the number and accesses it only atomically.
        Counter(self.metric(0, name, help).map_or_else(|| leaked(AtomicU64::new(0)), |at| unsafe { &*at.cast() }))
    }

    /// A gauge among the host's metrics. As [`counter`](Self::counter).
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        // SAFETY: as in `counter`; an `AtomicI64` is laid out so too.
        Gauge(self.metric(1, name, help).map_or_else(|| leaked(AtomicI64::new(0)), |at| unsafe { &*at.cast() }))
    }

    fn metric(&self, kind: u32, name: &str, help: &str) -> Option<*const u64> {
        let function = self.api().metric()?;
        // SAFETY: `cx` belongs to this `api`: both came in one `RawHost`.
        let at = unsafe { function(self.cx(), kind, name.into(), help.into()) };
        (!at.is_null()).then_some(at)
    }
}

fn leaked<T>(number: T) -> &'static T {
    Box::leak(Box::new(number))
}
