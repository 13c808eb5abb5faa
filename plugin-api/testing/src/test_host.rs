//! The test host: the server's engine with a store in memory, and a clock that the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tracing::Dispatch;

use crate::log::{Log, logged};
use crate::setup::{Candidate, Setup, StartError};
use vkog_engine::Engine;
use vkog_plugin_api::export;
use vkog_plugin_host::{HostContext, Member, Registry};
use vkog_store::{Entry, MemoryStore, NewEntry, Store};

/// The timeout for hooks in flight when plugins are stopped or replaced.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A host with plugins around a store in memory: [`Setup::start`]. Several threads may send requests through a shared
/// reference. Dropping it ends the plugins.
pub struct TestHost {
    setup: Setup,
    running: Running,
    clock: Arc<Clock>,
    pub(crate) token: Mutex<String>,
    pub(crate) log: Log,
    pub(crate) dispatch: Dispatch,
}

/// Two times in milliseconds: the host's clock, which may jump, and the elapsed time, by which plugins tick.
struct Clock {
    now: AtomicU64,
    passed: AtomicU64,
}

/// An instance of each plugin, from its creation to its end.
struct Running {
    store: MemoryStore,
    engine: Arc<Engine<MemoryStore>>,
    /// The plugins that tick, and when each is due, by [`Clock::passed`].
    ticks: Mutex<Vec<(Arc<Member>, u64)>>,
}

impl TestHost {
    pub(crate) fn new(setup: Setup) -> Result<Self, StartError> {
        let log = Log::default();
        let dispatch = log.dispatch();
        let clock = Arc::new(Clock { now: AtomicU64::new(millis(setup.now)), passed: AtomicU64::new(0) });
        let running = Running::new(&setup, MemoryStore::default(), &clock, &dispatch)?;
        Ok(Self { setup, running, clock, token: Mutex::default(), log, dispatch })
    }

    pub(crate) fn engine(&self) -> &Arc<Engine<MemoryStore>> {
        &self.running.engine
    }

    /// Lets the next `count` writes and removals fail with 503 after all guards have passed, as a broken disk does. So
    /// the undo hooks of all plugins run. A batch counts as one.
    ///
    /// ```
    /// # use vkog_plugin_testing::Setup;
    /// let host = Setup::new().start();
    /// host.fail_writes(1);
    /// host.put("a", "1").expect(503);
    /// host.put("a", "1").expect(200);
    /// ```
    pub fn fail_writes(&self, count: u64) {
        self.running.store.fail_updates(count);
    }

    /// Sets the name of the access token of all further requests; empty for none, which is the default.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use vkog_plugin_testing::{Setup, plugin};
    /// # struct Mine;
    /// # impl Plugin for Mine { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine) } }
    /// impl BeforeRequest for Mine {
    ///     fn before_request(&self, request: &mut HttpRequest<'_>) -> Verdict {
    ///         request.set_key_prefix(request.token().ok_or_else(|| Refusal::new(401, "a token is needed"))?);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let host = Setup::new().load_other(plugin!(Mine, "mine")).start();
    /// host.put("a", "1").expect(401);
    /// host.use_token("ann");
    /// host.put("a", "1").expect(200);
    /// assert_eq!(host.keys("").expect("no plugin refuses"), ["a"]);
    /// ```
    pub fn use_token(&self, name: &str) {
        name.clone_into(&mut self.token.lock());
    }

