//! `/livez` and `/readyz`: whether the process lives, and whether the store can be written, snapshots succeed and all plugins
//! work.

use super::problem::{Manner, Problem};
use crate::http::Response;
use vkog_engine::Engine;
use vkog_plugin_host::OnFailure;
use vkog_store::Store as _;

/// A server listens only when its store is loaded. It is not ready while writes or snapshots fail, or a plugin is in
/// quarantine.
pub(super) fn ready(engine: &Engine, manner: Manner) -> Response {
    let store = engine.store();
    if let Some(error) = store.closed().or_else(|| store.full()) {
        return Problem::new(503, format!("Not ready: {error}")).reply(manner);
    }
    if let Some(error) = store.snapshot_failure() {
        return Problem::new(503, format!("Not ready: snapshots fail and the log grows: {error}")).reply(manner);
    }
    let chain = engine.plugins().chain();
    let mut quarantined = chain.members().iter().filter(|member| member.is_quarantined());
    match quarantined.find(|member| member.failure_policy().on_failure == OnFailure::Refuse) {
        Some(member) => {
            let (name, fact) = (member.name(), "is in quarantine, and what it would be asked is refused");
            Problem::new(503, format!("Not ready: plugin \"{name}\" {fact}; see /plugins")).reply(manner)
        }
        None => ok(),
    }
}

/// The process answers, so it lives.
pub(super) fn ok() -> Response {
    Response::new(200, &b"Ok"[..]).with_header("Content-Type", "text/plain; charset=utf-8")
}
