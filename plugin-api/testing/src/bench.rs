//! What a test sets up, and what it does with it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use tracing::Dispatch;

use super::log::{Log, logged};
use super::store::{Done, InMemory, Store, Wanted, lock};
use vkog_plugin_api::abi::{PluginModuleRef, Verb};
use vkog_plugin_api::export::{self, Exported};
use vkog_plugin_host::{Chain, Conduct, Failed, Member, Origin, Port, Services};

/// When a test begins, unless it says so: 1 January 2026, 00:00 UTC.
const BEGIN: Duration = Duration::from_secs(1_767_225_600);
/// [`Host::max_size`](vkog_plugin_api::Host::max_size), unless the test says so.
const MAX_SIZE: u64 = 128 << 20;

/// A plugin for a [`Setup`]: [`plugin!`](super::plugin).
#[derive(Clone)]
pub struct Candidate {
    module: PluginModuleRef,
    settings: String,
}

impl Candidate {
    #[doc(hidden)]
    pub fn new(module: PluginModuleRef) -> Self {
        Self { module, settings: "{}".to_owned() }
    }

    fn name(&self) -> &'static str {
        self.module.name().as_str()
    }

    fn create(&self, port: &Arc<Port>) -> Result<Arc<Member>, String> {
        // SAFETY: this program itself made the module, so it has the layout that this program knows, and stays.
        let created = unsafe { Member::create(self.module, &self.settings, port, Conduct::default()) };
        created.map(Arc::new).map_err(|failed| self.failure(failed))
    }

    fn failure(&self, failed: Failed) -> String {
        let name = self.name();
        match failed {
            Failed::Settings(said) => format!("plugin \"{name}\" cannot read its settings: {said}"),
            Failed::Error(said) => format!("plugin \"{name}\" does not start: {said}"),
            Failed::Panicked(said) => format!("plugin \"{name}\" panicked while starting: {said}"),
        }
    }
}

