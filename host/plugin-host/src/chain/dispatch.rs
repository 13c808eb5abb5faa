//! Dispatch: one pass through the plugins that have a hook. It calls each of them and turns what they return into a result.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use vkog_plugin_api::abi::{HOOK_NAMES, HookFn, Outcome, RawCall, RawInstance};

use super::call::{CallOutput, EntryView, OpContext, call};
use super::member::Member;
use super::scope::{Lock, Scope, ScopeGuard};
use super::stats::HookStats;
use super::text::may_be_sent;
use super::{Chain, Refusal};

/// The number of dispatches of a hook that each thread times at first. After that it times one in [`TIMED_EVERY`], because
/// reading the clock costs more than calling a plugin.
const TIMED_FIRST: u64 = 256;
/// See [`TIMED_FIRST`].
const TIMED_EVERY: u64 = 256;

/// A plugin in the list of one hook.
pub(super) struct HookSlot {
    /// The index of the plugin in the chain, which keeps the instance alive.
    pub(super) member: usize,
    pub(super) instance: RawInstance,
    pub(super) name: &'static str,
    /// `None` if the plugin is in quarantine and its calls are refused.
    pub(super) hook: Option<HookFn>,
    pub(super) stats: Arc<HookStats>,
}

/// The plugins that have a hook, in the order in which they are called.
#[derive(Default)]
pub(super) struct HookList {
    pub(super) slots: Vec<HookSlot>,
    /// Every dispatch is timed, because a plugin has a time budget.
    pub(super) always_timed: bool,
}

// SAFETY: the instance of a slot belongs to a `Member`, which is `Send` and `Sync`.
unsafe impl Send for HookSlot {}
// SAFETY: as above.
unsafe impl Sync for HookSlot {}

/// One pass through the list of a hook.
pub(super) struct Dispatch<'a> {
    chain: &'a Chain,
    pub(super) list: &'a HookList,
    id: usize,
    pub(super) output: CallOutput<'a>,
    /// When the last call ended, if this dispatch is timed.
    clock: Option<Instant>,
    _scope: ScopeGuard,
}

impl<'a> Dispatch<'a> {
    /// Begins a dispatch that calls some plugins of the list, in another order. The caller counts each call.
    pub(super) fn begin_uncounted(chain: &'a Arc<Chain>, id: usize, op: &OpContext<'a>) -> Self {
        let scope = Scope { depth: op.depth, lock: Lock::Free, chain: Arc::as_ptr(chain) }.enter();
        let clock = Some(Instant::now());
        Self { chain, list: &chain.lists[id], id, clock, _scope: scope, output: CallOutput::new(op) }
    }

    #[inline(always)]
    pub(super) fn begin(chain: &'a Arc<Chain>, id: usize, op: &OpContext<'a>, lock: Lock) -> Self {
        let list = &chain.lists[id];
        let scope = Scope { depth: op.depth, lock, chain: Arc::as_ptr(chain) }.enter();
        let run = chain.runs.count(id);
        let timed = list.always_timed || run < TIMED_FIRST || run % TIMED_EVERY == 0;
        let clock = timed.then(Instant::now);
        // Build the output last, in its final place: moving it costs as much as a call.
        Self { chain, list, id, clock, _scope: scope, output: CallOutput::new(op) }
    }

    /// Calls a hook. If there are details, it passes the entries with this plugin's own details.
    #[inline(always)]
    pub(super) fn call_with_details(
        &mut self,
        slot: &'a HookSlot,
        raw: &mut RawCall<'_>,
        detailed: &Detailed<'_>,
    ) -> Outcome {
        if detailed.is_empty() { self.call(slot, raw) } else { self.call_with_own_details(slot, raw, detailed) }
    }

    // A separate function, so that other calls do not save the registers that it needs.
    #[inline(never)]
    fn call_with_own_details(&mut self, slot: &'a HookSlot, raw: &RawCall<'_>, detailed: &Detailed<'_>) -> Outcome {
        let [before, after] = detailed.entries.map(|entry| entry.map(|entry| entry.raw(slot.name)));
        let reserved = match detailed.written {
            [] => raw.reserved,
            written => self.chain.earlier_details_size(written, slot.member),
        };
        self.call(slot, &mut RawCall { before: before.as_ref(), after: after.as_ref(), reserved, ..*raw })
    }

