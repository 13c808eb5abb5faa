//! Unix sockets: their files, and the names of Linux's abstract sockets.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{BACKLOG, ListenError};
use crate::config::SocketMode;

/// The device and the inode of a file.
type Id = (u64, u64);

/// The file of a Unix socket. Dropping it removes the file, unless another one has replaced it.
pub struct SocketFile {
    path: PathBuf,
    id: Id,
}

/// Listens at a path. Replaces the socket of a process that has ended, and nothing else. Returns `None` if the path is one of
/// the sockets in `taken`.
///
/// # Errors
///
/// The path exists and is not such a socket, or the system refuses it.
pub(super) fn listen_at(
    path: &Path,
    mode: Option<SocketMode>,
    taken: &[Id],
) -> Result<Option<(UnixListener, SocketFile)>, ListenError> {
    if id_at(path).is_some_and(|id| taken.contains(&id)) {
        return Ok(None);
    }
    SocketFile::clear(path)?;
    let refused = |source| ListenError::Refused { address: format!("unix:{}", path.display()), source };
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(refused)?;
    socket.bind(&SockAddr::unix(path).map_err(refused)?).map_err(refused)?;
    let file = SocketFile::of(path).map_err(refused)?;
    // No client can connect before the socket listens.
    if let Some(SocketMode(mode)) = mode {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(refused)?;
    }
    socket.listen(BACKLOG).map_err(refused)?;
    Ok(Some((socket.into(), file)))
}

/// Listens at a name that is not a file.
///
/// # Errors
///
/// Another process listens there, or the system refuses it.
#[cfg(target_os = "linux")]
pub(super) fn listen_at_name(name: &str) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Its path begins with a zero byte.
    let address = SockAddr::unix(Path::new(&format!("\0{name}")))?;
    socket.bind(&address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Returns the device and the inode of the file at a path, if it exists.
pub(super) fn id_at(path: &Path) -> Option<Id> {
    std::fs::symlink_metadata(path).ok().map(|metadata| id(&metadata))
}

impl SocketFile {
    pub(super) fn id(&self) -> Id {
        self.id
    }

    /// The socket that this process has just bound.
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: id(&std::fs::symlink_metadata(path)?) })
    }

    /// Removes the socket of a process that has ended; nothing else.
    fn clear(path: &Path) -> Result<(), ListenError> {
        // If the folder cannot be read, binding reports the same error.
        let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
        let occupied = |fact| ListenError::Occupied { path: path.to_owned(), fact };
        if !found.file_type().is_socket() {
            return Err(occupied("the path exists and is not a socket"));
        }
        match connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            // The accept queue is full: the process is alive and busy.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(occupied("another process listens there"));
            }
            Err(source) => return Err(ListenError::Unknown { path: path.to_owned(), source }),
            Ok(()) => return Err(occupied("another process listens there")),
        }
        // Another server may have found the same socket and taken its place since.
        if std::fs::symlink_metadata(path).is_ok_and(|now| id(&now) == id(&found)) {
            std::fs::remove_file(path)
                .map_err(|source| ListenError::Refused { address: format!("unix:{}", path.display()), source })?;
        }
        Ok(())
    }
}

/// Connects and disconnects, without waiting while the accept queue is full.
fn connect(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

fn id(metadata: &std::fs::Metadata) -> Id {
    (metadata.dev(), metadata.ino())
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The socket is still open, so no other file can have its inode.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|now| id(&now) == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
