//! Cross-origin resource sharing: which responses the pages of other origins may read, as the Fetch standard defines it.
//!
//! It opens the server to no page on its own: a request still needs its token, or has to pass `origin.rs` where none is needed.

use crate::config::CorsOrigin;
use crate::http::{Method, RequestHead, Response};

/// Request header fields that pages may send. `*` covers those of plugins, but not `Authorization`.
const ALLOWED_FIELDS: &str = "Authorization, Content-Type, If-Match, If-None-Match, If-Range, Range, Last-Event-ID, *";
/// Response header fields that pages may read. `*` covers those of plugins; old browsers do not know it.
const EXPOSED_FIELDS: &str =
    "ETag, Content-Range, Accept-Ranges, Retry-After, Allow, Vkog-Plugin, Vkog-TTL, Vkog-Expires, X-Request-Id, *";
/// How long browsers may keep the answer to a preflight request, in seconds.
const MAX_AGE: &str = "600";

/// The access of the page that sent a request to the response.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// No origin is configured.
    Off,
    /// The request has no origin, or one that is not allowed.
    None,
    /// The page's own origin is allowed.
    Origin,
    /// All origins are allowed.
    All,
}

impl Grant {
    /// Returns what a request is granted by the configured origins.
    pub(super) fn of(head: &RequestHead, origins: &[CorsOrigin]) -> Self {
        if origins.is_empty() {
            return Self::Off;
        }
        if origins.contains(&CorsOrigin::Any) {
            return Self::All;
        }
        let mut sent = head.headers.all("origin");
        match (sent.next(), sent.next()) {
            (Some(origin), None) if is_listed(origin, origins) => Self::Origin,
            _ => Self::None,
        }
    }

    /// Adds the header fields that browsers check.
    pub(super) fn add_to(self, reply: Response, head: &RequestHead) -> Response {
        let allowed = match self {
            Self::Off => return reply,
            Self::None => return varying(reply),
            Self::Origin => head.headers.get("origin").and_then(|origin| str::from_utf8(origin).ok()),
            Self::All => Some("*"),
        };
        let reply = varying(reply).with_header("Access-Control-Expose-Headers", EXPOSED_FIELDS);
        let reply = reply.with_header("Access-Control-Allow-Origin", allowed.unwrap_or_default().to_owned());
        let is_preflight =
            head.method == Method::Options && head.headers.get("access-control-request-method").is_some();
        match reply.headers.iter().find(|(name, _)| name == "Allow").map(|(_, methods)| methods.clone()) {
            Some(methods) if is_preflight => reply
                .with_header("Access-Control-Allow-Methods", methods)
                .with_header("Access-Control-Allow-Headers", ALLOWED_FIELDS)
                .with_header("Access-Control-Max-Age", MAX_AGE),
            _ => reply,
        }
    }
}

/// Adds that the response depends on the origin.
fn varying(mut reply: Response) -> Response {
    match reply.headers.iter_mut().find(|(name, _)| name == "Vary") {
        Some((_, fields)) => fields.to_mut().push_str(", Origin"),
        None => return reply.with_header("Vary", "Origin"),
    }
    reply
}

/// Whether an origin is one of the configured ones. `*` lists none.
pub(super) fn is_listed(origin: &[u8], origins: &[CorsOrigin]) -> bool {
    origins.iter().any(|listed| matches!(listed, CorsOrigin::Exact(exact) if exact.as_bytes() == origin))
}
