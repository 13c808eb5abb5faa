//! What a server is asked from outside of HTTP: by signals on Unix; on Windows, where there are none, by its console.

use std::io;

use crossbeam_channel::{Receiver, unbounded};

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

/// What is asked for from now on. SIGTERM and SIGINT ask to stop, SIGUSR1 for a snapshot, SIGHUP to reload.
///
/// # Errors
///
/// The system gives no signals.
#[cfg(unix)]
pub fn signals() -> io::Result<Receiver<Signal>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGHUP])?;
    let (send, receive) = unbounded();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let _ = send.send(match signal {
                SIGUSR1 => Signal::Snapshot,
                SIGHUP => Signal::Reload,
                _ => Signal::Stop,
            });
        }
    });
    Ok(receive)
}

/// What is asked for from now on. Ctrl-C and Ctrl-Break ask to stop, and so do the end of the console, of the session and
/// of the system; after those Windows leaves a process some seconds.
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
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = c.recv() => {}
                    _ = pause.recv() => {}
                    _ = close.recv() => {}
                    _ = logoff.recv() => {}
                    _ = shutdown.recv() => {}
                }
                let _ = send.send(Signal::Stop);
            }
        });
    });
    Ok(receive)
}
