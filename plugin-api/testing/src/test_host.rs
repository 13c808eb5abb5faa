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
use vkog_store::MemoryStore;

/// How long requests of plugins may take to end when the plugins end.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Plugins around a store in memory. Any thread may send requests; what concerns the whole host needs it exclusively.
pub struct TestHost {
    setup: Setup,
    running: Running,
    clock: Arc<Clock>,
    pub(crate) log: Log,
    pub(crate) dispatch: Dispatch,
}

/// The time in milliseconds: what the host's clock shows, which may jump, and what has passed, by which plugins tick.
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
        Ok(Self { setup, running, clock, log, dispatch })
    }

    pub(crate) fn engine(&self) -> &Arc<Engine<MemoryStore>> {
        &self.running.engine
    }

    /// Lets the next writes and deletes fail after all guards have passed, so that plugins must undo what they did. `count` is
    /// the number of these requests; a batch is one.
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

    /// The time on the host's clock.
    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.clock.now.load(SeqCst))
    }

    /// Sets the host's clock, forwards or backwards, as an operator may. No time passes: nothing ticks.
    pub fn set_time(&self, now: SystemTime) {
        self.clock.now.store(millis(now), SeqCst);
    }

    /// Lets time pass. Every tick that falls due runs at its time, in order, before this returns.
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

    /// Calls the `tick` of a plugin now, whether it is due or not, and returns how long the plugin wants to wait until the
    /// next one.
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

    /// The value of a metric that a plugin publishes ([`Host::counter`](vkog_plugin_api::Host::counter),
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

    /// The log so far, a line per message: level, plugin and text. It lacks what a plugin logs on a thread of its own.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Whether a plugin is in quarantine because it panicked too often.
    pub fn is_quarantined(&self, plugin: &str) -> bool {
        let chain = self.engine().plugins().chain();
        chain.members().iter().any(|member| member.name() == plugin && member.is_quarantined())
    }

    /// Ends the plugins, then creates and starts them again with the same entries, as a restart of the server does. Their
    /// metrics start at 0.
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

    /// Gives a plugin other settings, as JSON, as a server does that reloads its configuration: through `settings_changed` if
    /// the plugin has that hook, otherwise by a new instance that replaces the old one.
    ///
    /// # Errors
    ///
    /// The plugin rejects the settings. It continues with the old ones.
    ///
    /// # Panics
    ///
    /// There is no such plugin.
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
        // A panic is for the test's own output.
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

    /// Lets time pass, with every tick that falls due on the way, in order.
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

/// The pause until the next tick, in milliseconds; at least one, because time must pass for a test to end.
fn pause_of(pause: Duration) -> u64 {
    u64::try_from(pause.as_millis()).unwrap_or(u64::MAX).max(1)
}
