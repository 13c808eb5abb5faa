//! The output of the guards of an operation, beside their verdicts and details: values that replace the one to write, and
//! writes that are added to the same step.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vkog_plugin_api::abi::Verb;

use super::Refusal;
use super::store_access::{CallScope, PluginRequest};

/// The maximum number of writes that plugins add to one operation.
pub const ADDED_MAX: usize = 64;

/// The output of the guards of one operation, in its last run. It lives as long as the operation, so that `undo` and `after`
/// hooks see the values that the guards saw.
#[derive(Default)]
pub struct GuardOutput {
    /// Whether there is any, so that other operations need no lock.
    is_set: AtomicBool,
    lists: Mutex<Lists>,
}

#[derive(Default)]
struct Lists {
    values: Vec<Replaced>,
    added: Vec<AddedWrite>,
}

/// A value that replaces the one to write.
pub(super) struct Replaced {
    /// The index of the plugin in the chain. The guards of plugins behind it see the value.
    pub(super) by: usize,
    pub(super) value: Vec<u8>,
}

/// Returns the value that the guard of a plugin saw; none if it saw that of the operation.
pub(super) fn seen(values: &[Replaced], member: usize) -> Option<&[u8]> {
    values.iter().rfind(|replaced| replaced.by < member).map(|replaced| replaced.value.as_slice())
}

/// A write that the guard of a plugin adds to the step of its operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedWrite {
    /// The plugin.
    pub plugin: &'static str,
    /// The operation.
    pub verb: Verb,
    /// The key.
    pub key: String,
    value: Vec<u8>,
    content_type: String,
    query: String,
    headers: Vec<(String, Vec<u8>)>,
    if_revision: Option<u64>,
    if_absent: bool,
    upserts: bool,
    keeps_coding: bool,
}

impl AddedWrite {
    pub(super) fn new(request: &PluginRequest<'_>) -> Self {
        let headers = request.headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec()));
        Self {
            plugin: request.scope.plugin,
            verb: request.verb,
            key: request.key.to_owned(),
            value: request.value.to_vec(),
            content_type: request.content_type.to_owned(),
            query: request.query.to_owned(),
            headers: headers.collect(),
            if_revision: request.if_revision,
            if_absent: request.if_absent,
            upserts: request.upserts,
            keeps_coding: request.keeps_coding,
        }
    }

    /// Returns the write as a request of its plugin. `depth` is its nesting depth.
    pub fn as_request(&self, depth: u32) -> PluginRequest<'_> {
        PluginRequest {
            verb: self.verb,
            key: &self.key,
            value: &self.value,
            content_type: &self.content_type,
            query: &self.query,
            headers: self.headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect(),
            if_revision: self.if_revision,
            if_absent: self.if_absent,
            upserts: self.upserts,
            keeps_coding: self.keeps_coding,
            scope: CallScope { plugin: self.plugin, depth, chain: None },
        }
    }
}

impl GuardOutput {
    pub(super) const fn new() -> Self {
        Self { is_set: AtomicBool::new(false), lists: Mutex::new(Lists { values: Vec::new(), added: Vec::new() }) }
    }

    fn lists(&self) -> Option<MutexGuard<'_, Lists>> {
        self.is_set.load(Relaxed).then(|| self.lists.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets the output of an earlier run.
    #[inline(always)]
    pub(super) fn clear(&self) {
        if self.is_set.load(Relaxed) {
            self.set(Vec::new(), Vec::new());
        }
    }

    pub(super) fn set(&self, values: Vec<Replaced>, added: Vec<AddedWrite>) {
        self.is_set.store(!(values.is_empty() && added.is_empty()), Relaxed);
        *self.lists.lock().unwrap_or_else(PoisonError::into_inner) = Lists { values, added };
    }

    /// Calls a function with the replaced values.
    #[inline(always)]
    pub(super) fn with_values<R>(&self, call: impl FnOnce(&[Replaced]) -> R) -> R {
        match self.lists() {
            Some(lists) => call(&lists.values),
            None => call(&[]),
        }
    }

    /// Takes the writes that the guards added.
    #[inline]
    pub fn take_added(&self) -> Vec<AddedWrite> {
        self.lists().map(|mut lists| std::mem::take(&mut lists.added)).unwrap_or_default()
    }

    /// Calls a function with the value to write, if a guard has replaced it, and with the index of the last plugin that did.
    #[inline]
    pub fn with_value<R>(&self, call: impl FnOnce(&[u8], usize) -> R) -> Option<R> {
        self.lists()?.values.last().map(|replaced| call(&replaced.value, replaced.by))
    }
}

/// Returns the refusal of an operation because a plugin broke a rule of the interface, and logs it.
pub fn misused(plugin: &str, fact: &str) -> Refusal {
    let message = format!("plugin \"{plugin}\" {fact}");
    tracing::error!(plugin, "{message}");
    Refusal { plugin: plugin.to_owned(), status: 500, message, headers: Vec::new() }
}
