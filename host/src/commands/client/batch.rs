//! `vkog batch`: runs operations from lines of JSON, many in one request, and prints their results.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor};
use std::path::PathBuf;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use thiserror::Error;
use ureq::http::Method;
use ureq::http::header::CONTENT_TYPE;

use super::error::{ClientError, RequestError};
use super::terminal::escaped;
use super::{Counted, Remote, Server, as_json, reader, write};
use crate::commands::count;
use crate::failure::{Failure, Status};
use crate::logging;
use crate::schema::Problem;

/// The maximum number of operations of a batch.
const OPERATIONS_MAX: u32 = 1024;
/// The length at which a batch is sent, in bytes. Every server accepts 16 MiB.
const LEN_MAX: usize = 8 << 20;

/// The arguments of `vkog batch`.
#[derive(clap::Args)]
pub struct Batch {
    /// The file of operations, one JSON object per line; - or nothing is standard input
    file: Option<PathBuf>,

    /// Print the result of each operation as one JSON object per line, with its line in the input and its key
    #[arg(long)]
    json: bool,

    /// Send at most N lines as one batch; etcd accepts 125 keys in each
    #[arg(long, value_name = "N", default_value_t = OPERATIONS_MAX, value_parser = clap::value_parser!(u32).range(1..=i64::from(OPERATIONS_MAX)))]
    lines: u32,

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
    #[error("{name}: {place}: the response is not a list of their results; check --url, and whether they succeeded")]
    NotResults { name: String, place: String, source: Option<serde_json::Error> },
}

/// Operations that are sent in one request.
#[derive(Default)]
struct Chunk {
    body: String,
    operations: Vec<Operation>,
}

/// An operation that is sent.
struct Operation {
    /// The number of its line, from 1.
    line: usize,
    key: String,
    is_get: bool,
}

/// Where the operations come from, and how their results are printed.
struct Job {
    server: Server,
    name: String,
    json: bool,
    /// The maximum number of operations of a batch.
    operations_max: usize,
}

/// Runs all operations in order, in batches of which each succeeds as a whole or has no effect.
///
/// # Errors
///
/// A line is not an object, or the server rejects a batch. Earlier batches have succeeded; later ones are not sent.
pub fn batch(Batch { file, json, lines, remote }: Batch) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    let (name, input, len): (_, Box<dyn io::Read>, _) = match file.filter(|file| file.as_os_str() != "-") {
        None => ("standard input".to_owned(), Box::new(io::stdin()), 0),
        Some(path) => {
            let name = path.display().to_string();
            let opened = File::open(&path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
            let (file, len) = opened.map_err(|source| ClientError::Read { name: name.clone(), source })?;
            (name, Box::new(file), len)
        }
    };
    let job = Job { server, name, json, operations_max: lines as usize };
    let done = job.send_all(input, len)?;
    logging::say(&format!("{}: completed {}", job.name, count(done as u64, "operation", "operations")));
    Ok(Status::Success.into())
}

impl Job {
    /// Sends all operations of an input of `len` bytes; 0 is unknown. Returns their number.
    fn send_all(&self, from: impl io::Read, len: u64) -> Result<usize, Failure> {
        let (mut chunk, mut done) = (Chunk::default(), 0);
        let input = Counted::new(from, format!("sending {}", self.name), len);
        let name = || self.name.clone();
        for (number, line) in (1..).zip(BufReader::with_capacity(64 << 10, input).lines()) {
            let line = line.map_err(|source| BatchError::Line { name: name(), line: number, source })?;
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            // Each line must be valid alone, or lines could change the meaning of the array between them.
            let operation: Map<String, Value> = serde_json::from_str(line)
                .map_err(|source| BatchError::NotAnObject { name: name(), line: number, source, done })?;
            let is_full = chunk.operations.len() == self.operations_max || chunk.body.len() + line.len() > LEN_MAX;
            if is_full && !chunk.operations.is_empty() {
                done = self.send(std::mem::take(&mut chunk), done)?;
            }
            chunk.body.push(if chunk.operations.is_empty() { '[' } else { ',' });
            chunk.body.push_str(line);
            let text = |name: &str| operation.get(name).and_then(Value::as_str).unwrap_or_default();
            chunk.operations.push(Operation { line: number, key: text("key").to_owned(), is_get: text("op") == "get" });
        }
        if !chunk.operations.is_empty() {
            done = self.send(chunk, done)?;
        }
        Ok(done)
    }