    /// Returns the time of the host's clock.
    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.clock.now.load(SeqCst))
    }

    /// Sets the host's clock, forwards or backwards, as an operator may. No time passes, so no `tick` is called.
    pub fn set_time(&self, now: SystemTime) {
        self.clock.now.store(millis(now), SeqCst);
    }

    /// Lets time pass. Calls every `tick` that becomes due, in order, with the clock at its due time, before it
    /// returns.
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
    /// let host = Setup::new().load_other(plugin!(Heart, "heart")).start();
    /// assert_eq!(host.metric("heart", "beats_total"), 1);
    /// host.advance(Duration::from_secs(60));
    /// assert_eq!(host.metric("heart", "beats_total"), 61);
    /// ```
    pub fn advance(&self, time: Duration) {
        let end = self.clock.passed.load(SeqCst) + u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        logged(&self.dispatch, || self.running.tick_until(&self.clock, end));
    }

    /// Calls the `tick` of a plugin now, whether it is due or not, and returns how long the plugin wants to wait until
    /// the next one.
    ///
    /// # Panics
    ///
    /// The plugin has no `tick`, or is in quarantine.
    #[track_caller]
    pub fn tick(&self, plugin: &str) -> Duration {
        let mut ticks = self.running.ticks.lock();
        let found = ticks.iter_mut().find(|(member, _)| member.name() == plugin);
        let ticked = found.and_then(|(member, due)| {
            let pause = logged(&self.dispatch, || member.tick())?;
            *due = self.clock.passed.load(SeqCst) + pause_of(pause);
            Some(pause)
        });
        ticked.unwrap_or_else(|| panic!("no plugin \"{plugin}\" ticks"))
    }

    /// Returns the value of a metric that a plugin publishes ([`Host::counter`](vkog_plugin_api::Host::counter),
    /// [`Host::gauge`](vkog_plugin_api::Host::gauge)).
    ///
    /// # Panics
    ///
    /// The plugin publishes no metric of that name.
    #[track_caller]
    pub fn metric(&self, plugin: &str, name: &str) -> i64 {
        let metrics = self.engine().plugins().context().metrics(plugin);
        let found = metrics.iter().find(|(own, _)| own == name).map(|(_, metric)| metric.value());
        let known: Vec<&str> = metrics.iter().map(|(own, _)| own.as_str()).collect();
        found.unwrap_or_else(|| panic!("plugin \"{plugin}\" publishes no \"{name}\", but {known:?}"))
    }

    /// Returns the log so far, one line per message: `WARN short: the queue is full`. Lines that a plugin logs on its
    /// own threads are missing.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Whether a plugin is in quarantine, after five panics within a minute of real time.
    pub fn is_quarantined(&self, plugin: &str) -> bool {
        let chain = self.engine().plugins().chain();
        chain.members().iter().any(|member| member.name() == plugin && member.is_quarantined())
    }

    /// Ends the plugins, then creates and starts them again with the same entries and details, as a restart of the
    /// server does. Metrics start at 0. The clock does not change.
    ///
    /// # Panics
    ///
    /// A plugin does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        let store = self.running.store.clone();
        self.running.stop();
        let started = Running::new(&self.setup, store, &self.clock, &self.dispatch);
        self.running = started.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends the plugins, and starts those of another setup with the same entries and details, as a restart of the server with
    /// other plugins does. The clock and the limits do not change.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use vkog_plugin_testing::{Setup, plugin};
    /// # struct Flip;
    /// # impl Plugin for Flip { type Settings = NoSettings; fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Flip) } }
    /// # fn flip(value: &[u8]) -> Vec<u8> { value.iter().map(|byte| !byte).collect() }
    /// # impl BeforePut for Flip { fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict { put.replace_value(&flip(put.value())); Ok(()) } }
    /// # impl ReadGet for Flip { fn read_get(&self, read: &mut Read<'_>) -> Verdict { read.replace_value(&flip(read.value())); Ok(()) } }
    /// let mut host = Setup::new().load_other(plugin!(Flip, "flip")).start();
    /// host.put("a", "1").expect(200);
    /// host.restart_with(Setup::new());
    /// host.get("a").refused(503, "plugin \"flip\" is not loaded");
    /// ```
    ///
    /// # Panics
    ///
    /// A plugin does not start.
    #[track_caller]
    pub fn restart_with(&mut self, setup: Setup) {
        self.setup = Setup { now: self.setup.now, max_size: self.setup.max_size, ..setup };
        self.restart();
    }

    /// Returns the value of an entry as it is stored, without calling a plugin; `None` if there is none.
    pub fn stored(&self, key: &str) -> Option<Vec<u8>> {
        let (found, _) = self.engine().store().read(key, |entry| entry.map(|entry| entry.value().to_vec()));
        found
    }

    /// Makes the entry under a key the same as on another test host, as if both were hosts of one store and that one had just
    /// changed it: calls the `applied` hooks of this host's plugins and no others. If the other host has no such entry, it is
    /// removed.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// # use vkog_plugin_testing::{Setup, plugin};
    /// # struct Sum { bytes: Gauge }
    /// # impl Plugin for Sum { type Settings = NoSettings; fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
    /// #     Ok(Sum { bytes: host.gauge("bytes", "Bytes.") }) } }
    /// impl Applied for Sum {
    ///     fn applied(&self, change: &AppliedChange<'_>) {
    ///         let size = |entry: Option<Entry<'_>>| entry.map_or(0, |entry| entry.value().len() as i64);
    ///         self.bytes.add(size(change.entry_after()) - size(change.entry_before()));
    ///     }
    /// }
    ///
    /// let setup = Setup::new().load_other(plugin!(Sum, "sum"));
    /// let (one, other) = (setup.clone().start(), setup.start());
    /// other.put("a", "1234").expect(200);
    /// one.apply(&other, "a");
    /// one.get("a").expect(200).is("1234");
    /// assert_eq!(one.metric("sum", "bytes"), 4);
    /// ```
    pub fn apply(&self, other: &TestHost, key: &str) {
        let (entry, ()) = other.running.store.read(key, |entry| {
            entry.map(|entry| {
                let (value, content_type, details) = (entry.value(), entry.content_type(), entry.details().to_vec());
                Entry::new(key, &NewEntry { value, content_type, details })
            })
        });
        logged(&self.dispatch, || self.running.store.change_elsewhere(key, entry, false));
    }

    /// Removes an entry as another host of the same store does when it has expired: calls the `applied` hooks of the plugins and
    /// no others.
    pub fn apply_expiry(&self, key: &str) {
        logged(&self.dispatch, || self.running.store.change_elsewhere(key, None, true));
    }

    /// Sets whether this host leads ([`Host::leads`](vkog_plugin_api::Host::leads)), as it does at first.
    pub fn set_leads(&self, leads: bool) {
        self.running.store.set_leads(leads);
    }

    /// Changes the settings of a plugin, as a reload of the configuration does: through `settings_changed` if the
    /// plugin has that hook, otherwise by a new instance that replaces the old one. `json` is the whole table, as a
    /// JSON object.
    ///
    /// # Errors
    ///
    /// The plugin rejects the settings. It continues with the old ones.
    ///
    /// # Panics
    ///
    /// No plugin has this name.
    #[track_caller]
    pub fn change_settings(&mut self, plugin: &str, json: &str) -> Result<(), StartError> {
        let Some(position) = self.setup.candidates.iter().position(|candidate| candidate.name() == plugin) else {
            panic!("no plugin \"{plugin}\" is loaded");
        };
        let mut candidate = self.setup.candidates[position].clone();
        json.clone_into(&mut candidate.settings);
        logged(&self.dispatch, || self.running.reconfigure(&candidate, &self.clock))?;
        self.setup.candidates[position] = candidate;
        Ok(())
    }
}

