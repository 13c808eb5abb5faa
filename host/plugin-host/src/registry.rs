//! The plugins that are loaded now, and how others take their place while requests are under way.
//!
//! Code of a plugin that nobody waits for in a request (its creation, start, tick, new settings, end) runs on threads of its
//! own, without a lock, and for a limited time: one that never returns holds up neither others' reload nor the stop.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst, fence};
use std::time::{Duration, Instant};

use crate::{Chain, Each, Port};
use parking_lot::Mutex;

use crate::error::LoadError;
use crate::exchange::{Candidate, Exchange, not_quiet};
use crate::gate::{Entered, Gate, wait_until};
use crate::load::{Plugin, destroy, libraries};
use crate::terms::Settings;
use crate::ticker::Ticker;

/// How long requests under way may take to end before a plugin is exchanged that counts what the store holds, and before one
/// that was replaced is destroyed; and how long a plugin may take at a reload to be created, to start, to end a tick.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Gives every entry of the store to a function, from any thread, without a lock held meanwhile.
pub type SharedScan = Arc<dyn Fn(&mut Each<'_>) + Send + Sync>;

/// Where plugins come from, and what is said of them.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The plugin folder; none for a plain map.
    pub folder: Option<PathBuf>,
    /// The plugins' tables.
    pub settings: Settings,
    /// The plugins that come first in the chain, in this order.
    pub order: Vec<String>,
}

/// What a reload did with one plugin.
#[derive(Debug)]
pub struct Taken {
    /// Its library.
    pub path: PathBuf,
    /// Its name, as far as it is known.
    pub name: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a plugin at a reload.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing about it has changed.
    Kept,
    /// It was not there before.
    Loaded,
    /// A new instance took the old one's place.
    Reloaded,
    /// It took in its new settings.
    Reconfigured,
    /// Its library is gone, and so is it.
    Removed,
    /// It could not be taken in. The old one goes on, where there is one.
    Failed(LoadError),
}

/// The plugins of a host.
pub struct Registry {
    gate: Gate,
    port: Arc<Port>,
    /// Held by a reload from its beginning to its end.
    reloading: Mutex<()>,
    /// Locked for moments, by [`with_loaded`](Self::with_loaded): no plugin is called meanwhile.
    loaded: Mutex<Loaded>,
    /// A plugin came into quarantine, and the chain does not know of it yet.
    stale: AtomicBool,
}

struct Loaded {
    plugins: Vec<Plugin>,
    order: Vec<String>,
    tickers: Vec<Ticker>,
    serving: bool,
    /// The gate is closed while plugins start at a reload.
    exchanging: bool,
    /// The gate is closed for good.
    stopped: bool,
}

/// What others have replaced, and may still be under way.
struct Retired {
    tickers: Vec<Ticker>,
    chain: Option<Arc<Chain>>,
    plugins: Vec<Plugin>,
}

impl Registry {
    /// The first plugins.
    pub fn new(plugins: Vec<Plugin>, order: Vec<String>, port: Arc<Port>) -> Self {
        Self::with(chain(&plugins, &order), plugins, order, port)
    }

    /// Plugins that are part of the program, in place of libraries: for tests of the chain. They cannot be exchanged.
    pub fn linked(chain: Chain, port: Arc<Port>) -> Self {
        Self::with(Arc::new(chain), Vec::new(), Vec::new(), port)
    }

    fn with(chain: Arc<Chain>, plugins: Vec<Plugin>, order: Vec<String>, port: Arc<Port>) -> Self {
        let tickers = Vec::new();
        let loaded = Loaded { plugins, order, tickers, serving: false, exchanging: false, stopped: false };
        let (gate, loaded, stale) = (Gate::new(chain), Mutex::new(loaded), AtomicBool::new(false));
        Self { gate, port, reloading: Mutex::default(), loaded, stale }
    }

    /// Does something with what is loaded, which is short and calls no plugin.
    fn with_loaded<R>(&self, run: impl FnOnce(&mut Loaded) -> R) -> R {
        let result = run(&mut self.loaded.lock());
        self.renew();
        result
    }

    /// The chain of the moment, to look at it.
    pub fn chain(&self) -> Arc<Chain> {
        self.gate.chain()
    }

