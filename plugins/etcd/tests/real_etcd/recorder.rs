//! A host's store for tests: keeps what a store on etcd reports, and waits for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use vkog_etcd::{EtcdStore, Settings, Sink};
use vkog_plugin_api::backend::{Change, CommitOutcome, Condition, Loaded, Write};
use vkog_tests::DEADLINE;

/// A revision that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) revision: u64,
    pub(crate) own: bool,
    /// Key, record, whether it has expired.
    pub(crate) changes: Vec<(String, Option<Vec<u8>>, bool)>,
}

/// All reports.
#[derive(Default)]
pub(crate) struct Reported {
    pub(crate) entries: BTreeMap<String, (Vec<u8>, u64)>,
    pub(crate) loading: BTreeMap<String, (Vec<u8>, u64)>,
    /// Calls with pages and outcomes wait while this is true.
    pub(crate) is_busy: bool,
    pub(crate) position: u64,
    pub(crate) loads: usize,
    pub(crate) applied: Vec<Applied>,
    pub(crate) outcomes: BTreeMap<u64, CommitOutcome>,
    pub(crate) confirmed: BTreeMap<u64, Result<u64, String>>,
    pub(crate) connection: Option<Result<(), String>>,
    /// Violations of the interface.
    pub(crate) broken: Vec<String>,
}

/// Keeps what is reported.
#[derive(Default)]
pub(crate) struct Recorder {
    reported: Mutex<Reported>,
    changed: Condvar,
}

impl Recorder {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().expect("no test panics with it")
    }

    pub(crate) fn report(&self, change: impl FnOnce(&mut Reported)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits until something was reported.
    #[track_caller]
    pub(crate) fn wait<T>(&self, what: &str, mut find: impl FnMut(&mut Reported) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut reported = self.lock();
        loop {
            if let Some(found) = find(&mut reported) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let Reported { position, connection, broken, .. } = &*reported;
                let text = format!("timed out: {what}; at {position}, {connection:?}, {broken:?}");
                // Without it, the lock would be poisoned.
                drop(reported);
                panic!("{text}");
            }
            reported = self.changed.wait_timeout(reported, left).expect("no test panics with it").0;
        }
    }
}

