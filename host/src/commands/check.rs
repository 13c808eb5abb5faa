//! `vkog check`: what a store holds, and whether it is whole. Changes nothing.

use std::path::Path;
use std::process::ExitCode;

use super::{bytes, count, entries, failure, hold, read, say};
use crate::cli::Failure;
use vkog_store::{Contents, StoreError};

/// The exit status for a store whose log is missing.
pub const LOG_IS_LOST: u8 = 3;

/// Says what a store holds.
///
/// # Errors
///
/// It is damaged, or another process has it.
///
/// The status is [`LOG_IS_LOST`] where the files are whole and the last changes are missing.
pub fn check(path: &Path) -> Result<ExitCode, Failure> {
    let lock = hold(path)?;
    let contents = read(lock.store()).map_err(|error| failure(way_out(path, &error)))?;
    lines(path, &contents).iter().for_each(|line| say(line));
    Ok(if contents.lost_log().is_some() { ExitCode::from(LOG_IS_LOST) } else { ExitCode::SUCCESS })
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
    let whole = format!(
        "{}: {}; {} of {}, revision {}; {snapshot}{logs}",
        path.display(),
        if contents.lost_log().is_some() { "incomplete" } else { "whole" },
        entries(number),
        bytes(size),
        contents.revision()
    );
    lines.insert(0, whole);
    if let Some(lost) = contents.lost_log() {
        lines.push(format!("{lost}; put it back, or start a server to go on without it"));
    }
    lines
}

/// What is wrong, with what can be done about it from here.
fn way_out(path: &Path, error: &StoreError) -> String {
    let mend =
        format!("nothing was changed, put back a copy, or salvage what is whole with `vkog repair {}`", path.display());
    match error {
        StoreError::Unreadable { path, fact } => format!("cannot read {}: {fact}; {mend}", path.display()),
        StoreError::Mismatch { path, fact } => format!("cannot use {}: {fact}; {mend}", path.display()),
        _ => error.to_string(),
    }
}
