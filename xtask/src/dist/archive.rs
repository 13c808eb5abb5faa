//! The archives of a release. Paths are sorted, and modes and times do not depend on the machine, so that two builds of
//! the same files give the same archive.

use std::fs;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, write::GzEncoder};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::Result;

/// A folder to pack, the folder in the archive that it becomes, and the paths in it that are programs.
pub(super) struct Packed<'a> {
    pub(super) folder: &'a Path,
    pub(super) prefix: &'a str,
    pub(super) programs: &'a [&'a str],
}

/// A file or a folder of an archive.
struct Entry {
    source: PathBuf,
    /// The path in the archive, with slashes on every system.
    path: String,
    is_folder: bool,
    mode: u32,
}

impl Packed<'_> {
    /// Returns the folder and everything below it, sorted by name. The modes do not depend on the umask: only the owner may
    /// write, because the server refuses plugins that other users can modify.
    fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = vec![self.entry(self.folder)?];
        self.add(self.folder, &mut entries)?;
        // The root of a package has no path in it.
        entries.retain(|entry| !entry.path.is_empty());
        Ok(entries)
    }

    fn add(&self, folder: &Path, entries: &mut Vec<Entry>) -> Result<()> {
        let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            entries.push(self.entry(&path)?);
            if path.is_dir() {
                self.add(&path, entries)?;
            }
        }
        Ok(())
    }

    fn entry(&self, source: &Path) -> Result<Entry> {
        let within = source.strip_prefix(self.folder)?.to_string_lossy().replace('\\', "/");
        let is_folder = source.is_dir();
        let mode = if is_folder || self.programs.contains(&within.as_str()) { 0o755 } else { 0o644 };
        let path = format!("{}/{within}", self.prefix).trim_matches('/').to_owned();
        Ok(Entry { source: source.to_owned(), path, is_folder, mode })
    }
}

/// Writes a compressed tar archive, whose files belong to root, and returns the writer.
pub(super) fn tar_gz<W: Write>(packed: &Packed<'_>, time: u64, writer: W) -> Result<W> {
    let mut archive = tar::Builder::new(GzEncoder::new(writer, Compression::default()));
    for entry in packed.entries()? {
        let data = if entry.is_folder { Vec::new() } else { fs::read(&entry.source)? };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(if entry.is_folder { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_mode(entry.mode);
        header.set_size(data.len() as u64);
        header.set_mtime(time);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, &entry.path, data.as_slice())?;
    }
    Ok(archive.into_inner()?.finish()?)
}

/// Writes a zip archive. Its times are always the first that the format knows.
pub(super) fn zip(packed: &Packed<'_>, writer: impl Write + Seek) -> Result<()> {
    let mut archive = ZipWriter::new(writer);
    for entry in packed.entries()? {
        let options = SimpleFileOptions::default().unix_permissions(entry.mode);
        if entry.is_folder {
            archive.add_directory(entry.path, options)?;
        } else {
            archive.start_file(entry.path, options)?;
            archive.write_all(&fs::read(&entry.source)?)?;
        }
    }
    archive.finish()?;
    Ok(())
}
