//! The stop: bounded, whatever a plugin does.
//!
//! Requests in flight have [`REQUESTS`]. What then has not returned is in code of a plugin, and is left to itself: the store is
//! closed beside it, and the process ends without waiting for its threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::PATIENCE as REQUESTS;
use crate::cli::Failure;
use crate::http::HttpServer;
use crate::{logging, signals};
use vkog_engine::Engine;
use vkog_runtime::run_with_timeout;

/// From the signal to the end of what plugins are waited for.
const PLUGINS: Duration = Duration::from_secs(12);
/// From the signal to the end of a stop in which a plugin did not return.
const ALL: Duration = Duration::from_secs(14);

/// Takes no further request, and returns whether those in flight were answered in time.
pub(super) fn drain(http: HttpServer) -> bool {
    // On another thread, and a little longer: the HTTP engine may itself wait for a thread that is in a hook.
    let drained = run_with_timeout("drain", REQUESTS + Duration::from_millis(500), move || http.stop(REQUESTS));
    drained.unwrap_or(false)
}

/// Ends the plugins, then closes the store. Where a plugin did not return, this ends the process.
pub(super) fn close(engine: &Arc<Engine>, begun: Instant) -> Result<(), Failure> {
    // Before the store is closed: a thread of a plugin that asks it would wait for ever.
    let abandoned = engine.plugins().stop(begun + PLUGINS);
    if abandoned.is_empty() {
        let result = engine.store().close().map_err(|error| Failure::new([error]));
        // A library that is being loaded may hold a lock that the end of the process would wait for.
        return if engine.plugins().is_reloading() { leave(result) } else { result };
    }
    for what in abandoned {
        tracing::warn!("{what} did not return and is abandoned");
    }
    let closing = Arc::clone(engine);
    let left = (begun + ALL).saturating_duration_since(Instant::now());
    match run_with_timeout("close", left, move || closing.store().close()) {
        Some(Ok(())) => leave(Ok(())),
        Some(Err(error)) => leave(Err(Failure::new([error]))),
        None => {
            tracing::warn!("no snapshot was written, because a plugin may hold entries locked; the log has all writes");
            leave(Ok(()))
        }
    }
}

/// A stop was asked for before anything was served: nothing has been changed, and nothing has to be waited for.
pub(super) fn before_serving() -> ! {
    tracing::info!("stopped before anything was served");
    leave(Ok(()))
}

/// Ends the process without waiting for threads, or for what libraries do at its end.
fn leave(result: Result<(), Failure>) -> ! {
    let status = match result {
        Ok(()) => {
            tracing::info!("stopped");
            0
        }
        Err(failure) => {
            failure.report();
            failure.status()
        }
    };
    logging::flush(Duration::from_millis(500));
    signals::exit(status.into())
}
