//! The key prefix of a request, which plugins set in `before_request`. It comes before all keys that the request names, and is
//! taken from everything that goes back, so that its client sees only keys behind it.

use std::borrow::Cow;
use std::sync::Arc;

use super::auth::{Credential, Rules, Scope};
use super::problem::{ErrorFormat, Problem};
use super::query::{self, parameters};
use super::{Api, routes, watch};
use crate::config::Permission;
use crate::http::{RequestHead, Response};
use vkog_engine::{ExtraHeaders, KEY_MAX, Outcome, check_key};
use vkog_plugin_host::{Origin, Refusal, RoutePermission};

/// Whether requests with this path pass the `before_request` hooks: those for entries and for routes of plugins.
fn is_for_plugins(path: &str) -> bool {
    path.starts_with("/k/")
        || path.starts_with(routes::PREFIX)
        || matches!(path, "/batch" | "/keys" | "/watch" | "/watch/tickets" | "/export")
}

impl Api {
    /// Lets the `before_request` hooks decide about a request whose path and method exist. Its client must have authenticated
    /// itself. Returns `false` if they can only decide later: then [`let_pass_later`](Self::let_pass_later) must be called.
    ///
    /// # Errors
    ///
    /// The response: 401 for an unknown client, or the refusal of a plugin.
    pub(super) fn let_pass(&self, head: &RequestHead, rules: &Rules) -> Result<bool, Response> {
        if !self.engine.plugins().sees_requests() {
            return Ok(true);
        }
        let (path, query) = head.path_and_query();
        if !is_for_plugins(path) {
            return Ok(true);
        }
        if !self.is_public(head) {
            let credential = self.credential(head)?;
            // A permission that every known client has.
            rules.check_as(head, &credential, Permission::Read, Scope::Later)?;
        }
        match self.engine.try_before_request(path, &shown_query(path, query), head) {
            Some(passed) => pass(head, passed).map(|()| true),
            None => Ok(false),
        }
    }

    /// Whether a request calls a route that needs no permission.
    fn is_public(&self, head: &RequestHead) -> bool {
        let is_route = head.path().starts_with(routes::PREFIX);
        is_route && self.find_route(head).is_ok_and(|route| route.permission == RoutePermission::None)
    }

    /// Lets the `before_request` hooks decide, and then calls `then` on any thread. The client has authenticated itself.
    ///
    /// # Errors
    ///
    /// `then` gets the refusal of a plugin as the response.
    pub(super) fn let_pass_later(
        &self,
        head: &Arc<RequestHead>,
        then: impl FnOnce(Result<(), Response>) + Send + 'static,
    ) {
        let (path, query) = head.path_and_query();
        let target = [path.to_owned(), shown_query(path, query).into_owned()];
        let (origin, head): (Arc<dyn Origin>, _) = (Arc::clone(head) as _, Arc::clone(head));
        self.engine.before_request(target, origin, move |passed| then(pass(&head, passed)));
    }

    /// Returns the token of a client, which may have sent a ticket instead.
    fn credential(&self, head: &RequestHead) -> Result<Credential, Response> {
        let (path, query) = head.path_and_query();
        if path != "/watch" {
            return Ok(Credential::of(head));
        }
        let [ticket] = parameters(query, [watch::TICKET]).map_err(|problem| problem.reply(ErrorFormat::of(head)))?;
        let holder = self.tickets.holder(head, ticket.as_deref());
        holder.map_err(|refusal| Problem::of(refusal).reply(ErrorFormat::of(head)))
    }
}

/// Returns the query as plugins see it.
fn shown_query<'a>(path: &str, query: &'a str) -> Cow<'a, str> {
    if path == "/watch" { query::without(query, watch::TICKET).into() } else { query.into() }
}

/// Sets the prefix that plugins have chosen.
fn pass(head: &RequestHead, passed: Result<String, Refusal>) -> Result<(), Response> {
    let prefix = passed.map_err(|refusal| Problem::of(refusal).reply(ErrorFormat::of(head)))?;
    if !prefix.is_empty() {
        head.set_key_prefix(prefix);
    }
    Ok(())
}

