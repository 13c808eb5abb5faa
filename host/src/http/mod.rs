//! What every HTTP engine speaks: a request's head, a reply, and whoever waits for it. Knows no route and no store.

mod body;
mod budget;
mod hyper;
mod tiny;
mod tls;

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

pub use self::body::Intake;
pub use self::budget::{Budget, Exhausted, Share, default_limit};
use self::hyper::Hyper;
use self::tiny::Tiny;
pub use self::tls::{Certificate, Tls, TlsError, TlsFiles};

/// A listening socket.
pub enum Bound {
    /// `host:port`
    Tcp(TcpListener),
    /// `unix:PATH`
    #[cfg(unix)]
    Unix(std::os::unix::net::UnixListener),
}

/// How many connections there are and were. Only hyper's engine knows.
#[derive(Debug, Default)]
pub struct Connections {
    /// Those that were accepted.
    pub accepted: AtomicU64,
    /// Those of them that have ended.
    pub ended: AtomicU64,
    /// Those that were one too many.
    pub refused: AtomicU64,
}

/// A running engine.
pub enum Engine {
    /// On tiny_http.
    Tiny(Tiny),
    /// On hyper.
    Hyper(Hyper),
}

impl Engine {
    /// Serves on a listening socket with tiny_http, until [`stop`](Self::stop). The thread that calls this is scheduled as
    /// batch from then on.
    ///
    /// # Errors
    ///
    /// The socket cannot be listened on.
    pub fn tiny<S: Service>(listener: Bound, service: Arc<S>) -> io::Result<Self> {
        Tiny::start(listener, service).map(Self::Tiny)
    }

    /// The same with hyper, and with TLS where there is a certificate.
    ///
    /// # Errors
    ///
    /// The socket cannot be listened on.
    pub fn hyper<S: Service>(
        listener: Bound,
        tls: Option<Arc<Tls>>,
        connections: Arc<Connections>,
        service: Arc<S>,
    ) -> io::Result<Self> {
        Hyper::start(listener, tls, connections, service).map(Self::Hyper)
    }

    /// Takes no further request, waits for those under way, and says whether all of them were answered in time.
    pub fn stop(self, patience: Duration) -> bool {
        match self {
            Self::Tiny(engine) => engine.stop(patience),
            Self::Hyper(engine) => engine.stop(patience),
        }
    }
}

/// A request's method.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
    /// Any other.
    Other,
}

/// The header fields of a request, one after the other in one buffer.
#[derive(Debug, Default)]
pub struct Headers {
    text: Vec<u8>,
    /// Where each name and each value ends. Most requests have no more of them than fit here.
    ends: SmallVec<[(usize, usize); 8]>,
}

impl Headers {
    /// No field yet, and room for as many with so many bytes.
    pub fn with_capacity(bytes: usize, fields: usize) -> Self {
        Self { text: Vec::with_capacity(bytes), ends: SmallVec::with_capacity(fields) }
    }

    /// Adds a field.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        self.text.extend_from_slice(name.as_bytes());
        let name_end = self.text.len();
        self.text.extend_from_slice(value);
        self.ends.push((name_end, self.text.len()));
    }

    /// The field at this position.
    pub fn at(&self, index: usize) -> Option<(&str, &[u8])> {
        let &(name_end, end) = self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1].1 };
        Some((str::from_utf8(&self.text[start..name_end]).unwrap_or_default(), &self.text[name_end..end]))
    }

    /// All fields, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        (0..).map_while(|index| self.at(index))
    }

    /// All values of a field, whatever the case of its name.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        // Compared as bytes: mostly it is about a field that a request does not have.
        let mut start = 0;
        self.ends.iter().filter_map(move |&(name_end, end)| {
            let (other, value) = (&self.text[start..name_end], &self.text[name_end..end]);
            start = end;
            other.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
        })
    }

    /// The first value of a field, whatever the case of its name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }
}

/// All of a request but its body.
#[derive(Debug)]
pub struct Head {
    /// The method.
    pub method: Method,
    /// The target as it was sent: path and query, or an absolute URL.
    pub target: String,
    /// The header fields.
    pub headers: Headers,
    /// The version of HTTP; 1.0 unless an engine says otherwise.
    pub version: (u8, u8),
    /// The peer of the connection, which may be a proxy; none on a Unix socket.
    pub client: Option<SocketAddr>,
    /// The client as text, made when it is first asked for.
    client_text: OnceLock<String>,
    /// An id that was made for it.
    made_id: OnceLock<String>,
}

