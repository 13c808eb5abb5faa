//! `vkog get`: the value of a key, byte for byte.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ureq::http::{Method, StatusCode};

use super::error::ClientError;
use super::{Conditions, Counted, Escaping, Remote, Server, behind_links, key, reader, revision, say};
use crate::commands::new_file::NewFile;
use crate::failure::Failure;

/// The arguments of `vkog get`.
#[derive(clap::Args)]
pub struct Get {
    /// The key
    #[arg(value_parser = key)]
    key: String,

    /// Write the value to this file; a failed download leaves the file unchanged; - is standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Print the value byte for byte, also on a terminal
    #[arg(long)]
    raw: bool,

    /// Print the revision instead of the value
    #[arg(long, conflicts_with_all = ["output", "raw"])]
    revision: bool,

    #[command(flatten)]
    conditions: Conditions,

    #[command(flatten)]
    remote: Remote,
}

/// Gets a value and writes it. Writes nothing if `--if-none-match` names the current revision.
///
/// # Errors
///
/// The key does not exist, the server cannot be reached, or the value cannot be written.
pub fn get(Get { key, output, raw, revision: only_revision, conditions, remote }: Get) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    let method = if only_revision { Method::HEAD } else { Method::GET };
    let action = format!("get {}", key);
    let request = conditions.add_to(server.for_key(method, &key));
    let response = server.ask(request).map_err(|error| error.of(&*action))?;
    if response.status() == StatusCode::NOT_MODIFIED {
        return Ok(ExitCode::SUCCESS);
    }
    if only_revision {
        let revision = revision(&response).ok_or(ClientError::NoRevision { action })?;
        say(revision)?;
        return Ok(ExitCode::SUCCESS);
    }
    let body = response.into_body();
    let total = body.content_length().unwrap_or(0);
    let mut value = Counted::new(reader(body), format!("getting {key}"), total);
    let lost = |source| server.interrupted(source).of(&*action);
    match output.filter(|path| path.as_os_str() != "-") {
        None if raw || !io::stdout().is_terminal() => print(&mut value, io::stdout().lock(), &lost)?,
        None => print(&mut value, Escaping::new(io::stdout().lock()), &lost)?,
        Some(path) => write(&mut value, &path, &lost)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the error of a response that cannot be read to its end.
type Lost<'a> = &'a dyn Fn(io::Error) -> ClientError;

/// Copies a value to standard output.
fn print(value: &mut impl Read, to: impl Write, lost: Lost<'_>) -> Result<(), ClientError> {
    copy(value, to, "standard output", lost)
}

/// Copies a value. A closed standard output is not an error.
fn copy(value: &mut impl Read, mut to: impl Write, name: &str, lost: Lost<'_>) -> Result<(), ClientError> {
    let unwritable = |source| ClientError::Write { name: name.to_owned(), source };
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = value.read(&mut piece).map_err(lost)?;
        if read == 0 {
            break;
        }
        match to.write_all(&piece[..read]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(unwritable)?,
        }
    }
    match to.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(unwritable(error)),
        _ => Ok(()),
    }
}

/// Writes a value beside the file, then renames it: a part of a value never replaces the file.
fn write(value: &mut impl Read, path: &Path, lost: Lost<'_>) -> Result<(), ClientError> {
    let shown = path.display().to_string();
    let unwritable = |source: io::Error| ClientError::Write { name: shown.clone(), source };
    // The user means a device or a pipe that exists; a link is followed.
    if path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return copy(value, File::options().write(true).open(path).map_err(unwritable)?, &shown, lost);
    }
    let path = behind_links(path).map_err(unwritable)?;
    // The permissions of a new file, or those of the file that is replaced.
    #[cfg(unix)]
    let mode = {
        use std::os::unix::fs::PermissionsExt;
        path.metadata().map_or(0o666, |there| there.permissions().mode() & 0o7777)
    };
    #[cfg(not(unix))]
    let mode = 0;
    let mut file = NewFile::create(&path, mode).map_err(unwritable)?;
    copy(value, &mut file, &shown, lost)?;
    file.persist(&path, true).map_err(unwritable)
}
