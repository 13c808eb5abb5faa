//! What a server is asked from outside of HTTP: by signals on Unix; on Windows, where there are none, by its console.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use crate::logging;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// A clean stop.
    Stop,
    /// The log is to be brought into the file.
    Snapshot,
    /// What has changed of plugins and access is to be taken in.
    Reload,
}

/// What is asked for from now on. SIGTERM and SIGINT ask to stop, SIGUSR1 for a snapshot, SIGHUP to reload. A second request
/// to stop ends the process.
///
/// # Errors
///
/// The system gives no signals.
#[cfg(unix)]
pub fn signals() -> io::Result<Receiver<Signal>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};

    // A write beyond the largest file that the process may have (ulimit -f) fails then, as on a full disk, and ends nothing.
    signal_hook::flag::register(SIGXFSZ, std::sync::Arc::default())?;
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGHUP])?;
    let (send, receive) = unbounded();
    thread::spawn(move || {
        let mut stops = Stops::default();
        for signal in signals.forever() {
            let _ = send.send(match signal {
                SIGUSR1 => Signal::Snapshot,
                SIGHUP => Signal::Reload,
                _ => stops.note(),
            });
        }
    });
    Ok(receive)
}

/// What is asked for from now on. Ctrl-C and Ctrl-Break ask to stop, and so do the end of the console, of the session and
/// of the system; after those Windows leaves a process some seconds. A second request to stop ends the process.
///
/// # Errors
///
/// The system tells nothing of the console.
#[cfg(windows)]
pub fn signals() -> io::Result<Receiver<Signal>> {
    use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_logoff, ctrl_shutdown};

    let (mut c, mut pause, mut close) = (ctrl_c()?, ctrl_break()?, ctrl_close()?);
    let (mut logoff, mut shutdown) = (ctrl_logoff()?, ctrl_shutdown()?);
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (send, receive) = unbounded();
    thread::spawn(move || {
        let mut stops = Stops::default();
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = c.recv() => {}
                    _ = pause.recv() => {}
                    _ = close.recv() => {}
                    _ = logoff.recv() => {}
                    _ = shutdown.recv() => {}
                }
                let _ = send.send(stops.note());
            }
        });
    });
    Ok(receive)
}

/// Some programs that end another one send their signal twice: to it, and to its process group. A clean stop has at least this
/// long.
const TWICE: Duration = Duration::from_millis(300);

/// The requests to stop so far.
#[derive(Default)]
struct Stops {
    first: Option<Instant>,
}

impl Stops {
    /// Notes a request. The second ends the process: an operator who asks again does not want to wait. Nothing that was
    /// acknowledged is lost by it, for that is in the log.
    fn note(&mut self) -> Signal {
        if let Some(first) = self.first {
            thread::sleep((first + TWICE).saturating_duration_since(Instant::now()));
            tracing::warn!("stopped at once, by a second signal; what was not in a snapshot is in the log");
            logging::flush(Duration::from_millis(200));
            exit(1);
        }
        self.first = Some(Instant::now());
        Signal::Stop
    }
}

/// Ends the process now: no thread is waited for, and no code runs that libraries have for the end of a process.
pub fn exit(status: i32) -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(status);
    #[cfg(not(unix))]
    std::process::exit(status)
}
