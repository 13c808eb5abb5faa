//! Trust checks: VKOG loads only libraries that only the operator and root could have modified. A library is read
//! once. Its bytes, not its path, are checked, hashed, copied and mapped, so that what is checked is what is opened.

use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::error::{LoadFault, Part};
use crate::preflight;
use crate::sha256::Sha256;

/// The prefix of the names of folders for private copies.
const PREFIX: &str = "vkog-plugin-";

/// The maximum size of a library, in bytes. A plugin with all its debug information has a tenth of that.
pub const LIBRARY_MAX: u64 = 256 << 20;

/// The content of a library that passed the trust checks, as it was read. Later changes of the file do not affect it.
pub struct VerifiedLibrary {
    origin: PathBuf,
    bytes: Vec<u8>,
    sha256: Sha256,
}

/// A copy of a verified library for the linker, which only the user of this process can access. Dropping it removes the file;
/// what is mapped stays mapped. Windows keeps a file that is mapped.
pub(crate) struct PrivateCopy {
    folder: TempDir,
    path: PathBuf,
    /// The file in memory that the path links to, if the copy is not in the folder.
    memory: Option<File>,
}

impl VerifiedLibrary {
    /// Checks and reads a library. A path without a folder is in the current directory; no search path is used. The owner and
    /// the permissions of a pinned library are not checked: the caller compares the hash of what was read, and opens that.
    ///
    /// # Errors
    ///
    /// It is not a file, cannot be read, is too large, or another user could have modified it.
    pub fn read(path: &Path, pinned: bool) -> Result<Self, LoadFault> {
        Self::of(path, open(path, pinned)?)
    }

    /// Takes a library from memory, which no other user can modify. The file name in `origin` stands for its plugin until
    /// the library is open.
    pub fn from_memory(origin: &Path, bytes: Vec<u8>) -> Self {
        let sha256 = Sha256::of(&bytes);
        Self { origin: origin.to_owned(), bytes, sha256 }
    }

    fn of(path: &Path, file: File) -> Result<Self, LoadFault> {
        let too_large = |len: u64| if len > LIBRARY_MAX { Err(LoadFault::TooLarge { len }) } else { Ok(()) };
        let len = file.metadata().map_err(LoadFault::Unreadable)?.len();
        too_large(len)?;
        let mut bytes = Vec::with_capacity(len as usize);
        // Read one byte more, to notice a file that grows meanwhile.
        file.take(LIBRARY_MAX + 1).read_to_end(&mut bytes).map_err(LoadFault::Unreadable)?;
        too_large(bytes.len() as u64)?;
        Ok(Self::from_memory(path, bytes))
    }

    /// Returns the content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the hash of the content.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// Writes a private copy with a unique path. The linker would return the old library for a path that it knows, and a
    /// library that is overwritten while it is mapped crashes the process. The file name, which debuggers and profilers show,
    /// has the name of the plugin and the first digits of the hash.
    ///
    /// On Linux the file is in memory. A library is never closed, so a file on a disk would occupy space until the process
    /// ends, once for each reload.
    pub(crate) fn copy(&self) -> Result<PrivateCopy, LoadFault> {
        let base = std::env::temp_dir();
        let failed = |error| LoadFault::NoCopy { folder: base.clone(), error };
        // Use an absolute path, because the linker searches for a name without a folder.
        let folder = system::from_root(&base).and_then(|base| system::private_folder(&base)).map_err(failed)?;
        // A user who can rename the folder could replace it.
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
    /// Returns the absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the fault for an error of the linker, or that the folder is mounted noexec.
    pub(crate) fn refused(&self, error: libloading::Error, missing: Option<String>) -> LoadFault {
        if self.memory.is_none() && system::noexec(self.folder.path()) {
            let base = self.folder.path().parent().unwrap_or(self.folder.path());
            return LoadFault::NoExec { folder: base.to_owned() };
        }
        LoadFault::of_linker(error, missing)
    }
}

/// Checks the folders of a library, opens the file, and checks the opened file, which may differ from the one that the path
/// leads to by then.
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
    // Check the kind before opening, too: opening a device can have an effect, and a socket cannot be opened.
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

/// Checks that no other user can put libraries into a folder, as for the folder of a library that is not pinned.
///
/// # Errors
///
/// It cannot be examined, or another user can write it or rename it.
pub fn check_folder(folder: &Path) -> Result<(), LoadFault> {
    let folder = folder.canonicalize().map_err(LoadFault::Unreadable)?;
    system::check(&folder, &folder.metadata().map_err(LoadFault::Unreadable)?, Part::Folder)?;
    ancestors(&folder)
}

/// Checks every folder above one that was checked. It suffices that others cannot rename entries in it: a user who can has no
/// folder to put there that belongs to the operator or to root.
fn ancestors(folder: &Path) -> Result<(), LoadFault> {
    for folder in folder.ancestors().skip(1) {
        system::check(folder, &folder.metadata().map_err(LoadFault::Unreadable)?, Part::Ancestor)?;
    }
    Ok(())
}

#[cfg(not(unix))]
use other as system;
#[cfg(unix)]
use unix as system;

/// The checks of the operating system. Windows stores owners and rights elsewhere, and they are not checked there.
#[cfg(unix)]
mod unix {
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

