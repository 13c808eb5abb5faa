//! `vkog batch`: runs operations from lines of JSON, many in one request.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::de::IgnoredAny;
use thiserror::Error;
use ureq::http::header::CONTENT_TYPE;
use ureq::http::Method;

use super::error::{ClientError, RequestError};
use super::{Counted, Remote, Server, as_json};
use crate::commands::{count, say};
use crate::failure::Failure;
use crate::schema::Problem;

/// The maximum number of operations of a batch.
const OPERATIONS_MAX: usize = 1024;
/// The length at which a batch is sent, in bytes. Every server accepts 16 MiB.
const LEN_MAX: usize = 8 << 20;

/// The arguments of `vkog batch`.
#[derive(clap::Args)]
pub struct Batch {
    /// The file of operations, one JSON object per line; - or nothing is standard input
    file: Option<PathBuf>,

    #[command(flatten)]
    remote: Remote,
}

/// Why a batch of the client fails.
#[derive(Debug, Error)]
enum BatchError {
    #[error("cannot read {name}: line {line}: {source}; write UTF-8 text")]
    Line { name: String, line: usize, source: io::Error },
    #[error("{name}: line {line} is not a JSON object: {source}; {}", so_far(*.done))]
    NotAnObject { name: String, line: usize, source: serde_json::Error, done: usize },
    #[error("{name}: {place}: {source}; {}", so_far(*.done))]
    Refused { name: String, place: String, source: RequestError, done: usize },
    #[error("{name}: {place}: {source}; earlier operations succeeded, check whether these did")]
    Lost { name: String, place: String, source: RequestError },
}

/// Operations that are sent in one request.
#[derive(Default)]
struct Chunk {
    body: String,
    /// The number of each operation's line, from 1.
    lines: Vec<usize>,
}

/// Runs all operations in order, in batches of which each succeeds as a whole or has no effect.
///
/// # Errors
///
/// A line is not an object, or the server rejects a batch. Earlier batches have succeeded; later ones are not sent.
pub fn batch(Batch { file, remote }: Batch) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    match file.filter(|file| file.as_os_str() != "-") {
        None => send_all(&server, io::stdin().lock(), "standard input", 0),
        Some(path) => {
            let shown = path.display().to_string();
            let opened = File::open(&path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
            let (file, len) = opened.map_err(|source| ClientError::Read { name: shown.clone(), source })?;
            send_all(&server, file, &shown, len)
        }
    }
}

fn send_all(server: &Server, from: impl io::Read, shown: &str, len: u64) -> Result<ExitCode, Failure> {
    let (mut chunk, mut done) = (Chunk::default(), 0);
    let input = Counted::new(from, format!("sending {shown}"), len);
    for (number, line) in (1..).zip(BufReader::with_capacity(64 << 10, input).lines()) {
        let name = || shown.to_owned();
        let line = line.map_err(|source| BatchError::Line { name: name(), line: number, source })?;
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        // Each line must be valid alone, or lines could change the meaning of the array between them.
        if let Err(source) = serde_json::from_str::<std::collections::BTreeMap<String, IgnoredAny>>(line) {
            return Err(BatchError::NotAnObject { name: name(), line: number, source, done }.into());
        }
        if chunk.lines.len() == OPERATIONS_MAX || !chunk.lines.is_empty() && chunk.body.len() + line.len() > LEN_MAX {
            done = send(server, std::mem::take(&mut chunk), shown, done)?;
        }
        chunk.body.push(if chunk.lines.is_empty() { '[' } else { ',' });
        chunk.body.push_str(line);
        chunk.lines.push(number);
    }
    if !chunk.lines.is_empty() {
        done = send(server, chunk, shown, done)?;
    }
    say(&format!("{shown}: completed {}", count(done as u64, "operation", "operations")));
    Ok(ExitCode::SUCCESS)
}

/// Sends a batch and returns the number of operations that have succeeded so far.
fn send(server: &Server, Chunk { mut body, lines }: Chunk, shown: &str, done: usize) -> Result<usize, Failure> {
    body.push(']');
    let request = as_json(server.request(Method::POST, "/batch")).header(CONTENT_TYPE, "application/json");
    let len = body.len() as u64;
    let (first, last) = (lines[0], lines[lines.len() - 1]);
    match server.send(request, Cursor::new(body), len) {
        Ok(_) => Ok(done + lines.len()),
        Err(RequestError::Refused { status, message }) => {
            let Problem { title, index, .. } = serde_json::from_str(&message)
                .unwrap_or(Problem { title: message.as_str().into(), ..Problem::default() });
            let line = index.and_then(|index| lines.get(index));
            let place = line.map_or_else(|| format!("lines {first} to {last}"), |line| format!("line {line}"));
            let source = RequestError::Refused { status, message: title.into_owned() };
            Err(BatchError::Refused { name: shown.to_owned(), place, source, done }.into())
        }
        Err(source) => {
            Err(BatchError::Lost { name: shown.to_owned(), place: format!("lines {first} to {last}"), source }.into())
        }
    }
}

/// Describes the operations that succeeded before an error.
fn so_far(done: usize) -> String {
    match done {
        0 => "nothing was changed".to_owned(),
        _ => format!("the first {} succeeded, nothing else was changed", count(done as u64, "operation", "operations")),
    }
}
