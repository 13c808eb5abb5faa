//! Group commit: writes that wait become one transaction, and several are in flight.
//!
//! A group whose response is lost may or may not have taken effect. Then no further group is sent until `session` has
//! raised a new fence: after that, no group of the old one can take effect, and the slots say which have.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::client::{CallError, TXN};
use crate::keys::Keys;
use crate::node::Node;
use crate::proto::{KeyValue, ResponseHeader, TxnRequest, TxnResponse};
use crate::returning::{Returning, linger_after, most_of};
use crate::write::{Fence, Form, Group, Limits, Pending, Room};
use vkog_plugin_api::backend::{CommitOutcome, Write};

/// How long etcd may take for a group. A member that does not answer at all is noticed earlier, by `alive`.
const GROUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a write is sent again after it was lost.
const ATTEMPTS_MAX: u32 = 5;
/// The message while etcd's database is full.
pub(crate) const FULL: &str =
    "the database of etcd is full; compact and defragment it or raise its quota, then disarm its alarm";
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
    /// The last group that ended had conflicts, so the next ones may have some.
    has_conflicts: bool,
    /// What to expect of the clients.
    returning: Returning,
    /// A task calls [`pump`] when these are to be sent although others may return.
    lingers: bool,
    /// The slots that no group in flight has.
    free: Vec<usize>,
    /// Groups are sent while there is one.
    fence: Option<Fence>,
    number: u64,
    /// Why writes are dropped.
    closed: Option<String>,
    /// The outcome of all writes while etcd accepts none, so that there is no fence: its database is full, or the user may not write.
    refusal: Option<CommitOutcome>,
}

