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
    #[inline]
    pub(super) fn add_to(self, reply: &mut Response, head: &RequestHead) {
        let allowed = match self {
            Self::Off => return,
            Self::None => return vary(reply),
            Self::Origin => head.headers.get("origin").and_then(|origin| str::from_utf8(origin).ok()),
            Self::All => Some("*"),
        };
        vary(reply);
        reply.add_header("Access-Control-Expose-Headers", EXPOSED_FIELDS);
        reply.add_header("Access-Control-Allow-Origin", allowed.unwrap_or_default().to_owned());
        let is_preflight =
            head.method == Method::Options && head.headers.get("access-control-request-method").is_some();
        let methods = reply.headers.iter().find(|(name, _)| name == "Allow").map(|(_, methods)| methods.clone());
        if let Some(methods) = methods.filter(|_| is_preflight) {
            reply.add_header("Access-Control-Allow-Methods", methods);
            reply.add_header("Access-Control-Allow-Headers", ALLOWED_FIELDS);
            reply.add_header("Access-Control-Max-Age", MAX_AGE);
        }
    }
}

/// Adds that the response depends on the origin.
fn vary(reply: &mut Response) {
    match reply.headers.iter_mut().find(|(name, _)| name == "Vary") {
        Some((_, fields)) => fields.to_mut().push_str(", Origin"),
        None => reply.add_header("Vary", "Origin"),
    }
}

/// Whether an origin is one of the configured ones. `*` lists none.
pub(super) fn is_listed(origin: &[u8], origins: &[CorsOrigin]) -> bool {
    origins.iter().any(|listed| matches!(listed, CorsOrigin::Exact(exact) if exact.as_bytes() == origin))
}
