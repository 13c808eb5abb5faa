//! Authentication and authorization in the configuration: the table `[access]` and its tokens.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};

use super::cors::CorsOrigin;
use super::error::AuthError;
use super::origin::{AllowedHost, Proxy};
use vkog_plugin_host::Sha256;

/// The configured authentication and authorization of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// Whether clients may read and write without a token (`--open`).
    pub open: bool,
    /// Whether clients on other machines may administer the server.
    pub remote_admin: bool,
    /// The tokens that clients may send.
    pub tokens: Vec<Token>,
    /// Names of this server in addition to localhost and loopback addresses.
    pub allowed_hosts: Vec<AllowedHost>,
    /// The origins whose web pages may use the server.
    pub cors: Vec<CorsOrigin>,
    /// Whether a request without a token that arrives by TCP must have one of these names in its `Host` header.
    pub checks_host: bool,
    /// The proxies whose header fields name the client.
    pub proxy: Proxy,
}

/// A permission of a token. Each one includes those before it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Read entries and the state of the server.
    Read,
    /// Write and delete entries.
    Write,
    /// Administer the server.
    Admin,
}

impl Permission {
    /// Returns the name that the configuration uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// A token or the name of a client certificate, and its permission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The name for the log, for responses and for plugins: see [`interned`].
    pub name: &'static str,
    /// The proof that its sender shows.
    pub proof: Proof,
    /// The permission of its sender.
    pub permission: Permission,
    /// The token is valid for keys with this prefix; an empty prefix is every key and the server itself.
    pub prefix: String,
}

/// Returns the name of a token as a text that is valid until the process ends. Requests refer to it without counting references,
/// which cores would contend for. Each name is leaked once, however often the configuration is read.
pub fn interned(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock();
    if let Some(known) = names.get(name) {
        return known;
    }
    let name: &'static str = Box::leak(name.into());
    names.insert(name);
    name
}

/// The proof that a client shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A secret with this SHA-256.
    Secret(Sha256),
    /// A certificate with this name, of an authority that the server trusts.
    Certificate(String),
}

impl Auth {
    /// Whether clients may show a certificate instead of a token.
    pub fn has_certificates(&self) -> bool {
        self.tokens.iter().any(|token| matches!(token.proof, Proof::Certificate(_)))
    }

    /// Returns the rules for a server that only this machine can reach (`is_local`), or that other machines can reach at one of
    /// its addresses.
    ///
    /// # Errors
    ///
    /// Other machines can reach the server, and no token is configured; or web pages of all origins may use a server that
    /// requires no token.
    pub fn for_listeners(mut self, is_local: bool) -> Result<Self, AuthError> {
        // The names of an address that other machines can reach are unknown, unless they are configured.
        self.checks_host = is_local || !self.allowed_hosts.is_empty();
        let auth = match self {
            _ if self.open || !self.tokens.is_empty() => self,
            _ if is_local => Self { open: true, ..self },
            _ => return Err(AuthError::Unprotected),
        };
        if auth.open && auth.cors.contains(&CorsOrigin::Any) { Err(AuthError::AnyOrigin) } else { Ok(auth) }
    }

