//! The addresses of a server. The server listens before it opens the store, so that an address in use changes no file, and
//! probes get a response while the store is loaded. The service manager may pass sockets that listen already.

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

/// An address that this process listens at.
pub struct Endpoint {
    socket: Listening,
    speaks_tls: bool,
}

enum Listening {
    Tcp {
        socket: Socket,
        local: SocketAddr,
    },
    #[cfg(unix)]
    Unix {
        listener: std::os::unix::net::UnixListener,
        address: String,
        path: Option<PathBuf>,
        file: Option<SocketFile>,
    },
}

/// Listens at the addresses of the configuration, and takes the sockets that the service manager passes. If there are neither,
/// listens at the default address. An address that is named twice has one socket. With a certificate (`has_certificate`), TCP
/// addresses speak TLS unless they begin with `http://`.
///
/// # Errors
///
/// Another process has an address, something else is at a path, or the system refuses an address.
pub fn listen_at_all(
    listen: &[Listen],
    mode: Option<SocketMode>,
    has_certificate: bool,
) -> Result<Vec<Endpoint>, ListenError> {
    #[cfg(unix)]
    let passed: Vec<Endpoint> =
        passed::take()?.into_iter().map(|socket| Endpoint::passed(socket, has_certificate)).collect();
    #[cfg(not(unix))]
    let passed = Vec::new();
    let default = [Listen::default_address()];
    let listen = if listen.is_empty() && passed.is_empty() { &default[..] } else { listen };
    // All interfaces come first, because no other socket can listen at one of their addresses.
    let mut order: Vec<usize> = (0..listen.len()).collect();
    order.sort_by_key(|&at| !is_all_interfaces(&listen[at]));
    let mut endpoints: Vec<(usize, Endpoint)> = passed.into_iter().map(|endpoint| (0, endpoint)).collect();
    for at in order {
        let more = Endpoint::listen(&listen[at], mode, has_certificate, &endpoints)?;
        endpoints.extend(more.into_iter().map(|endpoint| (at + 1, endpoint)));
    }
    endpoints.sort_by_key(|(at, _)| *at);
    Ok(endpoints.into_iter().map(|(_, endpoint)| endpoint).collect())
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

impl Endpoint {
    /// Listens at an address of the configuration, except for what `others` have.
    fn listen(
        listen: &Listen,
        mode: Option<SocketMode>,
        has_certificate: bool,
        others: &[(usize, Self)],
    ) -> Result<Vec<Self>, ListenError> {
        match listen {
            Listen::Tcp(tcp) => {
                let taken: Vec<SocketAddr> = others.iter().flat_map(|(_, other)| other.addresses()).collect();
                let speaks_tls = has_certificate && tcp.scheme != Some(Scheme::Http);
                let bound = tcp::listen(tcp, &taken)?.into_iter();
                let endpoint =
                    |tcp::Bound { socket, local }| Self { socket: Listening::Tcp { socket, local }, speaks_tls };
                Ok(bound.map(endpoint).collect())
            }
            #[cfg(unix)]
            Listen::Unix(path) => {
                let taken: Vec<_> = others.iter().filter_map(|(_, other)| other.file_id()).collect();
                let Some((listener, file)) = unix::listen_at(path, mode, &taken)? else {
                    tracing::info!("{listen} is one of the addresses already");
                    return Ok(Vec::new());
                };
                Ok(vec![Self::unix(listener, listen.to_string(), Some(path.clone()), Some(file))])
            }
            #[cfg(target_os = "linux")]
            Listen::Abstract(name) => {
                let address = listen.to_string();
                if others.iter().any(|(_, other)| other.address() == address) {
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
        Self { socket: Listening::Unix { listener, address, path, file }, speaks_tls: false }
    }

    /// A socket that the service manager passes.
    #[cfg(unix)]
    fn passed(socket: passed::Passed, has_certificate: bool) -> Self {
        match socket {
            passed::Passed::Tcp { listener, local } => {
                Self { socket: Listening::Tcp { socket: listener.into(), local }, speaks_tls: has_certificate }
            }
            passed::Passed::Unix { listener, path, address } => Self::unix(listener, address, path, None),
        }
    }

    /// Returns whether only this machine reaches the address.
    pub fn is_local(&self) -> bool {
        match &self.socket {
            Listening::Tcp { local, .. } => local.ip().is_loopback(),
            #[cfg(unix)]
            Listening::Unix { .. } => true,
        }
    }

    /// Returns the address with the port that the system chose: `http://127.0.0.1:3110`, `unix:PATH`.
    pub fn address(&self) -> String {
        match &self.socket {
            Listening::Tcp { local, .. } if self.speaks_tls => format!("https://{local}"),
            Listening::Tcp { local, .. } => format!("http://{local}"),
            #[cfg(unix)]
            Listening::Unix { address, .. } => address.clone(),
        }
    }

    /// The TCP addresses whose connections the socket gets.
    fn addresses(&self) -> Vec<SocketAddr> {
        match &self.socket {
            Listening::Tcp { socket, local, .. } => {
                let gets_ipv4 =
                    local.is_ipv6() && local.ip().is_unspecified() && socket.only_v6().is_ok_and(|only| !only);
                let ipv4 = gets_ipv4.then(|| (Ipv4Addr::UNSPECIFIED, local.port()).into());
                std::iter::once(*local).chain(ipv4).collect()
            }
            #[cfg(unix)]
            Listening::Unix { .. } => Vec::new(),
        }
    }

    /// The device and the inode of a Unix socket's file.
    #[cfg(unix)]
    fn file_id(&self) -> Option<(u64, u64)> {
        match &self.socket {
            Listening::Tcp { .. } => None,
            Listening::Unix { path, file, .. } => {
                file.as_ref().map(SocketFile::id).or_else(|| path.as_deref().and_then(unix::id_at))
            }
        }
    }

    /// Returns the listening socket. Dropping the second value removes the file of a Unix socket.
    pub fn into_listener(self) -> (Listener, Option<SocketFile>) {
        match self.socket {
            Listening::Tcp { socket, .. } => {
                let listener = if self.speaks_tls { Listener::Tls } else { Listener::Tcp };
                (listener(socket.into()), None)
            }
            #[cfg(unix)]
            Listening::Unix { listener, file, .. } => (Listener::Unix(listener), file),
        }
    }
}