impl Head {
    /// A request's head.
    pub fn new(method: Method, target: String, headers: Headers, client: Option<SocketAddr>) -> Self {
        let (client_text, made_id) = (OnceLock::new(), OnceLock::new());
        Self { method, target, headers, version: (1, 0), client, client_text, made_id }
    }

    /// The same, of another version of HTTP.
    pub fn with_version(self, version: (u8, u8)) -> Self {
        Self { version, ..self }
    }

    /// Names the client that a proxy forwards the request for, unless logs or plugins were given another name already.
    pub fn name_client(&self, text: String) {
        let _ = self.client_text.set(text);
    }

    /// The client as `ip:port`; empty on a Unix socket. Behind a trusted proxy, the client that the proxy names.
    pub fn client_text(&self) -> &str {
        self.client_text.get_or_init(|| self.client.map(|client| client.to_string()).unwrap_or_default())
    }

    /// The authority of a target in absolute form (RFC 9112, section 3.2.2).
    pub fn authority(&self) -> Option<&str> {
        split_authority(&self.target).0
    }

    /// The path, without the query, which may hold secrets.
    pub fn path(&self) -> &str {
        let local = split_authority(&self.target).1;
        let path = local.split('?').next().unwrap_or_default();
        if path.is_empty() && !self.target.is_empty() { "/" } else { path }
    }

    /// The query; empty if there is none.
    pub fn query(&self) -> &str {
        split_authority(&self.target).1.split_once('?').map_or("", |(_, query)| query)
    }

    /// What the log calls the request: what the client calls it, if that is a name, or one made when it is first asked for.
    pub fn id(&self) -> &str {
        self.sent_id().unwrap_or_else(|| self.made_id.get_or_init(make_id))
    }

    /// The same, if anybody knows it by now.
    pub fn known_id(&self) -> Option<&str> {
        self.sent_id().or_else(|| self.made_id.get().map(String::as_str))
    }

    fn sent_id(&self) -> Option<&str> {
        let id = self.headers.get("x-request-id")?;
        let is_name = (1..=REQUEST_ID_MAX).contains(&id.len())
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(byte));
        if is_name { str::from_utf8(id).ok() } else { None }
    }

    /// The length of the body, by the rules of RFC 9112, section 6.3, made stricter: framing that two readers could
    /// interpret differently is refused.
    ///
    /// # Errors
    ///
    /// This server does not accept the framing, and the bytes that follow are of no known request: the connection ends.
    pub fn body_len(&self) -> Result<BodyLength, BodyFault> {
        let mut codings = self.headers.all("transfer-encoding");
        let mut lengths = self.headers.all("content-length");
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(BodyLength::Known(0)),
            (Some(_), Some(_)) => Err(BodyFault::TwoLengths),
            (Some(coding), None) => {
                let is_chunked = coding.eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
                if is_chunked { Ok(BodyLength::Chunked) } else { Err(BodyFault::Encoded) }
            }
            (None, Some(length)) => {
                if lengths.next().is_some() || length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
                    return Err(BodyFault::BadLength);
                }
                let length = str::from_utf8(length).ok().and_then(|length| length.parse().ok());
                // Nobody could find the end of a body whose length has more digits than a number has room for.
                length.map(BodyLength::Known).ok_or(BodyFault::TooLarge { declared: None })
            }
        }
    }
}

/// Splits a request target into the authority, if it is an absolute URL, and the rest.
fn split_authority(target: &str) -> (Option<&str>, &str) {
    if target.starts_with('/') {
        return (None, target);
    }
    let Some((_, rest)) = target.split_once("://") else { return (None, target) };
    let (authority, local) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    (Some(authority), local)
}

/// The longest name that a client may give a request, in bytes.
const REQUEST_ID_MAX: usize = 128;

/// An id that no other request of this process has, and hardly one of another.
fn make_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    format!("{:012x}-{:x}", *PROCESS >> 16, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The length of a request's body, as its head declares it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// This many bytes; 0 for no body.
    Known(u64),
    /// The body comes in chunks, and the last one ends it.
    Chunked,
}

