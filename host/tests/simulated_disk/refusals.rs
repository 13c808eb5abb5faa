//! A write that a plugin refuses, in which a plugin panics, or that the disk refuses leaves no trace: the map and the
//! files do not change, the guards that passed are rolled back in exactly the reverse order, and no after-hook runs.
//!
//! Five plugins of the real chain refuse and panic at random, in every hook, over a disk that fills up at random. Each
//! records its calls, and the expected calls follow from the injected failures. The same holds for single operations
//! and for batches, which have no effect if one operation fails. Each call finds the state that the previous call of the same
//! plugin for the same operation has set, and all states are dropped once, before the response.

#![allow(unsafe_code)]

use std::sync::Arc;

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use vkog_engine::{
    Batch, BatchFailure, BatchOutcome, Conditions, Engine, Form, Operation, Outcome, Reads, Request, Transforms,
};
use vkog_plugin_api::export::module;
use vkog_plugin_api::{
    After, AfterDelete, AfterGet, AfterPost, AfterPut, Ask, Before, BeforeDelete, BeforeGet, BeforePost, BeforePut,
    CreateError, Delete, Get, Guard, GuardDelete, GuardGet, GuardPost, GuardPut, Host, NoSettings, Plugin, Post, Put,
    Refusal, Undo, UndoDelete, UndoGet, UndoPost, UndoPut, Verdict,
};
use vkog_plugin_host::{FailurePolicy, HostContext, Member, NoOrigin, OnFailure, Registry, Verb, system_clock};

use crate::client::{ALWAYS, DEADLINE, close, contents, open};
use crate::disk::{Call, Fault, Image, SimulatedDisk, without_room};
use crate::random::Random;

pub(crate) const PLUGINS: usize = 5;
/// The number of writes that fail.
const FAILURES: usize = 10_000;

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Before,
    Guard,
    After,
    Undo,
}

/// The act of a plugin that stops an operation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Refuse,
    Panic,
}

/// The calls of plugins, in order.
type Calls = Vec<(usize, Phase)>;

/// The header that identifies an operation of a batch.
pub(crate) const PLACE: &str = "Place";

/// A write that a plugin adds to an operation in its guard.
#[derive(Clone, Debug)]
pub(crate) struct Add {
    /// The place of the operation.
    pub(crate) to: usize,
    pub(crate) by: usize,
    /// The place of the write.
    pub(crate) place: usize,
    pub(crate) verb: Verb,
    pub(crate) key: String,
}

/// The state that a plugin keeps in each call.
struct Kept {
    call: (usize, usize, Phase),
    number: usize,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut play = PLAY.lock();
        let number = self.number;
        let known = play.kept.iter().position(|kept| *kept == number);
        match known {
            Some(at) => _ = play.kept.swap_remove(at),
            None => play.wrong.push("a state was dropped twice".to_owned()),
        }
    }
}

/// The scripted actions of the plugins, and their calls. Single operations have index 0.
#[derive(Default)]
pub(crate) struct Play {
    pub(crate) acts: Vec<(usize, usize, Phase, Act)>,
    pub(crate) adds: Vec<Add>,
    /// The operations whose value a plugin extends in its guard, and the plugin.
    pub(crate) extends: Vec<(usize, usize)>,
    pub(crate) called: Vec<(usize, usize, Phase)>,
    /// The values that guards saw, by operation and plugin.
    pub(crate) seen: Vec<(usize, usize, Vec<u8>)>,
    /// The values that an undo or an after saw, where the guard of the plugin saw another one.
    pub(crate) differences: Vec<String>,
    /// The numbers of the states that exist.
    pub(crate) kept: Vec<usize>,
    /// The errors with states.
    pub(crate) wrong: Vec<String>,
}

pub(crate) static PLAY: Mutex<Play> = Mutex::new(Play {
    acts: Vec::new(),
    adds: Vec::new(),
    extends: Vec::new(),
    called: Vec::new(),
    seen: Vec::new(),
    differences: Vec::new(),
    kept: Vec::new(),
    wrong: Vec::new(),
});
/// Only one test uses the script at a time.
pub(crate) static STAGE: Mutex<()> = Mutex::new(());

