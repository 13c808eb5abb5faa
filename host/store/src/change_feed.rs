//! The change feed: the last durable changes, in the order of their revisions, for watchers. A watcher is a position in the feed
//! and nothing else. No writer waits for a watcher; one that is too slow finds that its next change was dropped.

use std::collections::{HashMap, VecDeque, hash_map};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, RwLock};

use super::event::Event;
use super::update::Change;
use vkog_runtime::{Mailbox, Steps, ThreadPool};

/// Why a watch cannot start at a revision, or cannot continue.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Unwatchable {
    /// The next changes were dropped from the feed, which starts after this revision.
    Forgotten(u64),
    /// The store has not assigned this revision yet; this is the last one. The client received it from another store, or from this
    /// one before a crash lost changes that were not durable.
    Ahead(u64),
    /// No such revision was assigned: when the store was opened, it continued after this one.
    Unassigned(u64),
}

/// The changes and the watchers that wait for the next one.
pub(super) struct ChangeFeed {
    ring: RwLock<Ring>,
    /// The last revision before the store was opened, and the one after which it continues: none between them was assigned.
    gap: (u64, u64),
    /// The maximum size of its entries, in bytes.
    bytes_max: u64,
    waiting: Arc<Mutex<Vec<WaitList>>>,
    /// Wakes the watchers that wait on threads without a mailbox.
    threads: ThreadPool,
    /// The numbers of watches that were opened and that have ended.
    watches: [AtomicU64; 2],
}

struct Ring {
    events: VecDeque<Event>,
    bytes: u64,
    /// The number of dropped events.
    dropped: u64,
    /// The last revision before the first event.
    begins: u64,
    /// All watches have ended.
    ended: bool,
}

/// The watchers that wait on one mailbox, or on threads without one, by their numbers.
struct WaitList {
    mailbox: Option<Arc<Mailbox>>,
    /// Those that had seen all events when they started to wait.
    idle: HashMap<u64, Waker>,
    /// Those for which there are more events already.
    due: HashMap<u64, Waker>,
    /// A round of wake-ups is running.
    in_round: bool,
    /// There are events that the idle ones have not seen.
    stale: bool,
}

/// The memory of an event beside the bytes of its entry: its slot here, and the entry's header and allocation, in bytes.
const OVERHEAD: u64 = 72;
/// The number of watchers that are woken in one step. An event loop serves them before anything that arrives meanwhile.
const WOKEN_MAX: usize = 32;
/// The number of events that a watcher reads in one step, so that no writer waits for long.
const SCANNED_MAX: usize = 256;
/// The size after which a batch of events ends, in bytes. A watcher that stops reading holds no more than this and one entry.
const BATCH_BYTES_MAX: u64 = 64 << 10;

impl ChangeFeed {
    /// A feed that begins after a revision. All later revisions are also greater than `floor`.
    pub(super) fn new(begins: u64, floor: u64, bytes_max: u64) -> Self {
        Self {
            gap: (begins, floor),
            ring: RwLock::new(Ring { events: VecDeque::new(), bytes: 0, dropped: 0, begins, ended: false }),
            bytes_max,
            waiting: Arc::default(),
            threads: ThreadPool::new("watch"),
            watches: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// Appends durable changes, in the order of their revisions, and wakes the watchers that wait. All changes with one revision
    /// are appended in one call.
    pub(super) fn append<'a>(&self, changes: impl Iterator<Item = &'a Change>) {
        let mut ring = self.ring.write();
        let (mut last, mut place) = (0, 0);
        for change in changes {
            if let Some(entry) = change.after.as_ref().or(change.before.as_ref()) {
                let Change { revision, expired, .. } = *change;
                place = if revision == last { place + 1 } else { 0 };
                last = revision;
                ring.push(Event { entry: entry.clone(), revision, expired, place }, self.bytes_max);
            }
        }
        drop(ring);
        self.wake();
    }

    /// Drops all events, and continues after a revision: the changes before it are unknown. Every open watch ends with that.
    pub(super) fn restart(&self, revision: u64) {
        let mut ring = self.ring.write();
        // One more than there were, so that a watch that has seen all of them lacks one.
        ring.dropped = ring.appended() + 1;
        ring.events.clear();
        (ring.bytes, ring.begins) = (0, revision);
        drop(ring);
        self.wake();
    }

    /// Ends all watches.
    pub(super) fn end(&self) {
        self.ring.write().ended = true;
        self.wake();
    }

    /// The size of its entries, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.ring.read().bytes
    }

