//! Why an address cannot be used.

use std::fmt;
use std::io;
use std::path::PathBuf;

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
    /// The name of a host has no address.
    Unresolved {
        /// The configured address.
        address: String,
        /// The resolver's error.
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
    /// The service manager passes no usable sockets.
    NotPassed(
        /// The reason.
        io::Error,
    ),
    /// The service manager passes a file descriptor that is not a listening stream socket.
    NotAListener {
        /// The number of the file descriptor.
        descriptor: i32,
        /// Its name in `LISTEN_FDNAMES`.
        name: String,
        /// Its kind.
        fact: &'static str,
    },
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { address, source } => {
                write!(f, "cannot listen on {address}: {source}; {}", way_out(address, source))
            }
            Self::Unresolved { address, source } => write!(
                f,
                "cannot listen on {address}: the name of the host has no address ({source}); write an IP address, or \
                 :port for all interfaces"
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
            Self::NotPassed(source) => write!(
                f,
                "cannot use the sockets of the service manager: {source}; correct LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES, or \
                 unset LISTEN_PID"
            ),
            Self::NotAListener { descriptor, name, fact } => write!(
                f,
                "cannot use file descriptor {descriptor} ({name}) of the service manager: it is {fact}; pass stream sockets only, \
                 by ListenStream= and with Accept=no"
            ),
        }
    }
}

/// Returns the way out if the system refuses an address.
fn way_out(address: &str, source: &io::Error) -> &'static str {
    let is_unix = address.starts_with("unix:");
    match source.kind() {
        io::ErrorKind::PermissionDenied if is_unix => "let this user write to its folder, or choose another path",
        io::ErrorKind::PermissionDenied => {
            "choose a port from 1024 on, let systemd open the port (vkog.socket), or give the program the capability \
             CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::NotFound if is_unix => "create its folder, or choose another path",
        io::ErrorKind::InvalidInput if is_unix => "choose a shorter path or name",
        io::ErrorKind::InvalidInput => "name the interface of a link-local address, as in [fe80::1%eth0]:3110",
        io::ErrorKind::AddrNotAvailable => "choose an address of this machine, or :port for all interfaces",
        _ => "choose another --listen, or stop the process that uses it",
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused { source, .. }
            | Self::Unresolved { source, .. }
            | Self::Unknown { source, .. }
            | Self::NotPassed(source) => Some(source),
            Self::Occupied { .. } | Self::NotAListener { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_its_address_and_a_way_out() {
        for (address, kind, words) in [
            ("127.0.0.1:80", io::ErrorKind::PermissionDenied, "CAP_NET_BIND_SERVICE"),
            ("unix:/run/s", io::ErrorKind::PermissionDenied, "write to its folder"),
            ("unix:/no/s", io::ErrorKind::NotFound, "create its folder"),
            ("127.0.0.1:3110", io::ErrorKind::AddrInUse, "stop the process"),
            ("10.9.8.7:3110", io::ErrorKind::AddrNotAvailable, "address of this machine"),
            ("[fe80::1]:3110", io::ErrorKind::InvalidInput, "[fe80::1%eth0]:3110"),
        ] {
            let error = ListenError::Refused { address: address.to_owned(), source: kind.into() }.to_string();
            assert!(error.contains(address) && error.contains(words), "{error}");
        }
    }
}
