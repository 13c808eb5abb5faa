//! `vkog export`: writes all entries as JSON lines or as one MessagePack map.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use thiserror::Error;

use super::shared::SharedArgs;
use super::{entries, read, say, to_read, write_way_out};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::schema::export::EntryLine;
use vkog_store::Entry;

/// How an export is written.
#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// One map, as the Go program writes it.
    Msgpack,
}

/// Why an export cannot be written.
#[derive(Debug, Error)]
#[non_exhaustive]
enum ExportError {
    #[error("cannot write standard output: {0}; write to a file instead")]
    Stdout(#[source] io::Error),
    #[error("cannot write {}: the file exists; remove it, or choose another name", .path.display())]
    Exists { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}; {}", .path.display(), write_way_out(.source))]
    Unwritable { path: PathBuf, source: io::Error },
}

/// More entries than a MessagePack map can have.
#[derive(Debug, Error)]
#[error("a MessagePack map has at most 4,294,967,295 entries; use --format json")]
struct TooManyEntries;

/// Writes all entries of a store, ordered by key, to a new file or to standard output.
///
/// # Errors
///
/// The store cannot be read, or the output cannot be written.
pub fn export(path: &Path, shared: SharedArgs, format: Format, output: Option<&Path>) -> Result<ExitCode, Failure> {
    if let Some(target) = shared.target() {
        let shared = target.open()?;
        let entries = shared.entries()?;
        if entries.is_empty() {
            // As for a prefix that was mistyped.
            tracing::warn!("{} has no entries; check its prefix", shared.url);
        }
        return write_all(&shared.url.to_string(), &entries, format, output);
    }
    let _lock = to_read(path)?;
    let contents = read(path)?;
    write_all(&path.display().to_string(), &contents.entries(), format, output)
}

/// Writes the entries of a store with this name.
fn write_all(name: &str, all: &[Entry], format: Format, output: Option<&Path>) -> Result<ExitCode, Failure> {
    let bar = Bar::new(format!("exporting {name}"));
    let Some(output) = output.filter(|output| *output != "-") else {
        return match write(io::stdout().lock(), all, format, &bar) {
            // The reader has closed standard output.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
            Err(error) => Err(ExportError::Stdout(error).into()),
            Ok(()) => Ok(ExitCode::SUCCESS),
        };
    };
    write_file(output, all, format, bar)?;
    let (count, shown) = (entries(all.len() as u64), output.display());
    say(&format!("{name}: exported {count} to {shown}"));
    Ok(ExitCode::SUCCESS)
}

/// Writes the entries to a new file, or to a device or a pipe.
fn write_file(output: &Path, all: &[Entry], format: Format, bar: Bar) -> Result<(), ExportError> {
    let unwritable = |source: io::Error| match source.kind() {
        // The file may be a store, even the exported one.
        io::ErrorKind::AlreadyExists => ExportError::Exists { path: output.to_owned(), source },
        _ => ExportError::Unwritable { path: output.to_owned(), source },
    };
    // The operator means a device or a pipe that exists.
    let is_special = output.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir());
    let mut options = File::options();
    options.write(true).create_new(!is_special);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Only the owner may read it, as a new store.
        options.mode(0o600);
    }
    let file = options.open(output).map_err(unwritable)?;
    let written = write(&file, all, format, &bar).and_then(|()| if is_special { Ok(()) } else { file.sync_all() });
    drop(bar);
    if let Err(error) = written {
        if !is_special {
            // A part of an export is useless.
            let _ = std::fs::remove_file(output);
        }
        return Err(unwritable(error));
    }
    Ok(())
}

fn write(out: impl Write, all: &[Entry], format: Format, bar: &Bar) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, out);
    let total = all.len() as u64;
    match format {
        Format::Json => {
            for (number, entry) in (1..).zip(all) {
                serde_json::to_writer(&mut out, &EntryLine::from(entry))?;
                out.write_all(b"\n")?;
                bar.set(number, total);
            }
        }
        Format::Msgpack => {
            let count = u32::try_from(total).map_err(|_| io::Error::other(TooManyEntries))?;
            rmp::encode::write_map_len(&mut out, 2)?;
            rmp::encode::write_str(&mut out, "KV")?;
            rmp::encode::write_map_len(&mut out, count)?;
            for (number, entry) in (1..).zip(all) {
                rmp::encode::write_str(&mut out, entry.key())?;
                match str::from_utf8(entry.value()) {
                    Ok(text) => rmp::encode::write_str(&mut out, text)?,
                    Err(_) => rmp::encode::write_bin(&mut out, entry.value())?,
                }
                bar.set(number, total);
            }
            rmp::encode::write_str(&mut out, "KVSize")?;
            rmp::encode::write_uint(&mut out, all.iter().map(Entry::size).sum())?;
        }
    }
    out.flush()
}
