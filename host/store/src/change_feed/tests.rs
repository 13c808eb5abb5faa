//! Tests of the change feed.

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
