//! The expected course of a script: all calls of hooks, the results of store calls, the response and what the store holds.

use std::collections::BTreeMap;

use vkog_plugin_host::Verb;

use crate::actors::PLUGINS;
use crate::script::{Act, Hook, How, Operation, Path, Phase, REQUEST, SERVE, Script, StoreCall, failure};

/// A value as it is stored, and the plugins that have transformed it, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) value: String,
    pub(crate) seals: Vec<usize>,
}

/// The content of the store, by key.
pub(crate) type Values = BTreeMap<String, Stored>;

/// Why an operation ends. The text of a failure of the store is not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Failed {
    fn shown(&self) -> String {
        failure(self.status, &self.text)
    }
}

/// Why a step ends: the index of the operation, if it is one, and its failure.
type StepFailed = (Option<usize>, Failed);

/// The outcome of an operation: the value that a get found; none if there is no entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    Found(String),
    Absent,
    Written,
}

/// The expected response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The outcomes of the operations.
    Done(Vec<Done>),
    /// The body of the response of a route.
    Served(&'static str),
    /// The index of the operation, if it is one, and the failure.
    Failed(Option<usize>, String),
}

/// An operation or an added write in a step.
struct Member {
    place: usize,
    verb: Verb,
    key: String,
    /// The value to write, with its seals.
    written: Stored,
    /// The index of the operation that a failure is reported for.
    reported: usize,
    is_added: bool,
}

/// The result of running the guards of a step once.
enum Decided {
    Passed(Passed),
    /// The guards add writes that the step does not have yet.
    Adds,
    /// Gets found transformed values that are not turned back yet.
    Stored(Vec<(usize, Stored)>),
}

/// A step whose guards have passed.
struct Passed {
    /// The indices of the members that had guards.
    indices: Vec<usize>,
    /// The values that gets have found.
    found: Vec<(usize, Stored)>,
    /// The content of the store when the step is durable.
    values: Values,
}

/// The transformed values that a step has read, by index: as they are stored, and as they were sent.
type Restored = BTreeMap<usize, (Stored, String)>;

/// Runs a script without a server.
pub(crate) struct Model<'a> {
    script: &'a Script,
    pub(crate) values: Values,
    pub(crate) calls: Vec<Hook>,
    pub(crate) results: Vec<String>,
    /// The number of revisions that are assigned to durable writes.
    pub(crate) revisions: u64,
    /// The acts that were reached, and what failed in which hook: `508` for a store call that is not allowed, `full` for the disk.
    pub(crate) reached: Vec<(Phase, &'static str)>,
    /// The hook in which the disk began to fail, until a write has failed.
    armed: Option<Phase>,
    was_armed: bool,
}

impl<'a> Model<'a> {
    pub(crate) fn new(script: &'a Script, values: Values) -> Self {
        Self {
            script,
            values,
            calls: Vec::new(),
            results: Vec::new(),
            revisions: 0,
            reached: Vec::new(),
            armed: None,
            was_armed: false,
        }
    }

    /// Whether a write of the log has failed.
    pub(crate) fn was_full(&self) -> bool {
        self.reached.iter().any(|(_, what)| *what == "full")
    }

    /// Runs the whole request.
    pub(crate) fn run(&mut self) -> Reply {
        for plugin in 0..PLUGINS {
            if let Err(failed) = self.hook((REQUEST, plugin, Phase::Request), "before_request") {
                return Reply::Failed(None, failed.shown());
            }
        }
        let prefix = self.script.prefix();
        let operations = whole(&self.script.operations, &prefix);
        match self.script.path {
            Path::Entry => match self.one(&operations[0]) {
                Ok(done) => Reply::Done(vec![done]),
                Err(failed) => Reply::Failed(None, failed.shown()),
            },
            Path::Batch => match self.step(&operations) {
                Ok(done) => Reply::Done(done),
                Err((index, failed)) => Reply::Failed(index, failed.shown()),
            },
            Path::Route(plugin) => match self.hook((SERVE, plugin, Phase::Serve), "serve") {
                _ if self.script.responds_early => Reply::Served("early"),
                Ok(()) => Reply::Served("late"),
                Err(failed) => Reply::Failed(None, failed.shown()),
            },
        }
    }

