//! The settings of the table `[plugins.etcd]`, and the URL of a store.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

use crate::keys;
use crate::tls::TlsFileError;
use vkog_plugin_api::serde::Deserialize;

/// The largest request that etcd accepts by default (`--max-request-bytes`).
const REQUEST_BYTES: usize = 3 << 19;
/// The largest number of operations in a transaction by default (`--max-txn-ops`).
const OPERATIONS: usize = 128;

/// The longest prefix of the keys. Each request repeats it several times.
const PREFIX_BYTES_MAX: usize = 1024;

/// The settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(crate = "vkog_plugin_api::serde", default, deny_unknown_fields)]
pub struct Settings {
    /// Connect with TLS. Any of the files below implies it.
    pub tls: bool,
    /// A PEM file with the certificates that sign those of etcd; default: the system's.
    pub ca: Option<PathBuf>,
    /// A PEM file with the certificate of this host.
    pub cert: Option<PathBuf>,
    /// A PEM file with the key of that certificate.
    pub key: Option<PathBuf>,
    /// The name in etcd's certificates, if it is not the host name of the URL.
    pub server_name: Option<String>,
    /// The user in etcd.
    pub user: Option<String>,
    /// The password of that user.
    pub password: Option<String>,
    /// A file with the password of that user; a line end at its end is ignored. It is read whenever the user authenticates.
    pub password_file: Option<PathBuf>,
    /// The seconds without contact after which the other hosts consider this one gone.
    pub lease_ttl: u32,
    /// etcd's `--max-request-bytes`.
    pub max_request_bytes: usize,
    /// etcd's `--max-txn-ops`.
    pub max_txn_ops: usize,
    /// The maximum number of groups of writes in flight.
    pub groups_in_flight: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tls: false,
            ca: None,
            cert: None,
            key: None,
            server_name: None,
            user: None,
            password: None,
            password_file: None,
            lease_ttl: 10,
            max_request_bytes: REQUEST_BYTES,
            max_txn_ops: OPERATIONS,
            groups_in_flight: 4,
        }
    }
}

