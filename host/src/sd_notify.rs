//! Notifications of the service manager: systemd listens at the datagram socket in `NOTIFY_SOCKET`.

#[cfg(unix)]
use ::sd_notify::NotifyState;

/// Reports that the server accepts requests.
pub fn ready() {
    #[cfg(unix)]
    notify(&[NotifyState::Ready]);
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

#[cfg(unix)]
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = ::sd_notify::notify(state) {
        tracing::warn!("cannot notify the service manager of {state:?}: {error}");
    }
}
