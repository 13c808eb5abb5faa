//! Converts hyper's request heads, and the response heads for hyper.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{StatusCode, Version};

use super::body::ResponseBody;
use crate::http::{CertificateNames, Headers, Method, RequestHead, Response};

/// A response as hyper sends it.
pub(super) type HyperResponse = hyper::Response<ResponseBody>;

/// The client at the other end of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Its address; none on a Unix socket.
    pub(super) address: Option<SocketAddr>,
    /// The names in its certificate, if the server has verified one.
    pub(super) certificate: Option<CertificateNames>,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self { address: Some(address), certificate: None }
    }
}

/// Converts a request head of HTTP/1. The scanner reports whether the target had a fragment, which hyper has removed.
pub(super) fn request_head(parts: &Parts, has_fragment: bool, peer: &Peer) -> Arc<RequestHead> {
    let mut target = match parts.uri.scheme() {
        Some(_) => parts.uri.to_string(),
        None => path_and_query(parts).to_owned(),
    };
    if has_fragment {
        target.push('#');
    }
    let version = if parts.version == Version::HTTP_10 { (1, 0) } else { (1, 1) };
    let head = RequestHead::new(method(parts), target, headers(parts, None), peer.address);
    Arc::new(head.with_version(version).with_certificate(peer.certificate.clone()))
}

/// Converts a request head of HTTP/2. The authority becomes the field `Host`: a second one, where `Host` is another.
pub(super) fn http2_request_head(parts: &Parts, peer: &Peer) -> Arc<RequestHead> {
    let is_host = |authority: &&str| {
        let host = parts.headers.get(header::HOST);
        !host.is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()))
    };
    let host = parts.uri.authority().map(|authority| authority.as_str()).filter(is_host);
    let target = match parts.uri.scheme_str() {
        // The service refuses the scheme.
        Some(scheme) if !matches!(scheme, "http" | "https") => parts.uri.to_string(),
        _ => path_and_query(parts).to_owned(),
    };
    let head = RequestHead::new(method(parts), target, headers(parts, host), peer.address);
    Arc::new(head.with_version((2, 0)).with_certificate(peer.certificate.clone()))
}

fn path_and_query(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("", |target| target.as_str())
}

fn method(parts: &Parts) -> Method {
    match parts.method {
        hyper::Method::GET => Method::Get,
        hyper::Method::HEAD => Method::Head,
        hyper::Method::POST => Method::Post,
        hyper::Method::PUT => Method::Put,
        hyper::Method::PATCH => Method::Patch,
        hyper::Method::DELETE => Method::Delete,
        hyper::Method::OPTIONS => Method::Options,
        _ => Method::Other,
    }
}

/// The sum of the lengths of names and values, in bytes.
pub(super) fn fields_len(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// Converts header fields, and adds a field `Host`.
fn headers(parts: &Parts, host: Option<&str>) -> Headers {
    let length = fields_len(&parts.headers);
    let host_length = host.map_or(0, |host| "host".len() + host.len());
    let mut headers = Headers::with_capacity(length + host_length, parts.headers.len() + usize::from(host.is_some()));
    if let Some(host) = host {
        headers.push("host", host.as_bytes());
    }
    for (name, value) in &parts.headers {
        headers.push(name.as_str(), value.as_bytes());
    }
    headers
}

/// Converts a response. Header fields that HTTP does not permit are left out.
pub(super) fn hyper_response(response: Response) -> HyperResponse {
    // Three more are added here.
    let mut headers = HeaderMap::with_capacity(response.headers.len() + 3);
    headers.insert(header::SERVER, HeaderValue::from_static("vkog"));
    if let Some(cache_control) = response.cache_control {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache_control));
    }
    if let Some(Ok(tag)) = response.etag().as_deref().map(HeaderValue::from_bytes) {
        headers.insert(header::ETAG, tag);
    }
    for (name, value) in response.headers {
        if let (Some(name), Some(value)) = (field_name(&name), field_value(value)) {
            headers.append(name, value);
        }
    }
    let mut converted = hyper::Response::new(ResponseBody::new(response.body));
    *converted.status_mut() = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *converted.headers_mut() = headers;
    converted
}

fn field_name(name: &str) -> Option<HeaderName> {
    // The fields of nearly every response need no parsing.
    match name {
        "Content-Type" => Some(header::CONTENT_TYPE),
        "Accept-Ranges" => Some(header::ACCEPT_RANGES),
        "X-Content-Type-Options" => Some(header::X_CONTENT_TYPE_OPTIONS),
        "Content-Security-Policy" => Some(header::CONTENT_SECURITY_POLICY),
        _ => HeaderName::from_bytes(name.as_bytes()).ok(),
    }
}

fn field_value(value: Cow<'static, str>) -> Option<HeaderValue> {
    match value {
        Cow::Borrowed(value) => Some(HeaderValue::from_static(value)),
        Cow::Owned(value) => HeaderValue::try_from(value).ok(),
    }
}