/// A mistake in the settings or the URL.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    #[error("{name} is {value}, expected {from} to {to}")]
    OutOfRange { name: &'static str, value: usize, from: usize, to: usize },
    #[error("{missing} is missing: it belongs to {name}")]
    Missing { name: &'static str, missing: &'static str },
    #[error("password and password_file are both set; remove one of them")]
    TwoPasswords,
    #[error("{setting} of [plugins.etcd]: cannot read {}", path.display())]
    Read {
        setting: &'static str,
        path: PathBuf,
        #[source]
        error: std::io::Error,
    },
    // The URL is left out, because it may have a password. The host names it.
    #[error("its URL is not etcd://HOST:PORT,HOST:PORT/PREFIX; correct it")]
    Url,
    #[error("its URL has a user; set user and password_file of [plugins.etcd] instead")]
    UserInUrl,
    #[error("its URL has an IPv6 address without brackets, {0}; write it as [::1]:2379")]
    Brackets(String),
    #[error("its URL has a {0:?}, but no options; set them in [plugins.etcd] instead")]
    Options(char),
    #[error("the prefix in its URL has {0} bytes; write one of at most {PREFIX_BYTES_MAX}")]
    LongPrefix(usize),
    #[error("the prefix in its URL has an empty part; write etcd://HOST:PORT/PREFIX with single slashes")]
    Prefix,
    #[error(
        "the prefix {prefix} in its URL is among the keys of a store with the prefix {store}, because {segment:?} is a name of its keys; \
         use a prefix without {segment:?} after a slash"
    )]
    ReservedPrefix { prefix: String, store: String, segment: &'static str },
    #[error("cannot use the endpoint {endpoint}")]
    Endpoint {
        endpoint: String,
        #[source]
        error: tonic::transport::Error,
    },
    #[error(transparent)]
    TlsFile(#[from] TlsFileError),
    #[error("cannot start threads")]
    Threads(#[source] std::io::Error),
}

/// An error with its sources.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl Settings {
    /// Checks what the types of the settings do not say.
    pub(crate) fn check(&self) -> Result<(), SettingsError> {
        for (name, value, from, to) in [
            ("lease_ttl", self.lease_ttl as usize, 3, 3600),
            ("max_request_bytes", self.max_request_bytes, 64 << 10, 1 << 30),
            ("max_txn_ops", self.max_txn_ops, 16, 100_000),
            ("groups_in_flight", self.groups_in_flight, 1, 64),
        ] {
            if !(from..=to).contains(&value) {
                return Err(SettingsError::OutOfRange { name, value, from, to });
            }
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => return Err(SettingsError::Missing { name: "cert", missing: "key" }),
            (None, Some(_)) => return Err(SettingsError::Missing { name: "key", missing: "cert" }),
            _ => {}
        }
        let has_password = self.password.is_some() || self.password_file.is_some();
        match &self.user {
            Some(_) if !has_password => Err(SettingsError::Missing { name: "user", missing: "password" }),
            None if has_password => Err(SettingsError::Missing { name: "password", missing: "user" }),
            _ if self.password.is_some() && self.password_file.is_some() => Err(SettingsError::TwoPasswords),
            _ => Ok(()),
        }
    }

    pub(crate) fn uses_tls(&self) -> bool {
        self.tls || self.ca.is_some() || self.cert.is_some() || self.server_name.is_some()
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.uses_tls() { "https" } else { "http" }
    }

    /// Returns the password of the user. A file is read in each call.
    pub(crate) fn password(&self) -> Result<String, SettingsError> {
        let path = match (&self.password, &self.password_file) {
            (Some(password), _) => return Ok(password.clone()),
            (None, Some(path)) => path,
            (None, None) => return Err(SettingsError::Missing { name: "user", missing: "password" }),
        };
        let text = String::from_utf8_lossy(&read("password_file", path)?).into_owned();
        let line = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
        Ok(line.unwrap_or(&text).to_owned())
    }
}

/// Reads the file that a setting names.
pub(crate) fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, SettingsError> {
    std::fs::read(path).map_err(|error| SettingsError::Read { setting, path: path.to_owned(), error })
}

/// The URL of a store: `etcd://HOST:PORT,HOST:PORT/PREFIX`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StoreUrl {
    /// Each with a port.
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
}

