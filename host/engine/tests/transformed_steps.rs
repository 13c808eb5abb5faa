//! Transformed values in steps of several operations: they are turned back for gets and updates, added writes are transformed, and
//! no guard replaces them.

// Creates plugins of this program, without a library.
#![allow(unsafe_code)]

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use vkog_engine::{Batch, Conditions, Engine, Form, Operation, Outcome, Reads, Request, Transforms};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    __hooks, Ask, Before, BeforePut, CreateError, Guard, GuardPut, Host, NoSettings, Plugin, Put, Read, ReadGet, Verb,
    Verdict,
};
use vkog_plugin_host::{Cause, FailurePolicy, HostContext, Member, NoOrigin, Registry};
use vkog_store::{DEFAULT_CONTENT_TYPE, MemoryStore, Store};

/// The host of the plugin that was created last. Locked while an engine starts.
static HOST: Mutex<Option<Host>> = Mutex::new(None);

/// Stores the values of keys under `t/` reversed. Its guard replaces the value if the query is `replace`, and adds a write of
/// `t/added` if it is `add`.
struct Reverse;

impl Plugin for Reverse {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        *HOST.lock().map_err(|_| "a test has failed")? = Some(host);
        Ok(Self)
    }
}

fn reversed(value: &[u8]) -> Vec<u8> {
    value.iter().rev().copied().collect()
}

impl BeforePut for Reverse {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if put.key().starts_with("t/") {
            put.replace_value(&reversed(put.value()));
        }
        Ok(())
    }
}

impl ReadGet for Reverse {
    fn read_get(&self, read: &mut Read<'_>) -> Verdict {
        read.replace_value(&reversed(read.value()));
        Ok(())
    }
}

impl GuardPut for Reverse {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        match put.query() {
            "replace" => put.replace_value(b"replaced"),
            "add" if put.key() == "adds" => put.add(&Ask::put("t/added", b"abc")),
            _ => Ok(()),
        }
    }
}

type TestEngine = Arc<Engine<MemoryStore>>;

fn engine() -> (TestEngine, Host) {
    static CREATING: Mutex<()> = Mutex::new(());
    let _alone = CREATING.lock().expect("no other test panicked here");
    let context = Arc::new(HostContext::new(0, || 0));
    let module = module::<Reverse>("reverse", "0.0.0", true, &__hooks!(Reverse), &[]);
    // SAFETY: the module is part of this program.
    let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("no settings");
    let registry = Registry::linked(vec![Arc::new(member)], Vec::new(), context);
    let engine = Engine::single_threaded(MemoryStore::default(), registry).expect("it starts");
    (engine, HOST.lock().expect("no other test panicked here").expect("the plugin was created"))
}

fn request(engine: &TestEngine, verb: Verb, key: &str, value: &str, query: &str) -> Request {
    Request {
        verb,
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        content_type: if value.is_empty() { "".into() } else { DEFAULT_CONTENT_TYPE.into() },
        query: query.to_owned(),
        conditions: Conditions::default(),
        arrived: engine.revision(),
        depth: 0,
        cause: Cause::Request,
        origin: Arc::new(NoOrigin),
        form: Form::Sent,
        reads: Reads::Linearizable,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
    }
}

fn run(engine: &TestEngine, verb: Verb, key: &str, value: &str, query: &str) -> Outcome {
    let (send, done) = channel();
    engine.run(request(engine, verb, key, value, query), move |outcome, _| _ = send.send(outcome));
    done.recv().expect("an outcome")
}

fn status(outcome: &Outcome) -> u16 {
    outcome.failure().map_or(200, |(status, _)| status)
}

/// Returns the value of a key as it was sent, and as it is stored.
fn values(engine: &TestEngine, key: &str) -> (String, String) {
    let Outcome::Found(sent) = run(engine, Verb::Get, key, "", "") else { panic!("{key} is found") };
    let (stored, _) = engine.store().read(key, |entry| entry.cloned());
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    (text(sent.value()), text(stored.expect("it is found").value()))
}

