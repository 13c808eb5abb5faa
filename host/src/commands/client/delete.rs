//! `vkog delete`: removes an entry.

use std::process::ExitCode;

use ureq::http::Method;

use super::{Conditions, Remote, Server};
use crate::failure::Failure;

/// The arguments of `vkog delete`.
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
/// The key does not exist, the server cannot be reached, or it rejects the request.
pub fn delete(Delete { key, conditions, remote }: Delete) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    let request = conditions.add_to(server.for_key(Method::DELETE, &key));
    server.ask(request).map_err(|error| error.of(format!("delete {key}")))?;
    Ok(ExitCode::SUCCESS)
}
