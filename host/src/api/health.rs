//! `/livez` and `/readyz`: whether the process lives, and whether the store can be written and all plugins work.

use super::problem::{Manner, Problem};
use super::read_only;
use crate::http::{Method, Reply};
use crate::ops::Ops;
use crate::plugins::OnFailure;

/// The process answers, so it lives.
pub(super) fn live(method: Method, manner: Manner) -> Reply {
    read_only(method, manner).map_or_else(|reply| reply, |()| ok())
}

/// A server listens only when its store is loaded; what may be missing is that the store can be written, and that a plugin
/// is in quarantine.
pub(super) fn ready(ops: &Ops, method: Method, manner: Manner) -> Reply {
    if let Err(reply) = read_only(method, manner) {
        return reply;
    }
    if let Some(error) = ops.store().closed() {
        return Problem::new(503, format!("Not ready: {error}")).reply(manner);
    }
    let chain = ops.plugins().chain();
    let mut quarantined = chain.members().iter().filter(|member| member.is_quarantined());
    match quarantined.find(|member| member.conduct().on_failure == OnFailure::Refuse) {
        Some(member) => {
            let (name, fact) = (member.name(), "is in quarantine, and what it would be asked is refused");
            Problem::new(503, format!("Not ready: plugin \"{name}\" {fact}; see /plugins")).reply(manner)
        }
        None => ok(),
    }
}

fn ok() -> Reply {
    Reply::new(200, &b"Ok"[..]).with_header("Content-Type", "text/plain; charset=utf-8")
}