    /// Sends a batch, prints its results, and returns the number of operations that have succeeded so far.
    fn send(&self, Chunk { mut body, operations }: Chunk, done: usize) -> Result<usize, Failure> {
        body.push(']');
        let request = as_json(self.server.request(Method::POST, "/batch")).header(CONTENT_TYPE, "application/json");
        let len = body.len() as u64;
        let place = || match &*operations {
            [one] => format!("line {}", one.line),
            all => format!("lines {} to {}", all[0].line, all[all.len() - 1].line),
        };
        let name = self.name.clone();
        match self.server.send(request, Cursor::new(body), len) {
            Ok(response) => {
                let results = reader(response.into_body());
                let results: Vec<Map<String, Value>> = serde_json::from_reader(results).map_err(|error| {
                    let (name, place) = (name.clone(), place());
                    match error.is_io() {
                        true => BatchError::Lost { name, place, source: self.server.interrupted(error.into()) },
                        false => BatchError::NotResults { name, place, source: Some(error) },
                    }
                })?;
                if results.len() != operations.len() {
                    return Err(BatchError::NotResults { name, place: place(), source: None }.into());
                }
                self.print(&operations, results)?;
                Ok(done + operations.len())
            }
            Err(RequestError::Refused { status, message }) => {
                let Problem { title, index, .. } = serde_json::from_str(&message)
                    .unwrap_or(Problem { title: message.as_str().into(), ..Problem::default() });
                let operation = index.and_then(|index| operations.get(index));
                let place = operation.map_or_else(place, |operation| format!("line {}", operation.line));
                let message = index.map_or(&*title, |index| without_position(&title, index)).to_owned();
                let source = RequestError::Refused { status, message };
                Err(BatchError::Refused { name, place, source, done }.into())
            }
            Err(source) => Err(BatchError::Lost { name, place: place(), source }.into()),
        }
    }

    /// Prints the results of a batch, in one write.
    fn print(&self, operations: &[Operation], results: Vec<Map<String, Value>>) -> Result<(), ClientError> {
        let mut lines = String::new();
        for (operation, mut result) in operations.iter().zip(results) {
            if self.json {
                result.insert("line".to_owned(), operation.line.into());
                result.insert("key".to_owned(), operation.key.as_str().into());
                lines.push_str(&Value::from(result).to_string());
            } else if operation.is_get {
                lines.push_str(&found(operation, &result));
            } else {
                continue;
            }
            lines.push('\n');
        }
        // Without a reader of standard output, the operations still run.
        write(&lines).map(drop)
    }
}

/// Returns a message about an operation without its index, which is counted from 0, and without its position in the request.
fn without_position(title: &str, index: usize) -> &str {
    let fact = title.strip_prefix(&format!("Operation {index} ")).unwrap_or(title);
    fact.rsplit_once(" at line 1 column ").map_or(fact, |(fact, _)| fact)
}

/// Describes the result of a get in one line.
fn found(Operation { line, key, .. }: &Operation, result: &Map<String, Value>) -> String {
    let key = escaped(key, "");
    let text = |name: &str| result.get(name).and_then(Value::as_str);
    match (text("value"), text("base64").map(|text| STANDARD.decode(text))) {
        (Some(value), _) => format!("line {line}: {key} = {}", escaped(value, "")),
        (_, Some(Ok(bytes))) => format!("line {line}: {key} = {}", bytes.escape_ascii()),
        _ => format!("line {line}: {key} does not exist"),
    }
}

/// Describes the operations that succeeded before an error.
fn so_far(done: usize) -> String {
    match done {
        0 => "nothing was changed".to_owned(),
        _ => format!("the first {} succeeded, nothing else was changed", count(done as u64, "operation", "operations")),
    }
}
