//! The command-line client, which uses the HTTP interface of a server.

pub mod backup;
pub mod batch;
mod connect;
pub mod delete;
mod delete_prefix;
mod error;
pub mod get;
pub mod health;
pub mod ls;
pub mod put;
mod terminal;
pub mod top;
pub mod touch;
#[cfg(unix)]
mod unix;
pub mod watch;
pub mod write;

use std::fmt::{self, Display, Formatter};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::sign::CertifiedKey;
use ureq::config::{Config, ConfigBuilder};
use ureq::http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, IF_MATCH, IF_NONE_MATCH};
use ureq::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, request};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::typestate::AgentScope;
use ureq::{Agent, AsSendBody, Body, BodyReader, SendBody};

pub(super) use self::error::without_kind;
pub(crate) use self::error::{ClientError, RequestError, ValueError};
pub(super) use self::terminal::escaped;
use self::terminal::{Escaping, shown};
use crate::progress::Bar;
use crate::urls::strip_scheme;

/// The characters that a path and a query need not encode.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Parses a key that is not empty.
fn key(text: &str) -> Result<String, ValueError> {
    if text.is_empty() { Err(ValueError::EmptyKey) } else { Ok(text.to_owned()) }
}

/// Parses a duration that is not zero.
pub(super) fn duration(text: &str) -> Result<Duration, ValueError> {
    humantime::parse_duration(text).ok().filter(|duration| !duration.is_zero()).ok_or(ValueError::Duration)
}

/// The server, and how to authenticate.
#[derive(clap::Args)]
#[command(next_help_heading = "Server")]
pub struct Remote {
    /// Connect to this server: http://, https:// or unix:PATH (VKOG_URL)
    #[arg(long, value_name = "URL", env = "VKOG_URL", hide_env = true, default_value = "http://127.0.0.1:3110")]
    url: Url,

    /// Send this token; VKOG_TOKEN or --token-file hide it from other users of this machine
    #[arg(long, value_name = "TOKEN", env = "VKOG_TOKEN", hide_env = true)]
    token: Option<String>,

    /// Read the token from this file; overrides --token and VKOG_TOKEN
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Trust only the certificates in this file (PEM) [default: public authorities]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,

    /// Show this client certificate and its chain (PEM) (VKOG_CERT)
    #[arg(long, value_name = "FILE", env = "VKOG_CERT", hide_env = true, requires = "cert_key")]
    cert: Option<PathBuf>,

    /// Use this private key of the client certificate (PEM) (VKOG_KEY)
    #[arg(long = "key", value_name = "FILE", env = "VKOG_KEY", hide_env = true, requires = "cert")]
    cert_key: Option<PathBuf>,

    /// Send this header; can be repeated
    #[arg(short = 'H', long, value_name = "NAME: VALUE")]
    header: Vec<Header>,

    /// Maximum time without progress
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    timeout: Duration,
}

/// Conditions on the revision of the entry.
#[derive(Default, clap::Args)]
pub struct Conditions {
    /// Require one of these revisions (a,b,c; * is any revision)
    #[arg(long, value_name = "REVISION", value_parser = tags)]
    if_match: Option<HeaderValue>,

    /// Require that the entry has none of these revisions; * requires that the key does not exist
    #[arg(long, value_name = "REVISION", value_parser = tags)]
    if_none_match: Option<HeaderValue>,
}

impl Conditions {
    /// The key must exist.
    fn present() -> Self {
        Self { if_match: Some(HeaderValue::from_static("*")), if_none_match: None }
    }

    /// The key must not exist.
    fn absent() -> Self {
        Self { if_match: None, if_none_match: Some(HeaderValue::from_static("*")) }
    }

    fn is_empty(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    fn add_to(&self, request: request::Builder) -> request::Builder {
        let request = self.if_match.iter().fold(request, |request, tags| request.header(IF_MATCH, tags));
        self.if_none_match.iter().fold(request, |request, tags| request.header(IF_NONE_MATCH, tags))
    }
}

/// Turns revisions into entity tags. Other texts are sent as they are.
fn tags(text: &str) -> Result<HeaderValue, ValueError> {
    let tag = |tag: &str| match tag.trim() {
        number if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => format!("\"{number}\""),
        other => other.to_owned(),
    };
    let tags = text.split(',').map(tag).collect::<Vec<_>>().join(", ");
    HeaderValue::from_str(&tags).map_err(|_| ValueError::Revision)
}

#[derive(Clone)]
struct Header(HeaderName, HeaderValue);

impl FromStr for Header {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (name, value) = text.split_once(':').ok_or(ValueError::Header)?;
        let name = HeaderName::from_str(name.trim()).map_err(|_| ValueError::HeaderName)?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| ValueError::HeaderValue)?;
        Ok(Self(name, value))
    }
}

/// The address of a server.
#[derive(Clone)]
enum Url {
    /// `http://` or `https://`, without a slash at the end.
    Web(String),
    Unix(PathBuf),
}