    /// The number of open watches.
    pub(super) fn watch_count(&self) -> u64 {
        let [begun, ended] = &self.watches;
        let ended = ended.load(Ordering::Relaxed);
        begun.load(Ordering::Relaxed).saturating_sub(ended)
    }

    /// Makes each mailbox wake its watchers, a few at a time. If a round is still running, another one follows it. A watcher that is
    /// woken later finds more events.
    fn wake(&self) {
        for (at, list) in self.waiting.lock().iter_mut().enumerate() {
            list.stale = true;
            self.begin_round(at, list);
        }
    }

    fn begin_round(&self, at: usize, list: &mut WaitList) {
        if list.in_round {
            return;
        }
        let wakers = list.ready();
        if wakers.len() == 0 {
            return;
        }
        list.in_round = true;
        let steps = rounds(Arc::clone(&self.waiting), at, wakers);
        let steps = match &list.mailbox {
            None => Some(steps),
            Some(mailbox) => mailbox.send_steps(steps),
        };
        if let Some(mut steps) = steps {
            self.threads.run(move || while steps().is_pending() {});
        }
    }

    /// Makes a watcher wait for the next event.
    fn wait(&self, watch: u64, waker: Waker) {
        let mut waiting = self.waiting.lock();
        wait_list(&mut waiting, Mailbox::current()).1.idle.insert(watch, waker);
    }

    /// Makes a watcher that was served wait for the event with the number `next`, or for its turn if there is one already.
    /// Otherwise all watchers that were woken once would keep their event loop busy as long as there are changes, and a request
    /// would wait behind them. Returns false for a watcher without a mailbox: it has its own thread and need not wait.
    fn wait_for_turn(&self, watch: u64, waker: Waker, next: u64) -> bool {
        let Some(here) = Mailbox::current() else { return false };
        let mut waiting = self.waiting.lock();
        let (at, list) = wait_list(&mut waiting, Some(here));
        let ring = self.ring.read();
        if ring.appended() == next && !ring.ended {
            list.idle.insert(watch, waker);
        } else {
            list.due.insert(watch, waker);
            self.begin_round(at, list);
        }
        true
    }
}

/// The wait list of a mailbox, and its index.
fn wait_list(waiting: &mut Vec<WaitList>, here: Option<Arc<Mailbox>>) -> (usize, &mut WaitList) {
    let same = |list: &WaitList| match (&list.mailbox, &here) {
        (Some(mailbox), Some(here)) => Arc::ptr_eq(mailbox, here),
        (None, None) => true,
        _ => false,
    };
    let at = waiting.iter().position(same).unwrap_or_else(|| {
        let (idle, due) = (HashMap::new(), HashMap::new());
        waiting.push(WaitList { mailbox: here.clone(), idle, due, in_round: false, stale: false });
        waiting.len() - 1
    });
    (at, &mut waiting[at])
}

impl WaitList {
    /// Takes the watchers that are to be woken.
    fn ready(&mut self) -> hash_map::IntoValues<u64, Waker> {
        let mut ready = std::mem::take(&mut self.due);
        if std::mem::take(&mut self.stale) {
            if ready.is_empty() {
                ready = std::mem::take(&mut self.idle);
            } else {
                ready.extend(self.idle.drain());
            }
        }
        ready.into_values()
    }
}

/// Wakes these watchers, and then those for which there are new events, as long as there are any.
fn rounds(waiting: Arc<Mutex<Vec<WaitList>>>, at: usize, mut wakers: hash_map::IntoValues<u64, Waker>) -> Steps {
    Box::new(move || {
        wakers.by_ref().take(WOKEN_MAX).for_each(Waker::wake);
        if wakers.len() > 0 {
            return Poll::Pending;
        }
        let list = &mut waiting.lock()[at];
        wakers = list.ready();
        if wakers.len() > 0 {
            return Poll::Pending;
        }
        list.in_round = false;
        Poll::Ready(())
    })
}

