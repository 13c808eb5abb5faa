//! A step with writes that guards add succeeds or fails as a whole: after a refusal, a panic or a failed disk at any hook of any
//! of its writes, the map and the files do not change, and the guards that passed are rolled back in exactly the reverse
//! order.
//!
//! The five plugins of `refusals` add writes and replace values at random. The expected calls follow from the script: the
//! guards run once to learn which writes they add, and again with those.

use std::collections::BTreeMap;

use vkog_engine::{BatchFailure, Outcome};
use vkog_plugin_host::Verb;

use crate::client::{ALWAYS, close, contents, open};
use crate::disk::{Call, Fault, SimulatedDisk};
use crate::random::Random;
use crate::refusals::{Act, Add, PLAY, PLUGINS, Phase, Play, STAGE, ask, ask_all, check_states, files_of, stage};

/// The number of steps, in the quick and in the full tier.
const STEPS: [usize; 2] = [1500, 10_000];
/// The place of the first added write.
const ADDED: usize = 100;

/// An operation or an added write: its place, verb and key.
type Member = (usize, Verb, String);
/// The values by key.
type Values = BTreeMap<String, Vec<u8>>;

/// The script of one step.
#[derive(Debug)]
struct Script {
    operations: Vec<(Verb, String)>,
    adds: Vec<Add>,
    extends: Vec<(usize, usize)>,
    acts: Vec<(usize, usize, Phase, Act)>,
    /// The value that the operations write.
    value: String,
    /// The disk fails.
    fails: bool,
}

/// Why a step ends before the log is written: the place of the operation, and the plugin and its act, if it is one.
type Stop = (usize, Option<(usize, Act)>);

/// The expected course of a step.
struct Expected {
    calls: Vec<(usize, usize, Phase)>,
    stop: Option<Stop>,
    /// The content of the store afterwards.
    values: Values,
    /// The number of revisions that are assigned.
    revisions: u64,
}

impl Script {
    fn new(random: &mut Random) -> Self {
        let verbs = [Verb::Get, Verb::Post, Verb::Put, Verb::Put, Verb::Delete];
        let key = |random: &mut Random| format!("key-{}", random.below(5));
        let count = if random.percent(50) { 1 } else { 1 + random.below(4) };
        let operations: Vec<_> = (0..count).map(|_| (verbs[random.below(verbs.len())], key(random))).collect();
        let mut adds: Vec<Add> = Vec::new();
        for place in ADDED..ADDED + random.below(4) {
            let (to, by) = (random.below(count), random.below(PLUGINS));
            let (verb, key) = ([Verb::Post, Verb::Put, Verb::Delete][random.below(3)], key(random));
            // A write of the key itself is a mistake of the plugin. A get adds nothing.
            if key != operations[to].1 && operations[to].0 != Verb::Get {
                adds.push(Add { to, by, place, verb, key });
            }
        }
        // The order in which the guards add them.
        adds.sort_by_key(|add| (add.to, add.by, add.place));
        let places: Vec<usize> = (0..count).chain(adds.iter().map(|add| add.place)).collect();
        let place = |random: &mut Random| places[random.below(places.len())];
        let extends = (0..random.below(3)).map(|_| (place(random), random.below(PLUGINS))).collect();
        let acts = (0..random.below(3)).map(|_| {
            let phase = [Phase::Before, Phase::Guard, Phase::Guard, Phase::Undo, Phase::After][random.below(5)];
            let act = if random.percent(50) { Act::Refuse } else { Act::Panic };
            (place(random), random.below(PLUGINS), phase, act)
        });
        let acts = acts.collect();
        let value = format!("value {}", random.below(1_000_000));
        Self { operations, adds, extends, acts, value, fails: random.percent(20) }
    }

    fn act(&self, place: usize, phase: Phase) -> impl Fn(usize) -> Option<(usize, Act)> {
        move |plugin| {
            let act = self.acts.iter().find(|act| (act.0, act.1, act.2) == (place, plugin, phase))?;
            Some((plugin, act.3))
        }
    }

