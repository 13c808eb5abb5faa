//! Whose code a library is: nobody but the operator and root may have been able to write it. What is checked is what is
//! opened: a library is read once, and its bytes, not its path, are judged, hashed, copied and mapped.

use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{LoadFault, Part};
use crate::preflight;
use crate::sha256::Sha256;

/// How the names of folders begin in which private copies are.
const PREFIX: &str = "vkog-plugin-";

/// The largest library that is read, in bytes. A plugin with all of its debug information has a tenth of it.
pub(crate) const LIBRARY_MAX: u64 = 256 << 20;

/// What a library file held when it was read, whatever becomes of the file.
pub(crate) struct Image {
    origin: PathBuf,
    bytes: Vec<u8>,
    sha256: Sha256,
}

/// An image as a file that only this process's user can reach, for the linker. It is gone when this is dropped, and what
/// is mapped stays mapped; but Windows keeps a file that is mapped.
pub(crate) struct PrivateCopy {
    folder: TempDir,
    path: PathBuf,
    /// The file that the path leads to, where it is in memory and not in the folder.
    memory: Option<File>,
}

impl Image {
    /// Reads a library that can be trusted. A path without a folder is one in the current directory, and no path is ever
    /// searched for. Of a library that is pinned by its hash, owners and permissions are not checked: the caller compares
    /// the hash of what was read, and nothing else is opened.
    pub(crate) fn read(path: &Path, pinned: bool) -> Result<Self, LoadFault> {
        Self::of(path, open(path, pinned)?)
    }

    fn of(path: &Path, file: File) -> Result<Self, LoadFault> {
        let too_large = |len: u64| if len > LIBRARY_MAX { Err(LoadFault::TooLarge { len }) } else { Ok(()) };
        let len = file.metadata().map_err(LoadFault::Unreadable)?.len();
        too_large(len)?;
        let mut bytes = Vec::with_capacity(len as usize);
        // One byte more, for a file that grows meanwhile.
        file.take(LIBRARY_MAX + 1).read_to_end(&mut bytes).map_err(LoadFault::Unreadable)?;
        too_large(bytes.len() as u64)?;
        let sha256 = Sha256::of(&bytes);
        Ok(Self { origin: path.to_owned(), bytes, sha256 })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// Writes it to a file with a name of its own, because the linker hands out the old library for a path it knows, and
    /// because a library that is written over while it is mapped crashes the process. The name, which debuggers and
    /// profilers show, is that of the plugin and the beginning of the hash.
    ///
    /// On Linux that file is in memory: a library is never closed, so that a file on a disk would take its room there until
    /// the process ends, however often the plugin was reloaded.
    pub(crate) fn copy(&self) -> Result<PrivateCopy, LoadFault> {
        let base = std::env::temp_dir();
        let failed = |error| LoadFault::NoCopy { folder: base.clone(), error };
        // From the root, since the linker searches for a name without a folder.
        let folder = system::from_root(&base).and_then(|base| system::private_folder(&base)).map_err(failed)?;
        // Whoever may rename the folder may put another one in its place.
        ancestors(folder.path())?;
        let name = self.origin.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.strip_prefix(std::env::consts::DLL_PREFIX).unwrap_or(&name);
        let name: String = name.chars().take(40).collect();
        let hash = self.sha256.to_string();
        let name = format!("{name}-{}{}", &hash[..12], std::env::consts::DLL_SUFFIX);
        let path = folder.path().join(&name);
        let memory = system::in_memory(&name, preflight::mapped(&self.bytes), &path);
        if memory.is_none() {
            let mut file = File::create_new(&path).map_err(failed)?;
            file.write_all(&self.bytes).map_err(failed)?;
        }
        Ok(PrivateCopy { folder, path, memory })
    }
}

impl PrivateCopy {
    /// Where it is, from the root.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Why the linker refused it: what it said, or that nothing may be run from where the copy is.
    pub(crate) fn refused(&self, error: libloading::Error, missing: Option<String>) -> LoadFault {
        if self.memory.is_none() && system::noexec(self.folder.path()) {
            let base = self.folder.path().parent().unwrap_or(self.folder.path());
            return LoadFault::NoExec { folder: base.to_owned() };
        }
        LoadFault::of_linker(error, missing)
    }
}

/// Opens a library after its folder was checked; then what was opened is checked, not what may lie there now.
fn open(path: &Path, pinned: bool) -> Result<File, LoadFault> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(LoadFault::Unreadable)?;
    let real = path.canonicalize().map_err(LoadFault::Unreadable)?;
    let within = real.parent().unwrap_or(&real);
    if !within.starts_with(&folder) {
        return Err(LoadFault::SymlinkOut { to: real });
    }
    if !pinned {
        for folder in within.ancestors().take_while(|inner| inner.starts_with(&folder)) {
            system::check(folder, &folder.metadata().map_err(LoadFault::Unreadable)?, Part::Folder)?;
        }
        ancestors(&folder)?;
    }
    // Looked at before it is opened, too: to open a device can do something, and a socket cannot be opened at all.
    regular(&real.metadata().map_err(LoadFault::Unreadable)?)?;
    let file = system::open(&real).map_err(LoadFault::Unreadable)?;
    let metadata = file.metadata().map_err(LoadFault::Unreadable)?;
    regular(&metadata)?;
    if !pinned {
        system::check(&real, &metadata, Part::Library)?;
    }
    Ok(file)
}