    /// Calls a hook. `name` is that of the hook.
    fn hook(&mut self, hook: Hook, name: &str) -> Result<(), Failed> {
        let (_, plugin, phase) = hook;
        self.calls.push(hook);
        let script = self.script;
        if !self.was_armed && script.fault.is_some_and(|(at, _)| at == hook) {
            (self.armed, self.was_armed) = (Some(phase), true);
        }
        for call in script.calls.iter().filter(|call| call.at == hook) {
            if let Err(failed) = self.store_call(call)
                && call.is_passed_on
            {
                return Err(failed);
            }
        }
        let Some((_, act)) = script.acts.iter().find(|(at, _)| *at == hook) else { return Ok(()) };
        let (status, text, reached) = match act {
            Act::Refuse => (403, format!("on purpose: {hook:?}"), "refuse"),
            Act::Panic => {
                let unchanged = if phase == Phase::Serve { "" } else { "; nothing was changed" };
                (500, format!("plugin \"actor-{plugin}\" failed in {name}{unchanged}"), "panic")
            }
        };
        self.reached.push((phase, reached));
        Err(Failed { status, text })
    }

    /// Calls a hook of an operation.
    fn hook_of(&mut self, place: usize, plugin: usize, phase: Phase, verb: Verb) -> Result<(), Failed> {
        let name = match phase {
            Phase::Read => "read_get".to_owned(),
            _ => format!("{phase:?}_{}", verb.method()).to_lowercase(),
        };
        self.hook((place, plugin, phase), &name)
    }

    /// Calls the store for a plugin, and records the result.
    fn store_call(&mut self, call: &StoreCall) -> Result<(), Failed> {
        let (_, _, phase) = call.at;
        if matches!(phase, Phase::Guard | Phase::Undo) {
            self.results.push("0: 508".to_owned());
            self.reached.push((phase, "508"));
            return Err(Failed { status: 508, text: String::new() });
        }
        let prefix = if phase == Phase::Serve { self.script.prefix() } else { String::new() };
        let operations = whole(&call.operations, &prefix);
        let done = match call.how {
            How::Ask => self.one(&operations[0]).map(|done| vec![done]).map_err(|failed| (Some(0), failed)),
            How::Batch => self.step(&operations),
            How::Update => self.update(&operations[0]).map(|done| vec![done]).map_err(|failed| (Some(0), failed)),
        };
        self.reached.push((phase, if done.is_ok() { "called" } else { "failed" }));
        let text = match &done {
            Ok(done) => done.iter().map(text_of).collect::<Vec<_>>().join(", "),
            Err((index, failed)) => format!("{}: {}", index.unwrap_or(0), failed.shown()),
        };
        self.results.push(text);
        // A plugin that passes "not found" on refuses.
        done.map(drop).map_err(|(_, failed)| match failed {
            Failed { status: 404, .. } => Failed { status: 404, text: "passed on".to_owned() },
            other => other,
        })
    }

    /// Runs a single operation.
    fn one(&mut self, operation: &Operation) -> Result<Done, Failed> {
        match self.step(std::slice::from_ref(operation)) {
            Ok(mut done) => Ok(done.remove(0)),
            Err((_, Failed { status: 404, text })) if text.is_empty() => Ok(Done::Absent),
            Err((_, failed)) => Err(failed),
        }
    }

    fn update(&mut self, operation: &Operation) -> Result<Done, Failed> {
        let seen = match self.values.get(&operation.key).cloned() {
            Some(stored) => Some(self.turn_back(operation.place, &stored)?),
            None => None,
        };
        self.results.push(format!("the update saw {seen:?}"));
        self.one(operation)
    }

