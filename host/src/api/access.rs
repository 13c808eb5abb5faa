//! Who may do what: the tokens of `[access]`, held against what a request asks for.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::origin;
use super::problem::{Manner, Problem};
use crate::config::{self, Right, Token};
use crate::http::{RequestHead, Response};
use vkog_engine::host_refusal;
use vkog_plugin_host::Refusal;
use vkog_plugin_host::Sha256;

/// What a request is about.
#[derive(Copy, Clone, Debug)]
pub(super) enum Scope<'a> {
    /// One entry, by its key as it is stored: decoded.
    Key(&'a str),
    /// All entries whose keys begin so.
    Prefix(&'a str),
    /// Entries that are named later, each of which is then asked about.
    Later,
    /// The server as a whole.
    All,
}

/// Who may do what, at the moment.
pub struct Access(ArcSwap<config::Access>);

impl Access {
    /// What the configuration says.
    pub fn new(access: config::Access) -> Self {
        Self(ArcSwap::from_pointee(access))
    }

    /// Takes in what the configuration says now. Says whether anything changed.
    pub fn set(&self, access: config::Access) -> bool {
        let access = Arc::new(access);
        self.0.swap(Arc::clone(&access)) != access
    }

    /// Whether no token is asked for.
    pub fn is_open(&self) -> bool {
        self.0.load().open
    }

    /// Looks at who sent a request, before anything else does.
    pub(super) fn admit(&self, head: &RequestHead) {
        origin::name_client(head, &self.0.load());
    }

    /// Whether whoever sent this may do it. Where no token is asked for, the page of another site may not.
    ///
    /// # Errors
    ///
    /// The reply to one that may not: 401 without a token that is known, 403 with one that is not for this.
    pub(super) fn check(&self, head: &RequestHead, right: Right, scope: Scope<'_>) -> Result<(), Response> {
        let refuse = |(_, refusal)| Problem::of(refusal).reply(Manner::of(head));
        self.check_all(head, [(right, scope)]).map_err(refuse)
    }

    /// Whether whoever sent this may do all of it.
    ///
    /// # Errors
    ///
    /// Which of it is the first that it may not do, and what to say, as [`check`](Self::check) does.
    pub(super) fn check_all<'a>(
        &self,
        head: &RequestHead,
        asked: impl IntoIterator<Item = (Right, Scope<'a>)>,
    ) -> Result<(), (usize, Refusal)> {
        let access = self.0.load();
        let mut sender = None;
        for (index, (right, scope)) in asked.into_iter().enumerate() {
            if access.open && right < Right::Admin {
                if index == 0 {
                    origin::check(head, &access).map_err(|refusal| (index, refusal))?;
                }
                continue;
            }
            // To hash what was sent takes longer than all the rest.
            let token = *sender.get_or_insert_with(|| access.token(head));
            access.check(head, token, right, scope).map_err(|refusal| (index, refusal))?;
        }
        Ok(())
    }
}

impl config::Access {
    /// The token that came, if it is known.
    fn token(&self, head: &RequestHead) -> Option<&Token> {
        let sent = sent(head)?;
        self.tokens.iter().find(|token| token.sha256 == sent)
    }

    fn check(&self, head: &RequestHead, token: Option<&Token>, right: Right, scope: Scope<'_>) -> Result<(), Refusal> {
        if right == Right::Admin {
            if self.tokens.iter().all(|token| token.right < Right::Admin) {
                let way_out = "add a token with right = \"admin\" to [[access.tokens]] of the configuration";
                return Err(host_refusal(403, format!("Administration is off; {way_out}")));
            }
            if !self.remote_admin && !origin::is_on_this_machine(head, self) {
                let way_out = "set remote_admin = true in [access], or name the proxy in [proxy]";
                return Err(host_refusal(403, format!("Administration is for this machine alone; {way_out}")));
            }
        }
        let Some(token) = token else {
            let mut refusal = host_refusal(401, "Send a token in the header Authorization: Bearer TOKEN".to_owned());
            refusal.headers.push(("WWW-Authenticate".to_owned(), "Bearer realm=\"vkog\"".to_owned()));
            return Err(refusal);
        };
        if token.right < right || !scope.is_within(&token.prefix) {
            let fact = format!("{} is not for this: it may {}", shown(token), may(token));
            tracing::warn!(
                request = head.id(),
                client = head.client_text(),
                "refused {:?} {}: {fact}",
                head.method,
                head.path()
            );
            return Err(host_refusal(403, format!("Not allowed: {fact}")));
        }
        if right == Right::Admin {
            tracing::info!(
                request = head.id(),
                client = head.client_text(),
                "{} administers: {}",
                shown(token),
                head.path()
            );
        }
        Ok(())
    }
}

impl Scope<'_> {
    fn is_within(self, prefix: &str) -> bool {
        match self {
            Self::Key(begins) | Self::Prefix(begins) => begins.starts_with(prefix),
            Self::Later => true,
            Self::All => prefix.is_empty(),
        }
    }
}

