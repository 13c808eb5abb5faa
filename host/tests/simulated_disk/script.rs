//! The script of one request: its operations, and what the plugins do in which hook.

use std::io::ErrorKind;

use vkog_plugin_host::Verb;

use crate::actors::PLUGINS;
use crate::disk::Fault;
use crate::random::Random;

/// The kind of a hook.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Request,
    Before,
    Guard,
    Undo,
    Read,
    After,
    Serve,
}

/// A call of a hook: the place of the operation, the plugin and the kind of hook.
pub(crate) type Hook = (usize, usize, Phase);

/// How the disk fails, with this error.
pub(crate) type Failing = fn(ErrorKind) -> Fault;

/// The act of a plugin that stops an operation.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    Refuse,
    Panic,
}

/// The place of `before_request`.
pub(crate) const REQUEST: usize = 900;
/// The place of a route.
pub(crate) const SERVE: usize = 901;
/// The place of the first added write.
pub(crate) const ADDED: usize = 100;
/// The place of the first operation that a plugin requests.
const CALLED: usize = 200;
/// The plugins that transform values.
const TRANSFORMING: [usize; 2] = [1, 3];

/// An operation of a client or of a plugin.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// The number that identifies it in the script.
    pub(crate) place: usize,
    pub(crate) verb: Verb,
    pub(crate) key: String,
    /// The value to write; empty otherwise.
    pub(crate) value: String,
}

/// A write that a plugin adds to an operation in its guard.
#[derive(Clone, Debug)]
pub(crate) struct Add {
    /// The place of the operation.
    pub(crate) to: usize,
    pub(crate) by: usize,
    pub(crate) write: Operation,
}

/// How a plugin calls the store.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// One operation.
    Ask,
    /// Several operations in one step.
    Batch,
    /// The update of an entry.
    Update,
}

/// A call of the store in a hook.
#[derive(Clone, Debug)]
pub(crate) struct StoreCall {
    pub(crate) at: Hook,
    pub(crate) how: How,
    pub(crate) operations: Vec<Operation>,
    /// The plugin refuses its own operation with the refusal of the store.
    pub(crate) is_passed_on: bool,
}

/// The path of a request.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Path {
    #[default]
    Entry,
    Batch,
    /// A route of a plugin.
    Route(usize),
}

/// The script of one request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    pub(crate) path: Path,
    pub(crate) operations: Vec<Operation>,
    pub(crate) acts: Vec<(Hook, Act)>,
    pub(crate) adds: Vec<Add>,
    /// The operations whose value a plugin extends in its guard, and the plugin.
    pub(crate) extends: Vec<(usize, usize)>,
    /// The operations whose value a plugin transforms, and the plugin.
    pub(crate) seals: Vec<(usize, usize)>,
    pub(crate) calls: Vec<StoreCall>,
    /// The key prefixes that the plugins set.
    pub(crate) prefixes: [&'static str; PLUGINS],
    /// A route responds before it calls the store.
    pub(crate) responds_early: bool,
    /// The hook in which the disk begins to fail, for one write.
    pub(crate) fault: Option<(Hook, Failing)>,
}

/// The text of a failure, without what depends on the state of the store.
pub(crate) fn failure(status: u16, message: &str) -> String {
    match status {
        403 | 500 => format!("{status} {message}"),
        _ => status.to_string(),
    }
}

impl Script {
    /// Returns the prefix of the keys of the request, if it passes all plugins.
    pub(crate) fn prefix(&self) -> String {
        self.prefixes.concat()
    }

    pub(crate) fn random(random: &mut Random) -> Self {
        let mut script = Self::default();
        if random.percent(20) {
            script.prefixes[random.below(PLUGINS)] = "a/";
        }
        if random.percent(10) {
            script.prefixes[random.below(PLUGINS)] = "b/";
        }
        script.path = match random.below(10) {
            0..4 => Path::Entry,
            4..7 => Path::Batch,
            _ => Path::Route(random.below(PLUGINS)),
        };
        let count = match script.path {
            Path::Entry => 1,
            Path::Batch => 1 + random.below(4),
            Path::Route(_) => 0,
        };
        script.operations = (0..count).map(|place| operation(random, place, None)).collect();
        script.responds_early = random.percent(30);
        script.add_calls(random);
        script.add_writes(random);
        let writes: Vec<usize> =
            script.all().filter(|operation| is_write(operation.verb)).map(|operation| operation.place).collect();
        for place in &writes {
            script.seals.extend(TRANSFORMING.iter().filter(|_| random.percent(40)).map(|plugin| (*place, *plugin)));
        }
        for _ in 0..random.below(3).min(writes.len()) {
            // Beside a transform it is a mistake of the plugin.
            let place = writes[random.below(writes.len())];
            if random.percent(30) || script.seals.iter().all(|(sealed, _)| *sealed != place) {
                script.extends.push((place, random.below(PLUGINS)));
            }
        }
        script.acts = (0..random.below(3))
            .map(|_| (script.hook(random), if random.percent(50) { Act::Refuse } else { Act::Panic }))
            .collect();
        if random.percent(30) {
            let hook = if random.percent(30) { (REQUEST, 0, Phase::Request) } else { script.hook(random) };
            script.fault = Some((hook, if random.percent(50) { Fault::Fails } else { Fault::Half }));
        }
        script
    }