    /// Runs operations in one step.
    fn step(&mut self, operations: &[Operation]) -> Result<Vec<Done>, StepFailed> {
        let mut members = Vec::new();
        for (index, operation) in operations.iter().enumerate() {
            members.push(self.before(operation, index, false)?);
        }
        let mut restored = Restored::new();
        if members.iter().all(|member| member.verb == Verb::Get) {
            return self.read(&members);
        }
        loop {
            let is_planned = members.len() > operations.len() || self.adds_of(operations).is_empty();
            match self.decide(&members, operations.len(), is_planned, &restored)? {
                Decided::Adds => {
                    for (index, write) in self.adds_of(operations) {
                        members.push(self.before(&write, index, true)?);
                    }
                }
                Decided::Stored(missing) => self.restore(&members, &missing, &mut restored)?,
                Decided::Passed(passed) => {
                    if let Some(phase) = self.armed.take() {
                        self.reached.push((phase, "full"));
                        self.undo(&members, &passed.indices);
                        return Err((None, Failed { status: 507, text: String::new() }));
                    }
                    let writes = passed.indices.iter().filter(|index| members[**index].verb != Verb::Get).count();
                    self.revisions += writes as u64;
                    let Passed { indices, found, values } = passed;
                    self.values = values;
                    self.after(&members, &indices);
                    return Ok(done(&members[..operations.len()], &found, &restored));
                }
            }
        }
    }

    /// Runs a step that only reads.
    fn read(&mut self, members: &[Member]) -> Result<Vec<Done>, StepFailed> {
        let Decided::Passed(Passed { indices, found, .. }) =
            self.decide(members, usize::MAX, true, &Restored::new())?
        else {
            unreachable!("a read adds nothing, and its values are turned back when it is durable")
        };
        let mut restored = Restored::new();
        if let Err(failed) = self.restore(members, &found, &mut restored) {
            self.undo(members, &indices);
            return Err(failed);
        }
        self.after(members, &indices);
        Ok(done(members, &found, &restored))
    }

    /// The writes that guards add to operations, with the index of each operation.
    fn adds_of(&self, operations: &[Operation]) -> Vec<(usize, Operation)> {
        let indexed = operations.iter().enumerate();
        let adds = indexed.flat_map(|(index, operation)| {
            let adds = self.script.adds.iter().filter(|add| add.to == operation.place);
            adds.map(move |add| (index, add.write.clone()))
        });
        adds.collect()
    }

    /// Calls the before-hooks of an operation.
    fn before(&mut self, operation: &Operation, reported: usize, is_added: bool) -> Result<Member, StepFailed> {
        let Operation { place, verb, key, value } = operation.clone();
        let mut written = Stored { value, seals: Vec::new() };
        for plugin in 0..PLUGINS {
            self.hook_of(place, plugin, Phase::Before, verb).map_err(|failed| (Some(reported), failed))?;
            if self.script.seals.contains(&(place, plugin)) {
                written.value += &format!("~{plugin}");
                written.seals.push(plugin);
            }
        }
        Ok(Member { place, verb, key, written, reported, is_added })
    }