/// What is wrong with a body.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// It comes with a Transfer-Encoding other than `chunked`.
    Encoded,
    /// Content-Length is no number, or there are two.
    BadLength,
    /// There are both Content-Length and Transfer-Encoding.
    TwoLengths,
    /// It is longer than the limit.
    TooLarge {
        /// The declared length in bytes, if it is known.
        declared: Option<u64>,
    },
    /// It ended early.
    CutOff {
        /// The number of bytes that came.
        came: u64,
        /// The declared length; none if it came in chunks.
        declared: Option<u64>,
    },
    /// Its chunks are malformed.
    BadChunk,
    /// The memory budget has no room for it.
    NoMemory,
    /// The client sends it too slowly.
    TooSlow,
}

/// The body of a reply.
pub enum Body {
    /// All of it, which somebody else may hold as well.
    Whole(Bytes),
    /// Pieces, of which nobody knows yet how many there will be.
    Stream(Box<dyn Stream>),
}

impl AsRef<[u8]> for Body {
    /// What is there. Of a stream that is nothing.
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Whole(bytes) => bytes,
            Self::Stream(_) => &[],
        }
    }
}

/// A body that comes piece by piece. It is asked for a piece only when the client has taken what came before.
pub trait Stream: Send {
    /// The next piece, which is not empty; none at the end. Where there is none yet, the waker is woken when it is worth
    /// to ask again.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>>;

    /// What is sent after a [`SILENCE`]; none ends the stream.
    fn silent(&mut self) -> Option<Bytes>;

    /// Whether the stream ends by itself, as one of changes does not: then a stop waits for it.
    fn ends(&self) -> bool {
        false
    }
}

/// How long a stream says nothing at the most: a client, or what stands between, may take a longer silence for an end.
pub const SILENCE: Duration = Duration::from_secs(10);

/// What a client gets.
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The revision of what it is about, which `ETag` tells.
    pub revision: Option<u64>,
    /// The other header fields, without those of the framing.
    pub headers: SmallVec<[(Cow<'static, str>, Cow<'static, str>); 4]>,
    /// The body. To a HEAD it is not sent, but its length is.
    pub body: Body,
}

impl Reply {
    /// A reply without header fields.
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, revision: None, headers: SmallVec::new(), body: Body::Whole(body.into()) }
    }

    /// The reply to a request that was lost to a panic.
    pub fn internal_error() -> Self {
        Self::new(500, &b"Internal error; the log says more\n"[..])
            .with_header("Content-Type", "text/plain; charset=utf-8")
    }

    /// The same, about something of this revision.
    pub fn of_revision(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }

    /// Its entity tag (RFC 9110, section 8.8.3).
    pub fn tag(&self) -> Option<SmallVec<[u8; 22]>> {
        self.revision.map(|revision| {
            let mut tag = SmallVec::new();
            for part in ["\"", itoa::Buffer::new().format(revision), "\""] {
                tag.extend_from_slice(part.as_bytes());
            }
            tag
        })
    }

    /// The same so that a browser runs nothing of it, whoever wrote it: as a document of no origin, and of the type that it
    /// has.
    pub fn inert(self) -> Self {
        self.with_header("X-Content-Type-Options", "nosniff").with_header("Content-Security-Policy", "sandbox")
    }

    /// The same with a field more.
    pub fn with_header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// Answers one request, once, from any thread. Dropped without an answer it answers 500: a client never waits for
/// a request that was lost to a panic.
pub struct Responder(Option<Box<dyn FnOnce(Reply) + Send>>);

impl Responder {
    /// A responder that hands the reply to a function.
    pub fn new(send: impl FnOnce(Reply) + Send + 'static) -> Self {
        Self(Some(Box::new(send)))
    }

    /// Answers.
    pub fn reply(mut self, reply: Reply) {
        if let Some(send) = self.0.take() {
            send(reply);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(send) = self.0.take() {
            send(Reply::internal_error());
        }
    }
}

/// What an engine serves.
pub trait Service: Send + Sync + 'static {
    /// A request whose head was accepted.
    type Admitted: Send;

    /// Looks at a request's head, before its body is read.
    ///
    /// # Errors
    ///
    /// The reply to a request whose body need not be read.
    fn admit(&self, head: Arc<Head>) -> Result<Self::Admitted, Reply>;

    /// The memory budget that bodies count against.
    fn budget(&self) -> &'static Budget;

    /// The longest body of a request that is read, in bytes.
    fn body_max(&self, admitted: &Self::Admitted) -> u64;

    /// The reply to a request whose body is not accepted.
    fn refuse_body(&self, admitted: Self::Admitted, fault: BodyFault) -> Reply;