    /// All operations of the client and of plugins, and all added writes.
    fn all(&self) -> impl Iterator<Item = &Operation> {
        let called = self.calls.iter().flat_map(|call| &call.operations);
        self.operations.iter().chain(called).chain(self.adds.iter().map(|add| &add.write))
    }

    /// A hook of the request or of one of its operations.
    fn hook(&self, random: &mut Random) -> Hook {
        let all: Vec<&Operation> = self.all().collect();
        match self.path {
            _ if all.is_empty() || random.percent(6) => (REQUEST, random.below(PLUGINS), Phase::Request),
            Path::Route(plugin) if random.percent(25) => (SERVE, plugin, Phase::Serve),
            _ => {
                let Operation { place, verb, .. } = all[random.below(all.len())];
                let updates = |call: &StoreCall| call.how == How::Update && call.operations[0].place == *place;
                hook_of(random, *place, *verb == Verb::Get || self.calls.iter().any(updates))
            }
        }
    }

    fn add_calls(&mut self, random: &mut Random) {
        let count = if self.path == Path::Entry { random.below(2) } else { random.below(3) };
        let mut place = CALLED;
        for _ in 0..count {
            let at = match self.path {
                _ if random.percent(10) => (REQUEST, random.below(PLUGINS), Phase::Request),
                Path::Route(plugin) => (SERVE, plugin, Phase::Serve),
                _ => {
                    let Operation { place, verb, .. } = &self.operations[random.below(self.operations.len())];
                    hook_of(random, *place, *verb == Verb::Get)
                }
            };
            let how = [How::Ask, How::Batch, How::Update][random.below(3)];
            let operations = (0..if how == How::Batch { 1 + random.below(3) } else { 1 }).map(|_| {
                place += 1;
                operation(random, place, Some(Verb::Put).filter(|_| how == How::Update))
            });
            let operations = operations.collect();
            self.calls.push(StoreCall { at, how, operations, is_passed_on: random.percent(50) });
        }
    }

    /// Adds writes to operations of the client and of plugins.
    fn add_writes(&mut self, random: &mut Random) {
        let prefix = self.prefix();
        let whole_key = |operation: &Operation, prefix: &str| {
            (operation.place, operation.verb, format!("{prefix}{}", operation.key))
        };
        let mut whole: Vec<_> = self.operations.iter().map(|operation| whole_key(operation, &prefix)).collect();
        for call in &self.calls {
            // Only the store calls of routes get the prefix.
            let prefix = if call.at.0 == SERVE { prefix.as_str() } else { "" };
            whole.extend(call.operations.iter().map(|operation| whole_key(operation, prefix)));
        }
        // A get adds nothing.
        whole.retain(|(_, verb, _)| *verb != Verb::Get);
        for place in ADDED..ADDED + random.below(4).min(whole.len() * 4) {
            let (to, _, key) = &whole[random.below(whole.len())];
            let verb = [Verb::Post, Verb::Put, Verb::Delete][random.below(3)];
            let write = operation(random, place, Some(verb));
            // A write of the key itself is a mistake of the plugin.
            if write.key != *key {
                self.adds.push(Add { to: *to, by: random.below(PLUGINS), write });
            }
        }
        // The order in which the guards add them.
        self.adds.sort_by_key(|add| (add.to, add.by, add.write.place));
    }
}

/// A hook of an operation, which reads a value or not.
fn hook_of(random: &mut Random, place: usize, reads: bool) -> Hook {
    if reads && random.percent(50) {
        return (place, TRANSFORMING[random.below(TRANSFORMING.len())], Phase::Read);
    }
    let phases = [Phase::Before, Phase::Guard, Phase::Guard, Phase::Undo, Phase::After];
    (place, random.below(PLUGINS), phases[random.below(phases.len())])
}

fn is_write(verb: Verb) -> bool {
    matches!(verb, Verb::Post | Verb::Put)
}

/// An operation with a random key, and with a random verb if none is given.
fn operation(random: &mut Random, place: usize, verb: Option<Verb>) -> Operation {
    let verbs = [Verb::Get, Verb::Get, Verb::Post, Verb::Put, Verb::Put, Verb::Delete];
    let verb = verb.unwrap_or(verbs[random.below(verbs.len())]);
    let key = format!("{}key-{}", ["", "", "a/"][random.below(3)], random.below(4));
    let value = if is_write(verb) { format!("value {} of {place}", random.below(1000)) } else { String::new() };
    Operation { place, verb, key, value }
}