fn regular(metadata: &Metadata) -> Result<(), LoadFault> {
    if metadata.is_file() { Ok(()) } else { Err(LoadFault::NotAFile { found: system::kind(metadata) }) }
}

/// Checks every folder around one that was checked. It is enough that not everybody can rename what is in them: whoever
/// else can has nothing to put there that belongs to the operator or to root.
fn ancestors(folder: &Path) -> Result<(), LoadFault> {
    for folder in folder.ancestors().skip(1) {
        system::check(folder, &folder.metadata().map_err(LoadFault::Unreadable)?, Part::Ancestor)?;
    }
    Ok(())
}

/// What differs between systems. Windows keeps owners and rights elsewhere, and they are not looked at there.
#[cfg(unix)]
mod system {
    use std::fs::{File, Metadata, OpenOptions, Permissions};
    use std::io;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    use rustix::fs::{OFlags, StatVfsMountFlags};
    use tempfile::TempDir;

    use super::PREFIX;
    use crate::error::{LoadFault, Part};

    const GROUP_OR_OTHERS: u32 = 0o022;
    const OTHERS: u32 = 0o002;
    const STICKY: u32 = 0o1000;

    pub(crate) fn check(path: &Path, metadata: &Metadata, part: Part) -> Result<(), LoadFault> {
        let (mode, owner, user) = (metadata.mode() & 0o7777, metadata.uid(), rustix::process::geteuid().as_raw());
        let exposed = match part {
            Part::Ancestor => mode & OTHERS != 0 && mode & STICKY == 0,
            Part::Folder | Part::Library => mode & GROUP_OR_OTHERS != 0,
        };
        if part != Part::Ancestor && owner != 0 && owner != user {
            return Err(LoadFault::WrongOwner { path: path.to_owned(), part, owner, user });
        }
        if exposed {
            return Err(LoadFault::Writable { path: path.to_owned(), part, mode });
        }
        Ok(())
    }

    /// Follows no link, since the path was resolved, and waits for nobody at the other end of a pipe.
    pub(crate) fn open(path: &Path) -> io::Result<File> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)
    }

    pub(crate) fn kind(metadata: &Metadata) -> &'static str {
        let kind = metadata.file_type();
        if kind.is_dir() {
            "a folder"
        } else if kind.is_fifo() {
            "a pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "a device"
        }
    }

    pub(crate) fn from_root(path: &Path) -> io::Result<PathBuf> {
        path.canonicalize()
    }

    pub(crate) fn private_folder(base: &Path) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(0o700)).tempdir_in(base)
    }

    /// Puts bytes into a file in memory that nobody can change any more, and a link to it at the path. The linker needs a
    /// path that it has never seen, which that of a descriptor is not once its number was used before. `None` where there
    /// is no such file: a system that has none or forbids it, or no `/proc`.
    #[cfg(target_os = "linux")]
    pub(crate) fn in_memory(name: &str, bytes: &[u8], path: &Path) -> Option<File> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        use rustix::io::Errno;
        use std::io::Write;
        use std::os::fd::AsRawFd;

        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // That it cannot be started as a program is all that some systems allow, and what kernels before 6.3 do not know.
        let memory = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => memfd_create(name, flags),
            made => made,
        };
        let mut file = File::from(memory.ok()?);
        file.write_all(bytes).ok()?;
        fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).ok()?;
        std::os::unix::fs::symlink(format!("/proc/self/fd/{}", file.as_raw_fd()), path).ok()?;
        if path.metadata().is_ok() {
            return Some(file);
        }
        let _ = std::fs::remove_file(path);
        None
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn in_memory(_: &str, _: &[u8], _: &Path) -> Option<File> {
        None
    }

    pub(crate) fn noexec(folder: &Path) -> bool {
        rustix::fs::statvfs(folder).is_ok_and(|about| about.f_flag.contains(StatVfsMountFlags::NOEXEC))
    }
}

