//! The registry: the loaded plugins, their hot reload, and their end.
//!
//! Plugin code outside of operations (create, start, tick, new settings, drop) runs on separate threads, without a lock and
//! for a limited time. A plugin that never returns blocks neither the reload of others nor the stop of the server.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst, fence};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::chain::{AppliedChange, Chain, Each, HostContext, Member};
use crate::chain_swap::{ChainGuard, ChainSwap, wait_until};
use crate::error::LoadError;
use crate::load::{Plugin, destroy, libraries};
use crate::reload::{Candidate, Reload};
use crate::settings::Settings;
use crate::ticker::Ticker;

/// The timeout of each step of a reload: of operations in flight, before a plugin with a `start` hook starts and before a
/// replaced plugin is destroyed, and of the `create`, `start`, `settings_changed`, last tick and drop of a plugin.
pub(crate) const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A function that calls another one with every entry of the store, from any thread, without holding a lock.
pub type SharedScan = Arc<dyn Fn(&mut Each<'_>) + Send + Sync>;

/// The source of the plugins: their folder and their configuration.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The plugin folder; `None` for a server without plugins.
    pub folder: Option<PathBuf>,
    /// The tables of the plugins.
    pub settings: Settings,
    /// The names of the plugins that come first in the chain, in this order.
    pub order: Vec<String>,
}

/// The report of a reload about one plugin.
#[derive(Debug)]
pub struct ReloadReport {
    /// The library.
    pub path: PathBuf,
    /// The name of the plugin, if it is known.
    pub name: Option<String>,
    /// The outcome.
    pub outcome: ReloadOutcome,
}

/// The outcome of a reload for one plugin.
#[derive(Debug)]
pub enum ReloadOutcome {
    /// Neither its library, nor its settings, nor a file that it depends on have changed.
    Unchanged,
    /// It is new.
    Loaded,
    /// A new instance replaced the old one.
    Reloaded,
    /// It accepted its new settings.
    Reconfigured,
    /// Its library was removed, and so was the plugin.
    Removed,
    /// It could not be loaded. The old instance, if any, continues.
    Failed(LoadError),
}

/// The plugins of a server.
pub struct Registry {
    chain: ChainSwap,
    context: Arc<HostContext>,
    /// Locked by a reload from its beginning to its end.
    reloading: Mutex<()>,
    /// Locked by [`with_loaded`](Self::with_loaded) only, for a short time in which no plugin is called.
    loaded: Mutex<Loaded>,
    /// A plugin went into quarantine, and the chain still calls it.
    stale: AtomicBool,
    /// The plugins have started.
    started: AtomicBool,
}

struct Loaded {
    plugins: Vec<Plugin>,
    /// Plugins that are part of the program and have no libraries.
    linked: Vec<Arc<Member>>,
    order: Vec<String>,
    tickers: Vec<Ticker>,
    serving: bool,
    /// A reload has closed the chain swap while plugins start.
    reloading: bool,
    /// The chain swap is closed for good.
    stopped: bool,
}

/// The plugins that a reload has replaced; operations may still be in flight in them.
struct Replaced {
    tickers: Vec<Ticker>,
    chain: Option<Arc<Chain>>,
    plugins: Vec<Plugin>,
}

impl Registry {
    /// Creates a registry with the plugins that were loaded first, in this order.
    pub fn new(plugins: Vec<Plugin>, order: Vec<String>, context: Arc<HostContext>) -> Self {
        Self::with(plugins, Vec::new(), order, context)
    }

    /// Creates a registry of plugins that are part of the program and have no libraries, for tests. A reload leaves them as
    /// they are, and nothing calls their `tick`.
    pub fn linked(members: Vec<Arc<Member>>, order: Vec<String>, context: Arc<HostContext>) -> Self {
        Self::with(Vec::new(), members, order, context)
    }

    fn with(plugins: Vec<Plugin>, linked: Vec<Arc<Member>>, order: Vec<String>, context: Arc<HostContext>) -> Self {
        let tickers = Vec::new();
        let loaded = Loaded { plugins, linked, order, tickers, serving: false, reloading: false, stopped: false };
        let (chain, loaded, stale) = (ChainSwap::new(loaded.chain()), Mutex::new(loaded), AtomicBool::new(false));
        Self { chain, context, reloading: Mutex::default(), loaded, stale, started: AtomicBool::new(false) }
    }

