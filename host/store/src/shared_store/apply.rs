//! How the feed changes the map: revision by revision, or by the difference to a state that was loaded.
//!
//! An observer learns every change of another host once, and no change of this one. A load does not say who made the changes that
//! it brings. So what it changes under a key that a write of this host has in flight is reported only when the outcome of that
//! write is known: as a change of what this host has written, or of what was there before.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hashbrown::HashTable;
use hashbrown::hash_table;
use smallvec::SmallVec;

use crate::backend::{BackendChange, Loaded};
use crate::entry::Entry;
use crate::map::{Hashed, Map};
use crate::update::Change;

use super::record;
use super::state::{InFlight, State};

/// The state of the feed. Locked while it changes the map.
#[derive(Default)]
pub(super) struct Applying {
    /// The entries of a load that has not ended.
    load: Option<HashTable<Entry>>,
    /// The keys of foreign records of that load, with their revisions.
    load_foreign: HashMap<Box<str>, u64>,
    /// The keys of which a load brought a state while a write of this host was in flight, whose outcome is open.
    deferred: HashMap<Box<str>, Deferred>,
    scratch: Vec<u8>,
}

/// A change that is reported when it is known whether this host made it.
struct Deferred {
    before: Option<Entry>,
    now: Change,
}

impl Applying {
    /// Drops a load that will not end.
    pub(super) fn abandon_load(&mut self) {
        self.load = None;
        self.load_foreign.clear();
    }
}

impl State {
    /// The number of entries that were loaded so far.
    pub(super) fn loading(&self) -> Option<u64> {
        self.applying.lock().load.as_ref().map(|load| load.len() as u64)
    }