fn place_of(call: &vkog_plugin_api::Request<'_>) -> usize {
    call.header(PLACE).and_then(|place| str::from_utf8(place).ok()?.parse().ok()).unwrap_or(0)
}

fn called(plugin: usize, phase: Phase, call: &vkog_plugin_api::Request<'_>) -> Verdict {
    let (place, value) = (place_of(call), call.value());
    let found = call.take_state::<Kept>();
    let mut play = PLAY.lock();
    let previous = play.called.iter().rfind(|(at, who, _)| (*at, *who) == (place, plugin)).copied();
    if found.as_ref().map(|kept| kept.call) != previous {
        let found = found.as_ref().map(|kept| kept.call);
        play.wrong.push(format!("found {found:?} instead of {previous:?}"));
    }
    play.called.push((place, plugin, phase));
    let number = play.called.len();
    play.kept.push(number);
    drop(play);
    call.set_state(Kept { call: (place, plugin, phase), number });
    drop(found);
    let mut play = PLAY.lock();
    let seen = play.seen.iter().rposition(|seen| (seen.0, seen.1) == (place, plugin));
    match (phase, seen) {
        (Phase::Guard, _) => play.seen.push((place, plugin, value.to_vec())),
        (Phase::Undo | Phase::After, Some(seen)) if play.seen[seen].2 != value => {
            play.differences.push(format!("{phase:?} of {place} by {plugin}: {value:?}"));
        }
        _ => {}
    }
    let act = play.acts.iter().find(|act| (act.0, act.1, act.2) == (place, plugin, phase)).map(|act| act.3);
    drop(play);
    match act {
        Some(Act::Panic) => panic!("on purpose"),
        Some(Act::Refuse) => Err(Refusal::new(403, "on purpose")),
        None => Ok(()),
    }
}

/// Adds the writes of the script to an operation.
fn add<O: vkog_plugin_api::Change>(plugin: usize, guard: &Guard<'_, O>) -> Verdict {
    let to = place_of(guard);
    let adds: Vec<Add> = PLAY.lock().adds.iter().filter(|add| (add.to, add.by) == (to, plugin)).cloned().collect();
    for Add { place, verb, key, .. } in adds {
        let (place, value) = (place.to_string(), format!("added {place}"));
        let ask = match verb {
            Verb::Post => Ask::post(&key, value.as_bytes()),
            Verb::Put => Ask::put(&key, value.as_bytes()),
            _ => Ask::delete(&key),
        };
        guard.add(&ask.header(PLACE, &place))?;
    }
    Ok(())
}

/// Appends the number of the plugin to a value, if the script says so.
fn extend<O: vkog_plugin_api::Write>(plugin: usize, guard: &Guard<'_, O>) -> Verdict {
    if !PLAY.lock().extends.contains(&(place_of(guard), plugin)) {
        return Ok(());
    }
    guard.replace_value(&[guard.value(), format!("+{plugin}").as_bytes()].concat())
}

struct Actor<const N: usize>;

impl<const N: usize> Plugin for Actor<N> {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self)
    }
}

macro_rules! act {
    ($($operation:ident: $before:ident $before_hook:ident, $guard:ident $guard_hook:ident $($also:ident)*,
       $undo:ident $undo_hook:ident, $after:ident $after_hook:ident;)*) => {$(
        impl<const N: usize> $before for Actor<N> {
            fn $before_hook(&self, call: &mut Before<'_, $operation>) -> Verdict {
                called(N, Phase::Before, call)
            }
        }
        impl<const N: usize> $guard for Actor<N> {
            fn $guard_hook(&self, call: &mut Guard<'_, $operation>) -> Verdict {
                called(N, Phase::Guard, call)?;
                $($also(N, call)?;)*
                Ok(())
            }
        }
        impl<const N: usize> $undo for Actor<N> {
            fn $undo_hook(&self, call: &Undo<'_, $operation>) {
                let _ = called(N, Phase::Undo, call);
            }
        }
        impl<const N: usize> $after for Actor<N> {
            fn $after_hook(&self, call: &After<'_, $operation>) {
                let _ = called(N, Phase::After, call);
            }
        }
    )*};
}

