//! The history of what clients did and saw, and its check for linearizability by stateright.
//!
//! The check is exponential in the worst case. So each pair of keys is a separate object, which only a few dozen operations use.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

/// A value. Each write has another one.
pub(crate) type Value = u64;

/// An operation on a pair of keys, which are 0 and 1.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Read(usize),
    Create(usize, Value),
    Update(usize, Value),
    Delete(usize),
    /// Replaces the first value by the second one; refused if the key has another value.
    CompareAndSet(usize, Value, Value),
    /// Reads both keys in one batch.
    ReadBoth,
    /// Updates both keys in one batch, or none.
    UpdateBoth([Value; 2]),
}

impl Op {
    fn kind(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::Create(..) => "create",
            Self::Update(..) => "update",
            Self::Delete(_) => "delete",
            Self::CompareAndSet(..) => "compare-and-set",
            Self::ReadBoth => "batch of reads",
            Self::UpdateBoth(_) => "batch of updates",
        }
    }

    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Op::Read(_) | Op::ReadBoth)
    }
}

/// The result of an operation, as its client received it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Done,
    /// It was refused because of the state: the key exists, is absent, or has another value.
    Refused,
    Saw(Option<Value>),
    SawBoth([Option<Value>; 2]),
}

/// The pair of keys as one client after the other would see it.
#[derive(Clone, Default)]
struct Pair([Option<Value>; 2]);

impl SequentialSpec for Pair {
    type Op = Op;
    type Ret = Answer;

    fn invoke(&mut self, op: &Op) -> Answer {
        let keys = &mut self.0;
        match *op {
            Op::Read(key) => Answer::Saw(keys[key]),
            Op::ReadBoth => Answer::SawBoth(*keys),
            Op::Create(key, value) => replace(&mut keys[key], |old| old.is_none(), Some(value)),
            Op::Update(key, value) => replace(&mut keys[key], |old| old.is_some(), Some(value)),
            Op::CompareAndSet(key, expected, value) => {
                replace(&mut keys[key], |old| old == Some(expected), Some(value))
            }
            Op::Delete(key) => replace(&mut keys[key], |old| old.is_some(), None),
            Op::UpdateBoth(values) if keys.iter().all(Option::is_some) => {
                *keys = values.map(Some);
                Answer::Done
            }
            Op::UpdateBoth(_) => Answer::Refused,
        }
    }
}

/// Replaces what is under a key if it fulfils a condition.
fn replace(at: &mut Option<Value>, holds: impl Fn(Option<Value>) -> bool, new: Option<Value>) -> Answer {
    if !holds(*at) {
        return Answer::Refused;
    }
    *at = new;
    Answer::Done
}

struct Event {
    at: Instant,
    object: usize,
    thread: usize,
    /// The operation began, or it returned.
    what: Result<Op, Answer>,
}

/// The operations of all clients.
#[derive(Default)]
pub(crate) struct History {
    events: Mutex<Vec<Event>>,
    without_effect: AtomicUsize,
}

/// Numbers of operations.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    /// Those in the history.
    pub(crate) by_kind: BTreeMap<&'static str, usize>,
    /// Those of them whose outcome is unknown.
    pub(crate) unknown: usize,
    /// Those that are not in the history, because no host answered or accepted them.
    pub(crate) without_effect: usize,
}

impl Counts {
    pub(crate) fn operations(&self) -> usize {
        self.by_kind.values().sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (kind, count) in &other.by_kind {
            *self.by_kind.entry(kind).or_default() += count;
        }
        self.unknown += other.unknown;
        self.without_effect += other.without_effect;
    }
}

/// How an operation ended for its client.
pub(crate) enum End {
    Returned(Answer),
    /// It certainly had no effect, and its response does not depend on the state.
    Nothing,
    /// It may have an effect at any time after its start. The client continues under another number.
    Unknown,
}

impl History {
    /// Runs an operation of a client, which has a number that no other client and no operation with an unknown outcome has. Returns
    /// whether the outcome is known; `None`: the operation is not in the history.
    pub(crate) fn record(&self, object: usize, thread: usize, op: Op, run: impl FnOnce() -> End) -> Option<bool> {
        let began = Instant::now();
        let end = run();
        let ended = Instant::now();
        let mut events = self.events.lock().expect("nothing panics while it is locked");
        let mut push = |at, what| events.push(Event { at, object, thread, what });
        match end {
            End::Nothing => {
                self.without_effect.fetch_add(1, Relaxed);
                None
            }
            End::Unknown => {
                push(began, Ok(op));
                Some(false)
            }
            End::Returned(answer) => {
                push(began, Ok(op));
                push(ended, Err(answer));
                Some(true)
            }
        }
    }

    /// Checks that the history of every object is linearizable.
    ///
    /// # Errors
    ///
    /// The history of an object that is not.
    pub(crate) fn check(self) -> Result<Counts, String> {
        let mut counts = Counts { without_effect: self.without_effect.into_inner(), ..Counts::default() };
        let mut events = self.events.into_inner().expect("nothing panics while it is locked");
        events.sort_by_key(|event| event.at);
        let mut objects = BTreeMap::<usize, Vec<Event>>::new();
        let mut returned = 0;
        for event in events {
            match &event.what {
                Ok(op) => *counts.by_kind.entry(op.kind()).or_default() += 1,
                Err(_) => returned += 1,
            }
            objects.entry(event.object).or_default().push(event);
        }
        counts.unknown = counts.operations() - returned;
        for (object, events) in objects {
            let mut tester = LinearizabilityTester::new(Pair::default());
            let mut shown = String::new();
            let begun = events[0].at;
            for Event { at, thread, what, .. } in events {
                shown += &format!("{:?}, client {thread}: {what:?}\n", at - begun);
                let added = match what {
                    Ok(op) => tester.on_invoke(thread, op).map(drop),
                    Err(answer) => tester.on_return(thread, answer).map(drop),
                };
                added.unwrap_or_else(|error| panic!("the test itself is wrong: {error}"));
            }
            if !tester.is_consistent() {
                return Err(format!("the history of object {object} is not linearizable:\n{shown}"));
            }
        }
        Ok(counts)
    }
}

#[test]
fn a_history_with_a_stale_read_is_not_linearizable() {
    let history = |reads: Option<Value>| {
        let history = History::default();
        history.record(0, 1, Op::Create(0, 7), || End::Returned(Answer::Done));
        history.record(0, 2, Op::Create(1, 8), || End::Unknown);
        history.record(0, 3, Op::Read(0), || End::Returned(Answer::Saw(reads)));
        history.record(0, 3, Op::ReadBoth, || End::Returned(Answer::SawBoth([Some(7), Some(8)])));
        history.check()
    };
    let by_kind = BTreeMap::from([("batch of reads", 1), ("create", 2), ("read", 1)]);
    assert_eq!(history(Some(7)), Ok(Counts { by_kind, unknown: 1, without_effect: 0 }));
    assert!(history(None).is_err(), "the create had returned before the read began");
}
