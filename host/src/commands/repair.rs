//! `vkog repair`: recovers the intact entries of a damaged store.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;

use super::check::{left_out_lines, lost_log};
use super::entry::LeftOutLine;
use super::{bytes, count, entries, lock, say};
use crate::failure::{Failure, Status};
use crate::progress::Bar;
use vkog_store::{self as store, LeftOut, Lost, Origin, Repair, Salvaged, StoreError};

/// The entries that cannot be in a store cannot be written beside it.
#[derive(Debug, Error)]
#[error(
    "cannot write {}: {source}; the store is repaired, and the damaged file beside it has the entries that were left out",
    .path.display()
)]
struct LeftOutError {
    path: PathBuf,
    source: io::Error,
}

/// A store that cannot be repaired, with what the operator can do.
#[derive(Debug, Error)]
#[error("{}", way_out(.0))]
struct RepairError(#[source] StoreError);

/// Repairs a store if it is damaged.
///
/// # Errors
///
/// Nothing could be recovered or written, or another process uses the store.
///
/// The status is [`Status::NotFound`] if the snapshot is intact and its log is missing, as for `vkog check`.
pub fn repair(path: &Path) -> Result<ExitCode, Failure> {
    let lock = lock(path)?;
    let shown = path.display();
    let bar = Bar::new(format!("repairing {shown}"));
    let repaired = store::repair(lock.store(), &|done, total| bar.set(done, total));
    drop(bar);
    let repaired = match repaired.map_err(RepairError)? {
        Repair::Intact => {
            say(&format!("{shown}: intact; nothing was changed"));
            return Ok(ExitCode::SUCCESS);
        }
        Repair::LostLog(lost) => {
            say(&format!("{shown}: log missing; nothing was changed"));
            say(&lost_log(&lost));
            return Ok(Status::NotFound.into());
        }
        Repair::Repaired(repaired) => repaired,
    };
    repaired.files.iter().flat_map(lines).for_each(|line| say(&line));
    report_left_out(path, &repaired.left_out)?;
    let (number, size) = repaired.totals;
    let moved: Vec<String> = repaired.moved.iter().map(|moved| moved.to.display().to_string()).collect();
    say(&format!(
        "{shown}: repaired; {} of {}, revision {}; the previous files are {}",
        entries(number),
        bytes(size),
        repaired.revision,
        moved.join(", ")
    ));
    Ok(ExitCode::SUCCESS)
}

/// Returns the lines about a file: its recovered entries, and its lost bytes.
fn lines(file: &Salvaged) -> Vec<String> {
    let shown = file.path.display();
    let mut lines = Vec::new();
    let lost: u64 = file.lost.iter().map(|lost| lost.bytes).sum();
    let lost = match lost {
        _ if file.lost.is_empty() => "nothing lost".to_owned(),
        0 => "its end is lost".to_owned(),
        bytes_lost => format!("{} lost", bytes(bytes_lost)),
    };
    match file.origin {
        Origin::Snapshot { chunks, entries: intact, unverified, directory_is_damaged } => {
            let chunks = count(chunks, "intact chunk", "intact chunks");
            lines.push(format!("{shown}: {} from {chunks}, {lost}", entries(intact)));
            if unverified > 0 {
                lines.push(format!(
                    "{shown}: {} more without a valid checksum; check their values",
                    entries(unverified)
                ));
            }
            if directory_is_damaged {
                lines.push(format!(
                    "{shown}: its directory is damaged; revisions are new, media types and details may be missing or wrong"
                ));
            }
        }
        Origin::GoFile { entries: number } => lines.push(format!(
            "{shown}: {}, {lost}; the Go program writes no checksums, check the values",
            entries(number)
        )),
        Origin::Nothing => lines.push(format!("{shown}: it has no data of a store")),
        Origin::Log { records, gap } => {
            lines.push(format!("{shown}: {}, {lost}", count(records, "intact record", "intact records")));
            if gap {
                lines.push(format!("{shown}: it continues a later snapshot; the changes between them are missing"));
            }
        }
        Origin::Foreign => lines.push(format!("{shown}: it belongs to another store; nothing was recovered from it")),
        Origin::Superseded => {
            lines.push(format!("{shown}: it is older than the snapshot; nothing was recovered from it"))
        }
    }
    lines.extend(file.lost.iter().map(|lost| format!("{shown}: {}", hole(lost))));
    lines
}

/// Writes the entries that cannot be in a store to a file beside it, and says which they are.
fn report_left_out(path: &Path, left_out: &[LeftOut]) -> Result<(), LeftOutError> {
    if left_out.is_empty() {
        return Ok(());
    }
    left_out_lines(path, left_out).iter().for_each(|line| say(line));
    let written = write_left_out(path, left_out)?;
    let (shown, written) = (path.display(), written.display());
    say(&format!(
        "{shown}: {} left out, and written to {written}; correct the keys and values there, and add them with `vkog import -f {shown} {written}`",
        entries(left_out.len() as u64)
    ));
    Ok(())
}

/// Writes the entries as lines for `vkog import`, to a new file that only its owner can read.
fn write_left_out(path: &Path, left_out: &[LeftOut]) -> Result<PathBuf, LeftOutError> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut number = 1;
    let (name, file) = loop {
        let ending = if number == 1 { ".left-out.json".to_owned() } else { format!(".left-out.{number}.json") };
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        match options.open(&name) {
            Ok(file) => break (PathBuf::from(name), file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(source) => return Err(LeftOutError { path: name.into(), source }),
        }
    };
    let mut out = BufWriter::new(file);
    let mut write = || {
        for entry in left_out {
            serde_json::to_writer(&mut out, &LeftOutLine::from(entry))?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
        out.get_ref().sync_all()
    };
    match write() {
        Ok(()) => Ok(name),
        Err(source) => Err(LeftOutError { path: name, source }),
    }
}

fn hole(lost: &Lost) -> String {
    if lost.bytes == 0 {
        let what = lost.entries.map_or_else(|| "what".to_owned(), |number| format!("{} that", entries(number)));
        return format!("lost {what} followed byte {}, where the file ends", lost.at);
    }
    let what = match (lost.entries, lost.is_tail) {
        (Some(number), _) => format!(" with {}", entries(number)),
        (None, true) => ", the end; unfinished records, as a crash leaves them, look the same".to_owned(),
        (None, false) => String::new(),
    };
    format!("lost {} at byte {}{what}", bytes(lost.bytes), lost.at)
}

fn way_out(error: &StoreError) -> String {
    match error {
        StoreError::Unreadable { path, damage } => {
            format!("cannot repair {}: {damage}; nothing was changed, restore a copy, or move it aside", path.display())
        }
        _ => error.to_string(),
    }
}