#[cfg(not(unix))]
mod system {
    use std::fs::{File, Metadata};
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Once;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::PREFIX;
    use crate::error::{LoadFault, Part};

    pub(crate) fn check(_: &Path, _: &Metadata, _: Part) -> Result<(), LoadFault> {
        Ok(())
    }

    pub(crate) fn open(path: &Path) -> io::Result<File> {
        File::open(path)
    }

    pub(crate) fn kind(metadata: &Metadata) -> &'static str {
        if metadata.is_dir() { "a folder" } else { "a device" }
    }

    /// Windows writes what `canonicalize` gives as `\\?\C:\...`, and not all that looks at the path of a loaded library
    /// reads that.
    pub(crate) fn from_root(path: &Path) -> io::Result<PathBuf> {
        std::path::absolute(path)
    }

    /// A user's temporary folder is that user's alone. A library that is mapped cannot be removed: those that earlier
    /// processes left are removed now, and of those that are in use yet nothing is. What was made just now may be another
    /// process's that is about to open it.
    pub(crate) fn private_folder(base: &Path) -> io::Result<TempDir> {
        const NEW: Duration = Duration::from_secs(600);
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| {
            for entry in base.read_dir().into_iter().flatten().flatten() {
                let made = entry.metadata().and_then(|metadata| metadata.modified());
                let is_old = made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > NEW));
                if is_old && entry.file_name().to_string_lossy().starts_with(PREFIX) {
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            }
        });
        tempfile::Builder::new().prefix(PREFIX).tempdir_in(base)
    }

    pub(crate) fn in_memory(_: &str, _: &[u8], _: &Path) -> Option<File> {
        None
    }

    pub(crate) fn noexec(_: &Path) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> TempDir {
        system::private_folder(&std::env::temp_dir().canonicalize().expect("there is one"))
            .expect("a folder can be made")
    }

    #[test]
    fn a_library_exchanged_after_it_was_checked_is_not_what_is_opened() {
        let folder = folder();
        let (library, other) = (folder.path().join("libvkog_x.so"), folder.path().join("other"));
        std::fs::write(&library, "checked").expect("a file can be written");
        std::fs::write(&other, "exchanged").expect("a file can be written");
        let file = open(&library, false).expect("it can be trusted");
        std::fs::rename(&other, &library).expect("it can be replaced");
        let image = Image::of(&library, file).expect("it can be read");
        assert_eq!(image.bytes(), b"checked");

        std::fs::write(&library, "exchanged again").expect("a file can be written");
        let copy = image.copy().expect("a copy can be made");
        let copied = std::fs::read(copy.path()).expect("the copy is there");
        assert_eq!((copied.as_slice(), Sha256::of(&copied)), (&b"checked"[..], image.sha256()));
    }

    #[test]
    fn a_copy_is_named_after_its_plugin_and_content_and_gone_when_it_is_dropped() {
        let folder = folder();
        let library = folder.path().join(format!("{}vkog_x.so", std::env::consts::DLL_PREFIX));
        std::fs::write(&library, "abc").expect("a file can be written");
        let image = Image::read(&library, false).expect("it can be trusted");
        let (one, two) = (image.copy().expect("one"), image.copy().expect("two at once"));
        let name = format!("vkog_x-ba7816bf8f01{}", std::env::consts::DLL_SUFFIX);
        assert!(one.path().is_absolute() && one.path().ends_with(&name), "{}", one.path().display());
        assert_ne!(one.path(), two.path());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let around = one.path().parent().expect("it is in a folder").to_owned();
            let mode = std::fs::metadata(&around).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
            drop(one);
            assert!(!around.exists());
        }
    }
}
