//! A response, and what delivers it.

use std::borrow::Cow;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use smallvec::SmallVec;

/// A stream sends a heartbeat after this time without a chunk: clients and proxies may take a longer silence for a lost
/// connection.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);

/// The body of a response.
pub enum Body {
    /// All bytes, which others may share.
    Whole(Bytes),
    /// Chunks, whose number is not known.
    Stream(Box<dyn Stream>),
}

impl AsRef<[u8]> for Body {
    /// Returns the bytes; none for a stream.
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Stream(_) => &[],
        }
    }
}

/// A response body that is produced chunk by chunk. An engine polls for a chunk only after the client has read the previous
/// one.
pub trait Stream: Send {
    /// Returns the next chunk, which is not empty, or `None` at the end. If there is no chunk yet, the waker is woken when it
    /// is worth polling again.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>>;

    /// Returns what is sent after each [`HEARTBEAT_INTERVAL`] without a chunk. An empty one sends nothing; `None` ends the
    /// stream.
    fn heartbeat(&mut self) -> Option<Bytes>;

    /// Whether the stream has ended before its data. The client must not take it for a complete one, so an engine ends the
    /// connection, or over HTTP/2 resets the request.
    fn is_broken(&self) -> bool {
        false
    }

    /// Whether the stream ends on its own, unlike a stream of changes. A stop of the server waits for finite streams.
    fn is_finite(&self) -> bool {
        false
    }
}

/// A response to a client.
pub struct Response {
    /// The status.
    pub status: u16,
    /// The revision of the entry that the response is about, sent as `ETag`.
    pub revision: Option<u64>,
    /// The value of `Cache-Control`. By default nothing stores a response.
    pub cache_control: Option<&'static str>,
    /// The other header fields, without those of the framing.
    pub headers: SmallVec<[(Cow<'static, str>, Cow<'static, str>); 4]>,
    /// The body. A response to HEAD sends its length only.
    pub body: Body,
}

impl Response {
    /// Creates a response that caches do not store, without other header fields.
    #[inline]
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        let (revision, cache_control, headers) = (None, Some("no-store"), SmallVec::new());
        Self { status, revision, cache_control, headers, body: Body::Whole(body.into()) }
    }

    /// Creates the response to a request that was lost to a panic.
    pub fn internal_error() -> Self {
        Self::new(500, &b"Internal error; see the log of the server\n"[..])
            .with_header("Content-Type", "text/plain; charset=utf-8")
    }

    /// Sets the revision.
    pub fn with_revision(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    /// Sets the value of `Cache-Control`. `None` sends no such field.
    pub fn with_cache_control(self, cache_control: impl Into<Option<&'static str>>) -> Self {
        Self { cache_control: cache_control.into(), ..self }
    }

    /// Returns the entity tag (RFC 9110, section 8.8.3).
    pub fn etag(&self) -> Option<SmallVec<[u8; 22]>> {
        self.revision.map(|revision| {
            let mut tag = SmallVec::new();
            for part in ["\"", itoa::Buffer::new().format(revision), "\""] {
                tag.extend_from_slice(part.as_bytes());
            }
            tag
        })
    }

    /// Adds the fields that keep a browser from running the body: it becomes a document without an origin, and its type is
    /// not guessed.
    pub fn inert(mut self) -> Self {
        self.make_inert();
        self
    }

    /// Adds the fields of [`inert`](Self::inert).
    pub fn make_inert(&mut self) {
        self.add_header("X-Content-Type-Options", "nosniff");
        self.add_header("Content-Security-Policy", "sandbox");
    }

    /// Adds the header fields of plugins. A `Cache-Control` among them replaces that of the server.
    pub fn extend(&mut self, fields: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in fields {
            if name.eq_ignore_ascii_case("cache-control") {
                self.cache_control = None;
            }
            self.headers.push((name.into(), value.into()));
        }
    }

    /// Adds a header field, without the copies of the response that [`with_header`](Self::with_header) makes.
    #[inline]
    pub fn add_header(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) {
        self.headers.push((name.into(), value.into()));
    }

    /// Adds a header field.
    pub fn with_header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.add_header(name, value);
        self
    }
}

/// Returns the time for the field `Date`. There is none while the clock shows a time before 1970, as that of a board without a
/// battery may: HTTP permits such a server to send none (RFC 9110, section 6.6.1), and its libraries know no such time.
pub(super) fn date(now: SystemTime) -> Option<SystemTime> {
    (now >= UNIX_EPOCH).then_some(now)
}

/// Delivers the response to one request, once, from any thread. A responder that is dropped delivers a 500, so that no
/// client waits for a request that was lost to a panic.
pub struct Responder(Option<Box<dyn FnOnce(Response) + Send>>);

impl Responder {
    /// Creates a responder that passes the response to a function.
    pub fn new(send: impl FnOnce(Response) + Send + 'static) -> Self {
        Self(Some(Box::new(send)))
    }

    /// Delivers the response.
    pub fn respond(mut self, response: Response) {
        if let Some(send) = self.0.take() {
            send(response);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(send) = self.0.take() {
            send(Response::internal_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_responder_delivers_a_500() {
        let (sender, receiver) = std::sync::mpsc::channel();
        drop(Responder::new(move |response| sender.send(response.status).unwrap_or_default()));
        assert_eq!(receiver.recv(), Ok(500));
    }

    #[test]
    fn a_plugins_cache_control_replaces_that_of_the_server() {
        let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut response = Response::new(200, &b""[..]);
        response.extend([field("X-Other", "a")]);
        assert_eq!(response.cache_control, Some("no-store"));
        response.extend([field("cache-control", "max-age=60")]);
        assert_eq!((response.cache_control, response.headers.len()), (None, 2));
    }

    #[test]
    fn a_clock_before_1970_leaves_out_the_date() {
        assert_eq!(date(UNIX_EPOCH), Some(UNIX_EPOCH));
        assert_eq!(date(UNIX_EPOCH - Duration::from_secs(1)), None);
    }
}