    /// Calls a phase of one member. Returns the act that ends it.
    fn call(&self, place: usize, phase: Phase, calls: &mut Vec<(usize, usize, Phase)>) -> Option<(usize, Act)> {
        let act = self.act(place, phase);
        (0..PLUGINS).find_map(|plugin| {
            calls.push((place, plugin, phase));
            act(plugin)
        })
    }

    /// The place of the operation that a failure of this member is reported for.
    fn reported(&self, place: usize) -> usize {
        self.adds.iter().find(|add| add.place == place).map_or(place, |add| add.to)
    }

    /// The value that a member writes.
    fn written(&self, place: usize) -> Vec<u8> {
        let mut value = match place {
            ADDED.. => format!("added {place}"),
            _ if self.operations.len() == 1 => self.value.clone(),
            _ => format!("{} {place}", self.value),
        };
        for plugin in 0..PLUGINS {
            if self.extends.contains(&(place, plugin)) {
                value += &format!("+{plugin}");
            }
        }
        value.into_bytes()
    }

    /// Runs the guards of all members. Returns those that passed, and what the store holds then; or why it ends.
    fn guards(
        &self,
        members: &[Member],
        mut values: Values,
        calls: &mut Vec<(usize, usize, Phase)>,
    ) -> Result<(Vec<usize>, Values), Stop> {
        let mut passed = Vec::new();
        for (place, verb, key) in members {
            let place = *place;
            let is_there = values.contains_key(key);
            if !is_there && *verb == Verb::Get || !is_there && *verb == Verb::Delete && place >= ADDED {
                continue;
            }
            let stop = if !is_there && *verb == Verb::Delete {
                Some(None)
            } else {
                self.call(place, Phase::Guard, calls).map(|(plugin, act)| {
                    calls.extend((0..plugin).rev().map(|undone| (place, undone, Phase::Undo)));
                    Some((plugin, act))
                })
            };
            if let Some(act) = stop {
                undo(&passed, calls);
                return Err((self.reported(place), act));
            }
            passed.push(place);
            match verb {
                Verb::Get => {}
                Verb::Delete => drop(values.remove(key)),
                Verb::Post | Verb::Put => drop(values.insert(key.clone(), self.written(place))),
            }
        }
        Ok((passed, values))
    }

    fn expected(&self, held: &Values) -> Expected {
        let mut calls = Vec::new();
        let (stop, values, revisions) = match self.course(held, &mut calls) {
            Ok((values, revisions)) => (None, values, revisions),
            Err(stop) => (Some(stop), held.clone(), 0),
        };
        Expected { calls, stop, values, revisions }
    }

    fn course(&self, held: &Values, calls: &mut Vec<(usize, usize, Phase)>) -> Result<(Values, u64), Stop> {
        let operations = self.operations.iter().enumerate();
        let mut members: Vec<Member> = operations.map(|(place, (verb, key))| (place, *verb, key.clone())).collect();
        for place in 0..members.len() {
            self.call(place, Phase::Before, calls).map_or(Ok(()), |act| Err((place, Some(act))))?;
        }
        let (mut passed, mut values) = self.guards(&members, held.clone(), calls)?;
        if !self.adds.is_empty() {
            undo(&passed, calls);
            for add in &self.adds {
                self.call(add.place, Phase::Before, calls).map_or(Ok(()), |act| Err((add.to, Some(act))))?;
            }
            members.extend(self.adds.iter().map(|add| (add.place, add.verb, add.key.clone())));
            (passed, values) = self.guards(&members, held.clone(), calls)?;
        }
        let writes = members.iter().filter(|(place, verb, _)| *verb != Verb::Get && passed.contains(place)).count();
        if self.fails && writes > 0 {
            undo(&passed, calls);
            return Ok((held.clone(), 0));
        }
        calls.extend(passed.iter().flat_map(|place| (0..PLUGINS).rev().map(|plugin| (*place, plugin, Phase::After))));
        Ok((values, writes as u64))
    }
}