act! {
    Get: BeforeGet before_get, GuardGet guard_get, UndoGet undo_get, AfterGet after_get;
    Post: BeforePost before_post, GuardPost guard_post add extend, UndoPost undo_post, AfterPost after_post;
    Put: BeforePut before_put, GuardPut guard_put add extend, UndoPut undo_put, AfterPut after_put;
    Delete: BeforeDelete before_delete, GuardDelete guard_delete add, UndoDelete undo_delete, AfterDelete after_delete;
}

fn member<const N: usize>(port: &Arc<HostContext>) -> Arc<Member> {
    const NAMES: [&str; PLUGINS] = ["actor-0", "actor-1", "actor-2", "actor-3", "actor-4"];
    let module = module::<Actor<N>>(NAMES[N], "1.0.0", true, &vkog_plugin_api::__hooks!(Actor<N>), &[]);
    // Five panics would happen at once.
    let failure_policy = FailurePolicy { on_failure: OnFailure::Keep, ..FailurePolicy::default() };
    // SAFETY: the module is of this program, made by the same vkog-plugin-api.
    Arc::new(unsafe { Member::create(module, "{}", port, failure_policy) }.expect("it is created"))
}

pub(crate) fn ask(engine: &Arc<Engine>, verb: Verb, key: &str, value: &str) -> Outcome {
    let request = Request {
        verb,
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        content_type: "text/plain".into(),
        query: String::new(),
        conditions: Conditions::default(),
        arrived: engine.revision(),
        depth: 0,
        cause: vkog_plugin_host::Cause::Request,
        states: Default::default(),
        origin: Arc::new(NoOrigin),
        form: Form::Sent,
        reads: Reads::Linearizable,
        transforms: Transforms::default(),
        guarded: Default::default(),
    };
    let (tell, told) = bounded(1);
    engine.run(request, move |answer, _| {
        let _ = tell.send(answer);
    });
    told.recv_timeout(DEADLINE).expect("every request gets a response")
}

/// Returns the calls that these actions must cause, and the plugin and action that end the operation before the store.
fn expected(acts: &[(usize, Phase, Act)], guarded: bool, kept: bool) -> (Calls, Option<(usize, Act)>) {
    let mut calls = Vec::new();
    let phases: &[Phase] = if guarded { &[Phase::Before, Phase::Guard] } else { &[Phase::Before] };
    for phase in phases {
        for plugin in 0..PLUGINS {
            calls.push((plugin, *phase));
            let Some(act) = acts.iter().find(|act| (act.0, act.1) == (plugin, *phase)) else { continue };
            if *phase == Phase::Guard {
                calls.extend((0..plugin).rev().map(|passed| (passed, Phase::Undo)));
            }
            return (calls, Some((plugin, act.2)));
        }
    }
    if guarded {
        let last = if kept { Phase::After } else { Phase::Undo };
        calls.extend((0..PLUGINS).rev().map(|plugin| (plugin, last)));
    }
    (calls, None)
}

/// Fails if a state was found or dropped wrongly, or exists after the response.
pub(crate) fn check_states(what: &str) {
    let play = PLAY.lock();
    assert_eq!((&play.wrong, &play.kept), (&Vec::new(), &Vec::new()), "states of {what}");
}

/// Returns the files without the preallocated zeros of the log.
pub(crate) fn files_of(disk: &SimulatedDisk) -> Image {
    let mut image = disk.now();
    for data in image.0.values_mut() {
        data.truncate(without_room(data).len());
    }
    image
}

/// A store with five scripted plugins.
pub(crate) fn stage(disk: &SimulatedDisk) -> Arc<Engine> {
    let store = open(disk, ALWAYS).expect("a store");
    let port = Arc::new(HostContext::new(1000, system_clock));
    let members =
        vec![member::<3>(&port), member::<0>(&port), member::<4>(&port), member::<1>(&port), member::<2>(&port)];
    // Deliberate panics print nothing, because there are thousands.
    drop(std::panic::take_hook());
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"on purpose") {
            print(info);
        }
    }));
    Engine::new(store, Registry::linked(members, Vec::new(), port)).expect("every plugin starts")
}

