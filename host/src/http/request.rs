//! The head of a request, and how long its body is.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};

use smallvec::SmallVec;

use super::tls::CertificateNames;

/// Maximum length of a request id that a client may choose, in bytes.
const REQUEST_ID_MAX: usize = 128;

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
    /// PATCH
    Patch,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
    /// Any other method.
    Other,
}

impl Method {
    /// Returns the method in capital letters; `other` for [`Other`](Self::Other).
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other => "other",
        }
    }
}

/// The header fields of a request, one after the other in one buffer.
#[derive(Debug, Default)]
pub struct Headers {
    text: Vec<u8>,
    /// Where each name and each value ends. The inline capacity suffices for most requests.
    ends: SmallVec<[(usize, usize); 8]>,
}

impl Headers {
    /// Creates an empty list with room for this number of bytes and fields.
    pub fn with_capacity(bytes: usize, fields: usize) -> Self {
        Self { text: Vec::with_capacity(bytes), ends: SmallVec::with_capacity(fields) }
    }

    /// Appends a field.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        self.text.extend_from_slice(name.as_bytes());
        let name_end = self.text.len();
        self.text.extend_from_slice(value);
        self.ends.push((name_end, self.text.len()));
    }

    /// Returns the name and the value of the field at this position.
    pub fn at(&self, index: usize) -> Option<(&str, &[u8])> {
        let &(name_end, end) = self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1].1 };
        Some((str::from_utf8(&self.text[start..name_end]).unwrap_or_default(), &self.text[name_end..end]))
    }

    /// Returns all fields in the order they were sent.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        (0..).map_while(|index| self.at(index))
    }

    /// Returns all values of a field. Names are compared without regard to case.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        // Compared as bytes: usually the request does not have the field.
        let mut start = 0;
        self.ends.iter().filter_map(move |&(name_end, end)| {
            let (other, value) = (&self.text[start..name_end], &self.text[name_end..end]);
            start = end;
            other.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
        })
    }

    /// Returns the first value of a field. Names are compared without regard to case.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }
}

/// A request without its body.
#[derive(Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The target as it was sent: path and query, or an absolute URL. hyper's engine leaves only the `#` of a fragment.
    pub target: String,
    /// The header fields.
    pub headers: Headers,
    /// The version of HTTP, as major and minor number; 1.0 unless set.
    pub version: (u8, u8),
    /// The peer of the connection, which may be a proxy; none on a Unix socket.
    pub client: Option<SocketAddr>,
    /// The names in the client's certificate, if it has one that the server has verified.
    pub certificate: Option<CertificateNames>,
    /// The client as text, formatted on first use.
    client_text: OnceLock<String>,
    /// The name of the access token, once it was recognised.
    token: OnceLock<&'static str>,
    /// The prefix of all keys of the request, once a plugin has set it.
    key_prefix: OnceLock<Box<str>>,
    /// An id that the server has generated, on first use.
    generated_id: OnceLock<String>,
}

impl RequestHead {
    /// Creates a request head.
    pub fn new(method: Method, target: String, headers: Headers, client: Option<SocketAddr>) -> Self {
        Self {
            method,
            target,
            headers,
            version: (1, 0),
            client,
            certificate: None,
            client_text: OnceLock::new(),
            token: OnceLock::new(),
            key_prefix: OnceLock::new(),
            generated_id: OnceLock::new(),
        }
    }

    /// Sets the names in the client's certificate.
    pub fn with_certificate(self, certificate: Option<CertificateNames>) -> Self {
        Self { certificate, ..self }
    }

    /// Sets the version of HTTP.
    pub fn with_version(self, version: (u8, u8)) -> Self {
        Self { version, ..self }
    }

    /// Sets the client that a proxy forwards the request for. Has no effect once the client has been read.
    pub fn name_client(&self, text: String) {
        let _ = self.client_text.set(text);
    }

    /// Returns the client as `ip:port`; empty on a Unix socket. Behind a trusted proxy, the client that the proxy names.
    pub fn client_text(&self) -> &str {
        self.client_text.get_or_init(|| self.client.map(|client| client.to_string()).unwrap_or_default())
    }

    /// Sets the name of the access token with which the client authenticates itself. A second call has no effect.
    pub fn set_token(&self, name: &'static str) {
        let _ = self.token.set(name);
    }

