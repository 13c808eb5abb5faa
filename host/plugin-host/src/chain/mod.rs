//! The chain: plugins in their order, and the dispatch of hooks. For each hook the chain lists only the plugins that have it.
//! Knows nothing of HTTP, of libraries or of the store.

mod call;
mod details;
mod dispatch;
mod host_api;
mod host_context;
mod member;
mod scope;
mod stats;
mod store_access;
mod text;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use vkog_plugin_api::abi::{HOOK_NAMES, Outcome, Verb};
use vkog_runtime::Counts;

pub use call::{Each, EntryView, NoOrigin, OpContext, Origin, Scan};
pub use host_context::{HostContext, Metric, system_clock};
pub use member::{FailurePolicy, Member, OnFailure, PluginError, QUARANTINE_PANICS, QUARANTINE_WINDOW};
pub use stats::HookStats;
pub use store_access::{CallScope, DEPTH_MAX, KeyRange, PluginRequest, PluginResponse, StoreAccess};
pub use text::{is_token, one_line};

use call::{raw_call, raw_call_with_value};
use details::DETAILS_MAX;
pub use details::{find as find_details, insert as insert_details};
use dispatch::{Detailed, Dispatch, HookList, HookSlot};
use scope::Lock;

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

/// The result of the `before` hooks.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The value with which a plugin replaced that of the request.
    pub value: Option<Vec<u8>>,
    /// A get treats the entry as absent.
    pub hidden: bool,
}

/// The result of the `guard` hooks, if all of them passed.
#[derive(Debug, Default)]
pub struct Passed {
    /// The details to store with the entry: [`EntryView::details`] of later operations.
    pub details: Vec<u8>,
    /// A get treats the entry as absent.
    pub hidden: bool,
}

/// The plugins in their order. A chain never changes. Another order or other plugins make another chain, and an operation
/// ends in the chain that it began in.
pub struct Chain {
    members: Vec<Arc<Member>>,
    /// By hook id. Those from [`START`] on are empty: they belong to no operation.
    lists: [HookList; HOOK_NAMES.len()],
    /// By verb: whether a hook may block.
    blocks: [bool; 4],
    /// The number of dispatches of each list. Each slot was called that often, minus what its statistics take away.
    runs: Counts<{ HOOK_NAMES.len() }>,
}

impl Chain {
    /// Orders the plugins. Those that `order` names come first, in that order. The others follow by stage, then by name.
    pub fn new(mut members: Vec<Arc<Member>>, order: &[String]) -> Self {
        let rank = |member: &Member| order.iter().position(|name| name == member.name()).unwrap_or(order.len());
        members.sort_by_key(|member| (rank(member), member.stage(), member.name()));
        let mut lists: [HookList; HOOK_NAMES.len()] = std::array::from_fn(|_| HookList::default());
        let mut blocks = [false; 4];
        for (index, member) in members.iter().enumerate() {
            let quarantined = member.is_quarantined();
            for (id, list) in lists.iter_mut().enumerate().take(START) {
                let Some((hook, stats)) = member.hook(id) else { continue };
                if quarantined && (id >= AFTER || member.failure_policy().on_failure == OnFailure::Skip) {
                    continue;
                }
                let slot = HookSlot {
                    member: index,
                    instance: member.instance(),
                    name: member.name(),
                    hook: (!quarantined).then_some(*hook),
                    stats: Arc::clone(stats),
                };
                blocks[id % blocks.len()] |= !quarantined && member.blocks_in(id);
                list.always_timed |= member.failure_policy().budget.is_some();
                // `after` and `undo` run from the last plugin to the first.
                if id >= AFTER { list.slots.insert(0, slot) } else { list.slots.push(slot) }
            }
        }
        Self { members, lists, blocks, runs: Counts::default() }
    }

    /// Returns the plugins in the order in which their `before` and `guard` hooks run.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Returns the hooks of a plugin of this chain: the name, the number of calls, and the statistics of each.
    pub fn stats<'a>(&'a self, member: &'a Member) -> impl Iterator<Item = (&'static str, u64, &'a HookStats)> + 'a {
        (0..HOOK_NAMES.len()).filter_map(move |id| {
            let (_, stats) = member.hook(id)?;
            let listed = |slot: &HookSlot| Arc::ptr_eq(&slot.stats, stats) && slot.hook.is_some();
            let runs = if self.lists[id].slots.iter().any(listed) { self.runs.sum(id) } else { 0 };
            Some((HOOK_NAMES[id], stats.calls.load(Relaxed).wrapping_add(runs), &**stats))
        })
    }