    /// Parses the table.
    ///
    /// # Errors
    ///
    /// It has no token, two tokens are the same, or a value cannot be used.
    pub(super) fn parse<'de>(table: impl Deserializer<'de, Error = toml::de::Error>) -> Result<Self, AuthError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            #[serde(default)]
            remote_admin: bool,
            #[serde(default)]
            tokens: Vec<Token>,
        }
        let Written { remote_admin, tokens } = Written::deserialize(table)?;
        if tokens.is_empty() {
            return Err(AuthError::NoTokens);
        }
        for (at, token) in tokens.iter().enumerate() {
            let name = &token.name;
            if tokens[..at].iter().any(|other| other.name == *name) {
                return Err(AuthError::SameName((*name).to_owned()));
            }
            if let Some(other) = tokens[..at].iter().find(|other| other.proof == token.proof) {
                return Err(AuthError::SameToken(other.name.to_owned(), (*name).to_owned()));
            }
        }
        Ok(Self { remote_admin, tokens, ..Self::default() })
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            name: String,
            token: Option<String>,
            token_sha256: Option<Sha256>,
            certificate: Option<String>,
            #[serde(rename = "right")]
            permission: Permission,
            prefix: Option<String>,
        }
        let Written { name, token, token_sha256, certificate, permission, prefix } =
            Written::deserialize(deserializer)?;
        let wrong = |fact: &str| Err(serde::de::Error::custom(format!("token {name:?}: {fact}")));
        let proof = match (token, token_sha256, certificate) {
            (Some(token), None, None) if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Proof::Secret(Sha256::of(token.as_bytes()))
            }
            (Some(_), None, None) => {
                return wrong("a header cannot carry it; write ASCII letters, digits and signs, without spaces");
            }
            (None, Some(sha256), None) => Proof::Secret(sha256),
            (None, None, Some(certificate)) if !certificate.is_empty() => Proof::Certificate(certificate),
            (None, None, Some(_)) => return wrong("its certificate is empty; write a name of the certificate"),
            _ => return wrong("write one of token, token_sha256 and certificate"),
        };
        // An empty prefix matches every key, which the operator probably did not intend.
        if prefix.as_deref() == Some("") {
            return wrong("its prefix is empty; remove it to allow every key");
        }
        if permission == Permission::Admin && prefix.is_some() {
            return wrong("the right \"admin\" applies to all keys; remove prefix, or use the right \"write\"");
        }
        Ok(Self { name: interned(&name), proof, permission, prefix: prefix.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Auth, AuthError> {
        Auth::parse(toml::Value::Table(toml::from_str(text).expect("valid TOML")))
    }

    #[test]
    fn a_token_may_be_given_by_its_hash() {
        let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let by_hash = parse(&format!("[[tokens]]\nname = \"a\"\ntoken_sha256 = \"{hash}\"\nright = \"read\""));
        let by_text = parse("[[tokens]]\nname = \"a\"\ntoken = \"test\"\nright = \"read\"");
        let by_text = by_text.expect("valid");
        assert_eq!(by_hash.expect("valid"), by_text);
        let token = &by_text.tokens[0];
        assert_eq!((token.permission, token.prefix.as_str()), (Permission::Read, ""));
        assert!(Permission::Read < Permission::Write && Permission::Write < Permission::Admin);
    }

    #[test]
    fn a_malformed_token_is_reported_by_its_name() {
        let token = |rest: &str| format!("[[tokens]]\nname = \"a\"\n{rest}\n");
        let good = token("token = \"t\"\nright = \"read\"");
        for (text, words) in [
            (String::new(), ["no token", "[[access.tokens]]"]),
            ("tokens = []".to_owned(), ["no token", "[[access.tokens]]"]),
            (token("right = \"read\""), ["\"a\"", "one of token, token_sha256 and certificate"]),
            (token("token = \"t\"\ncertificate = \"c\"\nright = \"read\""), ["\"a\"", "one of token"]),
            (token("certificate = \"\"\nright = \"read\""), ["\"a\"", "a name of the certificate"]),
            (token("token = \"t\"\nright = \"all\""), ["all", "`read`, `write`"]),
            (token("token = \"t\""), ["right", "missing"]),
            (token("token = \"\"\nright = \"read\""), ["\"a\"", "ASCII"]),
            (token("token = \"two words\"\nright = \"read\""), ["\"a\"", "ASCII"]),
            (token("token = \"\u{e9}\"\nright = \"read\""), ["\"a\"", "ASCII"]),
            (token("token_sha256 = \"abc\"\nright = \"read\""), ["SHA-256", "64 hexadecimal"]),
            (token("token = \"t\"\nright = \"read\"\nprefix = \"\""), ["\"a\"", "remove it"]),
            (token("token = \"t\"\nright = \"admin\"\nprefix = \"a/\""), ["\"a\"", "remove prefix"]),
            (token("tokn = \"t\"\nright = \"read\""), ["tokn", "token_sha256"]),
            (good.repeat(2), ["two tokens", "\"a\""]),
            (format!("{good}{}", good.replace("\"a\"", "\"b\"")), ["\"a\" and \"b\"", "the same"]),
        ] {
            let error = parse(&text).expect_err(&text).to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
