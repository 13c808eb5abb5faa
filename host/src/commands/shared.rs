//! Commands on a store that several servers share: they connect through the plugin for its scheme, and call no other plugin.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use thiserror::Error;

use crate::config::{Config, ConfigError, File, Options, StoreUrl};
use crate::failure::{Failure, Status};
use crate::progress::Bar;
use crate::schema::member::About;
use crate::shared_store::{self, OpenSharedError, library_name};
use vkog_plugin_host::{HostContext, system_clock};
use vkog_store::{
    Change, Decision, Entry, Import, SharedOptions, SharedStore, Store as _, StoreError, Unviewable, Update,
};

/// The time for which a load may bring no entries.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of writes in flight.
const WRITES_MAX: usize = 1024;
/// The time for which writes that had no effect are repeated while none succeeds.
const REPEAT_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause before a write is repeated.
const REPEAT_PAUSE: Duration = Duration::from_millis(100);

/// A shared store, and how to connect to it.
#[derive(clap::Args)]
pub struct SharedArgs {
    /// Use the shared store at URL instead of a file
    #[arg(
        id = "store",
        long = "store",
        value_name = "URL",
        env = "VKOG_STORE",
        hide_env = true,
        conflicts_with = "file"
    )]
    url: Option<StoreUrl>,

    /// Load the plugin that connects to --store from DIR [default: plugins beside the program]
    #[arg(long, value_name = "DIR", env = "VKOG_PLUGIN_DIR", hide_env = true)]
    plugin_dir: Option<PathBuf>,

    /// Read the settings of that plugin from this TOML file
    #[arg(long, value_name = "FILE", env = "VKOG_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
}

/// Why a command cannot use a shared store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SharedError {
    #[error("cannot reach {url} within {CONNECT_TIMEOUT:?}: {reason}; correct --store, or try again when it runs")]
    Unreachable { url: StoreUrl, reason: String },
    #[error("cannot read {url}: other servers changed it faster than it was read; try again when they write less")]
    Lost { url: StoreUrl },
    #[error(
        "imported {done} of {all} entries, then {key:?} failed: {source}; repeat the import when that has changed, it writes all entries again"
    )]
    Incomplete { done: usize, all: usize, key: String, source: Arc<StoreError> },
}

impl SharedError {
    /// Returns the exit status of a command that fails with it.
    pub fn status(&self) -> Status {
        match self {
            Self::Unreachable { .. } => Status::Unreachable,
            Self::Incomplete { source, .. } if source.is_temporary() => Status::Unreachable,
            Self::Incomplete { source, .. } if matches!(**source, StoreError::Refused { .. }) => Status::Refused,
            Self::Incomplete { .. } | Self::Lost { .. } => Status::Failure,
        }
    }
}

/// The outcome of an import.
pub(super) struct Imported {
    /// The number of entries that did not exist before.
    pub(super) new: usize,
    /// The number of all entries that were written.
    pub(super) written: usize,
    /// The number of entries in the store now.
    pub(super) entries: u64,
    /// The last revision.
    pub(super) revision: u64,
}

/// An open shared store. Dropping it closes the store.
pub(super) struct Shared {
    store: SharedStore,
    pub(super) url: StoreUrl,
}

/// A shared store that was named, and how to connect to it.
pub(super) struct Target {
    url: StoreUrl,
    plugin_dir: Option<PathBuf>,
    config: Option<PathBuf>,
}

impl SharedArgs {
    /// Returns the shared store, if one was named.
    pub(super) fn target(self) -> Option<Target> {
        let Self { url, plugin_dir, config } = self;
        url.map(|url| Target { url, plugin_dir, config })
    }
}

impl Target {
    /// Opens the store and loads its entries, with progress.
    ///
    /// # Errors
    ///
    /// The configuration or the plugin cannot be used, or the store cannot be reached.
    pub(super) fn open(self) -> Result<Shared, Failure> {
        let url = self.url;
        let file = File::read_if_given(self.config.as_deref())?;
        let options = Options { store: Some(url.clone()), plugin_dir: self.plugin_dir, ..Options::default() };
        let config: Result<Config, ConfigError> = Config::new(options, file);
        let config = config?;
        let missing = || OpenSharedError::NoPlugin { url: url.clone(), folder: config.plugins.folder.clone() };
        let library = config.plugins.folder.as_ref().map(|folder| folder.join(library_name(&url)));
        let library = library.filter(|library| library.exists()).ok_or_else(missing)?;
        let context = Arc::new(HostContext::new(config.max_size, system_clock));
        let loaded = vkog_plugin_host::load(&[library], &config.plugins.settings, &context);
        let plugin = loaded.into_iter().next().ok_or_else(missing)??;
        if plugin.scheme() != Some(url.scheme()) {
            return Err(missing().into());
        }
        let store = shared_store::open(&url, plugin.member(), About::NOTHING, SharedOptions::default())?;
        load(&store, &url)?;
        Ok(Shared { store, url })
    }
}

