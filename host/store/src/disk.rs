//! The interface to the file system. Tests implement it by a simulated disk that loses, reorders and tears what was not
//! synced.

use std::fs;
use std::io;
use std::path::Path;
#[cfg(unix)]
use std::sync::Once;

/// The files of a folder.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing; `None` if there is none.
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn File>>>;
    /// Creates an empty file. Replaces an existing file at the path.
    fn create(&self, path: &Path) -> io::Result<Box<dyn File>>;
    /// Gives a file the mode and the owner of another one, if that exists. A new file is accessible to its owner only.
    fn imitate(&self, _path: &Path, _other: &Path) -> io::Result<()> {
        Ok(())
    }
    /// Renames a file, and replaces another one in the same step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file, if it exists.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes all files durable that were created, renamed and removed in the folder of this path.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// The free space of the folder of this path, in bytes, if it is known.
    fn free(&self, _path: &Path) -> Option<u64> {
        None
    }
    /// Whether something is mounted at this path, so that no rename can replace it.
    fn is_mount_point(&self, _path: &Path) -> bool {
        false
    }
}

/// An open file, without a position: every read and write has an offset.
#[expect(clippy::len_without_is_empty, reason = "no caller asks whether a file is empty")]
pub trait File: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills the buffer from an offset on, or fails.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of the data at an offset.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Truncates the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes all data durable that was written.
    fn sync(&self) -> io::Result<()>;
}

/// The disk of this machine.
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn File>>> {
        match fs::File::options().read(true).write(true).open(path) {
            Ok(file) if file.metadata()?.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut options = fs::File::options();
        options.read(true).write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        Ok(Box::new(options.open(path)?))
    }

    fn imitate(&self, path: &Path, other: &Path) -> io::Result<()> {
        imitate(path, other)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    #[cfg(unix)]
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        match fs::File::open(folder(path))?.sync_all() {
            // The file system has no such call; this is not a failure.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                static WARNED: Once = Once::new();
                WARNED.call_once(|| {
                    let folder = folder(path).display();
                    tracing::warn!(
                        "cannot sync the folder {folder}: {error}; a power cut may revert the renames of the last \
                         snapshot"
                    );
                });
                Ok(())
            }
            result => result,
        }
    }

    #[cfg(target_os = "linux")]
    fn is_mount_point(&self, path: &Path) -> bool {
        use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
        let about = statx(CWD, path, AtFlags::empty(), StatxFlags::empty());
        about.is_ok_and(|about| about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }

    #[cfg(unix)]
    fn free(&self, path: &Path) -> Option<u64> {
        let about = rustix::fs::statvfs(folder(path)).ok()?;
        // Some network file systems do not know it and return zero.
        (about.f_blocks > 0).then(|| about.f_bavail.saturating_mul(about.f_frsize))
    }

    /// Windows has no such call: NTFS has a journal of names.
    #[cfg(not(unix))]
    fn sync_folder(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// Gives a file the mode and the owner of another one, if that exists.
#[cfg(unix)]
pub(super) fn imitate(path: &Path, other: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

    let Ok(like) = fs::metadata(other) else { return Ok(()) };
    let now = fs::metadata(path)?;
    let mut mode = like.mode() & 0o777;
    // Only root may change the owner. Another group must not get the rights of the group of the other file.
    if now.gid() != like.gid() && chown(path, None, Some(like.gid())).is_err() {
        mode &= !0o070;
    }
    if now.uid() != like.uid() {
        let _ = chown(path, Some(like.uid()), None);
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// On Windows a file inherits the access rights of its folder.
#[cfg(not(unix))]
pub(super) fn imitate(_: &Path, _: &Path) -> io::Result<()> {
    Ok(())
}

/// The folder of a path.
#[cfg(unix)]
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The disk of this machine, read-only.
pub(super) struct ReadOnlyDisk;

impl Disk for ReadOnlyDisk {
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn File>>> {
        match fs::File::open(path) {
            Ok(file) if file.metadata()?.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, _: &Path) -> io::Result<Box<dyn File>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl File for fs::File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        system::read_at(self, offset, buffer)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        system::write_at(self, offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        fs::File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

#[cfg(unix)]
use unix as system;
#[cfg(windows)]
use windows as system;

/// How Unix reads and writes at an offset.
#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    pub(super) fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    pub(super) fn write_at(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
        file.write_all_at(data, offset)
    }
}

/// How Windows reads and writes at an offset.
#[cfg(windows)]
mod windows {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt;

    pub(super) fn read_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match file.seek_read(buffer, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => (buffer, offset) = (&mut buffer[read..], offset + read as u64),
            }
        }
        Ok(())
    }

    pub(super) fn write_at(file: &File, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let written = file.seek_write(data, offset)?;
            (data, offset) = (&data[written..], offset + written as u64);
        }
        Ok(())
    }
}
