//! `vkog put` and `vkog post`: a value from an argument, a file or standard input.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ureq::http::Method;
use ureq::http::header::CONTENT_TYPE;

use super::error::ClientError;
use super::{Conditions, Counted, Remote, Server, revision, say};
use crate::failure::Failure;
use crate::progress::Bar;

/// The arguments of `vkog put` and `vkog post`.
#[derive(clap::Args)]
pub struct Write {
    /// The key
    key: String,

    /// The value [default: standard input]
    value: Option<OsString>,

    /// Read the value from this file; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "value")]
    file: Option<PathBuf>,

    /// Store this media type with the value [default: application/octet-stream]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,

    #[command(flatten)]
    conditions: Conditions,

    #[command(flatten)]
    remote: Remote,
}

/// Writes a value and prints its new revision.
///
/// # Errors
///
/// The value cannot be read, the server cannot be reached, or it rejects the write.
pub fn write(method: Method, write: Write) -> Result<ExitCode, Failure> {
    let Write { key, value, file, content_type, conditions, remote } = write;
    let server = Server::new(remote)?;
    let what = format!("{} {key}", method.as_str().to_lowercase());
    let (value, len) = match (value, file.filter(|file| file.as_os_str() != "-")) {
        (Some(value), _) => held(value.into_encoded_bytes()),
        (None, Some(file)) => open(&file)?,
        (None, None) => all_of(io::stdin().lock(), "standard input")?,
    };
    let request = conditions.add_to(server.for_key(method, &key));
    let request = content_type.into_iter().fold(request, |request, name| request.header(CONTENT_TYPE, name));
    let value = Counted::new(value, format!("sending {key}"), len);
    let response = server.send(request, value, len).map_err(|error| error.of(what))?;
    if let Some(revision) = revision(&response) {
        say(revision)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A value and its length in bytes, which the request needs before the value.
type Value = (Box<dyn Read>, u64);

fn held(bytes: Vec<u8>) -> Value {
    let len = bytes.len() as u64;
    (Box::new(Cursor::new(bytes)), len)
}

/// Opens a file, which is read while it is sent. A pipe has no length, so it is read before the request.
fn open(path: &Path) -> Result<Value, ClientError> {
    let shown = path.display();
    let opened = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    let (file, metadata) = opened.map_err(|source| ClientError::Read { name: shown.to_string(), source })?;
    if metadata.is_file() {
        return Ok((Box::new(file.take(metadata.len())), metadata.len()));
    }
    all_of(file, &shown.to_string())
}

fn all_of(from: impl Read, shown: &str) -> Result<Value, ClientError> {
    let mut bytes = Vec::new();
    let bar = Bar::new(format!("reading {shown}"));
    let read = { from }.read_to_end(&mut bytes);
    drop(bar);
    read.map_err(|source| ClientError::Read { name: shown.to_owned(), source })?;
    Ok(held(bytes))
}
