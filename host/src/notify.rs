//! What a service manager is told that asked to be: systemd, by the datagram socket in `NOTIFY_SOCKET`.

#[cfg(unix)]
use sd_notify::NotifyState;

/// Requests are served.
pub fn ready() {
    #[cfg(unix)]
    tell(&[NotifyState::Ready]);
}

/// Plugins and access are taken in anew, until [`ready`].
pub fn reloading() {
    // systemd takes no answer for that of a reload which is older than its question.
    #[cfg(unix)]
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Nothing more is accepted.
pub fn stopping() {
    #[cfg(unix)]
    tell(&[NotifyState::Stopping]);
}

#[cfg(unix)]
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("the service manager was not told {state:?}: {error}");
    }
}
