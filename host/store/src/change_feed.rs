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
mod tests {
    use std::thread;
    use std::time::Duration;

    use crossbeam_channel::bounded;

    use super::*;
    use crate::entry::{Entry, NewEntry};

    const DEADLINE: Duration = Duration::from_secs(10);

    fn entry(key: &str, value: &[u8], revision: u64) -> Entry {
        let draft = NewEntry { value, content_type: "text/plain", details: Vec::new() };
        Entry::with_revision(key, &draft, revision, &mut Vec::new())
    }

    fn write(key: &str, len: usize, revision: u64) -> Change {
        Change { before: None, after: Some(entry(key, &vec![b'x'; len], revision)), revision, expired: false }
    }

    fn watch(feed: &Arc<ChangeFeed>, prefix: &str, since: u64) -> Result<Watch, Unwatchable> {
        Watch::new(feed, prefix.to_owned(), Some(since), u64::MAX)
    }

    /// The revisions that come next, if any do.
    fn revisions(watch: &mut Watch) -> Option<Result<Vec<u64>, Unwatchable>> {
        let run = |events: Vec<Event>| events.iter().map(Event::revision).collect();
        match watch.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result.map(run)),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_batch_ends_with_the_last_change_of_a_revision() {
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let mut watching = watch(&feed, "", 0).expect("it begins there");
        let key = |index: usize| format!("key-{index}");
        let changes = |revision: u64, count: usize| (0..count).map(move |at| write(&key(at), 1000, revision));
        for (revision, count) in [(1, 40), (2, 40), (3, 2 * SCANNED_MAX), (4, 1)] {
            feed.append(changes(revision, count).collect::<Vec<_>>().iter());
        }
        let context = Context::from_waker(Waker::noop());
        let mut batches = Vec::new();
        while let Poll::Ready(Ok(events)) = watching.poll(&context) {
            let places: Vec<u32> = events.iter().map(|event| event.position().1).collect();
            let last = events.last().map(Event::revision);
            assert_eq!(last, Some(watching.revision()));
            batches.push((events[0].revision(), last.unwrap_or_default(), places.len()));
        }
        assert_eq!(batches, [(1, 2, 80), (3, 3, 2 * SCANNED_MAX), (4, 4, 1)]);
    }

    #[test]
    fn a_restart_ends_the_watches_that_began_before_it() {
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        feed.append([write("k", 1, 1)].iter());
        let mut has_seen_all = watch(&feed, "", 1).expect("it begins there");
        assert_eq!(revisions(&mut has_seen_all), None);
        feed.restart(7);
        assert_eq!(revisions(&mut has_seen_all), Some(Err(Unwatchable::Forgotten(7))));
        assert_eq!(watch(&feed, "", 6).err(), Some(Unwatchable::Forgotten(7)));
        let mut later = watch(&feed, "", 7).expect("it begins there");
        feed.append([write("k", 1, 8)].iter());
        assert_eq!(revisions(&mut later), Some(Ok(vec![8])));
    }

    #[test]
    fn a_slow_watcher_learns_that_its_next_events_were_dropped() {
        let room = 4 * (OVERHEAD + "k".len() as u64 + "text/plain".len() as u64 + 100);
        let feed = Arc::new(ChangeFeed::new(10, 0, room));
        let mut slow = watch(&feed, "", 10).expect("it begins there");
        assert_eq!(watch(&feed, "", 9).err(), Some(Unwatchable::Forgotten(10)));
        for revision in 11..=14 {
            feed.append([write("k", 100, revision)].iter());
        }
        let mut keeps_up = watch(&feed, "", 10).expect("no change is missing");
        assert_eq!(revisions(&mut keeps_up), Some(Ok(vec![11, 12, 13, 14])));
        feed.append([write("k", 100, 15), write("k", 100, 17)].iter());
        assert_eq!(feed.bytes(), room);
        assert_eq!(revisions(&mut slow), Some(Err(Unwatchable::Forgotten(12))));
        assert_eq!(revisions(&mut keeps_up), Some(Ok(vec![15, 17])));
        assert_eq!(watch(&feed, "", 11).err(), Some(Unwatchable::Forgotten(12)));
        assert_eq!(revisions(&mut watch(&feed, "", 12).expect("it begins there")), Some(Ok(vec![13, 14, 15, 17])));
        // A revision that was rolled back has no event, so nothing is missing.
        assert_eq!(revisions(&mut watch(&feed, "", 16).expect("it was given")), Some(Ok(vec![17])));
        // An event larger than the whole feed is kept for watchers that have seen the others.
        feed.append([write("k", 10_000, 18)].iter());
        assert_eq!(revisions(&mut keeps_up), Some(Ok(vec![18])));
        assert_eq!(watch(&feed, "", 16).err(), Some(Unwatchable::Forgotten(17)));
    }

