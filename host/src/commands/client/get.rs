//! `vkog get`: the value of a key, byte for byte.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tempfile::NamedTempFile;
use ureq::http::{Method, StatusCode};

use super::{Conditions, Counted, Remote, Server, revision, say};
use crate::cli::Failure;
use crate::commands::failure;

/// What to get, and where to put it.
#[derive(clap::Args)]
pub struct Get {
    /// The key
    key: String,

    /// Write to this file, which is replaced only when all has come
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Print the revision, and not the value
    #[arg(long, conflicts_with = "output")]
    revision: bool,

    #[command(flatten)]
    conditions: Conditions,

    #[command(flatten)]
    remote: Remote,
}

/// Gets a value. One that --if-none-match names is not written: there is nothing new.
///
/// # Errors
///
/// There is none, the server cannot be reached, or the value cannot be written.
pub fn get(Get { key, output, revision: only_revision, conditions, remote }: Get) -> Result<ExitCode, Failure> {
    let server = Server::new(remote)?;
    let method = if only_revision { Method::HEAD } else { Method::GET };
    let what = format!("get {key}");
    let request = conditions.add_to(server.for_key(method, &key));
    let response = server.ask(request).map_err(|trouble| trouble.ends(&what))?;
    if response.status() == StatusCode::NOT_MODIFIED {
        return Ok(ExitCode::SUCCESS);
    }
    if only_revision {
        let revision = revision(&response).ok_or_else(|| failure(format!("cannot {what}: no revision came")))?;
        return say(revision).map(|_| ExitCode::SUCCESS);
    }
    let body = response.into_body();
    let total = body.content_length().unwrap_or(0);
    let mut value = Counted::new(body.into_with_config().limit(u64::MAX).reader(), format!("getting {key}"), total);
    match output {
        None => copy(&mut value, io::stdout().lock(), &what, "standard output")?,
        Some(path) => write(&mut value, &path, &what)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Copies a value. Whoever reads standard output may have read enough.
fn copy(value: &mut impl Read, mut to: impl Write, what: &str, shown: &str) -> Result<(), Failure> {
    let mut piece = vec![0; 64 << 10];
    loop {
        match value.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => match to.write_all(&piece[..read]) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(|error| failure(format!("cannot write {shown}: {error}")))?,
            },
            Err(error) => return Err(failure(format!("cannot {what}: the connection was lost: {error}"))),
        }
    }
    match to.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(failure(format!("cannot write {shown}: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a value beside the file, then puts it in the file's place: half a value is none.
fn write(value: &mut impl Read, path: &Path, what: &str) -> Result<(), Failure> {
    let shown = path.display().to_string();
    let unwritable = |error: io::Error| failure(format!("cannot write {shown}: {error}"));
    // A device or a pipe is there, and meant; a link is followed.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return copy(value, File::options().write(true).open(&path).map_err(unwritable)?, what, &shown);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    // As every program makes its files; what was there keeps its own.
    #[cfg(unix)]
    let builder = {
        use std::os::unix::fs::PermissionsExt;
        builder
            .permissions(path.metadata().map_or_else(|_| PermissionsExt::from_mode(0o666), |there| there.permissions()))
    };
    let mut file: NamedTempFile = builder.prefix(".vkog-").tempfile_in(folder).map_err(unwritable)?;
    copy(value, file.as_file_mut(), what, &shown)?;
    file.persist(&path).map(drop).map_err(|error| unwritable(error.error))
}
