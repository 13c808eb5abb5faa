//! The `before_request` hooks: called once for each HTTP request, before its operations.

use std::sync::Arc;

use super::{Engine, offload};
use vkog_plugin_host::{Origin, Refusal};
use vkog_store::Store;

impl<S: Store> Engine<S> {
    /// Calls the `before_request` hooks for an HTTP request with this path and query, both not decoded. Returns the prefix of
    /// all its keys, or the refusal of a plugin; `None` if a hook may block or a reload replaces the plugins. Never blocks.
    pub fn try_before_request(&self, path: &str, query: &str, origin: &dyn Origin) -> Option<Result<String, Refusal>> {
        let chain = self.plugins.acquire()?;
        let may_block = chain.blocks_request() && self.blocking_pool.is_some();
        (!may_block).then(|| chain.before_request(path, query, origin))
    }

    /// Calls the `before_request` hooks, as [`try_before_request`](Self::try_before_request) does, and then `then`: on this
    /// thread, on the blocking pool, or on another thread after a reload.
    pub fn before_request(
        self: &Arc<Self>,
        [path, query]: [String; 2],
        origin: Arc<dyn Origin>,
        then: impl FnOnce(Result<String, Refusal>) + Send + 'static,
    ) {
        let engine = Arc::clone(self);
        self.plugins.when_available(move |chain| {
            let pool = if chain.blocks_request() { engine.blocking_pool.clone() } else { None };
            offload(pool, move || {
                let passed = chain.before_request(&path, &query, &*origin);
                // The operations of the request begin in the chain that is the current one then.
                drop(chain);
                then(passed);
            });
        });
    }
}
