//! Authentication by token or client certificate, and authorization of each request.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::access_log::{METHODS, logged_path};
use super::cors::Grant;
use super::origin;
use super::problem::{ErrorFormat, Problem};
use crate::config::{Auth, Permission, Proof, Token};
use crate::http::{CertificateNames, RequestHead, Response};
use vkog_engine::host_refusal;
use vkog_plugin_host::Refusal;
use vkog_plugin_host::Sha256;

/// The entries that a request is about.
#[derive(Copy, Clone, Debug)]
pub(super) enum Scope<'a> {
    /// One entry, by its key as it is stored: decoded.
    Key(&'a str),
    /// All entries whose keys have this prefix.
    Prefix(&'a str),
    /// Entries that the body names. Each is checked after the body has been received.
    Later,
    /// The server as a whole.
    All,
}

/// The token or certificate of a client, whether the configuration knows it or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    /// Neither a token nor a certificate, or several tokens.
    None,
    /// The SHA-256 of a token. Comparing hashes takes the same time for every token.
    Token(Sha256),
    /// A verified certificate with these names.
    Certificate(CertificateNames),
}

impl Credential {
    /// Returns the token in the header of a request, or else the certificate of its connection. A request with two tokens has
    /// neither.
    pub(super) fn of(head: &RequestHead) -> Self {
        let mut all = head.headers.all("authorization");
        let authorization = match (all.next(), all.next()) {
            (None, _) => return head.certificate.as_ref().map_or(Self::None, |names| Self::Certificate(names.clone())),
            (Some(authorization), None) => authorization,
            _ => return Self::None,
        };
        let token = authorization.split_at_checked("Bearer ".len());
        let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer "));
        token.map_or(Self::None, |(_, token)| Self::Token(Sha256::of(token.trim_ascii())))
    }
}

/// Authorizes requests by the current configuration, which a reload replaces.
pub struct Authorizer(ArcSwap<Auth>);

impl Authorizer {
    /// Starts with this configuration.
    pub fn new(auth: Auth) -> Self {
        Self(ArcSwap::from_pointee(auth))
    }

    /// Replaces the configuration. Returns whether anything changed.
    pub fn set(&self, auth: Auth) -> bool {
        let auth = Arc::new(auth);
        self.0.swap(Arc::clone(&auth)) != auth
    }

    /// Whether clients need no token to read and write.
    pub fn is_open(&self) -> bool {
        self.0.load().open
    }

    /// Returns the rules for one request. A reload in the meantime does not change them.
    pub(super) fn rules(&self) -> Rules {
        Rules(self.0.load())
    }
}

/// The configuration by which one request is authorized.
pub(super) struct Rules(Guard<Arc<Auth>>);

impl Rules {
    /// Whether clients need no token to read and write.
    pub(super) fn is_open(&self) -> bool {
        self.0.open
    }

    /// Finds out which client sent a request through a trusted proxy, and what its page may do with the response. Must run before
    /// every other check.
    pub(super) fn identify_client(&self, head: &RequestHead) -> Grant {
        origin::name_client(head, &self.0);
        Grant::of(head, &self.0.cors)
    }

    /// Returns the token or certificate of a client that reads. If no token is required, all clients share one, because they could
    /// send any number of different tokens.
    pub(super) fn reader(&self, head: &RequestHead) -> Credential {
        if self.is_open() { Credential::None } else { Credential::of(head) }
    }

    /// Checks that the sender of a request has a permission. Where no token is needed, or where a certificate replaces it, it
    /// checks that no page of another site sent the request: a browser sends the certificate with those too.
    ///
    /// # Errors
    ///
    /// The response for a sender without the permission: 401 without a known token, 403 with a token or certificate that lacks
    /// it.
    pub(super) fn check(&self, head: &RequestHead, permission: Permission, scope: Scope<'_>) -> Result<(), Response> {
        let refuse = |(_, refusal)| Problem::of(refusal).reply(ErrorFormat::of(head));
        self.check_all(head, [(permission, scope)]).map_err(refuse)
    }