impl FromStr for Url {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Some(path) = strip_scheme(text, "unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let url = text.trim_end_matches('/');
        let is_of = |scheme: &&str| strip_scheme(url, scheme).is_some();
        let is_web = ["http://", "https://"].iter().any(is_of) && !url.contains(['?', '#', '@']);
        match url.parse::<ureq::http::Uri>() {
            Ok(uri) if is_web && uri.host().is_some_and(|host| !host.is_empty()) => Ok(Self::Web(url.to_owned())),
            _ => Err(ValueError::Url),
        }
    }
}

impl Url {
    /// Returns an agent that connects to the server.
    ///
    /// # Errors
    ///
    /// This system has no Unix sockets.
    fn agent(&self, config: Config) -> Result<Agent, ClientError> {
        match self {
            Self::Web(_) => Ok(connect::to_the_web(config)),
            #[cfg(unix)]
            Self::Unix(path) => Ok(connect::to_socket(config, path)),
            #[cfg(not(unix))]
            Self::Unix(_) => Err(ClientError::NoUnixSockets),
        }
    }

    /// Returns the start of the URL of every request.
    fn base(&self) -> &str {
        match self {
            Self::Web(url) => url,
            Self::Unix(_) => "http://localhost",
        }
    }
}

impl Display for Url {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Web(url) => f.write_str(url),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A server, with what every request to it needs.
struct Server {
    agent: Agent,
    url: Url,
    headers: Vec<Header>,
    timeout: Duration,
}

impl Server {
    fn new(remote: Remote) -> Result<Self, ClientError> {
        let Remote { url, token, token_file, cacert, cert, cert_key, header: mut headers, timeout } = remote;
        let token = match &token_file {
            Some(path) => Some(String::from_utf8_lossy(&read(path)?).trim().to_owned()),
            None => token,
        };
        if let Some(token) = token {
            headers.push(Header(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}"))?));
        }
        let config = agent_config()
            .timeout_resolve(Some(timeout))
            .timeout_connect(Some(timeout))
            .timeout_per_write(Some(timeout))
            .timeout_per_read(Some(timeout));
        let mut tls = TlsConfig::builder();
        if let Some(path) = &cacert {
            tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates(path)?)));
        }
        if let (Some(cert), Some(key)) = (&cert, &cert_key) {
            tls = tls.client_cert(Some(client_certificate(cert, key)?));
        }
        let agent = url.agent(config.tls_config(tls.build()).build())?;
        Ok(Self { agent, url, headers, timeout })
    }

    /// Starts a request for an encoded path.
    fn request(&self, method: Method, path: &str) -> request::Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.url.base()));
        self.headers.iter().fold(request, |request, Header(name, value)| request.header(name, value))
    }

    /// Starts a request for a key.
    fn for_key(&self, method: Method, key: &str) -> request::Builder {
        self.request(method, &format!("/k/{}", encode(key)))
    }

    /// Sends a request without a body and returns the response.
    ///
    /// # Errors
    ///
    /// The server sends no response, or an error response.
    fn ask(&self, request: request::Builder) -> Result<Response<Body>, RequestError> {
        self.run(request, ())
    }

    /// Sends a request about keys without a body and returns the document in the response. `action` is as for
    /// [`RequestError::of`].
    fn ask_keys<T: DeserializeOwned>(&self, method: Method, path: &str, action: &str) -> Result<T, ClientError> {
        let response = self.ask(self.request(method, path)).map_err(|error| error.of(action))?;
        serde_json::from_reader(reader(response.into_body())).map_err(|error| match error.is_io() {
            true => self.interrupted(error.into()).of(action),
            false => error.into(),
        })
    }

    /// Sends a request with a body of this length and returns the response.
    fn send(
        &self,
        request: request::Builder,
        body: impl Read + 'static,
        len: u64,
    ) -> Result<Response<Body>, RequestError> {
        self.run(request.header(CONTENT_LENGTH, len), SendBody::from_owned_reader(body))
    }

    fn run(&self, request: request::Builder, body: impl AsSendBody) -> Result<Response<Body>, RequestError> {
        let lost = |error| self.lost(error);
        let request = request.body(body).map_err(|error| lost(error.into()))?;
        let mut response = self.agent.run(request).map_err(lost)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let text = response.body_mut().read_to_string().unwrap_or_default();
        let message = match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
            Some(_) if is_problem(&response) => text,
            // A page of a proxy.
            Some(line) if line.starts_with('<') => status.canonical_reason().unwrap_or("no reason given").to_owned(),
            Some(line) => line.to_owned(),
            None => status.canonical_reason().unwrap_or("the response has no message").to_owned(),
        };
        Err(RequestError::Refused { status, message })
    }

    /// Returns why a response is incomplete.
    fn interrupted(&self, source: io::Error) -> RequestError {
        // The reader of a body has errors of ureq in those of the system.
        match ureq::Error::from(source) {
            ureq::Error::Io(source) => RequestError::Interrupted(source),
            other => self.lost(other),
        }
    }

    /// Returns why there is no response.
    fn lost(&self, error: ureq::Error) -> RequestError {
        let url = self.url.to_string();
        match error {
            ureq::Error::Io(source) if source.kind() == io::ErrorKind::ConnectionRefused => {
                RequestError::NotListening { url, source }
            }
            ureq::Error::Timeout(_) => RequestError::TimedOut { url, timeout: self.timeout },
            other => match error::tls_error(&other) {
                Some(source) => RequestError::Tls { url, source },
                None => RequestError::NoResponse { url, source: Box::new(other) },
            },
        }
    }
}

