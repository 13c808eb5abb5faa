//! A host of the simulation: its store, its connection, the mailbox on which its operations complete, and a plugin with a
//! state, which learns the changes of other hosts from the observer and those of this host from the completions.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use vkog_runtime::Mailbox;
use vkog_store::{Change, Entry, SharedOptions, SharedStore, Store};

use crate::engine::{Connection, Engine, Link};

/// The sum of what the plugin has learned of each key: the revisions after the changes less those before them. They cancel each
/// other out to the revision of the entry, if no change is missing, twice, or begins with another entry.
#[derive(Default)]
pub(crate) struct Plugin {
    sums: HashMap<String, i128>,
    /// The revision of the last change of another host.
    observed: HashMap<String, u64>,
    pub(crate) faults: Vec<String>,
}

impl Plugin {
    pub(crate) fn learn(&mut self, key: &str, change: &Change) {
        let revision = |entry: &Option<Entry>| i128::from(entry.as_ref().map_or(0, Entry::revision));
        *self.sums.entry(key.to_owned()).or_default() += revision(&change.after) - revision(&change.before);
    }

    fn observe(&mut self, key: &str, change: &Change) {
        self.learn(key, change);
        let before = self.observed.insert(key.to_owned(), change.revision);
        if before.is_some_and(|before| change.revision <= before) {
            self.faults.push(format!("{key} was observed at {before:?} and then at {}", change.revision));
        }
    }

    /// Counts an entry that exists when the plugin starts.
    fn start(&mut self, entry: &Entry) {
        self.sums.insert(entry.key().to_owned(), entry.revision().into());
    }

    pub(crate) fn knows(&self, key: &str) -> i128 {
        self.sums.get(key).copied().unwrap_or_default()
    }
}

pub(crate) struct Host {
    pub(crate) store: Arc<SharedStore>,
    pub(crate) link: Arc<Link>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) plugin: Arc<Mutex<Plugin>>,
    /// The plugin has counted the entries of the first load.
    is_started: bool,
}

impl Host {
    /// A host that is about to load.
    pub(crate) fn new(engine: &Arc<Engine>, options: SharedOptions) -> Self {
        let link = OnceLock::new();
        let opened = SharedStore::open(options, |feed| {
            let link = link.get_or_init(|| Arc::new(Link::new(engine, feed)));
            Ok::<_, Infallible>(Arc::new(Connection(Arc::clone(link))))
        });
        let Ok(store) = opened;
        let (mailbox, plugin) = (Arc::<Mailbox>::default(), Arc::<Mutex<Plugin>>::default());
        let observing = Arc::clone(&plugin);
        store.observe(move |change, key| observing.lock().observe(key, change));
        let link = link.into_inner().expect("it was opened");
        link.connect();
        Self { store: Arc::new(store), link, mailbox, plugin, is_started: false }
    }

    /// Runs a function on the thread of this host's operations.
    pub(crate) fn run<R>(&self, run: impl FnOnce(&Arc<SharedStore>) -> R) -> R {
        // Detaches the mailbox in the end, because there was none before.
        let _none = Mailbox::detach();
        self.mailbox.attach();
        run(&self.store)
    }

    /// Runs what was sent to the mailbox.
    pub(crate) fn poll(&self) {
        self.run(|_| {
            let _ = self.mailbox.poll(&Context::from_waker(Waker::noop()));
        });
    }

    /// Starts the plugin once the entries are loaded. Returns whether they are.
    pub(crate) fn start_plugin(&mut self) -> bool {
        if !self.is_started && self.store.wait_until_loaded(Duration::ZERO) {
            self.is_started = true;
            let mut plugin = self.plugin.lock();
            self.store.for_each(|entry| plugin.start(entry));
        }
        self.is_started
    }
}
