//! The expected content of the store for one client: its entries, its index, and the changes that its watchers receive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use serde_json::{Map, Value};
use vkog_tests::{Client, Request};

use super::config::{Round, stored_len};

/// The first and the last round in whose configuration something may have been stored.
pub(super) type Rounds = [u64; 2];
/// The revisions by key.
pub(super) type State = BTreeMap<String, u64>;

/// An entry as its client sees it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) value: Arc<[u8]>,
    pub(super) content_type: &'static str,
    pub(super) is_coded: bool,
    /// 0 before the reply.
    pub(super) revision: u64,
    pub(super) rounds: Rounds,
    /// The length of the stored value in the first of the rounds, in bytes.
    pub(super) stored: u64,
}

impl Entry {
    pub(super) fn new(value: Vec<u8>, content_type: &'static str, is_coded: bool, rounds: Rounds) -> Self {
        let stored = stored_len(&value, is_coded, rounds[0]);
        Self { value: value.into(), content_type, is_coded, revision: 0, rounds, stored }
    }

    /// Sets the round in whose configuration it was stored.
    pub(super) fn set_round(&mut self, round: u64) {
        if self.rounds != [round; 2] {
            self.rounds = [round; 2];
            self.stored = stored_len(&self.value, self.is_coded, round);
        }
    }

    /// Returns the terms of the value, `FIELD/VALUE`, in the order of the fields.
    pub(super) fn terms(&self, fields: &[&str]) -> Vec<String> {
        let Ok(object) = serde_json::from_slice::<Map<String, Value>>(&self.value) else { return Vec::new() };
        let term = |field: &&str| match object.get(*field)? {
            Value::String(text) => Some(format!("{field}/{}", text.replace('%', "%25").replace('/', "%2F"))),
            value => Some(format!("{field}/{value}")),
        };
        fields.iter().filter_map(term).collect()
    }
}

/// The change of one entry; a removal has none afterwards.
#[derive(Clone, Debug)]
pub(super) struct Effect {
    pub(super) key: String,
    pub(super) after: Option<Entry>,
}

/// A write of the index that belongs to an effect: the key, and whether the index entry is written or removed.
pub(super) type IndexWrite = (String, bool);

/// Returns the index writes that a change of an entry adds.
pub(super) fn index_writes(
    key: &str,
    before: Option<&Entry>,
    after: Option<&Entry>,
    fields: &[&str],
) -> Vec<IndexWrite> {
    let terms = |entry: Option<&Entry>| entry.map_or(Vec::new(), |entry| entry.terms(fields));
    let (before, after) = (terms(before), terms(after));
    let removed = before.iter().filter(|term| !after.contains(term)).map(|term| (index_key(term, key), false));
    let written = after.iter().filter(|term| !before.contains(term)).map(|term| (index_key(term, key), true));
    removed.chain(written).collect()
}

fn index_key(term: &str, key: &str) -> String {
    format!("index/{term}/{key}")
}

/// Returns the keys of the index of these entries.
pub(super) fn index_of<'a>(
    entries: impl IntoIterator<Item = (&'a String, &'a Entry)>,
    fields: &[&str],
) -> BTreeSet<String> {
    let keys = entries.into_iter().flat_map(|(key, entry)| {
        entry.terms(fields).into_iter().map(move |term| index_key(&term, key)).collect::<Vec<_>>()
    });
    keys.collect()
}

/// A client with a token, and its entries. Keys are as the client sees them.
pub(super) struct Tenant {
    pub(super) token: &'static str,
    /// The prefix that the client does not see.
    pub(super) prefix: &'static str,
    /// The beginning of all its keys.
    pub(super) folder: &'static str,
    pub(super) entries: BTreeMap<String, Entry>,
    /// The index entries, and when they were stored.
    pub(super) index: BTreeMap<String, Rounds>,
    /// The changes that its watcher has not received yet.
    pub(super) changes: Vec<Effect>,
    /// The entries at the beginning of the round.
    pub(super) begun: BTreeMap<String, Entry>,
    /// The effects of each successful operation of the round.
    pub(super) journal: Vec<Vec<Effect>>,
    /// The length of the journal, for other threads.
    pub(super) acknowledged: Arc<AtomicUsize>,
}

impl Tenant {
    pub(super) fn new(token: &'static str, prefix: &'static str, folder: &'static str) -> Self {
        Self {
            token,
            prefix,
            folder,
            entries: BTreeMap::new(),
            index: BTreeMap::new(),
            changes: Vec::new(),
            begun: BTreeMap::new(),
            journal: Vec::new(),
            acknowledged: Arc::default(),
        }
    }