    /// Checks that the sender of a request has a permission, as [`check`](Self::check) does, but by this token.
    ///
    /// # Errors
    ///
    /// As those of [`check`](Self::check).
    pub(super) fn check_as(
        &self,
        head: &RequestHead,
        credential: &Credential,
        permission: Permission,
        scope: Scope<'_>,
    ) -> Result<(), Response> {
        let refuse = |(_, refusal)| Problem::of(refusal).reply(ErrorFormat::of(head));
        self.check_each(head, || credential.clone(), [(permission, scope)]).map_err(refuse)
    }

    /// Checks several permissions of the sender of a request.
    ///
    /// # Errors
    ///
    /// The index of the first permission that the sender lacks, and the refusal, as for [`check`](Self::check).
    pub(super) fn check_all<'a>(
        &self,
        head: &RequestHead,
        checks: impl IntoIterator<Item = (Permission, Scope<'a>)>,
    ) -> Result<(), (usize, Refusal)> {
        // Hashing the token takes longer than all the rest.
        self.check_each(head, || Credential::of(head), checks)
    }

    /// Whether the sender of a request has a permission. Unlike [`check`](Self::check), it logs nothing, and takes the request for one
    /// of this site.
    pub(super) fn permits(&self, head: &RequestHead, permission: Permission, scope: Scope<'_>) -> bool {
        let auth = &*self.0;
        if auth.open && permission < Permission::Admin {
            return true;
        }
        match auth.client(Credential::of(head)) {
            Client::Known(token) => token.permission >= permission && scope.is_within(&token.prefix),
            _ => false,
        }
    }

    /// Checks that no web page of another site sent a request that needs no token.
    ///
    /// # Errors
    ///
    /// The response to a request of such a page.
    pub(super) fn check_site(&self, head: &RequestHead) -> Result<(), Response> {
        origin::check(head, &self.0).map_err(|refusal| Problem::of(refusal).reply(ErrorFormat::of(head)))
    }

    fn check_each<'a>(
        &self,
        head: &RequestHead,
        credential: impl Fn() -> Credential,
        checks: impl IntoIterator<Item = (Permission, Scope<'a>)>,
    ) -> Result<(), (usize, Refusal)> {
        let auth = &*self.0;
        let mut client = None;
        for (index, (permission, scope)) in checks.into_iter().enumerate() {
            if auth.open && permission < Permission::Admin {
                if index == 0 {
                    origin::check(head, auth).map_err(|refusal| (index, refusal))?;
                }
                continue;
            }
            let client = client.get_or_insert_with(|| auth.client(credential()));
            auth.check(head, client, permission, scope).map_err(|refusal| (index, refusal))?;
        }
        Ok(())
    }
}

/// The client of a request, by its token or certificate.
enum Client<'a> {
    /// Neither of them.
    Anonymous,
    /// A token that the configuration does not have.
    Unknown,
    /// A certificate none of whose names the configuration has.
    Unnamed(CertificateNames),
    Known(&'a Token),
}

