//! Group commit: writes that wait become one transaction, and several are in flight.
//!
//! A group whose response is lost may or may not have taken effect. Then no further group is sent until `session` has
//! raised a new fence: after that, no group of the old one can take effect, and the slots say which have.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::client::{CallError, TXN};
use crate::keys::Keys;
use crate::node::Node;
use crate::proto::{KeyValue, TxnRequest, TxnResponse};
use crate::write::{Fence, Group, Limits, Pending, Room, too_large};
use vkog_plugin_api::backend::{CommitOutcome, Write};

/// How long etcd may take for a group. A member that does not answer at all is noticed earlier, by `alive`.
const GROUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a write is sent again after it was lost.
const ATTEMPTS_MAX: u32 = 5;
/// The message while etcd's database is full.
pub(crate) const FULL: &str = "the database of etcd is full; compact and defragment it, then disarm its alarm";
/// The maximum size of the writes that wait.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// The writes of this host.
pub(crate) struct Commits {
    limits: Limits,
    slots: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Pending>,
    waiting_bytes: usize,
    in_flight: BTreeMap<u64, Group>,
    writes_in_flight: usize,
    /// The slots that no group in flight has.
    free: Vec<usize>,
    /// Groups are sent while there is one.
    fence: Option<Fence>,
    number: u64,
    /// Why writes are dropped.
    closed: Option<String>,
    /// The database is full, so there is no fence.
    is_full: bool,
}

/// An outcome that is to be reported when no lock is held.
type Outcomes = Vec<(u64, CommitOutcome)>;

/// The outcomes of the groups in flight.
pub(crate) struct Settled {
    pub(crate) outcomes: Outcomes,
    /// The writes of which it cannot be found out.
    pub(crate) unknown: Vec<u64>,
}