    /// Calls the guards of all members. The guards of the added writes come behind those of the operations, of which there are
    /// `operations`.
    fn decide(
        &mut self,
        members: &[Member],
        operations: usize,
        is_planned: bool,
        restored: &Restored,
    ) -> Result<Decided, StepFailed> {
        let mut values = self.values.clone();
        let (mut passed, mut found, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for (index, member) in members.iter().enumerate() {
            let current = values.get(&member.key).cloned();
            let is_skipped = member.verb == Verb::Get || member.verb == Verb::Delete && member.is_added;
            if current.is_some() || !is_skipped {
                if let Err(failed) = self.guard(member, current.is_some()) {
                    self.undo(members, &passed);
                    return Err((Some(member.reported), failed));
                }
                passed.push(index);
            }
            match (member.verb, current) {
                (Verb::Get, Some(stored)) => {
                    let is_known = restored.get(&index).is_some_and(|(known, _)| *known == stored);
                    if !stored.seals.is_empty() && !is_known {
                        missing.push((index, stored.clone()));
                    }
                    found.push((index, stored));
                }
                (Verb::Get, None) => {}
                (Verb::Delete, _) => drop(values.remove(&member.key)),
                (Verb::Post | Verb::Put, _) => drop(values.insert(member.key.clone(), self.stored(member))),
            }
            if index + 1 == operations && !(is_planned && missing.is_empty()) {
                self.undo(members, &passed);
                return Ok(if is_planned { Decided::Stored(missing) } else { Decided::Adds });
            }
        }
        Ok(Decided::Passed(Passed { indices: passed, found, values }))
    }

    /// Calls the guards of one member, and undoes those that have passed if it fails.
    fn guard(&mut self, member: &Member, exists: bool) -> Result<(), Failed> {
        let Member { place, verb, ref written, .. } = *member;
        if verb == Verb::Delete && !exists {
            return Err(Failed { status: 404, text: String::new() });
        }
        for plugin in 0..PLUGINS {
            if let Err(failed) = self.hook_of(place, plugin, Phase::Guard, verb) {
                self.undo_one(member, plugin);
                return Err(failed);
            }
        }
        let replaced = self.script.extends.iter().filter(|(extended, _)| *extended == place).map(|(_, plugin)| plugin);
        match replaced.max() {
            Some(plugin) if !written.seals.is_empty() => {
                self.undo_one(member, PLUGINS);
                let text =
                    format!("plugin \"actor-{plugin}\" replaced a value in a guard that a plugin has transformed");
                Err(Failed { status: 500, text })
            }
            _ => Ok(()),
        }
    }

    /// The value that a member writes, with what guards append to it.
    fn stored(&self, member: &Member) -> Stored {
        let mut stored = member.written.clone();
        for plugin in 0..PLUGINS {
            if self.script.extends.contains(&(member.place, plugin)) {
                stored.value += &format!("+{plugin}");
            }
        }
        stored
    }

    /// Undoes the guards of the first plugins, the last first.
    fn undo_one(&mut self, member: &Member, plugins: usize) {
        for plugin in (0..plugins).rev() {
            // What an undo returns does not count.
            let _ = self.hook_of(member.place, plugin, Phase::Undo, member.verb);
        }
    }

    /// Undoes the guards of members, the last first.
    fn undo(&mut self, members: &[Member], passed: &[usize]) {
        for index in passed.iter().rev() {
            self.undo_one(&members[*index], PLUGINS);
        }
    }

    fn after(&mut self, members: &[Member], passed: &[usize]) {
        for index in passed {
            for plugin in (0..PLUGINS).rev() {
                let Member { place, verb, .. } = members[*index];
                let _ = self.hook_of(place, plugin, Phase::After, verb);
            }
        }
    }

    /// Turns values back that gets have found.
    fn restore(
        &mut self,
        members: &[Member],
        found: &[(usize, Stored)],
        restored: &mut Restored,
    ) -> Result<(), StepFailed> {
        for (index, stored) in found.iter().filter(|(_, stored)| !stored.seals.is_empty()) {
            let Member { place, reported, .. } = members[*index];
            let sent = self.turn_back(place, stored).map_err(|failed| (Some(reported), failed))?;
            restored.insert(*index, (stored.clone(), sent));
        }
        Ok(())
    }

    fn turn_back(&mut self, place: usize, stored: &Stored) -> Result<String, Failed> {
        let mut sent = stored.value.clone();
        for plugin in stored.seals.iter().rev() {
            self.hook_of(place, *plugin, Phase::Read, Verb::Get)?;
            sent.truncate(sent.len() - format!("~{plugin}").len());
        }
        Ok(sent)
    }
}

/// The outcomes of the operations of a step that has succeeded.
fn done(operations: &[Member], found: &[(usize, Stored)], restored: &Restored) -> Vec<Done> {
    let outcome = |(index, member): (usize, &Member)| match member.verb {
        Verb::Get => match found.iter().find(|(of, _)| *of == index) {
            Some((_, stored)) => {
                Done::Found(restored.get(&index).map_or_else(|| stored.value.clone(), |(_, sent)| sent.clone()))
            }
            None => Done::Absent,
        },
        Verb::Post | Verb::Put | Verb::Delete => Done::Written,
    };
    operations.iter().enumerate().map(outcome).collect()
}

fn whole(operations: &[Operation], prefix: &str) -> Vec<Operation> {
    let whole = |operation: &Operation| Operation { key: format!("{prefix}{}", operation.key), ..operation.clone() };
    operations.iter().map(whole).collect()
}

fn text_of(done: &Done) -> String {
    match done {
        Done::Found(value) => format!("found {value}"),
        Done::Absent => "absent".to_owned(),
        Done::Written => "done".to_owned(),
    }
}
