//! `vkog plugins rm`: removes a library from the plugin folder, and the pin of its plugin from the configuration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;
use vkog_plugin_host::{VerifiedLibrary, is_called_after};

use super::folder::{FolderArgs, PluginFolder, RELOAD, contains, file_name};
use crate::commands::say;
use crate::config::{Config, File, Options, PinChange, PinError};
use crate::failure::Failure;
use vkog_store::{Disk, LocalDisk};

/// The arguments of `vkog plugins rm`.
#[derive(clap::Args)]
pub struct Rm {
    /// The name of the plugin, or the file name of its library
    #[arg(value_name = "NAME|FILE")]
    plugin: PathBuf,

    #[command(flatten)]
    folder: FolderArgs,
}

/// Why a plugin cannot be removed. Unless the text says otherwise, nothing was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
enum RmError {
    #[error("cannot remove {plugin}: it is not in the plugin folder {}; {}", .folder.display(), there_are(.others))]
    Absent { plugin: String, folder: PathBuf, others: Vec<String>, source: io::Error },
    #[error("cannot remove {name}: several libraries contain it; give the file name of one of {}", .files.join(", "))]
    Several { name: String, files: Vec<String> },
    #[error("cannot remove {}: {source}; let this user write to its folder", .path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("removed {}, but the pin of its plugin remains: {source}", .path.display())]
    StillPinned { path: PathBuf, source: PinError },
}

fn there_are(others: &[String]) -> String {
    match others {
        [] => "the folder has no libraries; give another one with --plugin-dir".to_owned(),
        others => format!("it has {}", others.join(", ")),
    }
}

/// The library and the pin to remove.
struct Target {
    /// The library, unless only the pin remains.
    path: Option<PathBuf>,
    /// The plugin whose pin goes with the library.
    name: Option<String>,
}

/// Removes a library and the pin of its plugin. By file name, no code of the library runs.
///
/// # Errors
///
/// The folder has no such library, or the library or the pin cannot be removed.
pub fn rm(Rm { plugin, folder }: Rm) -> Result<ExitCode, Failure> {
    let folder = folder.resolve()?;
    // The name of a plugin has neither.
    let is_file = plugin.components().count() > 1 || plugin.to_string_lossy().contains('.');
    let Target { path, name } =
        if is_file { by_file(&folder, &plugin)? } else { by_name(&folder, &plugin.to_string_lossy())? };
    let is_pinned = |name: &&String| folder.settings().get(*name).is_some_and(|table| table.host.sha256.is_some());
    let change = match (&folder.config_file, name.as_ref().filter(is_pinned)) {
        (Some(config), Some(name)) => Some(PinChange::prepare(config, name, None)?),
        _ => None,
    };
    // The library goes first: if it cannot be removed, its pin still protects the server.
    if let Some(path) = &path {
        let failed = |source| RmError::Remove { path: path.clone(), source };
        fs::remove_file(path).and_then(|()| LocalDisk.sync_folder(path)).map_err(failed)?;
        say(&format!("removed {}", path.display()));
    }
    let (Some(config), Some(name)) = (&folder.config_file, &name) else {
        say(RELOAD);
        return Ok(ExitCode::SUCCESS);
    };
    if let Some(change) = change {
        let path = path.unwrap_or_else(|| config.clone());
        change.commit().map_err(|source| RmError::StillPinned { path, source })?;
        say(&format!("removed the pin of {name} from {}", config.display()));
    }
    say_what_remains(config, name)?;
    say(RELOAD);
    Ok(ExitCode::SUCCESS)
}

/// Finds a library by the name of its plugin.
fn by_name(folder: &PluginFolder, name: &str) -> Result<Target, Failure> {
    let opened = folder.open()?;
    let path = |result: &Result<_, _>| match result {
        Ok(library) => vkog_plugin_host::Library::path(library).to_owned(),
        Err(vkog_plugin_host::LoadError { path, .. }) => path.clone(),
    };
    let found: Vec<PathBuf> = opened.iter().filter(|result| contains(result, name)).map(path).collect();
    let is_pinned = folder.settings().get(name).is_some_and(|table| table.host.sha256.is_some());
    match &found[..] {
        [] if !is_pinned => {
            let others = opened.iter().map(|result| match result {
                Ok(library) => format!("{} ({})", library.name(), file_name(library.path())),
                Err(error) => file_name(&error.path),
            });
            Err(absent(name.to_owned(), folder, others.collect()).into())
        }
        [] | [_] => Ok(Target { path: found.first().cloned(), name: Some(name.to_owned()) }),
        several => {
            let files = several.iter().map(|path| file_name(path)).collect();
            Err(RmError::Several { name: name.to_owned(), files }.into())
        }
    }
}

/// Finds a library by its file name, or by a path into the folder. Its plugin is the one that is pinned to its content, or else
/// the one that the file name stands for. Another library of that plugin keeps the pin.
fn by_file(folder: &PluginFolder, file: &Path) -> Result<Target, Failure> {
    let libraries = folder.libraries()?;
    let is_inside = match file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => parent.canonicalize().is_ok_and(|parent| Some(parent) == folder.path.canonicalize().ok()),
        None => true,
    };
    let found = libraries.iter().find(|path| is_inside && path.file_name() == file.file_name());
    let Some(path) = found else {
        let others = libraries.iter().map(|path| file_name(path)).collect();
        return Err(absent(file.display().to_string(), folder, others).into());
    };
    let hash = VerifiedLibrary::read(path, true).ok().map(|library| library.sha256());
    let tables = folder.settings();
    let pinned_to_it = tables.iter().find(|(_, table)| hash.is_some() && table.host.sha256 == hash);
    let called = || tables.iter().find(|(name, _)| is_called_after(path, name));
    let name = pinned_to_it.or_else(called).map(|(name, _)| name.clone());
    let is_of_another = |name: &String| libraries.iter().any(|other| other != path && is_called_after(other, name));
    Ok(Target { path: Some(path.clone()), name: name.filter(|name| !is_of_another(name)) })
}

fn absent(plugin: String, folder: &PluginFolder, others: Vec<String>) -> RmError {
    RmError::Absent { plugin, folder: folder.path.clone(), others, source: io::ErrorKind::NotFound.into() }
}

/// Prints what the configuration still has for a plugin that was removed.
fn say_what_remains(config: &Path, name: &str) -> Result<(), Failure> {
    let read = Config::without_plugins(Options::default(), File::read(config)?)?;
    match read.plugins.settings.get(name) {
        Some(table) if table.host.is_expected => say(&format!(
            "[plugins.{name}] in {} requires the plugin: a server does not start without it; remove the table",
            config.display()
        )),
        Some(_) => say(&format!(
            "[plugins.{name}] in {} remains: a server logs a warning about it; remove the table",
            config.display()
        )),
        None => {}
    }
    Ok(())
}
