//! Operations of clients: what they do, what they have seen, and whether their outcomes are true.

use std::sync::Arc;

use parking_lot::Mutex;
use vkog_store::{Change, Changes, Decide, Decision, Entry, NewEntry, Reads, StoreError, Update};

use crate::random::Random;
use crate::truth::Truth;

/// The keys: few, so that hosts and clients are often in each other's way.
pub(crate) const KEYS: [&str; 8] = ["a/1", "a/2", "a/3", "b/1", "b/2", "c/1", "c/2", "d"];

/// The action of an update on one key.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Put,
    /// Rejects if there is an entry.
    Create,
    /// Rejects unless the entry has this revision.
    Swap(u64),
    /// Rejects if there is none.
    Remove,
    Expire,
    Read,
    ReadAbsent,
    Withdraw,
}

#[derive(Clone, Debug)]
pub(crate) enum Script {
    Update(Vec<(&'static str, Action)>),
    Read(Reads, Vec<&'static str>),
}

impl Script {
    pub(crate) fn random(random: &mut Random, known: impl Fn(&str) -> u64) -> Self {
        let key = |random: &mut Random| KEYS[random.below(KEYS.len())];
        let count = if random.percent(65) { 1 } else { 2 + random.below(3) };
        if random.percent(35) {
            let reads = if random.percent(50) { Reads::Linearizable } else { Reads::Local };
            return Self::Read(reads, (0..count).map(|_| key(random)).collect());
        }
        let action = |random: &mut Random| {
            let key = key(random);
            let action = match random.below(100) {
                0..40 => Action::Put,
                40..55 => Action::Create,
                55..70 => Action::Swap(known(key)),
                70..82 => Action::Remove,
                82..87 => Action::Expire,
                87..95 => Action::Read,
                95..98 => Action::ReadAbsent,
                _ => Action::Withdraw,
            };
            (key, action)
        };
        Self::Update((0..count).map(|_| action(random)).collect())
    }
}

/// The record of one operation.
#[derive(Default)]
pub(crate) struct Record {
    /// The entries that the last run of its decisions has seen.
    seen: Vec<(String, u64)>,
    /// The number of guards that have passed and were not rolled back.
    guards: usize,
    pub(crate) finished: u32,
    faults: Vec<String>,
}

/// Decides as scripted, as the guards of plugins do, and records that.
pub(crate) struct Scripted {
    number: u64,
    script: Vec<(&'static str, Action)>,
    record: Arc<Mutex<Record>>,
}

impl Decide for Scripted {
    type Rejection = ();

    fn decide(&mut self, before: &[Change], current: Option<&Entry>) -> Decision<()> {
        let mut record = self.record.lock();
        let (index, revision) = (before.len(), current.map_or(0, Entry::revision));
        if index == 0 {
            record.seen.clear();
            if record.guards > 0 || record.finished > 0 {
                let fault = format!("decided with {} guards after {} outcomes", record.guards, record.finished);
                record.faults.push(fault);
            }
        }
        let (key, action) = self.script[index];
        if !self.script[..index].iter().any(|(other, _)| *other == key) {
            record.seen.push((key.to_owned(), revision));
        }
        let value = format!("{}.{index}", self.number);
        let entry =
            || Entry::new(key, &NewEntry { value: value.as_bytes(), content_type: "text/plain", details: vec![] });
        let decision = match action {
            Action::Create if current.is_some() => Decision::Reject(()),
            Action::Swap(expected) if expected != revision => Decision::Reject(()),
            Action::Remove | Action::Expire if current.is_none() => Decision::Reject(()),
            Action::Withdraw => Decision::Withdraw(()),
            Action::Put | Action::Create | Action::Swap(_) => Decision::Write(entry()),
            Action::Remove => Decision::Remove,
            Action::Expire => Decision::Expire,
            Action::Read => Decision::Read,
            Action::ReadAbsent => Decision::ReadAbsent,
        };
        record.guards += usize::from(!matches!(decision, Decision::Reject(()) | Decision::Withdraw(())));
        decision
    }

    fn undo(&mut self, decided: &[Change]) {
        let mut record = self.record.lock();
        match record.guards.checked_sub(decided.len()) {
            Some(guards) => record.guards = guards,
            None => record.faults.push("a guard was rolled back twice".to_owned()),
        }
    }
}

/// The result of a read.
pub(crate) struct Found {
    /// The keys, and the revisions of their entries.
    pub(crate) entries: Vec<(String, u64)>,
    /// The revision of the host.
    pub(crate) applied: u64,
}

/// The outcome of an operation.
pub(crate) enum Outcome {
    Updated(Update<(), Changes>),
    Read(Result<Found, Arc<StoreError>>),
}

/// An operation that has begun.
pub(crate) struct Operation {
    pub(crate) number: u64,
    pub(crate) script: Script,
    pub(crate) host: usize,
    pub(crate) began: u64,
    /// The host had no connection when it began.
    pub(crate) was_closed: bool,
    pub(crate) record: Arc<Mutex<Record>>,
}

impl Operation {
    pub(crate) fn new(number: u64, script: Script, host: usize, began: u64, was_closed: bool) -> Self {
        Self { number, script, host, began, was_closed, record: Arc::default() }
    }

    pub(crate) fn decide(&self) -> Scripted {
        let script = match &self.script {
            Script::Update(script) => script.clone(),
            Script::Read(..) => Vec::new(),
        };
        Scripted { number: self.number, script, record: Arc::clone(&self.record) }
    }

    /// Checks that the reported outcome is true. Returns whether the update took effect; `None` if that is unknown.
    pub(crate) fn check(&self, outcome: &Outcome, truth: &Truth, ended: u64, may_close: bool) -> Option<bool> {
        let record = self.record.lock();
        assert_eq!(record.faults, [""; 0], "{self:?}");
        assert_eq!(record.finished, 1, "{self:?}");
        let seen = || truth.was_seen(&record.seen, self.began, ended);
        match outcome {
            Outcome::Read(Ok(Found { entries: found, applied })) => {
                let Script::Read(reads, _) = &self.script else { panic!("{self:?} has read") };
                let is_state = found.iter().all(|(key, revision)| truth.entry_at(key, *applied) == *revision);
                assert!(is_state, "{self:?}: {found:?} is not what there was at {applied}");
                let is_current = truth.was_seen(found, self.began, ended);
                assert!(is_current || *reads == Reads::Local, "{self:?}: {found:?} was not current");
                Some(false)
            }
            Outcome::Read(Err(error)) => {
                assert!(is_lost(error, self.was_closed || may_close), "{self:?}: {error}");
                Some(false)
            }
            Outcome::Updated(Update::Rejected(())) => {
                assert_eq!(record.guards, 0, "{self:?}");
                let Script::Update(script) = &self.script else { panic!("{self:?} was rejected") };
                let last = script.iter().find(|(key, _)| record.seen.last().is_some_and(|(seen, _)| seen == key));
                let is_withdrawn = script.iter().any(|(_, action)| *action == Action::Withdraw) && last.is_some();
                assert!(is_withdrawn || seen(), "{self:?}: it was rejected for {:?}, which was never so", record.seen);
                Some(false)
            }
            Outcome::Updated(Update::ReadOnly(error)) => {
                assert_eq!(record.guards, 0, "{self:?}");
                assert!(is_lost(error, self.was_closed || may_close), "{self:?}: {error}");
                Some(false)
            }
            Outcome::Updated(Update::RolledBack { error, change }) => {
                assert_eq!(record.guards, change.len(), "{self:?}: the completion undoes each guard once");
                if !error.is_certain() {
                    return None;
                }
                Some(false)
            }
            Outcome::Updated(Update::Committed(changes)) => {
                assert_eq!(record.guards, changes.len(), "{self:?}");
                let Script::Update(script) = &self.script else { panic!("{self:?} was committed") };
                let Some(revision) = changes.iter().map(|change| change.revision).max().filter(|last| *last > 0) else {
                    assert!(seen(), "{self:?}: it read {:?}, which was never so", record.seen);
                    return Some(false);
                };
                self.check_committed(script, changes, revision, truth, ended);
                for (key, before) in &record.seen {
                    assert_eq!(truth.entry_at(key, revision - 1), *before, "{self:?} has not seen the entry of {key}");
                }
                Some(true)
            }
        }
    }

    fn check_committed(&self, script: &[(&str, Action)], changes: &Changes, revision: u64, truth: &Truth, ended: u64) {
        let committed = truth.at(revision).unwrap_or_else(|| panic!("{self:?}: there is no revision {revision}"));
        assert!(self.began <= committed.step && committed.step <= ended, "{self:?}: it was not committed meanwhile");
        for (index, ((key, _), change)) in script.iter().zip(changes).enumerate() {
            if change.is_read() {
                continue;
            }
            assert_eq!(change.revision, revision, "{self:?}: a step has one revision");
            let is_last = script[index + 1..]
                .iter()
                .zip(&changes[index + 1..])
                .all(|((later, _), change)| later != key || change.is_read());
            if !is_last {
                continue;
            }
            assert_eq!(truth.entry_at(key, revision), change.after.as_ref().map_or(0, Entry::revision), "{self:?}");
            let Some(after) = &change.after else { continue };
            let found = committed
                .changes
                .iter()
                .find(|changed| changed.key == *key)
                .and_then(|changed| changed.record.as_ref());
            let found = found.unwrap_or_else(|| panic!("{self:?}: {key} is not part of {revision}"));
            assert!(found.ends_with(after.value()), "{self:?}: {key} has another value");
        }
    }
}

/// Whether an error says that there is no connection, and there was none.
fn is_lost(error: &StoreError, may_be: bool) -> bool {
    may_be && matches!(error, StoreError::Disconnected { .. })
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { number, script, host, began, .. } = self;
        write!(f, "operation {number} of host {host}, step {began}, {script:?}")
    }
}