#[test]
fn a_failed_write_leaves_no_trace_for_any_cause() {
    let _alone = STAGE.lock();
    let disk = SimulatedDisk::empty();
    let engine = stage(&disk);
    let mut random = Random::new(7);
    let (mut refused, mut panicked, mut full, mut done) = (0, 0, 0, 0);
    while refused + panicked + full < FAILURES {
        let verb = [Verb::Get, Verb::Post, Verb::Put, Verb::Delete][random.below(4)];
        let key = format!("key-{}", random.below(6));
        let acts: Vec<_> = (0..random.below(4))
            .map(|_| {
                let phase = [Phase::Before, Phase::Guard, Phase::Guard, Phase::Undo, Phase::After][random.below(5)];
                (random.below(PLUGINS), phase, if random.percent(50) { Act::Refuse } else { Act::Panic })
            })
            .collect();
        let fails = random.percent(20);
        let there = contents(engine.store()).contains_key(&key);
        let writes = matches!(verb, Verb::Post | Verb::Put) || verb == Verb::Delete && there;
        let (calls, stopped) = expected(&acts, there || writes, !(fails && writes));

        let (before, files) = (contents(engine.store()), files_of(&disk));
        let placed = acts.iter().map(|(plugin, phase, act)| (0, *plugin, *phase, *act)).collect();
        *PLAY.lock() = Play { acts: placed, ..Play::default() };
        if fails && writes && stopped.is_none() {
            let fault = if random.percent(50) { Fault::Fails } else { Fault::Half };
            disk.fault(Call::Write, ".log", fault(std::io::ErrorKind::StorageFull), 1);
        }
        let value = format!("value {}", random.below(1_000_000));
        let answer = ask(&engine, verb, &key, &value);
        let what = || format!("{verb:?} {key} with {acts:?}, a disk that fails: {fails}");
        let called: Calls = PLAY.lock().called.iter().map(|(_, plugin, phase)| (*plugin, *phase)).collect();
        assert_eq!(called, calls, "{}", what());
        check_states(&what());
        match (stopped, &answer) {
            (Some((plugin, act)), Outcome::Refused(refusal)) => {
                let status = if act == Act::Panic { 500 } else { 403 };
                assert_eq!((refusal.plugin.as_str(), refusal.status), (format!("actor-{plugin}").as_str(), status));
                *(if act == Act::Panic { &mut panicked } else { &mut refused }) += 1;
            }
            (None, Outcome::StoreFailed(_)) if fails && writes => full += 1,
            (None, Outcome::Written(_)) if !fails && matches!(verb, Verb::Post | Verb::Put) => {
                assert_eq!(contents(engine.store())[&key].1.value, value.as_bytes(), "{}", what());
                done += 1;
                continue;
            }
            (None, Outcome::Removed(_)) if !fails && writes => {
                assert!(!contents(engine.store()).contains_key(&key), "{}", what());
                done += 1;
                continue;
            }
            (None, Outcome::Found(_)) if there => {}
            (None, Outcome::Absent) if !there => {}
            _ => panic!("another answer to {}", what()),
        }
        assert_eq!(contents(engine.store()), before, "the map after {}", what());
        assert_eq!(files_of(&disk), files, "the files after {}", what());
    }
    println!("{refused} refusals, {panicked} panics, {full} times no room, {done} writes between");
    assert!(refused.min(panicked).min(full).min(done) > 500, "{refused} {panicked} {full} {done}");
    let held = contents(engine.store());
    drop(engine);
    let store = open(&disk, ALWAYS).expect("a store");
    assert_eq!(contents(&store), held, "memory and disk");
    close(store);
}

