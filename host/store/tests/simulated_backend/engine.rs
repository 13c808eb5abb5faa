//! The simulated engine, and the connections of the hosts to it: nothing moves unless the simulation says so.
//!
//! A write or a question lies in `requests` until the engine gets it, in any order; several writes of one host may be committed
//! with one revision. Its response lies in `responses`, in any order. Lost messages are in `lost` until the connection
//! has found out what became of it; meanwhile, the engine may still get it. The changes reach each host in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use vkog_store::{Backend, BackendChange, BackendStatus, BackendWrite, CommitOutcome, Condition, Feed, Loaded};

use crate::random::Random;
use crate::truth::{Changed, Committed, Truth};

/// The engine that all hosts share.
#[derive(Default)]
pub(crate) struct Engine(Mutex<State>);

#[derive(Default)]
pub(crate) struct State {
    /// The current step of the simulation.
    pub(crate) step: u64,
    pub(crate) revision: u64,
    /// The records and their revisions.
    pub(crate) entries: BTreeMap<String, (Vec<u8>, u64)>,
    pub(crate) truth: Truth,
    /// The changes up to this revision are forgotten.
    compacted: u64,
    links: u64,
    /// The number of writes that took effect.
    pub(crate) writes: u64,
}

impl Engine {
    pub(crate) fn with<R>(&self, run: impl FnOnce(&mut State) -> R) -> R {
        run(&mut self.0.lock())
    }

    /// Forgets the changes up to now.
    pub(crate) fn compact(&self) {
        self.with(|state| state.compacted = state.truth.last());
    }

    /// Commits writes of one host with one revision. Returns the outcome of each.
    fn commit(&self, link: u64, writes: &[Write]) -> Vec<CommitOutcome> {
        self.with(|state| {
            // Something else of the engine may have had the revisions between.
            let revision = state.revision + 1 + u64::from(state.step.is_multiple_of(7));
            let (mut changes, mut outcomes) = (Vec::new(), Vec::new());
            for write in writes {
                let current = |key: &str| state.entries.get(key).map_or(0, |(_, revision)| *revision);
                if !write.conditions.iter().all(|(key, expected)| current(key) == *expected) {
                    outcomes.push(CommitOutcome::Conflict { revision });
                    continue;
                }
                for change in &write.changes {
                    match &change.record {
                        Some(record) => _ = state.entries.insert(change.key.clone(), (record.clone(), revision)),
                        None => _ = state.entries.remove(&change.key).expect("what is removed was there"),
                    }
                    changes.push(change.clone());
                }
                state.writes += 1;
                outcomes.push(CommitOutcome::Committed { revision });
            }
            state.revision = revision;
            state.truth.push(Committed { revision, step: state.step, link, changes });
            outcomes
        })
    }
}

#[derive(Clone)]
struct Write {
    id: u64,
    conditions: Vec<(String, u64)>,
    changes: Vec<Changed>,
}

enum Request {
    Write(Write),
    Confirm(u64),
}

enum Response {
    Outcome(Write, CommitOutcome),
    Confirmed(u64, u64),
}

/// A write whose response will not come, and the outcome if the engine got it.
struct Lost {
    write: Write,
    outcome: Option<CommitOutcome>,
}

/// The connection of one host.
pub(crate) struct Link {
    pub(crate) id: u64,
    engine: Arc<Engine>,
    feed: Feed,
    state: Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    is_up: bool,
    requests: Vec<Request>,
    responses: Vec<Response>,
    lost: Vec<Lost>,
    /// The last revision that was passed on; none before the first load.
    passed: Option<u64>,
    load: Option<Load>,
    /// The revisions that only loads have brought: after the first, up to the second.
    gaps: Vec<(u64, u64)>,
}

struct Load {
    revision: u64,
    entries: Vec<(String, Vec<u8>, u64)>,
    passed: usize,
}

impl Link {
    pub(crate) fn new(engine: &Arc<Engine>, feed: Feed) -> Self {
        let id = engine.with(|state| {
            state.links += 1;
            state.links
        });
        Self { id, engine: Arc::clone(engine), feed, state: Mutex::default() }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state.lock().is_up
    }

