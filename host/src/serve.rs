//! A server from its configuration to its clean stop: the one place where all the parts meet.

mod error;
mod plugins;
mod reload;
mod stop;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded, select_biased};
use parking_lot::Mutex;

use crate::api::{Api, Authorizer, Reload};
use crate::config::{Config, ConfigError, Http, Listen};
use crate::failure::Failure;
use crate::http::{Certificate, Engine, Tls};
use crate::listen::{Claim, SocketFile};
use crate::ops::Ops;
use crate::plugins::{Port, Registry, system_clock};
use crate::progress::Bar;
use crate::sd_notify;
use crate::signals::{Signal, signals};
use crate::store::{self, LocalDisk, Lock, Options, Store};

use self::error::StartError;
use self::reload::Reloader;

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
    let Running { ops, engine, reload, address, socket_file, file } = running;
    announce(address)?;
    ops.plugins().serve();
    sd_notify::ready();
    let reloads = Chore::new("reload", move || {
        sd_notify::reloading();
        if let Err(error) = reload() {
            tracing::error!("{error}");
        }
        sd_notify::ready();
    })?;
    let snapshots = Chore::new("snapshots", {
        let ops = Arc::clone(&ops);
        move || {
            // The store logs one that fails, and tries it again.
            if ops.store().snapshot().is_ok() {
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
    ops.store().end_watches();
    sd_notify::stopping();
    // Before the engine closes the socket: until then its inode is not another file's.
    drop(socket_file);
    if !stop::drain(engine) {
        tracing::warn!("some requests were still in flight after {:?}; they are abandoned", stop::REQUESTS);
    }
    stop::close(&ops, begun)?;
    tracing::info!("stopped");
    Ok(())
}

/// A server that runs.
struct Running {
    ops: Arc<Ops>,
    engine: Engine,
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
    let tls = config.tls.as_ref().map(Certificate::read).transpose()?;
    let tls = tls.map(|certificate| Arc::new(Tls::new(certificate)));
    if let Listen::Unix(path) = &config.listen
        && store::has_file(&config.file, path)
    {
        return Err(StartError::SocketInStore { path: path.clone(), file: config.file }.into());
    }
    // All that can refuse the start without the store comes before the store is opened, which makes files.
    let claim = Claim::new(&config.listen)?;
    let local = claim.is_local();
    let address = claim.address();
    let auth = config.auth.for_listener(local)?;
    let port = Arc::new(Port::new(config.max_size, system_clock));
    let plugins = Registry::new(plugins::load(&config.plugins, &port)?, config.plugins.order, port);
    let lock = Lock::take(&config.file)?;
    let (fsync, log_min, history_max) = (config.fsync, config.log_min, config.watch_history);
    let options = Options { fsync, log_min, history_max, ..Options::default() };
    let bar = Bar::new(format!("loading {}", config.file.display()));
    let store = Store::open(LocalDisk, lock.store(), options, &|done, total| bar.set(done, total))?;
    drop(bar);
    store.hold(lock);
    let (entries, size) = store.totals();
    tracing::info!(entries, bytes = size, fsync = ?config.fsync, "opened {}", config.file.display());
    let ops = Ops::new(store, plugins)?;

    let (listener, socket_file) = claim.listen()?;
    let address = match config.listen {
        Listen::Tcp(_) if tls.is_some() => format!("https://{address}"),
        Listen::Tcp(_) => format!("http://{address}"),
        Listen::Unix(_) => address,
    };
    if auth.open && !local {
        tracing::warn!("--open on {address}, which other machines reach: every client may read and write everything");
    }
    let auth = Arc::new(Authorizer::new(auth));
    let reloader = Reloader {
        ops: Arc::clone(&ops),
        auth: Arc::clone(&auth),
        tls: tls.clone(),
        is_local: local,
        configured: Mutex::new(configured),
    };
    let reload: Arc<Reload> = Arc::new(move || reloader.reload());
    let service = Api::new(Arc::clone(&ops), config.max_value, auth, Arc::clone(&reload));
    let service = Arc::new(service.memory_budget(config.memory_budget).log_requests(config.log_requests));
    let tiny = config.http == Http::Tiny;
    if tiny && !local {
        tracing::warn!(
            "--http tiny on {address}, which other machines reach: tiny_http does not limit connections or the size of a \
             request's head; use --http hyper"
        );
    }
    tracing::info!("serving {address} with {}", if tiny { "tiny_http" } else { "hyper" });
    let engine = if tiny {
        Engine::tiny(listener, service)?
    } else {
        Engine::hyper(listener, tls, service.connections(), service)?
    };
    ops.store().keep_files();
    Ok(Running { ops, engine, reload, address, socket_file, file: config.file })
}

/// Work that a signal asks for, on a thread of its own. However often it is asked for meanwhile, it is done once more.
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

/// Prints the line that scripts wait for. On a thread of its own, because standard output may have no reader, or one that
/// stands still.
fn announce(address: String) -> io::Result<()> {
    let announced = thread::Builder::new().name("announce".to_owned()).spawn(move || {
        let _ = writeln!(std::io::stdout(), "listening on {address}");
    });
    announced.map(drop)
}