fn shown(token: &Token) -> String {
    format!("the token {:?}", token.name)
}

fn may(token: &Token) -> String {
    match token.prefix.as_str() {
        "" => token.right.name().to_owned(),
        prefix => format!("{} keys that begin with {prefix:?}", token.right.name()),
    }
}

/// The SHA-256 of the token that came. Hashes are compared, so that how long it takes says nothing of a token; which of two
/// tokens counts is for nobody to guess.
fn sent(head: &RequestHead) -> Option<Sha256> {
    let mut all = head.headers.all("authorization");
    let (Some(authorization), None) = (all.next(), all.next()) else { return None };
    let (scheme, token) = authorization.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| Sha256::of(token.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Headers, Method};

    fn head(client: &str, authorizations: &[&str]) -> RequestHead {
        let mut headers = Headers::default();
        authorizations.iter().for_each(|value| headers.push("Authorization", value.as_bytes()));
        RequestHead::new(Method::Post, "/".to_owned(), headers, Some(client.parse().expect("an address")))
    }

    fn access(remote_admin: bool) -> Access {
        let token = |name: &str, right, prefix: &str| Token {
            name: name.to_owned(),
            sha256: Sha256::of(name.as_bytes()),
            right,
            prefix: prefix.to_owned(),
        };
        let tokens = vec![token("op", Right::Admin, ""), token("a", Right::Write, "a/")];
        Access::new(config::Access { remote_admin, tokens, ..config::Access::default() })
    }

    fn status(access: &Access, head: &RequestHead, right: Right, scope: Scope<'_>) -> u16 {
        access.check(head, right, scope).map_or_else(|reply| reply.status, |()| 200)
    }

    #[test]
    fn administration_is_for_this_machine_unless_the_configuration_says_more() {
        for (client, remote_admin, expected) in [
            ("127.0.0.1:1", false, 200),
            ("[::1]:1", false, 200),
            ("[::ffff:127.0.0.1]:1", false, 200),
            ("10.0.0.1:1", false, 403),
            ("[::ffff:10.0.0.1]:1", false, 403),
            ("10.0.0.1:1", true, 200),
        ] {
            let head = head(client, &["Bearer op"]);
            assert_eq!(status(&access(remote_admin), &head, Right::Admin, Scope::All), expected, "{client}");
            assert_eq!(status(&access(remote_admin), &head, Right::Write, Scope::All), 200, "{client}");
        }
    }

    #[test]
    fn a_token_is_for_what_begins_with_its_prefix() {
        let head = head("10.0.0.1:1", &["Bearer a"]);
        for (scope, expected) in [
            (Scope::Key("a/"), 200),
            (Scope::Key("a/../b"), 200),
            (Scope::Key("a"), 403),
            (Scope::Key("ab"), 403),
            (Scope::Prefix("a/b"), 200),
            (Scope::Prefix("a/"), 200),
            (Scope::Prefix("a"), 403),
            (Scope::Prefix(""), 403),
            (Scope::All, 403),
        ] {
            assert_eq!(status(&access(false), &head, Right::Write, scope), expected, "{scope:?}");
        }
    }

    #[test]
    fn of_two_tokens_none_counts() {
        for sent in [&["Bearer op", "Bearer op"][..], &["Bearer op, Bearer a"], &["op"], &[]] {
            assert_eq!(status(&access(false), &head("127.0.0.1:1", sent), Right::Read, Scope::All), 401, "{sent:?}");
        }
    }
}
