//! Updates of plugins, and writes to which guards add others, do not wait for the disk one after the other: each is decided on
//! entries that are not durable yet, and its response comes when it is durable. If those are rolled back, so is what depends on them.
//!
//! Provoked with a disk that holds a write or a sync of the log.

#![allow(unsafe_code)]

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, TryRecvError, unbounded};
use parking_lot::Mutex;
use vkog_engine::{Engine, Outcome, host_refusal};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{Ask, CreateError, Guard, GuardPut, Host, NoSettings, Plugin, Put, Refusal, Verdict};
use vkog_plugin_host::{Chain, EntryView, FailurePolicy, HostContext, Member, NewValue, Registry, Verb, system_clock};

use crate::actors::ask;
use crate::client::{ALWAYS, DEADLINE, contents, open};
use crate::disk::{Call, Fault, SimulatedDisk};

/// The host of the plugin that was created last. Locked while an engine starts.
static HOST: Mutex<Option<Host>> = Mutex::new(None);

/// Adds a write of `copy/KEY` to each put of a client.
struct Copying;

impl Plugin for Copying {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        *HOST.lock() = Some(host);
        Ok(Self)
    }
}

impl GuardPut for Copying {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        if put.asker().is_some() {
            return Ok(());
        }
        // It depends on the current entry, which may not be durable.
        let before = put.entry().map_or(&b"none"[..], |entry| entry.value());
        put.add(&Ask::put(&format!("copy/{}", put.key()), &[before, b",", put.value()].concat()))
    }
}

fn start(disk: &SimulatedDisk) -> (Arc<Engine>, Host) {
    static STARTING: Mutex<()> = Mutex::new(());
    let _alone = STARTING.lock();
    let store = open(disk, ALWAYS).expect("a store");
    let context = Arc::new(HostContext::new(1000, system_clock));
    let module = module::<Copying>("copying", "1.0.0", true, &vkog_plugin_api::__hooks!(Copying), &[]);
    // SAFETY: the module is of this program, made by the same vkog-plugin-api.
    let member = unsafe { Member::create(module, "{}", &context, FailurePolicy::default()) }.expect("it is created");
    let engine = Engine::new(store, Registry::linked(vec![Arc::new(member)], Vec::new(), context));
    (engine.expect("the plugin starts"), HOST.lock().take().expect("the plugin was created"))
}

/// Adds a letter to an entry, on a thread for it. Returns the revision.
fn append(host: Host, letter: &'static str) -> Receiver<Result<u64, Refusal>> {
    let (send, done) = unbounded();
    thread::spawn(move || {
        let appended = host.update(&Ask::put("k", b""), |entry| {
            Ok([entry.map_or(&b""[..], |entry| entry.value()), letter.as_bytes()].concat())
        });
        let _ = send.send(appended);
    });
    done
}

/// Waits until the store has assigned a revision.
fn wait_for(engine: &Engine, revision: u64) {
    let deadline = Instant::now() + DEADLINE;
    while engine.revision() < revision {
        assert!(Instant::now() < deadline, "revision {} instead of {revision}", engine.revision());
        thread::yield_now();
    }
}

fn value(engine: &Engine, key: &str) -> Option<String> {
    contents(engine.store()).get(key).map(|(_, held)| String::from_utf8_lossy(&held.value).into_owned())
}

#[test]
fn updates_of_one_key_are_decided_while_an_earlier_one_is_synced() {
    let disk = SimulatedDisk::empty();
    let (engine, host) = start(&disk);
    let held = disk.hold(Call::Sync, ".log");
    let first = engine.revision();
    let mut updates = Vec::new();
    for letter in ["a", "b", "c", "d"] {
        updates.push(append(host, letter));
        wait_for(&engine, first + updates.len() as u64);
    }
    for update in &updates {
        assert_eq!(update.try_recv(), Err(TryRecvError::Empty), "an answer before the sync");
    }
    held.release();
    for (number, update) in (1..).zip(updates) {
        assert_eq!(update.recv_timeout(DEADLINE), Ok(Ok(first + number)));
    }
    assert_eq!(value(&engine, "k").as_deref(), Some("abcd"));
}

/// Appends a letter to an entry as a route does. Does not wait.
fn append_by_route(engine: &Arc<Engine>, letter: &'static str) -> Receiver<Result<String, Outcome>> {
    let (send, done) = unbounded();
    let chain = engine.plugins().chain();
    let member = Arc::clone(&chain.members()[0]);
    let value_of = move |_: &Arc<Chain>, entry: Option<EntryView<'_>>| {
        let before = entry.map_or(&b""[..], |entry| entry.value);
        let value = [before, letter.as_bytes()].concat();
        let text = String::from_utf8_lossy(&value).into_owned();
        if letter == "refused" {
            return Err(host_refusal(418, text));
        }
        Ok((NewValue { value, content_type: String::new() }, text))
    };
    engine.update_entry(chain, &member, "k".to_owned(), value_of, move |outcome| _ = send.send(outcome));
    done
}

