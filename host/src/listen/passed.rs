//! Sockets that the service manager listens at and passes on: `LISTEN_FDS` of systemd (sd_listen_fds(3)).

#![allow(unsafe_code)]

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use socket2::{Socket, Type};

use super::ListenError;

/// A socket that the service manager passes.
pub(super) enum Passed {
    Tcp {
        listener: TcpListener,
        local: SocketAddr,
    },
    /// A path is that of its file; an abstract socket has none.
    Unix {
        listener: UnixListener,
        path: Option<PathBuf>,
        address: String,
    },
}

/// Takes the sockets that the service manager passes to this process. Called once.
///
/// # Errors
///
/// The variables contradict each other, or a file descriptor is not a listening stream socket.
pub(super) fn take() -> Result<Vec<Passed>, ListenError> {
    let descriptors = sd_notify::listen_fds_with_names().map_err(ListenError::NotPassed)?;
    descriptors.map(|(descriptor, name)| check(descriptor, name)).collect()
}

fn check(descriptor: RawFd, name: String) -> Result<Passed, ListenError> {
    // SAFETY: `listen_fds_with_names` has found this file descriptor open. By `LISTEN_PID` it was passed to this process, and
    // nothing else in the process uses it.
    let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    let not = |fact| Err(ListenError::NotAListener { descriptor, name, fact });
    match (socket.r#type(), socket.is_listener()) {
        (Err(_), _) => return not("not a socket"),
        (Ok(Type::STREAM), Ok(true)) => {}
        (Ok(Type::STREAM), _) => return not("a socket that does not listen"),
        (Ok(_), _) => return not("not a stream socket"),
    }
    let Ok(address) = socket.local_addr() else { return not("a socket without an address") };
    // tiny_http waits in `accept`. A manager with `NonBlocking=`, or the process before this one, may have set the opposite.
    if socket.set_nonblocking(false).is_err() {
        return not("a socket that cannot block");
    }
    if let Some(local) = address.as_socket() {
        return Ok(Passed::Tcp { listener: socket.into(), local });
    }
    if !address.is_unix() {
        return not("a socket of another family than IPv4, IPv6 and Unix");
    }
    let path = address.as_pathname().map(ToOwned::to_owned);
    let name = address.as_abstract_namespace().map(String::from_utf8_lossy);
    let address = match (&path, name) {
        (Some(path), _) => format!("unix:{}", path.display()),
        (None, Some(name)) => format!("unix:@{name}"),
        (None, None) => "unix:".to_owned(),
    };
    Ok(Passed::Unix { listener: socket.into(), path, address })
}
