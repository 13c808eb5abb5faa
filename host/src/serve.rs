//! A server from its configuration to its clean stop: the one place where all the parts meet.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;

use crate::api::{Access, Api, Reload};
use crate::cli::{Failure, describe};
use crate::config::{self, Config, ConfigError, Http, Listen};
use crate::http::{Bound, Certificate, Engine, Tls};
use crate::notify;
use crate::ops::Ops;
use crate::plugins::{self, Outcome, Port, Registry, Source, Taken};
use crate::progress::Bar;
use crate::signals::{Signal, signals};
use crate::store::{LocalDisk, Lock, Options, Store};

/// How long requests under way may take to finish at a stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many connections may wait to be accepted, if the system allows it. The standard library asks for 128, and of a burst
/// of more than that each one further waits for a second.
const BACKLOG: i32 = 4096;

/// Serves until a signal asks to stop. `configured` reads the configuration once more, for a reload.
///
/// # Errors
///
/// The store, a plugin or the address cannot be used, or the store could not be written at the end.
pub fn serve(
    config: Config,
    configured: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
) -> Result<(), Failure> {
    // Before anything is opened: a signal during a long start stops it as cleanly.
    let signals = signals().map_err(|error| Failure::new([error]))?;

    let failure = |error| Failure::new([error]);
    let tls = config.tls.as_ref().map(Certificate::read).transpose().map_err(|error| Failure::new([error]))?;
    let tls = tls.map(|certificate| Arc::new(Tls::new(certificate)));
    let port = Arc::new(Port::new(config.max_size, plugins::system_clock));
    let plugins = Registry::new(load_plugins(&config.plugins, &port)?, config.plugins.order, port);
    let _lock = Lock::take(&config.file).map_err(failure)?;
    let options = Options { fsync: config.fsync, log_min: config.log_min, history_max: config.watch_history };
    let bar = Bar::new(format!("loading {}", config.file.display()));
    let store = Store::open(LocalDisk, &config.file, options, &|done, total| bar.tell(done, total)).map_err(failure)?;
    drop(bar);
    let (entries, size) = store.totals();
    tracing::info!(entries, bytes = size, fsync = ?config.fsync, "opened {}", config.file.display());
    let ops = Ops::new(store, plugins).map_err(|error| Failure::new([error]))?;

    let (listener, address) = listen(&config.listen, if tls.is_some() { "https" } else { "http" })?;
    let local = listener.is_local();
    let allowed = allowed(config.access, local).map_err(|error| Failure::new([error]))?;
    if allowed.open && !local {
        tracing::warn!("--open on {address}, which others reach: whoever comes may read and write everything");
    }
    let access = Arc::new(Access::new(allowed));
    let reload: Arc<Reload> = Arc::new({
        let (ops, access, tls) = (Arc::clone(&ops), Arc::clone(&access), tls.clone());
        move || reload(&ops, &access, tls.as_deref(), local, &configured)
    });
    let service = Api::new(Arc::clone(&ops), config.max_value, access, Arc::clone(&reload));
    let service = Arc::new(service.log_requests(config.log_requests));
    if config.http == Http::Tiny && !local {
        tracing::warn!(
            "--http tiny on {address}, which others reach: a request that declares HTTP/2.0, or a body of over 1 GiB, leaks a \
             thread and two descriptors, and there are no timeouts; use --http hyper"
        );
    }
    let tiny = config.http == Http::Tiny || config.http == Http::Auto && local && tls.is_none();
    tracing::info!("serving {address} with {}", if tiny { "tiny_http" } else { "hyper" });
    let engine = if tiny {
        Engine::tiny(listener, service)
    } else {
        Engine::hyper(listener, tls, service.connections(), service)
    };
    let engine = engine.map_err(|error| Failure::new([error]))?;
    // The line that scripts wait for. Nobody may be there to read it.
    let _ = writeln!(std::io::stdout(), "listening on {address}");

    ops.plugins().serve();
    notify::ready();
    while let Ok(first) = signals.recv() {
        // However often the same was asked for meanwhile, once will do; to stop comes first.
        let asked: Vec<Signal> = std::iter::once(first).chain(signals.try_iter()).collect();
        if asked.contains(&Signal::Stop) {
            break;
        }
        if asked.contains(&Signal::Reload) {
            notify::reloading();
            if let Err(error) = reload() {
                tracing::error!("nothing was reloaded: {error}");
            }
            notify::ready();
        }
        if asked.contains(&Signal::Snapshot) {
            // The store logs one that fails, and tries it again.
            if ops.store().snapshot().is_ok() {
                tracing::info!("wrote {}", config.file.display());
            }
        }
    }
    tracing::info!("stopping");
    ops.store().end_watches();
    notify::stopping();
    let drained = engine.stop(PATIENCE);
    if !drained {
        tracing::warn!("some requests were still under way after {PATIENCE:?}; they are given up");
    }
    if let Listen::Unix(path) = &config.listen {
        let _ = std::fs::remove_file(path);
    }
    // Before the store is closed: a thread of a plugin that asks it would wait for ever.
    ops.plugins().stop(if drained { PATIENCE } else { Duration::ZERO });
    ops.store().close().map_err(|error| Failure::new([error]))?;
    tracing::info!("stopped");
    Ok(())
}

