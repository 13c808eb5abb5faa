//! The origin of a request: the host name it uses, the site of the page that sent it, and the client behind a proxy.
//!
//! A browser attaches no secret to the requests of a foreign page, but it may reach addresses that the author of the page
//! cannot. These rules protect a store that needs no token.

use std::net::{IpAddr, SocketAddr};

use super::cors;
use super::problem::Problem;
use crate::config::{Auth, Proxy, ProxyHeader, forwarded_parameter, split_port};
use crate::http::RequestHead;
use vkog_engine::host_refusal;
use vkog_plugin_host::Refusal;

/// The header fields that proxies add.
const BY_PROXIES: [&str; 4] = ["x-forwarded-for", "forwarded", "x-real-ip", "via"];

/// Checks what HTTP demands of the head of every request (RFC 9112, section 3.2).
///
/// # Errors
///
/// The head does not identify the server and the resource.
pub(super) fn check_head(head: &RequestHead) -> Result<(), Problem> {
    if head.target.contains('#') {
        return Err(Problem::new(400, "Target has a fragment; write # as %23"));
    }
    if head.has_foreign_scheme() {
        return Err(Problem::new(400, "Target must be a path, or a URL of http or https"));
    }
    if head.authority().is_some_and(|authority| authority.is_empty() || !is_authority(authority.as_bytes())) {
        return Err(Problem::new(400, "Target must be a path, or a URL whose host is a name or an address"));
    }
    let mut hosts = head.headers.all("host");
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version < (1, 1) => Ok(()),
        (None, _) => Err(Problem::new(400, "Host is missing; only HTTP/1.0 permits that")),
        (Some(host), None) if is_authority(host) => Ok(()),
        (Some(_), None) => Err(Problem::new(400, "Host must be a name or an address, and perhaps a port")),
        (Some(_), Some(_)) => Err(Problem::new(400, "Host is repeated; send it once")),
    }
}

