//! `vkog put`: creates or replaces a value, also on a server whose plugin conflict separates the two.

use std::process::ExitCode;

use ureq::http::{Method, StatusCode};

use super::error::ClientError;
use super::write::{Value, Write, finish};
use super::{Conditions, Server};
use crate::failure::Failure;

/// Maximum number of requests for a key that other clients create and delete at the same time.
const ATTEMPTS_MAX: usize = 6;

/// The arguments of `vkog put`.
#[derive(clap::Args)]
pub struct Put {
    /// Fail if the key exists
    #[arg(long, conflicts_with_all = ["update", "if_match", "if_none_match"])]
    create: bool,

    /// Fail if the key does not exist
    #[arg(long, conflicts_with_all = ["if_match", "if_none_match"])]
    update: bool,

    #[command(flatten)]
    write: Write,
}

/// Writes a value and prints its new revision.
///
/// # Errors
///
/// The value cannot be read, the server cannot be reached, or it rejects the write.
pub fn put(Put { write, create, update }: Put) -> Result<ExitCode, Failure> {
    let Write { key, value, file, content_type, ttl, conditions, remote } = write;
    let server = Server::new(remote)?;
    let value = Value::of(value, file)?;
    let (content_type, ttl) = (content_type.as_deref(), ttl.as_deref());
    let send = |conditions: &Conditions| value.send(&server, Method::PUT, &key, content_type, ttl, conditions);
    let revision = match (create, update) {
        (true, _) => send(&Conditions::absent())?,
        (_, true) => send(&Conditions::present())?,
        _ if !conditions.is_empty() => send(&conditions)?,
        _ => upsert(send)?,
    };
    Ok(finish(&server, &key, ttl, revision.as_deref())?)
}

/// Updates the key, or creates it if a plugin refuses to update a key that does not exist.
fn upsert(send: impl Fn(&Conditions) -> Result<Option<String>, ClientError>) -> Result<Option<String>, ClientError> {
    let (any, absent) = (Conditions::default(), Conditions::absent());
    let mut creates = false;
    for _ in 1..ATTEMPTS_MAX {
        match send(if creates { &absent } else { &any }) {
            Err(error) if !creates && error.refusal() == Some(StatusCode::NOT_FOUND) => creates = true,
            // Another client has created it.
            Err(error) if creates && error.refusal() == Some(StatusCode::PRECONDITION_FAILED) => creates = false,
            sent => return sent,
        }
    }
    send(&any)
}