impl Auth {
    fn client(&self, credential: Credential) -> Client<'_> {
        let find = |shows: &dyn Fn(&Proof) -> bool| self.tokens.iter().find(|token| shows(&token.proof));
        match credential {
            Credential::None => Client::Anonymous,
            Credential::Token(sha256) => {
                find(&|proof| *proof == Proof::Secret(sha256)).map_or(Client::Unknown, Client::Known)
            }
            Credential::Certificate(names) => {
                let is_named = |proof: &Proof| matches!(proof, Proof::Certificate(name) if names.contains(name));
                find(&is_named).map_or_else(|| Client::Unnamed(Arc::clone(&names)), Client::Known)
            }
        }
    }

    fn check(
        &self,
        head: &RequestHead,
        client: &Client<'_>,
        permission: Permission,
        scope: Scope<'_>,
    ) -> Result<(), Refusal> {
        let is_off = || self.tokens.iter().all(|token| token.permission < Permission::Admin);
        if let Client::Anonymous = client {
            return Err(unauthorized(match head.headers.all("authorization").count() {
                0 if permission == Permission::Admin && is_off() => ADMINISTRATION_IS_OFF,
                0 if self.has_certificates() => NO_TOKEN_OR_CERTIFICATE,
                0 => NO_TOKEN,
                1 => UNKNOWN_TOKEN,
                _ => TWO_TOKENS,
            }));
        }
        if permission == Permission::Admin {
            if is_off() {
                return Err(host_refusal(403, ADMINISTRATION_IS_OFF));
            }
            if !self.remote_admin && !origin::is_on_this_machine(head, self) {
                let way_out = "set remote_admin = true in [access], or name the proxy in [proxy]";
                return Err(host_refusal(403, format!("Administration from other machines is off; {way_out}")));
            }
        }
        let token = match client {
            Client::Known(token) => token,
            Client::Unnamed(names) => return Err(unnamed(head, names)),
            Client::Anonymous | Client::Unknown => return Err(unauthorized(UNKNOWN_TOKEN)),
        };
        if let Proof::Certificate(_) = token.proof {
            origin::check_site(head, self)?;
        }
        head.set_token(token.name);
        if token.permission < permission || !scope.is_within(&token.prefix) {
            let fact = |prefix: &str| {
                format!("{} does not have this right: it may {}", shown(token), may(token.permission, prefix))
            };
            log_refusal(head, &fact(&token.prefix));
            // The client does not see the prefix that a plugin has set.
            let seen = token.prefix.strip_prefix(head.key_prefix()).unwrap_or_default();
            return Err(not_allowed(&fact(seen)));
        }
        if permission == Permission::Admin {
            tracing::info!(
                request = head.id(),
                client = head.client_text(),
                "{} administers: {}",
                shown(token),
                logged_path(head)
            );
        }
        Ok(())
    }
}

const ADMINISTRATION_IS_OFF: &str =
    "Administration is off; add a token with right = \"admin\" to [[access.tokens]] of the configuration";
const NO_TOKEN: &str = "Send a token in the header Authorization: Bearer TOKEN";
const NO_TOKEN_OR_CERTIFICATE: &str = "Send a token in the header Authorization: Bearer TOKEN, or a client certificate";
const UNKNOWN_TOKEN: &str = "Unknown token; send one of [[access.tokens]] in the header Authorization: Bearer TOKEN";
const TWO_TOKENS: &str = "Two tokens; send one in the header Authorization: Bearer TOKEN";

/// The refusal of a client that has sent no valid token.
pub(super) fn unauthorized(fact: &str) -> Refusal {
    let mut refusal = host_refusal(401, fact);
    refusal.headers.push(("WWW-Authenticate".to_owned(), "Bearer realm=\"vkog\"".to_owned()));
    refusal
}