    /// The chain for a request that begins now, unless plugins are being exchanged.
    pub fn enter(&self) -> Option<Entered> {
        self.gate.enter()
    }

    /// Begins a request in the chain: now, or on another thread, when plugins have been exchanged.
    pub fn when_open(&self, then: impl FnOnce(Entered) + Send + 'static) {
        self.gate.when_open(then);
    }

    /// The chain for a request that begins now. Waits while plugins are exchanged, and so is not for a thread that others
    /// wait for.
    pub fn wait_for_chain(&self) -> Arc<Chain> {
        self.gate.wait_for_chain()
    }

    /// What the plugins reach of their host.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Looks at what is loaded, and in which chain. No plugin takes another's place meanwhile.
    pub fn look<R>(&self, look: impl FnOnce(&[Plugin], &Chain, &[String]) -> R) -> R {
        self.with_loaded(|loaded| look(&loaded.plugins, &self.chain(), &loaded.order))
    }

    /// Tells the plugins what the store holds, before anything is served. Waits for them as long as they take.
    ///
    /// # Errors
    ///
    /// The first plugin that refuses to start.
    pub fn start(&self, scan: &SharedScan) -> Result<(), LoadError> {
        let plugins = self.with_loaded(|loaded| loaded.plugins.clone());
        self.chain().members().iter().try_for_each(|member| {
            let plugin = plugins.iter().find(|plugin| Arc::ptr_eq(plugin.member(), member));
            member.start(&**scan).map_err(|failed| match plugin {
                Some(plugin) => plugin.start_fault(failed),
                None => unreachable!("what is linked refuses nothing: {failed:?}"),
            })
        })
    }

    /// From now on requests are served: plugins begin to tick.
    pub fn serve(&self) {
        self.with_loaded(|loaded| {
            loaded.serving = true;
            loaded.tick();
        });
    }

    /// Nothing is served any more: plugins end to tick and to ask, and are destroyed. Requests that are under way and plugins
    /// have until the deadline; what then has not returned is left to itself. Returns what that is, in words for the log.
    pub fn stop(&self, deadline: Instant) -> Vec<String> {
        let (tickers, plugins) = self.with_loaded(|loaded| {
            // A reload that is under way finds this, and changes nothing any more.
            (loaded.serving, loaded.stopped) = (false, true);
            (std::mem::take(&mut loaded.tickers), std::mem::take(&mut loaded.plugins))
        });
        let mut abandoned: Vec<String> =
            Ticker::end(tickers, deadline).into_iter().map(|name| format!("the tick of plugin \"{name}\"")).collect();
        self.port.close();
        if self.gate.close(deadline.saturating_duration_since(Instant::now())) {
            // The gate stays closed: nothing passes without the plugins.
            self.gate.forget();
        } else {
            let names: Vec<_> = plugins.iter().map(Plugin::name).collect();
            abandoned.push(format!("a request in a hook of a plugin ({})", names.join(", ")));
        }
        let names = destroy(plugins, deadline).into_iter();
        abandoned.extend(names.map(|name| format!("the end of plugin \"{name}\"")));
        abandoned
    }

    /// Whether a reload is under way.
    pub fn is_reloading(&self) -> bool {
        self.reloading.is_locked()
    }

    /// Makes the chain anew after a plugin came into quarantine.
    pub fn quarantine(&self) {
        self.stale.store(true, SeqCst);
        self.renew();
    }

    /// Makes the chain anew if it is stale. Waits for nobody, because hooks come here, and whoever exchanges plugins may
    /// wait for those: who has the lock comes here when it is free.
    fn renew(&self) {
        loop {
            // Either the other sees that it is stale, or this one that the lock is free.
            fence(SeqCst);
            if !self.stale.load(SeqCst) {
                return;
            }
            let Some(loaded) = self.loaded.try_lock() else { return };
            // Who has closed the gate comes here when it is open.
            if loaded.exchanging || loaded.stopped {
                return;
            }
            if self.stale.swap(false, SeqCst) {
                drop(self.gate.open(chain(&loaded.plugins, &loaded.order)));
            }
        }
    }

