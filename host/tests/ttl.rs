//! Entries that expire, with the libraries of ttl and bytes that a server loads, over a store on disk, by a clock that
//! the test sets: no entry is served late or removed early, and the count of bytes is always exact. Provoked with
//! 20,000 random expiries, a clock that jumps both ways, clients that write while entries are removed, and by killing
//! the process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock};

use vkog_engine::{Conditions, Engine, ExtraHeaders, Form, Outcome, Reads, Request, Transforms};
use vkog_plugin_host::{HostContext, NoOrigin, Registry, Settings, Verb, load};
use vkog_store::{Fsync, LocalDisk, LocalStore, Options, Store as _};

const ENTRIES: u64 = 20_000;
/// The limit of the bytes plugin: more than all entries, and less than the value of a probe.
const LIMIT: u64 = 2 << 20;
/// 1 January 2026, in milliseconds since 1970.
const BEGIN: u64 = 1_767_225_600_000;

/// The plugins' libraries, in a folder that only we can write.
static LIBRARIES: LazyLock<(tempfile::TempDir, Vec<PathBuf>)> = LazyLock::new(|| {
    let test = std::env::current_exe().expect("a test knows where it is");
    let built = test.ancestors().nth(2).expect("a test is in TARGET/PROFILE/deps");
    let (target, profile) = (built.parent().expect("as above"), built.file_name().expect("as above"));
    let profile = if profile == "debug" { "dev".as_ref() } else { profile };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--package=vkog-bytes", "--package=vkog-ttl", "--profile"]).arg(profile);
    cargo.arg("--target-dir").arg(target).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    assert!(cargo.status().expect("cargo runs").success(), "{cargo:?} failed");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let copy = |plugin: &str| {
        let name = format!("{}{plugin}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let copy = folder.path().join(&name);
        std::fs::copy(built.join(&name), &copy).expect("it was just built");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o700)).expect("it is ours");
        }
        copy
    };
    let libraries = ["vkog_bytes", "vkog_ttl"].map(copy).to_vec();
    (folder, libraries)
});

/// A server without a socket.
#[derive(Clone)]
struct Host {
    engine: Arc<Engine>,
    clock: Arc<AtomicU64>,
}

impl Host {
    fn open(folder: &Path, fsync: Fsync, now: u64) -> Self {
        let clock = Arc::new(AtomicU64::new(now));
        let shown = Arc::clone(&clock);
        let port = Arc::new(HostContext::new(LIMIT, move || shown.load(SeqCst)));
        let plugins = load(&LIBRARIES.1, &Settings::new(), &port).into_iter();
        let plugins = plugins.map(|plugin| plugin.unwrap_or_else(|error| panic!("{error}"))).collect();
        let options = Options { fsync, ..Options::default() };
        let store =
            LocalStore::open(LocalDisk, &folder.join("store.vkog"), options, &|_, _, _| {}).expect("it can be opened");
        let engine = Engine::new(store, Registry::new(plugins, Vec::new(), port)).expect("the plugins start");
        Self { engine, clock }
    }

    fn now(&self) -> u64 {
        self.clock.load(SeqCst)
    }

    fn begin(
        &self,
        verb: Verb,
        key: &str,
        value: &[u8],
        query: &str,
        then: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
    ) {
        let request = Request {
            verb,
            key: key.to_owned(),
            value: value.to_vec(),
            content_type: "text/plain".into(),
            query: query.to_owned(),
            conditions: Conditions::default(),
            arrived: self.engine.revision(),
            depth: 0,
            cause: vkog_plugin_host::Cause::Request,
            states: Default::default(),
            origin: Arc::new(NoOrigin),
            form: Form::Sent,
            reads: Reads::Linearizable,
            transforms: Transforms::default(),
            guarded: Default::default(),
        };
        self.engine.run(request, then);
    }

    fn run(&self, verb: Verb, key: &str, value: &[u8], query: &str) -> (Outcome, ExtraHeaders) {
        let (tell, told) = channel();
        self.begin(verb, key, value, query, move |answer, added| drop(tell.send((answer, added))));
        told.recv().expect("every request gets a response")
    }

    /// Returns the remaining seconds in the response to a read; `None` if the entry is absent.
    fn left(&self, key: &str) -> Option<u64> {
        match self.run(Verb::Get, key, b"", "") {
            (Outcome::Found(_), added) => {
                let (_, left) = added.iter().find(|(name, _)| name == "Vkog-TTL").expect("every entry here expires");
                Some(left.parse().expect("a number"))
            }
            (Outcome::Absent, _) => None,
            _ => panic!("{key} is neither found nor absent"),
        }
    }

    /// Makes the plugin remove all due entries, in batches.
    fn tick(&self) {
        let chain = self.engine.plugins().chain();
        let ttl = chain.members().iter().find(|member| member.name() == "ttl").expect("it is loaded");
        loop {
            let (before, _) = self.engine.store().totals();
            ttl.tick().expect("it is not in quarantine");
            if self.engine.store().totals().0 == before {
                return;
            }
        }
    }

