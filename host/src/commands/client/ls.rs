//! `vkog ls`: which keys there are, in byte order, page after page.

use std::process::ExitCode;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::{Remote, Server, encode, say, shown};
use crate::cli::Failure;
use crate::commands::failure;

/// The most that the server gives at once.
const PAGE: u64 = 1000;

/// What to list.
#[derive(clap::Args)]
pub struct Ls {
    /// Only keys that begin so
    #[arg(default_value = "")]
    prefix: String,

    /// Fold keys that have this behind the prefix, as / folds a/b and a/c into a/
    #[arg(short, long, value_name = "TEXT", num_args = 0..=1, default_missing_value = "/")]
    delimiter: Option<String>,

    /// With size, revision and media type before each key
    #[arg(short, long)]
    long: bool,

    /// The same as JSON, an object a line
    #[arg(long, conflicts_with = "long")]
    json: bool,

    /// Only how many keys there are
    #[arg(short, long, conflicts_with_all = ["delimiter", "long", "json", "after", "limit"])]
    count: bool,

    /// Only what comes after this text in byte order
    #[arg(long, value_name = "TEXT")]
    after: Option<String>,

    /// At most so many
    #[arg(short = 'n', long, value_name = "NUMBER")]
    limit: Option<u64>,

    #[command(flatten)]
    remote: Remote,
}

#[derive(Deserialize)]
struct Page {
    keys: Vec<Map<String, Value>>,
    prefixes: Vec<String>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Count {
    count: u64,
}

/// Lists keys.
///
/// # Errors
///
/// The server cannot be reached, or it refused.
pub fn ls(ls: Ls) -> Result<ExitCode, Failure> {
    let Ls { prefix, delimiter, long, json, count, mut after, limit, remote } = ls;
    let server = Server::new(remote)?;
    if count {
        let Count { count } = ask(&server, &format!("/keys?count&prefix={}", encode(&prefix)))?;
        return say(&count.to_string()).map(|_| ExitCode::SUCCESS);
    }
    let mut left = limit.unwrap_or(u64::MAX);
    while left > 0 {
        let mut path = format!("/keys?limit={}&prefix={}", left.min(PAGE), encode(&prefix));
        for (name, value) in [("delimiter", &delimiter), ("after", &after)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encode(value)));
            }
        }
        let Page { keys, prefixes, next } = ask(&server, &path)?;
        left -= left.min((keys.len() + prefixes.len()) as u64);
        let mut lines: Vec<_> = keys.into_iter().map(|key| line(key, long, json)).collect();
        lines.extend(prefixes.into_iter().map(|prefix| folded(prefix, long, json)));
        lines.sort_unstable();
        for (_, line) in lines {
            if !say(&line)? {
                return Ok(ExitCode::SUCCESS);
            }
        }
        after = next;
        if after.is_none() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ask<T: DeserializeOwned>(server: &Server, path: &str) -> Result<T, Failure> {
    let response = server.ask(server.request(Method::GET, path)).map_err(|trouble| trouble.ends("list keys"))?;
    let body = response.into_body().into_with_config().limit(u64::MAX).reader();
    serde_json::from_reader(body).map_err(|error| failure(format!("cannot list keys: what came is no list: {error}")))
}

/// A key, and the line for it.
fn line(key: Map<String, Value>, long: bool, json: bool) -> (String, String) {
    let text = |name| key.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name| key.get(name).and_then(Value::as_u64).unwrap_or_default();
    let name = text("key");
    let line = match (long, json) {
        (_, true) => Value::from(key).to_string(),
        (true, _) => {
            columns(&number("size").to_string(), &number("revision").to_string(), &text("content_type"), &name)
        }
        _ => shown(&name),
    };
    (name, line)
}

/// A prefix, and the line for it.
fn folded(prefix: String, long: bool, json: bool) -> (String, String) {
    let line = match (long, json) {
        (_, true) => json!({ "prefix": prefix }).to_string(),
        (true, _) => columns("-", "-", "-", &prefix),
        _ => shown(&prefix),
    };
    (prefix, line)
}

fn columns(size: &str, revision: &str, content_type: &str, name: &str) -> String {
    format!("{size:>12} {revision:>16} {:<24} {}", shown(content_type), shown(name))
}