    /// Nothing is on its way, and everything was passed on.
    pub(crate) fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        let last = self.engine.with(|engine| engine.truth.last());
        state.is_up
            && state.requests.is_empty()
            && state.responses.is_empty()
            && state.lost.is_empty()
            && state.load.is_none()
            && state.passed.is_some_and(|passed| passed >= last)
    }

    /// The engine gets one of the requests, and perhaps other writes with it. Some get lost before, and some responses after.
    pub(crate) fn execute(&self, random: &mut Random, lost: usize, refused: usize) {
        let mut state = self.state.lock();
        if state.requests.is_empty() {
            return;
        }
        let at = random.below(state.requests.len());
        let write = match state.requests.swap_remove(at) {
            Request::Confirm(question) => {
                let revision = self.engine.with(|engine| engine.truth.last());
                return state.responses.push(Response::Confirmed(question, revision));
            }
            Request::Write(write) => write,
        };
        if random.percent(lost) {
            return state.lost.push(Lost { write, outcome: None });
        }
        if random.percent(refused) {
            let outcome = match random.below(3) {
                0 => CommitOutcome::Dropped { message: "a simulated loss".to_owned() },
                1 => CommitOutcome::Refused { status: 413, message: "too large".to_owned() },
                _ => CommitOutcome::Refused { status: 507, message: "no space".to_owned() },
            };
            return state.responses.push(Response::Outcome(write, outcome));
        }
        let mut group = vec![write];
        while random.percent(50)
            && let Some(at) = state.requests.iter().position(|request| matches!(request, Request::Write(_)))
            && let Request::Write(write) = state.requests.swap_remove(at)
        {
            group.push(write);
        }
        let outcomes = self.engine.commit(self.id, &group);
        for (write, outcome) in group.into_iter().zip(outcomes) {
            if random.percent(lost) {
                state.lost.push(Lost { write, outcome: Some(outcome) });
            } else {
                state.responses.push(Response::Outcome(write, outcome));
            }
        }
    }

    /// The host gets one of the responses.
    pub(crate) fn respond(&self, random: &mut Random) {
        let mut state = self.state.lock();
        if state.responses.is_empty() {
            return;
        }
        let at = random.below(state.responses.len());
        let response = state.responses.swap_remove(at);
        drop(state);
        match response {
            Response::Outcome(write, outcome) => self.feed.outcome(write.id, outcome),
            Response::Confirmed(question, revision) => self.feed.confirmed(question, Ok(revision)),
        }
    }

    /// The engine gets a write that seemed to be lost.
    pub(crate) fn execute_late(&self, random: &mut Random) {
        let mut state = self.state.lock();
        if state.lost.is_empty() {
            return;
        }
        let at = random.below(state.lost.len());
        if state.lost[at].outcome.is_none() {
            let write = state.lost[at].write.clone();
            state.lost[at].outcome = self.engine.commit(self.id, &[write]).pop();
        }
    }

    /// The connection finds out what became of a lost write, which the engine does not get any more.
    pub(crate) fn find_out(&self, random: &mut Random) {
        let mut state = self.state.lock();
        if state.lost.is_empty() || !state.is_up {
            return;
        }
        let at = random.below(state.lost.len());
        let Lost { write, outcome } = state.lost.swap_remove(at);
        let is_hidden = match &outcome {
            Some(CommitOutcome::Committed { revision }) => {
                state.gaps.iter().any(|(after, to)| after < revision && revision <= to)
            }
            _ => true,
        };
        drop(state);
        let unknown = CommitOutcome::Unknown { message: "the outcome is lost".to_owned() };
        let outcome = match outcome {
            _ if is_hidden && random.percent(20) => unknown,
            Some(outcome) => outcome,
            None => CommitOutcome::Dropped { message: "it was fenced off".to_owned() },
        };
        self.feed.outcome(write.id, outcome);
    }

    /// The host gets the next revision, or the next page of a load.
    pub(crate) fn pass(&self, random: &mut Random) {
        let mut state = self.state.lock();
        if !state.is_up {
            return;
        }
        if state.load.is_some() {
            return self.pass_page(state, random);
        }
        let compacted = self.engine.with(|engine| engine.compacted);
        let Some(passed) = state.passed.filter(|passed| *passed >= compacted) else {
            state.load = Some(self.begin_load());
            return;
        };
        let next = self.engine.with(|engine| engine.truth.between(passed, u64::MAX).first().cloned());
        let Some(next) = next else { return };
        state.passed = Some(next.revision);
        drop(state);
        let change = |change: &Changed| (change.key.clone(), change.record.clone(), change.expired);
        let changes: Vec<_> = next.changes.iter().map(change).collect();
        let changes: Vec<BackendChange<'_>> = changes
            .iter()
            .map(|(key, record, expired)| BackendChange { key, record: record.as_deref(), expired: *expired })
            .collect();
        self.feed.apply(next.revision, next.link == self.id, &changes);
        if random.percent(3) {
            self.feed.apply(next.revision, next.link == self.id, &changes);
        }
    }

    fn begin_load(&self) -> Load {
        self.engine.with(|engine| {
            let entry =
                |(key, (record, revision)): (&String, &(Vec<u8>, u64))| (key.clone(), record.clone(), *revision);
            Load { revision: engine.truth.last(), entries: engine.entries.iter().map(entry).collect(), passed: 0 }
        })
    }

    fn pass_page(&self, mut state: parking_lot::MutexGuard<'_, LinkState>, random: &mut Random) {
        let Some(mut load) = state.load.take() else { return };
        if random.percent(5) {
            state.load = Some(self.begin_load());
            drop(state);
            return self.feed.load(&[]);
        }
        if load.passed == load.entries.len() {
            if let Some(before) = state.passed.replace(load.revision) {
                state.gaps.push((before, load.revision));
            }
            drop(state);
            return self.feed.loaded(load.revision);
        }
        let end = (load.passed + 1 + random.below(3)).min(load.entries.len());
        let page = load.entries[load.passed..end].to_vec();
        load.passed = end;
        state.load = Some(load);
        drop(state);
        let page: Vec<Loaded<'_>> =
            page.iter().map(|(key, record, revision)| Loaded { key, record, revision: *revision }).collect();
        self.feed.load(&page);
    }

    /// The connection is lost: with it, everything that is on its way.
    pub(crate) fn disconnect(&self) {
        let mut state = self.state.lock();
        state.is_up = false;
        state.load = None;
        let mut questions = Vec::new();
        for request in std::mem::take(&mut state.requests) {
            match request {
                Request::Write(write) => state.lost.push(Lost { write, outcome: None }),
                Request::Confirm(question) => questions.push(question),
            }
        }
        let mut outcomes = Vec::new();
        for response in std::mem::take(&mut state.responses) {
            match response {
                // Some have arrived already, and are passed on.
                Response::Outcome(write, outcome) if write.id.is_multiple_of(3) => outcomes.push((write.id, outcome)),
                Response::Outcome(write, outcome) => state.lost.push(Lost { write, outcome: Some(outcome) }),
                Response::Confirmed(question, _) => questions.push(question),
            }
        }
        drop(state);
        self.feed.connected(Err("a simulated loss of the connection".to_owned()));
        for (id, outcome) in outcomes {
            self.feed.outcome(id, outcome);
        }
        for question in questions {
            self.feed.confirmed(question, Err("the connection was lost".to_owned()));
        }
    }

    pub(crate) fn connect(&self) {
        self.state.lock().is_up = true;
        self.feed.connected(Ok(()));
    }
}

