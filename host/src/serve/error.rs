//! Why a server does not start.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a server does not start. Errors of the store, of plugins and of the configuration have types of their own.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum StartError {
    /// The thread that receives signals has ended.
    #[error("cannot wait for signals")]
    NoSignals,
    /// The thread that starts the server panicked. The log has the panic.
    #[error("the start failed")]
    Panicked,
    /// The socket would replace a file of the store.
    #[error("cannot listen on unix:{}: {} has a file of that name; choose another path", .path.display(), .file.display())]
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
    "[plugins.{name}] demands a plugin that was not loaded {}; put its library there, or set required = false",
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
        None => "because there is no plugin folder (--plugin-dir)".to_owned(),
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
