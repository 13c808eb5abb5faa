//! Why a server does not start.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a server does not start. The store, plugins and the configuration have their own error types.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum StartError {
    /// The thread that receives signals has ended.
    #[error("cannot receive signals: their thread has ended; restart the server")]
    NoSignals,
    /// The thread that starts the server panicked. The log has the panic.
    #[error("the start panicked; see the log")]
    Panicked,
    /// The socket would replace a file of the store.
    #[error("cannot listen on unix:{}: it is a file of the store {}; choose another path", .path.display(), .file.display())]
    SocketInStore {
        /// The path of the socket.
        path: PathBuf,
        /// The store.
        file: PathBuf,
    },
}

/// The configuration demands a plugin that was not loaded.
#[derive(Debug, Error)]
#[error(
    "[plugins.{name}] requires a plugin that was not loaded {}; add its library, or set required = false",
    place(.folder.as_deref())
)]
pub(super) struct MissingPlugin {
    /// The name of the plugin.
    pub(super) name: String,
    /// The plugin folder.
    pub(super) folder: Option<PathBuf>,
}

/// Where plugins are loaded from, behind "loaded".
pub(super) fn place(folder: Option<&Path>) -> String {
    match folder {
        Some(folder) => format!("from {}", folder.display()),
        None => "because no plugin folder exists (--plugin-dir)".to_owned(),
    }
}

/// The plugin folder cannot be read.
#[derive(Debug, Error)]
#[error("cannot read {}: {source}; let this user read the plugin folder", .folder.display())]
pub(super) struct PluginFolderError {
    /// The folder.
    pub(super) folder: PathBuf,
    /// The error of the system.
    pub(super) source: io::Error,
}

/// The new configuration turns TLS on or off, which a reload cannot do.
#[derive(Debug, Error)]
#[error("cannot turn TLS on or off at a reload; restart the server")]
pub(super) struct TlsChanged;