impl Commits {
    pub(crate) fn new(limits: Limits, slots: usize) -> Self {
        Self { limits, slots, queue: Mutex::default() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a write.
    ///
    /// # Errors
    ///
    /// The outcome of a write that is not sent.
    pub(crate) fn add(&self, write: &Write<'_>, keys: &Keys) -> Result<(), CommitOutcome> {
        let pending = Pending::new(write, keys, &self.limits)?;
        let mut queue = self.queue();
        if let Some(message) = &queue.closed {
            return Err(CommitOutcome::Dropped { message: message.clone() });
        }
        if queue.is_full {
            return Err(no_space());
        }
        if queue.waiting_bytes + pending.bytes > WAITING_BYTES_MAX {
            let message = format!("writes of {} bytes wait for etcd already", queue.waiting_bytes);
            return Err(CommitOutcome::Dropped { message });
        }
        queue.waiting_bytes += pending.bytes;
        queue.waiting.push_back(pending);
        Ok(())
    }

    /// Forms the next group if one may be sent. Returns its number, its fence and its request.
    fn next(&self, keys: &Keys) -> Option<(u64, Fence, TxnRequest)> {
        let mut queue = self.queue();
        let fence = queue.fence.clone()?;
        if queue.waiting.is_empty() || !queue.is_worth_a_group(&self.limits) {
            return None;
        }
        let slot = queue.free.pop()?;
        let mut room = Room::new(&self.limits);
        let mut writes = Vec::new();
        while queue.waiting.front().is_some_and(|write| room.add(write)) {
            writes.extend(queue.waiting.pop_front());
        }
        queue.waiting_bytes -= writes.iter().map(|write| write.bytes).sum::<usize>();
        queue.number += 1;
        let group = Group { number: queue.number, slot, writes, is_over_quota: false };
        let request = group.request(keys, &fence);
        let number = group.number;
        queue.writes_in_flight += group.writes.len();
        queue.in_flight.insert(number, group);
        Some((number, fence, request))
    }

    /// Takes the outcomes of a group from the response to it. None if they are known already.
    fn finish(&self, number: u64, response: &TxnResponse) -> Outcomes {
        let Some(group) = self.take(number) else { return Vec::new() };
        let revision = revision_of(response);
        // The first two responses are those of the slot and of `last`.
        let mut nested = response.responses.iter().filter_map(|response| response.txn.as_ref());
        let outcome = |write: Pending| match nested.next() {
            Some(txn) if txn.succeeded => (write.id, CommitOutcome::Committed { revision }),
            _ => (write.id, CommitOutcome::Conflict { revision }),
        };
        group.writes.into_iter().map(outcome).collect()
    }

    /// Takes the outcomes of a group that etcd refused. If it was too large, its writes are sent one by one.
    fn refuse(&self, number: u64, error: &CallError) -> Outcomes {
        let Some(mut group) = self.take(number) else { return Vec::new() };
        if error.is_too_large() && group.writes.len() > 1 {
            group.writes.iter_mut().for_each(|write| write.alone = true);
            self.queue().put_back(group.writes);
            return Vec::new();
        }
        let refusal = |write: Pending| (write.id, refusal(error, &write));
        group.writes.into_iter().map(refusal).collect()
    }

    /// Notes that a group failed because the database is full.
    fn note_full(&self, number: u64) {
        let mut queue = self.queue();
        queue.is_full = true;
        if let Some(group) = queue.in_flight.get_mut(&number) {
            group.is_over_quota = true;
        }
    }

    /// Refuses writes until there is a fence again, because the database is full. Returns the outcomes of those that wait.
    pub(crate) fn refuse_all(&self) -> Outcomes {
        self.queue().is_full = true;
        self.drop_waiting(&no_space())
    }

    /// Returns whether writes are refused because the database is full.
    pub(crate) fn is_full(&self) -> bool {
        self.queue().is_full
    }

    fn take(&self, number: u64) -> Option<Group> {
        let mut queue = self.queue();
        let group = queue.in_flight.remove(&number)?;
        queue.writes_in_flight -= group.writes.len();
        queue.free.push(group.slot);
        Some(group)
    }

    /// Stops sending if this is the fence that groups are sent with. Returns whether it was.
    fn stop(&self, fence: &Fence) -> bool {
        let mut queue = self.queue();
        let is_current = queue.fence.as_ref() == Some(fence);
        if is_current {
            queue.fence = None;
        }
        is_current
    }

    /// Returns whether groups are sent.
    pub(crate) fn has_fence(&self) -> bool {
        self.queue().fence.is_some()
    }

    /// Stops sending.
    pub(crate) fn lower_fence(&self) {
        self.queue().fence = None;
    }

    /// Sends groups with a new fence. All groups of earlier ones have been settled.
    pub(crate) fn raise_fence(&self, fence: Fence) {
        let mut queue = self.queue();
        queue.free = (0..self.slots).rev().collect();
        queue.fence = Some(fence);
        queue.is_full = false;
    }

    /// Settles all groups in flight by the slots of this host, which were read after the fence was gone. Without `complete`,
    /// some slots may have been lost.
    pub(crate) fn settle(&self, slots: &[KeyValue], complete: bool, keys: &Keys, id: &str) -> Settled {
        let (mut outcomes, mut unknown) = (Vec::new(), Vec::new());
        let mut queue = self.queue();
        let noted = |key: bytes::Bytes, number: u64| {
            slots.iter().find(|slot| slot.key == key && slot.value == number.to_be_bytes()[..])
        };
        let mut lost = Vec::new();
        queue.writes_in_flight = 0;
        for (number, group) in std::mem::take(&mut queue.in_flight) {
            let Some(slot) = noted(keys.slot(id, group.slot), number) else {
                if group.is_over_quota && complete {
                    outcomes.extend(group.writes.iter().map(|write| (write.id, no_space())));
                } else if complete {
                    lost.extend(group.writes);
                } else {
                    unknown.extend(group.writes.iter().map(|write| write.id));
                }
                continue;
            };
            let revision = u64::try_from(slot.mod_revision).unwrap_or(0);
            for (index, write) in group.writes.into_iter().enumerate() {
                let outcome = match noted(keys.conflict(id, group.slot, index), number) {
                    Some(_) => CommitOutcome::Conflict { revision },
                    None => CommitOutcome::Committed { revision },
                };
                outcomes.push((write.id, outcome));
            }
        }
        let mut again = Vec::new();
        for mut write in lost {
            write.attempts += 1;
            if write.attempts < ATTEMPTS_MAX && queue.closed.is_none() {
                again.push(write);
            } else {
                let message =
                    format!("the connection to etcd broke each of the {} times that it was sent", write.attempts);
                outcomes.push((write.id, CommitOutcome::Dropped { message }));
            }
        }
        queue.put_back(again);
        Settled { outcomes, unknown }
    }

    /// Drops the writes that come.
    pub(crate) fn close(&self, reason: &str) {
        self.queue().closed = Some(reason.to_owned());
    }

    /// Takes the writes that wait, which have no effect, with this outcome.
    pub(crate) fn drop_waiting(&self, outcome: &CommitOutcome) -> Outcomes {
        let mut queue = self.queue();
        queue.waiting_bytes = 0;
        queue.waiting.drain(..).map(|write| (write.id, outcome.clone())).collect()
    }

    /// Takes writes again.
    pub(crate) fn reopen(&self) {
        self.queue().closed = None;
    }

    /// Returns the number of groups in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.queue().in_flight.len()
    }
}

impl Queue {
    /// Returns whether the writes that wait should not wait for a group in flight: because there are as many as in flight, or
    /// enough for a full group. Otherwise groups would get smaller and smaller, and each costs etcd a proposal.
    fn is_worth_a_group(&self, limits: &Limits) -> bool {
        self.waiting.len() >= self.writes_in_flight.min(limits.operations) || self.waiting_bytes >= limits.bytes / 2
    }

