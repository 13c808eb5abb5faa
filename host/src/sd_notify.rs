//! Notifications of the service manager: systemd listens at the datagram socket in `NOTIFY_SOCKET`.

use std::time::Duration;

#[cfg(unix)]
use ::sd_notify::NotifyState;

/// How far a notification of progress extends the timeout of a start or a stop, in microseconds.
#[cfg(unix)]
const EXTENSION_US: u32 = 60_000_000;

/// Reports that the server accepts requests, with a line for `systemctl status`.
pub fn ready(status: &str) {
    #[cfg(unix)]
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    #[cfg(not(unix))]
    let _ = status;
}

/// Reports a reload, which lasts until [`ready`].
pub fn reloading() {
    // systemd ignores a report that is older than its request to reload.
    #[cfg(unix)]
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Reports that the server accepts no more requests.
pub fn stopping() {
    #[cfg(unix)]
    notify(&[NotifyState::Stopping]);
}

/// Reports how far a start or a stop has got. `extends` extends its timeout, because it makes progress.
pub fn busy(status: &str, extends: bool) {
    #[cfg(unix)]
    if extends {
        notify(&[NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(EXTENSION_US)]);
    } else {
        notify(&[NotifyState::Status(status)]);
    }
    #[cfg(not(unix))]
    let _ = (status, extends);
}

/// Reports to the watchdog that the server responds.
pub fn alive() {
    #[cfg(unix)]
    notify(&[NotifyState::Watchdog]);
}

/// Returns the time after which the watchdog ends a process that does not report [`alive`].
pub fn watchdog_timeout() -> Option<Duration> {
    #[cfg(unix)]
    {
        ::sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero())
    }
    #[cfg(not(unix))]
    {
        None
    }
}

#[cfg(unix)]
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = ::sd_notify::notify(state) {
        tracing::warn!("cannot notify the service manager of {state:?}: {error}");
    }
}
