//! The last changes that were kept, in the order of their revisions, for whoever watches. A watcher is a position in it
//! and nothing else: nobody waits for one, and one that is too slow finds that what comes next is forgotten.

use std::collections::{HashMap, VecDeque, hash_map};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, RwLock};

use super::entry::Entry;
use super::update::Change;
use vkog_runtime::{Mailbox, Steps, ThreadPool};

/// A change that is kept.
#[derive(Clone)]
pub struct Event {
    /// What was written, or what was removed.
    entry: Entry,
    revision: u64,
}

impl Event {
    /// What was written; of a removal, what was removed.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The revision of the change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the entry was removed.
    pub fn is_removal(&self) -> bool {
        self.entry.revision() != self.revision
    }
}

/// Why nothing can be watched from somewhere on.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Unwatchable {
    /// What came next is forgotten: changes are known only after this revision.
    Forgotten(u64),
    /// No such revision was given yet; this one was the last. Where it had been given, that was by another store, or by
    /// this one before it lost what it had not promised to keep.
    Ahead(u64),
}

/// See the module.
pub(super) struct ChangeFeed {
    ring: RwLock<Ring>,
    /// The last revision before the store was opened, and the one after which it goes on: none between them was given.
    gap: (u64, u64),
    /// How many bytes the entries may have that it holds.
    bytes_max: u64,
    waiting: Arc<Mutex<Vec<Place>>>,
    /// For those that wait nowhere in particular.
    threads: ThreadPool,
    /// How many watches were begun, and how many have ended.
    watches: [AtomicU64; 2],
}

struct Ring {
    events: VecDeque<Event>,
    bytes: u64,
    /// How many events were here and are not any more.
    forgotten: u64,
    /// The last revision that is not here.
    begins: u64,
    /// Nobody is told of anything any more.
    ended: bool,
}

/// The watchers that wait at a mailbox, by their numbers.
struct Place {
    mailbox: Option<Arc<Mailbox>>,
    /// Those who know all that was told when they came to wait.
    idle: HashMap<u64, Waker>,
    /// Those for whom there is more already.
    due: HashMap<u64, Waker>,
    /// They are being woken, those first who waited when that began.
    round: bool,
    /// Something was told of which the idle ones do not know.
    stale: bool,
}

/// What an event costs beside the bytes of its entry: its place here, and the entry's head and allocation.
const OVERHEAD: u64 = 64;
/// So many watchers are woken in one go. What an event loop has to do for those comes before anything that arrives meanwhile.
const WOKEN_MAX: usize = 32;
/// So many events are looked at in one go, so that a writer never waits for long.
const LOOKED_AT_MAX: usize = 256;
/// The bytes after which a run of events ends: a watcher that does not go on holds no more, but one entry.
const RUN_BYTES_MAX: u64 = 64 << 10;

