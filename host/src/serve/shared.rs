//! A server on a store that several servers share: its start, and what it logs of the others while it runs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::notify::Repeated;
use crate::any_store::{AnyStore, Engine, SharedHost};
use crate::api::{StartPhase, StartProgress};
use crate::config::SharedStoreConfig;
use crate::failure::Failure;
use crate::members::{about, differing, members};
use crate::shared_store::{self, OpenSharedError};
use vkog_plugin_host::{Registry, Source};
use vkog_store::SharedOptions;

/// The interval at which the server looks at the other servers and at its connection.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Opens a shared store through one of the loaded plugins, and waits until its entries are loaded.
///
/// # Errors
///
/// No plugin opens its scheme, or the plugin cannot open it.
pub(super) fn open(
    config: SharedStoreConfig,
    history_max: u64,
    source: &Source,
    plugins: &Registry,
    addresses: Vec<String>,
    progress: &StartProgress,
) -> Result<AnyStore, Failure> {
    progress.set(StartPhase::LoadingShared, 0, 0);
    let url = &config.url;
    let found = plugins.look(|plugins, chain, _| {
        let plugin = plugins.iter().find(|plugin| plugin.scheme() == Some(url.scheme()))?;
        Some((Arc::clone(plugin.member()), about(addresses.clone(), plugins, chain).to_json()))
    });
    let Some((plugin, about)) = found else {
        return Err(OpenSharedError::NoPlugin { url: url.clone(), folder: source.folder.clone() }.into());
    };
    let options = SharedOptions { history_max, lag_max: config.max_lag };
    let store = shared_store::open(url, &plugin, &about, options)?;
    shared_store::wait_until_loaded(&store, url, |entries, reason| {
        progress.set(StartPhase::LoadingShared, entries, 0);
        progress.set_waiting(reason.map(|reason| format!("waiting for {url}: {reason}")));
    });
    progress.set_waiting(None);
    Ok(AnyStore::Shared(Box::new(SharedHost::new(store, config, addresses))))
}

/// Logs when the connection to a shared store changes, and when other servers have other plugins. Dropping it ends that.
pub(super) struct SharedWatch(#[expect(dead_code, reason = "dropping it ends the thread")] Option<Repeated>);

impl SharedWatch {
    /// Starts it, if the store is shared.
    ///
    /// # Errors
    ///
    /// The system refuses a thread.
    pub(super) fn start(engine: &Arc<Engine>) -> io::Result<Self> {
        if engine.store().shared().is_none() {
            return Ok(Self(None));
        }
        let engine = Arc::clone(engine);
        let (mut differed, mut disconnected) = (None, false);
        let look = move || {
            let Some(shared) = engine.store().shared() else { return };
            let url = shared.url();
            let differs = differing(&members(&engine, shared));
            match &differs {
                Some(fact) if differs != differed => {
                    tracing::warn!("{fact}; give all servers of {url} the same plugins in the same order");
                }
                None if differed.is_some() => tracing::info!("all servers of {url} have the same plugins"),
                _ => {}
            }
            differed = differs;
            let reason = shared.store().disconnected();
            match &reason {
                Some(reason) if !disconnected => tracing::warn!("{url} cannot be reached: {reason}"),
                None if disconnected => tracing::info!("the connection to {url} is back"),
                _ => {}
            }
            disconnected = reason.is_some();
        };
        Repeated::start("members", LOOK_INTERVAL, look).map(Some).map(Self)
    }
}
