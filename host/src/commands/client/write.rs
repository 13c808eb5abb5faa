//! `vkog post`, and what it shares with `vkog put`: a value from an argument, a file or standard input.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytes::Bytes;
use ureq::http::header::CONTENT_TYPE;
use ureq::http::{Method, StatusCode};

use super::error::{ClientError, RequestError};
use super::{Conditions, Counted, Remote, Server, key, revision, say};
use crate::failure::{Failure, Status};
use crate::progress::Bar;

/// The header with the time to live.
pub(super) const TTL: &str = "Vkog-TTL";
/// The time to live of an entry that never expires.
const NEVER: &str = "none";
/// The header with the time at which an entry expires.
const EXPIRES: &str = "Vkog-Expires";

/// The arguments of `vkog put` and `vkog post`.
#[derive(clap::Args)]
pub struct Write {
    /// The key
    #[arg(value_parser = key)]
    pub(super) key: String,

    /// The value [default: standard input]
    pub(super) value: Option<OsString>,

    /// Read the value from this file; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "value")]
    pub(super) file: Option<PathBuf>,

    /// Store this media type with the value [default: application/octet-stream]
    #[arg(long, value_name = "TYPE")]
    pub(super) content_type: Option<String>,

    /// Expire after this time: 60s, 5m, 2h, 7d or none (ttl plugin)
    #[arg(long, value_name = "TIME")]
    pub(super) ttl: Option<String>,

    #[command(flatten)]
    pub(super) conditions: Conditions,

    #[command(flatten)]
    pub(super) remote: Remote,
}

/// Creates a value and prints its new revision.
///
/// # Errors
///
/// The value cannot be read, the server cannot be reached, or it rejects the write.
pub fn post(write: Write) -> Result<ExitCode, Failure> {
    let Write { key, value, file, content_type, ttl, conditions, remote } = write;
    let server = Server::new(remote)?;
    let value = Value::of(value, file)?;
    let ttl = ttl.as_deref();
    let revision = value.send(&server, Method::POST, &key, content_type.as_deref(), ttl, &conditions)?;
    Ok(finish(&server, &key, ttl, revision.as_deref())?)
}

/// Prints the revision of a write, after a check that its entry expires if it has a time to live.
///
/// # Errors
///
/// The entry does not expire, because the server does not have the plugin ttl, or this cannot be checked.
pub(super) fn finish(
    server: &Server,
    key: &str,
    ttl: Option<&str>,
    written: Option<&str>,
) -> Result<ExitCode, ClientError> {
    if ttl.is_some_and(|ttl| ttl != NEVER) {
        check_expires(server, key, written)?;
    }
    if let Some(revision) = written {
        say(revision)?;
    }
    Ok(Status::Success.into())
}

/// Checks that an entry expires: a server without the plugin ttl ignores the time to live.
fn check_expires(server: &Server, key: &str, written: Option<&str>) -> Result<(), ClientError> {
    let found = match server.ask(server.for_key(Method::HEAD, key)) {
        // It has expired already, or another client has deleted it.
        Err(RequestError::Refused { status: StatusCode::NOT_FOUND, .. }) => return Ok(()),
        found => found.map_err(|error| error.of(format!("check the expiry of {key}")))?,
    };
    // Another client may have written it again.
    if revision(&found) == written && !found.headers().contains_key(EXPIRES) {
        return Err(ClientError::NoExpiry { key: key.to_owned() });
    }
    Ok(())
}

/// A value that can be sent several times.
pub(super) enum Value {
    Held(Bytes),
    /// A regular file, which is read while it is sent.
    File(PathBuf),
}

impl Value {
    /// Returns the value of the arguments, or else of standard input.
    pub(super) fn of(value: Option<OsString>, file: Option<PathBuf>) -> Result<Self, ClientError> {
        match (value, file.filter(|file| file.as_os_str() != "-")) {
            (Some(value), _) => Ok(Self::Held(value.into_encoded_bytes().into())),
            // A pipe has no length, which the request needs before the value.
            (None, Some(file)) if file.metadata().is_ok_and(|file| !file.is_file()) => {
                all_of(open(&file)?, &file.display().to_string())
            }
            (None, Some(file)) => Ok(Self::File(file)),
            (None, None) => all_of(io::stdin().lock(), "standard input"),
        }
    }

    /// Sends the value, and returns its new revision.
    ///
    /// # Errors
    ///
    /// The file cannot be read, the server cannot be reached, or it rejects the write.
    pub(super) fn send(
        &self,
        server: &Server,
        method: Method,
        key: &str,
        content_type: Option<&str>,
        ttl: Option<&str>,
        conditions: &Conditions,
    ) -> Result<Option<String>, ClientError> {
        let (value, len): (Box<dyn Read>, u64) = match self {
            Self::Held(bytes) => (Box::new(Cursor::new(bytes.clone())), bytes.len() as u64),
            Self::File(path) => {
                let file = open(path)?;
                let len = file.metadata().map_err(unreadable(path))?.len();
                (Box::new(file.take(len)), len)
            }
        };
        let action = format!("{} {}", method.as_str().to_lowercase(), key);
        let request = conditions.add_to(server.for_key(method, key));
        let request = content_type.into_iter().fold(request, |request, name| request.header(CONTENT_TYPE, name));
        let request = ttl.into_iter().fold(request, |request, ttl| request.header(TTL, ttl));
        let value = Counted::new(value, format!("sending {key}"), len);
        let response = server.send(request, value, len).map_err(|error| error.of(action))?;
        Ok(revision(&response).map(str::to_owned))
    }
}

fn open(path: &Path) -> Result<File, ClientError> {
    File::open(path).map_err(unreadable(path))
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> ClientError {
    let name = path.display().to_string();
    |source| ClientError::Read { name, source }
}

fn all_of(mut from: impl Read, shown: &str) -> Result<Value, ClientError> {
    let mut bytes = Vec::new();
    let bar = Bar::new(format!("reading {shown}"));
    let read = from.read_to_end(&mut bytes);
    drop(bar);
    read.map_err(|source| ClientError::Read { name: shown.to_owned(), source })?;
    Ok(Value::Held(bytes.into()))
}
