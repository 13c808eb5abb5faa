//! The hook for changes that other hosts of the same store have made.

#![allow(unsafe_code)]

use crate::abi::{HookEntry, HookFn, Outcome, RawCall};
use crate::call::{Entry, Request, View};
use crate::export::Probe;
use crate::hooks::{Plugin, enter};

/// Called for each change that another host has made in the store that both share, so that a plugin's account of all
/// entries stays right: a plugin that has an `after` hook for its account needs this hook as well. A host whose store is
/// its own alone never calls it.
///
/// One thread calls it for all changes, in the order of their revisions, after the change can be read on this host. Several
/// changes may have the same revision, but not two of one key. No lock is held. Further changes wait until it returns, and
/// so do reads and writes that need them: it must be short, must not block, and cannot call the store (508). The hooks of
/// an operation run on the host that the client is connected to, and this hook on all others. After a host was cut off from the
/// store for long, it may get one call for several changes of a key. A panic counts towards the quarantine of the plugin.
///
/// Since 1.6.
///
/// ```
/// # use vkog_plugin_api::*;
/// # use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
/// # struct Mine { bytes: AtomicI64 }
/// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine { bytes: 0.into() }) } }
/// impl Applied for Mine {
///     fn applied(&self, change: &AppliedChange<'_>) {
///         let size = |entry: Option<Entry<'_>>| entry.map_or(0, |entry| entry.value().len() as i64);
///         self.bytes.fetch_add(size(change.entry_after()) - size(change.entry_before()), Relaxed);
///     }
/// }
/// ```
pub trait Applied: Plugin {
    /// Called as [`Applied`] describes.
    fn applied(&self, change: &AppliedChange<'_>);
}

/// The argument of [`Applied`]: a change that another host has made. Since 1.6.
pub struct AppliedChange<'a> {
    request: Request<'a>,
}

impl<'a> View<'a> for AppliedChange<'a> {
    fn new(request: Request<'a>) -> Self {
        Self { request }
    }
}

impl<'a> AppliedChange<'a> {
    /// Returns the key.
    pub fn key(&self) -> &'a str {
        self.request.key()
    }

    /// Returns the revision of the change.
    pub fn revision(&self) -> u64 {
        self.request.call.revision
    }

    /// Returns the entry before the change, or `None` if the key was absent.
    pub fn entry_before(&self) -> Option<Entry<'a>> {
        self.request.call.before.map(|raw| Entry { raw })
    }

    /// Returns the entry after the change; `None` after a removal.
    pub fn entry_after(&self) -> Option<Entry<'a>> {
        self.request.call.after.map(|raw| Entry { raw })
    }

    /// Returns whether the entry was removed because it had expired.
    pub fn expired(&self) -> bool {
        self.request.call.flags == 1
    }
}

impl<P: Applied> Probe<P> {
    #[doc(hidden)]
    pub const APPLIED: Option<HookEntry> = {
        unsafe extern "C" fn applied<P: Applied>(instance: *const (), call: &RawCall<'_>) -> Outcome {
            // SAFETY: as in `hooks!`.
            unsafe { enter(instance, call, |plugin: &P, change: &mut AppliedChange<'_>| plugin.applied(change)) }
        }
        Some(HookEntry { id: 24, flags: 0, hook: HookFn { call: applied::<P> } })
    };
}
