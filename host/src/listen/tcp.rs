//! TCP addresses: which sockets an address of the configuration stands for, and how they listen.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use socket2::{Domain, Socket, Type};

use super::{BACKLOG, ListenError};
use crate::config::{Host, Listen, TcpAddress};

/// How often a free port is looked for that is free on all addresses of a host.
const ATTEMPTS: usize = 16;

/// A listening socket.
pub(super) struct Bound {
    pub(super) socket: Socket,
    pub(super) local: SocketAddr,
}

/// Listens with all sockets that an address stands for, except those that `taken` covers. Leaves out a family that this machine
/// does not have.
///
/// # Errors
///
/// The host has no address, one is in use, or the system refuses all of them.
pub(super) fn listen(tcp: &TcpAddress, taken: &[SocketAddr]) -> Result<Vec<Bound>, ListenError> {
    let address = || Listen::Tcp(tcp.clone()).to_string();
    let wanted = addresses(tcp).map_err(|source| ListenError::Unresolved { address: address(), source })?;
    let (covered, wanted): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|wanted| taken.iter().any(|taken| covers(*taken, *wanted)));
    for covered in covered {
        tracing::info!("{}: {covered} is one of the addresses already", address());
    }
    bind_all(&address(), &wanted)
}

/// Binds all sockets of the address with this name.
fn bind_all(name: &str, wanted: &[SocketAddr]) -> Result<Vec<Bound>, ListenError> {
    let is_in_use = |(_, error): &(SocketAddr, io::Error)| error.kind() == io::ErrorKind::AddrInUse;
    let (mut bound, mut failed) = (Vec::new(), Vec::new());
    for _ in 0..ATTEMPTS {
        (bound, failed) = bind_each(wanted);
        // Another process has, on another of these addresses, the port that the system chose.
        let is_taken = wanted.iter().any(|wanted| wanted.port() == 0) && failed.iter().any(is_in_use);
        if !is_taken {
            break;
        }
    }
    // Also an error if the other family is free: clients would reach this server or another process by chance.
    let fatal = failed.iter().position(is_in_use).or(if bound.is_empty() { failed.len().checked_sub(1) } else { None });
    if let Some(at) = fatal {
        let (failed, source) = failed.swap_remove(at);
        let failed = failed.to_string();
        let address = if name.ends_with(&failed) { name.to_owned() } else { format!("{name} ({failed})") };
        return Err(ListenError::Refused { address, source });
    }
    for (failed, error) in failed {
        tracing::warn!("{name}: cannot listen on {failed}: {error}; the server uses the other addresses");
    }
    Ok(bound)
}

/// Listens at each address. If the system chooses the port, all get the same.
fn bind_each(wanted: &[SocketAddr]) -> (Vec<Bound>, Vec<(SocketAddr, io::Error)>) {
    let (mut bound, mut failed) = (Vec::<Bound>::new(), Vec::new());
    for &address in wanted {
        let mut address = address;
        if address.port() == 0
            && let Some(first) = bound.first()
        {
            address.set_port(first.local.port());
        }
        match bind_one(address) {
            Ok(socket) => bound.push(socket),
            Err(error) => failed.push((address, error)),
        }
    }
    (bound, failed)
}

fn bind_one(address: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // As the standard library does: after a restart, connections of the process before may still be ending.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    // IPv4 has separate sockets, so that the log shows the same client address for every listener.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(Bound { socket, local })
}

/// Returns the addresses that an address of the configuration stands for, without repetitions.
fn addresses(tcp: &TcpAddress) -> io::Result<Vec<SocketAddr>> {
    let each = |ips: [IpAddr; 2]| ips.map(|ip| SocketAddr::new(ip, tcp.port)).to_vec();
    let found = match &tcp.host {
        Host::All => each([Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]),
        // Elsewhere a socket for [::] also gets connections by IPv4.
        Host::Name(name) if name == "::" => each([Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()]),
        Host::Localhost => each([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]),
        Host::Name(name) => (name.as_str(), tcp.port).to_socket_addrs()?.collect(),
    };
    let mut unique = Vec::with_capacity(found.len());
    for mut address in found {
        if address.ip().to_canonical().is_ipv4() {
            address.set_ip(address.ip().to_canonical());
        }
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    Ok(unique)
}

/// Whether a socket at an address also gets the connections to another one.
fn covers(taken: SocketAddr, other: SocketAddr) -> bool {
    let is_all = taken.ip().is_unspecified() && taken.is_ipv4() == other.is_ipv4();
    taken.port() == other.port() && other.port() != 0 && (is_all || taken == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses_of(text: &str) -> Vec<String> {
        let Ok(Listen::Tcp(tcp)) = text.parse() else { unreachable!("{text} is a TCP address") };
        addresses(&tcp).expect("it needs no resolver").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_for_all_interfaces_and_for_this_machine_have_both_families() {
        for (text, expected) in [
            (":4960", &["0.0.0.0:4960", "[::]:4960"][..]),
            ("*:0", &["0.0.0.0:0", "[::]:0"]),
            ("[::]:1", &["[::]:1", "0.0.0.0:1"]),
            ("0.0.0.0:1", &["0.0.0.0:1"]),
            ("localhost:1", &["127.0.0.1:1", "[::1]:1"]),
            ("[::ffff:127.0.0.1]:1", &["127.0.0.1:1"]),
            ("[::1]:1", &["[::1]:1"]),
        ] {
            assert_eq!(addresses_of(text), expected, "{text}");
        }
    }

    #[test]
    fn an_address_that_the_machine_lacks_is_left_out_and_one_in_use_is_an_error() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        // The second one is for documents; no machine has it.
        let (here, nowhere) = (address("127.0.0.1:0"), address("192.0.2.1:0"));
        let bound = bind_all("name:0", &[nowhere, here]).expect("one of them can be bound");
        assert_eq!(bound.len(), 1);
        let listener = std::net::TcpListener::bind(here).expect("a port is free");
        let taken = listener.local_addr().expect("it listens");
        for (wanted, words) in [(&[nowhere][..], "name:1 (192.0.2.1:0)"), (&[address("127.0.0.2:0"), taken], "in use")]
        {
            let Err(error) = bind_all("name:1", wanted) else { unreachable!("{wanted:?} cannot be bound") };
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn an_address_covers_itself_and_all_interfaces_cover_their_family() {
        let covers =
            |taken: &str, other: &str| covers(taken.parse().expect("an address"), other.parse().expect("an address"));
        for (taken, other) in [("127.0.0.1:1", "127.0.0.1:1"), ("0.0.0.0:1", "10.0.0.1:1"), ("[::]:1", "[::1]:1")] {
            assert!(covers(taken, other), "{taken} and {other}");
        }
        for (taken, other) in [
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("0.0.0.0:1", "[::1]:1"),
            ("127.0.0.1:1", "0.0.0.0:1"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[fe80::1%1]:1", "[fe80::1%2]:1"),
        ] {
            assert!(!covers(taken, other), "{taken} and {other}");
        }
    }
}