    /// Takes in what has changed in the folder and in the configuration: libraries that are new or have other bytes, those
    /// that are gone, other settings. A plugin in quarantine is made anew. Each on its own: of one that cannot be taken in,
    /// or does not return in time, the old goes on.
    ///
    /// A plugin that counts what the store holds (it has a `start` hook) is exchanged while nothing is under way: requests
    /// wait as long. For any other, requests under way end in the old one, and those that begin when this has returned
    /// find the new one. By then the old one is destroyed, unless something is under way in it for very long.
    ///
    /// # Errors
    ///
    /// The folder cannot be read. Nothing has changed then.
    pub fn reload(&self, source: &Source, scan: &SharedScan) -> std::io::Result<Vec<Taken>> {
        let _alone = self.reloading.lock();
        let paths = source.folder.as_deref().map(libraries).transpose()?.unwrap_or_default();
        let (taken, retired) = self.exchange(&paths, source, scan);
        let Retired { tickers, chain, plugins } = retired;
        for name in Ticker::end(tickers, Instant::now() + PATIENCE) {
            tracing::warn!(
                plugin = name,
                "plugin \"{name}\" was replaced, and its tick does not return; it is abandoned"
            );
        }
        self.with_loaded(Loaded::tick);
        if let Some(chain) = chain.filter(|_| !plugins.is_empty()) {
            wait_until(PATIENCE, || Arc::strong_count(&chain) == 1);
        }
        for name in destroy(plugins, Instant::now() + PATIENCE) {
            tracing::warn!(
                plugin = name,
                "plugin \"{name}\" was replaced, and its end does not return; it is abandoned"
            );
        }
        Ok(taken)
    }

    /// Returns what happened, and what others have replaced.
    fn exchange(&self, paths: &[PathBuf], source: &Source, scan: &SharedScan) -> (Vec<Taken>, Retired) {
        let mut exchange = Exchange::new(self.with_loaded(|loaded| loaded.plugins.clone()));
        // First those that are gone: another library may have one's name now, or the same one another place.
        let is_gone = |plugin: &mut Plugin| !paths.iter().any(|path| path == plugin.path());
        let mut gone = exchange.old.extract_if(.., is_gone).collect::<Vec<_>>();
        for path in paths {
            exchange.take(path, &source.settings, &self.port);
        }
        for plugin in &gone {
            let (path, name) = (plugin.path().to_owned(), Some(plugin.name().to_owned()));
            exchange.taken.push(Taken { path, name, outcome: Outcome::Removed });
        }
        let quiet = !exchange.counts() || self.close();
        exchange.start(scan, || if quiet { Ok(()) } else { Err(not_quiet()) });
        let Exchange { mut old, next, taken } = exchange;
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
        // What is left goes on, because what was to take its place could not.
        plugins.append(&mut old);
        let (tickers, chain) = self.with_loaded(|loaded| {
            if loaded.stopped {
                gone.append(&mut plugins);
                return (Vec::new(), None);
            }
            loaded.plugins = plugins;
            loaded.order.clone_from(&source.order);
            loaded.exchanging = false;
            let chain = self.gate.open(chain(&loaded.plugins, &loaded.order));
            (loaded.idle_tickers(), Some(chain))
        });
        (taken, Retired { tickers, chain, plugins: gone })
    }

    /// Closes the gate for a reload, and waits until nothing is under way. Returns whether it is so.
    fn close(&self) -> bool {
        self.with_loaded(|loaded| loaded.exchanging = true);
        self.gate.close(PATIENCE)
    }
}

fn chain(plugins: &[Plugin], order: &[String]) -> Arc<Chain> {
    Arc::new(Chain::new(plugins.iter().map(|plugin| Arc::clone(plugin.member())).collect(), order))
}

impl Loaded {
    /// Takes out the tickers of plugins that are not loaded any more.
    fn idle_tickers(&mut self) -> Vec<Ticker> {
        let Self { plugins, tickers, .. } = self;
        let is_idle = |ticker: &mut Ticker| !plugins.iter().any(|plugin| ticker.is_of(plugin.member()));
        tickers.extract_if(.., is_idle).collect()
    }

    /// Has all plugins tick that are loaded.
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

/// The names in an order that are of no plugin.
pub fn unknown_in_order<'a>(order: &'a [String], plugins: &[Plugin]) -> BTreeSet<&'a str> {
    let known = |name: &&str| !plugins.iter().any(|plugin| plugin.name() == *name);
    order.iter().map(String::as_str).filter(known).collect()
}
