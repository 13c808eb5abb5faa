//! A server from its configuration to its clean stop: the one place where all the parts meet.

mod reload;
mod stop;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, select_biased};
use parking_lot::Mutex;

use crate::api::{Access, Api, Reload};
use crate::cli::{Failure, describe};
use crate::config::{self, Config, ConfigError, Http, Listen};
use crate::http::{Certificate, HttpServer, Tls};
use crate::listen::{Claim, SocketFile};
use crate::notify;
use crate::progress::Bar;
use crate::signals::{Signal, signals};
use vkog_engine::Engine;
use vkog_plugin_host::{self as plugins, HostContext, Registry, Source};
use vkog_store::{self as store, LocalDisk, LocalStore, Lock, Options, Store as _};

use self::reload::Reloader;

/// How long requests under way may take to finish at a stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until a signal asks to stop. `configured` reads the configuration once more, for a reload.
///
/// # Errors
///
/// The store, a plugin or the address cannot be used, or the store could not be written at the end.
pub fn serve(
    config: Config,
    configured: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
) -> Result<(), Failure> {
    // Before anything is opened. This thread waits for nothing but signals, so that a stop is heard whatever a start, a
    // reload or a snapshot waits for.
    let signals = signals().map_err(|error| Failure::new([error]))?;
    let (tell, told) = bounded(1);
    let starting = thread::Builder::new().name("start".to_owned()).spawn(move || {
        let _ = tell.send(start(config, configured));
    });
    starting.map_err(|error| Failure::new([error]))?;
    let mut early = Vec::new();
    let running = loop {
        select_biased! {
            recv(signals) -> signal => match signal {
                Ok(Signal::Stop) => stop::before_serving(),
                Ok(other) => early.push(other),
                Err(_) => return Err(Failure::new(["cannot wait for signals"])),
            },
            recv(told) -> started => break started.map_err(|_| Failure::new(["the start failed"]))??,
        }
    };
    let Running { engine, http, reload, address, socket_file, file } = running;
    announce(address)?;
    engine.plugins().serve();
    notify::ready();
    let reloads = Chore::new("reload", move || {
        notify::reloading();
        if let Err(error) = reload() {
            tracing::error!("{error}");
        }
        notify::ready();
    })?;
    let snapshots = Chore::new("snapshots", {
        let engine = Arc::clone(&engine);
        move || {
            // The store logs one that fails, and tries it again.
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
    let begun = Instant::now();
    tracing::info!("stopping");
    engine.store().end_watches();
    notify::stopping();
    // Before the HTTP engine closes the socket: until then its inode is not another file's.
    drop(socket_file);
    if !stop::drain(http) {
        tracing::warn!("some requests were still under way after {PATIENCE:?}; they are given up");
    }
    stop::close(&engine, begun)?;
    tracing::info!("stopped");
    Ok(())
}

/// A server that runs.
struct Running {
    engine: Arc<Engine>,
    http: HttpServer,
    reload: Arc<Reload>,
    address: String,
    /// Removes the file of a Unix socket when it is dropped.
    socket_file: Option<SocketFile>,
    file: PathBuf,
}

/// Opens the store, loads the plugins, and serves.
fn start(
    config: Config,
    configured: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
) -> Result<Running, Failure> {
    let failure = |error| Failure::new([error]);
    let tls = config.tls.as_ref().map(Certificate::read).transpose().map_err(|error| Failure::new([error]))?;
    let tls = tls.map(|certificate| Arc::new(Tls::new(certificate)));
    if let Listen::Unix(path) = &config.listen
        && store::has_file(&config.file, path)
    {
        let (path, file) = (path.display(), config.file.display());
        return Err(Failure::new([format!(
            "cannot listen on unix:{path}: {file} has a file of that name; choose another path"
        )]));
    }
    // All that can refuse the start without the store comes before the store is opened, which makes files.
    let claim = Claim::new(&config.listen).map_err(|error| Failure::new([error]))?;
    let local = claim.is_local();
    let address = claim.address();
    let allowed = allowed(config.access, local).map_err(|error| Failure::new([error]))?;
    let port = Arc::new(HostContext::new(config.max_size, plugins::system_clock));
    let plugins = Registry::new(load_plugins(&config.plugins, &port)?, config.plugins.order, port);
    let lock = Lock::take(&config.file).map_err(failure)?;
    let (fsync, log_min, history_max) = (config.fsync, config.log_min, config.watch_history);
    let options = Options { fsync, log_min, history_max, ..Options::default() };
    let bar = Bar::new(format!("loading {}", config.file.display()));
    let store =
        LocalStore::open(LocalDisk, lock.store(), options, &|done, total| bar.tell(done, total)).map_err(failure)?;
    drop(bar);
    store.hold(lock);
    let (entries, size) = store.totals();
    tracing::info!(entries, bytes = size, fsync = ?config.fsync, "opened {}", config.file.display());
    let engine = Engine::new(store, plugins).map_err(|error| Failure::new([error]))?;

    let (listener, socket_file) = claim.listen().map_err(|error| Failure::new([error]))?;
    let address = match config.listen {
        Listen::Tcp(_) if tls.is_some() => format!("https://{address}"),
        Listen::Tcp(_) => format!("http://{address}"),
        Listen::Unix(_) => address,
    };
    if allowed.open && !local {
        tracing::warn!("--open on {address}, which others reach: whoever comes may read and write everything");
    }
    let access = Arc::new(Access::new(allowed));
    let reloader = Reloader {
        engine: Arc::clone(&engine),
        access: Arc::clone(&access),
        tls: tls.clone(),
        is_local: local,
        configured: Mutex::new(configured),
    };
    let reload: Arc<Reload> = Arc::new(move || reloader.reload());
    let service = Api::new(Arc::clone(&engine), config.max_value, access, Arc::clone(&reload));
    let service = Arc::new(service.memory_budget(config.memory_budget).log_requests(config.log_requests));
    let tiny = config.http == Http::Tiny;
    if tiny && !local {
        tracing::warn!(
            "--http tiny on {address}, which other machines reach: tiny_http does not limit connections or the size of a \
             request's head; use --http hyper"
        );
    }
    tracing::info!("serving {address} with {}", if tiny { "tiny_http" } else { "hyper" });
    let http = if tiny {
        HttpServer::tiny(listener, service)
    } else {
        HttpServer::hyper(listener, tls, service.connections(), service)
    };
    let http = http.map_err(|error| Failure::new([error]))?;
    engine.store().keep_files();
    Ok(Running { engine, http, reload, address, socket_file, file: config.file })
}

/// Work that a signal asks for, on a thread of its own. However often it is asked for meanwhile, it is done once more.
struct Chore(Sender<()>);

impl Chore {
    fn new(name: &str, work: impl Fn() + Send + 'static) -> Result<Self, Failure> {
        let (ask, asked) = bounded(1);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || asked.iter().for_each(|()| work()));
        thread.map(|_| Self(ask)).map_err(|error| Failure::new([error]))
    }

    fn ask(&self) {
        let _ = self.0.try_send(());
    }
}

/// Prints the line that scripts wait for. On a thread of its own, because standard output may have no reader, or one that
/// stands still.
fn announce(address: String) -> Result<(), Failure> {
    let announced = thread::Builder::new().name("announce".to_owned()).spawn(move || {
        let _ = writeln!(std::io::stdout(), "listening on {address}");
    });
    announced.map(drop).map_err(|error| Failure::new([error]))
}

/// What the configuration's word on access comes to, where only this machine reaches the address, or where others do.
///
/// # Errors
///
/// It says nothing, and others reach it.
fn allowed(mut access: config::Access, local: bool) -> Result<config::Access, &'static str> {
    // Of an address that others reach nobody knows the names, unless they are given.
    access.checks_host = access.checks_host && local || !access.allowed_hosts.is_empty();
    match access {
        _ if access.open || !access.tokens.is_empty() => Ok(access),
        _ if local => Ok(config::Access { open: true, ..access }),
        _ => Err(
            "cannot serve an address that others reach without [access]: whoever comes could read and write; name who \
                  may in [[access.tokens]] of the configuration, or say --open",
        ),
    }
}

fn unreadable(folder: &Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}; let this user read the plugin folder", folder.display())
}