    pub(super) fn load(&self, entries: &[Loaded<'_>]) {
        let mut applying = self.applying.lock();
        self.is_loading.store(true, Ordering::Relaxed);
        let Applying { load, load_foreign, scratch, .. } = &mut *applying;
        let load = load.get_or_insert_default();
        if entries.is_empty() {
            load.clear();
            load_foreign.clear();
        }
        for Loaded { key, record, revision } in entries {
            let Some(entry) = record::decode(key, record, *revision, scratch) else {
                load_foreign.insert((*key).into(), *revision);
                continue;
            };
            // The map has it, unless it was changed: then the memory is shared.
            let known = self.entry(key).filter(|known| known.revision() == *revision);
            put(&self.map, load, known.unwrap_or(entry));
        }
    }

    pub(super) fn loaded(self: &Arc<Self>, revision: u64) {
        let mut applying = self.applying.lock();
        let load = applying.load.take().unwrap_or_default();
        let foreign = std::mem::take(&mut applying.load_foreign);
        self.log_foreign(foreign.keys().cloned().collect());
        self.foreign.replace(foreign);
        self.is_loading.store(false, Ordering::Relaxed);
        let (before, is_first) = (self.applied(), !self.is_loaded());
        if is_first {
            for entry in load {
                let hashed = self.map.hash(entry.key_bytes());
                let mut shard = self.map.write(self.map.shard_of(hashed));
                self.map.insert(&mut shard, hashed, entry.clone());
            }
            self.changes.restart(revision);
            self.applied.store(revision, Ordering::Release);
        } else if revision != before {
            let changes = self.difference(&load, revision);
            self.put_all(&changes, || {
                self.changes.restart(revision);
                self.applied.store(revision, Ordering::Release);
            });
            let mut own = self.defer(&mut applying, before, revision, &changes);
            for (key, change) in &changes {
                match own.remove(key) {
                    Some(own) => own.report(self, key, change.before.clone(), change),
                    None => self.observe(&mut applying, key, change),
                }
            }
            // This host has written entries that others have removed since.
            let gone = Change { before: None, after: None, revision, expired: false };
            own.into_iter().for_each(|(key, own)| own.report(self, &key, None, &gone));
        }
        drop(applying);
        self.set_loaded();
        self.notify_applied();
    }

    /// The changes that make the map what was loaded. Only the feed changes the map, and it does nothing else meanwhile.
    fn difference(&self, load: &HashTable<Entry>, revision: u64) -> Vec<(Box<str>, Change)> {
        let mut changes = Vec::new();
        for entry in load {
            let before = self.entry(entry.key());
            if before.as_ref().is_none_or(|before| before.revision() != entry.revision()) {
                let after = Some(entry.clone());
                changes
                    .push((entry.key().into(), Change { before, after, revision: entry.revision(), expired: false }));
            }
        }
        self.map.for_each(|entry| {
            if find(load, self.map.hash(entry.key_bytes())).is_none() {
                let before = Some(entry.clone());
                changes.push((entry.key().into(), Change { before, after: None, revision, expired: false }));
            }
        });
        changes
    }

    pub(super) fn apply(self: &Arc<Self>, revision: u64, own: bool, changes: &[BackendChange<'_>]) {
        let mut applying = self.applying.lock();
        if revision <= self.applied() {
            return;
        }
        let (scratch, mut foreign) = (&mut applying.scratch, Vec::new());
        let mut applied: SmallVec<[(Box<str>, Change); 1]> = SmallVec::with_capacity(changes.len());
        for BackendChange { key, record, expired } in changes {
            let before = self.entry(key);
            let after = record.and_then(|record| record::decode(key, record, revision, scratch));
            let is_foreign = record.is_some() && after.is_none();
            self.foreign.change(key, is_foreign.then_some(revision));
            if is_foreign {
                foreign.push(Box::from(*key));
            }
            if before.is_some() || after.is_some() {
                applied.push(((*key).into(), Change { before, after, revision, expired: *expired }));
            }
        }
        self.log_foreign(foreign);
        // A client that reads one of the entries knows its revision, and may watch from there.
        self.put_all(&applied, || {
            self.changes.append(applied.iter().map(|(_, change)| change));
            self.applied.store(revision, Ordering::Release);
        });
        for (key, change) in &applied {
            if !own {
                self.observe(&mut applying, key, change);
            } else if let Some(Deferred { before, now }) = applying.deferred.remove(key) {
                self.report_difference(key, before, &now);
            }
        }
        drop(applying);
        self.notify_applied();
    }

    /// Makes changes in the map, in one step for readers that lock several shards. Calls a function with all of them locked.
    fn put_all(&self, changes: &[(Box<str>, Change)], locked: impl FnOnce()) {
        let keys: SmallVec<[Hashed<'_>; 1]> = changes.iter().map(|(key, _)| self.map.hash(key.as_bytes())).collect();
        let mut shards = self.map.lock_all(&keys, Map::write);
        for (index, (_, change)) in changes.iter().enumerate() {
            let shard = shards.shard_mut(index);
            let replaced = match &change.after {
                Some(entry) => self.map.insert(shard, keys[index], entry.clone()),
                None => shard.remove(keys[index], change.revision),
            };
            if let Some(entry) = replaced {
                self.map.view.retain(shard, entry, change.revision);
            }
        }
        locked();
    }

    /// Reports a change of another host, now or when it is known what this host did.
    fn observe(&self, applying: &mut Applying, key: &str, change: &Change) {
        match applying.deferred.get_mut(key) {
            Some(deferred) => deferred.now = change.clone(),
            None => self.report(key, change),
        }
    }

    fn report(&self, key: &str, change: &Change) {
        if let Some(observer) = self.observer.get() {
            observer(change, key);
        }
    }

    /// Reports the difference between what this host knew of an entry and a later change.
    fn report_difference(&self, key: &str, known: Option<Entry>, now: &Change) {
        let revision = |entry: &Option<Entry>| entry.as_ref().map(Entry::revision);
        if revision(&known) != revision(&now.after) {
            self.report(key, &Change { before: known, ..now.clone() });
        }
    }

    /// Defers the reports for the keys of the writes whose outcome is open. Returns what other writes of this host have done, as far
    /// as only the load has brought it.
    fn defer(
        &self,
        applying: &mut Applying,
        before: u64,
        revision: u64,
        changes: &[(Box<str>, Change)],
    ) -> HashMap<Box<str>, Own> {
        let (mut own, mut in_flight) = (HashMap::new(), self.in_flight.lock());
        if in_flight.is_empty() {
            return own;
        }
        let changes: HashMap<&str, &Change> = changes.iter().map(|(key, change)| (&**key, change)).collect();
        for flight in in_flight.values_mut() {
            match (&mut flight.resynced, flight.revision) {
                // The thread that learned its outcome is about to settle it.
                (Some((_, last)), _) => *last = revision,
                (None, Some(committed)) => {
                    if before < committed && committed <= revision {
                        own.extend(flight.own(committed));
                    }
                }
                (resynced @ None, None) => {
                    *resynced = Some((before, revision));
                    for (key, ..) in flight.sent.changed() {
                        let deferred = Deferred::new(changes.get(key).copied(), || self.entry(key), revision);
                        applying.deferred.insert(key.into(), deferred);
                    }
                }
            }
        }
        own
    }

    fn entry(&self, key: &str) -> Option<Entry> {
        let hashed = self.map.hash(key.as_bytes());
        self.map.read(self.map.shard_of(hashed)).get(hashed).cloned()
    }

    /// Reports what a load has changed under the keys of a write, whose outcome is known now.
    pub(super) fn settle(&self, id: u64) {
        let mut applying = self.applying.lock();
        let mut in_flight = self.in_flight.lock();
        let Some(flight) = in_flight.get_mut(&id) else { return };
        let reports = flight.settle(&mut applying);
        drop(in_flight);
        self.report_settled(reports);
    }

    /// As [`settle`](Self::settle), of a write that is no longer in flight.
    pub(super) fn settle_ended(&self, flight: &mut InFlight) {
        let mut applying = self.applying.lock();
        let reports = flight.settle(&mut applying);
        self.report_settled(reports);
    }

    fn report_settled(&self, reports: Vec<(Box<str>, Deferred, Option<Own>)>) {
        for (key, Deferred { before, now }, own) in reports {
            match own {
                Some(own) => own.report(self, &key, before, &now),
                None => self.report_difference(&key, before, &now),
            }
        }
    }
}

/// The effect of a write of this host on one key. Only this host reports it.
struct Own {
    before: Option<Entry>,
    after: Option<Entry>,
    revision: u64,
}

impl Own {
    /// Reports what others have changed before and after it. Before it they can only have removed an entry, because the write was
    /// decided on what there was.
    fn report(self, state: &State, key: &str, before: Option<Entry>, now: &Change) {
        let revision = self.revision - 1;
        let removed = Change { before: None, after: self.before, revision, expired: false };
        state.report_difference(key, before, &removed);
        state.report_difference(key, self.after, now);
    }
}

impl Deferred {
    fn new(change: Option<&Change>, entry: impl FnOnce() -> Option<Entry>, revision: u64) -> Self {
        match change {
            Some(change) => Self { before: change.before.clone(), now: change.clone() },
            None => {
                let after = entry();
                let now = Change { before: None, after: after.clone(), revision, expired: false };
                Self { before: after, now }
            }
        }
    }
}

impl InFlight {
    /// Takes the reports that were deferred for this write, with what it has done if the loads contained it.
    fn settle(&mut self, applying: &mut Applying) -> Vec<(Box<str>, Deferred, Option<Own>)> {
        let Some((first, last)) = self.resynced.take() else { return Vec::new() };
        let part = self.revision.filter(|revision| first < *revision && *revision <= last);
        let mut own: HashMap<_, _> = part.map_or_else(HashMap::new, |revision| self.own(revision).collect());
        let settle = |(key, ..): (&str, _, _)| {
            let (key, deferred) = applying.deferred.remove_entry(key)?;
            let own = own.remove(&key);
            Some((key, deferred, own))
        };
        self.sent.changed().into_iter().filter_map(settle).collect()
    }

    /// The effect of the write on each key that it has changed.
    fn own(&self, revision: u64) -> impl Iterator<Item = (Box<str>, Own)> {
        let own = move |(key, before, after): (&str, Option<&Entry>, Option<&Entry>)| {
            (key.into(), Own { before: before.cloned(), after: after.cloned(), revision })
        };
        self.sent.changed().into_iter().map(own)
    }
}

/// Puts an entry into a load.
fn put(map: &Map, load: &mut HashTable<Entry>, entry: Entry) {
    let hash = |entry: &Entry| map.hash(entry.key_bytes()).hash();
    match load.entry(hash(&entry), |other| other.key_bytes() == entry.key_bytes(), hash) {
        hash_table::Entry::Occupied(mut occupied) => *occupied.get_mut() = entry,
        hash_table::Entry::Vacant(vacant) => _ = vacant.insert(entry),
    }
}

fn find<'a>(load: &'a HashTable<Entry>, hashed: Hashed<'_>) -> Option<&'a Entry> {
    load.find(hashed.hash(), |entry| entry.key_bytes() == hashed.key)
}
