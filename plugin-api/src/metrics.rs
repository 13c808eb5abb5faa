//! Metrics of a plugin, which the host publishes with its own.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::host::Host;

/// A metric that only grows, such as the number of refused requests: [`Host::counter`]. It can be copied, and used on
/// any thread.
#[derive(Copy, Clone, Debug)]
pub struct Counter(&'static AtomicU64);

impl Counter {
    /// Adds a number. It is one atomic addition, so hooks of every phase may call it.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn count_refusal(refused: Counter) {
    ///     refused.add(1);
    /// }
    /// ```
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}

/// A metric that grows and shrinks, such as the number of entries: [`Host::gauge`]. It can be copied, and used on any
/// thread.
#[derive(Copy, Clone, Debug)]
pub struct Gauge(&'static AtomicI64);

impl Gauge {
    /// Sets the value.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn show(entries: Gauge, count: usize) {
    ///     entries.set(i64::try_from(count).unwrap_or(i64::MAX));
    /// }
    /// ```
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds a number, which may be negative.
    pub fn add(&self, difference: i64) {
        self.0.fetch_add(difference, Ordering::Relaxed);
    }
}

impl Host {
    /// Returns a counter that the host publishes in `/metrics` as `vkog_plugin_PLUGIN_NAME` and in `/plugins`. The name
    /// consists of lower-case letters, digits and underscores, and should end in `_total`. The same name always returns
    /// the same counter, also to the instance that replaces this one at a reload.
    ///
    /// If the name is invalid, the host logs a warning and does not publish the counter. A host older than 1.1 does not
    /// publish it, either.
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
        // SAFETY: an `AtomicU64` has the layout of a `u64`; the host leaks the number and accesses it only atomically.
        Counter(self.metric(0, name, help).map_or_else(|| leaked(AtomicU64::new(0)), |at| unsafe { &*at.cast() }))
    }

    /// Returns a gauge that the host publishes. Name and errors: as [`counter`](Self::counter).
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        // SAFETY: as in `counter`; an `AtomicI64` has the same layout.
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