    #[test]
    fn a_batch_ends_with_the_event_that_exceeds_its_size() {
        let feed = Arc::new(ChangeFeed::new(0, 0, u64::MAX));
        let len = (BATCH_BYTES_MAX / 2 - OVERHEAD) as usize - "k".len() - "text/plain".len();
        let mut all = watch(&feed, "", 0).expect("it begins there");
        feed.append([write("k", len, 1), write("k", len, 2), write("k", 1, 3), write("k", 1, 4)].iter());
        assert_eq!(feed.bytes(), BATCH_BYTES_MAX + 2 * (OVERHEAD + 12));
        assert_eq!(revisions(&mut all), Some(Ok(vec![1, 2, 3])));
        assert_eq!(revisions(&mut all), Some(Ok(vec![4])));
        assert_eq!((revisions(&mut all), all.revision()), (None, 4));
    }

    #[test]
    fn open_watches_are_counted() {
        let feed = Arc::new(ChangeFeed::new(0, 0, 0));
        assert_eq!(feed.watch_count(), 0);
        let watches = [0; 3].map(|since| watch(&feed, "", since).expect("it begins there"));
        assert_eq!(feed.watch_count(), 3);
        drop(watches);
        assert_eq!(feed.watch_count(), 0);
    }

    #[test]
    fn a_watcher_passes_the_events_of_other_keys() {
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let mut others = watch(&feed, "a/", 0).expect("it begins there");
        let writes: Vec<_> = (1..=2 * SCANNED_MAX as u64 + 1).map(|revision| write("b/k", 1, revision)).collect();
        feed.append(writes.iter());
        for scanned in [SCANNED_MAX, 2 * SCANNED_MAX, 2 * SCANNED_MAX + 1] {
            assert_eq!((revisions(&mut others), others.revision()), (None, scanned as u64));
        }
    }

