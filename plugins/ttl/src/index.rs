//! An index of the keys that expire, as hooks report them. Knows neither the host nor a clock.
//!
//! After-hooks of one key run in any order. So that an old one cannot restore what a newer one removed, the index
//! remembers a key from the guard of a write until its after-hook, with the newest reported revision. It forgets a key
//! without a write in flight and without an expiry.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The state of a key. Times are in milliseconds since 1970.
#[derive(Default)]
struct Slot {
    revision: u64,
    expiry: Option<u64>,
    /// The time of its removal: its expiry, or later if the removal was refused.
    due: u64,
    /// The number of writes in flight: their guard has passed, and neither after nor undo has run.
    under_way: u32,
}

/// An entry to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) key: Arc<str>,
    pub(crate) revision: u64,
}

#[derive(Default)]
pub(crate) struct Index {
    slots: HashMap<Arc<str>, Slot>,
    /// The keys that expire, ordered by the time of their removal.
    due: BTreeSet<(u64, Arc<str>)>,
    /// The time of the last call of [`due`](Self::due).
    asked: u64,
}

impl Index {
    /// Returns the number of entries that expire.
    pub(crate) fn len(&self) -> usize {
        self.due.len()
    }

    /// Returns the number of keys in the index, whether they expire or not.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.slots.len()
    }

    /// Records that the guard of a write has passed. [`done`](Self::done) or [`undone`](Self::undone) follows.
    pub(crate) fn begun(&mut self, key: &str) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.under_way += 1;
        } else {
            self.slots.insert(key.into(), Slot { under_way: 1, ..Slot::default() });
        }
    }

    /// Records that a write succeeded, with its revision and expiry.
    pub(crate) fn done(&mut self, key: &str, revision: u64, expiry: Option<u64>) {
        self.ended(key);
        self.learn(key, revision, expiry);
    }

    /// Records that a write does not happen.
    pub(crate) fn undone(&mut self, key: &str) {
        self.ended(key);
        self.forget_if_idle(key);
    }

    /// Adds an entry that was stored before the start.
    pub(crate) fn found(&mut self, key: &str, revision: u64, expiry: u64) {
        self.slots.entry(key.into()).or_default();
        self.learn(key, revision, Some(expiry));
    }

    /// Records that another host has written or removed the entry of a key. The caller reports the changes of other hosts in
    /// their order, each before any later change of the key by this host.
    pub(crate) fn applied(&mut self, key: &str, revision: u64, expiry: Option<u64>) {
        if expiry.is_some() {
            self.slots.entry(key.into()).or_default();
        }
        self.learn(key, revision, expiry);
    }

    /// Updates a known key with what the store holds. Ignores an unknown key, which may have been removed since it was
    /// read.
    pub(crate) fn learn(&mut self, key: &str, revision: u64, expiry: Option<u64>) {
        let Some((known, slot)) = self.slots.get_key_value(key) else { return };
        if revision > slot.revision {
            let known = Arc::clone(known);
            self.set(&known, revision, expiry, expiry);
        }
        self.forget_if_idle(key);
    }

    /// Records that the store no longer holds this revision of the key.
    pub(crate) fn gone(&mut self, due: &Due) {
        if self.slots.get(&due.key).is_some_and(|slot| slot.revision == due.revision) {
            self.set(&due.key, due.revision, None, None);
            self.forget_if_idle(&due.key);
        }
    }

    /// Postpones the removal of an entry.
    pub(crate) fn postpone(&mut self, due: &Due, until: u64) {
        let Some(slot) = self.slots.get(&due.key) else { return };
        if slot.revision == due.revision && slot.expiry.is_some() {
            self.set(&due.key, due.revision, slot.expiry, Some(until));
        }
    }

    /// Returns the entry of this key if it has expired.
    pub(crate) fn expired(&self, key: &str, now: u64) -> Option<Due> {
        let (key, slot) = self.slots.get_key_value(key)?;
        let expired = slot.expiry.is_some_and(|expiry| expiry <= now);
        expired.then(|| Due { key: Arc::clone(key), revision: slot.revision })
    }

    /// Returns the first due entries, at most `most`.
    pub(crate) fn due(&mut self, now: u64, most: usize) -> Vec<Due> {
        if now < self.asked {
            // The clock was set back: postponed removals would wait for a time that has already passed.
            let slots = self.slots.iter_mut();
            self.due = slots.filter_map(|(key, slot)| Some((slot.be_due_again()?, Arc::clone(key)))).collect();
        }
        self.asked = now;
        let due = self.due.iter().take_while(|(due, _)| *due <= now).take(most);
        due.map(|(_, key)| Due { key: Arc::clone(key), revision: self.slots[key].revision }).collect()
    }

    /// Returns the time of the next removal.
    pub(crate) fn next(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    fn set(&mut self, key: &Arc<str>, revision: u64, expiry: Option<u64>, due: Option<u64>) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        if slot.expiry.is_some() {
            self.due.remove(&(slot.due, Arc::clone(key)));
        }
        (slot.revision, slot.expiry, slot.due) = (revision, expiry, due.unwrap_or(0));
        if let Some(due) = due {
            self.due.insert((due, Arc::clone(key)));
        }
    }

    fn ended(&mut self, key: &str) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.under_way = slot.under_way.saturating_sub(1);
        }
    }

    fn forget_if_idle(&mut self, key: &str) {
        if self.slots.get(key).is_some_and(|slot| slot.under_way == 0 && slot.expiry.is_none()) {
            self.slots.remove(key);
        }
    }
}

