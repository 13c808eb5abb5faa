//! The start of a server in two steps. [`listen`] makes the server respond to probes; [`load`] makes it ready.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::StartError;
use super::plugins;
use super::reload::Reloader;
use super::shared;
use crate::any_store::Engine;
use crate::api::{Authorizer, Front, Reload, StartPhase, StartProgress};
use crate::config::{Config, ConfigError, Http, Listen};
use crate::failure::Failure;
use crate::http::{Certificate, HttpServer, Tls};
use crate::listen::{Endpoint, SocketFile, listen_at_all};
use crate::progress::Bar;
use vkog_plugin_host::{HostContext, Registry, system_clock};
use vkog_store::{LoadPhase, LocalDisk, LocalStore, Lock, Options, Store as _, StoreError};

/// A server that listens and has no store yet.
pub(super) struct Site {
    pub(super) config: Config,
    pub(super) front: Arc<Front>,
    pub(super) auth: Arc<Authorizer>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) http: HttpServer,
    /// Only this machine reaches the server.
    pub(super) is_local: bool,
    pub(super) addresses: Vec<String>,
    /// Remove the files of Unix sockets when they are dropped.
    pub(super) socket_files: Vec<SocketFile>,
}

/// From where a server can be reached.
pub(super) struct Reach {
    /// Only this machine reaches the server.
    pub(super) is_local: bool,
    pub(super) addresses: Vec<String>,
}

/// The rest of a server.
pub(super) struct Loaded {
    pub(super) engine: Arc<Engine>,
    pub(super) reload: Arc<Reload>,
}

/// Checks what needs no store, listens, and responds to requests with the progress of the start.
///
/// # Errors
///
/// A certificate or an address cannot be used, or other machines reach an address without tokens.
pub(super) fn listen(config: Config, progress: Arc<StartProgress>) -> Result<Site, Failure> {
    let tls = config.tls.as_ref().map(Certificate::read).transpose()?;
    let tls = tls.map(|certificate| Arc::new(Tls::new(certificate)));
    for listen in &config.listen {
        if let Listen::Unix(path) = listen
            && config.shared.is_none()
            && vkog_store::has_file(&config.file, path)
        {
            return Err(StartError::SocketInStore { path: path.clone(), file: config.file }.into());
        }
    }
    let endpoints = listen_at_all(&config.listen, config.socket_mode, tls.is_some())?;
    let addresses: Vec<String> = endpoints.iter().map(Endpoint::address).collect();
    let reached = endpoints.iter().find(|endpoint| !endpoint.is_local()).map(Endpoint::address);
    let is_local = reached.is_none();
    let auth = config.auth.clone().for_listeners(is_local)?;
    let tiny = config.http == Http::Tiny;
    if let Some(address) = &reached {
        warn_of_exposure(address, auth.open, tiny);
    }
    let auth = Arc::new(Authorizer::new(auth));
    let Config { memory_budget, route_timeout, log_requests, .. } = config;
    let front = Front::new(Arc::clone(&auth), memory_budget, route_timeout, log_requests, progress);
    let front = Arc::new(front);
    let (mut listeners, mut socket_files) = (Vec::new(), Vec::new());
    for endpoint in endpoints {
        let (listener, file) = endpoint.into_listener();
        listeners.push(listener);
        socket_files.extend(file);
    }
    let service = Arc::clone(&front);
    let http = if tiny {
        HttpServer::tiny(listeners, service)?
    } else {
        HttpServer::hyper(listeners, tls.clone(), front.connections(), service)?
    };
    Ok(Site { config, front, auth, tls, http, is_local, addresses, socket_files })
}

/// Loads the plugins, opens the store, starts the engine and lets requests in.
///
/// # Errors
///
/// The store or a required plugin cannot be used.
pub(super) fn load(
    config: Config,
    configured: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
    front: &Front,
    auth: Arc<Authorizer>,
    tls: Option<Arc<Tls>>,
    reach: Reach,
    progress: &StartProgress,
) -> Result<Loaded, Failure> {
    let Reach { is_local, addresses } = reach;
    let source = config.served_plugins();
    if source.folder.is_none() && !config.no_plugins {
        tracing::warn!(
            "the server runs without plugins, because no folder plugins is beside the program; choose one with --plugin-dir, or \
             set --no-plugins"
        );
    }
    let port = Arc::new(HostContext::new(config.max_size, system_clock));
    let plugins = Registry::new(plugins::load(&source, &port)?, source.order.clone(), port);
    plugins::warn_order(&plugins.chain());
    let timeout = config.shared.as_ref().map(|shared| shared.timeout);
    let store = match config.shared {
        None => open_store(&config.file, config.store, progress)?.into(),
        Some(shared) => shared::open(shared, config.store.history_max, &source, &plugins, addresses, progress)?,
    };
    progress.set(StartPhase::StartingPlugins, store.totals().0, 0);
    let engine = Engine::new(store, plugins)?;
    if let Some(timeout) = timeout {
        engine.limit_plugin_requests(timeout);
    }
    let configured = Mutex::new(configured);
    let reloader = Reloader { engine: Arc::clone(&engine), auth, tls, is_local, configured };
    let reload: Arc<Reload> = Arc::new(move || reloader.reload());
    if let Some(store) = engine.store().local() {
        store.keep_files();
    }
    front.open(Arc::clone(&engine), config.max_value, Arc::clone(&reload));
    Ok(Loaded { engine, reload })
}

/// Warns about risky options of a server that other machines can reach at this address.
fn warn_of_exposure(address: &str, open: bool, tiny: bool) {
    if open {
        tracing::warn!(
            "--open on {address}, which other machines can reach: every client may read and write everything; add [[access.tokens]] \
             to restrict them"
        );
    }
    if tiny {
        tracing::warn!(
            "--http tiny on {address}, which other machines can reach: tiny_http does not limit connections or the size of a \
             request's head; use --http hyper"
        );
    }
}

/// Locks and opens the store, with a progress bar.
fn open_store(file: &Path, options: Options, progress: &StartProgress) -> Result<LocalStore, StoreError> {
    progress.set(StartPhase::ReadingSnapshot, 0, 0);
    let lock = Lock::take(file)?;
    let fsync = options.fsync;
    let bar = Bar::new(format!("loading {}", file.display()));
    let store = LocalStore::open(LocalDisk, lock.store(), options, &|phase, done, total| {
        let phase = match phase {
            LoadPhase::Snapshot => StartPhase::ReadingSnapshot,
            LoadPhase::Log => StartPhase::ReadingLog,
        };
        progress.set(phase, done, total);
        bar.set(done, total);
    })?;
    drop(bar);
    store.hold(lock);
    let (entries, size) = store.totals();
    tracing::info!(entries, bytes = size, %fsync, "opened {}", file.display());
    Ok(store)
}