    #[test]
    fn the_event_of_a_removal_has_the_entry_that_was_removed() {
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let mut watch = watch(&feed, "", 0).expect("it begins there");
        let removal = Change { before: Some(entry("k", b"v", 1)), after: None, revision: 2, expired: true };
        feed.append([removal, write("k", 1, 3)].iter());
        let Poll::Ready(Ok(events)) = watch.poll(&Context::from_waker(Waker::noop())) else { panic!("there are two") };
        let fields = |event: &Event| (event.revision(), event.is_removal(), event.is_expiry());
        assert_eq!(events.iter().map(fields).collect::<Vec<_>>(), [(2, true, true), (3, false, false)]);
        assert!(events.iter().all(|event| event.entry().key() == "k"));
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicU64);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_mailbox_wakes_a_few_watchers_at_a_time_and_each_once() {
        const WATCHERS: usize = 3 * WOKEN_MAX + 1;
        let mailbox = Arc::<Mailbox>::default();
        mailbox.attach();
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let count = || woken.0.swap(0, Ordering::Relaxed) as usize;
        let mut watches: Vec<_> = (0..WATCHERS).map(|_| watch(&feed, "", 0).expect("it begins there")).collect();
        let poll = |watch: &mut Watch| match watch.poll(&Context::from_waker(&waker)) {
            Poll::Ready(Ok(events)) => events.len(),
            Poll::Ready(Err(_)) => panic!("nothing is forgotten"),
            Poll::Pending => 0,
        };
        let turn = || assert!(mailbox.poll(&Context::from_waker(Waker::noop())).is_pending());
        watches.iter_mut().for_each(|watch| assert_eq!(poll(watch), 0));
        for revision in 1..=3 {
            feed.append([write("k", 1, revision)].iter());
            turn();
            assert_eq!(count(), WOKEN_MAX, "of {WATCHERS}");
        }
        turn();
        assert_eq!(count(), 1);
        // Each is woken once for three changes. One that was served waits for its turn, even if there is more already.
        watches.iter_mut().for_each(|watch| assert_eq!(poll(watch), 3));
        feed.append([write("k", 1, 4)].iter());
        watches.iter_mut().for_each(|watch| assert_eq!(poll(watch), 0));
        for expected in [1, WOKEN_MAX, WOKEN_MAX, WOKEN_MAX, 0] {
            turn();
            assert_eq!(count(), expected);
        }
        watches.iter_mut().for_each(|watch| assert_eq!(poll(watch), 1));
        // One that has more to see wakes no other.
        watches.iter_mut().skip(1).for_each(|watch| assert_eq!(poll(watch), 0));
        feed.ring.write().push(Event { entry: entry("k", b"v", 5), revision: 5, expired: false, place: 0 }, 1 << 20);
        assert_eq!(poll(&mut watches[0]), 0);
        turn();
        assert_eq!(count(), 1);
        feed.end();
        (0..4).for_each(|_| turn());
        assert_eq!(count(), WATCHERS - 1, "and one that is not waiting");
    }

    #[test]
    fn no_change_is_missed_by_a_watcher_that_starts_to_wait() {
        /// Unparks the thread of the watcher.
        struct Unpark(thread::Thread);

        impl std::task::Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }

        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let mut watch = watch(&feed, "", 0).expect("it begins there");
        let (send, seen) = bounded(1);
        thread::spawn(move || {
            let waker = Waker::from(Arc::new(Unpark(thread::current())));
            loop {
                match watch.poll(&Context::from_waker(&waker)) {
                    Poll::Pending => thread::park(),
                    Poll::Ready(Ok(events)) if events.is_empty() => return,
                    Poll::Ready(events) => {
                        let _ = send.send(events.map(|events| events.len()));
                    }
                }
            }
        });
        // One change at a time, the next as soon as it was seen: a later one would hide that one was missed.
        for revision in 1..=20_000 {
            feed.append([write("k", 1, revision)].iter());
            assert_eq!(seen.recv_timeout(DEADLINE), Ok(Ok(1)), "change {revision}");
        }
        feed.end();
    }

    #[test]
    fn a_watcher_that_was_served_learns_that_watches_have_ended() {
        let mailbox = Arc::<Mailbox>::default();
        mailbox.attach();
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let mut watch = watch(&feed, "", 0).expect("it begins there");
        feed.append([write("k", 1, 1)].iter());
        assert_eq!(revisions(&mut watch), Some(Ok(vec![1])));
        feed.end();
        let woken = Arc::<Woken>::default();
        assert!(watch.poll(&Context::from_waker(&Waker::from(Arc::clone(&woken)))).is_pending());
        assert!(mailbox.poll(&Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(revisions(&mut watch), Some(Ok(Vec::new())));
    }

    #[test]
    fn a_watcher_waits_once_however_often_it_polls_and_not_after_its_end() {
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let count = || feed.waiting.lock().iter().map(|list| list.idle.len() + list.due.len()).sum::<usize>();
        let mut watches: Vec<_> = (0..3).map(|_| watch(&feed, "", 0).expect("it begins there")).collect();
        for _ in 0..5 {
            watches.iter_mut().for_each(|watch| assert_eq!(revisions(watch), None));
        }
        assert_eq!(count(), 3);
        watches.pop();
        assert_eq!(count(), 2);
        feed.append([write("k", 1, 1)].iter());
        assert_eq!(count(), 0);
        feed.end();
        assert_eq!(revisions(&mut watches[0]), Some(Ok(Vec::new())));
    }
}
