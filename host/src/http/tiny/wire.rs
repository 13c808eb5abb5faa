//! From tiny_http's requests to heads, and from replies to bytes.

use std::io::{self, Cursor, Read, Write};
use std::sync::Arc;
use std::time::SystemTime;

use httpdate::HttpDate;

use crate::http::{Head, Headers, Method, Reply};

/// A body of at most this length, in bytes, is sent in one piece with its head.
pub(super) const ONE_PIECE_MAX: usize = 16 * 1024;

/// What the form of a response depends on.
pub(super) struct Shape {
    pub(super) version: tiny_http::HTTPVersion,
    pub(super) is_head: bool,
    /// What `Connection` has to say, if anything.
    connection: Option<&'static [u8]>,
}

impl Shape {
    pub(super) fn of(request: &tiny_http::Request) -> Self {
        let version = request.http_version().clone();
        let sent = request.headers().iter().find(|header| header.field.equiv("Connection"));
        // As tiny_http itself decides whether the connection is kept.
        let has = |word: &str| sent.is_some_and(|header| header.value.as_str().to_ascii_lowercase().contains(word));
        let connection: Option<&[u8]> = if sent.is_none() {
            None
        } else if has("close") {
            Some(b"close")
        } else if version == (1, 0) && has("keep-alive") {
            Some(b"keep-alive")
        } else {
            None
        };
        Self { version, is_head: *request.method() == tiny_http::Method::Head, connection }
    }

    /// That of the last response of a connection.
    pub(super) fn last(request: &tiny_http::Request) -> Self {
        Self::of(request).closing()
    }

    /// The same for a response that ends its connection.
    pub(super) fn closing(self) -> Self {
        Self { connection: Some(b"close"), ..self }
    }

    /// Whether the client expects the connection to stay open, because it has asked for it.
    pub(super) fn keeps_alive(&self) -> bool {
        self.connection == Some(b"keep-alive")
    }
}

/// Whether tiny_http would read the rest of a body before a response can be sent, were the request only dropped.
pub(super) fn holds_a_body(request: &tiny_http::Request) -> bool {
    request.body_length().is_some_and(|length| length > 0)
}

/// A request's head.
///
/// # Errors
///
/// The reply to one that another reader could read differently.
pub(super) fn head(request: &tiny_http::Request) -> Result<Arc<Head>, Reply> {
    let method = match request.method() {
        tiny_http::Method::Get => Method::Get,
        tiny_http::Method::Head => Method::Head,
        tiny_http::Method::Post => Method::Post,
        tiny_http::Method::Put => Method::Put,
        tiny_http::Method::Delete => Method::Delete,
        tiny_http::Method::Options => Method::Options,
        _ => Method::Other,
    };
    let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
    let mut headers = Headers::default();
    for header in request.headers() {
        let (name, value) = (header.field.as_str().as_str(), header.value.as_str().as_bytes());
        // A line feed without a carriage return, above all: it hides the field that follows.
        if value.iter().any(is_control) || name.bytes().any(|byte| is_control(&byte)) {
            return Err(Reply::new(400, &b"Header field has a control character in it\n"[..])
                .with_header("Content-Type", "text/plain; charset=utf-8"));
        }
        headers.push(name, value);
    }
    let tiny_http::HTTPVersion(major, minor) = *request.http_version();
    let head = Head::new(method, request.url().to_owned(), headers, request.remote_addr().copied());
    Ok(Arc::new(head.with_version((major, minor))))
}

/// The head of a response, with what says where its body ends.
pub(super) fn head_of(reply: &Reply, shape: &Shape, framing: Option<(&str, &[u8])>) -> Vec<u8> {
    let reason = tiny_http::StatusCode(reply.status).default_reason_phrase();
    let date = HttpDate::from(SystemTime::now());
    let tag = reply.tag();
    let tag = tag.iter().map(|tag| ("ETag", tag.as_slice()));
    let fields = reply.headers.iter().map(|(name, value)| (&**name, value.as_bytes()));
    let connection = shape.connection.map(|connection| ("Connection", connection));
    let mut head = Vec::with_capacity(1024);
    // A vector takes whatever is written.
    let _ = write!(head, "HTTP/{} {} {reason}\r\nDate: {date}\r\nServer: vkog\r\n", shape.version, reply.status);
    for (name, value) in tag.chain(fields).chain(connection).chain(framing) {
        // A field that may not be sent is left out.
        if !value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Sends a reply. tiny_http's own way to send one keeps each field in two pieces of memory.
pub(super) fn send(shape: &Shape, out: &mut dyn Write, reply: &Reply) {
    let is_bodiless = matches!(reply.status, 204 | 304);
    let body = reply.body.as_ref();
    let mut length = itoa::Buffer::new();
    let length = ("Content-Length", length.format(body.len()).as_bytes());
    let mut bytes = head_of(reply, shape, (!is_bodiless).then_some(length));
    let body = if is_bodiless || shape.is_head { &[] } else { body };
    let sent = if body.len() <= ONE_PIECE_MAX {
        bytes.extend_from_slice(body);
        out.write_all(&bytes)
    } else {
        out.write_all(&bytes).and_then(|()| out.write_all(body))
    };
    if let Err(error) = sent.and_then(|()| out.flush()) {
        tracing::debug!("a response was not sent: {error}");
    }
}

/// Sends the last reply of a connection, then reads what of the body still comes.
pub(super) fn send_last(request: tiny_http::Request, reply: Reply) {
    let field = |name: &str, value: &[u8]| tiny_http::Header::from_bytes(name.as_bytes(), value).ok();
    let length = reply.body.as_ref().len();
    let unread = request.body_length().unwrap_or(0);
    // tiny_http reads the rest of a body into a buffer as long as the body says it is. Where there is no room for that,
    // which would end the process, the connection is abandoned.
    let has_room = Vec::<u8>::new().try_reserve_exact(unread).is_ok();
    // tiny_http decides on its own about Connection and, in a response that upgrades, about Content-Length. It does not look
    // into a field's value.
    let server = if has_room {
        "vkog\r\nConnection: close".to_owned()
    } else {
        format!("vkog\r\nConnection: close\r\nContent-Length: {length}")
    };
    let mut headers = Vec::with_capacity(reply.headers.len() + 2);
    headers.extend(field("Server", server.as_bytes()));
    headers.extend(reply.tag().and_then(|tag| field("ETag", &tag)));
    headers.extend(reply.headers.iter().filter_map(|(name, value)| field(name, value.as_bytes())));
    let status = tiny_http::StatusCode(reply.status);
    if !has_room {
        let response = tiny_http::Response::new(status, headers, io::empty(), Some(length), None);
        let mut stream = request.upgrade("none", response);
        // The client may have left.
        let _ = stream.write_all(reply.body.as_ref()).and_then(|()| stream.flush());
        // What is forgotten here is a thread and two file descriptors, as long as the process runs.
        std::mem::forget(stream);
        return;
    }
    let body: Box<dyn Read> = Box::new(Cursor::new(reply.body));
    let response =
        tiny_http::Response::new(status, headers, body, Some(length), None).with_chunked_threshold(usize::MAX);
    if let Err(error) = request.respond(response) {
        tracing::debug!("a response was not sent: {error}");
    }
}
