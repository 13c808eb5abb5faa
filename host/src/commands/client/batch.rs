//! `vkog batch`: operations from lines of JSON, many in one request.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Deserialize;
use serde::de::IgnoredAny;
use ureq::http::Method;
use ureq::http::header::CONTENT_TYPE;

use super::{Counted, Remote, Server, Trouble, as_json};
use crate::cli::Failure;
use crate::commands::{count, failure, say};

/// The most operations that a server takes at once.
const OPERATIONS_MAX: usize = 1024;
/// A batch is sent when it is so long, in bytes: a server reads 16 MiB at least.
const LEN_MAX: usize = 8 << 20;

/// Where operations come from.
#[derive(clap::Args)]
pub struct Batch {
    /// The operations, an object a line; without it standard input, as for -
    file: Option<PathBuf>,

    #[command(flatten)]
    remote: Remote,
}

/// What a server says of a batch that it did not do.
#[derive(Deserialize)]
struct Problem {
    title: String,
    /// Which operation it is about, counted from 0.
    index: Option<usize>,
}

/// Operations that are sent in one request.
#[derive(Default)]
struct Chunk {
    body: String,
    /// The number of each operation's line, from 1.
    lines: Vec<usize>,
}

/// Does all operations, in batches of which each is done as a whole or not at all, in their order.
///
/// # Errors
///
/// A line is no object, or the server did not do it. Batches before its own are done, all others are not.
pub fn batch(Batch { file, remote }: Batch) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    match file.filter(|file| file.as_os_str() != "-") {
        None => send_all(&server, io::stdin().lock(), "standard input", 0),
        Some(path) => {
            let shown = path.display().to_string();
            let opened = File::open(&path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
            let (file, len) = opened.map_err(|error| failure(format!("cannot read {shown}: {error}")))?;
            send_all(&server, file, &shown, len)
        }
    }
}

fn send_all(server: &Server, from: impl io::Read, shown: &str, len: u64) -> Result<ExitCode, Failure> {
    let (mut chunk, mut done) = (Chunk::default(), 0);
    let input = Counted::new(from, format!("sending {shown}"), len);
    for (number, line) in (1..).zip(BufReader::with_capacity(64 << 10, input).lines()) {
        let line = line.map_err(|error| failure(format!("cannot read {shown}: line {number}: {error}")))?;
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        // Each line stands for itself: two that are an array only together are none.
        if let Err(error) = serde_json::from_str::<std::collections::BTreeMap<String, IgnoredAny>>(line) {
            let fact = format!("{shown}: line {number} is no object of JSON: {error}");
            return Err(failure(so_far(&fact, done)));
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
    say(&format!("{shown}: did {}", count(done as u64, "operation", "operations")));
    Ok(ExitCode::SUCCESS)
}

/// Sends a batch, and says how many operations are done then.
fn send(server: &Server, Chunk { mut body, lines }: Chunk, shown: &str, done: usize) -> Result<usize, Failure> {
    body.push(']');
    let request = as_json(server.request(Method::POST, "/batch")).header(CONTENT_TYPE, "application/json");
    let len = body.len() as u64;
    let (first, last) = (lines[0], lines[lines.len() - 1]);
    match server.send(request, Cursor::new(body), len) {
        Ok(_) => Ok(done + lines.len()),
        Err(Trouble::Refused(status, told)) => {
            let problem = serde_json::from_str(&told).unwrap_or(Problem { title: told, index: None });
            let line = problem.index.and_then(|index| lines.get(index));
            let place = line.map_or_else(|| format!("lines {first} to {last}"), |line| format!("line {line}"));
            Err(failure(so_far(&format!("{shown}: {place}: {} ({})", problem.title, status.as_str()), done)))
        }
        Err(Trouble::Lost(fact)) => {
            let unknown = "those before are done, of these it is not known";
            Err(failure(format!("{shown}: lines {first} to {last}: {fact}; {unknown}")))
        }
    }
}

/// What is wrong, and what was done before.
fn so_far(fact: &str, done: usize) -> String {
    match done {
        0 => format!("{fact}; nothing was done"),
        _ => format!("{fact}; the first {} done, no other", count(done as u64, "operation is", "operations are")),
    }
}
