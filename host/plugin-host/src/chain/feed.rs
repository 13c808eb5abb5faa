//! The feed of a backend: the functions through which a plugin reports to the store.

use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::std_types::{RNone, ROption, RSlice, RSome, RStr};
use vkog_plugin_api::abi::{FeedApi, FeedApiRef, RawChange, RawCommitOutcome, RawFeed, RawLoaded};
use vkog_plugin_api::backend::{Change, CommitOutcome, Loaded};

use super::host_api::contained;
use super::host_context::HostContext;
use super::scope::{Lock, Scope};
use super::text::one_line;

/// The receiver of a backend's reports: the store. See [`vkog_plugin_api::backend::Feed`].
pub trait BackendFeed: Send + Sync {
    /// Takes a page of the state.
    fn load(&self, page: &[Loaded<'_>]);
    /// Ends the pages of the state, which is that at a revision.
    fn loaded(&self, revision: u64);
    /// Takes the changes of one revision; `own`: this host has made them.
    fn apply(&self, revision: u64, own: bool, changes: &[Change<'_>]);
    /// Takes the outcome of a write.
    fn outcome(&self, id: u64, outcome: CommitOutcome);
    /// Takes the last committed revision, or why it is unknown.
    fn confirmed(&self, id: u64, revision: Result<u64, String>);
    /// Learns that the backend is connected, or why not.
    fn connected(&self, state: Result<(), String>);
}

/// The feed of one backend: [`RawFeed::cx`] points to it. It is leaked, because a thread of the plugin may call it until the
/// process ends.
pub(super) struct FeedSlot {
    context: Arc<HostContext>,
    /// `None` after the backend was closed.
    feed: RwLock<Option<Arc<dyn BackendFeed>>>,
}

static FEED_API: LazyLock<FeedApiRef> =
    LazyLock::new(|| FeedApi { load, loaded, apply, outcome, confirmed, connected }.leak_into_prefix());

impl FeedSlot {
    /// Creates the slot of a feed.
    pub(super) fn leak(context: Arc<HostContext>, feed: Arc<dyn BackendFeed>) -> &'static Self {
        Box::leak(Box::new(Self { context, feed: RwLock::new(Some(feed)) }))
    }

    /// Returns the feed as the plugin gets it.
    pub(super) fn raw(&'static self) -> RawFeed {
        RawFeed { api: *FEED_API, cx: std::ptr::from_ref(self).cast() }
    }

    /// Returns the feed, unless the backend was closed.
    pub(super) fn get(&self) -> Option<Arc<dyn BackendFeed>> {
        self.feed.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ignores all later reports.
    pub(super) fn close(&self) {
        drop(self.feed.write().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Passes a report on.
///
/// # Safety
///
/// `cx` is [`RawFeed::cx`] of a feed that this host made.
unsafe fn report(cx: *const (), run: impl FnOnce(&FeedSlot, &dyn BackendFeed)) {
    contained((), || {
        // SAFETY: the caller's promise; `leak` has leaked the slot.
        let slot = unsafe { &*cx.cast::<FeedSlot>() };
        if let Some(feed) = slot.get() {
            run(slot, &*feed);
        }
    });
}

/// Passes changes of the entries on, while no plugin counts them.
///
/// # Safety
///
/// As for [`report`].
unsafe fn change(cx: *const (), run: impl FnOnce(&dyn BackendFeed)) {
    let run = |slot: &FeedSlot, feed: &dyn BackendFeed| {
        // Recursive, because the store may call the backend meanwhile, which may report at once.
        let _counted_once = slot.context.applying.read_recursive();
        let _scope = Scope { depth: 0, lock: Lock::Applying, chain: std::ptr::null() }.enter();
        run(feed);
    };
    // SAFETY: the caller's promise.
    unsafe { report(cx, run) }
}

unsafe extern "C" fn load(cx: *const (), page: RSlice<'_, RawLoaded<'_>>) {
    // SAFETY: vkog-plugin-api passes the `cx` of the feed that `open` got.
    unsafe { change(cx, |feed| feed.load(Loaded::from_raw(page.as_slice()))) }
}

unsafe extern "C" fn loaded(cx: *const (), revision: u64) {
    // SAFETY: as in `load`.
    unsafe { change(cx, |feed| feed.loaded(revision)) }
}

unsafe extern "C" fn apply(cx: *const (), revision: u64, own: bool, changes: RSlice<'_, RawChange<'_>>) {
    // SAFETY: as in `load`.
    unsafe { change(cx, |feed| feed.apply(revision, own, Change::from_raw(changes.as_slice()))) }
}

unsafe extern "C" fn outcome(cx: *const (), id: u64, outcome: &RawCommitOutcome<'_>) {
    // An outcome may show that another host has made a change.
    // SAFETY: as in `load`.
    unsafe { change(cx, |feed| feed.outcome(id, CommitOutcome::from_raw(outcome))) }
}

unsafe extern "C" fn confirmed(cx: *const (), id: u64, revision: u64, error: ROption<RStr<'_>>) {
    // SAFETY: as in `load`.
    unsafe { report(cx, |_, feed| feed.confirmed(id, result(revision, error))) }
}

unsafe extern "C" fn connected(cx: *const (), error: ROption<RStr<'_>>) {
    // SAFETY: as in `load`.
    unsafe { report(cx, |_, feed| feed.connected(result((), error))) }
}

fn result<T>(value: T, error: ROption<RStr<'_>>) -> Result<T, String> {
    match error {
        RNone => Ok(value),
        RSome(error) => Err(one_line(error.as_str()).into_owned()),
    }
}
