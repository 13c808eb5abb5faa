//! The plugins of a server: loaded at the start, compared with what the configuration names.

use std::sync::Arc;

use super::error::PluginFolderError;
use crate::failure::Failure;
use vkog_plugin_host::{HostContext, Plugin, Source, is_required, libraries, unknown_in_order};

/// Loads every library of the plugin folder.
///
/// # Errors
///
/// The folder cannot be read, or at least one required plugin cannot be loaded. Each of those has a line of its own.
pub(super) fn load(source: &Source, port: &Arc<HostContext>) -> Result<Vec<Plugin>, Failure> {
    let Some(folder) = &source.folder else { return Ok(Vec::new()) };
    let unreadable = |error| PluginFolderError { folder: folder.clone(), source: error };
    let found = libraries(folder).map_err(unreadable)?;
    let mut loaded = Vec::new();
    let mut failed = Vec::new();
    for result in vkog_plugin_host::load(&found, &source.settings, port) {
        match result {
            Ok(plugin) => {
                tracing::info!("loaded {}: {plugin}", plugin.path().display());
                loaded.push(plugin);
            }
            Err(error) if is_required(&source.settings, &error) => failed.push(error),
            Err(error) => tracing::warn!("{error}; started without it, because it is not required"),
        }
    }
    if !failed.is_empty() {
        return Err(Failure::new(failed));
    }
    warn_unknown(source, &loaded);
    Ok(loaded)
}

/// Logs a warning for each plugin that the configuration names and that is not loaded.
pub(super) fn warn_unknown(source: &Source, loaded: &[Plugin]) {
    let Some(folder) = &source.folder else { return };
    for name in source.settings.keys().filter(|name| !loaded.iter().any(|plugin| plugin.name() == *name)) {
        tracing::warn!(
            "[plugins.{name}] is in the configuration, and no such plugin was loaded from {}",
            folder.display()
        );
    }
    for name in unknown_in_order(&source.order, loaded) {
        tracing::warn!("plugins.order names {name}, and no such plugin is in {}", folder.display());
    }
}
