//! From path and method to an operation, and from its answer to a reply. The only place with status codes of its own.

mod access;
mod entry;
mod health;
mod keys;
mod metrics;
mod plugins;
mod problem;

use std::borrow::Cow;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use crate::config::Right;
use crate::http::{BodyFault, Head, Method, Reply, Responder, Service};
use crate::ops::{KEY_MAX, Ops, Request};
use crate::plugins::{Origin, Taken, Verb};
use crate::threads::Threads;

pub use access::Access;
use access::Scope;
use problem::{Manner, Problem};

/// The HTTP interface of a store.
pub struct Api {
    ops: Arc<Ops>,
    value_max: u64,
    access: Arc<Access>,
    reload: Arc<Reload>,
    /// For what takes longer than an operation.
    threads: Threads,
    /// Held by each request for keys that is under way.
    listings: Arc<()>,
}

/// Takes in what has changed of the configuration, or says why nothing could be.
pub type Reload = dyn Fn() -> Result<Vec<Taken>, String> + Send + Sync;

/// A request that has a route.
pub struct Admitted {
    head: Box<Head>,
    target: Target,
}

/// What a request is for.
enum Target {
    /// An operation on an entry.
    Entry { verb: Verb, key: String, query: String, content_type: Cow<'static, str>, arrived: u64 },
    /// Which keys there are.
    Keys { question: keys::Question, query: String },
    /// What is loaded.
    Plugins,
    /// A reload of the plugins.
    Reload,
}

impl Api {
    /// The interface, with the longest value that is accepted, in bytes.
    pub fn new(ops: Arc<Ops>, value_max: u64, access: Arc<Access>, reload: Arc<Reload>) -> Self {
        Self { ops, value_max, access, reload, threads: Threads::new("admin"), listings: Arc::default() }
    }

    /// What a request for an entry is.
    fn entry(&self, head: &Head, key: &str, query: &str) -> Result<Target, Reply> {
        let arrived = self.ops.revision();
        let manner = || Manner::of(head);
        let verb = match head.method {
            Method::Get | Method::Head => Verb::Get,
            Method::Post => Verb::Post,
            Method::Put => Verb::Put,
            Method::Delete => Verb::Delete,
            Method::Options => return Err(options(entry::ALLOW)),
            Method::Other => return Err(not_allowed(entry::ALLOW, manner())),
        };
        let key = decode_key(key).map_err(|problem| problem.reply(manner()))?;
        let right = if verb == Verb::Get { Right::Read } else { Right::Write };
        self.access.check(head, right, Scope::Key(&key))?;
        let content_type = entry::content_type(head).map_err(|problem| problem.reply(manner()))?;
        Ok(Target::Entry { verb, key, query: query.to_owned(), content_type, arrived })
    }
}

/// The answer to OPTIONS.
fn options(allow: &'static str) -> Reply {
    Reply::new(204, &b""[..]).with_header("Allow", allow)
}

/// The answer to a method that a path does not have.
fn not_allowed(allow: &'static str, manner: Manner) -> Reply {
    Problem::new(405, "Method not allowed").reply(manner).with_header("Allow", allow)
}

/// Lets pass what reads, or gives the reply to what does not.
fn read_only(method: Method, manner: Manner) -> Result<(), Reply> {
    const ALLOW: &str = "GET, HEAD, OPTIONS";
    match method {
        Method::Get | Method::Head => Ok(()),
        Method::Options => Err(options(ALLOW)),
        _ => Err(not_allowed(ALLOW, manner)),
    }
}

/// The same for what is only posted to.
fn post_only(method: Method, manner: Manner) -> Result<(), Reply> {
    const ALLOW: &str = "POST, OPTIONS";
    match method {
        Method::Post => Ok(()),
        Method::Options => Err(options(ALLOW)),
        _ => Err(not_allowed(ALLOW, manner)),
    }
}

/// A request's target as path and query. An absolute URL is cut down to them (RFC 9112, section 3.2.2).
fn path_and_query(target: &str) -> (&str, &str) {
    let local = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    local.split_once('?').unwrap_or((local, ""))
}

/// Where a text is not percent-encoded as it should be, if anywhere.
fn bad_escape(encoded: &str) -> Option<usize> {
    let is_hex = |hex: &[u8]| hex.iter().all(u8::is_ascii_hexdigit);
    let mut escapes = encoded.match_indices('%').map(|(at, _)| at);
    escapes.find(|at| !encoded.as_bytes().get(at + 1..at + 3).is_some_and(is_hex))
}

/// A key as it stands in a path, decoded once.
fn decode_key(encoded: &str) -> Result<String, Problem> {
    if let Some(at) = bad_escape(encoded) {
        let fact = format!("Key is not percent-encoded correctly at byte {at}; write % as %25");
        return Err(Problem::new(400, fact));
    }
    let key = percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|error| Problem::new(400, format!("Key is not UTF-8 at byte {} of it", error.valid_up_to())))?;
    if key.is_empty() {
        return Err(Problem::new(400, "Key cannot be empty"));
    }
    if key.len() > KEY_MAX {
        return Err(Problem::new(414, format!("Key too long: {} bytes, {KEY_MAX} is the most", key.len())));
    }
    Ok(key.into_owned())
}

impl Service for Api {
    type Admitted = Admitted;