    /// Does what a request asks for.
    fn serve(&self, admitted: Self::Admitted, body: Vec<u8>, responder: Responder);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> Head {
        let mut headers = Headers::default();
        fields.iter().for_each(|(name, value)| headers.push(name, value.as_bytes()));
        Head::new(Method::Put, "/k/a".to_owned(), headers, None)
    }

    #[test]
    fn fields_are_found_whatever_their_case_and_in_order() {
        let head = head(&[("Accept", "a"), ("X-Two", "1"), ("x-two", "2")]);
        assert_eq!(head.headers.get("ACCEPT"), Some(&b"a"[..]));
        assert_eq!(head.headers.all("X-TWO").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(head.headers.at(1), Some(("X-Two", &b"1"[..])));
        assert_eq!(head.headers.at(3), None);
    }

    #[test]
    fn a_target_is_split_into_authority_path_and_query() {
        for (target, authority, path, query) in [
            ("/k/a?b=1?2", None, "/k/a", "b=1?2"),
            ("/k/http://a", None, "/k/http://a", ""),
            ("http://127.0.0.1:3110/k/a?b", Some("127.0.0.1:3110"), "/k/a", "b"),
            ("http://a", Some("a"), "/", ""),
            ("http://a?/k/a", Some("a"), "/", "/k/a"),
            ("http://a@b/", Some("a@b"), "/", ""),
            ("*", None, "*", ""),
        ] {
            let head = Head::new(Method::Get, target.to_owned(), Headers::default(), None);
            assert_eq!((head.authority(), head.path(), head.query()), (authority, path, query), "{target}");
        }
    }

    #[test]
    fn a_body_that_two_readers_could_read_differently_is_refused() {
        assert_eq!(head(&[]).body_len(), Ok(BodyLength::Known(0)));
        assert_eq!(head(&[("Content-Length", "12")]).body_len(), Ok(BodyLength::Known(12)));
        let beyond = [("Content-Length", "18446744073709551616")];
        assert_eq!(head(&beyond).body_len(), Err(BodyFault::TooLarge { declared: None }));
        for bad in ["-1", "+1", "", "1 2", "1,1", "0x10", "one"] {
            assert_eq!(head(&[("Content-Length", bad)]).body_len(), Err(BodyFault::BadLength), "{bad}");
        }
        let twice = [("Content-Length", "1"), ("content-length", "1")];
        assert_eq!(head(&twice).body_len(), Err(BodyFault::BadLength));
        let both = [("Content-Length", "1"), ("Transfer-Encoding", "chunked")];
        assert_eq!(head(&both).body_len(), Err(BodyFault::TwoLengths));
    }

    #[test]
    fn the_only_transfer_coding_is_chunked_once() {
        for good in ["chunked", "Chunked", "CHUNKED"] {
            assert_eq!(head(&[("Transfer-Encoding", good)]).body_len(), Ok(BodyLength::Chunked), "{good}");
        }
        for bad in ["", "gzip", "gzip, chunked", "chunked, chunked", "chunked;q=1", "xchunked", "identity"] {
            assert_eq!(head(&[("Transfer-Encoding", bad)]).body_len(), Err(BodyFault::Encoded), "{bad}");
        }
        let twice = [("Transfer-Encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(head(&twice).body_len(), Err(BodyFault::Encoded));
    }

    #[test]
    fn a_request_has_the_id_that_was_sent_if_it_is_one_and_else_one_of_its_own() {
        for good in ["7", "01JD-a.b_c:d", &"x".repeat(128)] {
            let head = head(&[("X-Request-ID", good)]);
            assert_eq!((head.known_id(), head.id()), (Some(good), good));
        }
        for bad in ["", "a b", "a\"", "\u{e9}", "a\n", &"x".repeat(129)] {
            let (first, second) = (head(&[("X-Request-Id", bad)]), head(&[]));
            assert_eq!(first.known_id(), None, "{bad}");
            assert_ne!(first.id(), second.id());
            assert_eq!(first.known_id(), Some(first.id()));
        }
    }

    #[test]
    fn a_responder_that_is_lost_answers_500() {
        let (sender, receiver) = std::sync::mpsc::channel();
        drop(Responder::new(move |reply| sender.send(reply.status).unwrap_or_default()));
        assert_eq!(receiver.recv(), Ok(500));
    }
}
