//! HTTP with persistent connections, through a client library that shares no code with the server.

use std::sync::{Arc, Mutex};

use ureq::http;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::DEADLINE;
use crate::described;
use crate::http2::Http2;
use crate::process::Output;

/// A client of one server. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    /// The connection, for a client of HTTP/2 that has sent something.
    http2: Option<Arc<Mutex<Option<Http2>>>>,
    address: String,
    log: Output,
}

impl Client {
    pub(crate) fn new(address: &str, trusted: Option<&str>, is_http2: bool, log: &Output) -> Self {
        let trusted = trusted.map(|pem| Certificate::from_pem(pem.as_bytes()).expect("it is a certificate"));
        let tls = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&Vec::from_iter(trusted))).build();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .allow_non_standard_methods(true)
            .proxy(None)
            .tls_config(tls)
            .timeout_global(Some(DEADLINE))
            .build()
            .into();
        let http2 = is_http2.then(Arc::default);
        Self { agent, http2, address: address.to_owned(), log: log.clone() }
    }

    /// Sends a request over HTTP/2, on a new connection where there is none yet or the last one has ended.
    fn run_http2(&self, request: http::Request<Vec<u8>>) -> Option<Result<http::Response<Vec<u8>>, h2::Error>> {
        let mut held = self.http2.as_ref()?.lock().expect("nothing panics while it is locked");
        let connection = held.take().filter(Http2::is_open).unwrap_or_else(|| {
            let address = self.address.trim_start_matches("http://");
            Http2::connect(address).unwrap_or_else(|error| panic!("cannot connect: {error}\n{}", self.log.text()))
        });
        *held = Some(connection.clone());
        drop(held);
        Some(connection.request(request))
    }

    /// Sends a GET of a key.
    #[track_caller]
    pub fn get(&self, key: &str) -> Reply {
        self.key("GET", key).send()
    }

    /// Sends a POST of a key.
    #[track_caller]
    pub fn post(&self, key: &str, value: impl AsRef<[u8]>) -> Reply {
        self.key("POST", key).body(value).send()
    }

    /// Sends a PUT of a key.
    #[track_caller]
    pub fn put(&self, key: &str, value: impl AsRef<[u8]>) -> Reply {
        self.key("PUT", key).body(value).send()
    }

    /// Sends a DELETE of a key.
    #[track_caller]
    pub fn delete(&self, key: &str) -> Reply {
        self.key("DELETE", key).send()
    }

    /// Prepares a request for a key, which it encodes.
    pub fn key(&self, method: &str, key: &str) -> Request<'_> {
        self.path(method, &format!("/k/{}", encode(key)))
    }

    /// Prepares a request for a path, which it sends unchanged.
    pub fn path(&self, method: &str, path: &str) -> Request<'_> {
        Request { client: self, method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: None }
    }
}

/// Returns a key as part of a path: every byte except letters, digits, `-._~` and the slash is percent-encoded.
pub fn encode(key: &str) -> String {
    let mut encoded = String::new();
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// A request in preparation.
pub struct Request<'a> {
    client: &'a Client,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request<'_> {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Sets the body.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = Some(body.as_ref().to_vec());
        self
    }

    /// Sends it and reads the whole reply, whose status `/openapi.json` must describe.
    #[track_caller]
    pub fn send(self) -> Reply {
        self.try_send().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same for a server that may be killed meanwhile.
    ///
    /// # Errors
    ///
    /// No reply came, or only a part of one.
    #[track_caller]
    pub fn try_send(self) -> Result<Reply, String> {
        let Self { client, method, path, headers, body } = self;
        let body_len = body.as_ref().map_or(0, Vec::len);
        let request = format!("{method} {path} {headers:?}, {body_len} bytes");
        let mut builder = http::Request::builder().method(method.as_str()).uri(format!("{}{path}", client.address));
        for (name, value) in &headers {
            builder = builder.header(name, value);
        }
        let whole = builder.body(body.clone().unwrap_or_default());
        let whole = whole.unwrap_or_else(|error| panic!("{request} is no request: {error}"));
        let read = match client.run_http2(whole.clone()) {
            Some(answered) => answered.map(http::Response::into_parts).map_err(|error| error.to_string()),
            None => {
                let sent = match body {
                    Some(_) => client.agent.run(whole),
                    None => client.agent.run(whole.map(drop)),
                };
                let read = sent.and_then(|mut response| {
                    let body = response.body_mut().with_config().limit(u64::MAX).read_to_vec()?;
                    Ok((response.into_parts().0, body))
                });
                read.map_err(|error| error.to_string())
            }
        };
        let (parts, body) =
            read.map_err(|error| format!("{request} got no reply: {error}\n--- server log\n{}", client.log.text()))?;
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let headers = parts.headers.iter().map(header).collect();
        let reply = Reply { request, status: parts.status.as_u16(), headers, body, log: client.log.clone() };
        described::check(&method, &path, &reply);
        Ok(reply)
    }
}

/// A reply, with the request and the log for failed assertions.
#[derive(Clone)]
pub struct Reply {
    pub(crate) request: String,
    /// The status.
    pub status: u16,
    pub(crate) headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    pub(crate) log: Output,
}

impl Reply {
    /// Asserts the status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "the status of {self}");
        self
    }

    /// Asserts the first words of the body.
    #[track_caller]
    pub fn begins(self, words: &str) -> Self {
        assert!(self.body.starts_with(words.as_bytes()), "no {words:?} at the beginning of {self}");
        self
    }

    /// Asserts that the body contains a text.
    #[track_caller]
    pub fn says(self, words: &str) -> Self {
        assert!(self.text().contains(words), "no {words:?} in {self}");
        self
    }

    /// Asserts the whole body.
    #[track_caller]
    pub fn is(self, body: impl AsRef<[u8]>) -> Self {
        assert!(self.body == body.as_ref(), "not the {} bytes that were expected: {self}", body.as_ref().len());
        self
    }

    /// Asserts a header.
    #[track_caller]
    pub fn has(self, name: &str, value: &str) -> Self {
        assert_eq!(self.header(name), Some(value), "the header {name} of {self}");
        self
    }

    /// Asserts a refusal: the status, the first words of the body, and the form that every error body has.
    #[track_caller]
    pub fn refused(self, status: u16, words: &str) -> Self {
        let reply = self.expect(status).begins(words).has("Content-Type", "text/plain; charset=utf-8");
        let newlines = reply.body.iter().filter(|&&byte| byte == b'\n').count();
        assert!(newlines == 1 && reply.body.ends_with(b"\n"), "not one line that ends in a newline: {reply}");
        reply
    }

    /// Returns the first header with this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the revision in the ETag.
    #[track_caller]
    pub fn revision(&self) -> u64 {
        let tag = self.header("ETag").unwrap_or_else(|| panic!("no ETag in {self}"));
        let number = tag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(|text| text.parse().ok());
        number.unwrap_or_else(|| panic!("no revision in the ETag {tag:?} of {self}"))
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { request, status, headers, body, log } = self;
        write!(f, "{request}\n--- reply {status}, {} bytes\n", body.len())?;
        for (name, value) in headers {
            writeln!(f, "{name}: {value}")?;
        }
        write!(f, "{}\n--- server log\n{}", body[..body.len().min(1000)].escape_ascii(), log.text())
    }
}
