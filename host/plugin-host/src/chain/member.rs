//! A plugin that was created: the module, the instance, and how it behaves.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use abi_stable::std_types::{RErr, ROk, RSome};

use super::call::{Said, Scan, Subject, about, call};
use super::port::{HOST_API, Identity, Lock, Port, Scope};
use super::stats::HookStats;
use super::{Chain, MAKE_ROOM, NOWHERE, SETTINGS_CHANGED, START, TICK, log_failure, one_line};
use vkog_plugin_api::abi::{
    HOOK_NAMES, HookEntry, HookFn, Outcome, PluginModuleRef, RawFailure, RawHost, RawInstance, Verb,
};

/// So many panics within [`QUARANTINE_WINDOW`] put a plugin into quarantine.
pub const QUARANTINE_PANICS: usize = 5;
/// See [`QUARANTINE_PANICS`].
pub const QUARANTINE_WINDOW: Duration = Duration::from_secs(60);

/// What becomes of a plugin that panics again and again.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It goes into quarantine: what it would be asked about is refused.
    #[default]
    Refuse,
    /// It goes into quarantine: requests pass as if it were not there.
    Skip,
    /// It is asked on; each panic refuses the request it happened in.
    Keep,
}

/// How a plugin is treated.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    /// What becomes of it if it panics again and again.
    pub on_failure: OnFailure,
    /// A call that takes longer is counted and logged.
    pub budget: Option<Duration>,
}

/// Why a plugin was not created or does not start. What it said is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// Its settings cannot be read.
    Settings(String),
    /// It returned an error.
    Error(String),
    /// It panicked.
    Panicked(String),
}

/// A plugin that was created. Dropping it destroys the plugin.
pub struct Member {
    module: PluginModuleRef,
    instance: RawInstance,
    identity: &'static Identity,
    conduct: Conduct,
    /// By hook id.
    hooks: [Option<(HookFn, Arc<HookStats>)>; HOOK_NAMES.len()],
    /// By hook id: it may wait.
    blocks: [bool; HOOK_NAMES.len()],
    panics: Mutex<VecDeque<Instant>>,
    quarantined: AtomicBool,
}

// SAFETY: `Plugin: Send + Sync` is what plugin-api asks of every plugin type, and the instance is one; hooks take `&self`.
unsafe impl Send for Member {}
// SAFETY: as above.
unsafe impl Sync for Member {}

impl Member {
    /// Creates a plugin with its settings, a JSON object.
    ///
    /// # Errors
    ///
    /// What it said.
    ///
    /// # Safety
    ///
    /// The layout of the module was checked, and what it is part of stays loaded until the process ends.
    pub unsafe fn create(
        module: PluginModuleRef,
        settings: &str,
        port: &Arc<Port>,
        conduct: Conduct,
    ) -> Result<Self, Failed> {
        let name = module.name().to_string();
        let identity = Identity { name, port: Arc::clone(port), may_ask: AtomicBool::new(false) };
        let identity: &'static Identity = Box::leak(Box::new(identity));
        let host = RawHost { api: *HOST_API, cx: std::ptr::from_ref(identity).cast() };
        // SAFETY: the caller's promise.
        let instance = match unsafe { module.create()(host, settings.into()) } {
            ROk(instance) => instance,
            RErr(RawFailure { kind, message, .. }) => {
                let said = one_line(&message).into_owned();
                return Err(match kind {
                    RawFailure::SETTINGS => Failed::Settings(said),
                    RawFailure::PANIC => Failed::Panicked(said),
                    _ => Failed::Error(said),
                });
            }
        };
        let mut hooks = [const { None }; HOOK_NAMES.len()];
        let mut blocks = [false; HOOK_NAMES.len()];
        for entry in module.hooks().as_slice() {
            if let Some(place) = hooks.get_mut(entry.id as usize) {
                *place = Some((entry.hook, Arc::default()));
                blocks[entry.id as usize] = entry.flags & HookEntry::BLOCKS != 0;
            }
        }
        identity.may_ask.store(hooks[START].is_none(), Relaxed);
        let (panics, quarantined) = (Mutex::default(), AtomicBool::new(false));
        Ok(Self { module, instance, identity, conduct, hooks, blocks, panics, quarantined })
    }

