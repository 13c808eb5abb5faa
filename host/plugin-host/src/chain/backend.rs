//! A plugin as the backend of the store: the calls of its functions, and their statistics.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use abi_stable::std_types::{RErr, ROption, RSome, RString};
use thiserror::Error;
use vkog_plugin_api::abi::{BackendModuleRef, RawFailure, RawStatus, StatusFn};
use vkog_plugin_api::backend::{CommitOutcome, Member as StoreMember, Status, Write};
use vkog_runtime::run_with_timeout;

use super::feed::{BackendFeed, FeedSlot};
use super::host_api::contained;
use super::member::{Member, PluginError};
use super::scope::{Lock, Scope};
use super::stats::HookStats;
use super::text::one_line;

/// The time that a backend has to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The names of the functions of a backend, for statistics and the log.
const FUNCTIONS: [&str; 6] = ["open", "commit", "confirm", "status", "announce", "close"];
const OPEN: usize = 0;
const COMMIT: usize = 1;
const CONFIRM: usize = 2;
const STATUS: usize = 3;
const ANNOUNCE: usize = 4;
const CLOSE: usize = 5;

/// The functions of a plugin that is a backend, and their state.
pub(super) struct BackendPart {
    functions: BackendModuleRef,
    stats: [HookStats; FUNCTIONS.len()],
    feed: OnceLock<&'static FeedSlot>,
    in_use: AtomicBool,
}

impl BackendPart {
    pub(super) fn new(functions: BackendModuleRef) -> Self {
        Self { functions, stats: Default::default(), feed: OnceLock::new(), in_use: AtomicBool::new(false) }
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.in_use.load(SeqCst)
    }

    /// Returns the name, the number of calls and the statistics of each function.
    pub(super) fn stats(&self) -> impl Iterator<Item = (&'static str, u64, &HookStats)> {
        FUNCTIONS.into_iter().zip(&self.stats).map(|(name, stats)| (name, stats.counted(), stats))
    }
}

/// Why a plugin cannot be the backend of a store. [`code`](Self::code) names the variant for scripts.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The plugin is no backend.
    #[error("plugin \"{plugin}\" is no backend; use one that opens the scheme of the store")]
    NoBackend {
        /// The name of the plugin.
        plugin: String,
    },
    /// It is the backend of another store.
    #[error("plugin \"{plugin}\" has opened a store already; a plugin opens one only")]
    InUse {
        /// The name of the plugin.
        plugin: String,
    },
    /// It cannot open the store.
    #[error("plugin \"{plugin}\" cannot open the store: {error}")]
    Open {
        /// The name of the plugin.
        plugin: String,
        /// Its error or panic.
        #[source]
        error: PluginError,
    },
}

impl BackendError {
    /// Returns a code for scripts and tests, which is stable across versions.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoBackend { .. } => "no-backend",
            Self::InUse { .. } => "backend-in-use",
            Self::Open { error: PluginError::Panicked { .. }, .. } => "open-panicked",
            Self::Open { .. } => "open-failed",
        }
    }
}

/// A plugin that is the backend of a store. A clone is the same backend. It keeps the plugin alive.
#[derive(Clone)]
pub struct Backend {
    member: Arc<Member>,
    part: Arc<BackendPart>,
}

impl Backend {
    /// Opens the store at a URL through a plugin. `about` is what other hosts learn of this one, as JSON. The plugin reports to
    /// the feed from now on, from any thread. Runs code of the plugin on this thread, without a timeout.
    ///
    /// # Errors
    ///
    /// The plugin is no backend or has opened a store before, or it returned an error or panicked.
    pub fn open(
        member: &Arc<Member>,
        url: &str,
        about: &str,
        feed: Arc<dyn BackendFeed>,
    ) -> Result<Self, BackendError> {
        let plugin = || member.name().to_owned();
        let part = member.backend_part().ok_or_else(|| BackendError::NoBackend { plugin: plugin() })?;
        let slot = FeedSlot::leak(Arc::clone(member.context()), feed);
        if part.feed.set(slot).is_err() {
            return Err(BackendError::InUse { plugin: plugin() });
        }
        let backend = Self { member: Arc::clone(member), part: Arc::clone(part) };
        // SAFETY: see `call`.
        let opened = backend
            .call(OPEN, || unsafe { part.functions.open()(member.instance(), url.into(), about.into(), slot.raw()) });
        let RErr(RawFailure { kind, message, .. }) = opened else {
            part.in_use.store(true, SeqCst);
            return Ok(backend);
        };
        slot.close();
        let message = one_line(&message).into_owned();
        let error = if kind == RawFailure::PANIC {
            backend.record_panic(OPEN, &message);
            PluginError::Panicked { message }
        } else {
            PluginError::Returned { message }
        };
        Err(BackendError::Open { plugin: plugin(), error })
    }

