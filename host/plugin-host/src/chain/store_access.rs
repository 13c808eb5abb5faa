//! Requests of plugins: what a plugin sends to the store through the chain, and what it gets back.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vkog_plugin_api::abi::Verb;

use super::call::EntryView;
use super::client_store;
use super::host_context::PluginIdentity;
use super::scope::{Lock, Scope};
use super::{Chain, Refusal};

/// The maximum nesting depth of plugin requests: a hook that a plugin request calls may send another one, and so on.
pub const DEPTH_MAX: u32 = 8;

/// An operation that a plugin requests.
#[derive(Clone)]
pub struct PluginRequest<'a> {
    /// The kind of operation.
    pub verb: Verb,
    /// The key.
    pub key: &'a str,
    /// The value to write; empty for get and delete.
    pub value: &'a [u8],
    /// The media type of the value; empty for the default.
    pub content_type: &'a str,
    /// The query that hooks see.
    pub query: &'a str,
    /// The headers that hooks see.
    pub headers: Vec<(&'a str, &'a [u8])>,
    /// The revision that the entry must have, if any.
    pub if_revision: Option<u64>,
    /// The entry must not exist.
    pub if_absent: bool,
    /// A put creates the entry or replaces it, even where plugins keep creating and updating apart.
    pub upserts: bool,
    /// A put keeps the content coding of the entry that has the required revision.
    pub keeps_coding: bool,
    /// The hook that sent the request.
    pub scope: CallScope,
}

/// The origin of a plugin request.
#[derive(Clone)]
pub struct CallScope {
    /// The plugin.
    pub plugin: &'static str,
    /// The nesting depth of the request: 1 if no hook of a plugin request sent it.
    pub depth: u32,
    /// The chain that the sending hook runs in. The request passes the same chain, because a reload waits until the
    /// operation in that chain has ended.
    pub chain: Option<Arc<Chain>>,
}

/// The result of a [`PluginRequest`].
pub enum PluginResponse<'a> {
    /// A get found this entry.
    Found(EntryView<'a>),
    /// The write succeeded and is durable, with this revision.
    Done(u64),
    /// The entry does not exist.
    Absent,
    /// A plugin refused the request, or the host, whose name is empty.
    Refused(Cow<'a, Refusal>),
}

/// The entries that a plugin requests in byte order.
#[derive(Copy, Clone, Debug)]
pub struct KeyRange<'a> {
    /// Their keys begin with this.
    pub prefix: &'a str,
    /// Their keys are not before this one. It need not begin with the prefix.
    pub from: &'a str,
    /// The maximum number of entries.
    pub limit: u64,
}

/// The store as plugins use it. Every request passes the chain. The engine implements it; calls come from any thread, which
/// may block.
pub trait StoreAccess: Send + Sync {
    /// Runs a request, waits until its effect is durable, and passes the result to `answer`.
    fn request(self: Arc<Self>, request: &PluginRequest<'_>, answer: &mut dyn FnMut(PluginResponse<'_>));

    /// Runs several independent requests, waits until all effects are durable, and passes each result to `answer`, in the
    /// order of the requests.
    fn request_each(self: Arc<Self>, requests: &[PluginRequest<'_>], answer: &mut dyn FnMut(PluginResponse<'_>));

    /// Runs several requests in one step, waits until it is durable, and passes the result of each to `answer`. If one fails,
    /// nothing changes: passes its failure to `answer`, and returns its index.
    fn batch(
        self: Arc<Self>,
        requests: &[PluginRequest<'_>],
        answer: &mut dyn FnMut(PluginResponse<'_>),
    ) -> Option<usize>;

    /// Replaces the value of an entry by what `value_of` makes of the current entry, in one step, waits until it is durable, and
    /// passes the result to `answer`. Calls `value_of` without a lock, again after each conflict. If it returns none, the
    /// update ends without an answer.
    fn update(
        self: Arc<Self>,
        request: &PluginRequest<'_>,
        value_of: &mut dyn FnMut(Option<EntryView<'_>>) -> Option<Vec<u8>>,
        answer: &mut dyn FnMut(PluginResponse<'_>),
    );

    /// Calls `each` with every entry whose key begins with the prefix and that a get in this scope would find, until `each`
    /// returns `false`. Leaves out what plugins hide or refuse.
    ///
    /// # Errors
    ///
    /// An entry cannot be read (a status from 500 on): the rest is not passed, because it would look complete.
    fn for_each(
        self: Arc<Self>,
        prefix: &str,
        scope: &CallScope,
        each: &mut dyn FnMut(&str, EntryView<'_>) -> bool,
    ) -> Result<(), Refusal>;

    /// Calls `each` with the entries of a range that a get in this scope would find, in byte order, until `each` returns
    /// `false`. An entry that cannot be read because plugins have transformed its value is passed as that refusal, and does not
    /// count for the limit.
    ///
    /// # Errors
    ///
    /// An entry cannot be read for another reason (a status from 500 on).
    fn for_each_from(
        self: Arc<Self>,
        range: KeyRange<'_>,
        scope: &CallScope,
        each: &mut dyn FnMut(&str, Result<EntryView<'_>, Refusal>) -> bool,
    ) -> Result<(), Refusal>;

    /// Calls `each` with entries that are chosen at random and that a get in this scope would find, until `each` returns
    /// `false`. `count` entries are chosen, fewer only if the store has no more. Leaves out those that cannot be read.
    fn sample(self: Arc<Self>, count: usize, scope: &CallScope, each: &mut dyn FnMut(&str, EntryView<'_>) -> bool);

    /// Is called when a plugin went into quarantine ([`Member::is_quarantined`](super::Member::is_quarantined)), so that the
    /// host builds a chain that does not call it.
    fn on_quarantine(&self);

    /// Whether this host leads among those that share the store.
    fn leads(&self) -> bool {
        true
    }
}

/// Returns the store and the scope for a request of a plugin from this thread, or the reason why it must not send one.
pub(super) fn access(identity: &'static PluginIdentity) -> Result<(Arc<dyn StoreAccess>, CallScope), Refusal> {
    let scope = Scope::current();
    let refuse =
        |message: &str| Refusal { plugin: String::new(), status: 508, message: message.into(), headers: vec![] };
    match scope.lock {
        Lock::Free | Lock::Serving => {}
        Lock::Held => return Err(refuse("guard and undo hooks cannot send requests to the store: an entry is locked")),
        Lock::Applying => {
            return Err(refuse("hooks for changes of other hosts, and backends, cannot send requests to the store"));
        }
        Lock::Updating => return Err(refuse("the function of an update cannot send requests to the store")),
    }
    if scope.depth >= DEPTH_MAX {
        return Err(refuse(&format!("requests of plugins are nested more than {DEPTH_MAX} deep")));
    }
    if !identity.may_send.load(Relaxed) {
        return Err(refuse("this plugin has not started yet, or is not loaded any more"));
    }
    let store = identity.context.store().ok_or_else(|| refuse("the store is not open yet, or is closed"))?;
    let store = if scope.lock == Lock::Serving { client_store::restricted(store) } else { store };
    Ok((store, CallScope { plugin: &identity.name, depth: scope.depth + 1, chain: scope.chain() }))
}