fn undo(passed: &[usize], calls: &mut Vec<(usize, usize, Phase)>) {
    let all = passed.iter().rev().flat_map(|place| (0..PLUGINS).rev().map(|plugin| (*place, plugin, Phase::Undo)));
    calls.extend(all);
}

#[test]
fn a_step_with_added_writes_leaves_all_of_them_or_no_trace() {
    let _alone = STAGE.lock();
    let disk = SimulatedDisk::empty();
    let engine = stage(&disk);
    let mut random = Random::new(13);
    let steps = STEPS[usize::from(std::env::var_os("VKOG_FULL").is_some())];
    let (mut stopped, mut stopped_added, mut full, mut done) = (0, 0, 0, 0);
    for _ in 0..steps {
        let script = Script::new(&mut random);
        let held: Values = contents(engine.store()).into_iter().map(|(key, (_, held))| (key, held.value)).collect();
        let (before, files, revision) = (contents(engine.store()), files_of(&disk), engine.revision());
        let expected = script.expected(&held);
        let Script { operations, adds, extends, acts, value, .. } = &script;
        *PLAY.lock() = Play { acts: acts.clone(), adds: adds.clone(), extends: extends.clone(), ..Play::default() };
        let fails = script.fails && expected.stop.is_none() && expected.values == held && expected.revisions == 0;
        if script.fails {
            let fault = if random.percent(50) { Fault::Fails } else { Fault::Half };
            disk.fault(Call::Write, ".log", fault(std::io::ErrorKind::StorageFull), 1);
        }
        let outcome = match operations.as_slice() {
            [(verb, key)] => match ask(&engine, *verb, key, value) {
                outcome if outcome.failure().is_none() || matches!(outcome, Outcome::Absent) && *verb == Verb::Get => {
                    Ok(())
                }
                outcome => Err((0, outcome)),
            },
            several => match ask_all(&engine, several, value) {
                Ok(_) => Ok(()),
                Err(BatchFailure { at, outcome }) => Err((at.map_or(0, |(index, _)| index), outcome)),
            },
        };
        disk.mend();
        assert_eq!(PLAY.lock().called, expected.calls, "{script:?}");
        assert_eq!(PLAY.lock().differences, [""; 0], "{script:?}");
        check_states(&format!("{script:?}"));
        match (expected.stop, outcome) {
            (Some((place, act)), Err((index, outcome))) => {
                assert_eq!(index, place, "{script:?}");
                match (act, outcome) {
                    (Some((plugin, act)), Outcome::Refused(refusal)) => {
                        let status = if act == Act::Panic { 500 } else { 403 };
                        let by = (refusal.plugin, refusal.status);
                        assert_eq!(by, (format!("actor-{plugin}"), status), "{script:?}");
                    }
                    (None, Outcome::Absent) => {}
                    _ => panic!("another reason for {script:?}"),
                }
                stopped += 1;
                stopped_added += usize::from(expected.calls.iter().any(|(place, ..)| *place >= ADDED));
            }
            (None, Err((0, Outcome::StoreFailed(_)))) if fails => full += 1,
            (None, Ok(())) => done += usize::from(expected.revisions > 0 && !adds.is_empty()),
            _ => panic!("another outcome of {script:?}"),
        }
        let after = contents(engine.store());
        if expected.revisions == 0 {
            assert_eq!(after, before, "the map after {script:?}");
            assert_eq!(files_of(&disk), files, "the files after {script:?}");
        }
        let values: Values = after.into_iter().map(|(key, (_, held))| (key, held.value)).collect();
        assert_eq!(values, expected.values, "{script:?}");
        if expected.revisions > 0 {
            assert_eq!(engine.revision(), revision + expected.revisions, "{script:?}");
        }
    }
    println!(
        "{stopped} stopped, {stopped_added} of them in an added write, {full} times no room, {done} with added writes"
    );
    let enough = steps / 100;
    assert!(stopped.min(stopped_added).min(full).min(done) > enough, "{stopped} {stopped_added} {full} {done}");
    let held = contents(engine.store());
    drop(engine);
    let store = open(&disk, ALWAYS).expect("a store");
    assert_eq!(contents(&store), held, "memory and disk");
    close(store);
}
