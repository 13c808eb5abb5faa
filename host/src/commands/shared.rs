//! Commands on a store that several servers share: they connect through the plugin for its scheme, and call no other plugin.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
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

/// The time within which a load must begin.
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
    #[error(
        "cannot reach {url}: {reason}; correct its addresses, or the settings of its plugin (--config), or try again when it runs"
    )]
    Unreachable { url: StoreUrl, reason: String },
    #[error("cannot read {url}: other servers changed it faster than it was read; try again when they write less")]
    Lost { url: StoreUrl },
    #[error(
        "imported {done} of {all} entries, then {key:?} failed: {source}; the import can be repeated, which writes all entries again"
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

impl SharedArgs {
    /// Opens the store and loads its entries, with progress; none if no shared store is named.
    ///
    /// # Errors
    ///
    /// The configuration or the plugin cannot be used, or the store cannot be reached.
    pub(super) fn open(self) -> Result<Option<Shared>, Failure> {
        let Some(url) = self.url else { return Ok(None) };
        let file = self.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
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
        Ok(Some(Shared { store, url }))
    }
}

/// Waits until the entries are loaded, with a progress bar.
fn load(store: &SharedStore, url: &StoreUrl) -> Result<(), Failure> {
    let (bar, began) = (Bar::new(format!("loading {url}")), Instant::now());
    while !store.wait_until_loaded(REPEAT_PAUSE) {
        match store.loading() {
            Some(entries) => bar.set(entries, 0),
            None if began.elapsed() > CONNECT_TIMEOUT => {
                let reason = store.disconnected().unwrap_or_else(|| "it has sent no entries".to_owned());
                return Err(SharedError::Unreachable { url: url.clone(), reason }.into());
            }
            None => {}
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
        let entries = import.into_entries();
        let (send, ended) = bounded(WRITES_MAX);
        let bar = Bar::new(format!("importing into {}", self.url));
        let mut writing = Writing { ended, in_flight: 0, done: 0, new: 0, last_success: Instant::now() };
        let incomplete = |done, (entry, source): (Entry, Arc<StoreError>)| SharedError::Incomplete {
            done,
            all: entries.len(),
            key: entry.key().to_owned(),
            source,
        };
        for entry in &entries {
            if writing.in_flight == WRITES_MAX {
                writing.wait(&self.store, &send).map_err(|failed| incomplete(writing.done, failed))?;
                bar.set(writing.done as u64, entries.len() as u64);
            }
            writing.in_flight += 1;
            write(&self.store, entry.clone(), send.clone());
        }
        while writing.in_flight > 0 {
            writing.wait(&self.store, &send).map_err(|failed| incomplete(writing.done, failed))?;
            bar.set(writing.done as u64, entries.len() as u64);
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

/// Writes an entry. Its outcome is sent later.
fn write(store: &SharedStore, entry: Entry, ended: Sender<Written>) {
    let (key, written) = (entry.key().to_owned(), entry.clone());
    let decide = move |_: &[Change], _: Option<&Entry>| Decision::<()>::Write(entry.clone());
    store.update(&key, decide, move |update| {
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

/// The writes of an import that are in flight.
struct Writing {
    ended: Receiver<Written>,
    in_flight: usize,
    done: usize,
    new: usize,
    last_success: Instant,
}

impl Writing {
    /// Waits for the outcome of a write, and repeats the write if it had no effect for now.
    fn wait(&mut self, store: &SharedStore, send: &Sender<Written>) -> Result<(), (Entry, Arc<StoreError>)> {
        // This end of the channel is open as long as the import runs.
        let Ok((entry, outcome)) = self.ended.recv() else { return Ok(()) };
        match outcome {
            Ok(is_new) => {
                (self.in_flight, self.done) = (self.in_flight - 1, self.done + 1);
                self.new += usize::from(is_new);
                self.last_success = Instant::now();
            }
            Err(error) if error.is_temporary() && self.last_success.elapsed() < REPEAT_TIMEOUT => {
                thread::sleep(REPEAT_PAUSE);
                write(store, entry, send.clone());
            }
            Err(error) => return Err((entry, error)),
        }
        Ok(())
    }
}
