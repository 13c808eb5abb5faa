//! The shared context of the plugins of one server: its clock, its limits, its store, and their metrics.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::SystemTime;

use vkog_plugin_api::abi::HOOK_NAMES;

use super::store_access::StoreAccess;
use crate::sha256::Sha256;

/// The shared context of the plugins of one server.
pub struct HostContext {
    pub(super) max_size: u64,
    clock: Box<dyn Fn() -> u64 + Send + Sync>,
    store: RwLock<Option<Weak<dyn StoreAccess>>>,
    /// Locked for reading while changes of other hosts are applied, and for writing while plugins count what the store holds
    /// and join the chain: so a plugin counts each change once.
    pub(crate) applying: parking_lot::RwLock<()>,
    /// By plugin and name.
    metrics: Mutex<BTreeMap<(&'static str, String), Metric>>,
}

/// Returns the time of the system as milliseconds since 1970 in UTC: the clock of a [`HostContext`] in a server.
pub fn system_clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A metric that a plugin publishes.
#[derive(Clone)]
pub struct Metric {
    /// The help text.
    pub help: String,
    /// Whether it is a gauge, which may shrink and be negative, and not a counter.
    pub is_gauge: bool,
    value: &'static AtomicU64,
}

impl Metric {
    /// Returns the value. A gauge may be negative.
    pub fn value(&self) -> i64 {
        self.value.load(Relaxed) as i64
    }
}

impl HostContext {
    /// Creates the context without a store: requests of plugins are refused until [`open`](Self::open). `max_size` is the
    /// server's `--max-size` in bytes; the clock returns milliseconds since 1970 in UTC.
    pub fn new(max_size: u64, clock: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let (store, applying, metrics) = (RwLock::default(), parking_lot::RwLock::default(), Mutex::default());
        Self { max_size, clock: Box::new(clock), store, applying, metrics }
    }

    /// Sets the store that requests of plugins go to.
    pub fn open(&self, store: Weak<dyn StoreAccess>) {
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = Some(store);
    }

    /// Refuses requests of plugins from now on.
    pub fn close(&self) {
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Returns the metrics that a plugin publishes, by name.
    pub fn metrics(&self, plugin: &str) -> Vec<(String, Metric)> {
        let metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let own = metrics.iter().filter(|((owner, _), _)| *owner == plugin);
        own.map(|((_, name), metric)| (name.clone(), metric.clone())).collect()
    }

    pub(super) fn store(&self) -> Option<Arc<dyn StoreAccess>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Weak::upgrade)
    }

    pub(super) fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Returns the value of a plugin's metric. It is created on first use and leaked, because the plugin may use it until
    /// the process ends.
    pub(super) fn metric(&self, plugin: &'static str, name: &str, help: &str, is_gauge: bool) -> &'static AtomicU64 {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let metric = metrics.entry((plugin, name.to_owned())).or_insert_with(|| Metric {
            help: help.to_owned(),
            is_gauge,
            value: Box::leak(Box::new(AtomicU64::new(0))),
        });
        metric.is_gauge = is_gauge;
        metric.value
    }
}

/// The plugin that calls a function of the host: [`RawHost::cx`](vkog_plugin_api::abi::RawHost) points to it. It is leaked,
/// so that a thread which the plugin left running may still log.
pub(super) struct PluginIdentity {
    pub(super) name: String,
    pub(super) context: Arc<HostContext>,
    /// The plugin has started and is not destroyed. Before and after that, a request could wait for a reload that waits for
    /// the plugin.
    pub(super) may_send: AtomicBool,
    /// The hooks that the plugin has switched off, by id.
    pub(super) switched_off: [AtomicBool; HOOK_NAMES.len()],
    /// The files on whose content the plugin depends.
    pub(super) files: Mutex<Vec<DependedFile>>,
}

impl PluginIdentity {
    /// Records a file on whose content the plugin depends.
    pub(super) fn depend_on(&self, path: PathBuf) {
        let file = DependedFile::new(path);
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    }

    /// Whether the content of a file has changed on which the plugin depends.
    pub(super) fn files_have_changed(&self) -> bool {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).iter().any(DependedFile::has_changed)
    }
}

/// A file on whose content a plugin depends.
pub(super) struct DependedFile {
    path: PathBuf,
    /// The hash of its content when the plugin named it; none if it could not be read.
    sha256: Option<Sha256>,
}

impl DependedFile {
    /// Reads the file.
    pub(super) fn new(path: PathBuf) -> Self {
        let sha256 = Self::hash(&path);
        Self { path, sha256 }
    }

    /// Whether its content has changed, or whether it can be read.
    pub(super) fn has_changed(&self) -> bool {
        Self::hash(&self.path) != self.sha256
    }

    fn hash(path: &Path) -> Option<Sha256> {
        Sha256::of_file(path).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Refusal;
    use crate::chain::{CallScope, EntryView, KeyRange, PluginRequest, PluginResponse};

    #[test]
    fn the_clock_of_a_server_is_in_milliseconds_since_1970() {
        let years = system_clock() / (365 * 24 * 3_600_000);
        assert!((50..1000).contains(&years), "{years}");
    }

    struct NoStore;

    impl StoreAccess for NoStore {
        fn request(self: Arc<Self>, _: &PluginRequest<'_>, _: &mut dyn FnMut(PluginResponse<'_>)) {}
        fn request_each(self: Arc<Self>, _: &[PluginRequest<'_>], _: &mut dyn FnMut(PluginResponse<'_>)) {}
        fn for_each(
            self: Arc<Self>,
            _: &str,
            _: &CallScope,
            _: &mut dyn FnMut(&str, EntryView<'_>) -> bool,
        ) -> Result<(), Refusal> {
            Ok(())
        }
        fn batch(self: Arc<Self>, _: &[PluginRequest<'_>], _: &mut dyn FnMut(PluginResponse<'_>)) -> Option<usize> {
            None
        }
        fn update(
            self: Arc<Self>,
            _: &PluginRequest<'_>,
            _: &mut dyn FnMut(Option<EntryView<'_>>) -> Option<Vec<u8>>,
            _: &mut dyn FnMut(PluginResponse<'_>),
        ) {
        }
        fn for_each_from(
            self: Arc<Self>,
            _: KeyRange<'_>,
            _: &CallScope,
            _: &mut dyn FnMut(&str, Result<EntryView<'_>, Refusal>) -> bool,
        ) -> Result<(), Refusal> {
            Ok(())
        }
        fn sample(self: Arc<Self>, _: usize, _: &CallScope, _: &mut dyn FnMut(&str, EntryView<'_>) -> bool) {}
        fn on_quarantine(&self) {}
    }

    #[test]
    fn plugins_reach_the_store_while_it_is_open() {
        let (context, store): (_, Arc<dyn StoreAccess>) = (HostContext::new(0, || 0), Arc::new(NoStore));
        assert!(context.store().is_none());
        context.open(Arc::downgrade(&store));
        assert!(context.store().is_some());
        context.close();
        assert!(context.store().is_none());
    }
}