impl StoreUrl {
    pub(crate) fn parse(url: &str) -> Result<Self, SettingsError> {
        let rest = url.strip_prefix("etcd://").ok_or(SettingsError::Url)?;
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, "vkog"));
        if hosts.contains('@') {
            return Err(SettingsError::UserInUrl);
        }
        if let Some(mark) = rest.chars().find(|char| ['?', '#'].contains(char)) {
            return Err(SettingsError::Options(mark));
        }
        let mut endpoints = Vec::new();
        for host in hosts.split(',') {
            if host.is_empty() || host.contains(' ') {
                return Err(SettingsError::Url);
            }
            let address = [Some(host), host.rsplit_once(':').map(|(address, _)| address)];
            if address.into_iter().flatten().any(|address| address.parse::<Ipv6Addr>().is_ok()) {
                return Err(SettingsError::Brackets(host.to_owned()));
            }
            // The colons of an IPv6 address are in brackets.
            match host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
                Some((_, port)) if port.parse::<u16>().is_ok() => endpoints.push(host.to_owned()),
                Some(_) => return Err(SettingsError::Url),
                None => endpoints.push(format!("{host}:2379")),
            }
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if prefix.len() > PREFIX_BYTES_MAX {
            return Err(SettingsError::LongPrefix(prefix.len()));
        }
        if prefix.split('/').any(str::is_empty) {
            return Err(SettingsError::Prefix);
        }
        for (at, _) in prefix.match_indices('/') {
            let (store, below) = (&prefix[..at], &prefix[at + 1..]);
            let first = below.split('/').next();
            if let Some(segment) = keys::NAMES.into_iter().find(|name| first == Some(name)) {
                let (prefix, store) = (prefix.to_owned(), store.to_owned());
                return Err(SettingsError::ReservedPrefix { prefix, store, segment });
            }
        }
        Ok(Self { endpoints, prefix: prefix.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_endpoints_and_a_prefix() {
        for (url, endpoints, prefix) in [
            ("etcd://a:1,b:2/vkog", &["a:1", "b:2"][..], "vkog"),
            ("etcd://a", &["a:2379"], "vkog"),
            ("etcd://[::1]:3,[::1]/x/y/", &["[::1]:3", "[::1]:2379"], "x/y"),
        ] {
            let parsed = StoreUrl::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(
                (parsed.endpoints, parsed.prefix),
                (endpoints.iter().map(|e| (*e).to_owned()).collect(), prefix.to_owned())
            );
        }
    }

    #[test]
    fn a_malformed_url_is_refused() {
        for url in [
            "etcd:a",
            "http://a",
            "etcd://",
            "etcd://a,,b",
            "etcd://u@a",
            "etcd://a:99999",
            "etcd://a:b",
            "etcd://a/",
            "etcd://a//b",
        ] {
            let parsed = StoreUrl::parse(url);
            assert!(parsed.is_err(), "{url}: {parsed:?}");
        }
    }

    #[test]
    fn an_ipv6_address_without_brackets_is_refused_with_the_way_to_write_it() {
        for (url, host) in [("etcd://::1:41001/vkog", "::1:41001"), ("etcd://a:1,fe80::2", "fe80::2")] {
            let error = StoreUrl::parse(url).expect_err(url).to_string();
            assert_eq!(error, format!("its URL has an IPv6 address without brackets, {host}; write it as [::1]:2379"));
        }
    }

    #[test]
    fn a_url_with_options_is_refused_with_the_place_for_them() {
        for (url, mark) in [("etcd://a/b?tls=true", '?'), ("etcd://a?tls=true", '?'), ("etcd://a:1/b#c?d", '#')] {
            let error = StoreUrl::parse(url).expect_err(url).to_string();
            assert_eq!(error, format!("its URL has a '{mark}', but no options; set them in [plugins.etcd] instead"));
        }
    }

    #[test]
    fn a_prefix_among_the_keys_of_another_store_is_refused() {
        for (prefix, store, segment) in [
            ("vkog/k", "vkog", "k"),
            ("vkog/hosts/x", "vkog", "hosts"),
            ("a/b/leader/k", "a/b", "leader"),
            ("k/k", "k", "k"),
        ] {
            let error = StoreUrl::parse(&format!("etcd://h/{prefix}/")).expect_err(prefix).to_string();
            let expected = format!(
                "the prefix {prefix} in its URL is among the keys of a store with the prefix {store}, because {segment:?} is a name of \
                 its keys; use a prefix without {segment:?} after a slash"
            );
            assert_eq!(error, expected);
        }
        for prefix in ["k", "leader", "vkog/test", "vkog/keys", "hosts/vkog"] {
            let parsed = StoreUrl::parse(&format!("etcd://h/{prefix}")).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(parsed.prefix, prefix);
        }
    }

    #[test]
    fn a_prefix_that_leaves_no_room_for_writes_is_refused() {
        let url = |len: usize| format!("etcd://h/{}", "p".repeat(len));
        assert!(StoreUrl::parse(&url(PREFIX_BYTES_MAX)).is_ok());
        let error = StoreUrl::parse(&url(PREFIX_BYTES_MAX + 1)).expect_err("it is too long").to_string();
        assert_eq!(error, "the prefix in its URL has 1025 bytes; write one of at most 1024");
    }

    #[test]
    fn a_url_with_a_user_is_refused_with_the_settings_for_it() {
        for url in ["etcd://u@a", "etcd://a,u:p@b:1/vkog"] {
            assert!(matches!(StoreUrl::parse(url), Err(SettingsError::UserInUrl)), "{url}");
        }
    }

    #[test]
    fn settings_that_do_not_fit_together_are_refused() {
        let base = Settings::default();
        assert!(base.check().is_ok());
        for (settings, part) in [
            (Settings { lease_ttl: 1, ..base.clone() }, "lease_ttl is 1, expected 3 to 3600"),
            (Settings { cert: Some("c".into()), ..base.clone() }, "key is missing"),
            (Settings { user: Some("u".into()), ..base.clone() }, "password is missing"),
            (Settings { password: Some("p".into()), ..base.clone() }, "user is missing"),
        ] {
            let error = settings.check().expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
