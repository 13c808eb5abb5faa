//! `/livez` and `/readyz`: whether the process lives, and whether the store is loaded and can be written.

use super::problem::{Manner, Problem};
use crate::http::{Method, Reply};
use crate::ops::Ops;

/// The methods these paths have.
pub(super) const ALLOW: &str = "GET, HEAD, OPTIONS";

/// The process answers, so it lives.
pub(super) fn live(method: Method, manner: Manner) -> Reply {
    read_only(method, manner).unwrap_or_else(ok)
}

/// A server listens only when its store is loaded; what may be missing is that the store can be written.
pub(super) fn ready(ops: &Ops, method: Method, manner: Manner) -> Reply {
    read_only(method, manner).unwrap_or_else(|| match ops.store().closed() {
        None => ok(),
        Some(error) => Problem::new(503, format!("Not ready: {error}")).reply(manner),
    })
}

/// The reply to a method that does not read, if it is one.
fn read_only(method: Method, manner: Manner) -> Option<Reply> {
    match method {
        Method::Get | Method::Head => None,
        Method::Options => Some(Reply::new(204, &b""[..]).with_header("Allow", ALLOW)),
        _ => Some(Problem::new(405, "Method not allowed").reply(manner).with_header("Allow", ALLOW)),
    }
}

fn ok() -> Reply {
    Reply::new(200, &b"Ok"[..]).with_header("Content-Type", "text/plain; charset=utf-8")
}
