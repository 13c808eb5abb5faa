//! The stop of a server, within a limited time even if a plugin does not return.
//!
//! Requests in flight have [`REQUESTS_TIMEOUT`]. A request that has not returned then is in code of a plugin and is abandoned:
//! the store is closed, and the process ends without waiting for its threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::any_store::Engine;
use crate::failure::{Failure, Status};
use crate::http::HttpServer;
use crate::{logging, sd_notify, signals};
use vkog_runtime::run_with_timeout;

/// The timeout of requests in flight, from the signal.
const REQUESTS_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of plugins, from the signal.
const PLUGINS_TIMEOUT: Duration = Duration::from_secs(12);
/// The timeout of the whole stop if a plugin does not return, from the signal.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(14);

/// Waits until load balancers have noticed that the server is not ready. A second signal to stop ends the process meanwhile.
pub(super) fn wait_for_load_balancers(drain_time: Duration) {
    let time = humantime::format_duration(drain_time);
    let status = format!("draining for {time}: /readyz is 503, other requests are served");
    tracing::info!("{status}");
    sd_notify::busy(&status, false);
    std::thread::sleep(drain_time);
}

/// Stops accepting requests and waits for those in flight.
pub(super) fn drain(http: HttpServer) {
    // On another thread, and a little longer: the HTTP engine may itself wait for a thread that is in a hook.
    let limit = REQUESTS_TIMEOUT + Duration::from_millis(500);
    if run_with_timeout("drain", limit, move || http.stop(REQUESTS_TIMEOUT)) != Some(true) {
        tracing::warn!("some requests were still in flight after {REQUESTS_TIMEOUT:?}; they are abandoned");
    }
}

/// Destroys the plugins, then closes the store. Ends the process if a plugin does not return.
pub(super) fn close(engine: &Arc<Engine>, started: Instant) -> Result<(), Failure> {
    // Before the store is closed: a thread of a plugin that calls it would never return.
    let abandoned = engine.plugins().stop(started + PLUGINS_TIMEOUT);
    if abandoned.is_empty() {
        let result = engine.store().close().map_err(Failure::from);
        // A library that is being loaded may hold a lock that the end of the process would wait for.
        return if engine.plugins().is_reloading() { leave(result) } else { result };
    }
    for what in abandoned {
        tracing::warn!("{what} did not return and was abandoned");
    }
    let closing = Arc::clone(engine);
    let left = (started + STOP_TIMEOUT).saturating_duration_since(Instant::now());
    match run_with_timeout("close", left, move || closing.store().close()) {
        Some(Ok(())) => leave(Ok(())),
        Some(Err(error)) => leave(Err(error.into())),
        None => {
            if engine.store().local().is_some() {
                tracing::warn!(
                    "no snapshot was written, because a plugin may hold entries locked; the log has all writes"
                );
            }
            leave(Ok(()))
        }
    }
}

/// Ends the process before it is ready. Nothing has changed, so there is nothing to wait for.
pub(super) fn before_serving() -> ! {
    sd_notify::stopping();
    tracing::info!("stopped before the server accepted requests");
    leave(Ok(()))
}

/// Ends the process without waiting for threads, and without the exit functions of libraries.
fn leave(result: Result<(), Failure>) -> ! {
    let status = match result {
        Ok(()) => {
            signals::stopped();
            Status::Success
        }
        Err(failure) => {
            failure.report();
            failure.status()
        }
    };
    logging::flush(Duration::from_millis(500));
    signals::exit(i32::from(status as u8))
}