impl ChangeFeed {
    /// A history that begins after a revision; those that follow are greater than `floor` as well.
    pub(super) fn new(begins: u64, floor: u64, bytes_max: u64) -> Self {
        Self {
            gap: (begins, floor),
            ring: RwLock::new(Ring { events: VecDeque::new(), bytes: 0, forgotten: 0, begins, ended: false }),
            bytes_max,
            waiting: Arc::default(),
            threads: ThreadPool::new("watch"),
            watches: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// Takes in changes that are kept, in the order of their revisions, and wakes who waits for them.
    pub(super) fn append<'a>(&self, changes: impl Iterator<Item = &'a Change>) {
        let mut ring = self.ring.write();
        for change in changes {
            if let Some(entry) = change.after.as_ref().or(change.before.as_ref()) {
                ring.push(Event { entry: entry.clone(), revision: change.revision }, self.bytes_max);
            }
        }
        drop(ring);
        self.wake();
    }

    /// Tells nobody of anything any more.
    pub(super) fn end(&self) {
        self.ring.write().ended = true;
        self.wake();
    }

    /// The bytes that the entries have which are held.
    pub(super) fn bytes(&self) -> u64 {
        self.ring.read().bytes
    }

    /// How many watch.
    pub(super) fn watching(&self) -> u64 {
        let [begun, ended] = &self.watches;
        let ended = ended.load(Ordering::Relaxed);
        begun.load(Ordering::Relaxed).saturating_sub(ended)
    }

    /// Has each mailbox wake its own, some at a time. While a mailbox is not through with that, what is told only has it begin
    /// again afterwards: a watcher that is woken later finds more.
    fn wake(&self) {
        for (at, place) in self.waiting.lock().iter_mut().enumerate() {
            place.stale = true;
            self.begin_round(at, place);
        }
    }

    fn begin_round(&self, at: usize, place: &mut Place) {
        if place.round {
            return;
        }
        let wakers = place.ready();
        if wakers.len() == 0 {
            return;
        }
        place.round = true;
        let steps = rounds(Arc::clone(&self.waiting), at, wakers);
        let steps = match &place.mailbox {
            None => Some(steps),
            Some(mailbox) => mailbox.send_steps(steps),
        };
        if let Some(mut steps) = steps {
            self.threads.run(move || while steps().is_pending() {});
        }
    }

    /// Has a watcher wait for what is told.
    fn wait(&self, watch: u64, waker: Waker) {
        let mut waiting = self.waiting.lock();
        place(&mut waiting, Mailbox::current()).1.idle.insert(watch, waker);
    }

    /// Has a watcher that was served wait for what comes after so many events, or for its turn where that has come already:
    /// else all that were woken once would keep their mailbox busy for as long as changes come, and a request would wait
    /// behind all of them. A watcher without a mailbox shares its thread with nobody, and need not wait: `false`.
    fn wait_for_turn(&self, watch: u64, waker: Waker, next: u64) -> bool {
        let Some(here) = Mailbox::current() else { return false };
        let mut waiting = self.waiting.lock();
        let (at, place) = place(&mut waiting, Some(here));
        let ring = self.ring.read();
        if ring.told() == next && !ring.ended {
            place.idle.insert(watch, waker);
        } else {
            place.due.insert(watch, waker);
            self.begin_round(at, place);
        }
        true
    }
}

/// The place for those who wait at a mailbox, and its number.
fn place(waiting: &mut Vec<Place>, here: Option<Arc<Mailbox>>) -> (usize, &mut Place) {
    let same = |place: &Place| match (&place.mailbox, &here) {
        (Some(mailbox), Some(here)) => Arc::ptr_eq(mailbox, here),
        (None, None) => true,
        _ => false,
    };
    let at = waiting.iter().position(same).unwrap_or_else(|| {
        let (idle, due) = (HashMap::new(), HashMap::new());
        waiting.push(Place { mailbox: here.clone(), idle, due, round: false, stale: false });
        waiting.len() - 1
    });
    (at, &mut waiting[at])
}

impl Place {
    /// Takes those out who are to be woken.
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

/// Wakes all of these, and then those for whom there is news by then, as long as there are any.
fn rounds(waiting: Arc<Mutex<Vec<Place>>>, at: usize, mut wakers: hash_map::IntoValues<u64, Waker>) -> Steps {
    Box::new(move || {
        wakers.by_ref().take(WOKEN_MAX).for_each(Waker::wake);
        if wakers.len() > 0 {
            return Poll::Pending;
        }
        let place = &mut waiting.lock()[at];
        wakers = place.ready();
        if wakers.len() > 0 {
            return Poll::Pending;
        }
        place.round = false;
        Poll::Ready(())
    })
}

impl Ring {
    fn push(&mut self, event: Event, bytes_max: u64) {
        self.bytes += cost(&event);
        self.events.push_back(event);
        // The last one stays, however large it is: who has seen all others is to see it.
        while self.bytes > bytes_max && self.events.len() > 1 {
            let Some(event) = self.events.pop_front() else { return };
            self.bytes -= cost(&event);
            self.forgotten += 1;
            self.begins = event.revision;
        }
    }

