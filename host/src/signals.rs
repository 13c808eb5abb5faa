//! Signals on Unix, and the events of the console on Windows.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use crate::logging;

/// A request from outside of HTTP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Stop cleanly.
    Stop,
    /// Write a snapshot.
    Snapshot,
    /// Reload plugins, access tokens and the certificate.
    Reload,
}

/// Whether the server has stopped cleanly. The process may still wait for exit functions of libraries.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Logs that the server has stopped. From now on a further signal to stop ends the process with status 0.
pub fn stopped() {
    STOPPED.store(true, Ordering::SeqCst);
    tracing::info!("stopped");
}

/// Receives signals from now on. SIGTERM and SIGINT stop the server, SIGUSR1 writes a snapshot, SIGHUP reloads. A second
/// signal to stop ends the process.
///
/// # Errors
///
/// The system refuses to install a handler.
#[cfg(unix)]
pub fn signals() -> io::Result<Receiver<Signal>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};

    // Without a handler, a write beyond the file-size limit (ulimit -f) ends the process. With one it fails as on a full disk.
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

/// Receives console events from now on. Ctrl-C and Ctrl-Break stop the server, and so does the end of the console, of the
/// session and of the system, after which Windows leaves a process some seconds. A second event ends the process.
///
/// # Errors
///
/// The system refuses to install a handler.
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

/// The minimum time between the first signal and the end by a second one. Some programs send their signal twice, to the
/// process and to its group.
const REPEAT_MIN: Duration = Duration::from_millis(300);

/// The requests to stop so far.
#[derive(Default)]
struct Stops {
    first: Option<Instant>,
}

impl Stops {
    /// Records a signal to stop. The second one ends the process, because an operator who repeats the signal does not want to
    /// wait: with status 1, or with status 0 if the server has stopped already. Acknowledged writes are in the log and are not
    /// lost.
    fn note(&mut self) -> Signal {
        if let Some(first) = self.first {
            thread::sleep((first + REPEAT_MIN).saturating_duration_since(Instant::now()));
            let is_stopped = STOPPED.load(Ordering::SeqCst);
            if !is_stopped {
                tracing::warn!(
                    "stopped immediately by a second signal; the log has the changes since the last snapshot"
                );
            }
            logging::flush(Duration::from_millis(200));
            exit(if is_stopped { 0 } else { 1 });
        }
        self.first = Some(Instant::now());
        Signal::Stop
    }
}

/// Ends the process at once, without waiting for threads and without the exit functions of libraries.
pub fn exit(status: i32) -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(status);
    #[cfg(not(unix))]
    std::process::exit(status)
}