/// Returns whether these bytes are a valid Host field: `uri-host [ ":" port ]` of RFC 3986, or nothing.
fn is_authority(host: &[u8]) -> bool {
    if is_usual_local(host) {
        return true;
    }
    let Ok(host) = str::from_utf8(host) else { return false };
    let (name, port) = split_port(host);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    let is_known = match name.strip_prefix('[') {
        Some(address) => address.strip_suffix(']').is_some_and(|address| !address.contains(['[', ']'])),
        None => name.bytes().all(is_name),
    };
    is_known && port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a host is one of the usual names of this machine, with or without a port. Every request passes here, so these names
/// are not parsed.
fn is_usual_local(host: &[u8]) -> bool {
    let names: [&[u8]; 3] = [b"127.0.0.1", b"localhost", b"[::1]"];
    match names.iter().find_map(|name| host.strip_prefix(*name)) {
        Some([b':', port @ ..]) => port.iter().all(u8::is_ascii_digit),
        Some(rest) => rest.is_empty(),
        None => false,
    }
}

/// Returns the field `Host`, or nothing if there is none.
fn host_field(head: &RequestHead) -> &str {
    head.headers.get("host").and_then(|host| str::from_utf8(host).ok()).unwrap_or_default()
}

/// Returns the name of the server in a request. The authority of an absolute target takes precedence over `Host` (RFC 9112,
/// section 3.2.2).
fn host(head: &RequestHead) -> &str {
    head.authority().unwrap_or_else(|| host_field(head))
}

fn is_allowed(authority: &str, auth: &Auth) -> bool {
    auth.allowed_hosts.iter().any(|allowed| allowed.matches(authority))
}

/// Checks that no web page of another site sent a request that needs no token.
///
/// # Errors
///
/// 421 if `Host` is not a name of this server: once such a name resolves to this machine, a browser takes the request for one
/// of the page's own origin (DNS rebinding). 403 for a request of another site.
pub(super) fn check(head: &RequestHead, auth: &Auth) -> Result<(), Refusal> {
    let public = PublicAddress::of(head, &auth.proxy);
    let is_foreign = |host: &&str| !host.is_empty() && !is_local(host) && !is_allowed(host, auth);
    // No browser reaches a Unix socket, but a proxy may pass on what it gets from one.
    let checks_host = if head.client.is_some() { auth.checks_host } else { !auth.allowed_hosts.is_empty() };
    if checks_host
        && let Some(host) =
            head.authority().into_iter().chain([host_field(head)]).chain(public.hosts.iter().copied()).find(is_foreign)
    {
        let (name, _) = split_port(host);
        let way_out = format!("add it to allowed-hosts (--allowed-hosts {name}), or require tokens");
        return Err(host_refusal(421, format!("Host {host:?} is not a name of this server; {way_out}")));
    }
    check_site(head, auth)
}

/// Checks that no web page of another site sent a request, by the header fields that a browser adds. Programs other than
/// browsers send neither `Origin` nor `Sec-Fetch-Site`. Over TLS that is enough: a page whose host name resolves to this
/// server has no certificate for that name.
///
/// # Errors
///
/// 403 for a request of another site.
pub(super) fn check_site(head: &RequestHead, auth: &Auth) -> Result<(), Refusal> {
    let host = host(head);
    let public = PublicAddress::of(head, &auth.proxy);
    let mut sites = head.headers.all("sec-fetch-site");
    let may_be_own = match (sites.next(), sites.next()) {
        // This header of the browser takes precedence over a Host that a proxy may have rewritten.
        (Some(b"same-origin" | b"none"), None) => return Ok(()),
        (None, _) => true,
        _ => false,
    };
    let mut origins = head.headers.all("origin").peekable();
    let is_trusted = |origin: &[u8]| {
        // The operator lets the pages of these origins read and write.
        if cors::is_listed(origin, &auth.cors) {
            return true;
        }
        let authority = str::from_utf8(origin).ok().and_then(|origin| origin.split_once("://"));
        authority.is_some_and(|(scheme, own)| may_be_own && public.is_own(scheme, own, host) || is_allowed(own, auth))
    };
    if (may_be_own || origins.peek().is_some()) && origins.all(is_trusted) {
        return Ok(());
    }
    let way_out = "add the host of its origin to allowed-hosts (--allowed-hosts), or require tokens";
    Err(host_refusal(403, format!("Rejected a request of another site; {way_out}")))
}

/// The address that the client used, as reported by a trusted proxy. Each of several proxies may have reported one.
#[derive(Default)]
struct PublicAddress<'a> {
    hosts: Vec<&'a str>,
    schemes: Vec<&'a str>,
}

impl<'a> PublicAddress<'a> {
    /// Reads the header fields of a trusted proxy. Invalid host names are left out.
    fn of(head: &'a RequestHead, proxy: &Proxy) -> Self {
        if proxy.is_empty() || !proxy.trusts(head.client.map(|peer| peer.ip())) {
            return Self::default();
        }
        let elements = |name| {
            let values = head.headers.all(name).filter_map(|value| str::from_utf8(value).ok());
            values.flat_map(|value| value.split(',').map(str::trim)).filter(|element| !element.is_empty())
        };
        let (mut hosts, schemes): (Vec<&str>, Vec<&str>) = match proxy.header {
            ProxyHeader::XForwardedFor | ProxyHeader::XRealIp => {
                (elements("x-forwarded-host").collect(), elements("x-forwarded-proto").collect())
            }
            ProxyHeader::Forwarded => {
                let all = |name| elements("forwarded").filter_map(move |element| forwarded_parameter(element, name));
                (all("host").collect(), all("proto").collect())
            }
        };
        hosts.retain(|host| is_authority(host.as_bytes()));
        Self { hosts, schemes }
    }

