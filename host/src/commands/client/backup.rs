//! `vkog backup`: writes an export of a running server to a file, which exists only if it is complete, or to standard output.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;
use ureq::http::Method;

use super::error::{ClientError, RequestError};
use super::{Counted, Remote, Server, behind_links, reader, say};
use crate::commands::new_file::NewFile;
use crate::commands::{count, entries};
use crate::failure::{Failure, Status};
use crate::schema::export::{Incomplete, Start, Verifier};
use vkog_store::{Disk, LocalDisk};

/// The arguments of `vkog backup`.
#[derive(clap::Args)]
pub struct Backup {
    /// The new file; - is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Back up only the changes after this earlier backup
    #[arg(long, value_name = "BACKUP")]
    since: Option<PathBuf>,

    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,

    #[command(flatten)]
    remote: Remote,
}

/// Why there is no backup.
#[derive(Debug, Error)]
#[non_exhaustive]
enum BackupError {
    #[error("cannot write {}: the file exists; choose another name, or replace it with --overwrite", .path.display())]
    Exists { path: PathBuf, source: io::Error },
    #[error("cannot write {}: it is not a regular file; choose another file", .0.display())]
    NotAFile(PathBuf),
    #[error("cannot write {}: it is the backup of --since, which is still needed; choose another name", .0.display())]
    IsSince(PathBuf),
    #[error("cannot back up to {}: {source}; {}", .output.name(), .output.way_out())]
    Incomplete { output: Output, source: Incomplete },
    #[error("cannot back up the changes after {}: {source}; give a complete backup", .path.display())]
    Since { path: PathBuf, source: Incomplete },
    #[error("cannot back up the changes after {}: it is a backup of another store; make a full backup", .0.display())]
    OtherStore(PathBuf),
    #[error(
        "cannot back up the changes after {}: the server continues another copy of the store, or was restarted after a crash; \
         make a full backup",
        .0.display()
    )]
    OtherTimeline(PathBuf),
    #[error(
        "cannot back up the changes after {}: it is a backup of a client with another key prefix; use the token of that backup, or make \
         a full backup",
        .0.display()
    )]
    OtherPrefix(PathBuf),
}

/// Where a backup goes.
#[derive(Clone, Debug)]
enum Output {
    Stdout,
    /// The file as it was given, and the file behind links, which is written.
    File {
        given: PathBuf,
        target: PathBuf,
    },
}

impl Output {
    /// Checks that the file can be written.
    fn new(file: PathBuf, since: Option<&Path>, overwrite: bool) -> Result<Self, Failure> {
        if file.as_os_str() == "-" {
            return Ok(Self::Stdout);
        }
        if !overwrite && file.symlink_metadata().is_ok() {
            return Err(BackupError::Exists { path: file, source: io::ErrorKind::AlreadyExists.into() }.into());
        }
        // Only a file is replaced: a link stays, and so does a device or a folder.
        let target = behind_links(&file);
        let target = target.map_err(|source| ClientError::Write { name: file.display().to_string(), source })?;
        if target.metadata().is_ok_and(|there| !there.is_file()) {
            return Err(BackupError::NotAFile(file).into());
        }
        if since.is_some_and(|since| since.canonicalize().is_ok_and(|since| since == target)) {
            return Err(BackupError::IsSince(file).into());
        }
        Ok(Self::File { given: file, target })
    }

    fn name(&self) -> String {
        match self {
            Self::Stdout => "standard output".to_owned(),
            Self::File { given, .. } => given.display().to_string(),
        }
    }

    /// What to do about a backup that is not complete.
    fn way_out(&self) -> &'static str {
        match self {
            Self::Stdout => "discard the output, and try again",
            Self::File { .. } => "nothing was written, try again",
        }
    }

    fn unwritable(&self, source: io::Error) -> ClientError {
        ClientError::Write { name: self.name(), source }
    }
}