/// Returns what the configurations of all agents have in common.
pub(super) fn agent_config() -> ConfigBuilder<AgentScope> {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // A web proxy usually cannot reach the user's own server.
        .proxy(None)
        .user_agent(concat!("vkog/", env!("CARGO_PKG_VERSION")))
}

/// Returns the reader of a body, whose length ureq limits otherwise.
fn reader(body: Body) -> BodyReader<'static> {
    body.into_with_config().limit(u64::MAX).reader()
}

fn read(path: &PathBuf) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|source| ClientError::Read { name: path.display().to_string(), source })
}

/// Returns the file to replace: the one behind all links, or `path` itself if nothing has this name.
///
/// # Errors
///
/// A link leads to nothing, or to where the user may not look.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
            Ok(path.to_owned())
        }
        found => found,
    }
}

/// Returns a configuration that trusts only the certificates in this file.
pub(super) fn trusting(path: &PathBuf) -> Result<TlsConfig, ClientError> {
    Ok(TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(certificates(path)?))).build())
}

/// Reads the certificates in a file.
fn certificates(path: &PathBuf) -> Result<Vec<Certificate<'static>>, ClientError> {
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    };
    let found: Vec<_> = parse_pem(&read(path)?).filter_map(certificate).collect();
    if found.is_empty() { Err(ClientError::NoCertificate(path.clone())) } else { Ok(found) }
}

/// Reads a client certificate and its key, and checks that they belong together, as the HTTP client panics otherwise.
fn client_certificate(certificate: &PathBuf, key: &PathBuf) -> Result<ClientCert, ClientError> {
    let no_key = || ClientError::NoKey(key.clone());
    let pem = read(key)?;
    let private = PrivateKey::from_pem(&pem).map_err(|_| no_key())?;
    let der = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| no_key())?;
    let chain = certificates(certificate)?;
    let chain_der = chain.iter().map(|certificate| certificate.der().to_vec().into()).collect();
    CertifiedKey::from_der(chain_der, der, &ring::default_provider()).map_err(|source| {
        let (certificate, key) = (certificate.clone(), key.clone());
        ClientError::UnusablePair { certificate, key, source }
    })?;
    Ok(ClientCert::new_with_certs(&chain, private))
}

fn is_problem(response: &Response<Body>) -> bool {
    response.body().mime_type() == Some("application/problem+json")
}

/// Encodes a text for a path or a query.
fn encode(text: &str) -> impl Display + '_ {
    utf8_percent_encode(text, PLAIN)
}

/// Returns the revision of a response.
fn revision(response: &Response<Body>) -> Option<&str> {
    response.headers().get("etag").and_then(|tag| tag.to_str().ok()).map(|tag| tag.trim_matches('"'))
}

/// Prints a line at once. Returns whether standard output still has a reader.
fn say(line: &str) -> Result<bool, ClientError> {
    write(&format!("{line}\n"))
}

/// Prints a text at once. Returns whether standard output still has a reader.
fn write(text: &str) -> Result<bool, ClientError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(source) => Err(ClientError::Write { name: "standard output".to_owned(), source }),
    }
}

/// Requests JSON.
fn as_json(request: request::Builder) -> request::Builder {
    request.header(ACCEPT, "application/json")
}

/// A reader with a progress bar.
pub(super) struct Counted<R> {
    reader: R,
    bar: Bar,
    done: u64,
    total: u64,
}

impl<R: Read> Counted<R> {
    /// Returns a reader whose bar has the label `what`, as in "sending a/b". A total of 0 is unknown.
    pub(super) fn new(reader: R, what: String, total: u64) -> Self {
        Self { reader, bar: Bar::new(what), done: 0, total }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(into)?;
        self.done += read as u64;
        self.bar.set(self.done, self.total);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_a_tag_and_a_tag_stays_one() {
        for (written, sent) in [("5", "\"5\""), ("*", "*"), ("5, 7", "\"5\", \"7\""), ("W/\"5\"", "W/\"5\"")] {
            assert_eq!(tags(written).expect("it is one"), sent);
        }
        assert!(tags("a\nb").is_err());
    }

    #[test]
    fn a_key_is_encoded_but_for_its_slashes() {
        assert_eq!(encode("a/b c%\u{e9}?#").to_string(), "a/b%20c%25%C3%A9%3F%23");
    }

    #[test]
    fn invalid_server_addresses_are_refused() {
        for url in ["", "127.0.0.1:3110", "ftp://a", "http://", "http://a?b", "http://user:pass@a", "unix:"] {
            assert!(url.parse::<Url>().is_err(), "{url}");
        }
        assert!("http://[::1]:3110/".parse::<Url>().is_ok_and(|url| url.to_string() == "http://[::1]:3110"));
    }
}