    /// Returns the name of the access token; empty if there is none, or before it was recognised.
    pub fn token(&self) -> &'static str {
        self.token.get().copied().unwrap_or_default()
    }

    /// Sets the prefix of all keys of the request. A second call has no effect.
    pub fn set_key_prefix(&self, prefix: String) {
        let _ = self.key_prefix.set(prefix.into());
    }

    /// Returns the prefix of all keys of the request, which its client does not see; usually empty.
    pub fn key_prefix(&self) -> &str {
        self.key_prefix.get().map_or("", |prefix| prefix)
    }

    /// Whether the target is an absolute URL of another scheme than `http` and `https`.
    pub fn has_foreign_scheme(&self) -> bool {
        let scheme = (!self.target.starts_with('/')).then(|| self.target.split_once("://")).flatten();
        scheme.is_some_and(|(scheme, _)| !["http", "https"].iter().any(|own| scheme.eq_ignore_ascii_case(own)))
    }

    /// Returns the authority of a target in absolute form (RFC 9112, section 3.2.2).
    pub fn authority(&self) -> Option<&str> {
        split_authority(&self.target).0
    }

    /// Returns the path without the query.
    pub fn path(&self) -> &str {
        self.path_and_query().0
    }

    /// Returns the path, and the query, which is empty if there is none.
    pub fn path_and_query(&self) -> (&str, &str) {
        let local = split_authority(&self.target).1;
        let (path, query) = local.split_once('?').unwrap_or((local, ""));
        (if path.is_empty() && !self.target.is_empty() { "/" } else { path }, query)
    }

    /// Returns the request id: the client's `X-Request-Id` if it is valid, or else one that is generated on first use.
    pub fn id(&self) -> &str {
        self.sent_id().unwrap_or_else(|| self.generated_id.get_or_init(generate_id))
    }

    /// Returns the request id unless it would have to be generated.
    pub fn known_id(&self) -> Option<&str> {
        self.sent_id().or_else(|| self.generated_id.get().map(String::as_str))
    }

    fn sent_id(&self) -> Option<&str> {
        let id = self.headers.get("x-request-id")?;
        let is_valid = (1..=REQUEST_ID_MAX).contains(&id.len())
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(byte));
        if is_valid { str::from_utf8(id).ok() } else { None }
    }

    /// Returns the length of the body by the rules of RFC 9112, section 6.3, made stricter: ambiguous framing is refused.
    ///
    /// # Errors
    ///
    /// The framing is not accepted. The connection has to end, because the start of the next request is unknown.
    pub fn body_len(&self) -> Result<BodyLength, BodyFault> {
        let mut codings = self.headers.all("transfer-encoding");
        let mut lengths = self.headers.all("content-length");
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(BodyLength::Known(0)),
            (Some(_), Some(_)) => Err(BodyFault::TwoLengths),
            (Some(coding), None) => {
                let further = codings.last();
                if further.is_none() && coding.eq_ignore_ascii_case(b"chunked") {
                    return Ok(BodyLength::Chunked);
                }
                let last = further.unwrap_or(coding).rsplit(|&byte| byte == b',').next().unwrap_or_default();
                let ends = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
                Err(if ends { BodyFault::Encoded } else { BodyFault::NotChunked })
            }
            (None, Some(length)) => {
                if lengths.next().is_some() || length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
                    return Err(BodyFault::BadLength);
                }
                let length = str::from_utf8(length).ok().and_then(|length| length.parse().ok());
                // All digits, but more of them than a number has room for.
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

/// Generates an id that is unique in this process, and most likely among all.
fn generate_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    format!("{:012x}-{:x}", *PROCESS >> 16, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The length of a request's body, as its head declares it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// This number of bytes; 0 for no body.
    Known(u64),
    /// The body is chunked, and its last chunk ends it.
    Chunked,
}

/// Why a request body is refused.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// Transfer-Encoding has another coding before `chunked`.
    Encoded,
    /// Transfer-Encoding does not end with `chunked`, so the end of the body is unknown.
    NotChunked,
    /// Content-Length is not a number, or is given twice.
    BadLength,
    /// Content-Length and Transfer-Encoding are both given.
    TwoLengths,
    /// The body exceeds the limit.
    TooLarge {
        /// The declared length in bytes, if it is known.
        declared: Option<u64>,
    },
    /// The client ended the connection before the end of the body.
    CutOff {
        /// The number of bytes received.
        received: u64,
        /// The declared length; none if the body is chunked.
        declared: Option<u64>,
    },
    /// The chunks are malformed.
    BadChunk,
    /// The memory budget has no room for the body.
    NoMemory,
    /// The client sends below the minimum rate.
    TooSlow,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> RequestHead {
        let mut headers = Headers::default();
        fields.iter().for_each(|(name, value)| headers.push(name, value.as_bytes()));
        RequestHead::new(Method::Put, "/k/a".to_owned(), headers, None)
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
            let head = RequestHead::new(Method::Get, target.to_owned(), Headers::default(), None);
            assert_eq!((head.authority(), head.path_and_query()), (authority, (path, query)), "{target}");
        }
    }

    #[test]
    fn a_target_of_another_scheme_is_foreign() {
        for (target, is_foreign) in [
            ("ftp://a/k/a", true),
            ("httpx://a/k/a", true),
            ("HTTP://a/k/a", false),
            ("https://a/k/a", false),
            ("/k/ftp://a", false),
            ("*", false),
        ] {
            let head = RequestHead::new(Method::Get, target.to_owned(), Headers::default(), None);
            assert_eq!(head.has_foreign_scheme(), is_foreign, "{target}");
        }
    }

    #[test]
    fn ambiguous_framing_is_refused() {
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
        for bad in ["gzip, chunked", "chunked, chunked", "gzip ,Chunked"] {
            assert_eq!(head(&[("Transfer-Encoding", bad)]).body_len(), Err(BodyFault::Encoded), "{bad}");
        }
        for bad in ["", "gzip", "chunked, gzip", "chunked;q=1", "xchunked", "identity"] {
            assert_eq!(head(&[("Transfer-Encoding", bad)]).body_len(), Err(BodyFault::NotChunked), "{bad}");
        }
        let last = [("Transfer-Encoding", "chunked"), ("transfer-encoding", "gzip")];
        assert_eq!(head(&last).body_len(), Err(BodyFault::NotChunked));
        let twice = [("Transfer-Encoding", "chunked"), ("transfer-encoding", "chunked")];
        assert_eq!(head(&twice).body_len(), Err(BodyFault::Encoded));
    }

    #[test]
    fn a_request_has_the_id_that_was_sent_if_it_is_valid_or_a_generated_one() {
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
}
