//! `vkog ls`: lists keys in byte order, page after page.

use std::process::ExitCode;

use serde_json::json;
use ureq::http::Method;

use super::error::ClientError;
use super::{Remote, Server, encode, say, shown, write};
use crate::failure::Failure;
use crate::schema::{Count, Key, Page};

/// The maximum length of a page of the server.
const PAGE: u64 = 1000;

/// The arguments of `vkog ls`.
#[derive(clap::Args)]
pub struct Ls {
    /// List only keys with this prefix
    #[arg(default_value = "")]
    prefix: String,

    /// Fold keys at this delimiter: / folds a/b and a/c into a/
    #[arg(short, long, value_name = "TEXT", num_args = 0..=1, default_missing_value = "/")]
    delimiter: Option<String>,

    /// Print size in bytes, revision and media type before each key
    #[arg(short, long)]
    long: bool,

    /// Print one JSON object per line, with all fields
    #[arg(long, conflicts_with = "long")]
    json: bool,

    /// Print each key as it is, followed by a NUL instead of a line break
    #[arg(short = '0', long, conflicts_with_all = ["long", "json"])]
    null: bool,

    /// Print the number of keys only
    #[arg(short, long, conflicts_with_all = ["delimiter", "long", "json", "null", "after", "limit"])]
    count: bool,

    /// List only keys after this text, in byte order
    #[arg(long, value_name = "TEXT")]
    after: Option<String>,

    /// Maximum number of keys to print [default: all]
    #[arg(short = 'n', long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    #[command(flatten)]
    remote: Remote,
}

/// Lists keys.
///
/// # Errors
///
/// The server cannot be reached, or rejects the request.
pub fn ls(ls: Ls) -> Result<ExitCode, Failure> {
    let Ls { prefix, delimiter, long, json, null, count, mut after, limit, remote } = ls;
    let format = Format::of(long, json, null);
    let server = Server::new(remote)?;
    if count {
        let path = format!("/keys?count&prefix={}", encode(&prefix));
        let Count { count } = server.ask_keys(Method::GET, &path, ACTION)?;
        say(&count.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut left = limit.unwrap_or(u64::MAX);
    while left > 0 {
        let mut path = format!("/keys?limit={}&prefix={}", left.min(PAGE), encode(&prefix));
        for (name, value) in [("delimiter", &delimiter), ("after", &after)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encode(value)));
            }
        }
        let Page { keys, prefixes, next } = server.ask_keys::<Page<'static>>(Method::GET, &path, ACTION)?;
        left -= left.min((keys.len() + prefixes.len()) as u64);
        let mut lines: Vec<_> = keys.into_iter().map(|key| line(key, format)).collect::<Result<_, _>>()?;
        lines.extend(prefixes.into_iter().map(|prefix| folded(prefix, format)));
        lines.sort_unstable();
        let page: String = lines.into_iter().map(|(_, line)| line + format.end()).collect();
        if !write(&page)? {
            break;
        }
        after = next;
        if after.is_none() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The action in messages.
const ACTION: &str = "list keys";

/// How a key is printed.
#[derive(Copy, Clone)]
enum Format {
    Key,
    /// As it is, with a NUL at its end.
    Null,
    Columns,
    Json,
}

impl Format {
    fn of(long: bool, json: bool, null: bool) -> Self {
        match (long, json, null) {
            (true, ..) => Self::Columns,
            (_, true, _) => Self::Json,
            (.., true) => Self::Null,
            _ => Self::Key,
        }
    }

    /// Returns the separator after a key.
    fn end(self) -> &'static str {
        if matches!(self, Self::Null) { "\0" } else { "\n" }
    }
}

/// Returns a key and its line, without the end.
fn line(key: Key<'_>, format: Format) -> Result<(String, String), ClientError> {
    let line = match format {
        Format::Key => shown(&key.key),
        Format::Null => key.key.to_string(),
        Format::Columns => columns(&key.size.to_string(), &key.revision.to_string(), &key.content_type, &key.key),
        Format::Json => serde_json::to_string(&key)?,
    };
    Ok((key.key.into_owned(), line))
}

/// Returns a prefix and its line, without the end.
fn folded(prefix: String, format: Format) -> (String, String) {
    let line = match format {
        Format::Key => shown(&prefix),
        Format::Null => prefix.clone(),
        Format::Columns => columns("-", "-", "-", &prefix),
        Format::Json => json!({ "prefix": prefix }).to_string(),
    };
    (prefix, line)
}

fn columns(size: &str, revision: &str, content_type: &str, name: &str) -> String {
    format!("{size:>12} {revision:>16} {:<24} {}", shown(content_type), shown(name))
}