impl Slot {
    fn be_due_again(&mut self) -> Option<u64> {
        self.due = self.expiry?;
        self.expiry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(index: &mut Index, now: u64) -> Vec<(String, u64)> {
        index.due(now, 10).iter().map(|due| (due.key.to_string(), due.revision)).collect()
    }

    #[test]
    fn late_after_hooks_revive_no_removed_entry_and_leave_no_slot() {
        let mut index = Index::default();
        for _ in 0..3 {
            index.begun("a");
        }
        index.done("a", 3, None);
        index.done("a", 2, Some(50));
        assert_eq!(index.expired("a", 100), None);
        index.done("a", 1, Some(20));
        assert_eq!((due(&mut index, 100), index.len(), index.slots.len()), (vec![], 0, 0));
    }

    #[test]
    fn the_newest_revision_decides_when_a_key_expires() {
        let mut index = Index::default();
        index.begun("a");
        index.begun("a");
        index.done("a", 2, Some(50));
        index.done("a", 1, Some(20));
        assert_eq!(due(&mut index, 49), []);
        assert_eq!(due(&mut index, 50), [("a".to_owned(), 2)]);
        assert_eq!(index.len(), 1);
    }

    #[test]
    fn an_undone_write_leaves_its_key_unchanged() {
        let mut index = Index::default();
        index.begun("new");
        index.undone("new");
        assert!(index.slots.is_empty());
        index.found("old", 1, 20);
        index.begun("old");
        index.undone("old");
        assert_eq!(due(&mut index, 20), [("old".to_owned(), 1)]);
    }

    #[test]
    fn a_postponed_removal_is_due_later_and_at_once_after_the_clock_is_set_back() {
        let mut index = Index::default();
        index.found("a", 1, 20);
        let found = index.due(30, 1).remove(0);
        index.postpone(&found, 60);
        assert_eq!((due(&mut index, 59), index.next()), (vec![], Some(60)));
        assert_eq!(due(&mut index, 60).len(), 1);
        index.postpone(&found, 90);
        assert_eq!(due(&mut index, 25).len(), 1);
        assert_eq!(due(&mut index, 10), []);
        assert_eq!(index.next(), Some(20));
    }

    #[test]
    fn reports_about_another_revision_change_nothing() {
        let mut index = Index::default();
        index.found("a", 7, 20);
        let old = Due { key: "a".into(), revision: 6 };
        index.gone(&old);
        index.postpone(&old, 90);
        assert_eq!(due(&mut index, 20), [("a".to_owned(), 7)]);
        index.gone(&Due { key: "a".into(), revision: 7 });
        assert!(index.slots.is_empty() && index.due.is_empty());
    }

    #[test]
    fn a_late_after_hook_does_not_replace_a_later_change_of_another_host() {
        let mut index = Index::default();
        index.begun("a");
        index.begun("b");
        index.applied("a", 3, None);
        index.applied("b", 4, Some(90));
        index.done("a", 1, Some(20));
        index.done("b", 2, Some(20));
        assert_eq!((due(&mut index, 50), due(&mut index, 90)), (vec![], vec![("b".to_owned(), 4)]));
        index.applied("b", 5, None);
        assert!(index.slots.is_empty() && index.due.is_empty());
    }
}