    /// Returns the stored entries, from the store itself.
    fn stored(&self) -> HashMap<String, u64> {
        let mut stored = HashMap::new();
        self.engine.store().for_each(|entry| {
            let bytes = entry.key().len() + entry.value().len();
            stored.insert(entry.key().to_owned(), bytes as u64);
        });
        stored
    }

    /// Asserts that the bytes plugin counts the stored bytes exactly, as its refusal reports.
    #[track_caller]
    fn check_bytes(&self) {
        static PROBE: [u8; LIMIT as usize] = [b'x'; LIMIT as usize];
        let (Outcome::Refused(refusal), _) = self.run(Verb::Post, "probe", &PROBE, "") else { panic!("that fits?") };
        // After it, because expired entries are removed for a write that does not fit.
        let free = LIMIT - self.stored().values().sum::<u64>();
        let expected = format!("needs {} bytes, {free} of {LIMIT} are free", LIMIT + 5);
        assert!(refusal.message.contains(&expected), "not {expected:?}: {}", refusal.message);
    }
}

/// Pseudo-random numbers (xorshift), the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Returns the time to live of the entry with this number, in seconds, and its value.
fn entry(number: u64) -> (u64, Vec<u8>) {
    let mut random = Random((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    random.below(100);
    (random.below(3600) + 1, vec![b'v'; random.below(60) as usize + 1])
}

/// Writes entries concurrently. Returns the expiry of each durable one.
fn fill(host: &Host, numbers: std::ops::Range<u64>) -> HashMap<String, u64> {
    let (tell, told) = channel();
    for number in numbers.clone() {
        let (seconds, value) = entry(number);
        let tell = tell.clone();
        host.begin(Verb::Post, &number.to_string(), &value, &format!("ttl={seconds}"), move |answer, _| {
            assert!(matches!(answer, Outcome::Written(_)), "it fits");
            let _ = tell.send(number);
        });
    }
    drop(tell);
    let now = host.now();
    let expiries: HashMap<_, _> =
        told.iter().map(|number| (number.to_string(), now + entry(number).0 * 1000)).collect();
    assert_eq!(expiries.len() as u64, numbers.end - numbers.start, "all get a response");
    expiries
}

/// Asserts that reads of these keys find exactly the live entries.
#[track_caller]
fn check_reads<'a>(host: &Host, keys: impl IntoIterator<Item = &'a String>, expiries: &HashMap<String, u64>) {
    let now = host.now();
    for key in keys {
        let expected = expiries.get(key).filter(|until| **until > now).map(|until| (until - now).div_ceil(1000));
        assert_eq!(host.left(key), expected, "{key} at {now}, expiry {:?}", expiries.get(key));
    }
}

/// Asserts that the store holds exactly these entries.
#[track_caller]
fn check_stored(host: &Host, expiries: &HashMap<String, u64>) {
    let stored = host.stored();
    let early = expiries.keys().find(|key| !stored.contains_key(*key));
    assert_eq!(early, None, "it was removed early; it is {}", host.now());
    assert_eq!(stored.len(), expiries.len(), "something was not removed; it is {}", host.now());
}

#[test]
fn a_jumping_clock_expires_20000_entries_exactly_and_bytes_stays_exact() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let host = Host::open(folder.path(), Fsync::Never, BEGIN);
    let mut expiries = fill(&host, 0..ENTRIES);
    let keys: Vec<String> = expiries.keys().cloned().collect();
    let mut random = Random(7);
    let mut removed = 0;
    for round in 0..60 {
        let jump = random.below(300_000);
        host.clock.store(if round % 4 == 3 { host.now() - jump } else { host.now() + jump }, SeqCst);
        check_reads(&host, (0..100).map(|_| &keys[random.below(ENTRIES) as usize]), &expiries);
        // Between two ticks the clock may show a time and take it back: what has not been removed then lives on.
        if round % 3 != 0 {
            host.tick();
            let now = host.now();
            expiries.retain(|_, until| *until > now);
            removed = keys.len() - expiries.len();
            check_stored(&host, &expiries);
        }
        host.check_bytes();
        // Its write does not fit, so the expired entries were removed first.
        expiries.retain(|_, until| *until > host.now());
    }
    assert!(removed > 10_000, "{removed} were removed on the way");
    host.clock.fetch_add(4_000_000, SeqCst);
    host.tick();
    check_stored(&host, &HashMap::new());
    host.check_bytes();
}

