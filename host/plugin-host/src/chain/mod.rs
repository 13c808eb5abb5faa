//! The chain: plugins in their order, and the dispatch of hooks. For each hook the chain lists only the plugins that have it.
//! Knows nothing of HTTP, of libraries or of the store.

mod applied;
mod backend;
mod call;
mod client_store;
mod details;
mod dispatch;
mod feed;
mod guard_output;
mod host_api;
mod host_context;
mod member;
mod route;
mod scope;
mod serve;
mod states;
mod stats;
mod store_access;
mod store_calls;
mod text;
mod transforms;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vkog_plugin_api::abi::{HOOK_NAMES, Outcome, RawCall, Verb};
use vkog_runtime::Counts;

pub use applied::AppliedChange;
pub use backend::{Backend, BackendError};
pub use call::{Each, EntryView, NoOrigin, OpContext, Origin, Scan};
pub use client_store::RouteClient;
pub use feed::BackendFeed;
pub use guard_output::{ADDED_MAX, AddedWrite, GuardOutput, misused};
pub use host_context::{HostContext, Metric, system_clock};
pub use member::{FailurePolicy, Member, OnFailure, PluginError, QUARANTINE_PANICS, QUARANTINE_WINDOW};
pub use route::{BadParameter, PathRoutes, ROUTE_METHODS, Route, RouteError};
pub use serve::{NewValue, ROUTE_CALLS_MAX, RouteCall, RouteExchange, RouteHead, RoutePermit};
pub use states::CallStates;
pub use stats::HookStats;
pub use store_access::{CallScope, DEPTH_MAX, KeyRange, PluginRequest, PluginResponse, StoreAccess};
pub use text::{MEDIA_TYPE_MAX, is_token, one_line};
pub use transforms::{ReadValue, Transforms};

use call::{raw_call, raw_call_replaced};
use details::DETAILS_MAX;
pub use details::{find as find_details, insert as insert_details};
use dispatch::{Detailed, Dispatch, HookList, HookSlot};
use guard_output::{Replaced, seen};
use scope::Lock;
use text::is_media_type;

// Hook ids: that of a phase plus the verb, or that of a hook without an operation.
const BEFORE: usize = 0;
const GUARD: usize = 4;
const AFTER: usize = 8;
const UNDO: usize = 12;
const START: usize = 16;
const TICK: usize = 17;
const SETTINGS_CHANGED: usize = 18;
const MAKE_ROOM: usize = 19;
const READ_GET: usize = 20;
const BEFORE_REQUEST: usize = 21;
const SERVE: usize = 22;
const SERVE_UPDATE: usize = 23;
const APPLIED: usize = 24;

/// The maximum length of the key prefix of a request, in bytes.
pub const KEY_PREFIX_MAX: usize = 512;

/// Why an operation was refused: by the verdict of a plugin, by its panic, or by the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The name of the plugin; empty if the host refused.
    pub plugin: String,
    /// The HTTP status, 400 to 599.
    pub status: u16,
    /// The message for the client, one line.
    pub message: String,
    /// Additional headers of the response.
    pub headers: Vec<(String, String)>,
}

impl Refusal {
    /// Adds the key to the message of a failure: who lists entries has sent no key. A refusal of the client itself concerns every key.
    pub fn at_key(mut self, key: &str) -> Self {
        if self.status >= 500 {
            self.message = format!("Key \"{key}\": {}", self.message);
        }
        self
    }
}

/// The result of the `before` hooks.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The value with which a plugin replaced that of the request.
    pub value: Option<Vec<u8>>,
    /// The media type with which a plugin replaced that of the request.
    pub content_type: Option<String>,
    /// A get treats the entry as absent.
    pub hidden: bool,
    /// The plugins that replaced the value and that turn it back when it is read.
    pub transforms: Transforms,
}

/// The result of the `guard` hooks, if all of them passed.
#[derive(Debug, Default)]
pub struct Passed {
    /// The details to store with the entry: [`EntryView::details`] of later operations.
    pub details: Vec<u8>,
    /// A get treats the entry as absent.
    pub hidden: bool,
}