    #[inline(always)]
    pub(super) fn call(&mut self, slot: &'a HookSlot, raw: &mut RawCall<'_>) -> Outcome {
        self.output.plugin = slot.name;
        let Some(hook) = slot.hook else {
            let message = format!("plugin \"{}\" is in quarantine after it failed again and again", slot.name);
            self.output.lazy().message = Some(message);
            return Outcome { kind: Outcome::REFUSED, status: 503, bits: 0 };
        };
        // SAFETY: the caller of `Member::create` promised that the module is sound; the chain keeps the instance alive.
        let outcome = unsafe { call(hook, slot.instance, raw, &mut self.output) };
        if let Some(begun) = self.clock {
            self.clock = Some(slot.record_time(self.id, &self.chain.members[slot.member], begun));
        }
        if outcome.kind != Outcome::GO_ON {
            self.record_failure(slot, outcome);
        }
        outcome
    }

    #[cold]
    fn record_failure(&mut self, slot: &HookSlot, outcome: Outcome) {
        if outcome.kind == Outcome::PANICKED {
            let message = self.output.take(|output| &mut output.message).unwrap_or_default();
            self.chain.members[slot.member].record_panic(self.id, &slot.stats, &message);
        } else {
            slot.stats.refusals.fetch_add(1, Relaxed);
        }
    }

    /// Takes the plugins behind a position out of the count of calls, because the dispatch ended before it reached them.
    #[cold]
    pub(super) fn uncount_rest(&self, position: usize) {
        for slot in self.list.slots[position + 1..].iter().filter(|slot| slot.hook.is_some()) {
            slot.stats.calls.fetch_sub(1, Relaxed);
        }
    }

    /// Ends the dispatch at the plugin that refused or panicked, and returns what the client gets.
    #[cold]
    pub(super) fn refused(&mut self, position: usize, outcome: Outcome) -> Refusal {
        self.uncount_rest(position);
        self.refusal(outcome)
    }

    /// Returns what the client gets after the last called plugin refused or panicked.
    #[cold]
    pub(super) fn refusal(&mut self, outcome: Outcome) -> Refusal {
        let (id, plugin) = (self.id, self.output.plugin);
        if outcome.kind == Outcome::PANICKED {
            // The message of a panic goes to the log only: it may contain data of another client.
            let message = format!("plugin \"{plugin}\" failed in {}; nothing was changed", HOOK_NAMES[id]);
            return Refusal { plugin: plugin.to_owned(), status: 500, message, headers: Vec::new() };
        }
        let mut status = outcome.status;
        if !(400..=599).contains(&status) {
            let hook = HOOK_NAMES[id];
            tracing::warn!(plugin, hook, status, "refused with a status that is not an error; 500 is sent instead");
            status = 500;
        }
        let mut headers = self.output.take(|output| &mut output.headers);
        headers.retain(|header| may_be_sent(header, plugin, id));
        let message = self.output.take(|output| &mut output.message).unwrap_or_default();
        Refusal { plugin: plugin.to_owned(), status, message, headers }
    }

    /// Ends the dispatch at a plugin whose output cannot be used, and returns what the client gets. `fact` follows the name of
    /// the plugin.
    #[cold]
    pub(super) fn failed(&self, position: usize, fact: fmt::Arguments<'_>) -> Refusal {
        self.uncount_rest(position);
        let plugin = self.output.plugin;
        let message = format!("plugin \"{plugin}\" {fact}");
        tracing::error!(plugin, hook = HOOK_NAMES[self.id], "{message}");
        Refusal { plugin: plugin.to_owned(), status: 500, message, headers: Vec::new() }
    }

    /// Returns the headers that plugins added to a response.
    #[inline(always)]
    pub(super) fn added_headers(&mut self) -> Vec<(String, String)> {
        if self.output.is_empty() { Vec::new() } else { self.take_headers() }
    }

    // A separate function, because most dispatches add no header.
    #[cold]
    fn take_headers(&mut self) -> Vec<(String, String)> {
        let id = self.id;
        let mut headers = self.output.take(|output| &mut output.headers);
        headers.retain(|header| may_be_sent(header, "after", id));
        headers
    }
}

impl HookSlot {
    /// Records the time since `begun` as that of a call, and returns the end of the call.
    #[cold]
    fn record_time(&self, id: usize, member: &Member, begun: Instant) -> Instant {
        let ended = Instant::now();
        member.record_time(id, &self.stats, ended - begun);
        ended
    }
}

/// The entries before and after an operation, for a dispatch that passes their details.
#[derive(Copy, Clone)]
pub(super) struct Detailed<'a> {
    entries: [Option<&'a EntryView<'a>>; 2],
    /// The details that the guards of this operation have set; empty while they run, and for a read.
    written: &'a [u8],
}

impl<'a> Detailed<'a> {
    #[inline(always)]
    pub(super) fn new(entries: [Option<&'a EntryView<'a>>; 2], written: &'a [u8]) -> Self {
        Self { entries, written }
    }

    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.written.is_empty() && self.entries.iter().flatten().all(|entry| entry.details.is_empty())
    }
}
