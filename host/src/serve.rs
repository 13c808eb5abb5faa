//! A server from its configuration to its clean stop: the one place where all the parts meet.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use crate::api::Api;
use crate::cli::{Failure, describe};
use crate::config::{Config, Listen};
use crate::http::tiny::{Bound, Tiny};
use crate::ops::Ops;
use crate::plugins::{self, Chain};
use crate::progress::Bar;
use crate::store::{LocalDisk, Lock, Options, Store};

/// How long requests under way may take to finish at a stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until a signal asks to stop.
///
/// # Errors
///
/// The store, a plugin or the address cannot be used, or the store could not be written at the end.
pub fn serve(config: Config) -> Result<(), Failure> {
    // Before anything is opened: a signal during a long start stops it as cleanly.
    let signals = signals().map_err(|error| Failure::new([error]))?;

    let chain = Chain::new(load_plugins(&config)?);
    let failure = |error| Failure::new([error]);
    let _lock = Lock::take(&config.file).map_err(failure)?;
    let options = Options { fsync: config.fsync, ..Options::default() };
    let bar = Bar::new(format!("loading {}", config.file.display()));
    let store = Store::open(LocalDisk, &config.file, options, &|done, total| bar.tell(done, total)).map_err(failure)?;
    drop(bar);
    let (entries, size) = store.totals();
    tracing::info!(entries, bytes = size, fsync = ?config.fsync, "opened {}", config.file.display());
    let ops = Arc::new(Ops::new(store, chain).map_err(|error| Failure::new([error]))?);

    let (listener, address) = listen(&config.listen)?;
    let service = Arc::new(Api::new(Arc::clone(&ops), config.max_value));
    let engine = Tiny::start(listener, service).map_err(|error| Failure::new([error]))?;
    // The line that scripts wait for. Nobody may be there to read it.
    let _ = writeln!(std::io::stdout(), "listening on {address}");

    // However often a snapshot was asked for meanwhile, one will do; to stop comes first.
    while signals.recv() == Ok(Signal::Snapshot) && !signals.try_iter().any(|signal| signal == Signal::Stop) {
        match ops.store().snapshot() {
            Ok(()) => tracing::info!("wrote {}", config.file.display()),
            Err(error) => tracing::error!("no snapshot: {error}"),
        }
    }
    tracing::info!("stopping");
    if !engine.stop(PATIENCE) {
        tracing::warn!("some requests were still under way after {PATIENCE:?}; they are given up");
    }
    if let Listen::Unix(path) = &config.listen {
        let _ = std::fs::remove_file(path);
    }
    ops.store().close().map_err(|error| Failure::new([error]))?;
    tracing::info!("stopped");
    Ok(())
}

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signal {
    Stop,
    Snapshot,
}

/// The signals that come from now on. SIGTERM and SIGINT ask to stop, SIGUSR1 for a snapshot.
fn signals() -> std::io::Result<Receiver<Signal>> {
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
    let (send, receive) = unbounded();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let _ = send.send(if signal == SIGUSR1 { Signal::Snapshot } else { Signal::Stop });
        }
    });
    Ok(receive)
}

/// Loads every library of the plugin folder, or says of each that cannot be loaded why.
fn load_plugins(config: &Config) -> Result<Vec<plugins::Plugin>, Failure> {
    let Some(folder) = &config.plugin_dir else { return Ok(Vec::new()) };
    let libraries = plugins::libraries(folder).map_err(|error| {
        Failure::new([format!("cannot read {}: {error}; let this user read the plugin folder", folder.display())])
    })?;
    let mut loaded = Vec::new();
    let mut failed = Vec::new();
    for result in plugins::load(&libraries, &config.plugins, config.max_size) {
        match result {
            Ok(plugin) => {
                tracing::info!("loaded {}: {}", plugin.path().display(), describe(&plugin));
                loaded.push(plugin);
            }
            Err(error) if plugins::is_required(&config.plugins, &error) => failed.push(error),
            Err(error) => tracing::warn!("{error}; started without it, because it is not required"),
        }
    }
    if !failed.is_empty() {
        return Err(Failure::new(failed));
    }
    for name in config.plugins.keys().filter(|name| !loaded.iter().any(|plugin| plugin.name() == *name)) {
        tracing::warn!("[plugins.{name}] is in the configuration, and no such plugin is in {}", folder.display());
    }
    Ok(loaded)
}

fn listen(listen: &Listen) -> Result<(Bound, String), Failure> {
    match listen {
        Listen::Tcp(address) => {
            let fail = |error| {
                Failure::new([format!(
                    "cannot listen on {address}: {error}; choose another --listen, or stop who has it"
                )])
            };
            let listener = TcpListener::bind(address).map_err(fail)?;
            let address = listener.local_addr().map_err(fail)?;
            Ok((Bound::Tcp(listener), format!("http://{address}")))
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