    /// Runs a short function, which calls no plugin, with the loaded plugins.
    fn with_loaded<R>(&self, run: impl FnOnce(&mut Loaded) -> R) -> R {
        let result = run(&mut self.loaded.lock());
        self.rebuild_if_stale();
        result
    }

    /// Returns the current chain for inspection.
    pub fn chain(&self) -> Arc<Chain> {
        self.chain.current()
    }

    /// Whether HTTP requests have to pass `before_request` hooks.
    #[inline]
    pub fn sees_requests(&self) -> bool {
        self.chain.sees_requests()
    }

    /// Returns the chain for a new operation, or `None` while a reload has closed it. Never blocks.
    #[inline]
    pub fn acquire(&self) -> Option<ChainGuard> {
        self.chain.acquire()
    }

    /// Runs an operation in the chain: now on this thread, or on another thread after the reload that has closed it.
    pub fn when_available(&self, then: impl FnOnce(ChainGuard) + Send + 'static) {
        self.chain.when_available(then);
    }

    /// Returns the chain for a new operation. Blocks while a reload has closed it, so do not call it on an event loop.
    pub fn acquire_blocking(&self) -> Arc<Chain> {
        self.chain.acquire_blocking()
    }

    /// Returns what the plugins share of the server.
    pub fn context(&self) -> &Arc<HostContext> {
        &self.context
    }

    /// Calls a function with the loaded plugins, their chain, and the configured order. No plugin is replaced meanwhile.
    pub fn look<R>(&self, look: impl FnOnce(&[Plugin], &Chain, &[String]) -> R) -> R {
        self.with_loaded(|loaded| look(&loaded.plugins, &self.chain(), &loaded.order))
    }

    /// Starts the plugins in order, before the server accepts requests. Waits for them without a timeout.
    ///
    /// # Errors
    ///
    /// The first plugin that does not start.
    pub fn start(&self, scan: &SharedScan) -> Result<(), LoadError> {
        let plugins = self.with_loaded(|loaded| loaded.plugins.clone());
        let _unchanging = self.context.applying.write();
        self.chain().members().iter().try_for_each(|member| {
            let plugin = plugins.iter().find(|plugin| Arc::ptr_eq(plugin.member(), member));
            member.start(&**scan).map_err(|error| match plugin {
                Some(plugin) => plugin.start_error(error),
                None => LoadError::start(member.name().into(), member.name().to_owned(), error),
            })
        })?;
        self.started.store(true, SeqCst);
        Ok(())
    }

    /// Calls the `applied` hooks for a change that another host has made, after it is in the store. Plugins that have not started
    /// count it when they do. The feed of a [`Backend`](crate::Backend) keeps plugins from starting meanwhile.
    pub fn applied(&self, change: &AppliedChange<'_>) {
        if self.started.load(SeqCst) {
            self.chain.current().applied(change);
        }
    }

    /// Starts the ticks of the plugins, because the server accepts requests from now on.
    pub fn serve(&self) {
        self.with_loaded(|loaded| {
            loaded.serving = true;
            loaded.tick();
        });
    }

    /// Stops the plugins: ends their ticks and their requests, waits for operations in flight, and destroys them. Abandons what
    /// has not returned at the deadline. Returns descriptions of that for the log. A second call does nothing.
    pub fn stop(&self, deadline: Instant) -> Vec<String> {
        let stopped = self.with_loaded(|loaded| {
            // A reload in progress sees this and changes nothing.
            loaded.serving = false;
            let first = !std::mem::replace(&mut loaded.stopped, true);
            let Loaded { tickers, plugins, linked, .. } = loaded;
            first.then(|| (std::mem::take(tickers), std::mem::take(plugins), std::mem::take(linked)))
        });
        let Some((tickers, plugins, linked)) = stopped else { return Vec::new() };
        let mut abandoned: Vec<String> =
            Ticker::end(tickers, deadline).into_iter().map(|name| format!("the tick of plugin \"{name}\"")).collect();
        self.context.close();
        if self.chain.drain(deadline.saturating_duration_since(Instant::now())) {
            // The swap stays closed: no operation may pass without the plugins.
            self.chain.release();
        } else {
            let linked = linked.iter().map(|member| member.name());
            let with_hooks = plugins.iter().filter(|plugin| plugin.library().hook_names().next().is_some());
            let names: Vec<_> = with_hooks.map(Plugin::name).chain(linked).collect();
            abandoned.push(format!("a request in a hook of a plugin ({})", names.join(", ")));
        }
        let names = destroy(plugins, deadline).into_iter();
        abandoned.extend(names.map(|name| format!("the end of plugin \"{name}\"")));
        abandoned
    }