    /// Whether an operation with this verb calls a hook that may block.
    pub fn blocks(&self, verb: Verb) -> bool {
        self.blocks[verb as usize]
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
            if let Some(value) = dispatch.output.take(|output| &mut output.value) {
                let value = prepared.value.insert(value);
                raw = raw_call_with_value(op, value);
            }
        }
        Ok(prepared)
    }

    /// Calls the `guard` hooks. The caller holds the lock of the entry. If a guard refuses, hides the entry or fails, the
    /// guards that passed before it are rolled back, the last first.
    ///
    /// # Errors
    ///
    /// The first refusal. The hooks behind it are not called.
    pub fn guard(self: &Arc<Self>, op: &OpContext<'_>, entry: Option<EntryView<'_>>) -> Result<Passed, Refusal> {
        let id = GUARD + op.verb as usize;
        if self.lists[id].slots.is_empty() {
            return Ok(Passed::default());
        }
        let mut details = Vec::new();
        let mut dispatch = Dispatch::begin(self, id, op, Lock::Held);
        let raw_entry = entry.as_ref().map(EntryView::raw_without_details);
        let mut raw = raw_call(op, [raw_entry.as_ref(), None], 0);
        let detailed = Detailed::new([entry.as_ref(), None], &[]);
        for (position, slot) in dispatch.list.slots.iter().enumerate() {
            let outcome = dispatch.call_with_details(slot, &mut raw, &detailed);
            if outcome.kind != Outcome::GO_ON {
                self.undo_before(position, op, entry, &details::join(&details));
                return Err(dispatch.refused(position, outcome));
            }
            if outcome.bits & Outcome::HIDE != 0 {
                self.undo_before(position, op, entry, &details::join(&details));
                dispatch.uncount_rest(position);
                return Ok(Passed { details: Vec::new(), hidden: true });
            }
            if let Some(own) = dispatch.output.take(|output| &mut output.details).filter(|own| !own.is_empty()) {
                let plugin = slot.name;
                if own.len() > DETAILS_MAX {
                    self.undo_before(position + 1, op, entry, &details::join(&details));
                    dispatch.uncount_rest(position);
                    let message =
                        format!("plugin \"{plugin}\" set {} bytes of details; the maximum is {DETAILS_MAX}", own.len());
                    tracing::error!(plugin, hook = HOOK_NAMES[id], "{message}");
                    return Err(Refusal { plugin: plugin.to_owned(), status: 500, message, headers: Vec::new() });
                }
                raw.reserved += details::size_of(plugin, &own);
                details.push((plugin, own));
            }
        }
        if details.is_empty() {
            return Ok(Passed::default());
        }
        Ok(Passed { details: details::join(&details), hidden: false })
    }

    /// Calls the `undo` hooks of an operation that will not happen although all its guards passed. `written` has the
    /// details of the entry that is not written; a read or a removal has none.
    pub fn undo(self: &Arc<Self>, op: &OpContext<'_>, entry: Option<EntryView<'_>>, written: &[u8]) {
        self.undo_before(self.lists[GUARD + op.verb as usize].slots.len(), op, entry, written);
    }

    /// Undoes the guards at positions below `end`, the last first.
    fn undo_before(self: &Arc<Self>, end: usize, op: &OpContext<'_>, entry: Option<EntryView<'_>>, written: &[u8]) {
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
        let mut dispatch = Dispatch::begin(self, id, op, Lock::Free);
        let raw_before = before.as_ref().map(EntryView::raw_without_details);
        let raw_after = after.as_ref().map(EntryView::raw_without_details);
        let mut raw = raw_call(op, [raw_before.as_ref(), raw_after.as_ref()], revision);
        let written = after.as_ref().filter(|_| op.verb != Verb::Get).map_or(&[][..], |after| after.details);
        let detailed = Detailed::new([before.as_ref(), after.as_ref()], written);
        for slot in &dispatch.list.slots {
            // A failure changes nothing for the client.
            dispatch.call_with_details(slot, &mut raw, &detailed);
        }
        dispatch.added_headers()
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
