//! `vkog restore`: makes a store from a backup and the incremental backups that follow it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;

use super::import::{Fault, InputError, Record};
use super::{entries, say};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::schema::export::{Incomplete, Start, Verifier, is_frame};
use vkog_store::{self as store, Contents, Lock, NewEntry, Options, Restore, StoreError};

/// Why backups cannot be restored. Nothing is changed then.
#[derive(Debug, Error)]
#[non_exhaustive]
enum RestoreError {
    #[error("cannot read {}: {source}; give the path of a backup", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("cannot restore {}: {source}; nothing was changed, restore another backup", .path.display())]
    Malformed { path: PathBuf, source: InputError },
    #[error(
        "cannot restore {}: it has only the changes after revision {since}; restore a full backup first",
        .path.display()
    )]
    Incremental { path: PathBuf, since: u64 },
    #[error("cannot restore {}: it is a full backup; give it first, and then its incremental backups", .path.display())]
    Full { path: PathBuf },
    #[error(
        "cannot restore {}: it begins after revision {since}, and the backup before it ends at {revision}; give the \
         backups in between, in order",
        .path.display()
    )]
    Gap { path: PathBuf, since: u64, revision: u64 },
    #[error("cannot restore {}: it is a backup of another store; give the backups of one store", .path.display())]
    OtherStore { path: PathBuf },
    #[error(
        "cannot restore {}: it continues another state than that of the backup before it, from a copy of the store or after \
         a crash; give the backups up to it",
        .path.display()
    )]
    OtherTimeline { path: PathBuf },
    #[error("cannot write {}: the store exists; choose another file, or rename the store with --force", .path.display())]
    Exists { path: PathBuf, source: io::Error },
    #[error("cannot check {}: {source}; choose another file", .path.display())]
    Unknown { path: PathBuf, source: io::Error },
    #[error(
        "cannot restore {}: it is a backup of the keys behind {found:?}, and the backup before it of those behind {expected:?}; give \
         the backups of one client",
        .path.display()
    )]
    OtherPrefix { path: PathBuf, found: String, expected: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a store from a full backup and the incremental backups that follow it, in order. With `force`, a store that exists is
/// renamed. A backup that a client with a key prefix has made lacks that prefix: it comes before each key again, or `key_prefix` does.
///
/// # Errors
///
/// A backup is not complete or does not follow the one before it, or the store exists or cannot be written. Nothing is changed
/// then.
pub fn restore(backups: &[PathBuf], file: &Path, force: bool, key_prefix: Option<&str>) -> Result<ExitCode, Failure> {
    let lock = Lock::take(file)?;
    let existing = store::exists(file);
    let exists = existing.map_err(|source| RestoreError::Unknown { path: file.to_owned(), source })?;
    if exists && !force {
        return Err(RestoreError::Exists { path: file.to_owned(), source: io::ErrorKind::AlreadyExists.into() }.into());
    }
    let mut restore = Restore::default();
    let mut last = None;
    for path in backups {
        last = Some(apply(path, &mut restore, last.as_ref(), key_prefix)?);
    }
    let backup = last.map_or(0, |start| start.revision);
    // A store that is damaged does not say which revisions it has assigned.
    let previous = if exists { Contents::read(lock.store(), &|_, _| {}).map_or(0, |it| it.revision()) } else { 0 };
    let restored = restore.write(lock.store(), Options::default(), backup, previous).map_err(RestoreError::from)?;
    lock.keep();
    let moved: Vec<String> = restored.moved.iter().map(|moved| moved.to.display().to_string()).collect();
    let moved = if moved.is_empty() { String::new() } else { format!("; the previous files are {}", moved.join(", ")) };
    let (count, shown) = (entries(restored.totals.0), file.display());
    say(&format!(
        "{shown}: restored {count} as of revision {backup}; new revisions follow {}{moved}",
        restored.revision
    ));
    Ok(ExitCode::SUCCESS)
}

/// Applies one backup. Returns its start line.
fn apply(
    path: &Path,
    restore: &mut Restore,
    before: Option<&Start>,
    key_prefix: Option<&str>,
) -> Result<Start, RestoreError> {
    let is_stdin = path.as_os_str() == "-";
    let path = if is_stdin { Path::new("standard input") } else { path };
    let unreadable = |source| RestoreError::Unreadable { path: path.to_owned(), source };
    let malformed = |source| RestoreError::Malformed { path: path.to_owned(), source };
    let (input, len): (Box<dyn Read>, u64) = if is_stdin {
        (Box::new(io::stdin()), 0)
    } else {
        let file = File::open(path).map_err(unreadable)?;
        let len = file.metadata().map_or(0, |it| it.len());
        (Box::new(file), len)
    };
    let bar = Bar::new(format!("reading {}", path.display()));
    let mut reader = BufReader::with_capacity(1 << 20, input);
    let (mut verifier, mut line, mut done) = (Verifier::default(), Vec::new(), 0);
    for number in 1_u64.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        done += read as u64;
        bar.set(done, len);
        let had_start = verifier.start().is_some();
        verifier.push(&line).map_err(|source| malformed(source.into()))?;
        if !had_start && let Some(start) = verifier.start() {
            check_start(path, start, before)?;
        }
        // The end of a file that is cut off is no line.
        if is_frame(&line) || line.trim_ascii().is_empty() || line.last() != Some(&b'\n') {
            continue;
        }
        let own = verifier.start().map_or("", |start| &*start.key_prefix);
        add(restore, &line, key_prefix.unwrap_or(own))
            .map_err(|source| malformed(InputError::Line { number, source }))?;
    }
    verifier.finish().map_err(|source: Incomplete| malformed(source.into()))
}

fn add(restore: &mut Restore, line: &[u8], key_prefix: &str) -> Result<(), Fault> {
    match Record::parse(line)?.behind(key_prefix)? {
        Record::Entry { key, value, content_type, details, revision } => {
            let revision = revision.ok_or(Fault::NoRevision)?;
            restore.put(&key, &NewEntry { value: &value, content_type: &content_type, details }, revision);
        }
        Record::Removal { key } => restore.remove(&key),
    }
    Ok(())
}

/// Checks that a backup follows the one before it.
fn check_start(path: &Path, start: &Start, before: Option<&Start>) -> Result<(), RestoreError> {
    let path = path.to_owned();
    match (start.since, before) {
        (None, None) => Ok(()),
        (Some(since), None) => Err(RestoreError::Incremental { path, since }),
        (None, Some(_)) => Err(RestoreError::Full { path }),
        (Some(_), Some(before)) if before.store != start.store => Err(RestoreError::OtherStore { path }),
        (Some(since), Some(before)) if since > before.revision || start.revision < before.revision => {
            Err(RestoreError::Gap { path, since, revision: before.revision })
        }
        (Some(_), Some(before)) if !start.continues(before) => Err(RestoreError::OtherTimeline { path }),
        (Some(_), Some(before)) if start.key_prefix != before.key_prefix => {
            let (found, expected) = (start.key_prefix.clone(), before.key_prefix.clone());
            Err(RestoreError::OtherPrefix { path, found, expected })
        }
        (Some(_), Some(_)) => Ok(()),
    }
}