/// Loads every library of the plugin folder, or says of each that cannot be loaded why.
fn load_plugins(source: &Source, port: &Arc<HostContext>) -> Result<Vec<plugins::Plugin>, Failure> {
    let Some(folder) = &source.folder else { return Ok(Vec::new()) };
    let libraries = plugins::libraries(folder).map_err(|error| Failure::new([unreadable(folder, &error)]))?;
    let mut loaded = Vec::new();
    let mut failed = Vec::new();
    for result in plugins::load(&libraries, &source.settings, port) {
        match result {
            Ok(plugin) => {
                tracing::info!("loaded {}: {}", plugin.path().display(), describe(&plugin));
                loaded.push(plugin);
            }
            Err(error) if plugins::is_required(&source.settings, &error) => failed.push(error),
            Err(error) => tracing::warn!("{error}; started without it, because it is not required"),
        }
    }
    if !failed.is_empty() {
        return Err(Failure::new(failed));
    }
    tell_unknown(source, &loaded);
    Ok(loaded)
}

/// Logs which names of the configuration are of no plugin.
fn tell_unknown(source: &Source, loaded: &[plugins::Plugin]) {
    let Some(folder) = &source.folder else { return };
    for name in source.settings.keys().filter(|name| !loaded.iter().any(|plugin| plugin.name() == *name)) {
        tracing::warn!(
            "[plugins.{name}] is in the configuration, and no such plugin was loaded from {}",
            folder.display()
        );
    }
    for name in plugins::unknown_in_order(&source.order, loaded) {
        tracing::warn!("plugins.order names {name}, and no such plugin is in {}", folder.display());
    }
}
