//! `vkog touch`: changes the expiry of an entry and leaves its value.

use std::process::ExitCode;

use ureq::http::Method;

use super::write::{TTL, finish};
use super::{Conditions, Remote, Server, key, revision};
use crate::failure::Failure;

/// The arguments of `vkog touch`.
#[derive(clap::Args)]
pub struct Touch {
    /// The key
    #[arg(value_parser = key)]
    key: String,

    /// Expire after this time: 60s, 5m, 2h, 7d or none (ttl plugin)
    #[arg(long, value_name = "TIME")]
    ttl: String,

    #[command(flatten)]
    conditions: Conditions,

    #[command(flatten)]
    remote: Remote,
}

/// Changes the expiry of an entry and prints its new revision.
///
/// # Errors
///
/// The key does not exist, the server cannot be reached, it rejects the request, or it does not have the plugin ttl.
pub fn touch(Touch { key, ttl, conditions, remote }: Touch) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    let request = conditions.add_to(server.for_key(Method::PATCH, &key)).header(TTL, &ttl);
    let response = server.ask(request).map_err(|error| error.of(format!("touch {key}")))?;
    Ok(finish(&server, &key, Some(&ttl), revision(&response))?)
}