pub(crate) fn ask_all(engine: &Arc<Engine>, operations: &[(Verb, String)], value: &str) -> BatchOutcome {
    let operation = |(place, (verb, key)): (usize, &(Verb, String))| Operation {
        verb: *verb,
        key: key.clone(),
        value: if matches!(verb, Verb::Post | Verb::Put) {
            format!("{value} {place}").into()
        } else {
            Vec::new().into()
        },
        content_type: "text/plain".into(),
        conditions: Conditions::default(),
        headers: vec![(PLACE.into(), place.to_string())],
        hidden: false,
        transforms: Transforms::default(),
        states: Default::default(),
        guarded: Default::default(),
        touches: false,
    };
    let batch = Batch {
        operations: operations.iter().enumerate().map(operation).collect(),
        query: String::new(),
        arrived: engine.revision(),
        values_max: usize::MAX,
        reads: Reads::Linearizable,
        origin: Arc::new(NoOrigin),
    };
    let (tell, told) = bounded(1);
    engine.run_batch(batch, move |outcome| {
        let _ = tell.send(outcome);
    });
    told.recv_timeout(DEADLINE).expect("every batch gets a response")
}

/// The place and the act that end a batch before the log is written; `None` if there is nothing to remove.
type Stop = (usize, Option<(usize, Act)>);

/// The expected course of a batch for the present entries: all calls, its end, and the response of each operation.
struct Expected {
    calls: Vec<(usize, usize, Phase)>,
    stop: Option<Stop>,
    /// Whether each operation finds or writes its entry.
    done: Vec<bool>,
}

fn expected_of_all(
    operations: &[(Verb, String)],
    acts: &[(usize, usize, Phase, Act)],
    mut there: Vec<String>,
    kept: bool,
) -> Expected {
    let (mut calls, mut done, mut guarded) = (Vec::new(), Vec::new(), Vec::new());
    let act = |place, plugin, phase| {
        acts.iter().find(|act| (act.0, act.1, act.2) == (place, plugin, phase)).map(|act| (plugin, act.3))
    };
    for place in 0..operations.len() {
        for plugin in 0..PLUGINS {
            calls.push((place, plugin, Phase::Before));
            if let Some(act) = act(place, plugin, Phase::Before) {
                return Expected { calls, stop: Some((place, Some(act))), done };
            }
        }
    }
    let backwards = |guarded: &[usize], phase, calls: &mut Vec<_>| {
        let all = guarded.iter().rev().flat_map(|place| (0..PLUGINS).rev().map(move |plugin| (*place, plugin, phase)));
        calls.extend(all);
    };
    for (place, (verb, key)) in operations.iter().enumerate() {
        let is_there = there.contains(key);
        if *verb == Verb::Delete && !is_there {
            backwards(&guarded, Phase::Undo, &mut calls);
            return Expected { calls, stop: Some((place, None)), done };
        }
        done.push(*verb != Verb::Get || is_there);
        if *verb == Verb::Get && !is_there {
            continue;
        }
        for plugin in 0..PLUGINS {
            calls.push((place, plugin, Phase::Guard));
            if let Some(act) = act(place, plugin, Phase::Guard) {
                calls.extend((0..plugin).rev().map(|passed| (place, passed, Phase::Undo)));
                backwards(&guarded, Phase::Undo, &mut calls);
                return Expected { calls, stop: Some((place, Some(act))), done };
            }
        }
        guarded.push(place);
        match verb {
            Verb::Delete => there.retain(|other| other != key),
            Verb::Post | Verb::Put if !is_there => there.push(key.clone()),
            _ => {}
        }
    }
    if kept {
        calls.extend(
            guarded.iter().flat_map(|place| (0..PLUGINS).rev().map(move |plugin| (*place, plugin, Phase::After))),
        );
    } else {
        backwards(&guarded, Phase::Undo, &mut calls);
    }
    Expected { calls, stop: None, done }
}