impl Ring {
    fn push(&mut self, event: Event, bytes_max: u64) {
        self.bytes += cost(&event);
        self.events.push_back(event);
        // The last one stays, however large it is, for the watchers that have seen all others.
        while self.bytes > bytes_max && self.events.len() > 1 {
            let Some(event) = self.events.pop_front() else { return };
            self.bytes -= cost(&event);
            self.dropped += 1;
            self.begins = event.revision;
        }
    }

    /// The number of events that were ever appended.
    fn appended(&self) -> u64 {
        self.dropped + self.events.len() as u64
    }

    /// The revision of the last event.
    fn last(&self) -> u64 {
        self.events.back().map_or(self.begins, |event| event.revision)
    }
}

fn cost(event: &Event) -> u64 {
    event.entry.len() as u64 + OVERHEAD
}

/// An open watch: a position in the change feed of a store.
pub struct Watch {
    feed: Arc<ChangeFeed>,
    prefix: String,
    number: u64,
    /// The number of events that were appended before its next one.
    next: u64,
    revision: u64,
    /// It has returned events since it last waited.
    served: bool,
}

impl Watch {
    /// Watches the changes of keys that start with a prefix, after a revision or from now on. `assigned` is the last revision that
    /// was assigned.
    pub(super) fn new(
        feed: &Arc<ChangeFeed>,
        prefix: String,
        since: Option<u64>,
        assigned: u64,
    ) -> Result<Self, Unwatchable> {
        let ring = feed.ring.read();
        let revision = since.unwrap_or_else(|| ring.last());
        if revision < ring.begins {
            return Err(Unwatchable::Forgotten(ring.begins));
        }
        let (before, floor) = feed.gap;
        // A revision of another life of the store is not followed by the changes of this one.
        if revision > assigned {
            return Err(Unwatchable::Ahead(assigned));
        }
        if before < revision && revision <= floor {
            return Err(Unwatchable::Unassigned(floor));
        }
        let next = ring.dropped + ring.events.partition_point(|event| event.revision <= revision) as u64;
        drop(ring);
        let number = feed.watches[0].fetch_add(1, Ordering::Relaxed);
        Ok(Self { feed: Arc::clone(feed), prefix, number, next, revision, served: false })
    }

    /// The revision up to which all events were returned.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns the next events, at least one; none once the watches have ended. If there is no event yet, the waker is woken when
    /// there may be one.
    ///
    /// # Errors
    ///
    /// The next events were dropped from the feed.
    pub fn poll(&mut self, context: &Context<'_>) -> Poll<Result<Vec<Event>, Unwatchable>> {
        if std::mem::take(&mut self.served) && self.feed.wait_for_turn(self.number, context.waker().clone(), self.next)
        {
            return Poll::Pending;
        }
        for waits in [false, true] {
            if waits {
                // An event that was appended before this needs a second look; one that is appended later wakes the watcher.
                self.feed.wait(self.number, context.waker().clone());
            }
            let ring = self.feed.ring.read();
            if ring.ended {
                return Poll::Ready(Ok(Vec::new()));
            }
            let Some(skipped) = self.next.checked_sub(ring.dropped) else {
                return Poll::Ready(Err(Unwatchable::Forgotten(ring.begins)));
            };
            let (mut found, mut bytes, mut scanned) = (Vec::new(), 0, 0);
            for event in ring.events.range(skipped as usize..) {
                // A watch is never between two events of one revision.
                if (bytes > BATCH_BYTES_MAX || scanned >= SCANNED_MAX) && event.revision != self.revision {
                    break;
                }
                scanned += 1;
                self.revision = event.revision;
                if event.entry.key_bytes().starts_with(self.prefix.as_bytes()) {
                    bytes += cost(event);
                    found.push(event.clone());
                }
            }
            self.next += scanned as u64;
            if !found.is_empty() {
                self.served = true;
                return Poll::Ready(Ok(found));
            }
            if self.next < ring.appended() {
                // There may be more, but other work has its turn first.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for list in &mut *self.feed.waiting.lock() {
            list.idle.remove(&self.number);
            list.due.remove(&self.number);
        }
        self.feed.watches[1].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
