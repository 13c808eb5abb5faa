//! Converts tiny_http's requests to request heads, and responses to bytes.

use std::cell::RefCell;
use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use httpdate::HttpDate;

use crate::http::response::date;
use crate::http::{Headers, Method, RequestHead, Response};

/// Maximum length of a body that is sent in one write with its head, in bytes.
pub(super) const ONE_WRITE_MAX: usize = 16 * 1024;

/// The properties of a request that determine the form of its response.
pub(super) struct Shape {
    pub(super) version: tiny_http::HTTPVersion,
    pub(super) is_head: bool,
    /// The value of `Connection`, if the response has one.
    connection: Option<&'static [u8]>,
}

impl Shape {
    pub(super) fn of(request: &tiny_http::Request) -> Self {
        let version = request.http_version().clone();
        let sent = request.headers().iter().find(|header| header.field.equiv("Connection"));
        // tiny_http decides in the same way whether it keeps the connection.
        let has = |word: &str| sent.is_some_and(|header| header.value.as_str().to_ascii_lowercase().contains(word));
        let connection: Option<&[u8]> = if sent.is_none() {
            None
        } else if has("close") || has("upgrade") {
            Some(b"close")
        } else if version == (1, 0) && has("keep-alive") {
            Some(b"keep-alive")
        } else {
            None
        };
        Self { version, is_head: *request.method() == tiny_http::Method::Head, connection }
    }

    /// The form of the last response of a connection.
    pub(super) fn last(request: &tiny_http::Request) -> Self {
        Self::of(request).closing()
    }

    /// The form of the same response if it ends its connection.
    pub(super) fn closing(self) -> Self {
        Self { connection: Some(b"close"), ..self }
    }

    /// Whether the client expects the connection to stay open, because it has requested it.
    pub(super) fn keeps_alive(&self) -> bool {
        self.connection == Some(b"keep-alive")
    }
}

/// Whether tiny_http would read the rest of a body before it can send a response, if the request were only dropped.
pub(super) fn holds_a_body(request: &tiny_http::Request) -> bool {
    request.body_length().is_some_and(|length| length > 0)
}

/// Converts a request's head.
///
/// # Errors
///
/// The response to a head that is ambiguous.
pub(super) fn head(request: &tiny_http::Request) -> Result<Arc<RequestHead>, Response> {
    let method = match request.method() {
        tiny_http::Method::Get => Method::Get,
        tiny_http::Method::Head => Method::Head,
        tiny_http::Method::Post => Method::Post,
        tiny_http::Method::Put => Method::Put,
        tiny_http::Method::Patch => Method::Patch,
        tiny_http::Method::Delete => Method::Delete,
        tiny_http::Method::Options => Method::Options,
        _ => Method::Other,
    };
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    let mut headers = Headers::default();
    for header in request.headers() {
        let (name, value) = (header.field.as_str().as_str(), header.value.as_str().as_bytes());
        // Above all a line feed without a carriage return, which hides the field that follows.
        if value.iter().any(is_control) || name.bytes().any(|byte| is_control(&byte)) {
            return Err(Response::new(400, &b"Header field has a control character in it\n"[..])
                .with_header("Content-Type", "text/plain; charset=utf-8"));
        }
        headers.push(name, value);
    }
    let tiny_http::HTTPVersion(major, minor) = *request.http_version();
    let head = RequestHead::new(method, request.url().to_owned(), headers, request.remote_addr().copied());
    Ok(Arc::new(head.with_version((major, minor))))
}