    /// Puts writes before all others that wait, in their order.
    fn put_back(&mut self, writes: Vec<Pending>) {
        for write in writes.into_iter().rev() {
            self.waiting_bytes += write.bytes;
            self.waiting.push_front(write);
        }
    }
}

/// Sends as many groups as may be in flight.
pub(crate) fn pump(node: &Arc<Node>) {
    while let Some((number, fence, request)) = node.commits.next(&node.keys) {
        let sender = Arc::clone(node);
        node.runtime.spawn(async move { send(&sender, number, fence, request).await });
    }
}

/// Sends a group, and reports its outcomes if they are certain.
async fn send(node: &Arc<Node>, number: u64, fence: Fence, request: TxnRequest) {
    let outcomes = match node.client.call::<_, TxnResponse>(TXN, request, GROUP_TIMEOUT).await {
        Ok(response) if response.succeeded => node.commits.finish(number, &response),
        Err(error) if error.is_too_large() || error.is_denied() => node.commits.refuse(number, &error),
        // The fence is gone, or it is not known whether the group has taken effect.
        unknown => {
            if unknown.is_err_and(|error| error.is_no_space()) {
                node.commits.note_full(number);
            }
            if node.commits.stop(&fence) {
                node.wake_session();
            }
            return;
        }
    };
    pump(node);
    node.report(outcomes);
}

/// Returns the outcome of a write that etcd refused alone.
fn refusal(error: &CallError, write: &Pending) -> CommitOutcome {
    if error.is_too_large() {
        too_large(write.bytes, write.bytes - 1)
    } else {
        let message =
            format!("the user of this server may not write in etcd ({error}); grant it readwrite on the prefix");
        CommitOutcome::Refused { status: 503, message }
    }
}

/// Returns the outcome of a write while etcd's database is full.
fn no_space() -> CommitOutcome {
    CommitOutcome::Refused { status: 507, message: FULL.to_owned() }
}

/// Returns the revision of a response.
pub(crate) fn revision_of(response: &TxnResponse) -> u64 {
    response.header.as_ref().and_then(|header| u64::try_from(header.revision).ok()).unwrap_or(0)
}
