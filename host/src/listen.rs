//! The addresses of a server. The server claims them before it opens the store, so that an address in use changes no file, and
//! listens once the store is loaded. The service manager may pass sockets that listen already.

mod error;
#[cfg(unix)]
mod passed;
mod tcp;
#[cfg(unix)]
mod unix;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
#[cfg(unix)]
use std::path::PathBuf;

use socket2::Socket;

use crate::config::{Host, Listen, Scheme, SocketMode};
use crate::http::Listener;

pub use error::ListenError;
#[cfg(unix)]
pub use unix::SocketFile;

/// Maximum number of connections that wait to be accepted, if the system allows it. With the 128 of the standard library each
/// further connection of a burst waits for a second.
const BACKLOG: i32 = 4096;

/// This system has no Unix sockets.
#[cfg(not(unix))]
pub struct SocketFile;

/// An address that this process has bound.
pub struct Claim {
    socket: Claimed,
    speaks_tls: bool,
}

enum Claimed {
    /// Bound, and not listening unless the service manager passes it: until the store is loaded, connections are refused.
    Tcp { socket: Socket, address: String, local: SocketAddr, is_passed: bool },
    /// Listening: a socket that does not listen looks as if its process had ended. Connections wait until the store is loaded.
    #[cfg(unix)]
    Unix {
        listener: std::os::unix::net::UnixListener,
        address: String,
        path: Option<PathBuf>,
        file: Option<SocketFile>,
    },
}

/// Claims the sockets that the service manager passes, and the addresses of the configuration. If there are neither, claims the
/// default address. An address that is named twice is claimed once. With a certificate (`has_certificate`), TCP addresses
/// speak TLS unless they begin with `http://`.
///
/// # Errors
///
/// Another process has an address, something else is at a path, or the system refuses an address.
pub fn claim_all(
    listen: &[Listen],
    mode: Option<SocketMode>,
    has_certificate: bool,
) -> Result<Vec<Claim>, ListenError> {
    #[cfg(unix)]
    let passed: Vec<Claim> = passed::take()?.into_iter().map(|socket| Claim::passed(socket, has_certificate)).collect();
    #[cfg(not(unix))]
    let passed = Vec::new();
    let default = [Listen::default_address()];
    let listen = if listen.is_empty() && passed.is_empty() { &default[..] } else { listen };
    // All interfaces come first, because no other socket can listen at one of their addresses.
    let mut order: Vec<usize> = (0..listen.len()).collect();
    order.sort_by_key(|&at| !is_all_interfaces(&listen[at]));
    let mut claims: Vec<(usize, Claim)> = passed.into_iter().map(|claim| (0, claim)).collect();
    for at in order {
        let more = Claim::of(&listen[at], mode, has_certificate, &claims)?;
        claims.extend(more.into_iter().map(|claim| (at + 1, claim)));
    }
    claims.sort_by_key(|(at, _)| *at);
    Ok(claims.into_iter().map(|(_, claim)| claim).collect())
}

fn is_all_interfaces(listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(tcp) => match &tcp.host {
            Host::All => true,
            Host::Localhost => false,
            Host::Name(name) => name.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified()),
        },
        Listen::Unix(_) | Listen::Abstract(_) => false,
    }
}

impl Claim {
    /// Claims an address of the configuration, except for what `others` have.
    fn of(
        listen: &Listen,
        mode: Option<SocketMode>,
        has_certificate: bool,
        others: &[(usize, Self)],
    ) -> Result<Vec<Self>, ListenError> {
        match listen {
            Listen::Tcp(tcp) => {
                let taken: Vec<SocketAddr> = others.iter().flat_map(|(_, claim)| claim.addresses()).collect();
                let speaks_tls = has_certificate && tcp.scheme != Some(Scheme::Http);
                let bound = tcp::bind(tcp, &taken)?.into_iter();
                let claim = |tcp::Bound { socket, local }| {
                    let socket = Claimed::Tcp { socket, address: listen.to_string(), local, is_passed: false };
                    Self { socket, speaks_tls }
                };
                Ok(bound.map(claim).collect())
            }
            #[cfg(unix)]
            Listen::Unix(path) => {
                let taken: Vec<_> = others.iter().filter_map(|(_, claim)| claim.file_id()).collect();
                let Some((listener, file)) = unix::listen_at(path, mode, &taken)? else {
                    tracing::info!("{listen} is one of the addresses already");
                    return Ok(Vec::new());
                };
                Ok(vec![Self::unix(listener, listen.to_string(), Some(path.clone()), Some(file))])
            }
            #[cfg(target_os = "linux")]
            Listen::Abstract(name) => {
                let address = listen.to_string();
                if others.iter().any(|(_, claim)| claim.address() == address) {
                    tracing::info!("{address} is one of the addresses already");
                    return Ok(Vec::new());
                }
                let refused = |source| ListenError::Refused { address: address.clone(), source };
                let listener = unix::listen_at_name(name).map_err(refused)?;
                Ok(vec![Self::unix(listener, address, None, None)])
            }
            #[cfg(not(unix))]
            Listen::Unix(path) => {
                let _ = mode;
                let fact = "this system has no Unix sockets, use host:port";
                Err(ListenError::Occupied { path: path.clone(), fact })
            }
            #[cfg(not(target_os = "linux"))]
            Listen::Abstract(name) => {
                let fact = "this system has no abstract sockets, use a path or host:port";
                Err(ListenError::Occupied { path: name.into(), fact })
            }
        }
    }

