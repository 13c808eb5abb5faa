//! A store in memory and the plugins around it: the way of a request as a server has it, but on the caller's thread.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use tracing::Dispatch;

use super::log::logged;
use vkog_plugin_api::abi::Verb;
use vkog_plugin_host::{Answered, Asked, Asking, Chain, Origin, Refusal, Seen, Services, Subject};

/// What the server takes for a key and a media type.
const KEY_MAX: usize = 1024;
const DEFAULT_CONTENT_TYPE: &str = "application/octet-stream";
/// How long what a plugin began on a thread of its own may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An entry. Shared, so that it outlives the lock under which it was found.
pub(super) struct Kept {
    pub(super) value: Vec<u8>,
    pub(super) content_type: String,
    details: Vec<u8>,
    pub(super) revision: u64,
}

impl Kept {
    fn seen(&self) -> Seen<'_> {
        Seen { value: &self.value, content_type: &self.content_type, details: &self.details, revision: self.revision }
    }
}

/// What is kept while plugins come and go.
#[derive(Default)]
pub(super) struct Store {
    /// One lock for all of it; a guard runs under it.
    entries: Mutex<BTreeMap<String, Arc<Kept>>>,
    revision: AtomicU64,
    /// So many writes and removals are still to fail.
    failures: AtomicU64,
}

impl Store {
    pub(super) fn fail(&self, count: u64) {
        self.failures.store(count, SeqCst);
    }

