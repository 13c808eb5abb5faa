//! `vkog delete`: removes an entry, or all entries with a prefix.

use std::process::ExitCode;

use ureq::http::Method;

use super::delete_prefix::{self, Selection};
use super::{Conditions, Remote, Server, key};
use crate::failure::Failure;

/// The arguments of `vkog delete`.
#[derive(clap::Args)]
pub struct Delete {
    /// The key
    #[arg(value_parser = key, required_unless_present_any = ["prefix", "all"], conflicts_with_all = ["prefix", "all"])]
    key: Option<String>,

    #[command(flatten)]
    selection: Selection,

    #[command(flatten)]
    conditions: Conditions,

    #[command(flatten)]
    remote: Remote,
}

/// Removes an entry, or all entries with a prefix.
///
/// # Errors
///
/// The key does not exist, the server cannot be reached, or it rejects the request. Or a deletion by prefix is not confirmed, or
/// is refused for some keys.
pub fn delete(Delete { key, selection, conditions, remote }: Delete) -> Result<ExitCode, Failure> {
    let Some(key) = key else { return delete_prefix::delete(&selection, remote) };
    let server = Server::new(remote)?;
    let request = conditions.add_to(server.for_key(Method::DELETE, &key));
    server.ask(request).map_err(|error| error.of(format!("delete {key}")))?;
    Ok(ExitCode::SUCCESS)
}
