//! Why a command of the client fails.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;
use tokio_rustls::rustls;
use ureq::http::StatusCode;
use ureq::http::header::InvalidHeaderValue;

use crate::commands::{read_way_out, write_way_out};
use crate::failure::Status;
use crate::urls::without_credentials_in;

/// Why a command of the client fails.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum ClientError {
    /// A file or standard input cannot be read.
    #[error("cannot read {name}: {source}; {}", read_way_out(.source))]
    Read { name: String, source: io::Error },
    /// A file or standard output cannot be written.
    #[error("cannot write {name}: {source}; {}", write_way_out(.source))]
    Write { name: String, source: io::Error },
    /// The token has characters that a header field cannot carry.
    #[error("the token cannot be sent in a header; use ASCII characters without spaces")]
    Token(#[from] InvalidHeaderValue),
    /// A file of `--cacert` or `--cert` has no certificate.
    #[error("no certificate in {}; give a file in PEM format", .0.display())]
    NoCertificate(PathBuf),
    /// The file of `--key` has no private key.
    #[error("no private key in {}; give a key without a password in PEM format", .0.display())]
    NoKey(PathBuf),
    /// The certificate of `--cert` and the key of `--key` cannot be used together.
    #[error("cannot use {} with {}: {}", .certificate.display(), .key.display(), unusable_pair(.source))]
    UnusablePair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    /// This system has no Unix sockets.
    #[cfg(not(unix))]
    #[error("this system has no Unix sockets; use an address http://host:port")]
    NoUnixSockets,
    /// The server did not do what the command needs.
    #[error("cannot {action}: {source}")]
    Request { action: String, source: RequestError },
    /// The response has no revision.
    #[error("cannot {action}: the response has no revision; check --url")]
    NoRevision { action: String },
    /// The server has stored an entry without its time to live.
    #[error("{key} is written, but it does not expire: the server does not have the plugin ttl; load the plugin")]
    NoExpiry { key: String },
    /// The response is not a list of plugins.
    #[error("cannot read statistics: the response is not a list of plugins: {0}; check --url")]
    NotStatistics(serde_json::Error),
    /// Standard output is not a terminal.
    #[error("standard output is not a terminal; use --once to print one frame")]
    NoTerminal,
    /// The terminal cannot be used.
    #[error("cannot use the terminal: {source}; use --once to print one frame")]
    Terminal { source: io::Error },
    /// The response is not a listing.
    #[error("cannot list keys: the response is not a list of keys: {0}; check --url")]
    NotAList(#[from] serde_json::Error),
}

impl ClientError {
    /// Returns the HTTP status with which the server refused the request.
    pub(super) fn refusal(&self) -> Option<StatusCode> {
        match self {
            Self::Request { source: RequestError::Refused { status, .. }, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Why a request failed.
#[derive(Debug, Error)]
pub(crate) enum RequestError {
    /// The server does not listen.
    #[error("no server listens at {url}; start the server, or set --url")]
    NotListening { url: String, source: io::Error },
    /// The TLS handshake failed.
    #[error("no TLS connection to {url}: {source}; {}", tls_way_out(.source))]
    Tls { url: String, source: rustls::Error },
    /// There was no response, or only a part of one.
    #[error("no response from {url}: {}; check --url and the server", without_kind(.source))]
    NoResponse { url: String, source: Box<ureq::Error> },
    /// The server sent and accepted nothing for this time.
    #[error("no progress for {} at {url}; check the server, or raise --timeout", humantime::format_duration(*.timeout))]
    TimedOut { url: String, timeout: Duration },
    /// The connection ended before the response did.
    #[error("the connection was lost: {0}")]
    Interrupted(#[source] io::Error),
    /// The server refused.
    #[error("{message} ({})", .status.as_str())]
    Refused { status: StatusCode, message: String },
}

impl RequestError {
    /// Returns the exit status for the error.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Refused { status, .. } => match status.as_u16() {
                401 | 403 | 407 => Status::Unauthorized,
                404 => Status::NotFound,
                // The body arrived too slowly; a server or a proxy that does not serve now.
                408 | 502..=504 => Status::Unreachable,
                400..=499 => Status::Refused,
                _ => Status::Failure,
            },
            Self::NotListening { .. }
            | Self::Tls { .. }
            | Self::NoResponse { .. }
            | Self::TimedOut { .. }
            | Self::Interrupted(_) => Status::Unreachable,
        }
    }

    /// Turns the error into that of a command. `action` completes "cannot ...", as in "get a/b".
    pub(super) fn of(self, action: impl Into<String>) -> ClientError {
        ClientError::Request { action: action.into(), source: self }
    }
}

/// Returns the TLS error behind an error of a request.
pub(super) fn tls_error(error: &ureq::Error) -> Option<rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error.clone()),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref::<rustls::Error>().cloned(),
        _ => None,
    }
}

fn unusable_pair(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => "the key is another certificate's; give its own".to_owned(),
        error => format!("{error}; give a certificate with its key"),
    }
}

fn tls_way_out(error: &rustls::Error) -> &'static str {
    use rustls::{AlertDescription, CertificateError, Error};
    match error {
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "show a client certificate with --cert FILE --key FILE"
        }
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError,
        ) => "show a valid client certificate that an authority of the server has signed",
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "use a host name of its certificate in --url",
        Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => "renew its certificate, or correct the clock",
        // Such as `CaUsedAsEndEntity`, for which --cacert does not help.
        Error::InvalidCertificate(CertificateError::Other(_)) => "use a valid certificate with CA:FALSE on the server",
        Error::InvalidCertificate(_) => "trust its certificate with --cacert FILE",
        _ => "use http:// in --url if the server does not speak TLS",
    }
}

/// Returns the message of an error without the kind that ureq puts before errors of the system, and without credentials: the address
/// of a redirect may have some.
pub(crate) fn without_kind(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        other => without_credentials_in(&other.to_string()),
    }
}

/// A text that is not the value of an option of the client.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum ValueError {
    #[error("a key cannot be empty; give its name")]
    EmptyKey,
    #[error("not a revision; write its number, or *")]
    Revision,
    #[error("not a header; write NAME: VALUE")]
    Header,
    #[error("not the name of a header; write NAME: VALUE")]
    HeaderName,
    #[error("not the value of a header; use visible ASCII characters")]
    HeaderValue,
    #[error("not a duration; write a number with ms, s or m, such as 30s")]
    Duration,
    #[error(
        "not the address of a server; write http://host:port, https://host or unix:PATH, and send other credentials than a token with --header"
    )]
    Url,
}