/// The refusal of a client whose certificate is valid and has no permission.
fn unnamed(head: &RequestHead, names: &[String]) -> Refusal {
    let names = match names {
        [] => "has no name".to_owned(),
        names => format!("is for {}", names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")),
    };
    let fact = format!("the certificate {names}, and [[access.tokens]] names none of it");
    log_refusal(head, &fact);
    not_allowed(&fact)
}

/// The refusal of a known client without the permission.
fn not_allowed(fact: &str) -> Refusal {
    host_refusal(403, format!("Not allowed: {fact}"))
}

fn log_refusal(head: &RequestHead, fact: &str) {
    tracing::warn!(
        request = head.id(),
        client = head.client_text(),
        "refused {} {}: {fact}",
        METHODS[head.method as usize],
        logged_path(head)
    );
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

fn may(permission: Permission, prefix: &str) -> String {
    match prefix {
        "" => permission.name().to_owned(),
        prefix => format!("{} keys that begin with {prefix:?}", permission.name()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};

    use parking_lot::Mutex;

    use super::*;
    use crate::config::interned;
    use crate::http::{Headers, Method};

    fn head(client: &str, authorizations: &[&str]) -> RequestHead {
        let mut headers = Headers::default();
        authorizations.iter().for_each(|value| headers.push("Authorization", value.as_bytes()));
        RequestHead::new(Method::Post, "/".to_owned(), headers, Some(client.parse().expect("an address")))
    }

    fn authorizer(remote_admin: bool) -> Authorizer {
        let token = |name: &str, permission, prefix: &str| Token {
            name: interned(name),
            proof: Proof::Secret(Sha256::of(name.as_bytes())),
            permission,
            prefix: prefix.to_owned(),
        };
        let tokens = vec![token("op", Permission::Admin, ""), token("a", Permission::Write, "a/")];
        Authorizer::new(Auth { remote_admin, tokens, ..Auth::default() })
    }

    fn status(auth: &Authorizer, head: &RequestHead, permission: Permission, scope: Scope<'_>) -> u16 {
        auth.rules().check(head, permission, scope).map_or_else(|reply| reply.status, |()| 200)
    }

    #[test]
    fn administration_is_local_by_default() {
        for (client, remote_admin, expected) in [
            ("127.0.0.1:1", false, 200),
            ("[::1]:1", false, 200),
            ("[::ffff:127.0.0.1]:1", false, 200),
            ("10.0.0.1:1", false, 403),
            ("[::ffff:10.0.0.1]:1", false, 403),
            ("10.0.0.1:1", true, 200),
        ] {
            let head = head(client, &["Bearer op"]);
            assert_eq!(status(&authorizer(remote_admin), &head, Permission::Admin, Scope::All), expected, "{client}");
            assert_eq!(status(&authorizer(remote_admin), &head, Permission::Write, Scope::All), 200, "{client}");
        }
    }

    #[test]
    fn a_token_covers_keys_that_start_with_its_prefix() {
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
            assert_eq!(status(&authorizer(false), &head, Permission::Write, scope), expected, "{scope:?}");
        }
    }

    #[test]
    fn two_authorization_headers_are_rejected() {
        for sent in [&["Bearer op", "Bearer op"][..], &["Bearer op, Bearer a"], &["op"], &[]] {
            assert_eq!(
                status(&authorizer(false), &head("127.0.0.1:1", sent), Permission::Read, Scope::All),
                401,
                "{sent:?}"
            );
        }
    }
    #[test]
    fn a_permission_includes_those_before_it() {
        use Permission::{Admin, Read, Write};
        let auth = authorizer(false);
        for (sent, permission, scope, expected) in [
            ("Bearer op", Read, Scope::All, 200),
            ("bearer op", Read, Scope::All, 200),
            ("Basic op", Read, Scope::All, 401),
            ("Bearer unknown", Read, Scope::All, 401),
            ("Bearer a", Read, Scope::Key("a/b"), 200),
            ("Bearer a", Write, Scope::Later, 200),
            ("Bearer a", Admin, Scope::Later, 403),
        ] {
            let head = head("127.0.0.1:1", &[sent]);
            assert_eq!(status(&auth, &head, permission, scope), expected, "{sent} {permission:?} {scope:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_the_token_may_do_or_how_to_send_one() {
        let auth = authorizer(false);
        let refused = |sent: &[&str]| {
            let checks = [(Permission::Read, Scope::Key("a/")), (Permission::Write, Scope::Key("b"))];
            auth.rules().check_all(&head("127.0.0.1:1", sent), checks).expect_err("one of the two is refused")
        };
        let (index, refusal) = refused(&["Bearer a"]);
        assert_eq!((index, refusal.status), (1, 403));
        assert!(
            refusal
                .message
                .ends_with("the token \"a\" does not have this right: it may write keys that begin with \"a/\"")
        );
        let (index, refusal) = refused(&[]);
        assert_eq!((index, refusal.status), (0, 401));
        assert_eq!(refusal.headers, [("WWW-Authenticate".to_owned(), "Bearer realm=\"vkog\"".to_owned())]);
        assert_eq!(may(Permission::Write, ""), "write");
    }

    #[test]
    fn an_open_server_refuses_only_administration_and_other_sites() {
        let own = head("127.0.0.1:1", &[]);
        let mut headers = Headers::default();
        headers.push("Origin", b"http://other.example");
        let foreign = RequestHead::new(Method::Post, "/".to_owned(), headers, None);
        let tokens = authorizer(false).0.load().tokens.clone();
        let with_admin = Authorizer::new(Auth { open: true, tokens, ..Auth::default() });
        let auth = Authorizer::new(Auth { open: true, ..Auth::default() });
        for (auth, head, permission, expected) in [
            (&auth, &own, Permission::Read, 200),
            (&auth, &own, Permission::Write, 200),
            (&auth, &foreign, Permission::Read, 403),
            (&auth, &own, Permission::Admin, 401),
            (&with_admin, &own, Permission::Write, 200),
            (&with_admin, &own, Permission::Admin, 401),
        ] {
            assert_eq!(status(auth, head, permission, Scope::All), expected, "{permission:?}");
        }
        let checks = [(Permission::Read, Scope::Key("a")), (Permission::Read, Scope::Key("b"))];
        assert!(auth.rules().check_all(&own, checks).is_ok());
        assert_eq!(auth.rules().check_all(&foreign, checks).expect_err("another site").0, 0);
    }

    #[test]
    fn administration_without_an_admin_token_is_off_for_everybody() {
        let tokens = vec![authorizer(false).0.load().tokens[1].clone()];
        let auth = Authorizer::new(Auth { tokens, ..Auth::default() });
        for (sent, expected) in [(&["Bearer a"][..], 403), (&["Bearer b"], 403), (&[], 401)] {
            let checks = [(Permission::Admin, Scope::All)];
            let (_, refusal) =
                auth.rules().check_all(&head("127.0.0.1:1", sent), checks).expect_err("administration is off");
            assert_eq!(refusal.status, expected, "{sent:?}");
            assert!(refusal.message.starts_with("Administration is off; add a token"), "{}", refusal.message);
        }
    }

    /// Returns the log lines of a function.
    fn logged(run: impl FnOnce()) -> String {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl Write for Log {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, run);
        String::from_utf8(log.0.lock().clone()).expect("the log is text")
    }

    #[test]
    fn administration_and_refusals_of_a_token_are_logged_with_its_name() {
        let auth = authorizer(false);
        let log = |token, permission| {
            logged(|| drop(auth.rules().check(&head("127.0.0.1:1", &[token]), permission, Scope::All)))
        };
        assert!(log("Bearer op", Permission::Admin).contains("the token \"op\" administers: /"));
        assert_eq!(log("Bearer op", Permission::Write), "");
        assert!(log("Bearer a", Permission::Write).contains("the token \"a\" does not have this right"));
    }

    #[test]
    fn a_client_is_named_by_the_proxy_that_the_configuration_trusts() {
        let proxy = toml::from_str("trusted = [\"127.0.0.1\"]").expect("valid TOML");
        let proxy = crate::config::Proxy::parse(toml::Value::Table(proxy)).expect("one proxy");
        let mut headers = Headers::default();
        headers.push("X-Forwarded-For", b"203.0.113.7");
        let peer = Some("127.0.0.1:1".parse().expect("an address"));
        let head = RequestHead::new(Method::Get, "/".to_owned(), headers, peer);
        Authorizer::new(Auth { proxy, ..Auth::default() }).rules().identify_client(&head);
        assert_eq!(head.client_text(), "203.0.113.7:0");
    }

    #[test]
    fn a_replaced_configuration_is_reported_if_it_differs() {
        let auth = authorizer(false);
        assert!(!auth.is_open());
        assert!(!auth.set(Auth::clone(&authorizer(false).0.load())));
        assert!(auth.set(Auth { open: true, ..Auth::default() }));
        assert!(auth.is_open());
    }
}