    /// How many events there were.
    fn told(&self) -> u64 {
        self.forgotten + self.events.len() as u64
    }

    /// The last revision that was told.
    fn last(&self) -> u64 {
        self.events.back().map_or(self.begins, |event| event.revision)
    }
}

fn cost(event: &Event) -> u64 {
    event.entry.len() as u64 + OVERHEAD
}

/// A position in the history of a store.
pub struct Watch {
    feed: Arc<ChangeFeed>,
    prefix: String,
    number: u64,
    /// How many events there were before the one that comes next.
    next: u64,
    revision: u64,
    /// Something was given since it last waited.
    served: bool,
}

impl Watch {
    /// Watches changes of the keys that begin so, after a revision or from now on; `given` is the last revision that was given.
    pub(super) fn new(
        feed: &Arc<ChangeFeed>,
        prefix: String,
        since: Option<u64>,
        given: u64,
    ) -> Result<Self, Unwatchable> {
        let ring = feed.ring.read();
        let revision = since.unwrap_or_else(|| ring.last());
        if revision < ring.begins {
            return Err(Unwatchable::Forgotten(ring.begins));
        }
        let (before, floor) = feed.gap;
        // What another life of the store gave is not what follows here.
        if revision > given || before < revision && revision <= floor {
            return Err(Unwatchable::Ahead(given));
        }
        let next = ring.forgotten + ring.events.partition_point(|event| event.revision <= revision) as u64;
        drop(ring);
        let number = feed.watches[0].fetch_add(1, Ordering::Relaxed);
        Ok(Self { feed: Arc::clone(feed), prefix, number, next, revision, served: false })
    }

