//! Listings that plugins request: all entries with a prefix, a range in byte order, a random sample. Each entry is read as by
//! a get of that plugin, so hooks see it, and entries that a plugin hides or refuses are left out.

use std::sync::Arc;

use super::Engine;
use super::list::{behind, end_of};
use super::transforms::is_transformed;
use vkog_plugin_host::{CallScope, EntryView, KeyRange, PluginRequest, PluginResponse, Refusal, StoreAccess, Verb};
use vkog_runtime::Mailbox;
use vkog_store::Store;

/// The number of entries that are read from the store at a time. Their values stay in memory until they were passed on.
const PAGE: usize = 256;

/// A function that gets entries until it returns `false`.
type Each<'a> = dyn FnMut(&str, EntryView<'_>) -> bool + 'a;
/// A function that gets entries, or why they cannot be read, until it returns `false`.
type EachResult<'a> = dyn FnMut(&str, Result<EntryView<'_>, Refusal>) -> bool + 'a;

impl<S: Store> Engine<S> {
    /// Passes on the entries whose keys begin with a prefix, in no order.
    ///
    /// # Errors
    ///
    /// An entry cannot be read.
    pub(super) fn pass_prefix(
        self: &Arc<Self>,
        prefix: &str,
        scope: &CallScope,
        each: &mut Each<'_>,
    ) -> Result<(), Refusal> {
        for entry in self.store.with_prefix(prefix) {
            if !self.pass(entry.key(), scope, each).map_err(|refusal| refusal.at_key(entry.key()))? {
                break;
            }
        }
        Ok(())
    }

    /// Passes on the entries of a range in byte order. A key that is present throughout the call is passed on, during any
    /// concurrent writes. A transformed value that cannot be turned back is passed on as that refusal.
    ///
    /// # Errors
    ///
    /// An entry cannot be read for another reason.
    pub(super) fn pass_range(
        self: &Arc<Self>,
        range: KeyRange<'_>,
        scope: &CallScope,
        each: &mut EachResult<'_>,
    ) -> Result<(), Refusal> {
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
                let found = self.pass(entry.key(), scope, &mut |key, found| {
                    passed = true;
                    each(key, Ok(found))
                });
                let continues = match found {
                    // After a timeout, the store is the reason.
                    Err(refusal) if is_transformed(&entry) && refusal.status != 504 => each(entry.key(), Err(refusal)),
                    found => found.map_err(|refusal| refusal.at_key(entry.key()))?,
                };
                left -= u64::from(passed);
                if !continues {
                    return Ok(());
                }
            }
            if is_last {
                break;
            }
        }
        Ok(())
    }

    /// Passes on entries that are chosen at random, except those that cannot be read.
    pub(super) fn pass_sample(self: &Arc<Self>, count: usize, scope: &CallScope, each: &mut Each<'_>) {
        for entry in self.store.sample(count) {
            if !self.pass(entry.key(), scope, each).unwrap_or(true) {
                return;
            }
        }
    }

    /// Passes on an entry as a get of the plugin finds it now, if it does. Returns whether the function wants more.
    fn pass(self: &Arc<Self>, key: &str, scope: &CallScope, each: &mut Each<'_>) -> Result<bool, Refusal> {
        let request = PluginRequest {
            verb: Verb::Get,
            key,
            value: &[],
            content_type: "",
            query: "",
            headers: Vec::new(),
            if_revision: None,
            if_absent: false,
            upserts: false,
            keeps_coding: false,
            scope: scope.clone(),
        };
        let mut result = Ok(true);
        Arc::clone(self).request(&request, &mut |response| match response {
            PluginResponse::Found(found) => result = Ok(each(key, found)),
            PluginResponse::Refused(refusal) if refusal.status >= 500 => {
                result = Err(refusal.into_owned());
            }
            _ => {}
        });
        result
    }
}
