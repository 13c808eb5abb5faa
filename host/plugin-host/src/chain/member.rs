//! A created plugin: its module, its instance, its statistics, and its state of health.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use abi_stable::std_types::{RErr, ROk, RSome};
use vkog_plugin_api::abi::{HOOK_NAMES, HookEntry, HookFn, Outcome, PluginModuleRef, RawFailure, RawHost, RawInstance};

use super::backend::BackendPart;
use super::call::{CallOutput, OpContext, Scan, call, raw_call};
use super::host_api::HOST_API;
use super::host_context::{HostContext, PluginIdentity};
use super::route::{Route, RouteError, RouteTable};
use super::scope::{Lock, Scope};
use super::stats::HookStats;
use super::text::{log_panic, one_line};
use super::{Chain, MAKE_ROOM, SETTINGS_CHANGED, START, TICK};

/// The number of panics within [`QUARANTINE_WINDOW`] that puts a plugin into quarantine.
pub const QUARANTINE_PANICS: usize = 5;
/// See [`QUARANTINE_PANICS`].
pub const QUARANTINE_WINDOW: Duration = Duration::from_secs(60);

/// The treatment of a plugin after [`QUARANTINE_PANICS`] panics.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It goes into quarantine, and operations that have a `before` or `guard` hook of it are refused.
    #[default]
    Refuse,
    /// It goes into quarantine, and operations pass without it.
    Skip,
    /// It stays. Each panic refuses the operation in which it happened.
    Keep,
}

/// The failure policy of a plugin: what its panics and its slow calls lead to.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct FailurePolicy {
    /// The treatment after repeated panics.
    pub on_failure: OnFailure,
    /// The time budget of a call. A call that takes longer is counted and logged.
    pub budget: Option<Duration>,
}

/// Why a plugin was not created, did not start, or rejected its settings. The message is what the plugin returned, as one
/// line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The plugin cannot read its settings.
    #[error("{message}")]
    Settings {
        /// The reason.
        message: String,
    },
    /// The plugin returned an error.
    #[error("{message}")]
    Returned {
        /// The error.
        message: String,
    },
    /// The plugin panicked.
    #[error("{message}")]
    Panicked {
        /// The message of the panic.
        message: String,
    },
    /// The plugin has a `start` hook, and the operations in flight did not end in time.
    #[error("operations in flight did not end within {timeout:?}, and it counts what the store holds")]
    NotDrained {
        /// The time that they had.
        timeout: Duration,
    },
    /// The plugin serves a route that is malformed.
    #[error("{0}")]
    Route(#[source] RouteError),
}

/// A created plugin, as part of a chain. Dropping it destroys the plugin.
pub struct Member {
    module: PluginModuleRef,
    instance: RawInstance,
    identity: &'static PluginIdentity,
    failure_policy: FailurePolicy,
    /// By hook id.
    hooks: [Option<(HookFn, Arc<HookStats>)>; HOOK_NAMES.len()],
    /// By hook id: whether the hook may block.
    blocks: [bool; HOOK_NAMES.len()],
    routes: RouteTable,
    /// The number of calls of its routes that are in flight.
    route_calls: AtomicUsize,
    /// Its functions as a backend, if it is one.
    backend: Option<Arc<BackendPart>>,
    panics: Mutex<VecDeque<Instant>>,
    quarantined: AtomicBool,
}

// SAFETY: vkog-plugin-api requires `Send + Sync` of every plugin type, and the instance is one; hooks take `&self`.
unsafe impl Send for Member {}
// SAFETY: as above.
unsafe impl Sync for Member {}