    pub(super) fn for_each(&self, each: &mut dyn FnMut(&str, Seen<'_>)) {
        lock(&self.entries).iter().for_each(|(key, entry)| each(key, entry.seen()));
    }

    fn revision(&self) -> u64 {
        self.revision.load(SeqCst)
    }

    fn fails(&self) -> bool {
        self.failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

/// What is asked for.
pub(super) struct Wanted<'a> {
    pub(super) verb: Verb,
    pub(super) key: &'a str,
    pub(super) value: &'a [u8],
    pub(super) content_type: &'a str,
    pub(super) query: &'a str,
    pub(super) if_revision: Option<u64>,
    pub(super) depth: u32,
    pub(super) origin: &'a dyn Origin,
}

/// What became of it.
pub(super) enum Done {
    Found(Arc<Kept>, Vec<(String, String)>),
    Written(u64, Vec<(String, String)>),
    Removed(u64, Vec<(String, String)>),
    Absent,
    Refused(Refusal),
}

/// The store with the plugins around it.
pub(super) struct InMemory {
    pub(super) store: Arc<Store>,
    chain: RwLock<Arc<Chain>>,
    order: Vec<String>,
    dispatch: Dispatch,
}

impl InMemory {
    pub(super) fn new(store: Arc<Store>, chain: Chain, order: Vec<String>, dispatch: Dispatch) -> Self {
        Self { store, chain: RwLock::new(Arc::new(chain)), order, dispatch }
    }

    pub(super) fn chain(&self) -> Arc<Chain> {
        Arc::clone(&self.chain.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another chain in the place of this one, and waits until nothing is under way in that: what is left of its
    /// plugins is then destroyed here, not on a thread of their own.
    pub(super) fn exchange(&self, next: Chain) {
        let mut chain = self.chain.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *chain, Arc::new(next));
        drop(chain);
        let deadline = Instant::now() + PATIENCE;
        while Arc::strong_count(&old) > 1 {
            let patient = thread::panicking() || Instant::now() < deadline;
            assert!(patient, "what a plugin asked of the store did not end within {PATIENCE:?}");
            thread::yield_now();
        }
    }

    pub(super) fn run(&self, wanted: &Wanted<'_>) -> Done {
        logged(&self.dispatch, || match check(wanted) {
            Err(refusal) => Done::Refused(refusal),
            Ok(()) => self.run_in(&self.chain(), wanted).unwrap_or_else(Done::Refused),
        })
    }

    fn run_in(&self, chain: &Arc<Chain>, wanted: &Wanted<'_>) -> Result<Done, Refusal> {
        let subject = Subject {
            verb: wanted.verb,
            key: wanted.key,
            value: wanted.value,
            content_type: if wanted.content_type.is_empty() { DEFAULT_CONTENT_TYPE } else { wanted.content_type },
            query: wanted.query,
            arrived: self.store.revision(),
            depth: wanted.depth,
            origin: wanted.origin,
        };
        let prepared = chain.before(&subject)?;
        let subject = Subject { value: prepared.value.as_deref().unwrap_or(subject.value), ..subject };
        match wanted.verb {
            Verb::Get if prepared.hidden => Ok(Done::Absent),
            Verb::Get => self.get(chain, &subject, wanted.if_revision),
            Verb::Post | Verb::Put | Verb::Delete => self.change(chain, &subject, wanted.if_revision),
        }
    }

    fn get(&self, chain: &Arc<Chain>, subject: &Subject<'_>, if_revision: Option<u64>) -> Result<Done, Refusal> {
        let entries = lock(&self.store.entries);
        let Some(entry) = entries.get(subject.key).cloned() else { return Ok(Done::Absent) };
        expected(if_revision, Some(&entry))?;
        if chain.guard(subject, Some(entry.seen()))?.hidden {
            return Ok(Done::Absent);
        }
        drop(entries);
        let headers = chain.after(subject, entry.revision, Some(entry.seen()), Some(entry.seen()));
        Ok(Done::Found(entry, headers))
    }

    fn change(&self, chain: &Arc<Chain>, subject: &Subject<'_>, if_revision: Option<u64>) -> Result<Done, Refusal> {
        let mut entries = lock(&self.store.entries);
        let before = entries.get(subject.key).cloned();
        let seen = before.as_deref().map(Kept::seen);
        if subject.verb == Verb::Delete && before.is_none() {
            return Ok(Done::Absent);
        }
        expected(if_revision, before.as_ref())?;
        let passed = chain.guard(subject, seen)?;
        if self.store.fails() {
            chain.undo(subject, seen);
            return Err(by_host(503, "Not kept: the test has the store fail".to_owned()));
        }
        let revision = self.store.revision.fetch_add(1, SeqCst) + 1;
        let after = (subject.verb != Verb::Delete).then(|| {
            Arc::new(Kept {
                value: subject.value.to_vec(),
                content_type: subject.content_type.to_owned(),
                details: passed.details,
                revision,
            })
        });
        match &after {
            Some(entry) => entries.insert(subject.key.to_owned(), Arc::clone(entry)),
            None => entries.remove(subject.key),
        };
        drop(entries);
        let headers = chain.after(subject, revision, seen, after.as_deref().map(Kept::seen));
        Ok(if after.is_some() { Done::Written(revision, headers) } else { Done::Removed(revision, headers) })
    }
}

fn by_host(status: u16, message: String) -> Refusal {
    Refusal { plugin: String::new(), status, message, headers: Vec::new() }
}

/// What the server refuses before any plugin is asked.
fn check(wanted: &Wanted<'_>) -> Result<(), Refusal> {
    if wanted.key.is_empty() {
        return Err(by_host(400, "Key cannot be empty".to_owned()));
    }
    if wanted.key.len() > KEY_MAX {
        let length = wanted.key.len();
        return Err(by_host(414, format!("Key too long: {length} bytes, {KEY_MAX} is the most")));
    }
    if wanted.value.is_empty() && matches!(wanted.verb, Verb::Post | Verb::Put) {
        return Err(by_host(400, "No content provided".to_owned()));
    }
    Ok(())
}

fn expected(if_revision: Option<u64>, entry: Option<&Arc<Kept>>) -> Result<(), Refusal> {
    if if_revision.is_some() && if_revision != entry.map(|entry| entry.revision) {
        return Err(by_host(412, "Precondition failed: the entry is not as expected".to_owned()));
    }
    Ok(())
}

/// The plugin that asks, and what it sends.
struct Asker<'a> {
    plugin: &'a str,
    headers: &'a [(&'a str, &'a [u8])],
}

impl Origin for Asker<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    fn header_at(&self, index: usize) -> Option<(&str, &[u8])> {
        self.headers.get(index).copied()
    }

    fn client(&self) -> &str {
        ""
    }

    fn asker(&self) -> &str {
        self.plugin
    }
}

impl Services for InMemory {
    fn ask(self: Arc<Self>, asked: &Asked<'_>, answer: &mut dyn FnMut(Answered<'_>)) {
        let origin = Asker { plugin: asked.from.plugin, headers: &asked.headers };
        let wanted = Wanted {
            verb: asked.verb,
            key: asked.key,
            value: asked.value,
            content_type: asked.content_type,
            query: asked.query,
            if_revision: asked.if_revision,
            depth: asked.from.depth,
            origin: &origin,
        };
        let chain = asked.from.chain.clone().unwrap_or_else(|| self.chain());
        let done = logged(&self.dispatch, || {
            check(&wanted).and_then(|()| self.run_in(&chain, &wanted)).unwrap_or_else(Done::Refused)
        });
        answer(match &done {
            Done::Found(entry, _) => Answered::Found(entry.seen()),
            Done::Written(revision, _) | Done::Removed(revision, _) => Answered::Done(*revision),
            Done::Absent => Answered::Absent,
            Done::Refused(refusal) => Answered::Refused(Cow::Borrowed(refusal)),
        });
    }

    fn for_each(self: Arc<Self>, prefix: &str, from: &Asking, each: &mut dyn FnMut(&str, Seen<'_>) -> bool) {
        let entries = lock(&self.store.entries);
        let keys: Vec<String> = entries.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        drop(entries);
        for key in keys {
            let asked = Asked {
                verb: Verb::Get,
                key: &key,
                value: &[],
                content_type: "",
                query: "",
                headers: Vec::new(),
                if_revision: None,
                from: from.clone(),
            };
            let mut goes_on = true;
            Arc::clone(&self).ask(&asked, &mut |answered| {
                if let Answered::Found(seen) = answered {
                    goes_on = each(&key, seen);
                }
            });
            if !goes_on {
                return;
            }
        }
    }

    fn quarantined(&self) {
        let members = self.chain().members().to_vec();
        *self.chain.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Chain::new(members, &self.order));
    }
}
