//! Listings that plugins request: all entries with a prefix, a range in byte order, a random sample. Each entry is read as by
//! a get of that plugin, so hooks see it, and entries that a plugin hides or refuses are left out.

use std::sync::Arc;

use super::Engine;
use super::list::{behind, end_of};
use vkog_plugin_host::{CallScope, EntryView, KeyRange, PluginRequest, PluginResponse, StoreAccess, Verb};
use vkog_runtime::Mailbox;
use vkog_store::Store;

/// The number of entries that are read from the store at a time. Their values stay in memory until they were passed on.
const PAGE: usize = 256;

/// A function that gets entries until it returns `false`.
type Each<'a> = dyn FnMut(&str, EntryView<'_>) -> bool + 'a;

impl<S: Store> Engine<S> {
    /// Passes on the entries whose keys begin with a prefix, in no order.
    pub(super) fn pass_prefix(self: &Arc<Self>, prefix: &str, scope: &CallScope, each: &mut Each<'_>) {
        for entry in self.store.with_prefix(prefix) {
            if !self.pass(entry.key(), scope, each) {
                return;
            }
        }
    }

    /// Passes on the entries of a range in byte order. A key that is present throughout the call is passed on, during any
    /// concurrent writes.
    pub(super) fn pass_range(self: &Arc<Self>, range: KeyRange<'_>, scope: &CallScope, each: &mut Each<'_>) {
        let KeyRange { prefix, from, limit } = range;
        let end = end_of(prefix);
        let mut from = from.as_bytes().max(prefix.as_bytes()).to_vec();
        let mut left = limit;
        while left > 0 {
            let count = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
            let entries = {
                // The store may wait for the disk, and this thread must not wait for its own mailbox.
                let _detached = Mailbox::detach();
                self.store.range(&from, end.as_deref(), count)
            };
            let is_last = entries.len() < count;
            for entry in entries {
                from = behind(entry.key());
                let mut passed = false;
                let continues = self.pass(entry.key(), scope, &mut |key, found| {
                    passed = true;
                    each(key, found)
                });
                left -= u64::from(passed);
                if !continues {
                    return;
                }
            }
            if is_last {
                return;
            }
        }
    }

    /// Passes on entries that are chosen at random.
    pub(super) fn pass_sample(self: &Arc<Self>, count: usize, scope: &CallScope, each: &mut Each<'_>) {
        for entry in self.store.sample(count) {
            if !self.pass(entry.key(), scope, each) {
                return;
            }
        }
    }

    /// Passes on an entry as a get of the plugin finds it now, if it does. Returns whether the function wants more.
    fn pass(self: &Arc<Self>, key: &str, scope: &CallScope, each: &mut Each<'_>) -> bool {
        let request = PluginRequest {
            verb: Verb::Get,
            key,
            value: &[],
            content_type: "",
            query: "",
            headers: Vec::new(),
            if_revision: None,
            scope: scope.clone(),
        };
        let mut continues = true;
        Arc::clone(self).request(&request, &mut |response| {
            if let PluginResponse::Found(found) = response {
                continues = each(key, found);
            }
        });
        continues
    }
}
