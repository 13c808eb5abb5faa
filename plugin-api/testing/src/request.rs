//! Requests to a test host: single operations, batches, listings, watches.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};

use crate::log::logged;
use crate::reply::{BatchReply, Reply};
use crate::test_host::TestHost;
use vkog_engine::{
    Batch, Conditions, Form, Listing, Operation, Outcome, Reads, RequestContext, Revisions, Transforms, WatchEnd,
    Watcher, check_operation, media_type,
};
use vkog_plugin_api::abi::Verb;
use vkog_plugin_host::{CallStates, Cause, Origin, Refusal};
use vkog_store::{MemoryStore, owned_content_type};

/// The default address of the client.
pub(crate) const CLIENT: &str = "127.0.0.1:50000";
/// The maximum number of keys on a page of a listing.
const PAGE: usize = 1000;

impl TestHost {
    /// Reads an entry: `GET /k/KEY`.
    pub fn get(&self, key: &str) -> Reply {
        self.request(Verb::Get, key).send()
    }

    /// Creates an entry: `POST /k/KEY`.
    pub fn post(&self, key: &str, value: impl AsRef<[u8]>) -> Reply {
        self.request(Verb::Post, key).body(value).send()
    }

    /// Updates an entry: `PUT /k/KEY`.
    pub fn put(&self, key: &str, value: impl AsRef<[u8]>) -> Reply {
        self.request(Verb::Put, key).body(value).send()
    }

    /// Removes an entry: `DELETE /k/KEY`.
    pub fn delete(&self, key: &str) -> Reply {
        self.request(Verb::Delete, key).send()
    }

    /// Builds a request with headers, a query, a media type, a client address or a precondition. [`Request::send`]
    /// sends it.
    ///
    /// ```
    /// use vkog_plugin_api::Verb;
    /// use vkog_plugin_testing::Setup;
    ///
    /// let host = Setup::new().start();
    /// let put = host.request(Verb::Put, "page").header("X-Token", "s3cret").query("draft").body("<p>");
    /// let revision = put.content_type("text/html").send().expect(200).revision();
    /// host.get("page").has("Content-Type", "text/html");
    /// host.request(Verb::Delete, "page").if_revision(revision + 1).send().expect(412);
    /// ```
    pub fn request<'a>(&'a self, verb: Verb, key: &'a str) -> Request<'a> {
        Request {
            host: self,
            verb,
            key,
            value: Vec::new(),
            content_type: "",
            query: "",
            headers: Vec::new(),
            client: CLIENT,
            if_revision: None,
            touches: false,
        }
    }

    /// Builds a request that writes an entry again with the value that it has: `PATCH /k/KEY`. Plugins see a get and a
    /// put. [`Request::send`] sends it.
    ///
    /// ```
    /// use vkog_plugin_testing::Setup;
    ///
    /// let host = Setup::new().start();
    /// host.touch("a").send().expect(404);
    /// let revision = host.put("a", "1").revision();
    /// assert!(host.touch("a").send().expect(200).revision() > revision);
    /// host.get("a").expect(200).is("1");
    /// ```
    pub fn touch<'a>(&'a self, key: &'a str) -> Request<'a> {
        Request { touches: true, ..self.request(Verb::Put, key) }
    }