    fn admit(&self, head: Box<Head>) -> Result<Admitted, Reply> {
        let (path, query) = path_and_query(&head.target);
        let manner = || Manner::of(&head);
        let target = match (path.strip_prefix("/k/"), path) {
            (Some(key), _) => self.entry(&head, key, query)?,
            (None, "/keys") => {
                read_only(head.method, manner())?;
                let question = keys::question(query).map_err(|problem| problem.reply(manner()))?;
                self.access.check(&head, Right::Read, Scope::Prefix(question.prefix()))?;
                Target::Keys { question, query: query.to_owned() }
            }
            (None, "/plugins/reload") => {
                post_only(head.method, manner())?;
                self.access.check(&head, Right::Admin, Scope::All)?;
                Target::Reload
            }
            (None, "/plugins") => {
                read_only(head.method, manner())?;
                self.access.check(&head, Right::Read, Scope::All)?;
                Target::Plugins
            }
            (None, "/metrics") => {
                read_only(head.method, manner())?;
                self.access.check(&head, Right::Read, Scope::All)?;
                return Err(metrics::text(&self.ops));
            }
            // Open to all: they tell nothing of what is kept, and what watches a server has no secrets.
            (None, "/livez") => return Err(health::live(head.method, manner())),
            (None, "/readyz") => return Err(health::ready(&self.ops, head.method, manner())),
            (None, _) => return Err(Problem::new(404, "Invalid path. Use /k/<keyname>").reply(manner())),
        };
        Ok(Admitted { head, target })
    }

    fn body_max(&self) -> u64 {
        self.value_max
    }

    fn refuse_body(&self, admitted: Admitted, fault: BodyFault) -> Reply {
        let problem = match fault {
            BodyFault::Encoded => Problem::new(411, "Transfer-Encoding is not accepted; send Content-Length"),
            BodyFault::BadLength => Problem::new(400, "Content-Length must be one number"),
            BodyFault::TooLarge { declared } => Problem::new(
                413,
                format!("Value too large: {declared} bytes, {} is the most (--max-value)", self.value_max),
            ),
            BodyFault::CutOff { came, declared } => {
                Problem::new(400, format!("Body cut off: {came} of {declared} bytes came; nothing was written"))
            }
        };
        problem.reply(Manner::of(&admitted.head))
    }

    fn serve(&self, Admitted { head, target }: Admitted, body: Vec<u8>, responder: Responder) {
        let manner = Manner::of(&head);
        match target {
            Target::Entry { verb, key, query, content_type, arrived } => {
                if body.is_empty() && matches!(verb, Verb::Post | Verb::Put) {
                    return responder.reply(Problem::new(400, "No content provided").reply(manner));
                }
                let conditions = entry::conditions(&head);
                let request = Request {
                    verb,
                    key,
                    value: body,
                    content_type,
                    query,
                    conditions,
                    arrived,
                    depth: 0,
                    origin: head,
                };
                self.ops.run(request, move |answer, added| {
                    responder.reply(entry::reply(answer, added, verb == Verb::Get, manner));
                });
            }
            Target::Keys { question, query } => {
                let (ops, under_way) = (Arc::clone(&self.ops), Arc::clone(&self.listings));
                if Arc::strong_count(&under_way) > keys::AT_ONCE_MAX + 1 {
                    return responder.reply(keys::too_many(manner));
                }
                self.threads.run(move || {
                    let reply = keys::answer(&ops, &question, query, head, manner);
                    // A client may take its time to read, and is none of those who look for keys then.
                    drop(under_way);
                    responder.reply(reply);
                });
            }
            // It waits while plugins are exchanged, which the thread of an engine must not do.
            Target::Plugins => {
                let ops = Arc::clone(&self.ops);
                self.threads.run(move || responder.reply(plugins::list(&ops)));
            }
            Target::Reload => {
                let reload = Arc::clone(&self.reload);
                self.threads.run(move || responder.reply(plugins::reloaded(reload(), manner)));
            }
        }
    }
}

impl Origin for Box<Head> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name)
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.headers.at(index)
    }

    fn client(&self) -> &str {
        self.client_text()
    }
}

/// One line: what would break it is a space.
fn one_line(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect::<String>().into()
    } else {
        text.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_decoded_once_and_keeps_its_slashes() {
        assert_eq!(decode_key("a%2Fb").ok().as_deref(), Some("a/b"));
        assert_eq!(decode_key("a/b").ok().as_deref(), Some("a/b"));
        assert_eq!(decode_key("100%2525").ok().as_deref(), Some("100%25"));
        assert_eq!(decode_key("a+b%20c").ok().as_deref(), Some("a+b c"));
    }

    #[test]
    fn a_key_that_cannot_be_one_is_refused_with_its_status() {
        let long = "k".repeat(KEY_MAX + 1);
        for (key, status) in
            [("%", 400), ("a%2", 400), ("%zz", 400), ("%+1", 400), ("%ff", 400), ("", 400), (long.as_str(), 414)]
        {
            assert_eq!(decode_key(key).err().map(|problem| problem.status()), Some(status), "{key}");
        }
        assert!(decode_key(&"k".repeat(KEY_MAX)).is_ok());
    }

    #[test]
    fn an_absolute_url_is_as_good_as_a_path() {
        assert_eq!(path_and_query("/k/a?b=1?2"), ("/k/a", "b=1?2"));
        assert_eq!(path_and_query("http://127.0.0.1:3110/k/a?b"), ("/k/a", "b"));
        assert_eq!(path_and_query("/k/http://a"), ("/k/http://a", ""));
        assert_eq!(path_and_query("http://a"), ("/", ""));
    }
}
