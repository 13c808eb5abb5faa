//! The options of a store that several servers share.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::error::ValueError;
use crate::urls::without_credentials;

/// The default of `--max-lag`.
const MAX_LAG: Duration = Duration::from_secs(5);
/// The default of `--store-timeout`.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// The URL of a shared store: `etcd://10.0.0.1:2379,10.0.0.2:2379/vkog`. Its scheme selects the plugin that connects to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl {
    text: String,
    scheme_len: usize,
}

impl StoreUrl {
    /// Returns the scheme in lower case, which is also the name of the plugin: a letter, then letters, digits and hyphens.
    pub fn scheme(&self) -> &str {
        &self.text[..self.scheme_len]
    }

    /// Returns an id that each URL has for itself: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        Sha256::digest(self.to_string()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the whole URL, for the plugin only: it may have a password.
    pub fn secret(&self) -> &str {
        &self.text
    }
}

impl FromStr for StoreUrl {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (scheme, rest) = text.split_once("://").ok_or(ValueError::StoreUrl)?;
        let scheme = scheme.to_ascii_lowercase();
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase()) && scheme.bytes().all(is_name);
        if !is_scheme || rest.is_empty() || rest.contains(|char: char| char.is_whitespace() || char.is_control()) {
            return Err(ValueError::StoreUrl);
        }
        Ok(Self { text: format!("{scheme}://{rest}"), scheme_len: scheme.len() })
    }
}

impl Display for StoreUrl {
    /// Writes the URL without the user and the password that it may have.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&without_credentials(&self.text))
    }
}

/// How recent the data of a read must be.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Reads {
    /// It has every write that any server acknowledged before the read began.
    #[default]
    Linearizable,
    /// It is that of this server, and at most `--max-lag` old.
    Local,
}

/// A store that several servers share, and the limits of its requests.
#[derive(Clone, Debug)]
pub struct SharedStoreConfig {
    /// Where it is.
    pub url: StoreUrl,
    /// How recent the data of a read is, unless its request says otherwise.
    pub reads: Reads,
    /// The maximum age of the data of a local read.
    pub max_lag: Duration,
    /// The time within which a request gets its response.
    pub timeout: Duration,
}

impl From<Reads> for vkog_store::Reads {
    fn from(reads: Reads) -> Self {
        match reads {
            Reads::Linearizable => Self::Linearizable,
            Reads::Local => Self::Local,
        }
    }
}

impl SharedStoreConfig {
    /// Uses the defaults of the options that are not set.
    pub(super) fn new(
        url: StoreUrl,
        reads: Option<Reads>,
        max_lag: Option<Duration>,
        timeout: Option<Duration>,
    ) -> Self {
        let (max_lag, timeout) = (max_lag.unwrap_or(MAX_LAG), timeout.unwrap_or(STORE_TIMEOUT));
        Self { url, reads: reads.unwrap_or_default(), max_lag, timeout }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_a_store_has_a_scheme_and_hides_its_password() {
        for (text, scheme, shown) in [
            ("etcd://a:2379,b:2379/vkog", "etcd", "etcd://a:2379,b:2379/vkog"),
            ("etcd://user:p@ss@a/x@y", "etcd", "etcd://a/x@y"),
            ("my-store2://x", "my-store2", "my-store2://x"),
        ] {
            let url: StoreUrl = text.parse().expect(text);
            assert_eq!((url.scheme(), &*url.to_string(), url.secret()), (scheme, shown, text));
            let shouted: StoreUrl = text.replacen(scheme, &scheme.to_uppercase(), 1).parse().expect(text);
            assert_eq!(shouted, url, "the scheme is case-insensitive");
        }
        for text in
            ["", "etcd", "etcd:a", "://a", "etcd://", "Etc\u{e9}://a", "2a://a", "../x://a", "etcd://a b", "etcd://a\n"]
        {
            assert_eq!(text.parse::<StoreUrl>(), Err(ValueError::StoreUrl), "{text}");
        }
    }
}
