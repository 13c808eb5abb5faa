//! `vkog delete`: removes an entry.

use std::process::ExitCode;

use ureq::http::Method;

use super::{Conditions, Remote, Server};
use crate::failure::Failure;

/// What to remove.
#[derive(clap::Args)]
pub struct Delete {
    /// The key
    key: String,

    #[command(flatten)]
    conditions: Conditions,

    #[command(flatten)]
    remote: Remote,
}

/// Removes an entry.
///
/// # Errors
///
/// There is no such entry, the server cannot be reached, or it refused.
pub fn delete(Delete { key, conditions, remote }: Delete) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    let request = conditions.add_to(server.for_key(Method::DELETE, &key));
    server.ask(request).map_err(|error| error.of(format!("delete {key}")))?;
    Ok(ExitCode::SUCCESS)
}