    /// Runs operations in one step, as `POST /batch` does: all of them succeed, or nothing changes. [`touch`](Self::touch)
    /// makes one, too. Do not call [`Request::send`] on them. The query and the client address of the first operation apply to the batch.
    ///
    /// ```
    /// use vkog_plugin_api::Verb;
    /// use vkog_plugin_testing::Setup;
    ///
    /// let host = Setup::new().start();
    /// let put = |key| host.request(Verb::Put, key).body("1");
    /// let replies = host.batch([put("a"), host.request(Verb::Get, "a"), put("b")]).succeeded();
    /// assert_eq!(replies[1].text(), "1");
    /// host.batch([put("c"), host.request(Verb::Delete, "d")]).failed(1, 404, "Not Found");
    /// host.get("c").expect(404);
    /// ```
    pub fn batch<'a>(&'a self, operations: impl IntoIterator<Item = Request<'a>>) -> BatchReply {
        let operations: Vec<Request<'a>> = operations.into_iter().collect();
        let shown = operations.iter().map(Request::shown).collect::<Vec<_>>();
        let (query, client) = operations.first().map_or(("", CLIENT), |first| (first.query, first.client));
        let origin = self.client("POST", client, Vec::new());
        let prefix = match self.before_request("/batch", query, &origin) {
            Ok(prefix) => prefix,
            Err(refusal) => return BatchReply(Err((None, self.refused("a batch", Outcome::Refused(refusal))))),
        };
        let mut operations: Vec<Operation> = operations.into_iter().map(Request::operation).collect();
        for (index, operation) in operations.iter().enumerate() {
            if let Err(invalid) = operation.check() {
                let reply = Reply::new(shown[index].clone(), Outcome::Refused(invalid.into()), Vec::new(), self.log());
                return BatchReply(Err((Some(index), reply)));
            }
        }
        operations.iter_mut().for_each(|operation| operation.key.insert_str(0, &prefix));
        let batch = Batch {
            operations,
            query: query.to_owned(),
            arrived: self.engine().revision(),
            values_max: usize::MAX,
            reads: Reads::Linearizable,
            origin,
        };
        let (send, done) = channel();
        logged(&self.dispatch, || {
            self.engine().run_batch(batch, move |outcome| _ = send.send(outcome));
        });
        let Ok(outcome) = done.recv() else { panic!("the batch panicked in the host") };
        let reply = |shown: &String, outcome, headers| Reply::new(shown.clone(), outcome, headers, self.log());
        BatchReply(match outcome {
            Ok(done) => {
                let done = done.into_iter().zip(&shown);
                Ok(done.map(|((outcome, headers), shown)| reply(shown, outcome, headers)).collect())
            }
            Err(failure) => {
                let index = failure.at.map(|(index, _)| index);
                let shown = index.map_or_else(|| "a batch".to_owned(), |index| shown[index].clone());
                Err((index, reply(&shown, failure.outcome, Vec::new())))
            }
        })
    }

    /// Lists all keys that start with a prefix and that a client may see, in byte order, as `GET /keys` does.
    ///
    /// # Errors
    ///
    /// A plugin refused the get of a key with another status than 403, 404 or 410. Those three leave the key out.
    ///
    /// ```
    /// use vkog_plugin_testing::Setup;
    ///
    /// let host = Setup::new().start();
    /// host.put("b/2", "").expect(400);
    /// host.put("b/1", "x").expect(200);
    /// host.put("a", "x").expect(200);
    /// assert_eq!(host.keys("").expect("no plugin refuses"), ["a", "b/1"]);
    /// assert_eq!(host.count("b/").expect("no plugin refuses"), 1);
    /// ```
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>, Reply> {
        let (mut keys, mut after) = (Vec::new(), None);
        loop {
            let refused = |refusal| self.refused("a listing", Outcome::Refused(refusal));
            // Each page is one HTTP request.
            let (own, context) = self.begin("/keys", &format!("prefix={prefix}")).map_err(refused)?;
            let prefix = format!("{own}{prefix}");
            let listing = Listing { prefix, after, limit: PAGE, delimiter: None, form: Form::Sent };
            let page = logged(&self.dispatch, || self.engine().list(&listing, &context)).map_err(refused)?;
            keys.extend(page.entries.iter().map(|listed| seen(listed.entry.key(), &own)));
            if page.next.is_none() {
                return Ok(keys);
            }
            after = page.next;
        }
    }

    /// Counts the keys that start with a prefix and that a client may see.
    ///
    /// # Errors
    ///
    /// Those of [`keys`](Self::keys).
    pub fn count(&self, prefix: &str) -> Result<u64, Reply> {
        let count = self.begin("/keys", &format!("count&prefix={prefix}")).and_then(|(own, context)| {
            logged(&self.dispatch, || self.engine().count(&format!("{own}{prefix}"), &context))
        });
        count.map_err(|refusal| self.refused("a count", Outcome::Refused(refusal)))
    }

    /// Watches the changes from now on of keys that start with a prefix, as `GET /watch` does.
    ///
    /// ```
    /// use vkog_plugin_testing::Setup;
    ///
    /// let host = Setup::new().start();
    /// let mut watch = host.watch("a");
    /// host.put("a1", "1").expect(200);
    /// host.put("b", "1").expect(200);
    /// host.delete("a1").expect(200);
    /// let seen: Vec<_> = watch.changes().into_iter().map(|change| (change.key, change.value)).collect();
    /// assert_eq!(seen, [("a1".to_owned(), Some(b"1".to_vec())), ("a1".to_owned(), None)]);
    /// ```
    pub fn watch(&self, prefix: &str) -> Watch<'_> {
        let begun = self.begin("/watch", &format!("prefix={prefix}"));
        let (own, context, end) = match begun {
            Ok((own, context)) => (own, context, None),
            Err(refusal) => {
                (String::new(), self.context("GET"), Some(self.refused("a watch", Outcome::Refused(refusal))))
            }
        };
        let Ok(watcher) = self.engine().watch(format!("{own}{prefix}"), None, context) else {
            unreachable!("a watch from now on needs no earlier change")
        };
        Watch { host: self, watcher, prefix: own, end }
    }

    /// Lets the `before_request` hooks decide about a GET. Returns the key prefix.
    fn begin(&self, path: &str, query: &str) -> Result<(String, RequestContext), Refusal> {
        let context = self.context("GET");
        Ok((self.before_request(path, query, &context.origin)?, context))
    }

    /// Lets the `before_request` hooks decide. Returns the key prefix.
    pub(crate) fn before_request(&self, path: &str, query: &str, origin: &Arc<dyn Origin>) -> Result<String, Refusal> {
        let chain = self.engine().plugins().acquire_blocking();
        logged(&self.dispatch, || chain.before_request(path, query, &**origin))
    }

    fn context(&self, method: &'static str) -> RequestContext {
        RequestContext {
            origin: self.client(method, CLIENT, Vec::new()),
            query: String::new(),
            reads: Reads::Linearizable,
        }
    }

    fn client(&self, method: &'static str, address: &str, headers: Vec<(String, String)>) -> Arc<dyn Origin> {
        Arc::new(Client { method, headers, address: address.to_owned(), token: self.token.lock().clone() })
    }

    fn refused(&self, what: &str, outcome: Outcome) -> Reply {
        Reply::new(what.to_owned(), outcome, Vec::new(), self.log())
    }
}

