//! A server from its configuration to its clean stop. All parts of the program meet here.

mod error;
mod notify;
mod plugins;
mod reload;
mod shared;
mod start;
mod stop;

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, select_biased, tick};

use crate::any_store::AnyStore;
use crate::api::StartProgress;
use crate::config::{Config, ConfigError, Http};
use crate::failure::Failure;
use crate::listen::SocketFile;
use crate::sd_notify;
use crate::signals::{Signal, signals, stopped};
use vkog_store::Store as _;

use self::error::StartError;
use self::notify::{NOTIFY_INTERVAL, Progress, StoppingNotice, Watchdog};
use self::shared::SharedWatch;
use self::start::{Loaded, Reach, Site};

/// Serves until a signal stops the server. `configured` reads the configuration again, for a reload.
///
/// # Errors
///
/// The store, a plugin or the address cannot be used, or the store cannot be written at the end.
pub fn serve(
    config: Config,
    configured: impl Fn() -> Result<Config, ConfigError> + Send + Sync + 'static,
) -> Result<(), Failure> {
    // tiny_http has many threads, which would wait for each other, and so would the event loops and the plugin of a shared store,
    // whose entries one thread allocates.
    vkog_runtime::configure_allocator(config.http != Http::Tiny && config.shared.is_none());
    // Before anything is opened. This thread waits only for signals, so that a start, a reload or a snapshot cannot delay a
    // stop.
    let mut start = Start {
        signals: signals()?,
        early: Vec::new(),
        progress: Arc::default(),
        addresses: String::new(),
        socket_files: Vec::new(),
    };
    let progress = Arc::clone(&start.progress);
    let Site { config, front, auth, tls, http, is_local, addresses, socket_files } =
        start.run("listen", move || start::listen(config, progress))?;
    start.socket_files = socket_files;
    start.addresses = addresses.join(", ");
    let (file, progress) = (config.file.clone(), Arc::clone(&start.progress));
    let reach = Reach { is_local, addresses: addresses.clone() };
    let (drain_time, draining) = (config.drain_time, Arc::clone(&front));
    let Loaded { engine, reload } =
        start.run("load", move || start::load(config, configured, &front, auth, tls, reach, &progress))?;
    let Start { signals, early, socket_files, .. } = start;
    let status = format!("serving {} with {}", addresses.join(", "), http.engine());
    tracing::info!("{status}");
    announce(addresses)?;
    engine.plugins().serve();
    sd_notify::ready(&status);
    let watchdog = Watchdog::start(http.probe())?;
    let _watch = SharedWatch::start(&engine)?;
    let reloads = Chore::new("reload", move || {
        sd_notify::reloading();
        if let Err(error) = reload() {
            tracing::error!("{error}");
        }
        sd_notify::ready(&status);
    })?;
    let snapshots = Chore::new("snapshots", {
        let engine = Arc::clone(&engine);
        move || match engine.store() {
            // The store logs a failed snapshot and tries again.
            AnyStore::Local(store) if store.snapshot().is_ok() => tracing::info!("wrote {}", file.display()),
            AnyStore::Local(_) => {}
            AnyStore::Shared(shared) => {
                tracing::warn!(
                    "no snapshot was written: {} is not in files of this machine; export it instead",
                    shared.url()
                );
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
    if !drain_time.is_zero() {
        draining.drain();
        stop::wait_for_load_balancers(drain_time);
    }
    let started = Instant::now();
    tracing::info!("stopping");
    engine.store().end_watches();
    drop(watchdog);
    let _notice = StoppingNotice::start(Arc::clone(&engine));
    // Before the HTTP engine closes the sockets, because their inodes may be other files' afterwards.
    drop(socket_files);
    stop::drain(http);
    stop::close(&engine, started)?;
    stopped();
    Ok(())
}

/// The start of a server, until it is ready.
struct Start {
    signals: Receiver<Signal>,
    /// The signals that arrived during the start, for the running server.
    early: Vec<Signal>,
    progress: Arc<StartProgress>,
    /// Where the server listens, until that has been logged.
    addresses: String,
    /// Remove the files of Unix sockets when they are dropped.
    socket_files: Vec<SocketFile>,
}

impl Start {
    /// Runs a step on its own thread and notifies the service manager of the progress. A step that takes long is logged once. A
    /// signal to stop ends the process.
    ///
    /// # Errors
    ///
    /// Those of the step.
    fn run<T: Send + 'static>(
        &mut self,
        name: &str,
        step: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (send, receive) = bounded(1);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _ = send.send(step());
        })?;
        let (ticks, mut progress) = (tick(NOTIFY_INTERVAL), Progress::default());
        let result = loop {
            select_biased! {
                recv(self.signals) -> signal => match signal {
                    Ok(Signal::Stop) => {
                        self.socket_files.clear();
                        stop::before_serving()
                    }
                    Ok(other) => self.early.push(other),
                    Err(_) => break Err(StartError::NoSignals.into()),
                },
                recv(receive) -> result => break result.unwrap_or_else(|_| Err(StartError::Panicked.into())),
                recv(ticks) -> _ => {
                    let extends = progress.has_changed(self.progress.mark()) || self.progress.is_waiting();
                    sd_notify::busy(&format!("starting: {}", self.progress), extends);
                    if !self.addresses.is_empty() {
                        tracing::info!("listening on {}; {}", mem::take(&mut self.addresses), self.progress);
                    }
                }
            }
        };
        if result.is_err() {
            self.socket_files.clear();
        }
        result
    }
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