/// Backs a server up. A file gets its name when it is complete and on disk.
///
/// # Errors
///
/// The file exists or is not a regular file, the server cannot be reached or refuses, or the export is not complete. No file is
/// written then; standard output may have a part of the export.
pub fn backup(Backup { file, since, overwrite, remote }: Backup) -> Result<ExitCode, Failure> {
    let output = Output::new(file, since.as_deref(), overwrite)?;
    let since = since.map(|path| read_start(&path).map(|start| (path, start))).transpose()?;
    let server = Server::new(remote)?;
    let query = since.as_ref().map(|(_, start)| format!("?since={}", start.revision)).unwrap_or_default();
    let action = format!("back up to {}", output.name());
    let response = server.ask(server.request(Method::GET, &format!("/export{query}")));
    let response = response.map_err(|error| error.of(&*action))?;
    let mut body = Counted::new(reader(response.into_body()), action.clone(), 0);
    let check = |start: &Start| since.as_ref().map_or(Ok(()), |(path, before)| check_start(start, before, path));
    let unwritable = |source| output.unwritable(source);
    let Output::File { given, target } = &output else {
        receive(&mut body, &mut io::stdout().lock(), &output, &action, check)?;
        return Ok(ExitCode::SUCCESS);
    };
    // Accessible to its owner only, as a store.
    let mut new = NewFile::create(target, 0o600).map_err(unwritable)?;
    let (start, lines) = receive(&mut body, &mut new, &output, &action, check)?;
    new.file().sync_all().map_err(unwritable)?;
    match new.persist(target, overwrite) {
        Ok(()) => {}
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Exists { path: given.clone(), source }.into());
        }
        Err(error) => return Err(unwritable(error).into()),
    }
    LocalDisk.sync_folder(target).map_err(unwritable)?;
    let what = match start.since {
        None => entries(lines),
        Some(since) => format!("{} after revision {since}", count(lines, "change", "changes")),
    };
    say(&format!("{}: backed up {what}, as of revision {}", given.display(), start.revision))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the response to the output. Calls `check` with its start line as soon as that is known. Returns the start line and the
/// number of its records.
fn receive(
    body: &mut impl Read,
    to: &mut impl Write,
    output: &Output,
    action: &str,
    check: impl Fn(&Start) -> Result<(), Failure>,
) -> Result<(Start, u64), Failure> {
    let incomplete = |source| BackupError::Incomplete { output: output.clone(), source };
    let mut verifier = Verifier::default();
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = match body.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => &piece[..read],
            Err(source) => return Err(RequestError::Interrupted(source).of(action).into()),
        };
        verifier.push(read).map_err(incomplete)?;
        verifier.start().map_or(Ok(()), &check)?;
        to.write_all(read).map_err(|source| output.unwritable(source))?;
    }
    to.flush().map_err(|source| output.unwritable(source))?;
    let lines = verifier.lines();
    Ok((verifier.finish().map_err(incomplete)?, lines))
}

/// Checks that an incremental backup continues an earlier one.
fn check_start(start: &Start, before: &Start, path: &Path) -> Result<(), Failure> {
    let error = if start.store != before.store {
        BackupError::OtherStore(path.to_owned())
    } else if !start.continues(before) {
        BackupError::OtherTimeline(path.to_owned())
    } else if start.key_prefix != before.key_prefix {
        BackupError::OtherPrefix(path.to_owned())
    } else {
        return Ok(());
    };
    Err(Failure::with_status(Status::Refused, [error]))
}

/// Verifies an earlier backup and returns its start line.
fn read_start(path: &Path) -> Result<Start, Failure> {
    let unreadable = |source| ClientError::Read { name: path.display().to_string(), source };
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(unreadable)?);
    let since = |source| BackupError::Since { path: path.to_owned(), source };
    let mut verifier = Verifier::default();
    loop {
        let piece = file.fill_buf().map_err(unreadable)?;
        if piece.is_empty() {
            return Ok(verifier.finish().map_err(since)?);
        }
        verifier.push(piece).map_err(since)?;
        let read = piece.len();
        file.consume(read);
    }
}