/// Returns a key as a client with this key prefix sees it.
fn seen(key: &str, prefix: &str) -> String {
    key.strip_prefix(prefix).unwrap_or(key).to_owned()
}

/// A request in preparation: [`TestHost::request`].
pub struct Request<'a> {
    host: &'a TestHost,
    verb: Verb,
    key: &'a str,
    value: Vec<u8>,
    content_type: &'a str,
    query: &'a str,
    headers: Vec<(String, String)>,
    client: &'a str,
    if_revision: Option<u64>,
    touches: bool,
}

impl<'a> Request<'a> {
    /// Adds a header for hooks to read. The test host itself ignores headers.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the query, without the question mark. The default is none.
    pub fn query(mut self, query: &'a str) -> Self {
        self.query = query;
        self
    }

    /// Sets the value to write. POST and PUT fail with 400 if it is empty.
    pub fn body(mut self, value: impl AsRef<[u8]>) -> Self {
        self.value = value.as_ref().to_vec();
        self
    }

    /// Sets the media type of the value, and the header `Content-Type`. The default is `application/octet-stream`,
    /// without a header.
    pub fn content_type(mut self, content_type: &'a str) -> Self {
        self.content_type = content_type;
        self.header("Content-Type", content_type)
    }

    /// Sets the client's address, `ip:port`. The default is `127.0.0.1:50000`.
    pub fn client(mut self, address: &'a str) -> Self {
        self.client = address;
        self
    }

    /// Fails the request with 412 if the entry has another revision, as the header `If-Match` does. Adds that header,
    /// too.
    pub fn if_revision(mut self, revision: u64) -> Self {
        self.if_revision = Some(revision);
        self.header("If-Match", &format!("\"{revision}\""))
    }

    /// Sends the request and waits for the reply. Hooks run on this thread.
    ///
    /// # Panics
    ///
    /// The host itself panicked. A panic of a plugin is a reply with 500.
    pub fn send(self) -> Reply {
        let (host, shown, touches) = (self.host, self.shown(), self.touches);
        let verb = if self.touches { Verb::Get } else { self.verb };
        if let Err(invalid) = check_operation(verb, self.key, self.content_type, &self.value) {
            return host.refused(&shown, Outcome::Refused(invalid.into()));
        }
        let method = if touches { "PATCH" } else { self.verb.method() };
        let origin = host.client(method, self.client, self.headers.clone());
        let prefix = match host.before_request(&format!("/k/{}", self.key), self.query, &origin) {
            Ok(prefix) => prefix,
            Err(refusal) => return host.refused(&shown, Outcome::Refused(refusal)),
        };
        let request = vkog_engine::Request {
            verb: self.verb,
            key: format!("{prefix}{}", self.key),
            content_type: self.media_type(),
            query: self.query.to_owned(),
            conditions: self.conditions(),
            arrived: host.engine().revision(),
            depth: 0,
            cause: Cause::Request,
            states: CallStates::default(),
            value: self.value,
            origin,
            form: Form::Sent,
            reads: Reads::Linearizable,
            transforms: Transforms::default(),
            guarded: Default::default(),
        };
        let (send, done) = channel();
        logged(&host.dispatch, || {
            let on_done = move |outcome, headers| _ = send.send((outcome, headers));
            if touches { host.engine().touch(request, on_done) } else { host.engine().run(request, on_done) }
        });
        let Ok((outcome, headers)) = done.recv() else { panic!("{shown} panicked in the host") };
        Reply::new(shown, outcome, headers, host.log())
    }

