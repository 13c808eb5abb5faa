//! Where a request comes from: under which name the server was asked, and whose page asks.
//!
//! A browser attaches nothing secret to the requests that a foreign page makes it send, but it may reach addresses that the
//! page's author does not. So where no token protects the store, these rules do.

use std::net::IpAddr;

use crate::config::{Access, split_port};
use crate::http::Head;
use crate::ops::by_host;
use crate::plugins::Refusal;

/// Checks that the page of another site did not send a request that no token protects. Programs that are no browsers send
/// neither `Origin` nor `Sec-Fetch-Site`.
///
/// # Errors
///
/// 421 where the server is asked under a name that is not its own: a browser takes such a request for one of the page's own
/// origin, once the name is bound to this machine. 403 for the request of another site.
pub(super) fn check(head: &Head, access: &Access) -> Result<(), Refusal> {
    let host = head.headers.get("host").and_then(|host| str::from_utf8(host).ok()).unwrap_or_default();
    let is_allowed = |authority: &str| access.allowed_hosts.iter().any(|allowed| allowed.matches(authority));
    if access.checks_host && !host.is_empty() && !is_local(host) && !is_allowed(host) {
        let (name, _) = split_port(host);
        let way_out = format!("add it to allowed-hosts (--allowed-hosts {name}), or require tokens");
        return Err(by_host(421, format!("Host {host:?} is not a name of this server; {way_out}")));
    }
    let mut sites = head.headers.all("sec-fetch-site");
    let may_be_own = match (sites.next(), sites.next()) {
        // What the browser says of itself beats a Host that a proxy may have rewritten.
        (Some(b"same-origin" | b"none"), None) => return Ok(()),
        (None, _) => true,
        _ => false,
    };
    let mut origins = head.headers.all("origin").peekable();
    let is_trusted = |origin: &[u8]| {
        let authority = str::from_utf8(origin).ok().and_then(|origin| origin.split_once("://"));
        authority.is_some_and(|(_, own)| may_be_own && own.eq_ignore_ascii_case(host) || is_allowed(own))
    };
    if (may_be_own || origins.peek().is_some()) && origins.all(is_trusted) {
        return Ok(());
    }
    let way_out = "add the host of its origin to allowed-hosts (--allowed-hosts), or require tokens";
    Err(by_host(403, format!("Refused a request of another site; {way_out}")))
}

/// Whether a host is this machine for every browser, whatever the domain name system says.
fn is_local(host: &str) -> bool {
    let (name, _) = split_port(host);
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    let label = name.rsplit('.').next().unwrap_or_default();
    label.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_localhost_and_what_begins_with_127() {
        for local in ["localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1:1", "127.9.9.9", "[::1]:1"] {
            assert!(is_local(local), "{local}");
        }
        for other in ["localhost.a", "alocalhost", "127.0.0.1.a", "128.0.0.1", "[::2]", "0.0.0.0", "a"] {
            assert!(!is_local(other), "{other}");
        }
    }
}