/// The result of [`Commits::next`].
enum Next {
    Send(u64, Fence, TxnRequest),
    /// Call it again then, because writes of clients are expected.
    At(Instant),
    Nothing,
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
        if let Some(refusal) = &queue.refusal {
            return Err(refusal.clone());
        }
        if queue.waiting_bytes + pending.bytes > WAITING_BYTES_MAX {
            let message = format!("writes of {} bytes wait for etcd already", queue.waiting_bytes);
            return Err(CommitOutcome::Dropped { message });
        }
        queue.waiting_bytes += pending.bytes;
        queue.waiting.push_back(pending);
        Ok(())
    }

    /// Forms the next group if one may be sent.
    fn next(&self, keys: &Keys) -> Next {
        let mut queue = self.queue();
        let Some(fence) = queue.fence.clone().filter(|_| !queue.waiting.is_empty()) else { return Next::Nothing };
        if !queue.is_worth_a_group(&self.limits, self.slots) {
            // Otherwise the end of a group in flight calls this again.
            let until = queue.returning.until().filter(|_| queue.writes_in_flight == 0 && !queue.lingers);
            queue.lingers |= until.is_some();
            return until.map_or(Next::Nothing, Next::At);
        }
        let Some(slot) = queue.free.pop() else { return Next::Nothing };
        let mut room = Room::new(&self.limits);
        let mut writes = Vec::new();
        while queue.waiting.front().is_some_and(|write| room.add(write)) {
            writes.extend(queue.waiting.pop_front());
        }
        queue.waiting_bytes -= writes.iter().map(|write| write.bytes).sum::<usize>();
        queue.number += 1;
        let (number, sent) = (queue.number, Instant::now());
        let mut group = Group { number, slot, writes, form: Form::Nested, is_over_quota: false, sent };
        if !queue.has_conflicts && group.fits_flat(&self.limits) {
            group.form = Form::Flat;
        }
        let request = group.request(keys, &fence);
        queue.writes_in_flight += group.writes.len();
        queue.in_flight.insert(number, group);
        Next::Send(number, fence, request)
    }

    /// Ends the wait for writes of clients.
    fn stop_lingering(&self) {
        self.queue().lingers = false;
    }

    /// Takes the outcomes of a group from the response to it. None if they are known already.
    fn finish(&self, number: u64, response: &TxnResponse) -> Outcomes {
        let Some(group) = self.take(number) else { return Vec::new() };
        let revision = revision_of(response.header.as_ref());
        // In a flat group there are none: it has no conflicts.
        let mut nested = response.responses.iter().filter_map(|response| response.txn.as_ref());
        let mut has_conflicts = false;
        let outcome = |write: Pending| match nested.next() {
            Some(txn) if !txn.succeeded => {
                has_conflicts = true;
                (write.id, CommitOutcome::Conflict { revision })
            }
            _ => (write.id, CommitOutcome::Committed { revision }),
        };
        let outcomes = group.writes.into_iter().map(outcome).collect();
        self.queue().has_conflicts = has_conflicts;
        outcomes
    }

    /// Returns the nested transaction of a group whose flat one had no effect. None if it has another outcome already, or if there
    /// is nothing else to try: then the fence is gone.
    fn nest(&self, number: u64, keys: &Keys, fence: &Fence) -> Option<TxnRequest> {
        let mut queue = self.queue();
        let group = queue.in_flight.get_mut(&number).filter(|group| group.form == Form::Flat)?;
        group.form = Form::Nested;
        let request = group.request(keys, fence);
        queue.has_conflicts = true;
        Some(request)
    }

    /// Takes the outcomes of a group that etcd refused. If it was too large, its writes are sent one by one.
    fn refuse(&self, number: u64, error: &CallError, keys: &Keys) -> Outcomes {
        let Some(mut group) = self.take(number) else { return Vec::new() };
        if error.limit().is_some() && group.writes.len() > 1 {
            group.writes.iter_mut().for_each(|write| write.alone = true);
            self.queue().put_back(group.writes);
            return Vec::new();
        }
        let refusal = |write: Pending| (write.id, refusal(error, &write, keys));
        group.writes.into_iter().map(refusal).collect()
    }

    /// Notes that a group failed because the database is full.
    fn note_full(&self, number: u64) {
        let mut queue = self.queue();
        queue.refusal = Some(no_space());
        if let Some(group) = queue.in_flight.get_mut(&number) {
            group.is_over_quota = true;
        }
    }

    /// Refuses writes until there is a fence again. Returns the outcomes of those that wait.
    pub(crate) fn refuse_all(&self, refusal: CommitOutcome) -> Outcomes {
        self.queue().refusal = Some(refusal.clone());
        self.drop_waiting(&refusal)
    }

    /// Returns why all writes are refused, if they are.
    pub(crate) fn refusal(&self) -> Option<String> {
        match &self.queue().refusal {
            Some(CommitOutcome::Refused { message, .. }) => Some(message.clone()),
            _ => None,
        }
    }

    fn take(&self, number: u64) -> Option<Group> {
        let mut queue = self.queue();
        let group = queue.in_flight.remove(&number)?;
        let writes = queue.writes_in_flight + queue.waiting.len();
        queue.returning.expect(writes, linger_after(group.sent));
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
        queue.refusal = None;
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
            let revision = slot.revision();
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
    /// Returns whether the writes that wait should be sent now, and not together with those that follow. Each group costs etcd a
    /// proposal, so groups are best full, or hold the writes of all clients.
    fn is_worth_a_group(&mut self, limits: &Limits, slots: usize) -> bool {
        let writes = self.returning.expected(self.writes_in_flight + self.waiting.len());
        // A few writes need not wait for each other: they have a slot each.
        writes <= slots
            || self.waiting.len() >= most_of(writes.min(limits.writes()))
            || self.waiting_bytes >= limits.bytes / 2
            || self.waiting.front().is_some_and(|write| write.alone)
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
    loop {
        let sender = Arc::clone(node);
        match node.commits.next(&node.keys) {
            Next::Send(number, fence, request) => {
                node.runtime.spawn(async move { send(&sender, number, fence, request).await });
            }
            Next::At(time) => {
                node.runtime.spawn(async move {
                    tokio::time::sleep_until(time.into()).await;
                    sender.commits.stop_lingering();
                    pump(&sender);
                });
                return;
            }
            Next::Nothing => return,
        }
    }
}

/// Sends a group, and reports its outcomes if they are certain.
async fn send(node: &Arc<Node>, number: u64, fence: Fence, request: TxnRequest) {
    let mut response = node.client.call::<_, TxnResponse>(TXN, request, GROUP_TIMEOUT).await;
    if response.as_ref().is_ok_and(|response| !response.succeeded)
        && let Some(request) = node.commits.nest(number, &node.keys, &fence)
    {
        response = node.client.call(TXN, request, GROUP_TIMEOUT).await;
    }
    let outcomes = match response {
        Ok(response) if response.succeeded => node.commits.finish(number, &response),
        Err(error) if error.limit().is_some() => node.commits.refuse(number, &error, &node.keys),
        Err(error) if error.is_denied() => {
            // The session finds out whether it may write anything, and when it may again.
            renew_session(node, &fence);
            node.commits.refuse(number, &error, &node.keys)
        }
        // The fence is gone, or it is not known whether the group has taken effect.
        unknown => {
            if unknown.is_err_and(|error| error.is_no_space()) {
                node.commits.note_full(number);
            }
            renew_session(node, &fence);
            return;
        }
    };
    pump(node);
    node.report(outcomes);
}

/// Has the session raise another fence, unless it has done so since this one.
fn renew_session(node: &Node, fence: &Fence) {
    if node.commits.stop(fence) {
        node.wake_session();
    }
}

/// Returns the outcome of a write that etcd refused alone.
fn refusal(error: &CallError, write: &Pending, keys: &Keys) -> CommitOutcome {
    error.limit().map_or_else(|| denied(error, keys), |limit| write.refusal(limit))
}

/// Returns the outcome of a write while the user may not write.
pub(crate) fn denied(error: &CallError, keys: &Keys) -> CommitOutcome {
    let prefix = keys.common_prefix();
    let message =
        format!("the user of this server may not write in etcd ({error}); grant it readwrite on the prefix {prefix}");
    CommitOutcome::Refused { status: 503, message }
}

/// Returns the outcome of a write while etcd's database is full.
pub(crate) fn no_space() -> CommitOutcome {
    CommitOutcome::Refused { status: 507, message: FULL.to_owned() }
}

/// Returns the revision in the header of a response.
pub(crate) fn revision_of(header: Option<&ResponseHeader>) -> u64 {
    header.and_then(|header| u64::try_from(header.revision).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vkog_plugin_api::backend::{Change, Condition};

    const LIMITS: Limits = Limits { bytes: 1 << 20, operations: 128, prefix: 4 };
    const SLOTS: usize = 4;

    /// A queue in which writes wait and are in flight. The clients of others may return within this time.
    fn queue(waiting: usize, in_flight: usize, returning: usize, within: Duration) -> Queue {
        let waiting = (0..waiting).map(|number| {
            let key = number.to_string();
            let (conditions, changes) = ([Condition::new(&key, 0)], [Change::put(&key, b"1")]);
            Pending::new(&Write::new(1, &conditions, &changes), &Keys::new("vkog"), &LIMITS)
                .unwrap_or_else(|outcome| panic!("{outcome:?}"))
        });
        let mut expected = Returning::default();
        expected.expect(returning, within);
        Queue { waiting: waiting.collect(), writes_in_flight: in_flight, returning: expected, ..Queue::default() }
    }

    #[test]
    fn groups_are_full_or_hold_the_writes_of_all_clients() {
        for (waiting, in_flight, returning, is_sent) in [
            (1, 0, 0, true),
            (1, 3, 4, true),
            (1, 15, 16, false),
            (1, 0, 16, false),
            (8, 0, 16, false),
            (15, 0, 16, true),
            (110, 125, 250, true),
            (60, 125, 250, false),
            (90, 90, 180, false),
            (110, 125, 600, true),
        ] {
            let mut queue = queue(waiting, in_flight, returning, Duration::from_secs(600));
            let is_worth_it = queue.is_worth_a_group(&LIMITS, SLOTS);
            assert_eq!(is_worth_it, is_sent, "{waiting} wait, {in_flight} are in flight, {returning} before");
        }
    }

    #[test]
    fn clients_that_do_not_return_are_not_waited_for() {
        assert!(queue(1, 0, 16, Duration::ZERO).is_worth_a_group(&LIMITS, SLOTS));
    }
}
