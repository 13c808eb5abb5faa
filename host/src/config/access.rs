//! The table `[access]`: who may do what.

use serde::{Deserialize, Deserializer};

use super::{AllowedHost, Proxy};
use vkog_plugin_host::Sha256;

/// Who may do what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Whether whoever comes may read and write (`--open`).
    pub open: bool,
    /// Whether administration is for other machines too.
    pub remote_admin: bool,
    /// What those who come may send.
    pub tokens: Vec<Token>,
    /// Names of this server in addition to those of every machine for itself.
    pub allowed_hosts: Vec<AllowedHost>,
    /// Whether a request that needs no token has to ask for one of these names.
    pub checks_host: bool,
    /// The proxies that say who the client is.
    pub proxy: Proxy,
}

/// What somebody may do. Each right has those before it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// To see entries, and how the server is.
    Read,
    /// To change entries.
    Write,
    /// To change the server.
    Admin,
}

impl Right {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// A secret, and what who sends it may do. The secret itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What the log calls it.
    pub name: String,
    /// The SHA-256 of the secret.
    pub sha256: Sha256,
    /// What it is for.
    pub right: Right,
    /// How the keys begin that it is for; empty for everything.
    pub prefix: String,
}

impl Access {
    /// Reads the table.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and the way out.
    pub(super) fn parse(table: toml::Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            #[serde(default)]
            remote_admin: bool,
            #[serde(default)]
            tokens: Vec<Token>,
        }
        let Written { remote_admin, tokens } =
            table.try_into().map_err(|error: toml::de::Error| error.message().replace('\n', " "))?;
        if tokens.is_empty() {
            return Err("it has no token, and nobody could come in; write a table [[access.tokens]]".to_owned());
        }
        for (at, token) in tokens.iter().enumerate() {
            let name = &token.name;
            if tokens[..at].iter().any(|other| other.name == *name) {
                return Err(format!("two tokens are called {name:?}; give each a name of its own"));
            }
            if let Some(other) = tokens[..at].iter().find(|other| other.sha256 == token.sha256) {
                return Err(format!("{:?} and {name:?} are the same token; give each one of its own", other.name));
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
            right: Right,
            prefix: Option<String>,
        }
        let Written { name, token, token_sha256, right, prefix } = Written::deserialize(deserializer)?;
        let wrong = |fact: &str| Err(serde::de::Error::custom(format!("token {name:?}: {fact}")));
        let sha256 = match (token, token_sha256) {
            (Some(token), None) if !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Sha256::of(token.as_bytes())
            }
            (Some(_), None) => {
                return wrong("no header can carry it; write ASCII letters, digits and signs, without spaces");
            }
            (None, Some(sha256)) => sha256,
            _ => return wrong("write either token or token_sha256"),
        };
        // An empty one would be for everything, which is more than whoever wrote it can have meant.
        if prefix.as_deref() == Some("") {
            return wrong("its prefix is empty; leave it out for a token that is for every key");
        }
        if right == Right::Admin && prefix.is_some() {
            return wrong("administration has no keys; leave prefix out, or take the right \"write\"");
        }
        Ok(Self { name, sha256, right, prefix: prefix.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Access, String> {
        Access::parse(toml::Value::Table(toml::from_str(text).expect("valid TOML")))
    }

    #[test]
    fn a_token_may_be_given_by_its_hash() {
        let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        let by_hash = parse(&format!("[[tokens]]\nname = \"a\"\ntoken_sha256 = \"{hash}\"\nright = \"read\""));
        let by_text = parse("[[tokens]]\nname = \"a\"\ntoken = \"test\"\nright = \"read\"");
        assert_eq!(by_hash, by_text);
        let token = &by_text.expect("valid").tokens[0];
        assert_eq!((token.right, token.prefix.as_str()), (Right::Read, ""));
        assert!(Right::Read < Right::Write && Right::Write < Right::Admin);
    }

    #[test]
    fn a_token_that_is_none_is_told_by_its_name() {
        let token = |rest: &str| format!("[[tokens]]\nname = \"a\"\n{rest}\n");
        let good = token("token = \"t\"\nright = \"read\"");
        for (text, words) in [
            (String::new(), ["no token", "[[access.tokens]]"]),
            ("tokens = []".to_owned(), ["no token", "[[access.tokens]]"]),
            (token("right = \"read\""), ["\"a\"", "either token or token_sha256"]),
            (token("token = \"t\"\nright = \"all\""), ["all", "`read`, `write`"]),
            (token("token = \"t\""), ["right", "missing"]),
            (token("token = \"\"\nright = \"read\""), ["\"a\"", "ASCII"]),
            (token("token = \"two words\"\nright = \"read\""), ["\"a\"", "ASCII"]),
            (token("token = \"\u{e9}\"\nright = \"read\""), ["\"a\"", "ASCII"]),
            (token("token_sha256 = \"abc\"\nright = \"read\""), ["SHA-256", "64 hexadecimal"]),
            (token("token = \"t\"\nright = \"read\"\nprefix = \"\""), ["\"a\"", "leave it out"]),
            (token("token = \"t\"\nright = \"admin\"\nprefix = \"a/\""), ["\"a\"", "leave prefix out"]),
            (token("tokn = \"t\"\nright = \"read\""), ["tokn", "token_sha256"]),
            (good.repeat(2), ["two tokens", "\"a\""]),
            (format!("{good}{}", good.replace("\"a\"", "\"b\"")), ["\"a\" and \"b\"", "the same"]),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }
}