/// What a [`Bench`] is to be: the plugins, their settings and order, the time.
#[derive(Clone)]
pub struct Setup {
    candidates: Vec<Candidate>,
    order: Vec<String>,
    now: SystemTime,
    max_size: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// A plain map, without a plugin.
    pub fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH + BEGIN;
        Self { candidates: Vec::new(), order: Vec::new(), now, max_size: MAX_SIZE }
    }

    /// With the plugin that this crate exports ([`export_plugin!`](vkog_plugin_api::export_plugin)), under the crate's name.
    pub fn load<P: Exported>(self) -> Self {
        self.load_other(Candidate::new(P::module()))
    }

    /// With a plugin more, under a name of its own: [`plugin!`](super::plugin).
    pub fn load_other(mut self, candidate: Candidate) -> Self {
        let name = candidate.name();
        assert!(self.candidates.iter().all(|other| other.name() != name), "two plugins are named \"{name}\"");
        self.candidates.push(candidate);
        self
    }

    /// With settings for the plugin that was named last: its table of the configuration, as JSON.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use vkog_plugin_testing::{Setup, plugin};
    /// # #[derive(serde::Deserialize)]
    /// # #[serde(crate = "vkog_plugin_api::serde")]
    /// # struct Settings { limit: usize }
    /// # struct Short { limit: usize }
    /// # impl Plugin for Short { type Settings = Settings; fn create(_: Host, s: Settings) -> Result<Self, CreateError> { Ok(Short { limit: s.limit }) } }
    /// # impl BeforePut for Short { fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
    /// #     if put.value().len() > self.limit { Err(Refusal::new(413, "too long")) } else { Ok(()) } } }
    /// let setup = Setup::new().load_other(plugin!(Short, "short")).settings(r#"{"limit": 3}"#);
    /// setup.start().put("a", "long").refused(413, "too long");
    /// ```
    pub fn settings(mut self, json: &str) -> Self {
        let Some(last) = self.candidates.last_mut() else { panic!("settings are for a plugin: load one first") };
        json.clone_into(&mut last.settings);
        self
    }

    /// With these plugins first, in this order, as `plugins.order` of the configuration has it.
    pub fn order(mut self, names: &[&str]) -> Self {
        self.order = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// With this time on the host's clock ([`Host::now`](vkog_plugin_api::Host::now)).
    pub fn at(mut self, now: SystemTime) -> Self {
        self.now = now;
        self
    }

    /// With this `--max-size` ([`Host::max_size`](vkog_plugin_api::Host::max_size)).
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.max_size = bytes;
        self
    }

    /// Creates and starts the plugins, and has them tick for the first time, as a server does.
    ///
    /// # Panics
    ///
    /// A plugin does not start.
    #[track_caller]
    pub fn start(self) -> Bench {
        self.try_start().unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`start`](Self::start).
    ///
    /// # Errors
    ///
    /// What a plugin said that cannot be created or does not start.
    pub fn try_start(self) -> Result<Bench, String> {
        let log = Log::default();
        let dispatch = log.dispatch();
        let clock = Arc::new(Clock { now: AtomicU64::new(millis(self.now)), passed: AtomicU64::new(0) });
        let running = Running::new(&self, Arc::default(), &clock, &dispatch)?;
        Ok(Bench { setup: self, running, clock, log, dispatch })
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time, in milliseconds: what the host's clock shows, which may jump, and what has passed, by which plugins tick.
struct Clock {
    now: AtomicU64,
    passed: AtomicU64,
}

/// Plugins from their creation to their end.
struct Running {
    store: Arc<InMemory>,
    port: Arc<Port>,
    /// Who ticks, and when again, by [`Clock::passed`].
    ticks: Mutex<Vec<(Arc<Member>, u64)>>,
}

impl Running {
    fn new(setup: &Setup, store: Arc<Store>, clock: &Arc<Clock>, dispatch: &Dispatch) -> Result<Self, String> {
        // What panics in a test is the test's to print.
        export::leave_panics();
        let shown = Arc::clone(clock);
        let port = Arc::new(Port::new(setup.max_size, move || shown.now.load(SeqCst)));
        let started = logged(dispatch, || {
            let members = setup.candidates.iter().map(|candidate| candidate.create(&port));
            let chain = Chain::new(members.collect::<Result<_, _>>()?, &setup.order);
            for member in chain.members() {
                let Some(candidate) = setup.candidates.iter().find(|other| other.name() == member.name()) else {
                    continue;
                };
                member.start(&|each| store.for_each(each)).map_err(|failed| candidate.failure(failed))?;
            }
            Ok::<_, String>(chain)
        });
        let chain = started?;
        let passed = clock.passed.load(SeqCst);
        let ticks = chain.members().iter().filter(|member| member.has("tick"));
        let ticks = Mutex::new(ticks.map(|member| (Arc::clone(member), passed)).collect());
        let store = Arc::new(InMemory::new(store, chain, setup.order.clone(), dispatch.clone()));
        let services: Weak<dyn Services> = Arc::<InMemory>::downgrade(&store);
        port.open(services);
        let running = Self { store, port, ticks };
        running.tick_until(clock, passed);
        Ok(running)
    }

    /// Lets time pass, with every tick that falls due on the way, in order.
    fn tick_until(&self, clock: &Clock, end: u64) {
        let mut ticks = lock(&self.ticks);
        let proceed = |to: u64| {
            let passed = clock.passed.swap(to, SeqCst);
            clock.now.fetch_add(to - passed, SeqCst);
        };
        loop {
            let due = ticks.iter().enumerate().map(|(index, (_, due))| (*due, index)).min();
            let Some((due, index)) = due.filter(|(due, _)| *due <= end) else { break };
            proceed(due.max(clock.passed.load(SeqCst)));
            match ticks[index].0.tick() {
                Some(pause) => ticks[index].1 = clock.passed.load(SeqCst) + pause_of(pause),
                None => drop(ticks.remove(index)),
            }
        }
        proceed(end);
    }

    /// Ends all plugins.
    fn stop(&self) {
        lock(&self.ticks).clear();
        self.store.exchange(Chain::new(Vec::new(), &[]));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A plugin that is to tick again at once does so after a millisecond: time has to pass for a test to end.
fn pause_of(pause: Duration) -> u64 {
    u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Plugins around a store in memory. Any thread may ask it; what a test does to it as a whole needs it alone.
pub struct Bench {
    setup: Setup,
    running: Running,
    clock: Arc<Clock>,
    log: Log,
    dispatch: Dispatch,
}

impl Bench {
    /// Reads a key.
    pub fn get(&self, key: &str) -> Reply {
        self.request(Verb::Get, key).send()
    }

    /// Creates a key.
    pub fn post(&self, key: &str, value: impl AsRef<[u8]>) -> Reply {
        self.request(Verb::Post, key).body(value).send()
    }

    /// Updates a key.
    pub fn put(&self, key: &str, value: impl AsRef<[u8]>) -> Reply {
        self.request(Verb::Put, key).body(value).send()
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) -> Reply {
        self.request(Verb::Delete, key).send()
    }

    /// A request for a key, to be put together.
    ///
    /// ```
    /// use vkog_plugin_api::Verb;
    /// use vkog_plugin_testing::Setup;
    ///
    /// let bench = Setup::new().start();
    /// let put = bench.request(Verb::Put, "page").header("X-Token", "s3cret").query("draft").body("<p>");
    /// let revision = put.content_type("text/html").send().expect(200).revision();
    /// bench.get("page").has("Content-Type", "text/html");
    /// bench.request(Verb::Delete, "page").if_revision(revision + 1).send().expect(412);
    /// ```
    pub fn request<'a>(&'a self, verb: Verb, key: &'a str) -> Request<'a> {
        Request {
            bench: self,
            verb,
            key,
            value: Vec::new(),
            content_type: "",
            query: "",
            headers: Vec::new(),
            client: "127.0.0.1:50000",
            if_revision: None,
        }
    }

    /// Has the next so many writes and removals fail, after all guards have passed: plugins are to undo what they did.
    ///
    /// ```
    /// # use vkog_plugin_testing::Setup;
    /// let bench = Setup::new().start();
    /// bench.fail_writes(1);
    /// bench.put("a", "1").expect(503);
    /// bench.put("a", "1").expect(200);
    /// ```
    pub fn fail_writes(&self, count: u64) {
        self.running.store.store.fail(count);
    }

    /// What the host's clock shows.
    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.clock.now.load(SeqCst))
    }

    /// Sets the host's clock, forwards or backwards, as an operator may. No time passes by that: nothing ticks.
    pub fn set_time(&self, now: SystemTime) {
        self.clock.now.store(millis(now), SeqCst);
    }

    /// Lets time pass. Every tick that falls due is run at its time, in order, before this returns.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use vkog_plugin_testing::{Setup, plugin};
    /// # use std::time::Duration;
    /// # struct Heart { beats: Counter }
    /// # impl Plugin for Heart { type Settings = NoSettings; fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
    /// #     Ok(Heart { beats: host.counter("beats_total", "Beats.") }) } }
    /// impl Tick for Heart {
    ///     fn tick(&self) -> Duration {
    ///         self.beats.add(1);
    ///         Duration::from_secs(1)
    ///     }
    /// }
    ///
    /// let bench = Setup::new().load_other(plugin!(Heart, "heart")).start();
    /// assert_eq!(bench.metric("heart", "beats_total"), 1);
    /// bench.advance(Duration::from_secs(60));
    /// assert_eq!(bench.metric("heart", "beats_total"), 61);
    /// ```
    pub fn advance(&self, time: Duration) {
        let end = self.clock.passed.load(SeqCst) + u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        logged(&self.dispatch, || self.running.tick_until(&self.clock, end));
    }

    /// Has a plugin tick now, whenever it wanted to, and gives how long it wants to wait until the next time.
    ///
    /// # Panics
    ///
    /// It has no tick, or is in quarantine.
    #[track_caller]
    pub fn tick(&self, plugin: &str) -> Duration {
        let mut ticks = lock(&self.running.ticks);
        let found = ticks.iter_mut().find(|(member, _)| member.name() == plugin);
        let ticked = found.and_then(|(member, due)| {
            let pause = logged(&self.dispatch, || member.tick())?;
            *due = self.clock.passed.load(SeqCst) + pause_of(pause);
            Some(pause)
        });
        ticked.unwrap_or_else(|| panic!("no plugin \"{plugin}\" ticks"))
    }

    /// A number that a plugin publishes ([`Host::counter`](vkog_plugin_api::Host::counter), [`Host::gauge`](vkog_plugin_api::Host::gauge)).
    ///
    /// # Panics
    ///
    /// It publishes none of that name.
    #[track_caller]
    pub fn metric(&self, plugin: &str, name: &str) -> i64 {
        let metrics = self.running.port.metrics(plugin);
        let found = metrics.iter().find(|(own, _)| own == name).map(|(_, metric)| metric.value());
        let known: Vec<&str> = metrics.iter().map(|(own, _)| own.as_str()).collect();
        found.unwrap_or_else(|| panic!("plugin \"{plugin}\" publishes no \"{name}\", but {known:?}"))
    }

    /// What was logged so far, a line each: level, plugin and text. What a plugin logs on a thread of its own is not there.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Whether a plugin panicked so often that it is in quarantine.
    pub fn is_quarantined(&self, plugin: &str) -> bool {
        self.running.store.chain().members().iter().any(|member| member.name() == plugin && member.is_quarantined())
    }

    /// Ends the plugins, and creates and starts them anew around the same entries, as a server that stops and starts. Their
    /// numbers begin at 0.
    ///
    /// # Panics
    ///
    /// A plugin does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        let store = Arc::clone(&self.running.store.store);
        self.running.stop();
        let started = Running::new(&self.setup, store, &self.clock, &self.dispatch);
        self.running = started.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Gives a plugin other settings, as JSON, as a server does that is told to take in its configuration: by
    /// `settings_changed` where it has that hook, else by a new instance in the old one's place.
    ///
    /// # Errors
    ///
    /// What the plugin said. It goes on as it was.
    ///
    /// # Panics
    ///
    /// There is no such plugin.
    #[track_caller]
    pub fn change_settings(&mut self, plugin: &str, json: &str) -> Result<(), String> {
        let Some(position) = self.setup.candidates.iter().position(|candidate| candidate.name() == plugin) else {
            panic!("no plugin \"{plugin}\" is loaded");
        };
        let candidate = Candidate { settings: json.to_owned(), ..self.setup.candidates[position].clone() };
        logged(&self.dispatch, || self.running.reconfigure(&candidate, &self.setup.order, &self.clock))?;
        self.setup.candidates[position] = candidate;
        Ok(())
    }
}

impl Running {
    fn reconfigure(&self, candidate: &Candidate, order: &[String], clock: &Clock) -> Result<(), String> {
        let chain = self.store.chain();
        let mut members = chain.members().to_vec();
        drop(chain);
        let Some(place) = members.iter_mut().find(|member| member.name() == candidate.name()) else { return Ok(()) };
        match place.settings_changed(&candidate.settings) {
            Some(Ok(())) => return Ok(()),
            Some(Err(failed)) => return Err(candidate.failure(failed)),
            None => {}
        }
        let member = candidate.create(&self.port)?;
        member.start(&|each| self.store.store.for_each(each)).map_err(|failed| candidate.failure(failed))?;
        *place = Arc::clone(&member);
        self.store.exchange(Chain::new(members, order));
        let mut ticks = lock(&self.ticks);
        ticks.retain(|(other, _)| other.name() != member.name());
        let passed = clock.passed.load(SeqCst);
        if member.has("tick") {
            ticks.push((member, passed));
        }
        drop(ticks);
        self.tick_until(clock, passed);
        Ok(())
    }
}

/// A request that is being put together.
pub struct Request<'a> {
    bench: &'a Bench,
    verb: Verb,
    key: &'a str,
    value: Vec<u8>,
    content_type: &'a str,
    query: &'a str,
    headers: Vec<(String, String)>,
    client: &'a str,
    if_revision: Option<u64>,
}

impl<'a> Request<'a> {
    /// Adds a header, for hooks to see. The bench itself heeds none.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the query, without the question mark.
    pub fn query(mut self, query: &'a str) -> Self {
        self.query = query;
        self
    }

    /// Sets the value to be written.
    pub fn body(mut self, value: impl AsRef<[u8]>) -> Self {
        self.value = value.as_ref().to_vec();
        self
    }

    /// Sets the media type of the value.
    pub fn content_type(mut self, content_type: &'a str) -> Self {
        self.content_type = content_type;
        self.header("Content-Type", content_type)
    }

    /// Sets the client's address, `ip:port`.
    pub fn client(mut self, address: &'a str) -> Self {
        self.client = address;
        self
    }

    /// Has it refused with 412 if the entry has another revision, as `If-Match` does.
    pub fn if_revision(mut self, revision: u64) -> Self {
        self.if_revision = Some(revision);
        self.header("If-Match", &format!("\"{revision}\""))
    }

    /// Sends it.
    pub fn send(self) -> Reply {
        let Self { bench, verb, key, value, content_type, query, headers, client, if_revision } = self;
        let request = format!("{} {key:?} {headers:?}, {} bytes", verb.method(), value.len());
        let origin = Client { headers, address: client };
        let wanted = Wanted { verb, key, value: &value, content_type, query, if_revision, depth: 0, origin: &origin };
        Reply::new(request, bench.running.store.run(&wanted), bench.log.text())
    }
}

struct Client<'a> {
    headers: Vec<(String, String)>,
    address: &'a str,
}

