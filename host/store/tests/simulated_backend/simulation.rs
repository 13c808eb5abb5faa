//! Three hosts on one engine, on one thread: although messages are delayed, reordered and lost, every reported outcome is true.
//!
//! A random number generator chooses every step: a client begins an operation, the engine gets a request, a host gets a response
//! or a change or completes what is due, a connection is lost, the engine forgets its past, a host is replaced. So a seed
//! determines the run. After each operation, and in the end:
//!
//! - A committed update saw the state before its revision, changed what it says, and was committed between call and outcome: the
//!   revisions are a linear order, for updates of several keys too.
//! - A linearizable read, a rejection and an update that only reads saw the state of a moment between call and outcome; a local
//!   read saw one state, no older than what this host has acknowledged.
//! - A refused update had no effect, and nothing that was acknowledged is missing.
//! - Every operation has one outcome. Every guard is committed or rolled back, once.
//! - Each watcher gets every change once and in order, also if it moves between hosts.
//! - A plugin with state counts the entries of its host exactly. When all is quiet, all hosts have the same entries.
//!
//! With `VKOG_FULL` in the environment, as `cargo xtask test --full` sets it, there are ten million steps instead of 200,000.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use vkog_store::{Entry, SharedOptions, SharedStore, Store as _, Update};

use crate::engine::{Engine, Link};
use crate::hosts::Host;
use crate::operations::{Found, KEYS, Operation, Outcome, Script};
use crate::random::Random;
use crate::watchers::Watcher;

const HOSTS: usize = 3;
/// The maximum number of operations in flight.
const OPERATIONS_MAX: usize = 24;

/// How often what goes wrong, in one run.
#[derive(Debug)]
struct Weather {
    /// In percent of the messages.
    lost: usize,
    refused: usize,
    /// The number of steps per event.
    disconnects: usize,
    compactions: usize,
    restarts: usize,
    history_max: u64,
}

impl Weather {
    fn random(random: &mut Random) -> Self {
        Self {
            lost: [0, 1, 10][random.below(3)],
            refused: [0, 2][random.below(2)],
            disconnects: [100, 400, 4000][random.below(3)],
            compactions: [100, 400, 4000][random.below(3)],
            restarts: [1000, 5000][random.below(2)],
            history_max: [2000, 1 << 20][random.below(2)],
        }
    }
}

/// The outcomes that have been reported.
type Reported = Arc<Mutex<Vec<(u64, Outcome)>>>;

struct World {
    random: Random,
    weather: Weather,
    engine: Arc<Engine>,
    hosts: Vec<Host>,
    /// The connections of hosts that were replaced: what they have sent may still arrive.
    former: Vec<Arc<Link>>,
    step: u64,
    /// When each host last lost its connection.
    lost_at: [u64; HOSTS],
    operations: HashMap<u64, Operation>,
    begun: u64,
    reported: Reported,
    /// Whether each update took effect; `None` if that is unknown.
    effects: HashMap<u64, Option<bool>>,
    watchers: Vec<(usize, Watcher)>,
    digest: DefaultHasher,
    counts: Counts,
}