/// The backend of one host.
pub(crate) struct Connection(pub(crate) Arc<Link>);

impl Backend for Connection {
    fn commit(&self, write: BackendWrite<'_>) {
        let mut state = self.0.state.lock();
        if !state.is_up {
            drop(state);
            let outcome = CommitOutcome::Dropped { message: "there is no connection".to_owned() };
            return self.0.feed.outcome(write.id, outcome);
        }
        let condition = |Condition { key, revision }: &Condition<'_>| ((*key).to_owned(), *revision);
        let change = |change: &BackendChange<'_>| Changed {
            key: change.key.to_owned(),
            record: change.record.map(<[u8]>::to_vec),
            expired: change.expired,
        };
        let write = Write {
            id: write.id,
            conditions: write.conditions.iter().map(condition).collect(),
            changes: write.changes.iter().map(change).collect(),
        };
        let keys = |write: &Write| write.conditions.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>();
        let open = state.requests.iter().filter_map(|request| match request {
            Request::Write(write) => Some(write),
            Request::Confirm(_) => None,
        });
        for open in open.chain(state.lost.iter().map(|lost| &lost.write)) {
            assert!(keys(open).iter().all(|key| !keys(&write).contains(key)), "two writes of a key are in flight");
        }
        state.requests.push(Request::Write(write));
    }

    fn confirm(&self, id: u64) {
        let mut state = self.0.state.lock();
        if state.is_up {
            return state.requests.push(Request::Confirm(id));
        }
        drop(state);
        self.0.feed.confirmed(id, Err("there is no connection".to_owned()));
    }

    fn status(&self) -> BackendStatus {
        BackendStatus { connected: self.0.is_up(), engine: "simulated".to_owned(), ..BackendStatus::default() }
    }

    fn announce(&self, _: &str) {}

    fn close(&self) {
        let mut state = self.0.state.lock();
        state.is_up = false;
        // They are still on their way.
        for request in std::mem::take(&mut state.requests) {
            if let Request::Write(write) = request {
                state.lost.push(Lost { write, outcome: None });
            }
        }
    }
}