    /// Returns the name of the plugin.
    pub fn name(&self) -> &'static str {
        self.member.name()
    }

    /// Queues a write. A panic of the plugin drops the write.
    pub fn commit(&self, write: &Write<'_>) {
        // SAFETY: see `call`.
        let panic = self.call(COMMIT, || unsafe { self.part.functions.commit()(self.member.instance(), write.raw()) });
        if let (Some(message), Some(feed)) = (self.failed(COMMIT, panic), self.feed()) {
            feed.outcome(write.id(), CommitOutcome::Dropped { message });
        }
    }

    /// Queues the question for the last committed revision. A panic of the plugin answers it with an error.
    pub fn confirm(&self, id: u64) {
        // SAFETY: see `call`.
        let panic = self.call(CONFIRM, || unsafe { self.part.functions.confirm()(self.member.instance(), id) });
        if let (Some(message), Some(feed)) = (self.failed(CONFIRM, panic), self.feed()) {
            feed.confirmed(id, Err(message));
        }
    }

    /// Returns the status: that of a disconnected backend, if the plugin panics.
    pub fn status(&self) -> Status {
        unsafe extern "C" fn receive(status: *mut (), raw: &RawStatus<'_>) {
            contained((), || {
                // SAFETY: the call below passes this pointer together with this function, and waits.
                let status = unsafe { &mut *status.cast::<Status>() };
                *status = read_status(raw);
            });
        }

        let mut status = Status::default();
        // SAFETY: see `call`.
        let panic = self.call(STATUS, || unsafe {
            let receive = StatusFn { status: receive };
            self.part.functions.status()(self.member.instance(), (&raw mut status).cast(), receive)
        });
        if self.failed(STATUS, panic).is_some() { Status::default() } else { status }
    }

    /// Replaces what other hosts learn of this one, as JSON.
    pub fn announce(&self, about: &str) {
        // SAFETY: see `call`.
        let panic =
            self.call(ANNOUNCE, || unsafe { self.part.functions.announce()(self.member.instance(), about.into()) });
        self.failed(ANNOUNCE, panic);
    }

    /// Closes the backend, waits for it up to 5 s, and ignores what it reports from then on. A second call does nothing.
    pub fn close(&self) {
        if !self.part.in_use.swap(false, SeqCst) {
            return;
        }
        let closing = self.clone();
        let closed = run_with_timeout("close", CLOSE_TIMEOUT, move || {
            // SAFETY: see `call`.
            let panic = closing.call(CLOSE, || unsafe { closing.part.functions.close()(closing.member.instance()) });
            closing.failed(CLOSE, panic);
        });
        if closed.is_none() {
            let plugin = self.name();
            tracing::warn!(plugin, "backend \"{plugin}\" did not close within {CLOSE_TIMEOUT:?}; it is abandoned");
        }
        if let Some(slot) = self.part.feed.get() {
            slot.close();
        }
    }

    fn feed(&self) -> Option<Arc<dyn BackendFeed>> {
        self.part.feed.get()?.get()
    }

    /// Calls a function of the plugin, with statistics. The calls are sound, because the caller of [`Member::create`] promised
    /// that the module is, and `member` keeps the instance alive.
    fn call<T>(&self, function: usize, run: impl FnOnce() -> T) -> T {
        let _scope = Scope { depth: 0, lock: Lock::Applying, chain: std::ptr::null() }.enter();
        let begun = Instant::now();
        let result = run();
        self.part.stats[function].record(begun.elapsed());
        result
    }

    /// Records a panic, if there is one. Returns a message for clients.
    fn failed(&self, function: usize, panic: ROption<RString>) -> Option<String> {
        let RSome(message) = panic else { return None };
        self.record_panic(function, &message);
        // That of the panic goes to the log only: it may contain data of another client.
        Some(format!("plugin \"{}\" failed in {}", self.name(), FUNCTIONS[function]))
    }

    /// Counts and logs a panic. It leads to no quarantine, because the store cannot do without its backend.
    #[cold]
    fn record_panic(&self, function: usize, message: &str) {
        self.part.stats[function].record_panic();
        let (plugin, function, message) = (self.name(), FUNCTIONS[function], one_line(message));
        tracing::error!(plugin, function, "plugin \"{plugin}\" failed in {function}: {message}");
    }
}

fn read_status(raw: &RawStatus<'_>) -> Status {
    let mut status = Status::default();
    status.connected = raw.flags & RawStatus::CONNECTED != 0;
    status.leads = raw.flags & RawStatus::LEADS != 0;
    status.engine = raw.engine.to_string();
    status.engine_version = raw.engine_version.to_string();
    (status.full, status.entry_prefix) = (raw.full.to_string(), raw.entry_prefix.to_string());
    status.id = raw.id.to_string();
    (status.size, status.quota) = (raw.size, raw.quota);
    let members = raw.members.iter().map(|member| StoreMember::new(member.id.as_str(), member.about.as_str()));
    status.members = members.collect();
    status
}
