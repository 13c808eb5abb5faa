//! The address of a server. The server claims it before it opens the store, so that an address in use changes no file, and
//! listens once the store is loaded.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use socket2::{Domain, Socket, Type};

use crate::config::Listen;
use crate::http::Listener;

/// Maximum number of connections that wait to be accepted, if the system allows it. With the 128 of the standard library each
/// further connection of a burst waits for a second.
const BACKLOG: i32 = 4096;

/// Why an address cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum ListenError {
    /// The system refuses the address.
    Refused {
        /// The configured address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// The path exists, and this server must not replace it.
    Occupied {
        /// The path.
        path: PathBuf,
        /// Why the path cannot be used.
        fact: &'static str,
    },
    /// The server cannot find out whether a process listens at the path.
    Unknown {
        /// The path.
        path: PathBuf,
        /// The system's error for a connection attempt.
        source: io::Error,
    },
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { address, source } => write!(
                f,
                "cannot listen on {address}: {source}; choose another --listen, or stop the process that uses it"
            ),
            Self::Occupied { path, fact } => {
                write!(f, "cannot listen on unix:{}: {fact}; nothing was changed, choose another path", path.display())
            }
            Self::Unknown { path, source } => write!(
                f,
                "cannot listen on unix:{}: the socket exists, and connecting to it fails ({source}); choose another path, or \
                 remove the socket if no process uses it",
                path.display()
            ),
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused { source, .. } | Self::Unknown { source, .. } => Some(source),
            Self::Occupied { .. } => None,
        }
    }
}

/// An address that this process has bound.
pub struct Claim(Claimed);

enum Claimed {
    /// Bound, and not listening: until the store is loaded, connections are refused.
    Tcp { socket: Socket, address: String, local: SocketAddr },
    /// Listening: a socket that does not listen looks as if its process had ended. Connections wait until the store is loaded.
    #[cfg(unix)]
    Unix { file: SocketFile, listener: std::os::unix::net::UnixListener },
}

impl Claim {
    /// Claims the address.
    ///
    /// # Errors
    ///
    /// Another process has the address, something else is at the path, or the system refuses it.
    pub fn new(listen: &Listen) -> Result<Self, ListenError> {
        match listen {
            Listen::Tcp(address) => {
                let refused = |source| ListenError::Refused { address: address.clone(), source };
                let (socket, local) = bind(address).map_err(refused)?;
                Ok(Self(Claimed::Tcp { socket, address: address.clone(), local }))
            }
            #[cfg(unix)]
            Listen::Unix(path) => {
                SocketFile::clear(path)?;
                let refused = |source| ListenError::Refused { address: format!("unix:{}", path.display()), source };
                let listener = std::os::unix::net::UnixListener::bind(path).map_err(refused)?;
                let file = SocketFile::of(path).map_err(refused)?;
                Ok(Self(Claimed::Unix { file, listener }))
            }
            #[cfg(not(unix))]
            Listen::Unix(path) => Err(ListenError::Occupied {
                path: path.clone(),
                fact: "this system has no Unix sockets, use host:port",
            }),
        }
    }

    /// Returns whether only this machine reaches the address.
    pub fn is_local(&self) -> bool {
        match &self.0 {
            Claimed::Tcp { local, .. } => local.ip().is_loopback(),
            #[cfg(unix)]
            Claimed::Unix { .. } => true,
        }
    }

    /// Returns the address with the port that the system chose: `127.0.0.1:3110`, `unix:PATH`.
    pub fn address(&self) -> String {
        match &self.0 {
            Claimed::Tcp { local, .. } => local.to_string(),
            #[cfg(unix)]
            Claimed::Unix { file, .. } => format!("unix:{}", file.path.display()),
        }
    }

    /// Starts to listen. Dropping the second value removes the file of a Unix socket.
    ///
    /// # Errors
    ///
    /// The system refuses it.
    pub fn listen(self) -> Result<(Listener, Option<SocketFile>), ListenError> {
        match self.0 {
            Claimed::Tcp { socket, address, .. } => {
                socket.listen(BACKLOG).map_err(|source| ListenError::Refused { address, source })?;
                Ok((Listener::Tcp(socket.into()), None))
            }
            #[cfg(unix)]
            Claimed::Unix { file, listener } => Ok((Listener::Unix(listener), Some(file))),
        }
    }
}

/// Binds the first usable address of a host name.
fn bind(address: &str) -> io::Result<(Socket, SocketAddr)> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in address.to_socket_addrs()? {
        let bound = Socket::new(Domain::for_address(address), Type::STREAM, None).and_then(|socket| {
            // As the standard library does: after a restart, connections of the process before may still be ending.
            #[cfg(unix)]
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
            Ok((socket, local))
        });
        match bound {
            Ok(bound) => return Ok(bound),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The file of a Unix socket. Dropping it removes the file, unless another one has replaced it.
#[cfg(unix)]
pub struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

/// This system has no Unix sockets.
#[cfg(not(unix))]
pub struct SocketFile;

#[cfg(unix)]
impl SocketFile {
    /// The socket that this process has just bound.
    fn of(path: &std::path::Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), id: id(&std::fs::symlink_metadata(path)?) })
    }

    /// Removes the socket of a process that has ended; nothing else.
    fn clear(path: &std::path::Path) -> Result<(), ListenError> {
        use std::os::unix::fs::FileTypeExt;

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
                return Err(occupied("another process listens on it"));
            }
            Err(source) => return Err(ListenError::Unknown { path: path.to_owned(), source }),
            Ok(()) => return Err(occupied("another process listens on it")),
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
#[cfg(unix)]
fn connect(path: &std::path::Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&socket2::SockAddr::unix(path)?)
}

#[cfg(unix)]
fn id(metadata: &std::fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(unix)]
impl Drop for SocketFile {
    fn drop(&mut self) {
        // The socket is still open, so no other file can have its inode.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|now| id(&now) == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
