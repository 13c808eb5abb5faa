//! Keeps the entries of clients apart: puts a prefix before all keys of the requests with an access token. The clients do not see
//! the prefix. Decides which prefix a token has; the server does the rest.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    /// The prefix of each token, by its name.
    tokens: BTreeMap<String, String>,
    #[serde(default)]
    others: Others,
}

/// The treatment of requests without a token that has a prefix.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(crate = "vkog_plugin_api::serde", rename_all = "lowercase")]
enum Others {
    /// They are refused.
    #[default]
    Refuse,
    /// They have whole keys.
    Whole,
}

struct Tenant {
    settings: Settings,
}

/// The maximum length of a prefix, in bytes.
const PREFIX_MAX: usize = 512;

impl Plugin for Tenant {
    type Settings = Settings;

    const STAGE: Stage = Stage::Access;

    fn create(_host: Host, settings: Settings) -> Result<Self, CreateError> {
        for (token, prefix) in &settings.tokens {
            if prefix.is_empty() || prefix.len() > PREFIX_MAX {
                let fact = format!("the prefix of {token:?} has {} bytes; give 1 to {PREFIX_MAX}", prefix.len());
                return Err(fact.into());
            }
            let is_within = |(_, other): &(&String, &String)| other.starts_with(prefix) && *other != prefix;
            if let Some((other, _)) = settings.tokens.iter().find(is_within) {
                let fact = format!("{token:?} would see the entries of {other:?}; end each prefix with a slash");
                return Err(fact.into());
            }
        }
        Ok(Self { settings })
    }
}

impl BeforeRequest for Tenant {
    fn before_request(&self, request: &mut HttpRequest<'_>) -> Verdict {
        let Settings { tokens, others } = &self.settings;
        match (request.token().and_then(|token| tokens.get(token)), others) {
            (Some(prefix), _) => {
                request.set_key_prefix(prefix);
                Ok(())
            }
            (None, Others::Whole) => Ok(()),
            (None, Others::Refuse) => Err(Refusal::new(403, "Not allowed: send an access token that has entries here")),
        }
    }
}

export_plugin!(Tenant, required: [before_request]);

#[cfg(test)]
mod tests {
    use vkog_plugin_testing::{Setup, TestHost};

    use super::*;

    fn host(others: &str) -> TestHost {
        let tokens = r#"{"ann": "ann/", "bob": "bob/", "bot": "bob/"}"#;
        let settings = format!(r#"{{"tokens": {tokens}, "others": {others:?}}}"#);
        Setup::new().load::<Tenant>().settings(&settings).start()
    }

    #[test]
    fn clients_see_the_entries_of_their_token_only() {
        let host = host("whole");
        let mut all = host.watch("");
        host.use_token("ann");
        let mut watch = host.watch("");
        host.put("k", "of ann").expect(200);
        host.use_token("bob");
        host.get("k").expect(404);
        host.put("k", "of bob").expect(200);
        host.put("l", "of bob").expect(200);
        host.use_token("bot");
        host.get("k").expect(200).is("of bob");
        assert_eq!(host.keys("").expect("nothing refuses"), ["k", "l"]);
        assert_eq!(host.count("").ok(), Some(2));
        host.batch([host.request(Verb::Get, "l"), host.request(Verb::Delete, "l")]).succeeded();
        host.use_token("ann");
        host.get("k").expect(200).is("of ann");
        assert_eq!(host.keys("").expect("nothing refuses"), ["k"]);
        host.use_token("");
        assert_eq!(host.keys("").expect("nothing refuses"), ["ann/k", "bob/k"]);
        let keys = |changes: Vec<vkog_plugin_testing::Change>| changes.into_iter().map(|change| change.key).collect();
        let seen: Vec<String> = keys(watch.changes());
        assert_eq!(seen, ["k"]);
        let seen: Vec<String> = keys(all.changes());
        assert_eq!(seen, ["ann/k", "bob/k", "bob/l", "bob/l"]);
    }

    #[test]
    fn a_client_without_a_prefix_is_refused_or_has_whole_keys() {
        for (others, status) in [("refuse", 403), ("whole", 200)] {
            let host = host(others);
            for token in ["", "eve"] {
                host.use_token(token);
                host.put("k", "v").expect(status);
                assert_eq!(host.keys("").is_ok(), status == 200);
                assert_eq!(host.count("").is_ok(), status == 200);
            }
        }
    }

    #[test]
    fn prefixes_that_do_not_keep_clients_apart_are_rejected() {
        for (tokens, words) in [
            (r#"{"ann": ""}"#, "the prefix of \"ann\" has 0 bytes"),
            (r#"{"ann": "a", "bob": "ab"}"#, "\"ann\" would see the entries of \"bob\""),
            (r#"{"bob": "ab/", "ann": "ab/c/"}"#, "\"bob\" would see the entries of \"ann\""),
        ] {
            let settings = format!(r#"{{"tokens": {tokens}}}"#);
            let error = Setup::new().load::<Tenant>().settings(&settings).try_start().err();
            let error = error.unwrap_or_else(|| panic!("{settings}")).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