impl Member {
    /// Creates a plugin with its settings, a JSON object. Runs code of the plugin on this thread, without a lock.
    ///
    /// # Errors
    ///
    /// A route of it is malformed, or it returned an error or panicked.
    ///
    /// # Safety
    ///
    /// The layout of the module was checked, and its library stays loaded until the process ends.
    pub unsafe fn create(
        module: PluginModuleRef,
        settings: &str,
        context: &Arc<HostContext>,
        failure_policy: FailurePolicy,
    ) -> Result<Self, PluginError> {
        let raw_routes = module.routes().map_or(&[][..], |routes| routes.as_slice());
        let routes = RouteTable::parse(raw_routes).map_err(PluginError::Route)?;
        let name = module.name().to_string();
        let (context, switched_off) = (Arc::clone(context), [const { AtomicBool::new(false) }; HOOK_NAMES.len()]);
        let (may_send, files) = (AtomicBool::new(false), Mutex::default());
        let identity = PluginIdentity { name, context, may_send, switched_off, files };
        let identity: &'static PluginIdentity = Box::leak(Box::new(identity));
        let host = RawHost { api: *HOST_API, cx: std::ptr::from_ref(identity).cast() };
        // SAFETY: the caller's promise.
        let instance = match unsafe { module.create()(host, settings.into()) } {
            ROk(instance) => instance,
            RErr(RawFailure { kind, message, .. }) => {
                let message = one_line(&message).into_owned();
                return Err(match kind {
                    RawFailure::SETTINGS => PluginError::Settings { message },
                    RawFailure::PANIC => PluginError::Panicked { message },
                    _ => PluginError::Returned { message },
                });
            }
        };
        let mut hooks = [const { None }; HOOK_NAMES.len()];
        let mut blocks = [false; HOOK_NAMES.len()];
        for entry in module.hooks().as_slice() {
            let id = entry.id as usize;
            if let Some(place) = hooks.get_mut(id)
                && !identity.switched_off[id].load(Relaxed)
            {
                *place = Some((entry.hook, Arc::default()));
                blocks[id] = entry.flags & HookEntry::BLOCKS != 0;
            }
        }
        identity.may_send.store(hooks[START].is_none(), Relaxed);
        let backend = module.backend().and_then(|backend| backend.into_option());
        let backend = backend.map(|functions| Arc::new(BackendPart::new(functions)));
        let (route_calls, panics, quarantined) = (AtomicUsize::new(0), Mutex::default(), AtomicBool::new(false));
        Ok(Self {
            module,
            instance,
            identity,
            failure_policy,
            hooks,
            blocks,
            routes,
            route_calls,
            backend,
            panics,
            quarantined,
        })
    }

