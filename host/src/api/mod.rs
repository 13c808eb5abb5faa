//! From path and method to an operation, and from its answer to a reply. The only place with status codes of its own.

mod access;
mod batch;
mod entry;
mod health;
mod keys;
mod metrics;
mod openapi;
mod origin;
mod page;
mod plugins;
mod problem;
mod query;
mod range;
mod requests;
mod watch;

use std::borrow::Cow;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use crate::config::Right;
use crate::http::{BodyFault, Budget, ConnectionCounts, Method, RequestHead, Responder, Response, Service};
use vkog_engine::{Conditions, Engine, Request, check_key, check_value};
use vkog_plugin_host::{Origin, ReloadReport, Verb};
use vkog_runtime::ThreadPool;
use vkog_store::owned_content_type;

pub use access::Access;
use access::Scope;
use openapi::Methods;
pub use plugins::ReloadError;
use problem::{Manner, Problem};
use range::Range;
use requests::{Noted, Requests};

/// Operations on more bytes than this run on threads of their own.
const LARGE: usize = 64 << 10;

/// The HTTP interface of a store.
pub struct Api {
    engine: Arc<Engine>,
    value_max: u64,
    budget: &'static Budget,
    access: Arc<Access>,
    reload: Arc<Reload>,
    requests: &'static Requests,
    connections: Arc<ConnectionCounts>,
    /// Events as watchers get them.
    encoded: Arc<watch::Encoded>,
    /// For what takes longer than an operation.
    threads: ThreadPool,
    /// For operations with large values: copying those would hold up an event loop. Few threads, because each copy needs
    /// memory beyond the budget.
    large: Arc<ThreadPool>,
    /// Held by each request for keys that is under way.
    listings: Arc<()>,
}

/// Takes in what has changed of the configuration, or says what could not be.
pub type Reload = dyn Fn() -> Result<Vec<ReloadReport>, ReloadError> + Send + Sync;

/// A request that has a route.
pub struct Admitted {
    head: Arc<RequestHead>,
    target: Target,
    noted: Noted,
}

/// What a request is for.
enum Target {
    /// An operation on an entry.
    Entry(Entry),
    /// Several operations in one step.
    Batch(batch::Admitted),
    /// Which keys there are.
    Keys { question: keys::Question, query: String },
    /// What changes.
    Watch { question: watch::Question, query: String },
    /// What is loaded.
    Plugins,
    /// A reload of the plugins.
    Reload,
}

/// An operation on an entry.
struct Entry {
    verb: Verb,
    key: String,
    query: String,
    content_type: Cow<'static, str>,
    conditions: Conditions,
    arrived: u64,
}

impl Api {
    /// The interface, with the longest value that is accepted, in bytes.
    pub fn new(engine: Arc<Engine>, value_max: u64, access: Arc<Access>, reload: Arc<Reload>) -> Self {
        let (requests, threads) = (Requests::begun(), ThreadPool::new("admin"));
        let (connections, encoded, listings) = (Arc::default(), Arc::default(), Arc::default());
        let budget = Budget::new(u64::MAX);
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let large = Arc::new(ThreadPool::bounded("large", cores));
        Self { engine, value_max, budget, access, reload, requests, connections, encoded, threads, large, listings }
    }

    /// The same, and whether each request is logged.
    pub fn log_requests(self, logs: bool) -> Self {
        self.requests.log(logs);
        self
    }

    /// The same with a memory budget for requests in flight, in bytes.
    pub fn memory_budget(self, limit: u64) -> Self {
        Self { budget: Budget::new(limit), ..self }
    }

    /// Where an engine is to count its connections.
    pub fn connections(&self) -> Arc<ConnectionCounts> {
        Arc::clone(&self.connections)
    }