    /// Whether a page of this scheme and authority came from the server, which the request names `host`.
    fn is_own(&self, scheme: &str, authority: &str, host: &str) -> bool {
        let is_host = |known: &str| authority.eq_ignore_ascii_case(known);
        let has_scheme = self.schemes.is_empty() || self.schemes.iter().any(|known| known.eq_ignore_ascii_case(scheme));
        has_scheme && (is_host(host) || self.hosts.iter().any(|known| is_host(known)))
    }
}

/// Returns whether every browser takes a host for this machine, without the domain name system.
fn is_local(host: &str) -> bool {
    if is_usual_local(host.as_bytes()) {
        return true;
    }
    let (name, _) = split_port(host);
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    let label = name.rsplit('.').next().unwrap_or_default();
    label.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The client that a proxy forwards a request for.
struct Forwarded {
    /// `None` if the proxy does not know it.
    client: Option<SocketAddr>,
    /// Whether the client and all proxies are on this machine.
    is_local: bool,
}

impl Forwarded {
    /// Reads the header of a trusted proxy: the client is the last address in it that is not a trusted proxy.
    fn of(head: &RequestHead, proxy: &Proxy) -> Option<Self> {
        if !proxy.trusts(head.client.map(|peer| peer.ip())) {
            return None;
        }
        let values: Vec<&[u8]> = head.headers.all(proxy.header.name()).collect();
        let mut elements = values.iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b',')).peekable();
        elements.peek()?;
        let mut forwarded = Self { client: None, is_local: is_loopback(head.client) };
        while let Some(element) = elements.next() {
            forwarded.client = proxy.header.address(element);
            forwarded.is_local &= forwarded.client.is_some() && is_loopback(forwarded.client);
            if !forwarded.client.is_some_and(|client| proxy.trusts(Some(client.ip()))) {
                // Behind anything more there is somebody else.
                forwarded.is_local &= elements.peek().is_none();
                break;
            }
        }
        Some(forwarded)
    }
}

/// Sets the client for logs and plugins, if a trusted proxy forwards the request.
pub(super) fn name_client(head: &RequestHead, auth: &Auth) {
    if !auth.proxy.is_empty()
        && let Some(Forwarded { client, .. }) = Forwarded::of(head, &auth.proxy)
    {
        head.name_client(client.map_or_else(|| "unknown".to_owned(), |client| client.to_string()));
    }
}

/// Whether the client is on this machine. One behind a proxy that is not trusted may be anywhere.
pub(super) fn is_on_this_machine(head: &RequestHead, auth: &Auth) -> bool {
    match Forwarded::of(head, &auth.proxy) {
        Some(forwarded) => forwarded.is_local,
        None => is_loopback(head.client) && !BY_PROXIES.iter().any(|name| head.headers.get(name).is_some()),
    }
}

