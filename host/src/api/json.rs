//! Responses in JSON.

use bytes::Bytes;
use serde::Serialize;

use crate::http::Response;

/// Serializes a value as the response.
pub(super) fn json(value: &impl Serialize) -> Response {
    let mut body = serde_json::to_vec_pretty(value).unwrap_or_default();
    body.push(b'\n');
    json_reply(body)
}

/// Makes a response from a JSON document.
pub(super) fn json_reply(body: impl Into<Bytes>) -> Response {
    Response::new(200, body).with_header("Content-Type", "application/json").inert()
}