#[test]
fn concurrent_writes_and_expiries_lose_no_live_entry_and_bytes_stays_exact() {
    const CLIENTS: u64 = 4;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let host = Host::open(folder.path(), Fsync::Never, BEGIN);
    let is_over = AtomicBool::new(false);
    // Each client has its own keys, and so knows when each of them expires, if it exists at all.
    let client = |number: u64| {
        let mut random = Random(number + 11);
        let mut own: HashMap<String, (u64, u64)> = HashMap::new();
        for _ in 0..3000 {
            let key = format!("{number}/{}", random.below(200));
            let seconds = random.below(4) + 1;
            let value = vec![b'v'; random.below(100) as usize + 1];
            let before = host.now();
            let known = own.get(&key).copied();
            match random.below(4) {
                0 => {
                    let (answer, _) = host.run(Verb::Delete, &key, b"", "");
                    let was_there = matches!(answer, Outcome::Removed(_));
                    assert!(was_there || known.is_none_or(|(first, _)| first <= host.now()), "{key} was gone early");
                    assert!(!was_there || known.is_some_and(|(_, last)| last > before), "{key} was there late");
                    own.remove(&key);
                }
                1 => {
                    let is_there = host.left(&key).is_some();
                    assert!(is_there || known.is_none_or(|(first, _)| first <= host.now()), "{key} was gone early");
                    assert!(!is_there || known.is_some_and(|(_, last)| last > before), "{key} was there late");
                }
                _ => match host.run(Verb::Put, &key, &value, &format!("ttl={seconds}")) {
                    (Outcome::Written(_), _) => {
                        own.insert(key, (before + seconds * 1000, host.now() + seconds * 1000));
                    }
                    (Outcome::Refused(refusal), _) => assert_eq!(refusal.status, 409, "{}", refusal.message),
                    _ => panic!("a write is done or refused"),
                },
            }
        }
        own
    };
    let own: Vec<_> = std::thread::scope(|scope| {
        let ticking = scope.spawn(|| {
            while !is_over.load(SeqCst) {
                host.clock.fetch_add(7, SeqCst);
                host.tick();
            }
        });
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || client(number))).collect();
        let ended: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        is_over.store(true, SeqCst);
        ticking.join().expect("it ticks");
        ended.into_iter().flat_map(|own| own.expect("no assertion failed")).collect()
    });
    host.tick();
    let now = host.now();
    for (key, (first, last)) in own {
        let is_there = host.left(&key).is_some();
        assert!(is_there || first <= now, "{key} was gone early");
        assert!(!is_there || last > now, "{key} was there late");
    }
    host.check_bytes();
    host.clock.fetch_add(10_000, SeqCst);
    host.tick();
    check_stored(&host, &HashMap::new());
    host.check_bytes();
}

/// The variable with the folder of the process that is killed.
const FOLDER: &str = "VKOG_TEST_TTL_FOLDER";

/// Not a test, but the process that is killed. It writes entries and prints each durable one with its expiry,
/// while the clock advances and expired entries are removed.
#[test]
fn the_process_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let host = Host::open(Path::new(&folder), Fsync::Always, BEGIN);
    let mut said = std::io::stdout().lock();
    for step in 0..ENTRIES / 500 {
        for (key, until) in fill(&host, step * 500..(step + 1) * 500) {
            writeln!(said, "durable {key} {until}").expect("somebody listens");
        }
        host.clock.fetch_add(60_000, SeqCst);
        writeln!(said, "time {}", host.now()).expect("somebody listens");
        host.tick();
    }
    writeln!(said, "over 0 0").expect("somebody listens");
}

#[test]
fn after_a_kill_entries_have_their_expiry_and_bytes_counts_the_store() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut child = Command::new(std::env::current_exe().expect("a test knows where it is"));
    child.args(["--exact", "the_process_that_is_killed", "--nocapture"]).env(FOLDER, folder.path());
    let mut child = child.stdout(Stdio::piped()).spawn().expect("this program runs");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let (mut expiries, mut time) = (HashMap::new(), BEGIN);
    for line in lines {
        let line = line.expect("it writes lines");
        match *line.split(' ').collect::<Vec<_>>() {
            ["durable", key, until] => drop(expiries.insert(key.to_owned(), until.parse::<u64>().expect("a number"))),
            ["time", now] => time = now.parse().expect("a number"),
            ["over", ..] => panic!("it was not killed in time"),
            _ => {}
        }
        if expiries.len() == ENTRIES as usize / 2 {
            child.kill().expect("it runs");
        }
    }
    child.wait().expect("it was killed");
    assert!(expiries.len() >= ENTRIES as usize / 2, "it ended before it was killed, after {} entries", expiries.len());

    let host = Host::open(folder.path(), Fsync::Always, time);
    host.check_bytes();
    // An entry that was written and not yet printed may exist or not; if it exists, it expires like the others.
    let unsaid: HashMap<_, _> = (host.stored().into_keys().filter(|key| !expiries.contains_key(key)))
        .map(|key| (key.clone(), host.now() + host.left(&key).expect("it lives") * 1000))
        .collect();
    expiries.extend(unsaid);
    check_reads(&host, expiries.keys(), &expiries);
    host.tick();
    expiries.retain(|_, until| *until > time);
    check_stored(&host, &expiries);
    host.check_bytes();
    host.clock.fetch_add(1_800_000, SeqCst);
    host.tick();
    expiries.retain(|_, until| *until > host.now());
    check_reads(&host, expiries.keys(), &expiries);
    check_stored(&host, &expiries);
    host.check_bytes();
}
