//! Why a command of the client fails.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use ureq::http::StatusCode;
use ureq::http::header::InvalidHeaderValue;

/// Why a command of the client fails.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(super) enum ClientError {
    /// A file or standard input cannot be read.
    #[error("cannot read {name}: {source}")]
    Read { name: String, source: io::Error },
    /// A file or standard output cannot be written.
    #[error("cannot write {name}: {source}")]
    Write { name: String, source: io::Error },
    /// The token has characters that a header field cannot carry.
    #[error("the token cannot be sent in a header; check where it comes from")]
    Token(#[from] InvalidHeaderValue),
    /// The file of `--cacert` has no certificate.
    #[error("no certificate in {}: give one in PEM", .0.display())]
    NoCertificate(PathBuf),
    /// This system has no Unix sockets.
    #[cfg(not(unix))]
    #[error("there are no sockets unix:PATH here; give an address http://\u{2026}")]
    NoUnixSockets,
    /// The server did not do what the command needs.
    #[error("cannot {action}: {source}")]
    Request { action: String, source: RequestError },
    /// The connection ended before the response did.
    #[error("cannot {action}: the connection was lost: {source}")]
    Lost { action: String, source: io::Error },
    /// The response has no revision.
    #[error("cannot {action}: no revision came")]
    NoRevision { action: String },
    /// The response is not a listing.
    #[error("cannot list keys: what came is no list: {0}")]
    NotAList(#[from] serde_json::Error),
}

/// Why a request failed.
#[derive(Debug, Error)]
pub(super) enum RequestError {
    /// The server does not listen.
    #[error("nobody listens at {url}; start the server, or give --url")]
    NotListening { url: String, source: io::Error },
    /// There was no response, or only a part of one.
    #[error("no answer from {url}: {}", without_kind(.source))]
    NoResponse { url: String, source: Box<ureq::Error> },
    /// The server refused.
    #[error("{message} ({})", .status.as_str())]
    Refused { status: StatusCode, message: String },
}

impl RequestError {
    /// Turns the error into that of a command. `action` completes "cannot ...", as in "get a/b".
    pub(super) fn of(self, action: impl Into<String>) -> ClientError {
        ClientError::Request { action: action.into(), source: self }
    }
}

/// Returns the message of an error without the kind that ureq puts before errors of the system.
fn without_kind(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// A text that is not the value of an option of the client.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum ValueError {
    #[error("not a revision; write its number, or *")]
    Revision,
    #[error("not a header; write NAME: VALUE")]
    Header,
    #[error("the name is not one of a header")]
    HeaderName,
    #[error("the value cannot be sent in a header")]
    HeaderValue,
    #[error("not the address of a server; write http://host:port, https://host or unix:PATH")]
    Url,
}