/// The counts of a run.
#[derive(Default, Debug)]
struct Counts {
    steps: u64,
    operations: u64,
    committed: u64,
    rejected: u64,
    rolled_back: u64,
    unknown: u64,
    read: u64,
    refused_reads: u64,
    disconnects: u64,
    restarts: u64,
    events: u64,
    moves: u64,
    gaps: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (weather, engine) = (Weather::random(&mut random), Arc::<Engine>::default());
        let options = weather.options();
        Self {
            random,
            hosts: (0..HOSTS).map(|_| Host::new(&engine, options)).collect(),
            weather,
            engine,
            former: Vec::new(),
            step: 0,
            lost_at: [0; HOSTS],
            operations: HashMap::new(),
            begun: 0,
            reported: Reported::default(),
            effects: HashMap::new(),
            watchers: ["", "", "a/", "b/", "d"].iter().map(|prefix| (0, Watcher::new(prefix))).collect(),
            digest: DefaultHasher::new(),
            counts: Counts::default(),
        }
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.next_step();
            self.act();
            self.check_reported();
        }
        self.end();
    }

    fn next_step(&mut self) {
        self.step += 1;
        self.engine.with(|engine| engine.step = self.step);
    }

    fn act(&mut self) {
        let at = self.random.below(HOSTS);
        for (one_of, act) in [
            (self.weather.disconnects, Self::disconnect as fn(&mut Self, usize)),
            (self.weather.compactions, |this, _| this.engine.compact()),
            (self.weather.restarts, Self::restart),
        ] {
            if self.random.below(one_of) == 0 {
                return act(self, at);
            }
        }
        let Self { random, weather, hosts, .. } = self;
        let link = &hosts[at].link;
        match random.below(100) {
            0..20 => self.begin(at),
            20..43 => link.execute(random, weather.lost, weather.refused),
            43..60 => link.respond(random),
            60..77 => self.pass(at),
            77..90 => self.poll(at),
            90..93 => link.find_out(random),
            93 => {
                let former = self.former.last().filter(|_| random.percent(30));
                former.unwrap_or(link).execute_late(random);
            }
            94..96 if !link.is_up() => link.connect(),
            _ => self.watch(),
        }
    }

    fn pass(&mut self, at: usize) {
        self.hosts[at].link.pass(&mut self.random);
        self.hosts[at].start_plugin();
    }

    fn poll(&mut self, at: usize) {
        self.hosts[at].poll();
    }

    /// A client begins an operation on a host.
    fn begin(&mut self, at: usize) {
        if !self.hosts[at].start_plugin() || self.operations.len() >= OPERATIONS_MAX {
            return;
        }
        self.begun += 1;
        let (number, reported) = (self.begun, Arc::clone(&self.reported));
        let host = &self.hosts[at];
        let known = |key: &str| host.store.read(key, |entry| entry.map_or(0, Entry::revision)).0;
        let script = Script::random(&mut self.random, known);
        let was_closed = host.store.closed().is_some();
        let operation = Operation::new(number, script, at, self.step, was_closed);
        let (record, decide, script) = (Arc::clone(&operation.record), operation.decide(), operation.script.clone());
        self.operations.insert(number, operation);
        let report = move |outcome| {
            record.lock().finished += 1;
            reported.lock().push((number, outcome));
        };
        let is_update = matches!(script, Script::Update(_));
        host.run(|store| match script {
            Script::Update(script) => {
                let keys: Vec<&str> = script.iter().map(|(key, _)| *key).collect();
                store.update_all(&keys, decide, move |update| report(Outcome::Updated(update)));
            }
            Script::Read(reads, keys) => {
                let reading = Arc::clone(store);
                store.when_current(reads, move |current| {
                    report(Outcome::Read(current.map(|()| read(&reading, &keys))));
                });
            }
        });
        let is_answered = self.reported.lock().iter().any(|(other, _)| *other == number);
        assert!(is_answered || !was_closed || !is_update, "an update without a connection is refused at once");
    }

    fn check_reported(&mut self) {
        let reported = std::mem::take(&mut *self.reported.lock());
        for (number, outcome) in reported {
            let operation = self.operations.remove(&number).unwrap_or_else(|| panic!("{number} has two outcomes"));
            let host = &self.hosts[operation.host];
            let may_close = self.lost_at[operation.host] >= operation.began;
            let effect = self.engine.with(|engine| operation.check(&outcome, &engine.truth, self.step, may_close));
            (self.step, number, effect).hash(&mut self.digest);
            self.counts.note(&outcome);
            if let Outcome::Updated(Update::Committed(changes)) = &outcome {
                let last = changes.iter().map(|change| change.revision).max().unwrap_or_default();
                // A host that stops does not wait for its changes.
                let stops = self.lost_at[operation.host] == self.step;
                assert!(stops || host.store.revision() >= last, "a host is behind its own response: {operation:?}");
                let Script::Update(script) = &operation.script else { continue };
                let mut plugin = host.plugin.lock();
                for ((key, _), change) in script.iter().zip(changes).filter(|(_, change)| !change.is_read()) {
                    plugin.learn(key, change);
                }
            }
            if let Outcome::Updated(_) = outcome {
                self.effects.insert(number, effect);
            }
        }
    }

    fn disconnect(&mut self, at: usize) {
        if self.hosts[at].link.is_up() {
            self.lost_at[at] = self.step;
            self.hosts[at].link.disconnect();
            self.counts.disconnects += 1;
        }
    }

    /// Replaces a host by one that knows nothing.
    fn restart(&mut self, at: usize) {
        self.lost_at[at] = self.step;
        let host = &self.hosts[at];
        host.store.close();
        host.poll();
        self.check_reported();
        let open = self.operations.values().filter(|operation| operation.host == at);
        assert_eq!(
            open.map(|operation| operation.number).collect::<Vec<_>>(),
            [0; 0],
            "a store that closes leaves nothing open"
        );
        for (of, watcher) in &mut self.watchers {
            if *of == at {
                watcher.close();
            }
        }
        let host = Host::new(&self.engine, self.weather.options());
        self.former.push(std::mem::replace(&mut self.hosts[at], host).link);
        self.counts.restarts += 1;
    }

    /// A watcher gets the next changes, and perhaps moves to another host.
    fn watch(&mut self) {
        let which = self.random.below(self.watchers.len());
        if self.random.percent(15) {
            self.watchers[which].1.close();
        }
        if !self.watchers[which].1.is_open() {
            let at = self.random.below(HOSTS);
            if self.hosts[at].store.closed().is_some() {
                return;
            }
            self.watchers[which].0 = at;
            if !self.open_watch(which) {
                // It is ahead of this host, and tries another one later.
                return;
            }
        }
        self.poll_watch(which);
    }

    fn open_watch(&mut self, which: usize) -> bool {
        let (at, watcher) = &mut self.watchers[which];
        self.hosts[*at].run(|store| watcher.open(store, false))
    }

    fn poll_watch(&mut self, which: usize) {
        let (at, watcher) = &mut self.watchers[which];
        let engine = &self.engine;
        self.hosts[*at].run(|_| engine.with(|engine| watcher.poll(&engine.truth)));
    }

    /// Lets everything arrive, and compares the hosts.
    fn end(&mut self) {
        for round in 0.. {
            assert!(round < 10_000, "these never end: {:?}", self.operations.values().collect::<Vec<_>>());
            let is_quiet = self.hosts.iter().all(|host| host.link.is_quiet());
            if is_quiet && self.operations.is_empty() {
                break;
            }
            for at in 0..HOSTS {
                self.next_step();
                let link = &self.hosts[at].link;
                if !link.is_up() {
                    link.connect();
                }
                link.find_out(&mut self.random);
                link.execute(&mut self.random, 0, 0);
                link.respond(&mut self.random);
                self.pass(at);
                self.poll(at);
                self.check_reported();
            }
        }
        self.check_hosts();
        self.check_watchers();
        self.check_effects();
        self.counts.steps = self.step;
        self.counts.operations = self.begun;
    }

    fn check_hosts(&self) {
        self.engine.with(|engine| {
            for host in &self.hosts {
                let mut found = HashMap::new();
                host.store.for_each(|entry| _ = found.insert(entry.key().to_owned(), entry.clone()));
                assert_eq!(found.len(), engine.entries.len());
                for (key, (record, revision)) in &engine.entries {
                    let entry = &found[key];
                    assert_eq!(entry.revision(), *revision, "{key}");
                    assert!(record.ends_with(entry.value()), "{key}");
                }
                let plugin = host.plugin.lock();
                assert_eq!(plugin.faults, [""; 0]);
                for key in KEYS {
                    let revision = engine.entries.get(key).map_or(0, |(_, revision)| *revision);
                    assert_eq!(plugin.knows(key), revision.into(), "the plugin of a host has lost count of {key}");
                }
            }
        });
    }

    fn check_watchers(&mut self) {
        for which in 0..self.watchers.len() {
            let mut last = None;
            while !self.watchers[which].1.is_open() || last != self.watchers[which].1.position() {
                last = self.watchers[which].1.position();
                if !self.watchers[which].1.is_open() {
                    assert!(self.open_watch(which), "no watcher is ahead of a host that has everything");
                }
                // One poll waits for its turn, and the next one takes it.
                for _ in 0..3 {
                    self.poll_watch(which);
                    let at = self.watchers[which].0;
                    self.poll(at);
                }
            }
            let (_, watcher) = &self.watchers[which];
            let position = watcher.position().unwrap_or_default();
            let rest = self.engine.with(|engine| watcher.missing(&engine.truth, position));
            assert_eq!(rest, 0, "changes after {position} are missing");
            self.counts.events += watcher.events;
            self.counts.moves += watcher.moves;
            self.counts.gaps += watcher.gaps;
        }
    }

    /// Every update that took effect was acknowledged, or its outcome is unknown.
    fn check_effects(&self) {
        let count = |effect| self.effects.values().filter(|other| **other == effect).count() as u64;
        self.engine.with(|engine| {
            for changed in engine.truth.between(0, u64::MAX).iter().flat_map(|committed| &committed.changes) {
                let Some(record) = &changed.record else { continue };
                // The value is the last column.
                let value = record.rsplit(|byte| !(byte.is_ascii_digit() || *byte == b'.')).next().unwrap_or_default();
                let number =
                    value.split(|byte| *byte == b'.').next().and_then(|it| str::from_utf8(it).ok()?.parse().ok());
                let effect = number.and_then(|number: u64| self.effects.get(&number));
                assert!(matches!(effect, Some(Some(true) | None)), "{changed:?} was refused: {number:?}");
            }
            let (certain, unknown) = (count(Some(true)), count(None));
            assert!(
                certain <= engine.writes && engine.writes <= certain + unknown,
                "{certain} {unknown} {}",
                engine.writes
            );
        });
    }
}