    /// Returns a description of the request for failed assertions.
    fn shown(&self) -> String {
        let Self { verb, key, value, headers, .. } = self;
        let method = if self.touches { "PATCH" } else { verb.method() };
        format!("{method} {key:?} {headers:?}, {} bytes", value.len())
    }

    fn operation(self) -> Operation {
        Operation {
            verb: self.verb,
            key: self.key.to_owned(),
            content_type: self.media_type(),
            conditions: self.conditions(),
            headers: self.headers.into_iter().map(|(name, value)| (Cow::Owned(name), value)).collect(),
            value: self.value.into(),
            hidden: false,
            transforms: Transforms::default(),
            states: Default::default(),
            guarded: Default::default(),
            touches: self.touches,
        }
    }

    fn conditions(&self) -> Conditions {
        let if_match = self.if_revision.map(|revision| Revisions::These(vec![revision]));
        Conditions { if_match, if_none_match: None }
    }

    /// Returns the media type for the engine: the default if the test sets none; empty for operations without a value.
    fn media_type(&self) -> Cow<'static, str> {
        match self.verb {
            Verb::Get | Verb::Delete => "".into(),
            Verb::Post | Verb::Put => match media_type(self.content_type.as_bytes()) {
                Ok(name) => owned_content_type(name),
                Err(_) => self.content_type.to_owned().into(),
            },
        }
    }
}

/// The client of a test.
pub(crate) struct Client {
    pub(crate) method: &'static str,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) address: String,
    pub(crate) token: String,
}

impl Origin for Client {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes())
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.headers.get(index).map(|(name, value)| (name.as_str(), value.as_bytes()))
    }

    fn client(&self) -> &str {
        &self.address
    }

    fn token(&self) -> &str {
        &self.token
    }

    fn method(&self) -> &str {
        self.method
    }
}

/// An open watch: [`TestHost::watch`].
pub struct Watch<'a> {
    host: &'a TestHost,
    watcher: Watcher<MemoryStore>,
    /// The key prefix of its request.
    prefix: String,
    end: Option<Reply>,
}

/// A change that a watch has delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The revision of the change.
    pub revision: u64,
    /// The value that was written; `None` if the entry was removed.
    pub value: Option<Vec<u8>>,
    /// A plugin removed the entry because it has expired.
    pub expired: bool,
}

impl Watch<'_> {
    /// Returns the changes since the last call, in the order of their revisions. Does not wait for further changes.
    /// Plugins see each change as a get; a change that they hide or refuse is left out.
    pub fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(Arc::clone(&flag));
        while self.end.is_none() && flag.0.swap(false, SeqCst) {
            loop {
                match logged(&self.host.dispatch, || self.watcher.poll(&Context::from_waker(&waker))) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(event)) => {
                        let entry = event.entry();
                        let value = (!event.is_removal()).then(|| entry.value().to_vec());
                        let (key, expired) = (seen(entry.key(), &self.prefix), event.is_expiry());
                        changes.push(Change { key, revision: event.revision(), value, expired });
                    }
                    Poll::Ready(Err(end)) => {
                        let outcome = match end {
                            WatchEnd::Refused(refusal) => Outcome::Refused(refusal),
                            WatchEnd::Unwatchable(_) | WatchEnd::Stopped => Outcome::Absent,
                        };
                        self.end = Some(self.host.refused("a watch", outcome));
                        break;
                    }
                }
            }
        }
        changes
    }

    /// Returns the refusal of the plugin that ended the watch, or a 404 if the change feed no longer has the next
    /// change; `None` while the watch is open. [`changes`](Self::changes) updates it.
    pub fn end(&self) -> Option<&Reply> {
        self.end.as_ref()
    }
}

/// Records that a task was woken.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}