/// Returns a key as it is stored: with the prefix of its request.
///
/// # Errors
///
/// It is longer than a key may be.
pub(super) fn whole_key(head: &RequestHead, key: String) -> Result<String, Problem> {
    let prefix = head.key_prefix();
    if prefix.len() + key.len() > KEY_MAX && check_key(&key).is_ok() {
        let most = KEY_MAX - prefix.len();
        return Err(Problem::new(414, format!("Key too long: {} bytes; the maximum is {most}", key.len())));
    }
    Ok(whole(head, key))
}

/// Returns a prefix or a position among keys with the prefix of its request.
pub(super) fn whole(head: &RequestHead, text: String) -> String {
    match head.key_prefix() {
        "" => text,
        prefix => [prefix, &text].concat(),
    }
}

/// Returns a stored key as the client of a request sees it.
pub(super) fn seen<'a>(head: &RequestHead, key: &'a str) -> &'a str {
    key.strip_prefix(head.key_prefix()).unwrap_or(key)
}

/// Takes the prefix out of a text of a plugin, which saw whole keys: at its beginning, and behind white space, a quotation mark or
/// a bracket.
pub(super) fn seen_text(head: &RequestHead, text: String) -> String {
    let prefix = head.key_prefix();
    if prefix.is_empty() || !text.contains(prefix) {
        return text;
    }
    let mut seen = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(at) = rest.find(prefix) {
        let (before, from) = rest.split_at(at);
        // What follows a prefix that was taken out is within the same key.
        let begins = match before.chars().next_back() {
            None => rest.len() == text.len(),
            Some(char) => char.is_whitespace() || "\"'`([{<=,;:".contains(char),
        };
        seen.push_str(before);
        seen.push_str(if begins { "" } else { prefix });
        rest = &from[prefix.len()..];
    }
    seen + rest
}

/// Takes the prefix out of the message and the headers of a refusal.
pub(super) fn seen_refusal(head: &RequestHead, refusal: Refusal) -> Refusal {
    let Refusal { plugin, status, message, headers } = refusal;
    Refusal { plugin, status, message: seen_text(head, message), headers: seen_headers(head, headers) }
}

/// Takes the prefix out of the values of headers.
pub(super) fn seen_headers(head: &RequestHead, mut headers: ExtraHeaders) -> ExtraHeaders {
    if !head.key_prefix().is_empty() {
        headers.iter_mut().for_each(|(_, value)| *value = seen_text(head, std::mem::take(value)));
    }
    headers
}

/// Takes the prefix out of the outcome of an operation.
pub(super) fn seen_outcome(head: &RequestHead, outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Refused(refusal) => Outcome::Refused(seen_refusal(head, refusal)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Headers, Method};

    fn head(prefix: &str) -> RequestHead {
        let head = RequestHead::new(Method::Get, "/".to_owned(), Headers::default(), None);
        head.set_key_prefix(prefix.to_owned());
        head
    }

    #[test]
    fn a_prefix_is_taken_out_of_a_text_where_a_key_may_begin() {
        for (text, expected) in [
            ("key \"t/a\" exists", "key \"a\" exists"),
            ("t/a and t/t/b", "a and t/b"),
            ("t/t/t/a/t/b", "t/t/a/t/b"),
            ("a/t/b", "a/t/b"),
            ("cat/a at/", "cat/a at/"),
            ("t/", ""),
            ("\u{e9}t/a", "\u{e9}t/a"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(seen_text(&head("t/"), text.to_owned()), expected, "{text}");
            assert_eq!(seen_text(&head(""), text.to_owned()), text);
        }
    }

    #[test]
    fn a_whole_key_is_no_longer_than_a_key() {
        let head = head("t/");
        assert_eq!(whole_key(&head, "a".to_owned()).ok().as_deref(), Some("t/a"));
        assert!(whole_key(&head, "k".repeat(KEY_MAX - 2)).is_ok());
        let problem = whole_key(&head, "k".repeat(KEY_MAX - 1)).expect_err("it is too long");
        assert_eq!(problem.document().title, "Key too long: 1023 bytes; the maximum is 1022");
        assert_eq!((seen(&head, "t/t/a"), seen(&head, "u")), ("t/a", "u"));
    }
}