/// Encodes the head of a response, with the field that frames its body.
pub(super) fn head_of(response: &Response, shape: &Shape, framing: Option<(&str, &[u8])>) -> Vec<u8> {
    let reason = tiny_http::StatusCode(response.status).default_reason_phrase();
    let tag = response.etag();
    let tag = tag.iter().map(|tag| ("ETag", tag.as_slice()));
    let cache_control = response.cache_control.map(|value| ("Cache-Control", value.as_bytes()));
    let fields = response.headers.iter().map(|(name, value)| (&**name, value.as_bytes()));
    let connection = shape.connection.map(|connection| ("Connection", connection));
    let mut head = Vec::with_capacity(1024);
    // A write to a vector does not fail.
    let _ = write!(head, "HTTP/{} {} {reason}\r\n", shape.version, response.status);
    head.extend_from_slice(b"Server: vkog\r\n");
    write_date(&mut head);
    for (name, value) in tag.chain(cache_control).chain(fields).chain(connection).chain(framing) {
        // Fields that HTTP does not permit are left out.
        if !value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Writes the field `Date`, which a thread formats once a second.
fn write_date(head: &mut Vec<u8>) {
    thread_local! {
        static FORMATTED: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let Some(date) = date(SystemTime::now()) else { return };
    let second = date.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    FORMATTED.with_borrow_mut(|(formatted, field)| {
        if *formatted != second || field.is_empty() {
            *formatted = second;
            *field = format!("Date: {}\r\n", HttpDate::from(date));
        }
        head.extend_from_slice(field.as_bytes());
    });
}

/// Sends a response. tiny_http's own function would allocate twice for each field.
pub(super) fn send(shape: &Shape, out: &mut dyn Write, response: &Response) {
    let is_bodiless = matches!(response.status, 204 | 304);
    let body = response.body.as_ref();
    let mut length = itoa::Buffer::new();
    let length = ("Content-Length", length.format(body.len()).as_bytes());
    let mut bytes = head_of(response, shape, (!is_bodiless).then_some(length));
    let body = if is_bodiless || shape.is_head { &[] } else { body };
    let sent = if body.len() <= ONE_WRITE_MAX {
        bytes.extend_from_slice(body);
        out.write_all(&bytes)
    } else {
        out.write_all(&bytes).and_then(|()| out.write_all(body))
    };
    if let Err(error) = sent.and_then(|()| out.flush()) {
        tracing::debug!("cannot send a response: {error}");
    }
}

/// Sends the last response of a connection, then reads the rest of the request body.
pub(super) fn send_last(request: tiny_http::Request, response: Response) {
    let field = |name: &str, value: &[u8]| tiny_http::Header::from_bytes(name.as_bytes(), value).ok();
    let length = response.body.as_ref().len();
    let unread = request.body_length().unwrap_or(0);
    // tiny_http reads the rest of a body into a buffer of the declared length. Where there is no memory for that, which would
    // abort the process, the connection is abandoned.
    let has_room = Vec::<u8>::new().try_reserve_exact(unread).is_ok();
    // tiny_http chooses Connection itself and, in a response that upgrades, Content-Length. It does not check the values of
    // fields.
    let server = if has_room {
        "vkog\r\nConnection: close".to_owned()
    } else {
        format!("vkog\r\nConnection: close\r\nContent-Length: {length}")
    };
    let mut headers = Vec::with_capacity(response.headers.len() + 3);
    headers.extend(field("Server", server.as_bytes()));
    headers.extend(response.etag().and_then(|tag| field("ETag", &tag)));
    headers.extend(response.cache_control.and_then(|value| field("Cache-Control", value.as_bytes())));
    headers.extend(response.headers.iter().filter_map(|(name, value)| field(name, value.as_bytes())));
    let status = tiny_http::StatusCode(response.status);
    if !has_room {
        let head = tiny_http::Response::new(status, headers, io::empty(), Some(length), None);
        let mut stream = request.upgrade("none", head);
        // The client may have left.
        let _ = stream.write_all(response.body.as_ref()).and_then(|()| stream.flush());
        // This leaks a thread and two file descriptors until the process ends.
        std::mem::forget(stream);
        return;
    }
    let body: Box<dyn Read> = Box::new(Cursor::new(response.body));
    let sent = tiny_http::Response::new(status, headers, body, Some(length), None).with_chunked_threshold(usize::MAX);
    if let Err(error) = request.respond(sent) {
        tracing::debug!("cannot send a response: {error}");
    }
}
