//! The dispatch of changes that other hosts have made.

use std::sync::Arc;

use vkog_plugin_api::abi::Verb;

use super::call::{EntryView, OpContext, raw_call};
use super::dispatch::{Detailed, Dispatch};
use super::scope::Lock;
use super::{APPLIED, Chain};

/// A change that another host has made.
#[derive(Copy, Clone)]
pub struct AppliedChange<'a> {
    /// The key.
    pub key: &'a str,
    /// The entry before the change.
    pub before: Option<EntryView<'a>>,
    /// The entry after the change; `None` if it was removed.
    pub after: Option<EntryView<'a>>,
    /// The revision of the change.
    pub revision: u64,
    /// The entry was removed because it has expired.
    pub expired: bool,
}

impl Chain {
    /// Calls the `applied` hooks for a change that another host has made. Call it on one thread, in the order of the revisions,
    /// when the change is in the store, and without a lock.
    pub fn applied(self: &Arc<Self>, change: &AppliedChange<'_>) {
        if self.lists[APPLIED].slots.is_empty() {
            return;
        }
        let verb = if change.after.is_some() { Verb::Put } else { Verb::Delete };
        let op = OpContext { verb, key: change.key, ..OpContext::none() };
        let mut dispatch = Dispatch::begin(self, APPLIED, &op, Lock::Applying);
        let entries = [change.before.as_ref(), change.after.as_ref()];
        let raw_entries = entries.map(|entry| entry.map(EntryView::raw_without_details));
        let mut raw = raw_call(&op, [raw_entries[0].as_ref(), raw_entries[1].as_ref()], change.revision);
        raw.flags = change.expired.into();
        let detailed = Detailed::new(entries, &[]);
        for slot in &dispatch.list.slots {
            // A failure is counted and logged; the change has happened.
            dispatch.call_with_details(slot, &mut raw, &detailed);
        }
    }
}
