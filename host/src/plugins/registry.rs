//! The plugins that are loaded now, and how others take their place while requests are under way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::{Mutex, RwLock};
use vkog_plugin_api::chain::{Chain, Failed, Member, Port, Scan};

use super::error::{LoadError, LoadFault};
use super::load::{Library, Plugin, libraries};
use super::terms::{Settings, Table};
use super::trust::Image;

/// How long requests under way may take to end before a plugin that counts what the store holds can be exchanged.
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
    chain: RwLock<Arc<Chain>>,
    port: Arc<Port>,
    /// Locked while plugins are exchanged. Taken before `chain`.
    loaded: Mutex<Loaded>,
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
        let chain = RwLock::new(chain(&plugins, &order));
        Self { chain, port, loaded: Mutex::new(Loaded { plugins, order, tickers: Vec::new(), serving: false }) }
    }

    /// The chain for a request that begins now. While plugins are exchanged this may wait.
    pub fn chain(&self) -> Arc<Chain> {
        Arc::clone(&self.chain.read())
    }

    /// What the plugins reach of their host.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Looks at what is loaded, and in which chain. No plugin is exchanged meanwhile.
    pub fn look<R>(&self, look: impl FnOnce(&[Plugin], &Chain, &[String]) -> R) -> R {
        let loaded = self.loaded.lock();
        let chain = self.chain();
        look(&loaded.plugins, &chain, &loaded.order)
    }

    /// Tells the plugins what the store holds, before anything is served.
    ///
    /// # Errors
    ///
    /// The first plugin that refuses to start.
    pub fn start(&self, scan: Scan<'_>) -> Result<(), LoadError> {
        let loaded = self.loaded.lock();
        for member in self.chain().members() {
            let plugin = loaded.plugins.iter().find(|plugin| Arc::ptr_eq(plugin.member(), member));
            member.start(scan).map_err(|failed| match plugin {
                Some(plugin) => plugin.start_fault(failed),
                None => unreachable!("a chain is made of what is loaded"),
            })?;
        }
        Ok(())
    }

    /// From now on requests are served: plugins begin to tick.
    pub fn serve(&self) {
        let mut loaded = self.loaded.lock();
        loaded.serving = true;
        loaded.tick();
    }

    /// No plugin ticks any more.
    pub fn stop(&self) {
        let mut loaded = self.loaded.lock();
        loaded.serving = false;
        loaded.tickers.clear();
    }

    /// Makes the chain anew after a plugin came into quarantine. If plugins are being exchanged, that does it.
    pub fn quarantine(&self) {
        if let Some(loaded) = self.loaded.try_lock() {
            *self.chain.write() = chain(&loaded.plugins, &loaded.order);
        }
    }

    /// Takes in what has changed in the folder and in the configuration: libraries that are new or have other bytes, those
    /// that are gone, other settings. A plugin in quarantine is made anew. Each on its own: of one that cannot be taken in
    /// the old goes on. `scan` gives every entry of the store to a function.
    ///
    /// A plugin that counts what the store holds (it has a `start` hook) is exchanged while nothing is under way: requests
    /// wait as long. For any other, requests under way end in the old one, and those that begin when this has returned
    /// find the new one.
    ///
    /// # Errors
    ///
    /// The folder cannot be read. Nothing has changed then.
    pub fn reload(&self, source: &Source, scan: Scan<'_>) -> std::io::Result<Vec<Taken>> {
        let paths = source.folder.as_deref().map(libraries).transpose()?.unwrap_or_default();
        let mut loaded = self.loaded.lock();
        let mut exchange = Exchange { old: std::mem::take(&mut loaded.plugins), next: Vec::new(), taken: Vec::new() };
        for path in &paths {
            exchange.take(path, &source.settings, &self.port);
        }
        let Exchange { mut old, mut next, mut taken } = exchange;
        let removed = old.extract_if(.., |plugin| !paths.iter().any(|path| path == plugin.path())).collect::<Vec<_>>();
        for plugin in &removed {
            taken.push(Taken::new(plugin.path(), Some(plugin.name()), Outcome::Removed));
        }
        let mut gone = removed;
        {
            let mut current = self.chain.write();
            let counts = next.iter().any(|candidate| candidate.is_fresh && candidate.plugin.member().has("start"));
            let quiet = !counts || wait_until_alone(&current);
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
            *current = chain(&loaded.plugins, &loaded.order);
        }
        loaded.tick();
        drop(gone);
        drop(loaded);
        // Whoever came into quarantine meanwhile had to leave it at that.
        if self.chain().members().iter().any(|member| member.is_quarantined()) {
            self.quarantine();
        }
        Ok(taken)
    }
}

fn chain(plugins: &[Plugin], order: &[String]) -> Arc<Chain> {
    Arc::new(Chain::new(plugins.iter().map(|plugin| Arc::clone(plugin.member())).collect(), order))
}

fn not_quiet() -> Failed {
    Failed::Error(format!("requests under way did not end within {PATIENCE:?}, and it counts what the store holds"))
}

/// Waits until nothing is under way in a chain that nobody can enter.
fn wait_until_alone(chain: &Arc<Chain>) -> bool {
    let deadline = Instant::now() + PATIENCE;
    // Looked at again and again: to be told would cost every request, and this is once in a long while.
    while Arc::strong_count(chain) > 1 {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
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

impl Taken {
    fn new(path: &Path, name: Option<&str>, outcome: Outcome) -> Self {
        Self { path: path.to_owned(), name: name.map(str::to_owned), outcome }
    }
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
        let name = name.or_else(|| Some(self.next.last()?.plugin.name().to_owned()));
        let name = if matches!(outcome, Outcome::Failed(_)) && position.is_none() { None } else { name };
        self.taken.push(Taken { path: path.to_owned(), name, outcome });
    }

    fn judge(
        &mut self,
        path: &Path,
        position: Option<usize>,
        settings: &Settings,
        port: &Arc<Port>,
    ) -> Result<Outcome, LoadFault> {
        let image = Image::read(path)?;
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
    /// Has all plugins tick that are loaded, and no others.
    fn tick(&mut self) {
        if !self.serving {
            return;
        }
        let Self { plugins, tickers, .. } = self;
        tickers.retain(|ticker| plugins.iter().any(|plugin| Arc::ptr_eq(plugin.member(), &ticker.member)));
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