fn operation(verb: Verb, key: &str, value: &'static str, touches: bool) -> Operation {
    Operation {
        verb,
        key: key.to_owned(),
        touches,
        value: value.as_bytes().into(),
        content_type: if value.is_empty() { "".into() } else { DEFAULT_CONTENT_TYPE.into() },
        conditions: Conditions::default(),
        headers: Vec::new(),
        hidden: false,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
    }
}

/// Runs a batch. Returns its outcomes, or the status of its failure.
fn batch(engine: &TestEngine, operations: Vec<Operation>, query: &str) -> Result<Vec<Outcome>, u16> {
    let (query, arrived, origin) = (query.to_owned(), engine.revision(), Arc::new(NoOrigin));
    let (send, done) = channel();
    let batch = Batch { operations, query, arrived, values_max: 1000, reads: Reads::Linearizable, origin };
    engine.run_batch(batch, move |outcome| _ = send.send(outcome));
    let done = done.recv().expect("an outcome").map_err(|failure| status(&failure.outcome))?;
    Ok(done.into_iter().map(|(outcome, _)| outcome).collect())
}

#[test]
fn a_guard_cannot_replace_a_transformed_value() {
    let (engine, _) = engine();
    assert_eq!(status(&run(&engine, Verb::Put, "plain", "abc", "replace")), 200);
    assert_eq!(values(&engine, "plain").0, "replaced");
    run(&engine, Verb::Put, "t/1", "abc", "");
    assert_eq!(status(&run(&engine, Verb::Put, "t/1", "def", "replace")), 500);
    assert_eq!(batch(&engine, vec![operation(Verb::Put, "t/1", "def", false)], "replace").err(), Some(500));
    let (send, done) = channel();
    engine.touch(request(&engine, Verb::Put, "t/1", "", "replace"), move |outcome, _| _ = send.send(outcome));
    assert_eq!(status(&done.recv().expect("an outcome")), 500);
    assert_eq!(batch(&engine, vec![operation(Verb::Put, "t/1", "", true)], "replace").err(), Some(500));
    assert_eq!(values(&engine, "t/1"), ("abc".to_owned(), "cba".to_owned()));
}

#[test]
fn a_step_turns_values_back_and_transforms_added_writes() {
    let (engine, _) = engine();
    run(&engine, Verb::Put, "t/1", "abc", "");
    let operations = vec![operation(Verb::Get, "t/1", "", false), operation(Verb::Put, "adds", "1", false)];
    let done = batch(&engine, operations, "add").expect("it succeeds");
    assert!(matches!(&done[0], Outcome::Found(entry) if entry.value() == b"abc"));
    assert_eq!(values(&engine, "t/added"), ("abc".to_owned(), "cba".to_owned()));
}

#[test]
fn a_touch_in_a_batch_keeps_the_stored_form() {
    let (engine, _) = engine();
    run(&engine, Verb::Put, "t/1", "abc", "");
    let done = batch(&engine, vec![operation(Verb::Put, "t/1", "", true)], "").expect("it succeeds");
    assert!(matches!(done[0], Outcome::Written(_)));
    assert_eq!(values(&engine, "t/1"), ("abc".to_owned(), "cba".to_owned()));
}

#[test]
fn store_calls_in_one_step_have_values_as_they_were_sent() {
    let (engine, host) = engine();
    run(&engine, Verb::Put, "t/1", "abc", "");
    let updated = host.update(&Ask::put("t/1", b""), |entry| {
        let value = entry.map(|entry| entry.value().to_vec()).unwrap_or_default();
        Ok([&value[..], b"d"].concat())
    });
    assert!(updated.is_ok(), "{updated:?}");
    assert_eq!(values(&engine, "t/1"), ("abcd".to_owned(), "dcba".to_owned()));
    let answers = host.batch(&[Ask::get("t/1"), Ask::put("t/2", b"xyz")]).expect("it succeeds");
    assert_eq!(answers.len(), 2);
    let vkog_plugin_api::Answer::Found(found) = &answers[0] else { panic!("{:?}", answers[0]) };
    assert_eq!(found.value, b"abcd");
    assert_eq!(values(&engine, "t/2"), ("xyz".to_owned(), "zyx".to_owned()));
}