    /// Whether a reload is in progress.
    pub fn is_reloading(&self) -> bool {
        self.reloading.is_locked()
    }

    /// Rebuilds the chain after a plugin went into quarantine.
    pub fn quarantine(&self) {
        self.stale.store(true, SeqCst);
        self.rebuild_if_stale();
    }

    /// Rebuilds the chain if it is stale. Never blocks, because hooks call it, and a reload may wait for those hooks. A thread
    /// that holds the lock calls it after it has released the lock.
    fn rebuild_if_stale(&self) {
        loop {
            // Either the other thread sees that the chain is stale, or this thread sees that the lock is free.
            fence(SeqCst);
            if !self.stale.load(SeqCst) {
                return;
            }
            let Some(loaded) = self.loaded.try_lock() else { return };
            // The reload calls this again when it has opened the swap.
            if loaded.reloading || loaded.stopped {
                return;
            }
            if self.stale.swap(false, SeqCst) {
                drop(self.chain.open(loaded.chain()));
            }
        }
    }

    /// Reloads the plugins whose libraries, settings or files have changed, loads new libraries, removes plugins whose libraries are
    /// gone, and creates plugins in quarantine again. Each succeeds or fails on its own: if a plugin cannot be loaded or does
    /// not return in time, its old instance continues.
    ///
    /// A plugin with a `start` hook counts what the store holds. It is replaced while no operation is in flight, and new
    /// operations wait meanwhile. For other plugins, operations in flight end in the old instance, and operations that begin
    /// after this has returned use the new one. The old instance is destroyed before this returns, unless an operation in it
    /// takes longer than the timeout.
    ///
    /// # Errors
    ///
    /// The folder cannot be read. Nothing has changed.
    pub fn reload(&self, source: &Source, scan: &SharedScan) -> std::io::Result<Vec<ReloadReport>> {
        let _one_at_a_time = self.reloading.lock();
        let paths = source.folder.as_deref().map(libraries).transpose()?.unwrap_or_default();
        let (reports, replaced) = self.replace(&paths, source, scan);
        let Replaced { tickers, chain, plugins } = replaced;
        for name in Ticker::end(tickers, Instant::now() + RELOAD_TIMEOUT) {
            tracing::warn!(
                plugin = name,
                "plugin \"{name}\" was replaced, but its tick does not return; it is abandoned"
            );
        }
        self.with_loaded(Loaded::tick);
        if let Some(chain) = chain.filter(|_| !plugins.is_empty()) {
            wait_until(RELOAD_TIMEOUT, || Arc::strong_count(&chain) == 1);
        }
        for name in destroy(plugins, Instant::now() + RELOAD_TIMEOUT) {
            tracing::warn!(
                plugin = name,
                "plugin \"{name}\" was replaced, but its drop does not return; it is abandoned"
            );
        }
        Ok(reports)
    }

