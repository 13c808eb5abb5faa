//! The true history: every revision, and when it was committed.

use std::collections::{BTreeMap, HashMap};

/// A change of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) key: String,
    /// `None` if the entry was removed.
    pub(crate) record: Option<Vec<u8>>,
    pub(crate) expired: bool,
}

/// The changes of one revision.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub(crate) revision: u64,
    /// The step of the simulation at which it was committed.
    pub(crate) step: u64,
    /// The connection through which it was committed.
    pub(crate) link: u64,
    pub(crate) changes: Vec<Changed>,
}

/// All revisions.
#[derive(Default)]
pub(crate) struct Truth {
    committed: Vec<Committed>,
    /// The revision of each entry since each of its changes; 0 for none.
    by_key: HashMap<String, BTreeMap<u64, u64>>,
}

impl Truth {
    pub(crate) fn push(&mut self, committed: Committed) {
        assert!(self.last() < committed.revision);
        for change in &committed.changes {
            let revision = if change.record.is_some() { committed.revision } else { 0 };
            let before = self.by_key.entry(change.key.clone()).or_default().insert(committed.revision, revision);
            assert_eq!(before, None, "a key has a revision once");
        }
        self.committed.push(committed);
    }

    /// The last revision.
    pub(crate) fn last(&self) -> u64 {
        self.committed.last().map_or(0, |committed| committed.revision)
    }

    /// The last revision that was committed at or before a step.
    pub(crate) fn last_at(&self, step: u64) -> u64 {
        let count = self.committed.partition_point(|committed| committed.step <= step);
        count.checked_sub(1).map_or(0, |last| self.committed[last].revision)
    }

    /// The revisions after a revision, up to another one.
    pub(crate) fn between(&self, after: u64, to: u64) -> &[Committed] {
        let count = |revision: u64| self.committed.partition_point(|committed| committed.revision <= revision);
        &self.committed[count(after)..count(to).max(count(after))]
    }

    pub(crate) fn at(&self, revision: u64) -> Option<&Committed> {
        self.committed
            .binary_search_by_key(&revision, |committed| committed.revision)
            .ok()
            .map(|at| &self.committed[at])
    }

    /// The revision that an entry has in the state at a revision; 0 for none.
    pub(crate) fn entry_at(&self, key: &str, revision: u64) -> u64 {
        let changes = self.by_key.get(key);
        changes.and_then(|changes| changes.range(..=revision).next_back()).map_or(0, |(_, entry)| *entry)
    }

    /// Whether these entries, each a key and its revision, were the state at a moment between two steps.
    pub(crate) fn was_seen(&self, seen: &[(String, u64)], from: u64, to: u64) -> bool {
        let (first, last) = (self.last_at(from), self.last_at(to));
        let is_state = |revision| seen.iter().all(|(key, entry)| self.entry_at(key, revision) == *entry);
        is_state(first) || self.between(first, last).iter().any(|committed| is_state(committed.revision))
    }
}