/// Returns whether this is a loopback address, or `None` for the peer of a Unix socket.
fn is_loopback(address: Option<SocketAddr>) -> bool {
    address.is_none_or(|address| address.ip().to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Headers, Method};

    fn head(client: Option<&str>, target: &str, fields: &[(&str, &str)]) -> RequestHead {
        let mut headers = Headers::default();
        fields.iter().for_each(|(name, value)| headers.push(name, value.as_bytes()));
        let client = client.map(|client| client.parse().expect("an address"));
        RequestHead::new(Method::Put, target.to_owned(), headers, client)
    }

    /// The rules of a listener of this machine with the name vkog.example.
    fn local() -> Auth {
        let allowed_hosts = vec!["vkog.example".parse().expect("a name")];
        Auth { open: true, checks_host: true, allowed_hosts, ..Auth::default() }
    }

    #[test]
    fn a_head_names_one_host_and_no_fragment() {
        let status = |target: &str, version, hosts: &[&str]| {
            let fields: Vec<_> = hosts.iter().map(|host| ("Host", *host)).collect();
            let checked = check_head(&head(None, target, &fields).with_version(version));
            checked.map_or_else(|problem| problem.status(), |()| 200)
        };
        for (target, version, hosts, expected) in [
            ("/", (1, 1), &["a"][..], 200),
            ("/", (1, 1), &[""], 200),
            ("/", (1, 1), &["a b"], 400),
            ("/", (1, 1), &["a", "a"], 400),
            ("/", (1, 1), &[], 400),
            ("/", (1, 0), &[], 200),
            ("/", (1, 0), &["a b"], 400),
            ("/#", (1, 1), &["a"], 400),
            ("http://a/", (1, 1), &["a"], 200),
            ("http://a b/", (1, 1), &["a"], 400),
            ("http:///", (1, 1), &["a"], 400),
        ] {
            assert_eq!(status(target, version, hosts), expected, "{target} {version:?} {hosts:?}");
        }
    }

    #[test]
    fn a_request_without_a_token_must_use_a_name_of_this_server() {
        for (target, host, checks_host, expected) in [
            ("/", "127.0.0.1:3110", true, None),
            ("/", "localhost", true, None),
            ("/", "127.9.9.9", true, None),
            ("/", "", true, None),
            ("/", "vkog.example:80", true, None),
            ("/", "other.example", true, Some(421)),
            ("/", "other.example", false, None),
            ("http://vkog.example/", "localhost", true, None),
            ("http://other.example/", "localhost", true, Some(421)),
            ("http://localhost/", "other.example", true, Some(421)),
        ] {
            let auth = Auth { checks_host, ..local() };
            let checked = check(&head(Some("127.0.0.1:1"), target, &[("Host", host)]), &auth);
            assert_eq!(checked.err().map(|refusal| refusal.status), expected, "{target} {host} {checks_host}");
        }
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        for (fields, expected) in [
            (&[][..], None),
            (&[("Sec-Fetch-Site", "same-origin")], None),
            (&[("Sec-Fetch-Site", "none")], None),
            (&[("Sec-Fetch-Site", "same-origin"), ("Origin", "http://other.example")], None),
            (&[("Sec-Fetch-Site", "same-site")], Some(403)),
            (&[("Sec-Fetch-Site", "cross-site")], Some(403)),
            (&[("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "none")], Some(403)),
            (&[("Sec-Fetch-Site", "cross-site"), ("Origin", "http://localhost")], Some(403)),
            (&[("Sec-Fetch-Site", "cross-site"), ("Origin", "http://vkog.example")], None),
            (&[("Origin", "http://LOCALHOST")], None),
            (&[("Origin", "https://vkog.example:8443")], None),
            (&[("Origin", "http://other.example")], Some(403)),
            (&[("Origin", "localhost")], Some(403)),
            (&[("Origin", "null")], Some(403)),
            (&[("Origin", "http://localhost"), ("Origin", "http://other.example")], Some(403)),
        ] {
            let fields: Vec<_> = [("Host", "localhost")].iter().chain(fields).copied().collect();
            let checked = check(&head(None, "/", &fields), &local());
            assert_eq!(checked.err().map(|refusal| refusal.status), expected, "{fields:?}");
        }
        // The authority of the target is the host, whatever the field says.
        let fields = [("Host", "localhost"), ("Origin", "http://localhost")];
        assert!(check(&head(None, "http://vkog.example/", &fields), &local()).is_err());
        let fields = [("Host", "localhost"), ("Origin", "http://127.0.0.1")];
        assert!(check(&head(None, "http://127.0.0.1/", &fields), &local()).is_ok());
    }

    /// The table `[proxy]` that trusts this machine and 10.0.0.0/8.
    fn behind_proxies() -> Auth {
        let table = toml::from_str("trusted = [\"127.0.0.1\", \"10.0.0.0/8\"]").expect("valid TOML");
        Auth { proxy: Proxy::parse(toml::Value::Table(table)).expect("two proxies"), ..Auth::default() }
    }

    #[test]
    fn the_client_is_the_last_forwarded_address_that_is_no_trusted_proxy() {
        for (peer, forwarded, named) in [
            ("127.0.0.1:1", &[][..], "127.0.0.1:1"),
            ("127.0.0.1:1", &["203.0.113.7"], "203.0.113.7:0"),
            ("127.0.0.1:1", &["198.51.100.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7:0"),
            ("127.0.0.1:1", &["198.51.100.1", "203.0.113.7", "10.0.0.2"], "203.0.113.7:0"),
            ("127.0.0.1:1", &["10.0.0.1, 10.0.0.2"], "10.0.0.1:0"),
            ("127.0.0.1:1", &["203.0.113.7, _hidden, 10.0.0.2"], "unknown"),
            ("203.0.113.9:1", &["198.51.100.1"], "203.0.113.9:1"),
        ] {
            let fields: Vec<_> = forwarded.iter().map(|value| ("X-Forwarded-For", *value)).collect();
            let head = head(Some(peer), "/", &fields);
            name_client(&head, &behind_proxies());
            assert_eq!(head.client_text(), named, "{peer} {forwarded:?}");
        }
        let head = head(Some("127.0.0.1:1"), "/", &[("X-Forwarded-For", "203.0.113.7")]);
        name_client(&head, &Auth::default());
        assert_eq!(head.client_text(), "127.0.0.1:1", "no proxy is trusted");
    }

    #[test]
    fn a_client_is_on_this_machine_only_if_every_proxy_is() {
        let forwarded = |value| ("X-Forwarded-For", value);
        for (peer, fields, trusting, expected) in [
            (None, &[][..], true, true),
            (Some("127.0.0.1:1"), &[], true, true),
            (Some("[::ffff:127.0.0.1]:1"), &[], false, true),
            (Some("10.0.0.1:1"), &[], true, false),
            (Some("127.0.0.1:1"), &[forwarded("127.0.0.1")], true, true),
            (Some("127.0.0.1:1"), &[forwarded("127.0.0.1, 127.0.0.1")], true, true),
            (Some("127.0.0.1:1"), &[forwarded("203.0.113.7")], true, false),
            (Some("127.0.0.1:1"), &[forwarded("203.0.113.7, 127.0.0.1")], true, false),
            (Some("127.0.0.1:1"), &[forwarded("127.0.0.1, 10.0.0.1")], true, false),
            // A loopback address that is no proxy: before it there may be anybody.
            (Some("127.0.0.1:1"), &[forwarded("127.0.0.2")], true, true),
            (Some("127.0.0.1:1"), &[forwarded("203.0.113.7, 127.0.0.2")], true, false),
            (Some("127.0.0.1:1"), &[forwarded("unknown")], true, false),
            (Some("10.0.0.1:1"), &[forwarded("127.0.0.1")], true, false),
            (Some("127.0.0.1:1"), &[forwarded("127.0.0.1")], false, false),
            (Some("127.0.0.1:1"), &[("Via", "1.1 proxy")], false, false),
            (None, &[("Forwarded", "for=127.0.0.1")], false, false),
        ] {
            let auth = if trusting { behind_proxies() } else { Auth::default() };
            let head = head(peer, "/", fields);
            assert_eq!(is_on_this_machine(&head, &auth), expected, "{peer:?} {fields:?} {trusting}");
        }
    }

    #[test]
    fn a_host_field_is_a_name_or_an_address_and_perhaps_a_port() {
        for good in ["", "a", "a.b:80", "a:", "127.0.0.1", "[::1]", "[::1]:80", "a_b", "%61"] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in
            ["a b", "a/b", "a@b", "a:b", "a:1:2", "[::1", "::1", "a,b c", "http://a", "\u{e9}", "a#b", "[a]]", "a]"]
        {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_host_that_only_starts_like_a_local_name_is_not_local() {
        for other in ["127.0.0.1.a", "127.0.0.10", "localhosts", "localhost.a", "localhost:a", "[::1]a", "127.0.0.1:1a"]
        {
            assert!(!is_usual_local(other.as_bytes()), "{other}");
        }
        for local in ["127.0.0.1", "127.0.0.1:3110", "localhost:", "[::1]:1"] {
            assert!(is_usual_local(local.as_bytes()), "{local}");
        }
    }

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
