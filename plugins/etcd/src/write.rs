//! A write on its way to etcd: one transaction, nested in that of its group.

use std::collections::HashSet;
use std::time::Instant;

use bytes::Bytes;
use prost::Message;

use crate::keys::Keys;
use crate::proto::{Compare, Compared, Last, RequestOp, TxnRequest};
use crate::settings::Settings;
use vkog_plugin_api::backend::{CommitOutcome, Write};

/// Operations of a group beside its writes: the slot and `last`.
const OWN_OPERATIONS: usize = 2;
/// The most that a group needs beside its writes, and each write beside its parts: keys, tags and lengths, in bytes. The rest
/// of a key is its prefix.
const GROUP_BYTES: usize = 1024;
const WRITE_BYTES: usize = 96;

/// The limits of one request to etcd.
#[derive(Copy, Clone)]
pub(crate) struct Limits {
    pub(crate) bytes: usize,
    pub(crate) operations: usize,
    /// The bytes of the prefix of all keys.
    pub(crate) prefix: usize,
}

/// A limit of etcd that a request exceeds.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum EtcdLimit {
    /// `--max-request-bytes`.
    Bytes,
    /// `--max-txn-ops`.
    Operations,
}

impl Limits {
    pub(crate) fn new(settings: &Settings, prefix: &str) -> Self {
        Self { bytes: settings.max_request_bytes, operations: settings.max_txn_ops, prefix: prefix.len() }
    }

    /// The most writes of one key that a group holds.
    pub(crate) fn writes(&self) -> usize {
        self.operations - OWN_OPERATIONS - 1
    }

    /// The most keys that one write can name: etcd counts the operations of a group, then those of the nested transaction.
    fn keys(&self) -> usize {
        self.operations - OWN_OPERATIONS - 1
    }
}

/// A write that waits or is in flight.
pub(crate) struct Pending {
    pub(crate) id: u64,
    compare: Vec<Compare>,
    changes: Vec<RequestOp>,
    /// The keys that it removes because they have expired.
    expired: Vec<String>,
    /// The bytes that it takes of a request.
    pub(crate) bytes: usize,
    /// The operations that it takes of a transaction, beside its own one.
    operations: usize,
    /// How often it was sent without effect.
    pub(crate) attempts: u32,
    /// It has to be sent in a group without others, because etcd refused the group.
    pub(crate) alone: bool,
}

impl Pending {
    /// Copies a write.
    ///
    /// # Errors
    ///
    /// The outcome of a write that etcd would refuse.
    pub(crate) fn new(write: &Write<'_>, keys: &Keys, limits: &Limits) -> Result<Self, CommitOutcome> {
        let compare: Vec<Compare> = write
            .conditions()
            .iter()
            .map(|condition| {
                let revision = i64::try_from(condition.revision()).unwrap_or(i64::MAX);
                Compare::equal(keys.entry(condition.key()), Compared::ModRevision(revision))
            })
            .collect();
        let changes: Vec<RequestOp> = write
            .changes()
            .iter()
            .map(|change| match change.record() {
                Some(record) => RequestOp::put(keys.entry(change.key()), Bytes::copy_from_slice(record), 0),
                None => RequestOp::delete(keys.entry(change.key())),
            })
            .collect();
        let expired: Vec<String> =
            write.changes().iter().filter(|change| change.expired()).map(|change| change.key().to_owned()).collect();
        let names = compare.len().max(changes.len());
        if names > limits.keys() {
            let message = format!(
                "the batch names {names} keys, {} are accepted; send several, or raise --max-txn-ops of etcd and max_txn_ops of \
                 [plugins.etcd]",
                limits.keys()
            );
            return Err(CommitOutcome::Refused { status: 422, message });
        }
        let nested = TxnRequest { compare, success: changes, failure: Vec::new() };
        let bytes =
            nested.encoded_len() + expired.iter().map(|key| key.len() + 8).sum::<usize>() + WRITE_BYTES + limits.prefix;
        let most = limits.bytes - GROUP_BYTES - 4 * limits.prefix;
        if bytes > most {
            let message = format!(
                "the write needs {bytes} bytes, {most} are accepted; raise --max-request-bytes of etcd and max_request_bytes of \
                 [plugins.etcd]"
            );
            return Err(CommitOutcome::Refused { status: 413, message });
        }
        let TxnRequest { compare, success: changes, .. } = nested;
        Ok(Self {
            id: write.id(),
            compare,
            changes,
            expired,
            bytes,
            operations: names.max(1),
            attempts: 0,
            alone: false,
        })
    }