impl Sink for Recorder {
    fn load(&self, page: &[Loaded<'_>]) {
        self.report(|reported| {
            if page.is_empty() {
                reported.loading.clear();
            }
            for entry in page {
                let record = (entry.record().to_vec(), entry.revision());
                if reported.loading.insert(entry.key().to_owned(), record).is_some() {
                    reported.broken.push(format!("{} was loaded twice", entry.key()));
                }
            }
        });
        self.wait("the host is not busy any more", |reported| (page.is_empty() || !reported.is_busy).then_some(()));
    }

    fn loaded(&self, revision: u64) {
        self.report(|reported| {
            reported.entries = std::mem::take(&mut reported.loading);
            reported.position = revision;
            reported.loads += 1;
        });
    }

    fn apply(&self, revision: u64, own: bool, changes: &[Change<'_>]) {
        self.report(|reported| {
            if revision <= reported.position {
                reported.broken.push(format!("{revision} came after {}", reported.position));
            }
            reported.position = revision;
            for change in changes {
                match change.record() {
                    Some(record) => drop(reported.entries.insert(change.key().to_owned(), (record.to_vec(), revision))),
                    None => drop(reported.entries.remove(change.key())),
                }
            }
            let changes = changes
                .iter()
                .map(|change| (change.key().to_owned(), change.record().map(<[u8]>::to_vec), change.expired()));
            reported.applied.push(Applied { revision, own, changes: changes.collect() });
        });
    }

    fn outcome(&self, id: u64, outcome: CommitOutcome) {
        self.report(|reported| {
            if reported.outcomes.insert(id, outcome).is_some() {
                reported.broken.push(format!("{id} has two outcomes"));
            }
        });
        self.wait("the host is not busy any more", |reported| (!reported.is_busy).then_some(()));
    }

    fn confirmed(&self, id: u64, revision: Result<u64, &str>) {
        self.report(|reported| {
            if reported.confirmed.insert(id, revision.map_err(str::to_owned)).is_some() {
                reported.broken.push(format!("{id} is confirmed twice"));
            }
        });
    }

    fn connected(&self, state: Result<(), &str>) {
        self.report(|reported| {
            if state.is_err() {
                // As the host does.
                reported.loading.clear();
            }
            reported.connection = Some(state.map_err(str::to_owned));
        });
    }

    fn log(&self, text: &str) {
        println!("log: {text}");
    }
}

/// A host on the cluster.
pub(crate) struct Host {
    pub(crate) store: EtcdStore,
    pub(crate) recorder: Arc<Recorder>,
    next: AtomicU64,
}

impl Host {
    /// Opens a store, and waits until it is connected and loaded.
    #[track_caller]
    pub(crate) fn open(url: &str, settings: &Settings) -> Self {
        let host = Self::begin(url, settings);
        host.recorder.wait("the store is loaded", |reported| (reported.loads > 0).then_some(()));
        host.wait_for_connection();
        host
    }

    /// Opens a store.
    #[track_caller]
    pub(crate) fn begin(url: &str, settings: &Settings) -> Self {
        Self::begin_with(Arc::default(), url, settings)
    }

    /// Opens a store that reports to a recorder.
    #[track_caller]
    pub(crate) fn begin_with(recorder: Arc<Recorder>, url: &str, settings: &Settings) -> Self {
        Self::begin_as("{}", recorder, url, settings)
    }

    /// Opens a store as a command that serves no clients.
    pub(crate) fn command(url: &str) -> Self {
        Self::begin_as("", Arc::default(), url, &Settings::default())
    }

    fn begin_as(about: &str, recorder: Arc<Recorder>, url: &str, settings: &Settings) -> Self {
        let sink = Arc::clone(&recorder) as Arc<dyn Sink>;
        let store = EtcdStore::open(settings, url, about, sink).unwrap_or_else(|error| panic!("{url}: {error}"));
        Self { store, recorder, next: AtomicU64::new(1) }
    }

    #[track_caller]
    pub(crate) fn wait_for_connection(&self) {
        let is_connected = |reported: &mut Reported| (reported.connection == Some(Ok(()))).then_some(());
        self.recorder.wait("the store is connected", is_connected);
    }

    /// Waits until the store reports that it is not connected, and returns why.
    #[track_caller]
    pub(crate) fn wait_for_disconnection(&self) -> String {
        self.recorder.wait("the store is disconnected", |reported| reported.connection.clone()?.err())
    }

    /// Sends a write of keys with the revisions that they must have. Returns its number.
    pub(crate) fn send(&self, changes: &[(&str, u64, Option<&[u8]>)]) -> u64 {
        self.send_expired(changes, false)
    }

    pub(crate) fn send_expired(&self, changes: &[(&str, u64, Option<&[u8]>)], expired: bool) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let conditions: Vec<_> = changes.iter().map(|(key, revision, _)| Condition::new(key, *revision)).collect();
        let changes: Vec<_> = changes
            .iter()
            .map(|(key, _, record)| match record {
                Some(record) => Change::put(key, record),
                None => Change::delete(key, expired),
            })
            .collect();
        self.store.commit(&Write::new(id, &conditions, &changes));
        id
    }

    #[track_caller]
    pub(crate) fn outcome(&self, id: u64) -> CommitOutcome {
        self.recorder.wait("the write has an outcome", |reported| reported.outcomes.get(&id).cloned())
    }

    /// Writes one key. Returns the revision.
    #[track_caller]
    pub(crate) fn put(&self, key: &str, revision: u64, record: &[u8]) -> u64 {
        self.committed(self.send(&[(key, revision, Some(record))]))
    }

    #[track_caller]
    pub(crate) fn committed(&self, id: u64) -> u64 {
        match self.outcome(id) {
            CommitOutcome::Committed { revision } => revision,
            other => panic!("expected a commit, got {other:?}"),
        }
    }

    /// Confirms the last revision, and waits until it is applied.
    #[track_caller]
    pub(crate) fn confirm(&self) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.store.confirm(id);
        let revision = self
            .recorder
            .wait("it is confirmed", |reported| reported.confirmed.remove(&id))
            .unwrap_or_else(|error| panic!("not confirmed: {error}"));
        self.wait_for(revision);
        revision
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, revision: u64) {
        let what = format!("revision {revision} is applied");
        self.recorder.wait(&what, |reported| (reported.position >= revision).then_some(()));
    }

    /// Checks that it has the same entries as another host.
    #[track_caller]
    pub(crate) fn agrees_with(&self, other: &Self) {
        let (own, others) = (self.entries(), other.entries());
        let differing = own.iter().find(|(key, entry)| others.get(*key) != Some(entry)).map(|(key, _)| key);
        assert!(own == others, "{} entries differ from {}, such as {differing:?}", own.len(), others.len());
    }

    /// Returns the entries as of the last revision.
    #[track_caller]
    pub(crate) fn entries(&self) -> BTreeMap<String, (Vec<u8>, u64)> {
        self.confirm();
        self.recorder.lock().entries.clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.store.close();
        if !std::thread::panicking() {
            assert_eq!(self.recorder.lock().broken, Vec::<String>::new());
        }
    }
}