#[test]
fn updates_by_routes_wait_on_no_thread_and_respond_when_they_are_durable() {
    let disk = SimulatedDisk::empty();
    let (engine, _) = start(&disk);
    let held = disk.hold(Call::Sync, ".log");
    // All of them on this thread.
    let updates = ["a", "b", "c", "refused", "d"].map(|letter| append_by_route(&engine, letter));
    for update in &updates {
        assert!(matches!(update.try_recv(), Err(TryRecvError::Empty)), "an outcome before the sync");
    }
    held.release();
    let outcomes = updates.map(|update| match update.recv_timeout(DEADLINE).expect("an outcome") {
        Ok(text) => text,
        Err(Outcome::Refused(refusal)) => format!("{}: {}", refusal.status, refusal.message),
        Err(_) => "another failure".to_owned(),
    });
    assert_eq!(outcomes, ["a", "ab", "abc", "418: abcrefused", "abcd"]);
    assert_eq!(value(&engine, "k").as_deref(), Some("abcd"));
}

#[test]
fn an_update_by_a_route_of_a_rolled_back_entry_fails_or_is_refused_without_it() {
    let disk = SimulatedDisk::empty();
    let (engine, _) = start(&disk);
    disk.fault(Call::Write, ".log", Fault::Fails(std::io::ErrorKind::StorageFull), 1);
    let held = disk.hold(Call::Write, ".log");
    let [first, second, refused] = ["a", "b", "refused"].map(|letter| append_by_route(&engine, letter));
    disk.wait_held();
    held.release();
    for update in [first, second] {
        let outcome = update.recv_timeout(DEADLINE).expect("an outcome").expect_err("the disk is full");
        assert_eq!(outcome.failure().map(|(status, _)| status), Some(507));
    }
    let refused = refused.recv_timeout(DEADLINE).expect("an outcome");
    assert!(
        matches!(refused, Err(Outcome::Refused(refusal)) if refusal.message == "refused"),
        "it saw a rolled-back entry"
    );
    assert_eq!(value(&engine, "k"), None);
}

#[test]
fn an_update_that_gave_up_because_of_an_entry_that_is_rolled_back_is_tried_again() {
    let disk = SimulatedDisk::empty();
    let (engine, host) = start(&disk);
    disk.fault(Call::Write, ".log", Fault::Fails(std::io::ErrorKind::StorageFull), 1);
    let held = disk.hold(Call::Write, ".log");
    let first = engine.revision();
    let rolled_back = append(host, "a");
    disk.wait_held();
    wait_for(&engine, first + 1);
    let ((send_seen, seen), (send, done)) = (unbounded(), unbounded());
    thread::spawn(move || {
        let given_up = host.update(&Ask::put("k", b""), |entry| {
            let value = entry.map(|entry| String::from_utf8_lossy(entry.value()).into_owned());
            let _ = send_seen.send(value.clone());
            Err(Refusal::new(418, value.unwrap_or_else(|| "none".to_owned())))
        });
        let _ = send.send(given_up);
    });
    assert_eq!(seen.recv_timeout(DEADLINE), Ok(Some("a".to_owned())));
    assert_eq!(done.try_recv(), Err(TryRecvError::Empty), "it depends on a change that is not durable");
    held.release();
    let status = rolled_back.recv_timeout(DEADLINE).expect("an answer").expect_err("the disk is full").status();
    assert_eq!((status, seen.recv_timeout(DEADLINE)), (507, Ok(None)));
    assert_eq!(done.recv_timeout(DEADLINE), Ok(Err(Refusal::new(418, "none"))));
}

#[test]
fn writes_with_added_writes_are_decided_while_an_earlier_one_is_synced() {
    let disk = SimulatedDisk::empty();
    let (engine, _) = start(&disk);
    let held = disk.hold(Call::Sync, ".log");
    let first = engine.revision();
    let mut writes = Vec::new();
    for number in 1..=4 {
        let (writer, (send, done)) = (Arc::clone(&engine), unbounded());
        thread::spawn(move || _ = send.send(ask(&writer, Verb::Put, "k", &number.to_string())));
        writes.push(done);
        // The put and the added put.
        wait_for(&engine, first + 2 * number);
    }
    assert!(writes.iter().all(|write| matches!(write.try_recv(), Err(TryRecvError::Empty))), "before the sync");
    held.release();
    for (number, write) in (0..).zip(writes) {
        let outcome = write.recv_timeout(DEADLINE).expect("an answer");
        assert!(matches!(outcome, Outcome::Written(revision) if revision == first + 2 * number + 1));
    }
    assert_eq!(value(&engine, "copy/k").as_deref(), Some("3,4"));
}
