//! Notifications of the service manager at intervals: a long start or stop makes progress; the HTTP engine responds.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::stop::STOP_TIMEOUT;
use crate::any_store::Engine;
use crate::http::Probe;
use crate::sd_notify;
use vkog_store::LocalStore;

/// The interval of the notifications during a start and a stop.
pub(super) const NOTIFY_INTERVAL: Duration = Duration::from_millis(500);

/// Notices that a value changes.
#[derive(Default)]
pub(super) struct Progress<T>(Option<T>);

impl<T: PartialEq> Progress<T> {
    /// Returns whether the value is another one than at the last call.
    pub(super) fn has_changed(&mut self, value: T) -> bool {
        let is_new = self.0.as_ref() != Some(&value);
        self.0 = Some(value);
        is_new
    }
}

/// A thread that runs at intervals until this is dropped.
pub(super) struct Repeated(#[expect(dead_code, reason = "dropping it ends the thread")] Sender<Infallible>);

impl Repeated {
    /// Calls `each` after every interval.
    pub(super) fn start(name: &str, interval: Duration, mut each: impl FnMut() + Send + 'static) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                each();
            }
        })?;
        Ok(Self(stop))
    }
}

/// Sends the service manager's watchdog a sign of life while the HTTP engine responds. Dropping it ends that.
pub(super) struct Watchdog(#[expect(dead_code, reason = "dropping it ends the thread")] Option<Repeated>);

impl Watchdog {
    /// Starts the notifications, if the service manager wants any: at half the interval after which it ends a silent process.
    ///
    /// # Errors
    ///
    /// The system refuses a thread.
    pub(super) fn start(probe: Probe) -> io::Result<Self> {
        let Some(timeout) = sd_notify::watchdog_timeout() else { return Ok(Self(None)) };
        let interval = timeout / 2;
        let check = move || {
            if probe.responds(interval) {
                sd_notify::alive();
            } else {
                tracing::error!(
                    "the HTTP engine has not responded for {interval:?}; the service manager may end the process"
                );
            }
        };
        Repeated::start("watchdog", interval, check).map(Some).map(Self)
    }
}

/// Notifies the service manager of a stop, and extends its timeout while the stop makes progress, until this is dropped.
pub(super) struct StoppingNotice(#[expect(dead_code, reason = "dropping it ends the thread")] Option<Repeated>);

impl StoppingNotice {
    pub(super) fn start(engine: Arc<Engine>) -> Self {
        sd_notify::stopping();
        let (began, mut progress) = (Instant::now(), Progress::default());
        let each = move || {
            // The time of requests and plugins is limited. That of the snapshot is not.
            let written = engine.store().local().and_then(LocalStore::unfinished_snapshot_len);
            let is_limited = written.is_none() && began.elapsed() < STOP_TIMEOUT;
            let status = match written {
                Some(bytes) => format!("stopping: writing the snapshot, {bytes} bytes written"),
                None => "stopping: completing requests".to_owned(),
            };
            sd_notify::busy(&status, progress.has_changed(written) || is_limited);
        };
        // Without these notifications, only the timeout is shorter.
        Self(Repeated::start("stopping", NOTIFY_INTERVAL, each).ok())
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::TryRecvError;

    use super::*;

    #[test]
    fn only_a_value_that_changes_is_progress() {
        let mut progress = Progress::default();
        let changes = [1, 1, 2, 2, 1].map(|value| progress.has_changed(value));
        assert_eq!(changes, [true, false, true, false, true]);
    }

    #[test]
    fn a_repeated_job_ends_when_it_is_dropped() {
        let (send, receive) = bounded(0);
        let repeated = Repeated::start("test", Duration::from_millis(1), move || send.send(()).unwrap_or_default());
        let repeated = repeated.expect("a thread can be started");
        assert_eq!((receive.recv(), receive.recv()), (Ok(()), Ok(())));
        drop(repeated);
        let deadline = Instant::now() + Duration::from_secs(60);
        while receive.recv_deadline(deadline).is_ok() {}
        assert_eq!(receive.try_recv(), Err(TryRecvError::Disconnected));
    }
}
