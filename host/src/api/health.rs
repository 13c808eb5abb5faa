//! `/livez` and `/readyz`: the process runs; the store accepts writes, snapshots succeed and all plugins work.

use super::problem::{ErrorFormat, Problem};
use crate::any_store::Engine;
use crate::http::Response;
use crate::members::{differing, members};
use vkog_plugin_host::OnFailure;
use vkog_store::{LocalStore, Store as _};

/// The response of `/readyz` of a server whose store is loaded: 503 while writes or snapshots fail, or a plugin in quarantine
/// refuses requests.
pub(super) fn ready(engine: &Engine, format: ErrorFormat) -> Response {
    let store = engine.store();
    if let Some(error) = store.closed().or_else(|| store.full()) {
        return Problem::new(503, format!("Not ready: {error}")).reply(format);
    }
    if let Some(error) = store.local().and_then(LocalStore::snapshot_failure) {
        return Problem::new(503, format!("Not ready: a snapshot failed and the log grows: {error}")).reply(format);
    }
    let chain = engine.plugins().chain();
    let mut quarantined = chain.members().iter().filter(|member| member.is_quarantined());
    match quarantined.find(|member| member.failure_policy().on_failure == OnFailure::Refuse) {
        Some(member) => {
            let (name, fact) = (member.name(), "is quarantined, so that requests are rejected");
            Problem::new(503, format!("Not ready: plugin \"{name}\" {fact}; see /plugins")).reply(format)
        }
        None => store.shared().and_then(|shared| differing(&members(engine, shared))).map_or_else(ok, |fact| {
            Response::new(200, format!("Ok; {fact}; see /plugins\n").into_bytes())
                .with_header("Content-Type", "text/plain; charset=utf-8")
        }),
    }
}

/// The response of `/readyz` of a server that is about to stop.
pub(super) fn draining(format: ErrorFormat) -> Response {
    Problem::new(503, "Not ready: the server is about to stop (drain-time)").reply(format)
}

/// The response of `/livez`.
pub(super) fn ok() -> Response {
    Response::new(200, &b"Ok"[..]).with_header("Content-Type", "text/plain; charset=utf-8")
}
