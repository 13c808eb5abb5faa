//! `vkog delete --prefix`: removes all entries with a prefix, step by step.

use std::process::ExitCode;

use thiserror::Error;
use ureq::http::Method;

use super::{Remote, Server, encode, say, shown};
use crate::commands::count;
use crate::failure::{Failure, Status};
use crate::logging;
use crate::schema::{Count, Deletion, DryRun, Problem};

/// The action in messages.
const ACTION: &str = "delete keys";
/// The maximum number of refused keys that are named.
const NAMED_MAX: usize = 20;

/// The keys to delete.
#[derive(clap::Args)]
pub(super) struct Selection {
    /// Delete all keys with this prefix
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["all", "if_match", "if_none_match"])]
    prefix: Option<String>,

    /// Delete all keys
    #[arg(long, conflicts_with_all = ["if_match", "if_none_match"])]
    all: bool,

    /// Print the keys that --prefix or --all would delete, and delete nothing
    #[arg(long, conflicts_with_all = ["key", "yes"])]
    dry_run: bool,

    /// Confirm --prefix or --all
    #[arg(long, conflicts_with = "key")]
    yes: bool,
}

/// Why keys are not deleted.
#[derive(Debug, Error)]
enum SelectionError {
    #[error("a prefix is empty; use --all to delete every key")]
    EmptyPrefix,
    #[error("deleting {} needs a confirmation; add --yes, or --dry-run to print the keys", count(*.0, "key", "keys"))]
    Unconfirmed(u64),
    #[error("cannot delete {}: {title} ({status})", shown(.key))]
    Refused { key: String, title: String, status: u16 },
    #[error("cannot delete {} more; see the log of the server", count(*.0 as u64, "key", "keys"))]
    MoreRefused(usize),
}

impl Selection {
    /// Returns the prefix of the keys, which is empty for all of them.
    fn selected(&self) -> Option<&str> {
        self.prefix.as_deref().or(self.all.then_some(""))
    }
}

/// Removes all entries that are selected, in as many requests as needed. It can be repeated after a failure.
///
/// # Errors
///
/// It is not confirmed, the server cannot be reached or rejects a request, or plugins refused some keys.
pub(super) fn delete(selection: &Selection, remote: Remote) -> Result<ExitCode, Failure> {
    let prefix = selection.selected().unwrap_or_default();
    if prefix.is_empty() && !selection.all {
        return Err(Failure::usage(SelectionError::EmptyPrefix));
    }
    let server = Server::new(remote)?;
    if selection.dry_run {
        return dry_run(&server, prefix);
    }
    if !selection.yes {
        let Count { count } =
            server.ask_keys(Method::GET, &format!("/keys?count&prefix={}", encode(prefix)), ACTION)?;
        if count == 0 {
            say("deleted 0 keys")?;
            return Ok(ExitCode::SUCCESS);
        }
        return Err(Failure::usage(SelectionError::Unconfirmed(count)));
    }
    let (mut deleted, mut refused, mut after) = (0, Vec::new(), None);
    loop {
        let step: Deletion<'static> = server.ask_keys(Method::DELETE, &path(prefix, "", after.as_deref()), ACTION)?;
        deleted += step.deleted;
        refused.extend(step.refused);
        after = step.next;
        if after.is_none() {
            break;
        }
    }
    say(&format!("deleted {}", count(deleted, "key", "keys")))?;
    if refused.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(failure(refused)) }
}

/// Prints the keys that would be deleted, one per line, and their number to standard error.
fn dry_run(server: &Server, prefix: &str) -> Result<ExitCode, Failure> {
    let (mut found, mut after) = (0, None);
    loop {
        let path = path(prefix, "&dry_run", after.as_deref());
        let DryRun { would_delete, next } = server.ask_keys(Method::DELETE, &path, ACTION)?;
        found += would_delete.len() as u64;
        for key in would_delete {
            if !say(&shown(&key))? {
                return Ok(ExitCode::SUCCESS);
            }
        }
        after = next;
        if after.is_none() {
            logging::say(&format!("{} would be deleted", count(found, "key", "keys")));
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Returns the path and query of one step.
fn path(prefix: &str, flags: &str, after: Option<&str>) -> String {
    let keys = if prefix.is_empty() { "all".to_owned() } else { format!("prefix={}", encode(prefix)) };
    let after = after.map(|after| format!("&after={}", encode(after))).unwrap_or_default();
    format!("/keys?{keys}{flags}{after}")
}

/// The failure that names the keys which plugins refused to delete.
fn failure(refused: Vec<Problem<'static>>) -> Failure {
    let more = refused.len().saturating_sub(NAMED_MAX);
    let name = |problem: Problem<'static>| SelectionError::Refused {
        key: problem.key.unwrap_or_default().into_owned(),
        title: problem.title.into_owned(),
        status: problem.status,
    };
    let named = refused.into_iter().take(NAMED_MAX).map(name);
    Failure::with_status(Status::Refused, named.chain((more > 0).then_some(SelectionError::MoreRefused(more))))
}