    #[cfg(unix)]
    fn unix(
        listener: std::os::unix::net::UnixListener,
        address: String,
        path: Option<PathBuf>,
        file: Option<SocketFile>,
    ) -> Self {
        Self { socket: Claimed::Unix { listener, address, path, file }, speaks_tls: false }
    }

    /// A socket that the service manager passes.
    #[cfg(unix)]
    fn passed(socket: passed::Passed, has_certificate: bool) -> Self {
        match socket {
            passed::Passed::Tcp { listener, local } => {
                let (socket, address) = (listener.into(), local.to_string());
                Self { socket: Claimed::Tcp { socket, address, local, is_passed: true }, speaks_tls: has_certificate }
            }
            passed::Passed::Unix { listener, path, address } => Self::unix(listener, address, path, None),
        }
    }

    /// Returns whether only this machine reaches the address.
    pub fn is_local(&self) -> bool {
        match &self.socket {
            Claimed::Tcp { local, .. } => local.ip().is_loopback(),
            #[cfg(unix)]
            Claimed::Unix { .. } => true,
        }
    }

    /// Returns the address with the port that the system chose: `http://127.0.0.1:3110`, `unix:PATH`.
    pub fn address(&self) -> String {
        match &self.socket {
            Claimed::Tcp { local, .. } if self.speaks_tls => format!("https://{local}"),
            Claimed::Tcp { local, .. } => format!("http://{local}"),
            #[cfg(unix)]
            Claimed::Unix { address, .. } => address.clone(),
        }
    }

    /// The TCP addresses whose connections the socket gets.
    fn addresses(&self) -> Vec<SocketAddr> {
        match &self.socket {
            Claimed::Tcp { socket, local, .. } => {
                let gets_ipv4 =
                    local.is_ipv6() && local.ip().is_unspecified() && socket.only_v6().is_ok_and(|only| !only);
                let ipv4 = gets_ipv4.then(|| (Ipv4Addr::UNSPECIFIED, local.port()).into());
                std::iter::once(*local).chain(ipv4).collect()
            }
            #[cfg(unix)]
            Claimed::Unix { .. } => Vec::new(),
        }
    }

    /// The device and the inode of a Unix socket's file.
    #[cfg(unix)]
    fn file_id(&self) -> Option<(u64, u64)> {
        match &self.socket {
            Claimed::Tcp { .. } => None,
            Claimed::Unix { path, file, .. } => {
                file.as_ref().map(SocketFile::id).or_else(|| path.as_deref().and_then(unix::id_at))
            }
        }
    }

    /// Starts to listen. Dropping the second value removes the file of a Unix socket.
    ///
    /// # Errors
    ///
    /// The system refuses it.
    pub fn listen(self) -> Result<(Listener, Option<SocketFile>), ListenError> {
        match self.socket {
            Claimed::Tcp { socket, address, is_passed, .. } => {
                if !is_passed {
                    socket.listen(BACKLOG).map_err(|source| ListenError::Refused { address, source })?;
                }
                let listener = if self.speaks_tls { Listener::Tls } else { Listener::Tcp };
                Ok((listener(socket.into()), None))
            }
            #[cfg(unix)]
            Claimed::Unix { listener, file, .. } => Ok((Listener::Unix(listener), file)),
        }
    }
}