impl Prepared {
    /// Adds what the plugin at this position has replaced. Returns whether it has replaced the value.
    #[cold]
    fn add(&mut self, dispatch: &mut Dispatch<'_>, position: usize) -> Result<bool, Refusal> {
        let value = dispatch.output.take(|output| &mut output.value);
        let is_replaced = value.is_some();
        if is_replaced {
            self.value = value;
        }
        if let Some(content_type) = dispatch.output.take(|output| &mut output.content_type) {
            if !is_media_type(&content_type) {
                let fact =
                    format_args!("set the media type {content_type:?}; it must be a type and a subtype in ASCII");
                return Err(dispatch.failed(position, fact));
            }
            self.content_type = Some(content_type);
        }
        Ok(is_replaced)
    }
}

/// The plugins in their order. A chain never changes. Another order or other plugins make another chain, and an operation
/// ends in the chain that it began in.
pub struct Chain {
    members: Vec<Arc<Member>>,
    /// By hook id. Those of hooks that belong to no operation and no HTTP request are empty.
    lists: [HookList; HOOK_NAMES.len()],
    /// By verb: whether a hook may block.
    blocks: [bool; 4],
    /// Whether a `before_request` hook may block.
    request_blocks: bool,
    /// By verb: whether a guard may add writes.
    adds: [bool; 4],
    /// The number of dispatches of each list. Each slot was called that often, minus what its statistics take away.
    runs: Counts<{ HOOK_NAMES.len() }>,
}

impl Chain {
    /// Orders the plugins. Those that `order` names come first, in that order. The others follow by stage, then by name.
    pub fn new(mut members: Vec<Arc<Member>>, order: &[String]) -> Self {
        let rank = |member: &Member| order.iter().position(|name| name == member.name()).unwrap_or(order.len());
        members.sort_by_key(|member| (rank(member), member.stage(), member.name()));
        let mut lists: [HookList; HOOK_NAMES.len()] = std::array::from_fn(|_| HookList::default());
        let (mut blocks, mut request_blocks, mut adds) = ([false; 4], false, [false; 4]);
        for (index, member) in members.iter().enumerate() {
            let quarantined = member.is_quarantined();
            let is_listed = |id: usize| id < START || [READ_GET, BEFORE_REQUEST, APPLIED].contains(&id);
            for (id, list) in lists.iter_mut().enumerate().filter(|(id, _)| is_listed(*id)) {
                let Some((hook, stats)) = member.hook(id) else { continue };
                let is_late = (AFTER..START).contains(&id) || id == APPLIED;
                // No read passes without the plugin that has transformed its value.
                let is_skipped = is_late || member.failure_policy().on_failure == OnFailure::Skip;
                if quarantined && id != READ_GET && is_skipped {
                    continue;
                }
                let slot = HookSlot {
                    member: index,
                    instance: member.instance(),
                    name: member.name(),
                    hook: (!quarantined).then_some(*hook),
                    stats: Arc::clone(stats),
                };
                let may_block = !quarantined && member.blocks_in(id);
                match id {
                    BEFORE_REQUEST => request_blocks |= may_block,
                    // It is never called for an operation.
                    APPLIED => {}
                    // `read_get` belongs to the verb 0, get.
                    _ => blocks[id % 4] |= may_block,
                }
                adds[id % adds.len()] |= (GUARD..AFTER).contains(&id) && member.may_add();
                list.always_timed |= member.failure_policy().budget.is_some();
                // `after`, `undo` and `applied` run from the last plugin to the first.
                if is_late { list.slots.insert(0, slot) } else { list.slots.push(slot) }
            }
        }
        Self { members, lists, blocks, request_blocks, adds, runs: Counts::default() }
    }

