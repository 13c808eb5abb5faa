//! A write that a plugin refuses, in which a plugin panics, or that the disk refuses leaves no trace: the map and the
//! files do not change, the guards that passed are rolled back in exactly the reverse order, and no after-hook runs.
//!
//! Five plugins of the real chain refuse and panic at random, in every hook, over a disk that fills up at random. Each
//! records its calls, and the expected calls follow from the injected failures. The same holds for single operations
//! and for batches, which have no effect if one operation fails. Each call finds the state that the previous call of the same
//! plugin for the same operation has set, and all states are dropped once, before the response. The store is called directly;
//! `chains` sends the requests of HTTP clients.

use crate::actors::{PLAY, PLUGINS, Play, STAGE, ask, ask_all, fail_once, files_of, stage};
use crate::client::{ALWAYS, close, contents, open};
use crate::disk::{Fault, SimulatedDisk};
use crate::random::Random;
use crate::script::{Act, Hook, Phase, Script};
use vkog_engine::{BatchFailure, Outcome};
use vkog_plugin_host::Verb;

/// The number of writes that fail.
const FAILURES: usize = 10_000;

/// The calls of plugins, in order.
type Calls = Vec<(usize, Phase)>;

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
        let placed = acts.iter().map(|(plugin, phase, act)| ((0, *plugin, *phase), *act)).collect();
        *PLAY.lock() = Play::of(Script { acts: placed, ..Script::default() });
        if fails && writes && stopped.is_none() {
            let fault = if random.percent(50) { Fault::Fails } else { Fault::Half };
            fail_once(&disk, fault);
        }
        let value = format!("value {}", random.below(1_000_000));
        let answer = ask(&engine, verb, &key, &value);
        let what = || format!("{verb:?} {key} with {acts:?}, a disk that fails: {fails}");
        let called: Calls = PLAY.lock().called.iter().map(|(_, plugin, phase)| (*plugin, *phase)).collect();
        assert_eq!(called, calls, "{}", what());
        PLAY.lock().check(&what());
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
    acts: &[(Hook, Act)],
    mut there: Vec<String>,
    kept: bool,
) -> Expected {
    let (mut calls, mut done, mut guarded) = (Vec::new(), Vec::new(), Vec::new());
    let act = |place, plugin, phase| {
        acts.iter().find(|(hook, _)| *hook == (place, plugin, phase)).map(|(_, act)| (plugin, *act))
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
                ((random.below(5), random.below(PLUGINS), phase), act)
            })
            .collect();
        let writes = operations.iter().any(|(verb, _)| *verb != Verb::Get);
        let fails = writes && random.percent(20);
        let (before, files) = (contents(engine.store()), files_of(&disk));
        let expected = expected_of_all(&operations, &acts, before.keys().cloned().collect(), !fails);

        *PLAY.lock() = Play::of(Script { acts: acts.clone(), ..Script::default() });
        if fails && expected.stop.is_none() {
            let fault = if random.percent(50) { Fault::Fails } else { Fault::Half };
            fail_once(&disk, fault);
        }
        let value = format!("value {}", random.below(1_000_000));
        let revision = engine.revision();
        let outcome = ask_all(&engine, &operations, &value);
        let what = || format!("{operations:?} with {acts:?}, a disk that fails: {fails}");
        assert_eq!(PLAY.lock().called, expected.calls, "{}", what());
        PLAY.lock().check(&what());
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