/// Waits until the entries are loaded, with a progress bar.
fn load(store: &SharedStore, url: &StoreUrl) -> Result<(), Failure> {
    let bar = Bar::new(format!("loading {url}"));
    let (mut loaded, mut last_progress) = (0, Instant::now());
    while !store.wait_until_loaded(REPEAT_PAUSE) {
        let entries = store.loading().unwrap_or(0);
        bar.set(entries, 0);
        if entries != loaded {
            (loaded, last_progress) = (entries, Instant::now());
        } else if last_progress.elapsed() > CONNECT_TIMEOUT {
            let reason = store.disconnected().unwrap_or_else(|| "it has sent no more entries".to_owned());
            return Err(SharedError::Unreachable { url: url.clone(), reason }.into());
        }
    }
    Ok(())
}

impl Shared {
    /// Returns all entries as they are at one revision, in the order of their keys.
    ///
    /// # Errors
    ///
    /// Other servers change the entries too fast.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, Failure> {
        let lost = |_: Unviewable| SharedError::Lost { url: self.url.clone() };
        let (mut view, mut entries) = (self.store.view().map_err(lost)?, Vec::new());
        while let Some(shard) = view.next_shard().map_err(lost)? {
            entries.extend(shard);
        }
        entries.sort_unstable_by(|one, other| one.key().cmp(other.key()));
        Ok(entries)
    }

    /// Writes all entries of an import, each on its own: they have more bytes than one step of the store may have. Those that had no
    /// effect are repeated.
    ///
    /// # Errors
    ///
    /// An entry is refused, or the store could not be reached for a minute. The entries before may be written.
    pub(super) fn import(&self, import: Import) -> Result<Imported, Failure> {
        let (entries, bar) = (import.into_entries(), Bar::new(format!("importing into {}", self.url)));
        let mut writing = Writing::new(&self.store);
        if let Err((entry, source)) = writing.write_all(&entries, &bar) {
            writing.wait_for_all();
            let key = entry.key().to_owned();
            return Err(SharedError::Incomplete { done: writing.done, all: entries.len(), key, source }.into());
        }
        let (now, _) = self.store.totals();
        Ok(Imported { new: writing.new, written: writing.done, entries: now, revision: self.store.revision() })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.store.close();
    }
}

/// An entry, and whether it did not exist before; or why it was not written.
type Written = (Entry, Result<bool, Arc<StoreError>>);

/// The writes of an import.
struct Writing<'a> {
    store: &'a SharedStore,
    send: Sender<Written>,
    /// Has room for all: a thread that reports an outcome must not wait, as it may be the one that receives them.
    ended: Receiver<Written>,
    in_flight: usize,
    /// Those that had no effect, and are to be repeated.
    failed: Vec<Entry>,
    done: usize,
    new: usize,
    last_success: Instant,
}

impl<'a> Writing<'a> {
    fn new(store: &'a SharedStore) -> Self {
        let (send, ended) = unbounded();
        let (failed, last_success) = (Vec::new(), Instant::now());
        Self { store, send, ended, in_flight: 0, failed, done: 0, new: 0, last_success }
    }

    /// Writes entries, and repeats those that had no effect for now. Shows the progress.
    fn write_all(&mut self, entries: &[Entry], bar: &Bar) -> Result<(), (Entry, Arc<StoreError>)> {
        let mut rest = entries.iter();
        loop {
            if self.failed.is_empty() {
                let room = WRITES_MAX - self.in_flight;
                rest.by_ref().take(room).for_each(|entry| self.write(entry.clone()));
            } else if self.in_flight == 0 {
                thread::sleep(REPEAT_PAUSE);
                std::mem::take(&mut self.failed).into_iter().for_each(|entry| self.write(entry));
            }
            if self.in_flight == 0 {
                return Ok(());
            }
            self.wait()?;
            bar.set(self.done as u64, entries.len() as u64);
        }
    }

    /// Writes an entry. Its outcome is sent later.
    fn write(&mut self, entry: Entry) {
        self.in_flight += 1;
        let (key, written, ended) = (entry.key().to_owned(), entry.clone(), self.send.clone());
        let decide = move |_: &[Change], _: Option<&Entry>| Decision::<()>::Write(entry.clone());
        self.store.update(&key, decide, move |update| {
            let outcome = match update {
                Update::Committed(change) => Ok(change.before.is_none()),
                // It is never rejected.
                Update::Rejected(()) => Ok(false),
                Update::ReadOnly(error) | Update::RolledBack { error, .. } => Err(error),
            };
            // The import has failed if nothing receives it.
            let _ = ended.send((written, outcome));
        });
    }

    /// Waits for the outcome of a write.
    fn wait(&mut self) -> Result<(), (Entry, Arc<StoreError>)> {
        // This end of the channel is open as long as the import runs.
        let Ok((entry, outcome)) = self.ended.recv() else { return Ok(()) };
        self.in_flight -= 1;
        match outcome {
            Ok(is_new) => {
                self.done += 1;
                self.new += usize::from(is_new);
                self.last_success = Instant::now();
            }
            Err(error) if error.is_temporary() && self.last_success.elapsed() < REPEAT_TIMEOUT => {
                self.failed.push(entry);
            }
            Err(error) => return Err((entry, error)),
        }
        Ok(())
    }

    /// Waits for the outcomes of all writes in flight, to count those that are done.
    fn wait_for_all(&mut self) {
        while self.in_flight > 0 {
            let _ = self.wait();
        }
    }
}