    /// Replaces the plugins. Returns the reports, and the replaced plugins.
    fn replace(&self, paths: &[PathBuf], source: &Source, scan: &SharedScan) -> (Vec<ReloadReport>, Replaced) {
        let mut reload = Reload::new(self.with_loaded(|loaded| loaded.plugins.clone()));
        // Remove first what is gone: its name may now belong to another library, or its library may have moved.
        let is_gone = |plugin: &Plugin| !paths.iter().any(|path| path == plugin.path());
        let mut gone = extract(&mut reload.old, is_gone);
        reload.keep_backends(&mut gone);
        for path in paths {
            reload.add(path, &source.settings, &self.context);
        }
        reload.keep_required(&mut gone, &source.settings);
        for plugin in &gone {
            let (path, name) = (plugin.path().to_owned(), Some(plugin.name().to_owned()));
            reload.reports.push(ReloadReport { path, name, outcome: ReloadOutcome::Removed });
        }
        let counts = reload.counts();
        let drained = !counts || self.drain();
        // Not before: operations in flight may wait for changes of other hosts.
        let unchanging = (counts && drained).then(|| self.context.applying.write());
        reload.start(scan, drained);
        let Reload { mut old, next, reports } = reload;
        let mut plugins = Vec::new();
        for Candidate { plugin, failed, .. } in next {
            let replaced = old.iter().position(|old| old.path() == plugin.path());
            match (failed, replaced) {
                (false, Some(position)) => {
                    gone.push(old.swap_remove(position));
                    plugins.push(plugin);
                }
                (false, None) => plugins.push(plugin),
                (true, _) => gone.push(plugin),
            }
        }
        // The rest continues, because its replacement failed.
        plugins.append(&mut old);
        let (tickers, chain) = self.with_loaded(|loaded| {
            if loaded.stopped {
                gone.append(&mut plugins);
                return (Vec::new(), None);
            }
            loaded.plugins = plugins;
            loaded.order.clone_from(&source.order);
            loaded.reloading = false;
            let chain = self.chain.open(loaded.chain());
            (loaded.idle_tickers(), Some(chain))
        });
        drop(unchanging);
        (reports, Replaced { tickers, chain, plugins: gone })
    }

    /// Replaces the linked plugin of the same name by this one, which has started. Operations in flight end in the old chain.
    /// Returns `false` if they have not ended within the timeout of a reload.
    pub fn replace_linked(&self, member: Arc<Member>) -> bool {
        let (before, replaced) = self.with_loaded(|loaded| {
            let same_name = |old: &&mut Arc<Member>| old.name() == member.name();
            let replaced = loaded.linked.iter_mut().find(same_name).map(|old| std::mem::replace(old, member));
            (self.chain.open(loaded.chain()), replaced)
        });
        let ended = wait_until(RELOAD_TIMEOUT, || Arc::strong_count(&before) == 1);
        // The last references: the old plugin is destroyed here.
        drop((before, replaced));
        ended
    }

    /// Closes the chain swap for a reload, and waits until no operation is in flight. Returns `false` after the timeout.
    fn drain(&self) -> bool {
        self.with_loaded(|loaded| loaded.reloading = true);
        self.chain.drain(RELOAD_TIMEOUT)
    }
}

/// Removes and returns the elements for which a condition holds.
pub(crate) fn extract<T>(from: &mut Vec<T>, holds: impl Fn(&T) -> bool) -> Vec<T> {
    let (extracted, rest) = std::mem::take(from).into_iter().partition(holds);
    *from = rest;
    extracted
}

impl Loaded {
    /// Creates the chain of all plugins.
    fn chain(&self) -> Arc<Chain> {
        let loaded = self.plugins.iter().map(|plugin| Arc::clone(plugin.member()));
        Arc::new(Chain::new(loaded.chain(self.linked.iter().cloned()).collect(), &self.order))
    }

    /// Removes and returns the tickers of plugins that are not loaded any more.
    fn idle_tickers(&mut self) -> Vec<Ticker> {
        let Self { plugins, tickers, .. } = self;
        let is_idle = |ticker: &Ticker| !plugins.iter().any(|plugin| ticker.is_of(plugin.member()));
        extract(tickers, is_idle)
    }

    /// Starts the tickers of loaded plugins that have none.
    fn tick(&mut self) {
        if !self.serving {
            return;
        }
        let Self { plugins, tickers, .. } = self;
        for plugin in plugins.iter().filter(|plugin| plugin.member().has("tick")) {
            if !tickers.iter().any(|ticker| ticker.is_of(plugin.member())) {
                tickers.push(Ticker::new(Arc::clone(plugin.member())));
            }
        }
    }
}

/// Returns the names in an order that belong to no plugin.
pub fn unknown_in_order<'a>(order: &'a [String], plugins: &[Plugin]) -> BTreeSet<&'a str> {
    let known = |name: &&str| !plugins.iter().any(|plugin| plugin.name() == *name);
    order.iter().map(String::as_str).filter(known).collect()
}