    /// The name, which is also that of its table in the configuration.
    pub fn name(&self) -> &'static str {
        &self.identity.name
    }

    /// Where in the chain it stands, as a number: a later version of the interface may know more stages.
    pub fn stage(&self) -> u32 {
        self.module.stage()
    }

    /// How it is treated.
    pub fn conduct(&self) -> Conduct {
        self.conduct
    }

    /// Whether it panicked so often that it is not called any more.
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.load(Relaxed)
    }

    /// Whether it has a hook of this name.
    pub fn has(&self, hook: &str) -> bool {
        HOOK_NAMES.iter().position(|name| *name == hook).is_some_and(|id| self.hooks[id].is_some())
    }

    /// Whether one of its hooks may wait.
    pub fn blocks(&self) -> bool {
        self.blocks.contains(&true)
    }

    pub(super) fn blocks_in(&self, id: usize) -> bool {
        self.blocks[id]
    }

    pub(super) fn instance(&self) -> RawInstance {
        self.instance
    }

    pub(super) fn hook(&self, id: usize) -> Option<&(HookFn, Arc<HookStats>)> {
        self.hooks[id].as_ref()
    }

    /// Tells it what the store holds. `scan` gives every entry to a function.
    ///
    /// # Errors
    ///
    /// What it said.
    pub fn start(&self, scan: Scan<'_>) -> Result<(), Failed> {
        self.call(START, &[], Some(scan))?;
        self.identity.may_ask.store(true, Relaxed);
        Ok(())
    }

    /// Tells it its new settings, a JSON object. `None` if it has no hook for that.
    pub fn settings_changed(&self, settings: &str) -> Option<Result<(), Failed>> {
        self.hooks[SETTINGS_CHANGED].is_some().then(|| self.call(SETTINGS_CHANGED, settings.as_bytes(), None).map(drop))
    }

    /// Lets it work. Returns how long to wait until it is let again; `None` if it has no hook for that, or is in
    /// quarantine.
    pub fn tick(&self) -> Option<Duration> {
        if self.hooks[TICK].is_none() || self.is_quarantined() {
            return None;
        }
        Some(match self.call(TICK, &[], None) {
            // None at all would have it ask for the processor as often as it gets it.
            Ok(outcome) => Duration::from_millis(outcome.bits.max(1).into()),
            Err(_) => Duration::from_secs(1),
        })
    }

    /// Has it make room for a request that passes this chain. Says whether it did.
    pub(super) fn make_room(&self, chain: &Arc<Chain>) -> bool {
        // Who exchanges plugins waits for that request: what is asked meanwhile has to pass the same chain.
        let called = || self.call_in(Arc::as_ptr(chain), MAKE_ROOM, &[], None);
        !self.is_quarantined() && called().is_ok_and(|outcome| outcome.bits != 0)
    }

    /// Calls a hook that no request is for.
    fn call(&self, id: usize, value: &[u8], scan: Option<Scan<'_>>) -> Result<Outcome, Failed> {
        self.call_in(std::ptr::null(), id, value, scan)
    }

    /// The same in a chain that the caller holds, or in none.
    fn call_in(&self, chain: *const Chain, id: usize, value: &[u8], scan: Option<Scan<'_>>) -> Result<Outcome, Failed> {
        let Some((hook, stats)) = &self.hooks[id] else { return Ok(Outcome::go_on(0)) };
        let subject = Subject {
            verb: Verb::Get,
            key: "",
            value,
            content_type: "",
            query: "",
            arrived: 0,
            depth: 0,
            origin: &NOWHERE,
        };
        let _scope = Scope { depth: 0, lock: Lock::Free, chain }.enter();
        let mut said = Said::nothing(&NOWHERE);
        (said.plugin, said.scan) = (self.name(), scan);
        let mut raw = about(&subject, [None, None], 0);
        let begun = Instant::now();
        // SAFETY: `create` was promised that the module is sound; the instance is dropped with the member.
        let outcome = unsafe { call(*hook, self.instance, &mut raw, &mut said) };
        stats.times.record(begun.elapsed());
        stats.calls.fetch_add(1, Relaxed);
        let message = one_line(&said.take(|words| &mut words.message).unwrap_or_default()).into_owned();
        match outcome.kind {
            Outcome::GO_ON => Ok(outcome),
            Outcome::PANICKED => {
                self.panicked(id, stats, &message);
                Err(Failed::Panicked(message))
            }
            _ => {
                stats.refusals.fetch_add(1, Relaxed);
                Err(Failed::Error(message))
            }
        }
    }

    /// Notes a panic. Too many of them put the plugin into quarantine.
    pub(super) fn panicked(&self, id: usize, stats: &HookStats, said: &str) {
        log_failure(self.name(), id, said);
        stats.panics.fetch_add(1, Relaxed);
        if self.conduct.on_failure == OnFailure::Keep {
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
        let what = if self.conduct.on_failure == OnFailure::Skip { "left out" } else { "refused" };
        tracing::error!(
            plugin,
            "plugin \"{plugin}\" is in quarantine after {count} panics in a minute: what it would be asked is {what} until \
             it is reloaded"
        );
        if let Some(services) = self.identity.port.services() {
            services.quarantined();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.identity.may_ask.store(false, Relaxed);
        // SAFETY: `create` of the same module made the instance, and a member is dropped once, when no call borrows it.
        if let RSome(said) = unsafe { self.module.destroy()(self.instance) } {
            let plugin = self.name();
            let said = one_line(&said);
            tracing::error!(plugin, "plugin \"{plugin}\" failed while it was dropped: {said}");
        }
    }
}
