//! Store calls of plugins in one step: updates, batches, writes that require an absent entry, and writes either way.
//!
//! Provoked by a plugin that keeps creating and updating apart, and that lends its host to the test.

// Creates a plugin of this program, without a library.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use vkog_engine::{Conditions, Engine, Form, Outcome, Reads, Request, Transforms};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    __hooks, Answer, Ask, Before, BeforePut, CreateError, Delete, Guard, GuardDelete, GuardPost, GuardPut, Host,
    NoSettings, Plugin, Post, Put, Refusal, Undo, UndoDelete, UndoPut, Verb, Verdict,
};
use vkog_plugin_host::{Cause, FailurePolicy, HostContext, Member, NoOrigin, Registry};
use vkog_store::MemoryStore;

/// The host of the plugin that was created last. Locked while an engine starts.
static HOST: Mutex<Option<Host>> = Mutex::new(None);
/// The keys of the undo hooks that were called.
static UNDONE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps creating and updating apart, and refuses overlapping writes, as conflict does. Refuses keys that begin with `refused`.
/// Before a put with the query `again`, it updates the key itself.
struct Apart(Host);

impl Plugin for Apart {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        *HOST.lock().expect("no plugin panics") = Some(host);
        Ok(Self(host))
    }
}

fn overlaps<O: vkog_plugin_api::Operation>(guard: &Guard<'_, O>) -> Verdict {
    if guard.key().starts_with("refused") {
        return Err(Refusal::new(403, "refused"));
    }
    match guard.entry() {
        Some(entry) if entry.revision() > guard.arrived() => Err(Refusal::new(409, "overlaps")),
        _ => Ok(()),
    }
}

impl GuardPost for Apart {
    fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
        if post.entry().is_some() { Err(Refusal::new(409, "exists")) } else { overlaps(post) }
    }
}

impl GuardPut for Apart {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        if put.entry().is_none() && put.header("if-none-match") != Some(b"*") {
            return Err(Refusal::new(404, "does not exist"));
        }
        overlaps(put)
    }
}

impl GuardDelete for Apart {
    fn guard_delete(&self, delete: &mut Guard<'_, Delete>) -> Verdict {
        overlaps(delete)
    }
}

impl UndoPut for Apart {
    fn undo_put(&self, put: &Undo<'_, Put>) {
        UNDONE.lock().expect("no plugin panics").push(put.key().to_owned());
    }
}

impl UndoDelete for Apart {
    fn undo_delete(&self, delete: &Undo<'_, Delete>) {
        UNDONE.lock().expect("no plugin panics").push(delete.key().to_owned());
    }
}

impl BeforePut for Apart {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        match put.query() {
            "again" => add(self.0, put.key(), 100, "").map(drop),
            "nested" => add(self.0, "other", 1, "").map(drop),
            _ => Ok(()),
        }
    }
}

/// An engine with the plugin, and the host of the plugin.
fn engine() -> (Arc<Engine<MemoryStore>>, Host) {
    static CREATING: Mutex<()> = Mutex::new(());
    let _alone = CREATING.lock().expect("no other test panicked here");
    let context = Arc::new(HostContext::new(0, || 0));
    let module = module::<Apart>("apart", "0.0.0", true, &__hooks!(Apart), &[]);
    // SAFETY: the module is part of this program.
    let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("no settings");
    let registry = Registry::linked(vec![Arc::new(member)], Vec::new(), context);
    let engine = Engine::single_threaded(MemoryStore::new(64 << 20, 1), registry).expect("the plugin starts");
    let host = HOST.lock().expect("no plugin panics").take().expect("the plugin was created");
    (engine, host)
}

/// Adds to the number under a key. An absent key counts as 0.
fn add(host: Host, key: &str, number: u64, query: &str) -> Result<u64, Refusal> {
    let mut sum = 0;
    host.update(&Ask::put(key, b"").content_type("text/plain").query(query), |entry| {
        let text = entry.map_or("0", |entry| std::str::from_utf8(entry.value()).expect("digits"));
        sum = text.parse::<u64>().map_err(|_| Refusal::new(409, "no number"))? + number;
        Ok(sum.to_string().into_bytes())
    })?;
    Ok(sum)
}

fn value(host: Host, key: &str) -> Option<String> {
    let found = host.get(key).expect("nothing refuses gets");
    found.map(|found| String::from_utf8(found.value).expect("text"))
}

fn status<T>(result: Result<T, Refusal>) -> u16 {
    result.err().map_or(200, |refusal| refusal.status())
}

