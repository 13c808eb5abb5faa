//! The origins whose web pages may use the server (`[cors]`, `--cors-origins`).

use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::error::CorsError;
use super::origin::AllowedHost;

/// The origin of a web page, as browsers send it in `Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsOrigin {
    /// `*`: the pages of all origins.
    Any,
    /// Scheme, host, and the port unless it is the default of the scheme; in lower case.
    Exact(String),
}

/// Why a text is not an origin.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NotAnOrigin {
    /// There is no `://`, or no scheme before it.
    #[error("it has no scheme; write https://host, and :port if there is one")]
    NoScheme,
    /// There is something after host and port.
    #[error("an origin has no path; leave out what follows host and port, also a slash")]
    Path,
    /// `null`
    #[error("null is the origin of all sandboxed pages; serve the page from its own origin")]
    Null,
    /// The part after the scheme is not a host with an optional port.
    #[error("its host is not a name or an address with an optional port; write https://app.example:8443")]
    Host,
}

impl FromStr for CorsOrigin {
    type Err = NotAnOrigin;

    fn from_str(text: &str) -> Result<Self, NotAnOrigin> {
        match text {
            "*" => return Ok(Self::Any),
            "null" => return Err(NotAnOrigin::Null),
            _ => {}
        }
        let (scheme, host) = text.split_once("://").ok_or(NotAnOrigin::NoScheme)?;
        let is_of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(is_of_scheme) {
            return Err(NotAnOrigin::NoScheme);
        }
        if host.contains(['/', '?', '#']) {
            return Err(NotAnOrigin::Path);
        }
        host.parse::<AllowedHost>().map_err(|_| NotAnOrigin::Host)?;
        let (scheme, host) = (scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
        // Browsers leave out the default port.
        let default_port = match scheme.as_str() {
            "http" => ":80",
            "https" => ":443",
            _ => "",
        };
        Ok(Self::Exact(format!("{scheme}://{}", host.strip_suffix(default_port).unwrap_or(&host))))
    }
}

impl<'de> Deserialize<'de> for CorsOrigin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|error| serde::de::Error::custom(format!("origins: {text:?}: {error}")))
    }
}

/// Parses the table `[cors]`.
///
/// # Errors
///
/// A key is unknown, or a text is not an origin.
pub(super) fn parse<'de>(table: impl Deserializer<'de, Error = toml::de::Error>) -> Result<Vec<CorsOrigin>, CorsError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Written {
        origins: Vec<CorsOrigin>,
    }
    let Written { origins } = Written::deserialize(table)?;
    Ok(origins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_compared_as_browsers_send_it() {
        let exact = |text: &str| Ok(CorsOrigin::Exact(text.to_owned()));
        for (written, sent) in [
            ("https://app.example", "https://app.example"),
            ("HTTPS://App.Example:443", "https://app.example"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:443", "http://localhost:443"),
            ("http://[::1]:8080", "http://[::1]:8080"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ] {
            assert_eq!(written.parse(), exact(sent));
        }
        assert_eq!("*".parse(), Ok(CorsOrigin::Any));
    }

    #[test]
    fn a_text_that_is_no_origin_is_refused_with_the_reason() {
        for (text, error) in [
            ("app.example", NotAnOrigin::NoScheme),
            ("", NotAnOrigin::NoScheme),
            ("://a", NotAnOrigin::NoScheme),
            ("*://a", NotAnOrigin::NoScheme),
            ("https://a/", NotAnOrigin::Path),
            ("https://a/b", NotAnOrigin::Path),
            ("https://a?b", NotAnOrigin::Path),
            ("null", NotAnOrigin::Null),
            ("https://", NotAnOrigin::Host),
            ("https://*.example", NotAnOrigin::Host),
            ("https://a:port", NotAnOrigin::Host),
            ("https://user@a", NotAnOrigin::Host),
        ] {
            assert_eq!(text.parse::<CorsOrigin>(), Err(error), "{text}");
        }
    }
}