    /// Returns its outcome if etcd, whose limits are lower than those of the settings, refuses it alone.
    pub(crate) fn refusal(&self, limit: EtcdLimit) -> CommitOutcome {
        let (status, message) = match limit {
            EtcdLimit::Operations => (
                422,
                format!(
                    "the batch names {} keys, more than etcd accepts; send several, or raise --max-txn-ops of etcd: it is lower than \
                     max_txn_ops of [plugins.etcd]",
                    self.operations
                ),
            ),
            EtcdLimit::Bytes => (
                413,
                format!(
                    "the write needs {} bytes, more than etcd accepts; raise --max-request-bytes of etcd: it is lower than \
                     max_request_bytes of [plugins.etcd]",
                    self.bytes
                ),
            ),
        };
        CommitOutcome::Refused { status, message }
    }

    /// Returns its keys. The host names each key that it changes in a condition.
    fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.compare.iter().map(|compare| &compare.key)
    }
}

/// Where a group takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    /// The id of this host.
    pub(crate) id: String,
    /// The revision in which the fence was created: that of another one is greater.
    pub(crate) revision: i64,
    /// The lease of the slots.
    pub(crate) lease: i64,
}

/// The form of the transaction of a group.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// All writes take effect, or none. It costs etcd least.
    Flat,
    /// Each write is a nested transaction in that of the group.
    Nested,
}

/// Writes that become one transaction.
pub(crate) struct Group {
    pub(crate) number: u64,
    pub(crate) slot: usize,
    pub(crate) writes: Vec<Pending>,
    /// How their conditions are checked.
    pub(crate) form: Form,
    /// etcd has answered that its database is full. It may have applied the group all the same.
    pub(crate) is_over_quota: bool,
    pub(crate) sent: Instant,
}

/// Decides which writes fit into one group.
pub(crate) struct Room<'a> {
    limits: &'a Limits,
    keys: HashSet<Bytes>,
    writes: usize,
    bytes: usize,
    /// The most that a nested transaction has.
    operations: usize,
    closed: bool,
}

impl<'a> Room<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        let bytes = GROUP_BYTES + 4 * limits.prefix;
        Self { limits, keys: HashSet::new(), writes: 0, bytes, operations: 0, closed: false }
    }

    /// Adds a write if it fits and names no key that the group has: etcd evaluates all conditions of a transaction on the
    /// state before it, and refuses two changes of one key.
    pub(crate) fn add(&mut self, write: &Pending) -> bool {
        let operations = self.operations.max(write.operations);
        let fits = !self.closed
            && self.bytes + write.bytes <= self.limits.bytes
            && self.writes + 1 + OWN_OPERATIONS + operations <= self.limits.operations
            && !(write.alone && self.writes > 0)
            && write.keys().all(|key| !self.keys.contains(key));
        if fits {
            self.keys.extend(write.keys().cloned());
            self.writes += 1;
            self.bytes += write.bytes;
            self.operations = operations;
            self.closed = write.alone;
        }
        fits
    }
}

impl Group {
    /// Returns whether it may be [`Form::Flat`].
    pub(crate) fn fits_flat(&self, limits: &Limits) -> bool {
        let operations: usize = self.writes.iter().map(|write| write.operations).sum();
        operations + OWN_OPERATIONS <= limits.operations
    }