#[test]
fn updates_create_and_replace_an_entry_with_consecutive_revisions() {
    let (engine, host) = engine();
    let one = host.update(&Ask::put("k", b"").content_type("text/x"), |entry| {
        assert!(entry.is_none());
        Ok(b"1".to_vec())
    });
    assert_eq!(one, Ok(1));
    let two = host.update(&Ask::put("k", b""), |entry| {
        let entry = entry.expect("it was created");
        assert_eq!((entry.value(), entry.content_type(), entry.revision()), (&b"1"[..], "text/x", 1));
        Ok(b"2".to_vec())
    });
    assert_eq!(two, Ok(2));
    assert_eq!((value(host, "k").as_deref(), engine.revision()), (Some("2"), 2));
}

#[test]
fn concurrent_updates_and_writes_lose_no_update() {
    const THREADS: u64 = 4;
    const EACH: u64 = 500;

    let (_engine, host) = engine();
    let others = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for number in 0..EACH {
                    add(host, &format!("sum-{}", number % 2), 1, "").expect("nothing refuses");
                    // Writes that are no updates conflict with them.
                    let read = host.get("sum-0").expect("nothing refuses").expect("it was created");
                    let more = String::from_utf8(read.value).expect("text").parse::<u64>().expect("a sum") + 1;
                    match host.ask(&Ask::put("sum-0", more.to_string().as_bytes()).if_revision(read.revision)) {
                        Ok(_) => _ = others.fetch_add(1, SeqCst),
                        Err(refusal) => assert!([409, 412].contains(&refusal.status()), "{refusal:?}"),
                    }
                }
            });
        }
    });
    let sums = ["sum-0", "sum-1"].map(|key| value(host, key).expect("a sum"));
    let others = others.into_inner();
    assert!(others > 0, "no other write");
    assert_eq!(sums, [others, 0].map(|others| (THREADS * EACH / 2 + others).to_string()));
}

#[test]
fn an_update_gives_up_with_the_refusal_of_its_function_and_changes_nothing() {
    let (engine, host) = engine();
    let refused = host.update(&Ask::put("k", b""), |_| Err(Refusal::new(418, "a teapot")));
    assert_eq!(refused, Err(Refusal::new(418, "a teapot")));
    let panicked = std::panic::catch_unwind(|| host.update(&Ask::put("k", b""), |_| panic!("on purpose")));
    assert_eq!(panicked.expect_err("it panics").downcast_ref(), Some(&"on purpose"));
    assert_eq!((value(host, "k"), engine.revision()), (None, 0));
    assert_eq!(status(add(host, "refused", 1, "")), 403);
    assert_eq!(status(add(host, "", 1, "")), 400);
    assert_eq!(status(host.update(&Ask::put("k", b""), |_| Ok(Vec::new()))), 400);
}

#[test]
fn an_update_keeps_to_the_preconditions_of_its_ask() {
    let (_engine, host) = engine();
    let never = |_: Option<vkog_plugin_api::Entry<'_>>| -> Result<Vec<u8>, Refusal> { unreachable!() };
    assert_eq!(status(host.update(&Ask::put("k", b"").if_revision(7), never)), 412);
    assert_eq!(host.update(&Ask::put("k", b"").if_absent(), |_| Ok(b"1".to_vec())), Ok(1));
    assert_eq!(status(host.update(&Ask::put("k", b"").if_absent(), never)), 412);
    assert_eq!(host.update(&Ask::put("k", b"").if_revision(1), |_| Ok(b"2".to_vec())), Ok(2));
}

#[test]
fn the_function_of_an_update_cannot_call_the_store() {
    let (_engine, host) = engine();
    let mut inner = None;
    host.update(&Ask::put("k", b""), |_| {
        inner = Some(host.get("k"));
        Ok(b"1".to_vec())
    })
    .expect("nothing refuses");
    let refusal = inner.expect("it was called").expect_err("it may not call");
    assert_eq!(
        (refusal.status(), refusal.message()),
        (508, "the function of an update cannot send requests to the store")
    );
    assert_eq!(value(host, "k").as_deref(), Some("1"), "afterwards it may call again");
}

#[test]
fn a_before_hook_of_an_update_may_update_the_same_and_other_entries() {
    let (_engine, host) = engine();
    assert_eq!(add(host, "k", 1, "nested"), Ok(1));
    assert_eq!(value(host, "other").as_deref(), Some("1"));
    // The inner update of the same entry conflicts with the outer one, time and again.
    let refusal = add(host, "k", 1, "again").expect_err("it never succeeds");
    assert_eq!(
        (refusal.status(), refusal.message().split(':').next()),
        (409, Some("Entry changed again and again while it was updated"))
    );
}