impl Weather {
    fn options(&self) -> SharedOptions {
        SharedOptions { history_max: self.history_max, lag_max: Duration::from_secs(1_000_000) }
    }
}

impl Counts {
    fn note(&mut self, outcome: &Outcome) {
        let count = match outcome {
            Outcome::Read(Ok(_)) => &mut self.read,
            Outcome::Read(Err(_)) => &mut self.refused_reads,
            Outcome::Updated(Update::Committed(_)) => &mut self.committed,
            Outcome::Updated(Update::Rejected(())) => &mut self.rejected,
            Outcome::Updated(Update::RolledBack { error, .. }) if !error.is_certain() => &mut self.unknown,
            Outcome::Updated(_) => &mut self.rolled_back,
        };
        *count += 1;
    }
}

fn read(store: &SharedStore, keys: &[&'static str]) -> Found {
    let revisions = |entries: &[Option<&Entry>]| {
        let of = |(key, entry): (&&str, &Option<&Entry>)| ((*key).to_owned(), entry.map_or(0, Entry::revision));
        keys.iter().zip(entries).map(of).collect()
    };
    Found { entries: store.read_all(keys, revisions).0, applied: store.revision() }
}

fn simulate(seed: u64, steps: u64) -> (u64, Counts) {
    let mut world = World::new(seed);
    world.run(steps);
    (world.digest.finish(), world.counts)
}

#[test]
fn clients_of_three_hosts_are_told_the_truth() {
    let (seeds, steps) = if std::env::var_os("VKOG_FULL").is_some() { (1000, 10_000) } else { (40, 5_000) };
    let first = std::env::var("VKOG_SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in first.map_or(0..seeds, |seed| seed..seed + 1) {
        let ran = std::panic::catch_unwind(|| simulate(seed, steps));
        let (_, counts) = ran.unwrap_or_else(|_| panic!("seed {seed}: run it alone with VKOG_SEED={seed}"));
        println!("seed {seed}: {counts:?}");
    }
}

#[test]
fn a_seed_determines_a_run() {
    let runs = [(); 2].map(|()| simulate(7, 3_000).0);
    assert_eq!(runs[0], runs[1]);
}
