//! Requires a bearer token (RFC 6750) of clients before anything is read or written; other plugins need none. Compares
//! the token and sends the challenge. There is one token, for all keys and operations.

#![forbid(unsafe_code)]

use std::hint::black_box;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    token: String,
    #[serde(default = "default_realm")]
    realm: String,
}

fn default_realm() -> String {
    "vkog".to_owned()
}

struct Bearer {
    token: String,
    challenge: String,
}

impl Plugin for Bearer {
    type Settings = Settings;
    const STAGE: Stage = Stage::Access;

    fn create(_host: Host, settings: Settings) -> Result<Self, CreateError> {
        Self::new(settings)
    }
}

impl Bearer {
    fn new(Settings { token, realm }: Settings) -> Result<Self, CreateError> {
        if token.is_empty() {
            return Err("token is empty; give the text that clients have to send".into());
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "token can reach no client's header; use ASCII letters, digits and signs, without spaces".into()
            );
        }
        if !realm.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\') {
            return Err("realm cannot stand between quotes; use ASCII without quotes and backslashes".into());
        }
        Ok(Bearer { token, challenge: format!("Bearer realm=\"{realm}\"") })
    }

    fn admit(&self, request: &Request<'_>) -> Verdict {
        // The operator trusts the plugins that are loaded.
        if request.asker().is_some() { Ok(()) } else { self.check(request.header("authorization")) }
    }

    fn check(&self, authorization: Option<&[u8]>) -> Verdict {
        if authorization.and_then(credentials).is_some_and(|sent| same(sent, self.token.as_bytes())) {
            return Ok(());
        }
        // The same response in every case, so that a client does not learn how close its token was.
        let refusal = Refusal::new(401, "Send the token in the header Authorization: Bearer TOKEN");
        Err(refusal.with_header("WWW-Authenticate", self.challenge.clone()))
    }
}

/// Returns the token of an `Authorization` header if its scheme is Bearer, in any case.
fn credentials(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = authorization.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| rest.trim_ascii_start())
}

/// Compares in constant time: stopping at the first difference would reveal how many bytes are right. The length is not
/// hidden.
fn same(sent: &[u8], token: &[u8]) -> bool {
    let differing = sent.iter().zip(token).fold(0, |bits, (a, b)| black_box(bits | (a ^ b)));
    sent.len() == token.len() && differing == 0
}

impl BeforeGet for Bearer {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        self.admit(get)
    }
}

impl BeforePost for Bearer {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        self.admit(post)
    }
}

impl BeforePut for Bearer {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        self.admit(put)
    }
}

impl BeforeDelete for Bearer {
    fn before_delete(&self, delete: &mut Before<'_, Delete>) -> Verdict {
        self.admit(delete)
    }
}

// A host that left one of them out would leave that door open.
export_plugin!(Bearer, required: [before_get, before_post, before_put, before_delete]);

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(token: &str, realm: &str) -> Result<Bearer, String> {
        Bearer::new(Settings { token: token.into(), realm: realm.into() }).map_err(|error| error.to_string())
    }

    #[test]
    fn the_token_is_accepted_with_the_scheme_in_any_case() {
        let bearer = bearer("s3cret", "vkog").expect("these are valid");
        for header in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret"] {
            assert_eq!(bearer.check(Some(header.as_bytes())), Ok(()), "{header}");
        }
    }

    #[test]
    fn a_missing_or_wrong_header_gets_401_and_a_challenge() {
        let bearer = bearer("s3cret", "the shop").expect("these are valid");
        let wrong = ["", "s3cret", "Bearer", "Bearer ", "Bearers3cret", "Basic s3cret", "Bearer \u{e9}"];
        let near = ["Bearer s3cre", "Bearer s3cret1", "Bearer S3cret", "Bearer s3creT", "Bearer s3cret s3cret"];
        let headers = wrong.iter().chain(&near).map(|header| Some(header.as_bytes()));
        for header in headers.chain([None]) {
            let refusal = bearer.check(header).expect_err("it has no token");
            let expected = Refusal::new(401, refusal.message().to_owned());
            assert_eq!(refusal, expected.with_header("WWW-Authenticate", "Bearer realm=\"the shop\""), "{header:?}");
        }
    }

    #[test]
    fn unusable_settings_stop_the_start() {
        for (token, realm, at_fault) in [
            ("", "vkog", "token"),
            ("two words", "vkog", "token"),
            ("line\n", "vkog", "token"),
            ("s3cret", "a\"b", "realm"),
        ] {
            let error = bearer(token, realm).err().expect("it cannot be created");
            assert!(error.starts_with(at_fault), "{error}");
        }
    }
}