#[test]
fn if_absent_creates_once_and_upsert_writes_either_way() {
    let (engine, host) = engine();
    assert_eq!(status(host.ask(&Ask::put("k", b"1"))), 404, "the plugin keeps creating and updating apart");
    assert_eq!(host.ask(&Ask::put("k", b"1").if_absent()), Ok(Answer::Done(1)));
    assert_eq!(status(host.ask(&Ask::put("k", b"2").if_absent())), 412);
    assert_eq!(host.ask(&Ask::put("k", b"3").upsert()), Ok(Answer::Done(2)));
    assert_eq!(host.ask(&Ask::put("new", b"4").upsert()), Ok(Answer::Done(3)));
    assert_eq!(status(host.ask(&Ask::post("k", b"5").upsert())), 409, "a post is no put");
    assert_eq!((value(host, "k").as_deref(), engine.revision()), (Some("3"), 3));
}

#[test]
fn a_batch_of_a_plugin_succeeds_or_fails_as_a_whole() {
    let (engine, host) = engine();
    let done = host.batch(&[
        Ask::post("a", b"1"),
        Ask::get("a"),
        Ask::get("absent"),
        Ask::put("b", b"2").if_absent(),
        Ask::put("a", b"3"),
        Ask::delete("b"),
    ]);
    let done = done.expect("nothing refuses");
    let Answer::Found(found) = &done[1] else { panic!("{done:?}") };
    assert_eq!((found.value.as_slice(), found.revision), (&b"1"[..], 1));
    assert_eq!(
        [&done[0], &done[2], &done[3], &done[4], &done[5]],
        [&Answer::Done(1), &Answer::Absent, &Answer::Done(2), &Answer::Done(3), &Answer::Done(4)]
    );
    for (asks, index, status) in [
        (vec![Ask::put("a", b"4"), Ask::delete("absent")], 1, 404),
        (vec![Ask::put("a", b"4"), Ask::put("refused", b"4").upsert(), Ask::get("a")], 1, 403),
        (vec![Ask::put("a", b"4"), Ask::put("a", b"5").if_absent()], 1, 412),
        (vec![Ask::put("a", b"")], 0, 400),
        (vec![Ask::get("a"), Ask::get("")], 1, 400),
    ] {
        let failure = host.batch(&asks).expect_err("it fails");
        assert_eq!((failure.index, failure.refusal.status()), (index, status), "{asks:?}");
    }
    assert_eq!(host.batch(&[]), Ok(Vec::new()));
    let read = host.batch(&[Ask::get("a"), Ask::get("b")]).expect("nothing refuses");
    assert!(matches!(&read[0], Answer::Found(found) if found.value == b"3") && read[1] == Answer::Absent, "{read:?}");
    assert_eq!(engine.revision(), 4);
}

#[test]
fn a_batch_that_the_store_rolls_back_is_undone_from_the_last_operation_on() {
    let (engine, host) = engine();
    put(&engine, "rolled/b");
    UNDONE.lock().expect("no plugin panics").retain(|key| !key.starts_with("rolled/"));
    engine.store().fail_updates(1);
    let asks = [Ask::put("rolled/a", b"1").upsert(), Ask::delete("rolled/b"), Ask::put("rolled/c", b"1").upsert()];
    let failure = host.batch(&asks).expect_err("the store fails");
    assert_eq!((failure.index, failure.refusal.status()), (0, 503));
    let undone = UNDONE.lock().expect("no plugin panics");
    let undone: Vec<_> = undone.iter().filter(|key| key.starts_with("rolled/")).collect();
    assert_eq!(undone, ["rolled/c", "rolled/b", "rolled/a"]);
    assert!(value(host, "rolled/a").is_none() && value(host, "rolled/b").is_some());
}

/// Creates an entry, as a client.
fn put(engine: &Arc<Engine<MemoryStore>>, key: &str) {
    let request = Request {
        verb: Verb::Post,
        key: key.to_owned(),
        value: b"1".to_vec(),
        content_type: "text/plain".into(),
        query: String::new(),
        conditions: Conditions::default(),
        arrived: engine.revision(),
        depth: 0,
        origin: Arc::new(NoOrigin),
        cause: Cause::Request,
        form: Form::Sent,
        reads: Reads::Linearizable,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
    };
    let (send, done) = channel();
    engine.run(request, move |outcome, _| _ = send.send(outcome));
    assert!(matches!(done.recv(), Ok(Outcome::Written(_))));
}