    /// What a request is for, or the reply where that needs no body.
    fn target(&self, head: &RequestHead) -> Result<Target, Response> {
        let (path, query) = (head.path(), head.query());
        let manner = || Manner::of(head);
        origin::check_head(head).map_err(|problem| problem.reply(manner()))?;
        self.access.admit(head);
        let no_path = || Problem::new(404, "Invalid path. Use /k/<keyname>").reply(manner());
        let methods = Methods::of(path).ok_or_else(no_path)?;
        match head.method {
            method if !methods.include(method) => return Err(not_allowed(methods, manner())),
            Method::Options => return Err(Response::new(204, &b""[..]).with_header("Allow", methods.allow.clone())),
            _ => {}
        }
        Ok(match (path.strip_prefix("/k/"), path) {
            (Some(key), _) => self.entry(head, methods, key, query)?,
            (None, "/batch") => {
                let arrived = self.engine.revision();
                // Each operation is asked about when it is known.
                self.access.check(head, Right::Read, Scope::Later)?;
                entry::check_body_is_plain(head).map_err(|problem| problem.reply(manner()))?;
                let sent = batch::Format::of(head).map_err(|problem| problem.reply(manner()))?;
                let (answer, query) = (sent.of_answer(head), query.to_owned());
                Target::Batch(batch::Admitted { sent, answer, query, arrived })
            }
            (None, "/keys") => {
                let question = keys::question(query).map_err(|problem| problem.reply(manner()))?;
                self.access.check(head, Right::Read, Scope::Prefix(question.prefix()))?;
                Target::Keys { question, query: query.to_owned() }
            }
            (None, "/watch") => {
                let question = watch::question(query, head).map_err(|problem| problem.reply(manner()))?;
                self.access.check(head, Right::Read, Scope::Prefix(question.prefix()))?;
                Target::Watch { question, query: query.to_owned() }
            }
            (None, "/plugins/reload") => {
                self.access.check(head, Right::Admin, Scope::All)?;
                Target::Reload
            }
            (None, "/plugins") => {
                self.access.check(head, Right::Read, Scope::All)?;
                Target::Plugins
            }
            (None, "/metrics") => {
                self.access.check(head, Right::Read, Scope::All)?;
                return Err(metrics::text(&self.engine, self.requests, &self.connections));
            }
            // Open to all: they tell nothing of what is kept, and what watches a server has no secrets.
            (None, "/livez") => return Err(health::ok()),
            (None, "/readyz") => return Err(health::ready(&self.engine, manner())),
            // What is the same for every server.
            (None, "/openapi.json") => return Err(openapi::document()),
            (None, "/") => return Err(page::page()),
            (None, _) => return Err(no_path()),
        })
    }

    /// What a request for an entry is.
    fn entry(&self, head: &RequestHead, methods: &Methods, key: &str, query: &str) -> Result<Target, Response> {
        let arrived = self.engine.revision();
        let manner = || Manner::of(head);
        let verb = match head.method {
            Method::Get | Method::Head => Verb::Get,
            Method::Post => Verb::Post,
            Method::Put => Verb::Put,
            Method::Delete => Verb::Delete,
            Method::Options | Method::Other => return Err(not_allowed(methods, manner())),
        };
        let key = decode_key(key).map_err(|problem| problem.reply(manner()))?;
        let right = if verb == Verb::Get { Right::Read } else { Right::Write };
        self.access.check(head, right, Scope::Key(&key))?;
        let sent = entry::content_type(head).map_err(|problem| problem.reply(manner()))?;
        // It is that of a value, and nothing else has one.
        let writes = matches!(verb, Verb::Post | Verb::Put);
        if writes {
            entry::check_body_is_plain(head).map_err(|problem| problem.reply(manner()))?;
        }
        let conditions = entry::conditions(head).map_err(|problem| problem.reply(manner()))?;
        let content_type = if writes { owned_content_type(sent) } else { "".into() };
        Ok(Target::Entry(Entry { verb, key, query: query.to_owned(), content_type, conditions, arrived }))
    }
}

/// The answer to a method that a path does not have.
fn not_allowed(methods: &Methods, manner: Manner) -> Response {
    Problem::new(405, "Method not allowed").reply(manner).with_header("Allow", methods.allow.clone())
}

/// Where a text is not percent-encoded as it should be, if anywhere.
fn bad_escape(encoded: &str) -> Option<usize> {
    let is_hex = |hex: &[u8]| hex.iter().all(u8::is_ascii_hexdigit);
    let mut escapes = encoded.match_indices('%').map(|(at, _)| at);
    escapes.find(|at| !encoded.as_bytes().get(at + 1..at + 3).is_some_and(is_hex))
}

/// A key as it stands in a path, decoded once.
fn decode_key(encoded: &str) -> Result<String, Problem> {
    let key = if encoded.contains('%') { decode(encoded)? } else { encoded.to_owned() };
    check_key(&key)?;
    Ok(key)
}

fn decode(encoded: &str) -> Result<String, Problem> {
    if let Some(at) = bad_escape(encoded) {
        let fact = format!("Key is not percent-encoded correctly at byte {at}; write % as %25");
        return Err(Problem::new(400, fact));
    }
    let key = percent_decode_str(encoded)
        .decode_utf8()
        .map_err(|error| Problem::new(400, format!("Key is not UTF-8 at byte {} of it", error.valid_up_to())))?;
    Ok(key.into_owned())
}