impl Origin for Client<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_bytes())
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.headers.get(index).map(|(name, value)| (name.as_str(), value.as_bytes()))
    }

    fn client(&self) -> &str {
        self.address
    }
}

/// What a client would get, and all that a failed assertion about it has to print.
#[derive(Clone)]
pub struct Reply {
    request: String,
    /// The status.
    pub status: u16,
    /// The headers: `Content-Type`, `ETag` and `Vkog-Plugin` as a server sends them, and those of plugins.
    pub headers: Vec<(String, String)>,
    /// The value that was read, or a text.
    pub body: Vec<u8>,
    log: String,
}

impl Reply {
    fn new(request: String, done: Done, log: String) -> Self {
        let mut headers = Vec::new();
        let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
        let (status, body) = match &done {
            Done::Found(entry, _) => {
                add("Content-Type", &entry.content_type);
                add("ETag", &format!("\"{}\"", entry.revision));
                (200, entry.value.clone())
            }
            Done::Written(revision, _) => {
                add("ETag", &format!("\"{revision}\""));
                (200, b"Ok".to_vec())
            }
            Done::Removed(..) => (200, b"Ok".to_vec()),
            Done::Absent => (404, b"Not Found".to_vec()),
            Done::Refused(refusal) => {
                if !refusal.plugin.is_empty() {
                    add("Vkog-Plugin", &refusal.plugin);
                }
                (refusal.status, refusal.message.clone().into_bytes())
            }
        };
        headers.extend(match done {
            Done::Found(_, added) | Done::Written(_, added) | Done::Removed(_, added) => added,
            Done::Absent => Vec::new(),
            Done::Refused(refusal) => refusal.headers,
        });
        Self { request, status, headers, body, log }
    }