    /// Opens a resolved path without following a link and without waiting for the other end of a pipe.
    pub(crate) fn open(path: &Path) -> io::Result<File> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        OpenOptions::new().read(true).custom_flags(flags as i32).open(path)
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

    /// Writes bytes to a sealed file in memory and creates a link to it at the path. The linker needs a path that it has never
    /// seen, and the path of a file descriptor repeats when its number is reused. Returns `None` if the system does not
    /// support or allow that, or has no `/proc`.
    #[cfg(target_os = "linux")]
    pub(crate) fn in_memory(name: &str, bytes: &[u8], path: &Path) -> Option<File> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        use rustix::io::Errno;
        use std::io::Write;
        use std::os::fd::AsRawFd;

        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Some systems allow only files that cannot be executed as a program; kernels before 6.3 do not have the flag.
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
mod other {
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

    /// On Windows `canonicalize` returns `\\?\C:\...`, which some readers of the paths of loaded libraries do not understand.
    pub(crate) fn from_root(path: &Path) -> io::Result<PathBuf> {
        std::path::absolute(path)
    }

    /// The temporary folder belongs to one user. A mapped library cannot be removed, so the folders of earlier processes are
    /// removed here, except those in use and those that another process may have created just now.
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
    fn a_library_replaced_after_its_check_is_not_opened() {
        let folder = folder();
        let (library, other) = (folder.path().join("libvkog_x.so"), folder.path().join("other"));
        std::fs::write(&library, "checked").expect("a file can be written");
        std::fs::write(&other, "exchanged").expect("a file can be written");
        let file = open(&library, false).expect("it can be trusted");
        std::fs::rename(&other, &library).expect("it can be replaced");
        let verified = VerifiedLibrary::of(&library, file).expect("it can be read");
        assert_eq!(verified.bytes(), b"checked");

        std::fs::write(&library, "exchanged again").expect("a file can be written");
        let copy = verified.copy().expect("a copy can be made");
        let copied = std::fs::read(copy.path()).expect("the copy exists");
        assert_eq!((copied.as_slice(), Sha256::of(&copied)), (&b"checked"[..], verified.sha256()));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_through_a_folder_that_a_group_can_write_is_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let plugins = folder();
        let (between, inner) = (plugins.path().join("between"), plugins.path().join("between/inner"));
        std::fs::create_dir_all(&inner).expect("folders can be made");
        let set_mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
        };
        let (library, link) = (inner.join("libvkog_x.so"), plugins.path().join("libvkog_x.so"));
        std::fs::write(&library, "library").expect("a file can be written");
        symlink(&library, &link).expect("a link can be made");
        for (path, mode) in [(&library, 0o600), (&inner, 0o755), (&between, 0o755)] {
            set_mode(path, mode);
        }
        open(&link, false).expect("only its owner can write on the way to it");
        set_mode(&between, 0o775);
        match open(&link, false) {
            Err(LoadFault::Writable { path, part: Part::Folder, .. }) => assert!(path.ends_with("between"), "{path:?}"),
            other => panic!("not refused for the folder between, but {other:?}"),
        }
    }