/// What the configuration's word on access comes to, where only this machine reaches the address, or where others do.
///
/// # Errors
///
/// It says nothing, and others reach it.
fn allowed(access: config::Access, local: bool) -> Result<config::Access, &'static str> {
    match access {
        _ if access.open || !access.tokens.is_empty() => Ok(access),
        _ if local => Ok(config::Access { open: true, ..access }),
        _ => Err(
            "cannot serve an address that others reach without [access]: whoever comes could read and write; name who \
                  may in [[access.tokens]] of the configuration, or say --open",
        ),
    }
}

/// Reads the configuration once more and takes in what has changed of the plugins, of who may do what, and of the
/// certificate.
fn reload(
    ops: &Ops,
    access: &Access,
    tls: Option<&Tls>,
    local: bool,
    configured: &impl Fn() -> Result<Config, ConfigError>,
) -> Result<Vec<Taken>, String> {
    let config = configured().map_err(|error| error.to_string())?;
    let allowed = allowed(config.access, local)?;
    // All that can be wrong comes before the first change.
    let certificate = config.tls.as_ref().map(Certificate::read).transpose().map_err(|error| error.to_string())?;
    if tls.is_some() != certificate.is_some() {
        return Err("cannot begin or end to speak TLS at a reload; start anew".to_owned());
    }
    let source = config.plugins;
    let taken = ops.reload(&source).map_err(|error| match &source.folder {
        Some(folder) => unreadable(folder, &error),
        None => error.to_string(),
    })?;
    if access.set(allowed) {
        tracing::info!("took in who may do what");
    }
    if let (Some(tls), Some(certificate)) = (tls, certificate)
        && tls.set(certificate)
    {
        tracing::info!("took in another certificate");
    }
    for Taken { path, name, outcome } in &taken {
        let (path, name) = (path.display(), name.as_deref().unwrap_or("?"));
        match outcome {
            Outcome::Kept => tracing::debug!("{name} ({path}) has not changed"),
            Outcome::Loaded => tracing::info!("loaded {name} ({path})"),
            Outcome::Reloaded => tracing::info!("reloaded {name} ({path})"),
            Outcome::Reconfigured => tracing::info!("{name} ({path}) took in its new settings"),
            Outcome::Removed => tracing::info!("removed {name} ({path})"),
            Outcome::Failed(error) => tracing::error!("{error}; what was loaded goes on"),
        }
    }
    ops.plugins().look(|plugins, _, _| tell_unknown(&source, plugins));
    Ok(taken)
}

fn unreadable(folder: &Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}; let this user read the plugin folder", folder.display())
}

/// Loads every library of the plugin folder, or says of each that cannot be loaded why.
fn load_plugins(source: &Source, port: &Arc<Port>) -> Result<Vec<plugins::Plugin>, Failure> {
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

fn listen(listen: &Listen, scheme: &str) -> Result<(Bound, String), Failure> {
    match listen {
        Listen::Tcp(address) => {
            let fail = |error| {
                Failure::new([format!(
                    "cannot listen on {address}: {error}; choose another --listen, or stop who has it"
                )])
            };
            let listener = TcpListener::bind(address).map_err(fail)?;
            SockRef::from(&listener).listen(BACKLOG).map_err(fail)?;
            let address = listener.local_addr().map_err(fail)?;
            Ok((Bound::Tcp(listener), format!("{scheme}://{address}")))
        }
        #[cfg(unix)]
        Listen::Unix(path) => {
            use std::os::unix::net::{UnixListener, UnixStream};
            // A socket that nobody answers was left by a crash.
            if path.exists() && UnixStream::connect(path).is_err() {
                let _ = std::fs::remove_file(path);
            }
            let listener = UnixListener::bind(path).map_err(|error| {
                Failure::new([format!("cannot listen on unix:{}: {error}; choose another path", path.display())])
            })?;
            Ok((Bound::Unix(listener), format!("unix:{}", path.display())))
        }
        #[cfg(not(unix))]
        Listen::Unix(_) => Err(Failure::new(["cannot listen on unix: there are no such sockets here; use host:port"])),
    }
}