    /// Returns the transaction. It takes effect only while the fence is the one it names. Then it notes its number in its
    /// slot, and that of each write that is a conflict, so that its outcome can be read as long as the slot is not used again.
    pub(crate) fn request(&self, keys: &Keys, fence: &Fence) -> TxnRequest {
        let number = Bytes::copy_from_slice(&self.number.to_be_bytes());
        let last = Last {
            host: fence.id.clone(),
            expired: self.writes.iter().flat_map(|write| &write.expired).cloned().collect(),
        };
        let mut compare = vec![Compare::equal(keys.fence(&fence.id), Compared::CreateRevision(fence.revision))];
        let mut success = Vec::with_capacity(self.writes.len() + OWN_OPERATIONS);
        success.push(RequestOp::put(keys.slot(&fence.id, self.slot), number.clone(), fence.lease));
        success.push(RequestOp::put(keys.last(), last.encode_to_vec().into(), 0));
        for (index, write) in self.writes.iter().enumerate() {
            match self.form {
                Form::Flat => {
                    compare.extend(write.compare.iter().cloned());
                    success.extend(write.changes.iter().cloned());
                }
                Form::Nested => {
                    let conflict = keys.conflict(&fence.id, self.slot, index);
                    success.push(RequestOp::txn(TxnRequest {
                        compare: write.compare.clone(),
                        success: write.changes.clone(),
                        failure: vec![RequestOp::put(conflict, number.clone(), fence.lease)],
                    }));
                }
            }
        }
        TxnRequest { compare, success, failure: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vkog_plugin_api::backend::{Change, Condition};

    const LIMITS: Limits = Limits { bytes: 10_000, operations: 20, prefix: 4 };

    fn pending(names: &[&str], bytes: usize) -> Result<Pending, CommitOutcome> {
        let record = vec![7; bytes];
        let conditions: Vec<_> = names.iter().map(|key| Condition::new(key, 1)).collect();
        let changes: Vec<_> = names.iter().map(|key| Change::put(key, &record)).collect();
        Pending::new(&Write::new(1, &conditions, &changes), &Keys::new("vkog"), &LIMITS)
    }

    fn fence() -> Fence {
        Fence { id: "7587869c9f1d2b05".to_owned(), revision: i64::MAX, lease: i64::MAX }
    }

    #[test]
    fn a_group_fits_into_the_request_that_it_was_counted_for() {
        let keys = Keys::new("vkog");
        let mut room = Room::new(&LIMITS);
        let mut writes = Vec::new();
        for number in 0.. {
            let write = pending(&[&format!("key{number}")], 300 + number).expect("it is small");
            if !room.add(&write) {
                break;
            }
            writes.push(write);
        }
        assert!(writes.len() > 12, "{}", writes.len());
        let (form, sent) = (Form::Nested, Instant::now());
        let mut group = Group { number: u64::MAX, slot: 63, writes, form, is_over_quota: false, sent };
        assert!(group.fits_flat(&LIMITS));
        for form in [Form::Nested, Form::Flat] {
            group.form = form;
            let request = group.request(&keys, &fence());
            assert!(request.encoded_len() + 100 <= LIMITS.bytes, "{form:?}: {}", request.encoded_len());
            assert!(room.bytes >= request.encoded_len());
            assert!(request.compare.len().max(request.success.len()) <= LIMITS.operations, "{form:?}");
        }
    }

    #[test]
    fn a_group_has_each_key_once() {
        let mut room = Room::new(&LIMITS);
        for (names, fits) in [(&["a", "b"][..], true), (&["c"], true), (&["d", "a"], false), (&["d"], true)] {
            let write = pending(names, 1).expect("it is small");
            assert_eq!(room.add(&write), fits, "{names:?}");
        }
    }

    #[test]
    fn a_group_has_as_many_operations_as_etcd_counts() {
        for (names, count) in [(1, 17), (5, 13), (17, 1)] {
            let mut room = Room::new(&LIMITS);
            let mut writes = 0;
            loop {
                let names: Vec<String> = (0..names).map(|name| format!("{writes}/{name}")).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                if !room.add(&pending(&names, 1).expect("it is small")) {
                    break;
                }
                writes += 1;
            }
            assert_eq!(writes, count, "{names} keys in each write");
        }
    }

    #[test]
    fn a_write_over_a_limit_is_refused() {
        let names: Vec<String> = (0..18).map(|name| name.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for (write, expected) in [(pending(&names, 1), 422), (pending(&["a"], 9_000), 413)] {
            match write.map(|write| write.id) {
                Err(CommitOutcome::Refused { status, .. }) if status == expected => {}
                other => panic!("expected {expected}, got {other:?}"),
            }
        }
    }
}
