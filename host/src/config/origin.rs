//! The host names that browsers may use for this server (`allowed-hosts`), and the proxies that it trusts (`[proxy]`).

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::error::ProxyError;

/// A name of this server, in lower case, and its port if only that one is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost {
    name: String,
    port: Option<u16>,
}

impl AllowedHost {
    /// Whether this is the host of an authority: a name or an address, and perhaps a port.
    pub fn matches(&self, authority: &str) -> bool {
        let (name, port) = split_port(authority);
        name.eq_ignore_ascii_case(&self.name)
            && self.port.is_none_or(|own| port.is_some_and(|port| port.parse() == Ok(own)))
    }
}

/// An authority as name and port. The brackets of an IPv6 address belong to the name.
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (authority, None),
    }
}

/// A text that is not a host name with an optional port.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
#[error("not a host; write a name such as vkog.example or vkog.example:8080")]
pub struct NotAHost;

impl FromStr for AllowedHost {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        let (name, port) = split_port(text);
        let port = port.map(str::parse).transpose().map_err(|_| NotAHost)?;
        let is_address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(|inner| {
            let address: Result<IpAddr, _> = inner.parse();
            address.is_ok_and(|address| address.is_ipv6())
        });
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if is_name || is_address { Ok(Self { name: name.to_ascii_lowercase(), port }) } else { Err(NotAHost) }
    }
}

impl<'de> Deserialize<'de> for AllowedHost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The header field in which a proxy names the client.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ProxyHeader {
    /// `X-Forwarded-For`: addresses, the last one added by the last proxy.
    #[default]
    #[serde(rename = "X-Forwarded-For")]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// `X-Real-IP`: one address.
    #[serde(rename = "X-Real-IP")]
    XRealIp,
}

impl ProxyHeader {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "X-Forwarded-For",
            Self::Forwarded => "Forwarded",
            Self::XRealIp => "X-Real-IP",
        }
    }

    /// The address in one element of the field, with port 0 if it has none.
    pub fn address(self, element: &[u8]) -> Option<SocketAddr> {
        let text = str::from_utf8(element).ok()?;
        let node = match self {
            Self::XForwardedFor | Self::XRealIp => text.trim(),
            Self::Forwarded => forwarded_parameter(text, "for")?,
        };
        let bare = node.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(node);
        node.parse().or_else(|_| bare.parse().map(|address: IpAddr| SocketAddr::new(address, 0))).ok()
    }
}

/// Returns a parameter of one element of `Forwarded`, without quotation marks.
pub fn forwarded_parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(known, _)| known.trim().eq_ignore_ascii_case(name))?;
    let value = value.trim();
    Some(value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value))
}

/// The table `[proxy]`: which peers are proxies that say who the client is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// The field that they set.
    pub header: ProxyHeader,
    networks: Vec<IpNet>,
    /// Whether the peers at a Unix socket are proxies, too.
    unix: bool,
}

impl Proxy {
    /// Parses the table.
    ///
    /// # Errors
    ///
    /// It names no proxy, or something that is not one.
    pub(crate) fn parse<'de>(table: impl Deserializer<'de, Error = toml::de::Error>) -> Result<Self, ProxyError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            trusted: Vec<String>,
            #[serde(default)]
            header: ProxyHeader,
        }
        let Written { trusted, header } = Written::deserialize(table)?;
        if trusted.is_empty() {
            return Err(ProxyError::NoProxies);
        }
        let mut proxy = Self { header, ..Self::default() };
        for text in &trusted {
            match text.parse().or_else(|_| text.parse().map(|address: IpAddr| IpNet::from(address))) {
                _ if text == "unix" => proxy.unix = true,
                Ok(network) => proxy.networks.push(network),
                Err(_) => return Err(ProxyError::NotAnAddress(text.clone())),
            }
        }
        Ok(proxy)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && !self.unix
    }

    /// Whether the peer of a connection is one of them; none is that of a Unix socket.
    pub fn trusts(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.unix, |peer| self.networks.iter().any(|network| network.contains(&peer.to_canonical())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowed_host_matches_its_name_on_every_port_or_on_one() {
        for (allowed, authority, matches) in [
            ("vkog.example", "VKOG.example:80", true),
            ("Vkog.Example", "vkog.example", true),
            ("vkog.example:80", "vkog.example:80", true),
            ("vkog.example:80", "vkog.example", false),
            ("vkog.example:80", "vkog.example:8080", false),
            ("vkog.example", "a.vkog.example", false),
            ("10.0.0.1", "10.0.0.1:3110", true),
            ("[fe80::1]", "[fe80::1]:3110", true),
            ("[fe80::1]:3110", "[fe80::1]", false),
        ] {
            let host: AllowedHost = allowed.parse().expect("it is a host");
            assert_eq!(host.matches(authority), matches, "{allowed} and {authority}");
        }
        for text in ["", ":80", "a:", "a:b", "a:99999", "a/b", "a b", "http://a", "*", "[a]", "::1", "\u{e9}"] {
            assert!(text.parse::<AllowedHost>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_proxy_names_clients_in_the_form_of_its_header() {
        use ProxyHeader::{Forwarded, XForwardedFor};
        for (header, element, address) in [
            (XForwardedFor, " 203.0.113.7 ", Some("203.0.113.7:0")),
            (XForwardedFor, "203.0.113.7:99", Some("203.0.113.7:99")),
            (XForwardedFor, "2001:db8::1", Some("[2001:db8::1]:0")),
            (XForwardedFor, "[2001:db8::1]", Some("[2001:db8::1]:0")),
            (XForwardedFor, "[2001:db8::1]:99", Some("[2001:db8::1]:99")),
            (XForwardedFor, "unknown", None),
            (XForwardedFor, "", None),
            (Forwarded, "for=203.0.113.7", Some("203.0.113.7:0")),
            (Forwarded, " by=a; FOR = \"[2001:db8::1]:99\" ;proto=http", Some("[2001:db8::1]:99")),
            (Forwarded, "for=\"203.0.113.7", None),
            (Forwarded, "for=_a", None),
            (Forwarded, "by=203.0.113.7", None),
        ] {
            assert_eq!(
                header.address(element.as_bytes()),
                address.map(|text| text.parse().expect("valid")),
                "{element}"
            );
        }
    }

    #[test]
    fn a_proxy_is_trusted_by_its_address_or_its_network() {
        let table = |text: &str| Proxy::parse(toml::Value::Table(toml::from_str(text).expect("valid TOML")));
        let proxy = table("trusted = [\"127.0.0.1\", \"10.0.0.0/8\"]").expect("valid");
        for (peer, trusted) in [
            (Some("127.0.0.1"), true),
            (Some("::ffff:10.9.8.7"), true),
            (Some("127.0.0.2"), false),
            (Some("::1"), false),
            (None, false),
        ] {
            assert_eq!(proxy.trusts(peer.map(|peer| peer.parse().expect("valid"))), trusted, "{peer:?}");
        }
        assert!(table("trusted = [\"unix\"]").expect("valid").trusts(None));
        for (text, words) in [
            ("trusted = []", "empty"),
            ("trusted = [\"a\"]", "\"a\" is not an address"),
            ("trusted = [\"unix\"]\nheader = \"Via\"", "X-Real-IP"),
            ("header = \"Forwarded\"", "trusted"),
        ] {
            let error = table(text).expect_err(text).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
