//! `vkog check`: verifies a store and prints a summary. Read-only.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;

use super::{bytes, count, entries, read, read_way_out, say, to_read};
use crate::failure::{Failure, Status};
use crate::schema::export::START;
use vkog_store::{Contents, Damage, Defect, LeftOut, LostLog, StoreError, is_repairable};

/// A store that cannot be read, with what the operator can do.
#[derive(Debug, Error)]
enum CheckError {
    #[error("{}", way_out(.path, .source, *.is_repairable))]
    Store { path: PathBuf, source: StoreError, is_repairable: bool },
    #[error("cannot check {0}: it is a backup, not a store; verify it with `vkog restore -f NEW {0}`", .path.display())]
    Backup { path: PathBuf, source: StoreError },
}

/// Verifies a store and prints a summary.
///
/// # Errors
///
/// It is damaged or does not exist.
///
/// The status is [`Status::NotFound`] if the snapshot is intact and its log is missing.
pub fn check(path: &Path) -> Result<ExitCode, Failure> {
    let _lock = to_read(path)?;
    let contents = read(path).map_err(|source| {
        if let StoreError::Unreadable { path, damage: Damage::At { defect: Defect::Entries(left_out), .. } } = &source {
            left_out_lines(path, left_out).iter().for_each(|line| say(line));
        }
        match is_backup(path) {
            true => CheckError::Backup { path: path.to_owned(), source },
            false => CheckError::Store { path: path.to_owned(), source, is_repairable: is_repairable(path) },
        }
    })?;
    lines(path, &contents).iter().for_each(|line| say(line));
    Ok(if contents.lost_log().is_some() { Status::NotFound } else { Status::Success }.into())
}

/// Returns whether a file begins like one of `vkog backup`.
fn is_backup(path: &Path) -> bool {
    let mut start = [0; START.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *START
}

fn lines(path: &Path, contents: &Contents) -> Vec<String> {
    let (number, size) = contents.totals();
    let snapshot = match (contents.snapshot_len(), contents.generation()) {
        (0, _) => "no snapshot yet".to_owned(),
        (len, 0) => format!("written by the Go program, {}", bytes(len)),
        (len, generation) => format!("snapshot {generation}, {}", bytes(len)),
    };
    let mut logs = String::new();
    let mut lines = Vec::new();
    for log in contents.logs() {
        let shown = log.path.display();
        logs.push_str(&format!("; {shown} {}, {}", bytes(log.len), count(log.records, "record", "records")));
        if log.torn > 0 {
            lines.push(format!(
                "{shown}: {} of unfinished records follow byte {}, as a crash leaves them; the next start cuts them off",
                bytes(log.torn),
                log.len
            ));
        }
    }
    let summary = format!(
        "{}: {}; {} of {}, revision {}; {snapshot}{logs}",
        path.display(),
        if contents.lost_log().is_some() { "log missing" } else { "intact" },
        entries(number),
        bytes(size),
        contents.revision()
    );
    lines.insert(0, summary);
    if let Some(lost) = contents.lost_log() {
        lines.push(lost_log(lost));
    }
    lines
}

/// Maximum number of lines about entries that cannot be in a store.
const LEFT_OUT_MAX: usize = 100;
/// Maximum number of bytes of a key in a line.
const SHOWN_MAX: usize = 40;

/// Returns the lines about entries that cannot be in a store: their position, the reason, and the start of their keys.
pub(super) fn left_out_lines(path: &Path, left_out: &[LeftOut]) -> Vec<String> {
    let shown = path.display();
    let line = |entry: &LeftOut| {
        let key = &entry.key[..entry.key.len().min(SHOWN_MAX)];
        let more = if key.len() < entry.key.len() { "\u{2026}" } else { "" };
        format!("{shown}: byte {}: {}: \"{}{more}\"", entry.at, entry.reason, key.escape_ascii())
    };
    let mut lines: Vec<String> = left_out.iter().take(LEFT_OUT_MAX).map(line).collect();
    if left_out.len() > LEFT_OUT_MAX {
        lines.push(format!("{shown}: {} more", entries((left_out.len() - LEFT_OUT_MAX) as u64)));
    }
    lines
}

/// Returns the line about a missing log.
pub(super) fn lost_log(lost: &LostLog) -> String {
    format!("{lost}; restore it, or start a server to continue without it")
}

/// Returns the message of an error, with the way out for this command.
fn way_out(path: &Path, error: &StoreError, is_repairable: bool) -> String {
    let salvage = match is_repairable {
        true => {
            format!("nothing was changed, restore a copy, or repair the store with `vkog repair {}`", path.display())
        }
        false => "nothing was changed; there is nothing to repair in it, restore a copy".to_owned(),
    };
    match error {
        StoreError::Unreadable { path, damage: Damage::Io(error) }
            if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory) =>
        {
            format!("cannot read {}: {error}; {}", path.display(), read_way_out(error))
        }
        StoreError::Unreadable { path, damage } => format!("cannot read {}: {damage}; {salvage}", path.display()),
        StoreError::Mismatch { path, mismatch } => format!("cannot use {}: {mismatch}; {salvage}", path.display()),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_the_user_may_not_read_is_not_called_damaged() {
        let damage = Damage::Io(io::ErrorKind::PermissionDenied.into());
        let error = StoreError::Unreadable { path: "a.vkog".into(), damage };
        let expected = "cannot read a.vkog: permission denied; let this user read it";
        assert_eq!(way_out(Path::new("a.vkog"), &error, false), expected);
    }
}
