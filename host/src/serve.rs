//! A server from its configuration to its clean stop. All parts of the program meet here.

mod error;
mod plugins;
mod reload;
mod stop;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded, select_biased};
use parking_lot::Mutex;

use crate::api::{Api, Authorizer, Reload};
use crate::config::{Config, ConfigError, Http, Listen};
use crate::failure::Failure;
use crate::http::{Certificate, HttpServer, Tls};
use crate::listen::{Claim, SocketFile, claim_all};
use crate::progress::Bar;
use crate::sd_notify;
use crate::signals::{Signal, signals, stopped};
use vkog_engine::Engine;
use vkog_plugin_host::{HostContext, Registry, system_clock};
use vkog_store::{LocalDisk, LocalStore, Lock, Options, Store as _, StoreError};

use self::error::StartError;
use self::reload::Reloader;

/// Serves until a signal stops the server. `configured` reads the configuration again, for a reload.
///
/// # Errors
///
/// The store, a plugin or the address cannot be used, or the store cannot be written at the end.
pub fn serve(
    config: Config,
    configured: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
) -> Result<(), Failure> {
    // Before anything is opened. This thread waits only for signals, so that a start, a reload or a snapshot cannot delay a
    // stop.
    let signals = signals()?;
    let (send, receive) = bounded(1);
    thread::Builder::new().name("start".to_owned()).spawn(move || {
        let _ = send.send(start(config, configured));
    })?;
    let mut early = Vec::new();
    let running = loop {
        select_biased! {
            recv(signals) -> signal => match signal {
                Ok(Signal::Stop) => stop::before_serving(),
                Ok(other) => early.push(other),
                Err(_) => return Err(StartError::NoSignals.into()),
            },
            recv(receive) -> started => break started.map_err(|_| StartError::Panicked)??,
        }
    };
    let Running { engine, http, reload, addresses, socket_files, file } = running;
    announce(addresses)?;
    engine.plugins().serve();
    sd_notify::ready();
    let reloads = Chore::new("reload", move || {
        sd_notify::reloading();
        if let Err(error) = reload() {
            tracing::error!("{error}");
        }
        sd_notify::ready();
    })?;
    let snapshots = Chore::new("snapshots", {
        let engine = Arc::clone(&engine);
        move || {
            // The store logs a failed snapshot and tries again.
            if engine.store().snapshot().is_ok() {
                tracing::info!("wrote {}", file.display());
            }
        }
    })?;
    for signal in early.into_iter().chain(signals.iter()) {
        match signal {
            Signal::Stop => break,
            Signal::Reload => reloads.ask(),
            Signal::Snapshot => snapshots.ask(),
        }
    }
    let started = Instant::now();
    tracing::info!("stopping");
    engine.store().end_watches();
    sd_notify::stopping();
    // Before the HTTP engine closes the sockets, because their inodes may be other files' afterwards.
    drop(socket_files);
    stop::drain(http);
    stop::close(&engine, started)?;
    stopped();
    Ok(())
}

/// A running server.
struct Running {
    engine: Arc<Engine>,
    http: HttpServer,
    reload: Arc<Reload>,
    addresses: Vec<String>,
    /// Remove the files of Unix sockets when they are dropped.
    socket_files: Vec<SocketFile>,
    file: PathBuf,
}

/// Loads the plugins, opens the store and starts the engine.
fn start(
    config: Config,
    configured: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
) -> Result<Running, Failure> {
    let tls = config.tls.as_ref().map(Certificate::read).transpose()?;
    let tls = tls.map(|certificate| Arc::new(Tls::new(certificate)));
    for listen in &config.listen {
        if let Listen::Unix(path) = listen
            && vkog_store::has_file(&config.file, path)
        {
            return Err(StartError::SocketInStore { path: path.clone(), file: config.file }.into());
        }
    }
    // Checks that do not need the store come before it is opened, which makes files.
    let claims = claim_all(&config.listen, config.socket_mode, tls.is_some())?;
    let addresses: Vec<String> = claims.iter().map(Claim::address).collect();
    let reached = claims.iter().find(|claim| !claim.is_local()).map(Claim::address);
    let local = reached.is_none();
    let source = config.served_plugins();
    if source.folder.is_none() && !config.no_plugins {
        tracing::warn!(
            "the server runs without plugins, because no folder plugins is beside the program; choose one with --plugin-dir, or \
             set --no-plugins"
        );
    }
    let auth = config.auth.for_listeners(local)?;
    let port = Arc::new(HostContext::new(config.max_size, system_clock));
    let plugins = Registry::new(plugins::load(&source, &port)?, source.order, port);
    let engine = Engine::new(open_store(&config.file, config.store)?, plugins)?;

    let (mut listeners, mut socket_files) = (Vec::new(), Vec::new());
    for claim in claims {
        let (listener, file) = claim.listen()?;
        listeners.push(listener);
        socket_files.extend(file);
    }
    let tiny = config.http == Http::Tiny;
    if let Some(address) = &reached {
        warn_of_exposure(address, auth.open, tiny);
    }
    let auth = Arc::new(Authorizer::new(auth));
    let reloader = Reloader {
        engine: Arc::clone(&engine),
        auth: Arc::clone(&auth),
        tls: tls.clone(),
        is_local: local,
        configured: Mutex::new(configured),
    };
    let reload: Arc<Reload> = Arc::new(move || reloader.reload());
    let service = Api::new(Arc::clone(&engine), config.max_value, auth, Arc::clone(&reload));
    let service = Arc::new(service.memory_budget(config.memory_budget).log_requests(config.log_requests));
    tracing::info!("serving {} with {}", addresses.join(", "), if tiny { "tiny_http" } else { "hyper" });
    let http = if tiny {
        HttpServer::tiny(listeners, service)?
    } else {
        HttpServer::hyper(listeners, tls, service.connections(), service)?
    };
    engine.store().keep_files();
    Ok(Running { engine, http, reload, addresses, socket_files, file: config.file })
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
fn open_store(file: &Path, options: Options) -> Result<LocalStore, StoreError> {
    let lock = Lock::take(file)?;
    let fsync = options.fsync;
    let bar = Bar::new(format!("loading {}", file.display()));
    let store = LocalStore::open(LocalDisk, lock.store(), options, &|done, total| bar.set(done, total))?;
    drop(bar);
    store.hold(lock);
    let (entries, size) = store.totals();
    tracing::info!(entries, bytes = size, %fsync, "opened {}", file.display());
    Ok(store)
}

/// Work that a signal requests, on its own thread. Requests while it runs are merged into one.
struct Chore(Sender<()>);

impl Chore {
    fn new(name: &str, work: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (ask, asked) = bounded(1);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || asked.iter().for_each(|()| work()));
        thread.map(|_| Self(ask))
    }

    fn ask(&self) {
        let _ = self.0.try_send(());
    }
}

/// Prints the lines that scripts wait for, one for each address, in one write. On its own thread, because standard output may
/// be closed, or its reader may have stopped reading.
fn announce(addresses: Vec<String>) -> io::Result<()> {
    let announced = thread::Builder::new().name("announce".to_owned()).spawn(move || {
        let lines: String = addresses.iter().map(|address| format!("listening on {address}\n")).collect();
        let _ = std::io::stdout().write_all(lines.as_bytes());
    });
    announced.map(drop)
}