    /// Asserts the status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "the status of {self}");
        self
    }

    /// Asserts a refusal: the status, and the first words of the message.
    #[track_caller]
    pub fn refused(self, status: u16, words: &str) -> Self {
        let reply = self.expect(status);
        assert!(reply.body.starts_with(words.as_bytes()), "no {words:?} at the beginning of {reply}");
        reply
    }

    /// Asserts the whole body.
    #[track_caller]
    pub fn is(self, body: impl AsRef<[u8]>) -> Self {
        assert!(self.body == body.as_ref(), "not the {} bytes that were expected: {self}", body.as_ref().len());
        self
    }

    /// Asserts a header.
    #[track_caller]
    pub fn has(self, name: &str, value: &str) -> Self {
        assert_eq!(self.header(name), Some(value), "the header {name} of {self}");
        self
    }

    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The revision that the `ETag` tells.
    ///
    /// # Panics
    ///
    /// There is none.
    #[track_caller]
    pub fn revision(&self) -> u64 {
        let revision = self.header("ETag").and_then(|tag| tag.trim_matches('"').parse().ok());
        revision.unwrap_or_else(|| panic!("no revision in {self}"))
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, status, headers, body, log } = self;
        write!(f, "{request}\n--- reply {status}, {} bytes\n", body.len())?;
        for (name, value) in headers {
            writeln!(f, "{name}: {value}")?;
        }
        write!(f, "{}\n--- log\n{log}", body[..body.len().min(1000)].escape_ascii())
    }
}