    /// Returns the name, which is also the name of its table in the configuration.
    pub fn name(&self) -> &'static str {
        &self.identity.name
    }

    /// Returns its stage in the chain as a number, because a later version of the interface may have more stages.
    pub fn stage(&self) -> u32 {
        self.module.stage()
    }

    /// Returns its failure policy.
    pub fn failure_policy(&self) -> FailurePolicy {
        self.failure_policy
    }

    /// Whether the content of a file has changed since the plugin [depends on it](vkog_plugin_api::Host::depend_on). Reads the file.
    pub fn files_have_changed(&self) -> bool {
        self.identity.files_have_changed()
    }

    /// Whether it is in quarantine: it panicked too often and is not called any more.
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.load(Relaxed)
    }

    /// Whether it has a hook of this name.
    pub fn has(&self, hook: &str) -> bool {
        HOOK_NAMES.iter().position(|name| *name == hook).is_some_and(|id| self.hooks[id].is_some())
    }

    /// Whether its guards may add writes: it was built against vkog-plugin-api 1.5 or newer.
    pub(super) fn may_add(&self) -> bool {
        self.module.routes().is_some()
    }

    /// Whether one of its hooks may block.
    pub fn blocks(&self) -> bool {
        self.blocks.contains(&true)
    }

    /// Returns its routes.
    pub fn routes(&self) -> &[Route] {
        self.routes.all()
    }

    pub(super) fn route_table(&self) -> &RouteTable {
        &self.routes
    }

    pub(super) fn route_calls(&self) -> &AtomicUsize {
        &self.route_calls
    }

    pub(super) fn blocks_in(&self, id: usize) -> bool {
        self.blocks[id]
    }

    /// Returns its functions as a backend, if it is one.
    pub(super) fn backend_part(&self) -> Option<&Arc<BackendPart>> {
        self.backend.as_ref()
    }

    /// Returns the statistics of its functions as a backend, if it is in use as one.
    pub(super) fn backend_stats(&self) -> impl Iterator<Item = (&'static str, u64, &HookStats)> {
        self.backend.iter().filter(|part| part.is_in_use()).flat_map(|part| part.stats())
    }

    /// Whether the store uses it as its backend, so that it cannot be replaced.
    pub fn is_backend_in_use(&self) -> bool {
        self.backend.as_ref().is_some_and(|part| part.is_in_use())
    }

    pub(super) fn context(&self) -> &Arc<HostContext> {
        &self.identity.context
    }

    pub(super) fn instance(&self) -> RawInstance {
        self.instance
    }

    pub(super) fn hook(&self, id: usize) -> Option<&(HookFn, Arc<HookStats>)> {
        self.hooks[id].as_ref()
    }

    /// Calls its `start` hook, which may read every entry through `scan`. No lock is held.
    ///
    /// # Errors
    ///
    /// The plugin returned an error or panicked.
    pub fn start(&self, scan: Scan<'_>) -> Result<(), PluginError> {
        self.call(START, &[], Some(scan))?;
        self.identity.may_send.store(true, Relaxed);
        Ok(())
    }

    /// Calls its `settings_changed` hook with new settings, a JSON object. Returns `None` if it has no such hook.
    pub fn settings_changed(&self, settings: &str) -> Option<Result<(), PluginError>> {
        self.hooks[SETTINGS_CHANGED].is_some().then(|| self.call(SETTINGS_CHANGED, settings.as_bytes(), None).map(drop))
    }

    /// Calls its `tick` hook. Returns the time to wait until the next call, or `None` if it has no such hook or is in
    /// quarantine.
    pub fn tick(&self) -> Option<Duration> {
        if self.hooks[TICK].is_none() || self.is_quarantined() {
            return None;
        }
        Some(match self.call(TICK, &[], None) {
            // At least a millisecond: without a pause it would take all of a core.
            Ok(outcome) => Duration::from_millis(outcome.bits.max(1).into()),
            Err(_) => Duration::from_secs(1),
        })
    }

    /// Calls its `make_room` hook for an operation that passes this chain. Returns whether it made room.
    pub(super) fn make_room(&self, chain: &Arc<Chain>, depth: u32) -> bool {
        // A reload waits for that operation, so the requests of the hook must pass the same chain. They are nested in it, too:
        // a hook that they call may write to the full store, which calls this hook again.
        let called = || self.call_in(Arc::as_ptr(chain), depth, MAKE_ROOM, &[], None);
        !self.is_quarantined() && called().is_ok_and(|outcome| outcome.bits != 0)
    }

    /// Calls a hook that belongs to no operation.
    fn call(&self, id: usize, value: &[u8], scan: Option<Scan<'_>>) -> Result<Outcome, PluginError> {
        self.call_in(std::ptr::null(), 0, id, value, scan)
    }

    /// Calls a hook. `chain` is the chain of the call, to which the caller holds a reference, or null; `depth` is its nesting
    /// depth.
    fn call_in(
        &self,
        chain: *const Chain,
        depth: u32,
        id: usize,
        value: &[u8],
        scan: Option<Scan<'_>>,
    ) -> Result<Outcome, PluginError> {
        let Some((hook, stats)) = &self.hooks[id] else { return Ok(Outcome::go_on(0)) };
        let op = OpContext { value, ..OpContext::none() };
        let _scope = Scope { depth, lock: Lock::Free, chain }.enter();
        let mut output = CallOutput::new(&op);
        (output.plugin, output.scan) = (self.name(), scan);
        let mut raw = raw_call(&op, [None, None], 0);
        let begun = Instant::now();
        // SAFETY: the caller of `create` promised that the module is sound; the instance is dropped with the member.
        let outcome = unsafe { call(*hook, self.instance, &mut raw, &mut output) };
        stats.times.record(begun.elapsed());
        stats.calls.fetch_add(1, Relaxed);
        let message = one_line(&output.take(|output| &mut output.message).unwrap_or_default()).into_owned();
        match outcome.kind {
            Outcome::GO_ON => Ok(outcome),
            Outcome::PANICKED => {
                self.record_panic(id, stats, &message);
                Err(PluginError::Panicked { message })
            }
            _ => {
                stats.refusals.fetch_add(1, Relaxed);
                Err(PluginError::Returned { message })
            }
        }
    }

    /// Records the time of a call, and checks it against the time budget.
    pub(super) fn record_time(&self, id: usize, stats: &HookStats, time: Duration) {
        stats.times.record(time);
        if let Some(budget) = self.failure_policy.budget.filter(|budget| time > *budget) {
            stats.overruns.fetch_add(1, Relaxed);
            let (plugin, hook) = (self.name(), HOOK_NAMES[id]);
            tracing::warn!(plugin, hook, "plugin \"{plugin}\" took {time:?} in {hook}; its budget is {budget:?}");
        }
    }

    /// Records a panic. Too many of them put the plugin into quarantine.
    pub(super) fn record_panic(&self, id: usize, stats: &HookStats, message: &str) {
        log_panic(self.name(), id, message);
        stats.panics.fetch_add(1, Relaxed);
        if self.failure_policy.on_failure == OnFailure::Keep {
            return;
        }
        let now = Instant::now();
        let mut panics = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
        panics.push_back(now);
        while panics.front().is_some_and(|first| now.duration_since(*first) > QUARANTINE_WINDOW) {
            panics.pop_front();
        }
        if panics.len() < QUARANTINE_PANICS || self.quarantined.swap(true, Relaxed) {
            return;
        }
        drop(panics);
        let (plugin, count) = (self.name(), QUARANTINE_PANICS);
        let effect = match self.failure_policy.on_failure {
            OnFailure::Skip => "operations pass without it",
            _ => "operations that it has a hook for are refused",
        };
        tracing::error!(
            plugin,
            "plugin \"{plugin}\" is in quarantine after {count} panics in a minute: {effect} until it is reloaded"
        );
        if let Some(store) = self.identity.context.store() {
            store.on_quarantine();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.identity.may_send.store(false, Relaxed);
        // SAFETY: `create` of the same module made the instance, and a member is dropped once, when no call borrows it.
        if let RSome(message) = unsafe { self.module.destroy()(self.instance) } {
            let plugin = self.name();
            let message = one_line(&message);
            tracing::error!(plugin, "plugin \"{plugin}\" failed while it was dropped: {message}");
        }
    }
}