#[test]
fn a_failed_batch_leaves_no_trace_whichever_operation_failed() {
    let _alone = STAGE.lock();
    let disk = SimulatedDisk::empty();
    let engine = stage(&disk);
    let mut random = Random::new(11);
    let (mut refused, mut panicked, mut absent, mut full, mut done) = (0, 0, 0, 0, 0);
    while refused + panicked + absent + full < FAILURES / 2 {
        let operations: Vec<_> = (0..1 + random.below(5))
            .map(|_| {
                let verbs = [Verb::Get, Verb::Get, Verb::Post, Verb::Put, Verb::Put, Verb::Delete];
                (verbs[random.below(verbs.len())], format!("key-{}", random.below(4)))
            })
            .collect();
        let acts: Vec<_> = (0..random.below(4))
            .map(|_| {
                let phase = [Phase::Before, Phase::Guard, Phase::Guard, Phase::Undo, Phase::After][random.below(5)];
                let act = if random.percent(50) { Act::Refuse } else { Act::Panic };
                (random.below(5), random.below(PLUGINS), phase, act)
            })
            .collect();
        let writes = operations.iter().any(|(verb, _)| *verb != Verb::Get);
        let fails = writes && random.percent(20);
        let (before, files) = (contents(engine.store()), files_of(&disk));
        let expected = expected_of_all(&operations, &acts, before.keys().cloned().collect(), !fails);

        *PLAY.lock() = Play { acts: acts.clone(), ..Play::default() };
        if fails && expected.stop.is_none() {
            let fault = if random.percent(50) { Fault::Fails } else { Fault::Half };
            disk.fault(Call::Write, ".log", fault(std::io::ErrorKind::StorageFull), 1);
        }
        let value = format!("value {}", random.below(1_000_000));
        let revision = engine.revision();
        let outcome = ask_all(&engine, &operations, &value);
        let what = || format!("{operations:?} with {acts:?}, a disk that fails: {fails}");
        assert_eq!(PLAY.lock().called, expected.calls, "{}", what());
        check_states(&what());
        match (expected.stop, outcome) {
            (Some((place, act)), Err(BatchFailure { at, outcome })) => {
                assert_eq!(at, Some((place, operations[place].1.clone())), "{}", what());
                match (act, outcome) {
                    (Some((plugin, act)), Outcome::Refused(refusal)) => {
                        let status = if act == Act::Panic { 500 } else { 403 };
                        assert_eq!((refusal.plugin, refusal.status), (format!("actor-{plugin}"), status), "{}", what());
                        *(if act == Act::Panic { &mut panicked } else { &mut refused }) += 1;
                    }
                    (None, Outcome::Absent) => absent += 1,
                    _ => panic!("another reason for {}", what()),
                }
            }
            (None, Err(BatchFailure { at: None, outcome: Outcome::StoreFailed(_) })) if fails => full += 1,
            (None, Ok(answers)) if !fails => {
                let mut next = revision;
                for (place, (answer, (verb, key))) in answers.iter().zip(&operations).enumerate() {
                    let written =
                        operations[..place].iter().rposition(|(verb, other)| other == key && *verb != Verb::Get);
                    match (verb, answer) {
                        (Verb::Get, (Outcome::Found(entry), _)) if expected.done[place] => {
                            let found = entry.value();
                            let left = written.map(|place| format!("{value} {place}").into_bytes());
                            assert_eq!(found, left.unwrap_or_else(|| before[key].1.value.clone()), "{}", what());
                        }
                        (Verb::Get, (Outcome::Absent, _)) if !expected.done[place] => {}
                        (_, (Outcome::Written(given) | Outcome::Removed(given), _)) => {
                            next += 1;
                            assert_eq!(*given, next, "the revisions of {}", what());
                        }
                        _ => panic!("another answer at {place} to {}", what()),
                    }
                }
                assert_eq!(engine.revision(), next, "{}", what());
                if writes {
                    done += 1;
                    continue;
                }
            }
            _ => panic!("another outcome of {}", what()),
        }
        assert_eq!(contents(engine.store()), before, "the map after {}", what());
        assert_eq!(files_of(&disk), files, "the files after {}", what());
    }
    println!("{refused} refusals, {panicked} panics, {absent} absent, {full} times no room, {done} batches between");
    assert!(refused.min(panicked).min(absent).min(full).min(done) > 250, "{refused} {panicked} {absent} {full} {done}");
    let held = contents(engine.store());
    drop(engine);
    let store = open(&disk, ALWAYS).expect("a store");
    assert_eq!(contents(&store), held, "memory and disk");
    close(store);
}
