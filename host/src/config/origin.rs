//! By which names the server is known to browsers (`allowed-hosts`).

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

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

impl FromStr for AllowedHost {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "not a host; write a name such as vkog.example or vkog.example:8080";
        let (name, port) = split_port(text);
        let port = port.map(str::parse).transpose().map_err(|_| wrong)?;
        let is_address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(|inner| {
            let address: Result<IpAddr, _> = inner.parse();
            address.is_ok_and(|address| address.is_ipv6())
        });
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if is_name || is_address { Ok(Self { name: name.to_ascii_lowercase(), port }) } else { Err(wrong) }
    }
}

impl<'de> Deserialize<'de> for AllowedHost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
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
}