    /// Returns the plugins in the order in which their `before` and `guard` hooks run.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Returns the hooks of a plugin of this chain, and the functions of a backend that is in use: the name, the number of
    /// calls, and the statistics of each.
    pub fn stats<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = (&'static str, u64, &'a HookStats)> + 'a {
        let hooks = (0..HOOK_NAMES.len()).filter_map(move |id| {
            let (_, stats) = member.hook(id)?;
            let listed = |slot: &HookSlot| Arc::ptr_eq(&slot.stats, stats) && slot.hook.is_some();
            let runs = if self.lists[id].slots.iter().any(listed) { self.runs.sum(id) } else { 0 };
            Some((HOOK_NAMES[id], stats.calls.load(Relaxed).wrapping_add(runs), &**stats))
        });
        hooks.chain(member.backend_stats())
    }

    /// Whether an operation with this verb calls a hook that may block.
    pub fn blocks(&self, verb: Verb) -> bool {
        self.blocks[verb as usize]
    }

    /// Whether a request to a route of the plugin that updates an entry calls a hook that may block.
    pub fn blocks_update(&self, member: &Member) -> bool {
        // It reads the entry, too, whose value hooks of get may turn back.
        self.blocks(Verb::Get) || self.blocks(Verb::Put) || member.blocks_in(SERVE_UPDATE)
    }

    /// Whether a guard for this verb may add writes.
    pub fn may_add(&self, verb: Verb) -> bool {
        self.adds[verb as usize]
    }

    /// Whether no plugin has a guard for this verb, so that no lock has to be held for guards.
    pub fn is_unguarded(&self, verb: Verb) -> bool {
        self.lists[GUARD + verb as usize].slots.is_empty()
    }

    /// Whether no plugin has a `before`, `guard` or `after` hook for this verb.
    pub fn has_no_hooks(&self, verb: Verb) -> bool {
        [BEFORE, GUARD, AFTER].iter().all(|phase| self.lists[phase + verb as usize].slots.is_empty())
    }

    /// Whether a plugin has a `make_room` hook.
    pub fn may_make_room(&self) -> bool {
        self.members.iter().any(|member| member.has("make_room"))
    }

    /// Calls the `make_room` hooks for an operation of this nesting depth. Blocks, so call it on a thread that may. Returns
    /// whether one of them made room.
    pub fn make_room(self: &Arc<Self>, depth: u32) -> bool {
        // Call all of them, even if the first returns true.
        self.members.iter().filter(|member| member.make_room(self, depth)).count() > 0
    }

    /// Calls the `before` hooks. The caller holds no lock.
    ///
    /// # Errors
    ///
    /// The first refusal. The hooks behind it are not called.
    pub fn before(self: &Arc<Self>, op: &OpContext<'_>) -> Result<Prepared, Refusal> {
        let id = BEFORE + op.verb as usize;
        let mut prepared = Prepared::default();
        if self.lists[id].slots.is_empty() {
            return Ok(prepared);
        }
        let mut dispatch = Dispatch::begin(self, id, op, Lock::Free);
        let mut raw = raw_call(op, [None, None], 0);
        for (position, slot) in dispatch.list.slots.iter().enumerate() {
            let outcome = dispatch.call(slot, &mut raw);
            if outcome.kind != Outcome::GO_ON {
                return Err(dispatch.refused(position, outcome));
            }
            prepared.hidden |= outcome.bits & Outcome::HIDE != 0;
            if !dispatch.output.is_empty() {
                let is_replaced = prepared.add(&mut dispatch, position)?;
                if is_replaced && self.members[slot.member].hook(READ_GET).is_some() {
                    prepared.transforms.add(slot.name);
                }
                raw = raw_call_replaced(op, prepared.value.as_deref(), prepared.content_type.as_deref());
            }
        }
        Ok(prepared)
    }

    /// Whether a plugin has a `before_request` hook.
    pub fn has_before_request(&self) -> bool {
        !self.lists[BEFORE_REQUEST].slots.is_empty()
    }

    /// Whether a `before_request` hook may block.
    pub fn blocks_request(&self) -> bool {
        self.request_blocks
    }

    /// Calls the `before_request` hooks for an HTTP request with this path and query, both not decoded. The caller holds no
    /// lock. Returns the prefix of the keys of the request, which is empty if no plugin sets one.
    ///
    /// # Errors
    ///
    /// The first refusal. The hooks behind it are not called.
    pub fn before_request(self: &Arc<Self>, path: &str, query: &str, origin: &dyn Origin) -> Result<String, Refusal> {
        let mut prefix = String::new();
        if !self.has_before_request() {
            return Ok(prefix);
        }
        let op = OpContext { key: path, query, origin, ..OpContext::none() };
        let mut dispatch = Dispatch::begin(self, BEFORE_REQUEST, &op, Lock::Free);
        let mut raw = raw_call(&op, [None, None], 0);
        for (position, slot) in dispatch.list.slots.iter().enumerate() {
            let outcome = dispatch.call(slot, &mut raw);
            if outcome.kind != Outcome::GO_ON {
                return Err(dispatch.refused(position, outcome));
            }
            if let Some(own) = dispatch.output.take(|output| &mut output.key_prefix) {
                prefix.push_str(&own);
                if prefix.len() > KEY_PREFIX_MAX {
                    let length = prefix.len();
                    let fact = format_args!("made the key prefix {length} bytes long; the maximum is {KEY_PREFIX_MAX}");
                    return Err(dispatch.failed(position, fact));
                }
            }
        }
        Ok(prefix)
    }

    /// Calls the `guard` hooks. The caller holds the lock of the entry. If a guard refuses, hides the entry or fails, the
    /// guards that passed before it are rolled back, the last first. The output of the guards is in [`OpContext::guarded`].
    ///
    /// # Errors
    ///
    /// The first refusal. The hooks behind it are not called.
    pub fn guard(self: &Arc<Self>, op: &OpContext<'_>, entry: Option<EntryView<'_>>) -> Result<Passed, Refusal> {
        let id = GUARD + op.verb as usize;
        if self.lists[id].slots.is_empty() {
            return Ok(Passed::default());
        }
        op.guarded.clear();
        let (mut details, mut values, mut added) = (Vec::new(), Vec::new(), Vec::new());
        let mut dispatch = Dispatch::begin(self, id, op, Lock::Held);
        let raw_entry = entry.as_ref().map(EntryView::raw_without_details);
        let mut raw = raw_call(op, [raw_entry.as_ref(), None], 0);
        let detailed = Detailed::new([entry.as_ref(), None], &[]);
        for (position, slot) in dispatch.list.slots.iter().enumerate() {
            let outcome = dispatch.call_with_details(slot, &mut raw, &detailed);
            if outcome.kind != Outcome::GO_ON {
                self.undo_before(position, op, entry, &details::join(&details), &values);
                return Err(dispatch.refused(position, outcome));
            }
            if outcome.bits & Outcome::HIDE != 0 {
                self.undo_before(position, op, entry, &details::join(&details), &values);
                dispatch.uncount_rest(position);
                return Ok(Passed { details: Vec::new(), hidden: true });
            }
            if dispatch.output.is_empty() {
                continue;
            }
            let plugin = slot.name;
            let own = dispatch.output.take(|output| &mut output.details).unwrap_or_default();
            added.append(&mut dispatch.output.take(|output| &mut output.added));
            let excess = if own.len() > DETAILS_MAX {
                Some(format!("set {} bytes of details; the maximum is {DETAILS_MAX}", own.len()))
            } else if added.len() > ADDED_MAX {
                Some(format!("added more writes to an operation than {ADDED_MAX}"))
            } else {
                None
            };
            if let Some(excess) = excess {
                self.undo_before(position + 1, op, entry, &details::join(&details), &values);
                dispatch.uncount_rest(position);
                return Err(misused(plugin, &excess));
            }
            if !own.is_empty() {
                raw.reserved += details::size_of(plugin, &own);
                details.push((plugin, own));
            }
            if let Some(value) = dispatch.output.take(|output| &mut output.value) {
                let reserved = raw.reserved;
                values.push(Replaced { by: slot.member, value });
                let value = values.last().map_or(op.value, |replaced| &replaced.value);
                raw = RawCall { reserved, value: value.into(), ..raw_call(op, [raw_entry.as_ref(), None], 0) };
            }
        }
        if !(values.is_empty() && added.is_empty()) {
            op.guarded.set(values, added);
        }
        if details.is_empty() {
            return Ok(Passed::default());
        }
        Ok(Passed { details: details::join(&details), hidden: false })
    }

    /// Calls the `undo` hooks of an operation that will not happen although all its guards passed. `written` has the
    /// details of the entry that is not written; a read or a removal has none.
    pub fn undo(self: &Arc<Self>, op: &OpContext<'_>, entry: Option<EntryView<'_>>, written: &[u8]) {
        let end = self.lists[GUARD + op.verb as usize].slots.len();
        op.guarded.with_values(|values| self.undo_before(end, op, entry, written, values));
    }

    /// Undoes the guards at positions below `end`, the last first. `values` are those with which guards replaced that of the
    /// operation: each undo sees the value that its guard saw.
    fn undo_before(
        self: &Arc<Self>,
        end: usize,
        op: &OpContext<'_>,
        entry: Option<EntryView<'_>>,
        written: &[u8],
        values: &[Replaced],
    ) {
        let (id, guards) = (UNDO + op.verb as usize, &self.lists[GUARD + op.verb as usize].slots);
        let passed = &guards[..end];
        if [&self.lists[id].slots, passed].into_iter().any(<[_]>::is_empty) {
            return;
        }
        // A plugin that has an undo hook has the guard, too.
        let all = end == guards.len();
        let mut dispatch = Dispatch::begin(self, id, op, Lock::Held);
        let raw_entry = entry.as_ref().map(EntryView::raw_without_details);
        let mut raw = raw_call(op, [raw_entry.as_ref(), None], 0);
        let detailed = Detailed::new([entry.as_ref(), None], written);
        for slot in &dispatch.list.slots {
            if all || passed.iter().any(|guard| guard.member == slot.member) {
                raw.value = seen(values, slot.member).unwrap_or(op.value).into();
                dispatch.call_with_details(slot, &mut raw, &detailed);
            } else {
                slot.stats.calls.fetch_sub(1, Relaxed);
            }
        }
    }

    /// Calls the `after` hooks of an operation that is durable, with its revision. The caller holds no lock. Returns the
    /// headers that they add to the response.
    pub fn after(
        self: &Arc<Self>,
        op: &OpContext<'_>,
        revision: u64,
        before: Option<EntryView<'_>>,
        after: Option<EntryView<'_>>,
    ) -> Vec<(String, String)> {
        let id = AFTER + op.verb as usize;
        if self.lists[id].slots.is_empty() {
            return Vec::new();
        }
        op.guarded.with_values(|values| {
            let mut dispatch = Dispatch::begin(self, id, op, Lock::Free);
            let raw_before = before.as_ref().map(EntryView::raw_without_details);
            let raw_after = after.as_ref().map(EntryView::raw_without_details);
            let mut raw = raw_call(op, [raw_before.as_ref(), raw_after.as_ref()], revision);
            let written = after.as_ref().filter(|_| op.verb != Verb::Get).map_or(&[][..], |after| after.details);
            let detailed = Detailed::new([before.as_ref(), after.as_ref()], written);
            for slot in &dispatch.list.slots {
                raw.value = seen(values, slot.member).unwrap_or(op.value).into();
                // A failure changes nothing for the client.
                dispatch.call_with_details(slot, &mut raw, &detailed);
            }
            dispatch.added_headers()
        })
    }

    /// Returns the size of the details that the plugins before a position have set, with their names.
    fn earlier_details_size(&self, all: &[u8], position: usize) -> u64 {
        let earlier = |name: &[u8]| self.members[..position].iter().any(|member| member.name().as_bytes() == name);
        details::sizes(all).filter(|(name, _)| earlier(name)).map(|(_, size)| size).sum()
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // The counts continue in the next chain.
        for (id, list) in self.lists.iter().enumerate() {
            for slot in list.slots.iter().filter(|slot| slot.hook.is_some()) {
                slot.stats.calls.fetch_add(self.runs.sum(id), Relaxed);
            }
        }
    }
}
