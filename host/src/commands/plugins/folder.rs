//! The plugin folder of a server, with the settings and the pins that its configuration has for the plugins.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::commands::client::escaped;
use crate::config::{Config, File, Options, plugin_folder};
use crate::failure::Failure;
use vkog_plugin_host::{self as plugins, Library, LoadError, Settings};

/// Where the plugins of a server are.
#[derive(clap::Args)]
pub(super) struct FolderArgs {
    /// Use this plugin folder (VKOG_PLUGIN_DIR) [default: that of --config, else plugins beside the program]
    #[arg(long, value_name = "DIR", env = "VKOG_PLUGIN_DIR", hide_env = true)]
    plugin_dir: Option<PathBuf>,

    /// Use the plugin folder, the settings and the pins of this TOML file (VKOG_CONFIG)
    #[arg(long, value_name = "FILE", env = "VKOG_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
}

/// Why the plugin folder cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum FolderError {
    /// The system does not report where the program is.
    #[error("cannot find the folder plugins beside the program; give the plugin folder with --plugin-dir")]
    Unknown,
    /// The folder cannot be read.
    #[error("cannot read the plugin folder {}: {source}; {}", .path.display(), way_out(.source))]
    Unreadable { path: PathBuf, source: io::Error },
}

fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "give another one with --plugin-dir, or create it",
        io::ErrorKind::NotADirectory => "give a folder with --plugin-dir",
        _ => "let this user read it",
    }
}

/// The plugin folder of a server, which may not exist.
pub(super) struct PluginFolder {
    pub(super) path: PathBuf,
    pub(super) config: Config,
    /// The configuration file, if one is given.
    pub(super) config_file: Option<PathBuf>,
}

impl FolderArgs {
    /// Reads the configuration and finds the folder.
    pub(super) fn resolve(self) -> Result<PluginFolder, Failure> {
        let file = File::read_if_given(self.config.as_deref())?;
        let path = plugin_folder(self.plugin_dir, &file).ok_or(FolderError::Unknown)?;
        // The folder is not that of the configuration, which a server requires to exist.
        let config = Config::without_plugins(Options::default(), file)?;
        Ok(PluginFolder { path, config, config_file: self.config })
    }
}

impl PluginFolder {
    /// Returns the settings of the plugins.
    pub(super) fn settings(&self) -> &Settings {
        &self.config.plugins.settings
    }

    /// Returns the paths of the libraries in the folder, ordered by name.
    pub(super) fn libraries(&self) -> Result<Vec<PathBuf>, FolderError> {
        plugins::libraries(&self.path).map_err(|source| FolderError::Unreadable { path: self.path.clone(), source })
    }

    /// Checks and opens the libraries in the folder without creating their plugins.
    pub(super) fn open(&self) -> Result<Vec<Result<Library, LoadError>>, FolderError> {
        Ok(plugins::open(&self.libraries()?, self.settings()))
    }
}

/// Whether a library of the folder contains this plugin. The file name of a library that does not load stands for its plugin.
pub(super) fn contains(result: &Result<Library, LoadError>, name: &str) -> bool {
    match result {
        Ok(library) => library.name() == name,
        Err(error) => match error.fault.plugin() {
            Some(plugin) => plugin == name,
            None => plugins::is_called_after(&error.path, name),
        },
    }
}

/// Returns the file name of a library for a message or a table.
pub(super) fn file_name(path: &Path) -> String {
    escaped(&path.file_name().unwrap_or(path.as_os_str()).to_string_lossy(), "")
}

/// Returns the reload that a command ends with.
pub(super) const RELOAD: &str = if cfg!(unix) {
    "a running server applies this when it reloads (SIGHUP or POST /plugins/reload)"
} else {
    "a running server applies this when it reloads (POST /plugins/reload)"
};

/// Formats rows as a table whose columns are aligned, except for the last one.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut table = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        table += line.trim_end();
        table.push('\n');
    }
    table
}
