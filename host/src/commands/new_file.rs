//! A file that gets its name when it is complete, so that no part of a response or of a library replaces a file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::thread;

use tempfile::{NamedTempFile, TempPath};

use crate::signals;

/// Files with this start of their name are unfinished.
const PREFIX: &str = ".vkog-";

/// A file without its final name. Dropping it removes it.
///
/// On Linux it has no name at all where the filesystem has such files, so that the end of the process removes it, too. Elsewhere it
/// has a temporary name beside the target, and a signal that ends the process removes it.
pub(super) struct NewFile {
    file: File,
    /// The temporary name, if it has one.
    name: Option<TempPath>,
}

impl NewFile {
    /// Creates a file in the folder of `target`. On Unix, `mode` are its permissions, less the umask.
    ///
    /// # Errors
    ///
    /// The folder does not exist or is not writable.
    pub(super) fn create(target: &Path, mode: u32) -> io::Result<Self> {
        match nameless(target, mode) {
            Some(file) => Ok(Self { file, name: None }),
            None => Self::create_named(target, mode),
        }
    }

    fn create_named(target: &Path, mode: u32) -> io::Result<Self> {
        // Before the file exists.
        let ends = signals::signals()?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
        #[cfg(not(unix))]
        let _ = mode;
        let (file, name) = builder.tempfile_in(folder(target))?.into_parts();
        let path = name.to_path_buf();
        thread::spawn(move || {
            if ends.recv().is_ok() {
                let _ = std::fs::remove_file(path);
                signals::exit(1);
            }
        });
        Ok(Self { file, name: Some(name) })
    }

    /// Gives the file its name. With `replace`, it replaces a file of that name.
    ///
    /// # Errors
    ///
    /// There is a file of that name, which is not to be replaced; or the folder is not writable.
    pub(super) fn persist(self, target: &Path, replace: bool) -> io::Result<()> {
        let name = match self.name {
            Some(name) => name,
            None if !replace => return give_name(&self.file, target),
            // The system can give a name, but not one that exists.
            None => tempfile::Builder::new()
                .prefix(PREFIX)
                .make_in(folder(target), |path| give_name(&self.file, path))
                .map(NamedTempFile::into_temp_path)?,
        };
        let persisted = if replace { name.persist(target) } else { name.persist_noclobber(target) };
        persisted.map_err(|error| error.error)
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The folder of a path.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Creates a file without a name, if the system can give it one later.
#[cfg(target_os = "linux")]
fn nameless(target: &Path, mode: u32) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};

    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = File::from(open(folder(target), flags, Mode::from_raw_mode(mode)).ok()?);
    // Without /proc, there is no path by which an unprivileged process can give it a name.
    descriptor(&file).symlink_metadata().is_ok().then_some(file)
}

#[cfg(not(target_os = "linux"))]
fn nameless(_: &Path, _: u32) -> Option<File> {
    None
}

/// Gives a file without a name a new one.
#[cfg(target_os = "linux")]
fn give_name(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};

    Ok(linkat(CWD, descriptor(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(not(target_os = "linux"))]
fn give_name(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The path of an open file.
#[cfg(target_os = "linux")]
fn descriptor(file: &File) -> std::path::PathBuf {
    use std::os::fd::AsRawFd;

    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}