    pub(super) fn request<'a>(&self, client: &'a Client, method: &str, path: &str) -> Request<'a> {
        client.path(method, path).header("Authorization", format!("Bearer {}", self.token))
    }

    pub(super) fn begin_round(&mut self) {
        self.begun.clone_from(&self.entries);
        self.journal.clear();
        self.acknowledged.store(0, SeqCst);
    }

    /// Records that an operation has succeeded.
    pub(super) fn apply(&mut self, effects: Vec<Effect>, rounds: Rounds, fields: &[&str]) {
        for Effect { key, after } in &effects {
            let before = match after {
                Some(after) => self.entries.insert(key.clone(), after.clone()),
                None => self.entries.remove(key),
            };
            for (index_key, is_written) in index_writes(key, before.as_ref(), after.as_ref(), fields) {
                if is_written {
                    self.index.insert(index_key, rounds);
                } else {
                    self.index.remove(&index_key);
                }
            }
        }
        if !effects.is_empty() {
            self.changes.extend(effects.iter().cloned());
            self.journal.push(effects);
            self.acknowledged.store(self.journal.len(), SeqCst);
        }
    }

    /// The bytes that `bytes` counts for all entries and index entries.
    pub(super) fn held(&self) -> u64 {
        let entries = self.entries.iter().map(|(key, entry)| self.whole_len(key) + entry.stored);
        let index = self.index.iter().map(|(key, rounds)| self.index_cost(key, rounds[0]));
        entries.sum::<u64>() + index.sum::<u64>()
    }

    /// The bytes that `bytes` counts for an index entry. Its value is the whole key of the entry.
    pub(super) fn index_cost(&self, index_key: &str, round: u64) -> u64 {
        self.whole_len(index_key) + stored_len(self.indexed(index_key).as_bytes(), false, round)
    }

    pub(super) fn whole_len(&self, key: &str) -> u64 {
        (self.prefix.len() + key.len()) as u64
    }

    /// Returns the whole key of the entry of an index entry: that behind `index/FIELD/VALUE/`.
    fn indexed(&self, index_key: &str) -> String {
        let key = index_key.splitn(4, '/').nth(3).unwrap_or_default();
        format!("{}{key}", self.prefix)
    }

    /// Returns the entries after this number of operations of the round.
    pub(super) fn entries_after(&self, operations: usize) -> BTreeMap<String, Entry> {
        let mut entries = self.begun.clone();
        for Effect { key, after } in self.journal.iter().take(operations).flatten() {
            match after {
                Some(after) => drop(entries.insert(key.clone(), after.clone())),
                None => drop(entries.remove(key)),
            }
        }
        entries
    }

    /// Returns at most how many bytes more the entries and index entries take while the plugin `index` builds another index.
    pub(super) fn rebuild_cost(&self, from: Round, to: Round) -> u64 {
        let written = self.entries.iter().filter(|(_, entry)| entry.terms(from.fields()) != entry.terms(to.fields()));
        let cost = |(key, entry): (&String, &Entry)| {
            let index = entry.terms(to.fields()).into_iter().map(|term| index_key(&term, key));
            let index: u64 = index.map(|key| self.index_cost(&key, to.number)).sum();
            index + stored_len(&entry.value, entry.is_coded, to.number).saturating_sub(entry.stored)
        };
        written.map(cost).sum()
    }

    /// Records that the plugin `index` has written all entries again whose terms differ. Returns their keys.
    pub(super) fn fields_changed(&mut self, from: Round, to: Round) -> Vec<String> {
        let differs = |entry: &Entry| entry.terms(from.fields()) != entry.terms(to.fields());
        let written = self.entries.iter().filter(|(_, entry)| differs(entry)).map(|(key, _)| key.clone());
        let written: Vec<String> = written.collect();
        let keys = index_of(&self.entries, to.fields());
        self.index.retain(|key, _| keys.contains(key));
        for key in &written {
            let entry = self.entries.get_mut(key).expect("it is one of them");
            entry.set_round(to.number);
            for term in entry.terms(to.fields()) {
                self.index.insert(index_key(&term, key), [to.number; 2]);
            }
        }
        written
    }
}

pub(super) fn state(entries: &BTreeMap<String, Entry>) -> State {
    entries.iter().map(|(key, entry)| (key.clone(), entry.revision)).collect()
}
