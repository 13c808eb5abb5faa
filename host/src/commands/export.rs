//! `vkog export`: all entries, as JSON lines or as one MessagePack map.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::{entries, failure, hold, read, say};
use crate::cli::Failure;
use crate::progress::Bar;
use vkog_store::{DEFAULT_CONTENT_TYPE, Entry};

/// How an export is written.
#[derive(Copy, Clone, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// An object a line.
    Json,
    /// One map, as the Go program writes it.
    Msgpack,
}

/// An entry as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    revision: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    details_base64: Option<String>,
}

impl<'a> Line<'a> {
    fn new(entry: &'a Entry) -> Self {
        let text = str::from_utf8(entry.value()).ok();
        Self {
            key: entry.key(),
            value: text,
            value_base64: if text.is_none() { Some(STANDARD.encode(entry.value())) } else { None },
            content_type: Some(entry.content_type()).filter(|content_type| *content_type != DEFAULT_CONTENT_TYPE),
            revision: entry.revision(),
            details_base64: Some(entry.details()).filter(|details| !details.is_empty()).map(|it| STANDARD.encode(it)),
        }
    }
}

/// Writes all entries of a store, by their keys, to a new file, or to standard output.
///
/// # Errors
///
/// The store cannot be read, another process has it, or the output cannot be written.
pub fn export(path: &Path, format: Format, output: Option<&Path>) -> Result<ExitCode, Failure> {
    let lock = hold(path)?;
    let contents = read(lock.store()).map_err(failure)?;
    let bar = Bar::new(format!("exporting {}", path.display()));
    let all = contents.entries();
    let Some(output) = output.filter(|output| *output != "-") else {
        return match write(io::stdout().lock(), &all, format, &bar) {
            // Whoever reads has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
            Err(error) => Err(failure(format!("cannot write standard output: {error}; give a file instead"))),
            Ok(()) => Ok(ExitCode::SUCCESS),
        };
    };
    let shown = output.display();
    let unwritable = |error: io::Error| match error.kind() {
        // It may be a store, its own even.
        io::ErrorKind::AlreadyExists => {
            failure(format!("cannot write {shown}: it is there already; remove it, or choose another name"))
        }
        _ => failure(format!("cannot write {shown}: {error}; choose another place")),
    };
    // A device or a pipe is there, and meant.
    let is_special = output.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir());
    let mut options = File::options();
    options.write(true).create_new(!is_special);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // As a new store: what is in it is its owner's.
        options.mode(0o600);
    }
    let file = options.open(output).map_err(unwritable)?;
    let written = write(&file, &all, format, &bar).and_then(|()| if is_special { Ok(()) } else { file.sync_all() });
    drop(bar);
    if let Err(error) = written {
        if !is_special {
            // Half an export is none.
            let _ = std::fs::remove_file(output);
        }
        return Err(unwritable(error));
    }
    say(&format!("{}: exported {} to {shown}", path.display(), entries(all.len() as u64)));
    Ok(ExitCode::SUCCESS)
}

fn write(out: impl Write, all: &[Entry], format: Format, bar: &Bar) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, out);
    let total = all.len() as u64;
    match format {
        Format::Json => {
            for (number, entry) in (1..).zip(all) {
                serde_json::to_writer(&mut out, &Line::new(entry))?;
                out.write_all(b"\n")?;
                bar.tell(number, total);
            }
        }
        Format::Msgpack => {
            let count = u32::try_from(total)
                .map_err(|_| io::Error::other("a MessagePack map has at most 4,294,967,295 entries"))?;
            rmp::encode::write_map_len(&mut out, 2)?;
            rmp::encode::write_str(&mut out, "KV")?;
            rmp::encode::write_map_len(&mut out, count)?;
            for (number, entry) in (1..).zip(all) {
                rmp::encode::write_str(&mut out, entry.key())?;
                match str::from_utf8(entry.value()) {
                    Ok(text) => rmp::encode::write_str(&mut out, text)?,
                    Err(_) => rmp::encode::write_bin(&mut out, entry.value())?,
                }
                bar.tell(number, total);
            }
            rmp::encode::write_str(&mut out, "KVSize")?;
            rmp::encode::write_uint(&mut out, all.iter().map(Entry::size).sum())?;
        }
    }
    out.flush()
}
