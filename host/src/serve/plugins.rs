//! The plugins of a server: loaded at the start, compared with what the configuration names.

use std::sync::Arc;

use super::error::{MissingPlugin, PluginFolderError, place};
use crate::failure::Failure;
use vkog_plugin_api::Stage;
use vkog_plugin_host::{
    Chain, HostContext, Plugin, SKIPPED, Source, is_no_plugin, is_required, libraries, unknown_in_order,
};

/// The hooks that see the value of a write or of an entry.
const SEES_VALUES: [&str; 9] = [
    "before_post",
    "before_put",
    "guard_post",
    "guard_put",
    "guard_delete",
    "after_get",
    "after_post",
    "after_put",
    "after_delete",
];

/// Loads every library of the plugin folder.
///
/// # Errors
///
/// The folder cannot be read, or at least one required plugin is missing or cannot be loaded. Each such plugin is one line.
pub(super) fn load(source: &Source, port: &Arc<HostContext>) -> Result<Vec<Plugin>, Failure> {
    let unreadable = |error| PluginFolderError { folder: source.folder.clone().unwrap_or_default(), source: error };
    let found = source.folder.as_deref().map_or(Ok(Vec::new()), libraries).map_err(unreadable)?;
    let mut loaded = Vec::new();
    let mut failed = Vec::new();
    for result in vkog_plugin_host::load(&found, &source.settings, port) {
        match result {
            Ok(plugin) => {
                tracing::info!("loaded {}: {plugin}", plugin.path().display());
                loaded.push(plugin);
            }
            Err(error) if is_no_plugin(&source.settings, &error.path, &error.fault) => {
                tracing::warn!("skipped {}: {SKIPPED}", error.path.display());
            }
            Err(error) if is_required(&source.settings, &error) => failed.push(error),
            Err(error) => tracing::warn!("{error}; started without it, because it has required = false"),
        }
    }
    if !failed.is_empty() {
        return Err(Failure::new(failed));
    }
    let expected = not_loaded(source, &loaded).filter(|name| source.settings[*name].host.is_expected);
    let missing = |name: &str| MissingPlugin { name: name.to_owned(), folder: source.folder.clone() };
    let missing: Vec<MissingPlugin> = expected.map(missing).collect();
    if !missing.is_empty() {
        return Err(Failure::new(missing));
    }
    warn_unknown(source, &loaded);
    Ok(loaded)
}

/// Returns the plugins that have a table in the configuration and are not loaded.
fn not_loaded<'a>(source: &'a Source, loaded: &'a [Plugin]) -> impl Iterator<Item = &'a str> {
    let is_loaded = |name: &str| loaded.iter().any(|plugin| plugin.name() == name);
    source.settings.keys().map(String::as_str).filter(move |name| !is_loaded(name))
}

/// Logs a warning for each plugin of the stage access that sees transformed values, because the configuration orders it behind a plugin
/// that transforms them.
pub(super) fn warn_order(chain: &Chain) {
    for (at, plugin) in chain.members().iter().enumerate() {
        let sees_values = || SEES_VALUES.iter().any(|hook| plugin.has(hook));
        if plugin.stage() != Stage::Access as u32 || !sees_values() {
            continue;
        }
        if let Some(before) = chain.members()[..at].iter().find(|before| before.has("read_get")) {
            let (name, before) = (plugin.name(), before.name());
            tracing::warn!(
                "plugins.order puts {before}, which transforms values, before {name}, which then sees them as they are stored; name \
                 {name} before {before} in order"
            );
        }
    }
}

/// Logs a warning for each plugin that the configuration names and that is not loaded.
pub(super) fn warn_unknown(source: &Source, loaded: &[Plugin]) {
    let place = place(source.folder.as_deref());
    for name in not_loaded(source, loaded) {
        tracing::warn!(
            "[plugins.{name}] names a plugin that was not loaded {place}; add its library, or remove the table"
        );
    }
    for name in unknown_in_order(&source.order, loaded) {
        tracing::warn!(
            "plugins.order names {name}, a plugin that was not loaded {place}; add its library, or remove the name"
        );
    }
}