    /// Whether the library of this folder is refused, and for which part.
    #[cfg(unix)]
    fn refused(library: &Path, pinned: bool) -> Option<Part> {
        match open(library, pinned).err()? {
            LoadFault::Writable { part, .. } | LoadFault::WrongOwner { part, .. } => Some(part),
            other => panic!("refused for something else: {other:?}"),
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_library_that_somebody_else_could_change_is_refused_unless_it_is_pinned() {
        use std::os::unix::fs::{PermissionsExt, chown};

        let base = folder();
        let (above, plugins) = (base.path().join("above"), base.path().join("above/plugins"));
        let library = plugins.join("libvkog_x.so");
        std::fs::create_dir_all(&plugins).expect("folders can be made");
        std::fs::write(&library, "library").expect("a file can be written");
        for (modes, part) in [
            ([0o755, 0o755, 0o644], None),
            ([0o755, 0o755, 0o664], Some(Part::Library)),
            ([0o755, 0o755, 0o646], Some(Part::Library)),
            ([0o755, 0o775, 0o644], Some(Part::Folder)),
            ([0o755, 0o757, 0o644], Some(Part::Folder)),
            // A sticky folder is one whose entries only their owners rename.
            ([0o755, 0o1757, 0o644], Some(Part::Folder)),
            ([0o775, 0o755, 0o644], None),
            ([0o757, 0o755, 0o644], Some(Part::Ancestor)),
            ([0o1757, 0o755, 0o644], None),
        ] {
            for (path, mode) in [&above, &plugins, &library].into_iter().zip(modes) {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
            }
            assert_eq!(refused(&library, false), part, "{modes:?}");
            assert_eq!(refused(&library, true), None, "{modes:?}");
        }
        // Only root can give a file away.
        if rustix::process::geteuid().is_root() {
            for (path, part) in [(&library, Some(Part::Library)), (&plugins, Some(Part::Folder)), (&above, None)] {
                chown(path, Some(1), None).expect("root may do that");
                assert_eq!(refused(&library, false), part);
                chown(path, Some(0), None).expect("root may do that");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_a_file_is_a_library() {
        let base = folder();
        let library = base.path().join("libvkog_x.so");
        let found = || match open(&library, false) {
            Err(LoadFault::NotAFile { found }) => found,
            other => panic!("not refused for its kind, but {other:?}"),
        };
        std::fs::create_dir(&library).expect("a folder can be made");
        assert_eq!(found(), "a folder");
        std::fs::remove_dir(&library).expect("it is empty");
        let socket = std::os::unix::net::UnixListener::bind(&library).expect("a socket can be made");
        assert_eq!(found(), "a socket");
        drop(socket);
        let null = std::fs::metadata("/dev/null").expect("it is everywhere");
        assert!(matches!(regular(&null), Err(LoadFault::NotAFile { found: "a device" })));
        let outside = folder();
        std::fs::remove_file(&library).expect("it is ours");
        std::fs::write(outside.path().join("other"), "library").expect("a file can be written");
        std::os::unix::fs::symlink(outside.path().join("other"), &library).expect("a link can be made");
        assert!(matches!(open(&library, false), Err(LoadFault::SymlinkOut { .. })));
        // A path that was resolved has no link any more, unless somebody has just made one.
        assert!(system::open(&library).is_err());
    }

    #[test]
    fn a_library_may_have_256_mib() {
        let base = folder();
        let library = base.path().join("libvkog_x.so");
        let file = File::create(&library).expect("a file can be made");
        // A sparse file: it takes no space on the disk.
        file.set_len(LIBRARY_MAX + 1).expect("it may have holes");
        let read = VerifiedLibrary::of(&library, File::open(&library).expect("it exists"));
        assert!(matches!(read, Err(LoadFault::TooLarge { len }) if len == LIBRARY_MAX + 1));
    }

    #[test]
    fn a_private_copy_is_named_after_plugin_and_hash_and_removed_on_drop() {
        let folder = folder();
        let library = folder.path().join(format!("{}vkog_x.so", std::env::consts::DLL_PREFIX));
        std::fs::write(&library, "abc").expect("a file can be written");
        let verified = VerifiedLibrary::read(&library, false).expect("it can be trusted");
        let (one, two) = (verified.copy().expect("one"), verified.copy().expect("two at once"));
        let name = format!("vkog_x-ba7816bf8f01{}", std::env::consts::DLL_SUFFIX);
        assert!(one.path().is_absolute() && one.path().ends_with(&name), "{}", one.path().display());
        assert_ne!(one.path(), two.path());
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::{SealFlags, fcntl_get_seals};
            let memory = one.memory.as_ref().expect("the copy is in memory");
            let flags = rustix::io::fcntl_getfd(memory).expect("it is open");
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "another program would inherit it");
            let seals = fcntl_get_seals(memory).expect("it can be sealed");
            assert!(
                seals.contains(SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL),
                "{seals:?}"
            );
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let around = one.path().parent().expect("it is in a folder").to_owned();
            let temporary = std::env::temp_dir().canonicalize().expect("there is one");
            assert_eq!(around.parent(), Some(&*temporary));
            let mode = std::fs::metadata(&around).expect("it exists").permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
            drop(one);
            assert!(!around.exists());
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_copy_on_a_disk_is_refused_for_its_folder_only_if_that_is_noexec() {
        // The test itself runs from there.
        let program = std::env::current_exe().expect("a test knows where it is");
        let folder = TempDir::new_in(program.parent().expect("it is in a folder")).expect("a folder can be made");
        let copy = PrivateCopy { path: folder.path().join("copy"), folder, memory: None };
        let fault = copy.refused(libloading::Error::DlOpen { desc: c"wrong format".into() }, None);
        assert_eq!(fault.code(), "not-loadable", "{fault}");
    }
}
