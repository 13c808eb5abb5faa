//! Opens a store that several servers share, through the plugin for its scheme.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::config::StoreUrl;
use vkog_engine::open_backend;
use vkog_plugin_host::{BackendError, Member};
use vkog_store::{SharedOptions, SharedStore, Store as _};

/// The interval at which a load reports its progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// The interval at which the log has the progress of a load.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Why a shared store cannot be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenSharedError {
    /// No plugin opens the scheme of the URL.
    #[error(
        "cannot open {url}: it needs the plugin {}, {}; {}",
        .url.scheme(),
        place(.folder.as_ref()),
        way_out(.url)
    )]
    NoPlugin {
        /// The store.
        url: StoreUrl,
        /// The plugin folder.
        folder: Option<PathBuf>,
    },
    /// The plugin cannot open it.
    #[error("cannot open {url}: {source}")]
    Refused {
        /// The store.
        url: StoreUrl,
        /// The error of the plugin.
        source: BackendError,
    },
}

fn place(folder: Option<&PathBuf>) -> String {
    match folder {
        Some(folder) => format!("which is not in the plugin folder {}", folder.display()),
        None => "and there is no plugin folder (--plugin-dir)".to_owned(),
    }
}

fn way_out(url: &StoreUrl) -> String {
    let library = library_name(url);
    if url.scheme() == "etcd" {
        format!("get {library} from the release of this version, or build it with `cargo build --release -p vkog-etcd`")
    } else {
        format!("install {library}, or correct the scheme: VKOG has a plugin for etcd")
    }
}

/// Returns the file name of the library that connects to a store.
pub fn library_name(url: &StoreUrl) -> String {
    format!("{DLL_PREFIX}vkog_{}{DLL_SUFFIX}", url.scheme().replace('-', "_"))
}

/// Begins to load a shared store through a plugin. `about` is what the other servers learn of this one, as JSON.
///
/// # Errors
///
/// The plugin cannot open it. That its machines cannot be reached is no error.
pub fn open(
    url: &StoreUrl,
    plugin: &Arc<Member>,
    about: &str,
    options: SharedOptions,
) -> Result<SharedStore, OpenSharedError> {
    let opened = open_backend(plugin, url.secret(), about, options);
    opened.map_err(|source| OpenSharedError::Refused { url: url.clone(), source })
}

/// Waits until all entries are loaded, however long the store cannot be reached. Calls a function with the number of entries so far,
/// and with the reason if the store cannot be reached.
pub fn wait_until_loaded(store: &SharedStore, url: &StoreUrl, progress: impl Fn(u64, Option<String>)) {
    let began = Instant::now();
    // A reason comes at once, because a wrong address is the usual one.
    let (mut next_line, mut next_reason) = (began + LOG_INTERVAL, began);
    while !store.wait_until_loaded(PROGRESS_INTERVAL) {
        let (entries, reason) = (store.loading().unwrap_or(0), store.disconnected());
        match &reason {
            Some(reason) if Instant::now() >= next_reason => {
                next_reason = Instant::now() + LOG_INTERVAL;
                tracing::warn!("waiting for {url}: {reason}");
            }
            None if Instant::now() >= next_line => {
                next_line = Instant::now() + LOG_INTERVAL;
                tracing::info!("loading {url}: {entries} entries so far");
            }
            _ => {}
        }
        progress(entries, reason);
    }
    let (entries, bytes) = store.totals();
    tracing::info!(entries, bytes, time = ?began.elapsed(), "loaded {url}");
}