impl Running {
    fn new(setup: &Setup, store: MemoryStore, clock: &Arc<Clock>, dispatch: &Dispatch) -> Result<Self, StartError> {
        // A panic belongs into the output of the test.
        export::leave_panics();
        let shown = Arc::clone(clock);
        let context = Arc::new(HostContext::new(setup.max_size, move || shown.now.load(SeqCst)));
        logged(dispatch, || {
            let members = setup.candidates.iter().map(|candidate| candidate.create(&context));
            let members = members.collect::<Result<Vec<_>, _>>()?;
            let passed = clock.passed.load(SeqCst);
            let registry = Registry::linked(members, setup.order.clone(), Arc::clone(&context));
            let engine = Engine::single_threaded(store.clone(), registry)?;
            let chain = engine.plugins().chain();
            let ticks = chain.members().iter().filter(|member| member.has("tick"));
            let ticks = Mutex::new(ticks.map(|member| (Arc::clone(member), passed)).collect());
            drop(chain);
            let running = Self { store, engine, ticks };
            running.tick_until(clock, passed);
            Ok(running)
        })
    }

    /// Lets time pass, and calls every tick that becomes due, in order.
    fn tick_until(&self, clock: &Clock, end: u64) {
        let mut ticks = self.ticks.lock();
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

    fn reconfigure(&self, candidate: &Candidate, clock: &Clock) -> Result<(), StartError> {
        let plugins = self.engine.plugins();
        let chain = plugins.chain();
        let Some(old) = chain.members().iter().find(|member| member.name() == candidate.name()) else { return Ok(()) };
        let rejected = |cause| StartError { plugin: candidate.name().to_owned(), cause };
        if let Some(changed) = old.settings_changed(&candidate.settings) {
            return changed.map_err(rejected);
        }
        drop(chain);
        let member = candidate.create(plugins.context())?;
        member.start(&*self.engine.scan()).map_err(rejected)?;
        let passed = clock.passed.load(SeqCst);
        let mut ticks = self.ticks.lock();
        ticks.retain(|(other, _)| other.name() != member.name());
        if member.has("tick") {
            ticks.push((Arc::clone(&member), passed));
        }
        drop(ticks);
        assert!(plugins.replace_linked(member), "a request of a plugin did not end within {TIMEOUT:?}");
        self.tick_until(clock, passed);
        Ok(())
    }

    /// Ends all plugins.
    fn stop(&self) {
        self.ticks.lock().clear();
        let abandoned = self.engine.plugins().stop(Instant::now() + TIMEOUT);
        assert!(
            abandoned.is_empty() || thread::panicking(),
            "did not end within {TIMEOUT:?}: {}",
            abandoned.join(", ")
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the time until the next tick in milliseconds, at least 1. Without it, a tick that returns zero would never
/// let a test end.
fn pause_of(pause: Duration) -> u64 {
    u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1)
}
