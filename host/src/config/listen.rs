//! The addresses of a server: `listen` and `socket-mode`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use super::error::ValueError;
use crate::urls::strip_scheme;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `host:port`, `:port` or `*:port`, with or without `http://` or `https://`.
    Tcp(TcpAddress),
    /// `unix:PATH`
    Unix(PathBuf),
    /// `unix:@NAME`: a Unix socket of Linux that has a name instead of a file.
    Abstract(String),
}

/// A TCP address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpAddress {
    text: String,
    /// The host name or the address, without brackets.
    pub host: Host,
    /// The port; the system chooses one for 0.
    pub port: u16,
    /// The scheme, if the address has one.
    pub scheme: Option<Scheme>,
}

/// The host of a TCP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// All interfaces: no host, or `*`.
    All,
    /// `localhost`: this machine, by IPv4 and by IPv6.
    Localhost,
    /// Another name or address, without brackets.
    Name(String),
}

/// The scheme of a TCP address.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS, whether the server has a certificate or not.
    Http,
    /// With TLS.
    Https,
}

impl Listen {
    /// Returns the address of a server that is given none: `127.0.0.1:3110`.
    pub fn default_address() -> Self {
        let (host, port) = ("127.0.0.1".to_owned(), 3110);
        Self::Tcp(TcpAddress { text: format!("{host}:{port}"), host: Host::Name(host), port, scheme: None })
    }

    /// Whether the address speaks TLS if the server has a certificate.
    pub fn may_speak_tls(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.scheme != Some(Scheme::Http))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(&address.text),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

impl FromStr for Listen {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Some(path) = strip_scheme(text, "unix:") {
            return match path.strip_prefix('@') {
                Some("") => Err(ValueError::NoPath),
                Some(_) if !cfg!(target_os = "linux") => Err(ValueError::AbstractSocket),
                Some(name) => Ok(Self::Abstract(name.to_owned())),
                None if path.is_empty() => Err(ValueError::NoPath),
                None => Ok(Self::Unix(path.into())),
            };
        }
        let (scheme, address) = match (strip_scheme(text, "http://"), strip_scheme(text, "https://")) {
            (Some(address), _) => (Some(Scheme::Http), address),
            (_, Some(address)) => (Some(Scheme::Https), address),
            (None, None) => (None, text),
        };
        let (host, port) = address.rsplit_once(':').ok_or(ValueError::Address)?;
        let port = port.parse().map_err(|_| ValueError::Address)?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host) {
            "" | "*" => Host::All,
            name if name.eq_ignore_ascii_case("localhost") => Host::Localhost,
            name if name.contains(['/', ',', ' ', '[', ']']) => return Err(ValueError::Address),
            name => Host::Name(name.to_owned()),
        };
        Ok(Self::Tcp(TcpAddress { text: text.to_owned(), host, port, scheme }))
    }
}

/// Reads one address or a list of them.
pub(super) fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Listen>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected an address such as \"127.0.0.1:3110\", or a list of them")]
    enum Written {
        One(String),
        More(Vec<String>),
    }
    let texts = match Written::deserialize(deserializer)? {
        Written::One(text) => vec![text],
        Written::More(texts) if texts.is_empty() => {
            return Err(serde::de::Error::custom("listen is an empty list; name an address or leave it out"));
        }
        Written::More(texts) => texts,
    };
    let wrong = |text: &str, error| serde::de::Error::custom(format!("listen: {text:?}: {error}"));
    texts.iter().map(|text| text.parse().map_err(|error| wrong(text, error))).collect::<Result<_, _>>().map(Some)
}

/// The permission bits of the files of Unix sockets.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl FromStr for SocketMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        match u32::from_str_radix(text, 8) {
            Ok(mode @ 0..=0o777) if is_octal => Ok(Self(mode)),
            _ => Err(ValueError::Mode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> TcpAddress {
        match text.parse() {
            Ok(Listen::Tcp(address)) => address,
            other => unreachable!("{text} is a TCP address, not {other:?}"),
        }
    }

    #[test]
    fn addresses_are_hosts_with_ports_or_sockets() {
        for (text, host, port) in [
            ("127.0.0.1:0", Host::Name("127.0.0.1".to_owned()), 0),
            ("[::1]:3110", Host::Name("::1".to_owned()), 3110),
            ("[fe80::1%eth0]:3110", Host::Name("fe80::1%eth0".to_owned()), 3110),
            ("vkog.example:80", Host::Name("vkog.example".to_owned()), 80),
            ("LocalHost:1", Host::Localhost, 1),
            (":4960", Host::All, 4960),
            ("*:0", Host::All, 0),
            ("https://:443", Host::All, 443),
        ] {
            let address = tcp(text);
            assert_eq!((address.host, address.port), (host, port), "{text}");
        }
        assert_eq!(tcp("http://a:1").scheme, Some(Scheme::Http));
        assert_eq!(tcp("https://a:1").scheme, Some(Scheme::Https));
        assert_eq!(tcp("HTTPS://a:1").scheme, Some(Scheme::Https));
        assert_eq!("UNIX:/Run".parse(), Ok(Listen::Unix("/Run".into())));
        assert_eq!("unix:/run/vkog".parse(), Ok(Listen::Unix("/run/vkog".into())));
        assert_eq!("unix:./@vkog".parse(), Ok(Listen::Unix("./@vkog".into())));
        for text in ["3110", "localhost", "localhost:port", "unix:", "unix:@", "127.0.0.1:99999", "http://a/:1", "[a:1"]
        {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_abstract_socket_is_one_of_linux() {
        let expected = if cfg!(target_os = "linux") {
            Ok(Listen::Abstract("vkog".to_owned()))
        } else {
            Err(ValueError::AbstractSocket)
        };
        assert_eq!("unix:@vkog".parse(), expected);
    }

    #[test]
    fn a_socket_mode_is_octal() {
        for (text, mode) in [("0660", 0o660), ("600", 0o600), ("0777", 0o777)] {
            assert_eq!(text.parse(), Ok(SocketMode(mode)), "{text}");
        }
        for text in ["", "6", "0o660", "0888", "1777", "+600", "rw"] {
            assert_eq!(text.parse::<SocketMode>(), Err(ValueError::Mode), "{text}");
        }
    }
}