impl Service for Api {
    type Admitted = Admitted;

    fn admit(&self, head: Arc<RequestHead>) -> Result<Admitted, Response> {
        let noted = self.requests.begin(&head);
        match self.target(&head) {
            Ok(target) => Ok(Admitted { head, target, noted }),
            Err(reply) => Err(noted.answered(reply)),
        }
    }

    fn budget(&self) -> &'static Budget {
        self.budget
    }

    fn body_max(&self, admitted: &Admitted) -> u64 {
        match admitted.target {
            Target::Batch(_) => batch::body_max(self.value_max),
            _ => self.value_max,
        }
    }

    fn refuse_body(&self, admitted: Admitted, fault: BodyFault) -> Response {
        let problem = match fault {
            BodyFault::Encoded => {
                Problem::new(501, "Transfer-Encoding is not supported; send chunked or Content-Length")
            }
            BodyFault::BadLength => Problem::new(400, "Content-Length must be one number"),
            BodyFault::TwoLengths => Problem::new(400, "Content-Length and Transfer-Encoding exclude each other"),
            BodyFault::TooLarge { declared } => match admitted.target {
                Target::Batch(_) => batch::too_large(declared, self.value_max),
                _ => entry::too_large(declared, self.value_max),
            },
            BodyFault::CutOff { received, declared } => {
                let of = declared.map(|declared| format!(" of {declared}")).unwrap_or_default();
                Problem::new(400, format!("Body cut off: {received}{of} bytes arrived; nothing was written"))
            }
            BodyFault::BadChunk => Problem::new(400, "Body is not chunked correctly; nothing was written"),
            BodyFault::NoMemory => {
                let fact = "Not enough memory for this body beside other requests in flight; try again";
                Problem::new(503, fact).with_header("Retry-After", "1")
            }
            BodyFault::TooSlow => Problem::new(408, "Body too slow: send at least 1 KiB per second"),
        };
        admitted.noted.answered(problem.reply(Manner::of(&admitted.head)))
    }

    fn serve(&self, Admitted { head, target, noted }: Admitted, body: Vec<u8>, responder: Responder) {
        let manner = Manner::of(&head);
        let answer = move |reply| responder.respond(noted.answered(reply));
        match target {
            Target::Entry(Entry { verb, key, query, content_type, conditions, arrived }) => {
                if let Err(invalid) = check_value(verb, &body) {
                    return answer(Problem::from(invalid).reply(manner));
                }
                let range = Range::of(&head);
                let origin = head;
                let request =
                    Request { verb, key, value: body, content_type, query, conditions, arrived, depth: 0, origin };
                let finish = move |done, added| answer(entry::reply(done, added, verb == Verb::Get, range, manner));
                if request.value.len() <= LARGE {
                    self.engine.run(request, finish);
                } else {
                    let engine = Arc::clone(&self.engine);
                    self.large.run(move || engine.run(request, finish));
                }
            }
            Target::Batch(admitted) => {
                let (engine, access, large) =
                    (Arc::clone(&self.engine), Arc::clone(&self.access), Arc::clone(&self.large));
                let server = batch::Server { engine, access, value_max: self.value_max, large };
                server.serve(head, admitted, body, answer);
            }
            Target::Keys { question, query } => {
                let (engine, under_way) = (Arc::clone(&self.engine), Arc::clone(&self.listings));
                if Arc::strong_count(&under_way) > keys::AT_ONCE_MAX + 1 {
                    return answer(keys::too_many(manner));
                }
                let budget = self.budget;
                self.threads.run(move || {
                    let reply = keys::answer(&engine, &question, query, head, budget, manner);
                    // A client may take its time to read, and is none of those who look for keys then.
                    drop(under_way);
                    answer(reply);
                });
            }
            Target::Watch { question, query } => {
                answer(watch::answer(&self.engine, &self.access, &self.encoded, question, query, head));
            }
            // It waits while plugins are exchanged, which the thread of an engine must not do.
            Target::Plugins => {
                let engine = Arc::clone(&self.engine);
                self.threads.run(move || answer(plugins::list(&engine)));
            }
            Target::Reload => {
                let reload = Arc::clone(&self.reload);
                self.threads.run(move || answer(plugins::reloaded(reload(), manner)));
            }
        }
    }
}

impl Origin for RequestHead {
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
    use vkog_engine::KEY_MAX;

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
}
