//! The plugins that are loaded now, and how others take their place while requests are under way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst, fence};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use vkog_plugin_api::chain::{Chain, Failed, Member, Port, Scan};

use super::error::{LoadError, LoadFault};
use super::gate::{Entered, Gate, wait_until};
use super::load::{Library, Plugin, libraries};
use super::terms::{Settings, Table, is_pinned};
use super::trust::Image;

/// How long requests under way may take to end before a plugin is exchanged that counts what the store holds, and before one
/// that was replaced is destroyed.
const PATIENCE: Duration = Duration::from_secs(10);

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
    /// Locked while plugins are exchanged, by [`with_loaded`](Self::with_loaded).
    loaded: Mutex<Loaded>,
    /// A plugin came into quarantine, and the chain does not know of it yet.
    stale: AtomicBool,
}

/// What others have replaced, and may still be under way.
struct Retired {
    tickers: Vec<Ticker>,
    chain: Arc<Chain>,
    plugins: Vec<Plugin>,
}

struct Loaded {
    plugins: Vec<Plugin>,
    order: Vec<String>,
    tickers: Vec<Ticker>,
    serving: bool,
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
        let loaded = Mutex::new(Loaded { plugins, order, tickers: Vec::new(), serving: false });
        Self { gate: Gate::new(chain), port, loaded, stale: AtomicBool::new(false) }
    }

    /// Does something while no plugin is exchanged, or exchanges them.
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

    /// Looks at what is loaded, and in which chain. No plugin is exchanged meanwhile.
    pub fn look<R>(&self, look: impl FnOnce(&[Plugin], &Chain, &[String]) -> R) -> R {
        self.with_loaded(|loaded| look(&loaded.plugins, &self.chain(), &loaded.order))
    }

    /// Tells the plugins what the store holds, before anything is served.
    ///
    /// # Errors
    ///
    /// The first plugin that refuses to start.
    pub fn start(&self, scan: Scan<'_>) -> Result<(), LoadError> {
        self.with_loaded(|loaded| {
            self.chain().members().iter().try_for_each(|member| {
                let plugin = loaded.plugins.iter().find(|plugin| Arc::ptr_eq(plugin.member(), member));
                member.start(scan).map_err(|failed| match plugin {
                    Some(plugin) => plugin.start_fault(failed),
                    None => unreachable!("what is linked refuses nothing: {failed:?}"),
                })
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

    /// Nothing is served any more: plugins end to tick and to ask, and are destroyed. Requests that are under way may take
    /// so long to end; what is still under way then keeps its plugins.
    pub fn stop(&self, patience: Duration) {
        self.with_loaded(|loaded| {
            loaded.serving = false;
            loaded.tickers.clear();
            self.port.close();
            self.gate.close(patience);
            drop(self.gate.open(chain(&[], &[])));
            loaded.plugins.clear();
        });
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
            if self.stale.swap(false, SeqCst) {
                drop(self.gate.open(chain(&loaded.plugins, &loaded.order)));
            }
        }
    }

    /// Takes in what has changed in the folder and in the configuration: libraries that are new or have other bytes, those
    /// that are gone, other settings. A plugin in quarantine is made anew. Each on its own: of one that cannot be taken in
    /// the old goes on. `scan` gives every entry of the store to a function.
    ///
    /// A plugin that counts what the store holds (it has a `start` hook) is exchanged while nothing is under way: requests
    /// wait as long. For any other, requests under way end in the old one, and those that begin when this has returned
    /// find the new one. By then the old one is destroyed, unless something is under way in it for very long.
    ///
    /// # Errors
    ///
    /// The folder cannot be read. Nothing has changed then.
    pub fn reload(&self, source: &Source, scan: Scan<'_>) -> std::io::Result<Vec<Taken>> {
        let paths = source.folder.as_deref().map(libraries).transpose()?.unwrap_or_default();
        let (taken, retired) = self.with_loaded(|loaded| self.exchange(loaded, &paths, source, scan));
        // Not with the plugins locked: a tick may take its time, and who looks at them is not to wait for that.
        let Retired { tickers, chain, plugins } = retired;
        drop(tickers);
        self.with_loaded(Loaded::tick);
        if !plugins.is_empty() {
            wait_until(PATIENCE, || Arc::strong_count(&chain) == 1);
        }
        drop((chain, plugins));
        Ok(taken)
    }

    /// Returns what happened, and what others have replaced.
    fn exchange(
        &self,
        loaded: &mut Loaded,
        paths: &[PathBuf],
        source: &Source,
        scan: Scan<'_>,
    ) -> (Vec<Taken>, Retired) {
        let mut exchange = Exchange { old: std::mem::take(&mut loaded.plugins), next: Vec::new(), taken: Vec::new() };
        // First those that are gone: another library may have one's name now, or the same one another place.
        let is_gone = |plugin: &mut Plugin| !paths.iter().any(|path| path == plugin.path());
        let mut gone = exchange.old.extract_if(.., is_gone).collect::<Vec<_>>();
        for path in paths {
            exchange.take(path, &source.settings, &self.port);
        }
        let Exchange { mut old, mut next, mut taken } = exchange;
        for plugin in &gone {
            let (path, name) = (plugin.path().to_owned(), Some(plugin.name().to_owned()));
            taken.push(Taken { path, name, outcome: Outcome::Removed });
        }
        let counts = next.iter().any(|candidate| candidate.is_fresh && candidate.plugin.member().has("start"));
        let quiet = !counts || self.gate.close(PATIENCE);
        for candidate in next.iter_mut().filter(|candidate| candidate.is_fresh) {
            let member = candidate.plugin.member();
            let started = if quiet || !member.has("start") { member.start(scan) } else { Err(not_quiet()) };
            let Err(failed) = started else { continue };
            let error = candidate.plugin.start_fault(failed);
            let report = taken.iter_mut().find(|report| report.path == candidate.plugin.path());
            if let Some(report) = report {
                report.outcome = Outcome::Failed(error);
            }
            candidate.failed = true;
        }
        for candidate in next {
            let replaced = old.iter().position(|plugin| plugin.path() == candidate.plugin.path());
            match (candidate.failed, replaced) {
                (false, Some(position)) => {
                    gone.push(old.swap_remove(position));
                    loaded.plugins.push(candidate.plugin);
                }
                (false, None) => loaded.plugins.push(candidate.plugin),
                (true, _) => gone.push(candidate.plugin),
            }
        }
        // What is left goes on, because what was to take its place could not.
        loaded.plugins.append(&mut old);
        loaded.order.clone_from(&source.order);
        let chain = self.gate.open(chain(&loaded.plugins, &loaded.order));
        (taken, Retired { tickers: loaded.idle_tickers(), chain, plugins: gone })
    }
}

fn chain(plugins: &[Plugin], order: &[String]) -> Arc<Chain> {
    Arc::new(Chain::new(plugins.iter().map(|plugin| Arc::clone(plugin.member())).collect(), order))
}

fn not_quiet() -> Failed {
    Failed::Error(format!("requests under way did not end within {PATIENCE:?}, and it counts what the store holds"))
}

/// What is loaded while others are to take its place.
struct Exchange {
    old: Vec<Plugin>,
    next: Vec<Candidate>,
    taken: Vec<Taken>,
}

/// A plugin that is to be in the next chain.
struct Candidate {
    plugin: Plugin,
    /// It was created just now.
    is_fresh: bool,
    /// It did not start.
    failed: bool,
}

impl Exchange {
    /// Takes in a library of the folder. What stays as it is goes on in `next`; what is replaced waits in `old`.
    fn take(&mut self, path: &Path, settings: &Settings, port: &Arc<Port>) {
        let position = self.old.iter().position(|plugin| plugin.path() == path);
        let name = position.map(|position| self.old[position].name().to_owned());
        let outcome = match self.judge(path, position, settings, port) {
            Ok(outcome) => outcome,
            Err(fault) => Outcome::Failed(LoadError { path: path.to_owned(), fault }),
        };
        if let (Some(position), Outcome::Kept | Outcome::Reconfigured) = (position, &outcome) {
            let plugin = self.old.remove(position);
            self.next.push(Candidate { plugin, is_fresh: false, failed: false });
        }
        let name = match (&outcome, self.next.last()) {
            (Outcome::Failed(_), _) | (_, None) => name,
            // It may be another than the one that was there.
            (_, Some(taken)) => Some(taken.plugin.name().to_owned()),
        };
        self.taken.push(Taken { path: path.to_owned(), name, outcome });
    }

    fn judge(
        &mut self,
        path: &Path,
        position: Option<usize>,
        settings: &Settings,
        port: &Arc<Port>,
    ) -> Result<Outcome, LoadFault> {
        let image = Image::read(path, is_pinned(settings, path))?;
        if let Some(position) = position {
            let plugin = &mut self.old[position];
            let table = settings.get(plugin.name()).cloned().unwrap_or_default();
            let same_code = plugin.sha256() == image.sha256() && !plugin.member().is_quarantined();
            if same_code && *plugin.table() == table {
                return Ok(Outcome::Kept);
            }
            if same_code && let Some(outcome) = reconfigure(plugin, table)? {
                return Ok(outcome);
            }
        }
        let library = Library::open_image(path, &image, settings)?;
        let others = self.old.iter().chain(self.next.iter().map(|candidate| &candidate.plugin));
        if let Some(first) = others.filter(|other| other.path() != path).find(|other| other.name() == library.name()) {
            return Err(LoadFault::DuplicateName { name: library.name().to_owned(), first: first.path().to_owned() });
        }
        let table = settings.get(library.name()).cloned().unwrap_or_default();
        let plugin = library.create(table, port)?;
        self.next.push(Candidate { plugin, is_fresh: true, failed: false });
        Ok(if position.is_some() { Outcome::Reloaded } else { Outcome::Loaded })
    }
}

/// Hands a plugin its new settings. `None` if it has to be made anew for them.
fn reconfigure(plugin: &mut Plugin, table: Table) -> Result<Option<Outcome>, LoadFault> {
    if plugin.table().terms != table.terms {
        return Ok(None);
    }
    match plugin.member().settings_changed(&table.settings_json()) {
        None => Ok(None),
        Some(Ok(())) => {
            plugin.set_table(table);
            Ok(Some(Outcome::Reconfigured))
        }
        Some(Err(Failed::Panicked(said) | Failed::Error(said) | Failed::Settings(said))) => {
            Err(LoadFault::BadSettings { name: plugin.name().to_owned(), said })
        }
    }
}

/// The thread on which a plugin ticks. Dropping it waits until that is over.
struct Ticker {
    member: Arc<Member>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Loaded {
    /// Takes out the tickers of plugins that are not loaded any more.
    fn idle_tickers(&mut self) -> Vec<Ticker> {
        let Self { plugins, tickers, .. } = self;
        let is_idle = |ticker: &mut Ticker| !plugins.iter().any(|plugin| Arc::ptr_eq(plugin.member(), &ticker.member));
        tickers.extract_if(.., is_idle).collect()
    }

    /// Has all plugins tick that are loaded.
    fn tick(&mut self) {
        if !self.serving {
            return;
        }
        let Self { plugins, tickers, .. } = self;
        for plugin in plugins.iter().filter(|plugin| plugin.member().has("tick")) {
            if !tickers.iter().any(|ticker| Arc::ptr_eq(&ticker.member, plugin.member())) {
                tickers.push(Ticker::new(Arc::clone(plugin.member())));
            }
        }
    }
}

impl Ticker {
    fn new(member: Arc<Member>) -> Self {
        let (stop, stopped) = bounded(0);
        let ticking = Arc::clone(&member);
        let thread = thread::Builder::new().name(format!("tick {}", member.name())).spawn(move || {
            while let Some(pause) = ticking.tick() {
                if stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        });
        if let Err(error) = &thread {
            tracing::error!(plugin = member.name(), "it does not tick: no further thread: {error}");
        }
        Self { member, stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The names in an order that are of no plugin.
pub fn unknown_in_order<'a>(order: &'a [String], plugins: &[Plugin]) -> BTreeSet<&'a str> {
    let known = |name: &&str| !plugins.iter().any(|plugin| plugin.name() == *name);
    order.iter().map(String::as_str).filter(known).collect()
}