    /// To where all has been given.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The events that come next, at least one; none when there will be no more. Where there is none yet, the waker is
    /// woken when it is worth to look again.
    ///
    /// # Errors
    ///
    /// What comes next is forgotten.
    pub fn poll(&mut self, context: &Context<'_>) -> Poll<Result<Vec<Event>, Unwatchable>> {
        if std::mem::take(&mut self.served) && self.feed.wait_for_turn(self.number, context.waker().clone(), self.next)
        {
            return Poll::Pending;
        }
        for waits in [false, true] {
            if waits {
                // What was told before this has to be looked for once more, what is told after it wakes.
                self.feed.wait(self.number, context.waker().clone());
            }
            let ring = self.feed.ring.read();
            if ring.ended {
                return Poll::Ready(Ok(Vec::new()));
            }
            let Some(skipped) = self.next.checked_sub(ring.forgotten) else {
                return Poll::Ready(Err(Unwatchable::Forgotten(ring.begins)));
            };
            let (mut found, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
            for event in ring.events.range(skipped as usize..).take(LOOKED_AT_MAX) {
                if bytes > RUN_BYTES_MAX {
                    break;
                }
                looked_at += 1;
                self.revision = event.revision;
                if event.entry.key_bytes().starts_with(self.prefix.as_bytes()) {
                    bytes += cost(event);
                    found.push(event.clone());
                }
            }
            self.next += looked_at;
            if !found.is_empty() {
                self.served = true;
                return Poll::Ready(Ok(found));
            }
            if self.next < ring.told() {
                // There may be more, but others have to have their turn.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for place in &mut *self.feed.waiting.lock() {
            place.idle.remove(&self.number);
            place.due.remove(&self.number);
        }
        self.feed.watches[1].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NewEntry;

    fn entry(key: &str, value: &[u8], revision: u64) -> Entry {
        let draft = NewEntry { value, content_type: "text/plain", details: Vec::new() };
        Entry::with_revision(key, &draft, revision, &mut Vec::new())
    }

    fn write(key: &str, len: usize, revision: u64) -> Change {
        Change { before: None, after: Some(entry(key, &vec![b'x'; len], revision)), revision }
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
    fn what_no_longer_fits_is_forgotten_and_who_has_not_seen_it_learns_of_that() {
        let room = 4 * (OVERHEAD + "k".len() as u64 + "text/plain".len() as u64 + 100);
        let feed = Arc::new(ChangeFeed::new(10, 0, room));
        let mut slow = watch(&feed, "", 10).expect("it begins there");
        assert_eq!(watch(&feed, "", 9).err(), Some(Unwatchable::Forgotten(10)));
        for revision in 11..=14 {
            feed.append([write("k", 100, revision)].iter());
        }
        let mut keeps_up = watch(&feed, "", 10).expect("all of it is there");
        assert_eq!(revisions(&mut keeps_up), Some(Ok(vec![11, 12, 13, 14])));
        feed.append([write("k", 100, 15), write("k", 100, 17)].iter());
        assert_eq!(feed.bytes(), room);
        assert_eq!(revisions(&mut slow), Some(Err(Unwatchable::Forgotten(12))));
        assert_eq!(revisions(&mut keeps_up), Some(Ok(vec![15, 17])));
        assert_eq!(watch(&feed, "", 11).err(), Some(Unwatchable::Forgotten(12)));
        assert_eq!(revisions(&mut watch(&feed, "", 12).expect("it begins there")), Some(Ok(vec![13, 14, 15, 17])));
        // Of a revision that was taken back nothing is known, and nothing is missing.
        assert_eq!(revisions(&mut watch(&feed, "", 16).expect("it was given")), Some(Ok(vec![17])));
        // One that is larger than all the room is there for those who have seen the others.
        feed.append([write("k", 10_000, 18)].iter());
        assert_eq!(revisions(&mut keeps_up), Some(Ok(vec![18])));
        assert_eq!(watch(&feed, "", 16).err(), Some(Unwatchable::Forgotten(17)));
    }

    #[test]
    fn a_watcher_goes_past_what_it_is_not_told_of() {
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let mut others = watch(&feed, "a/", 0).expect("it begins there");
        let writes: Vec<_> = (1..=2 * LOOKED_AT_MAX as u64 + 1).map(|revision| write("b/k", 1, revision)).collect();
        feed.append(writes.iter());
        for looked_at in [LOOKED_AT_MAX, 2 * LOOKED_AT_MAX, 2 * LOOKED_AT_MAX + 1] {
            assert_eq!((revisions(&mut others), others.revision()), (None, looked_at as u64));
        }
    }

    #[test]
    fn a_removal_tells_what_was_removed() {
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let mut watch = watch(&feed, "", 0).expect("it begins there");
        feed.append([Change { before: Some(entry("k", b"v", 1)), after: None, revision: 2 }, write("k", 1, 3)].iter());
        let Poll::Ready(Ok(events)) = watch.poll(&Context::from_waker(Waker::noop())) else { panic!("there are two") };
        let told: Vec<_> =
            events.iter().map(|event| (event.revision(), event.is_removal(), event.entry().key())).collect();
        assert_eq!(told, [(2, true, "k"), (3, false, "k")]);
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
    fn a_home_wakes_its_watchers_some_at_a_time_and_once_for_all_that_is_told_meanwhile() {
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
        feed.ring.write().push(Event { entry: entry("k", b"v", 5), revision: 5 }, 1 << 20);
        assert_eq!(poll(&mut watches[0]), 0);
        turn();
        assert_eq!(count(), 1);
        feed.end();
        (0..4).for_each(|_| turn());
        assert_eq!(count(), WATCHERS - 1, "and one that is not waiting");
    }

    #[test]
    fn a_watcher_that_was_served_learns_of_the_end() {
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
    fn who_waits_is_kept_once_however_often_it_looks_and_not_when_it_has_gone() {
        let feed = Arc::new(ChangeFeed::new(0, 0, 1 << 20));
        let count = || feed.waiting.lock().iter().map(|place| place.idle.len() + place.due.len()).sum::<usize>();
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
