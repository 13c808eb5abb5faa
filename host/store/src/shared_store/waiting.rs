//! Callbacks that wait: for a revision to be in the map, or for a confirmation of the last committed one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use vkog_runtime::{Job, Mailbox, ThreadPool, run_jobs};

use crate::error::StoreError;

type Outcome = Result<(), Arc<StoreError>>;

/// A callback, and the mailbox on which it runs, if any.
pub(super) struct Waiter {
    pub(super) mailbox: Option<Arc<Mailbox>>,
    pub(super) then: Box<dyn FnOnce(Outcome) + Send>,
}

impl Waiter {
    /// A callback on the mailbox of this thread.
    pub(super) fn here(then: impl FnOnce(Outcome) + Send + 'static) -> Self {
        Self { mailbox: Mailbox::current(), then: Box::new(then) }
    }
}

/// Runs callbacks on their mailboxes, and those without one on a few threads.
pub(super) struct Dispatcher(ThreadPool);

impl Dispatcher {
    pub(super) fn new() -> Self {
        Self(ThreadPool::new("answer"))
    }

    /// Runs callbacks later, in this order on each mailbox. Never on this thread, unless that has the mailbox: the thread of the
    /// backend runs neither decisions nor completions.
    pub(super) fn dispatch(&self, waiters: impl IntoIterator<Item = Waiter>, outcome: &Outcome) {
        const SHARE: usize = 32;
        let mut share: Vec<Job> = Vec::new();
        for Waiter { mailbox, then } in waiters {
            let outcome = outcome.clone();
            let job: Job = Box::new(move || then(outcome));
            // The mailbox of a thread that has ended, or blocks, returns the job.
            match mailbox {
                Some(mailbox) => share.extend(mailbox.send(job)),
                None => share.push(job),
            }
            if share.len() == SHARE {
                self.run(std::mem::take(&mut share));
            }
        }
        self.run(share);
    }

    fn run(&self, jobs: Vec<Job>) {
        if !jobs.is_empty() {
            self.0.run(move || run_jobs(jobs));
        }
    }
}

/// The callbacks that wait until a revision is in the map.
#[derive(Default)]
pub(super) struct WaitingForRevision(Mutex<ByRevision>);

#[derive(Default)]
struct ByRevision {
    /// By the revision, and by a number in the order of arrival. The flag says that a loss of the connection ends the wait.
    waiters: BTreeMap<(u64, u64), (bool, Waiter)>,
    arrived: u64,
}

impl WaitingForRevision {
    /// Adds a callback. Returns it, with its outcome, if it need not wait: the revision is in the map, or, where `ends` says that this
    /// ends the wait, there is no connection.
    pub(super) fn add(
        &self,
        revision: u64,
        ends: bool,
        waiter: Waiter,
        applied: impl FnOnce() -> u64,
        closed: impl FnOnce() -> Option<Arc<StoreError>>,
    ) -> Option<(Waiter, Outcome)> {
        let mut by_revision = self.0.lock();
        if revision <= applied() {
            return Some((waiter, Ok(())));
        }
        if ends && let Some(error) = closed() {
            return Some((waiter, Err(error)));
        }
        let number = by_revision.arrived;
        by_revision.arrived += 1;
        by_revision.waiters.insert((revision, number), (ends, waiter));
        None
    }

    /// Takes the callbacks that wait for revisions up to this one.
    pub(super) fn take_up_to(&self, revision: u64) -> Vec<Waiter> {
        let mut by_revision = self.0.lock();
        let later = by_revision.waiters.split_off(&(revision.saturating_add(1), 0));
        let due = std::mem::replace(&mut by_revision.waiters, later);
        due.into_values().map(|(_, waiter)| waiter).collect()
    }

    /// Takes the callbacks whose wait a loss of the connection ends.
    pub(super) fn take_ended(&self) -> Vec<Waiter> {
        let mut by_revision = self.0.lock();
        let all = std::mem::take(&mut by_revision.waiters);
        let (ended, rest): (BTreeMap<_, _>, _) = all.into_iter().partition(|(_, (ends, _))| *ends);
        by_revision.waiters = rest;
        ended.into_values().map(|(_, waiter)| waiter).collect()
    }
}

/// The callbacks that wait for a confirmation, by the number of their question.
#[derive(Default)]
pub(super) struct WaitingForConfirmation(Mutex<HashMap<u64, Waiter>>);

impl WaitingForConfirmation {
    /// Adds a callback. Returns it if there is no connection.
    pub(super) fn add(
        &self,
        question: u64,
        waiter: Waiter,
        closed: impl FnOnce() -> Option<Arc<StoreError>>,
    ) -> Result<(), (Waiter, Arc<StoreError>)> {
        let mut waiters = self.0.lock();
        if let Some(error) = closed() {
            return Err((waiter, error));
        }
        waiters.insert(question, waiter);
        Ok(())
    }

    /// Takes the callback of a question, unless all were taken meanwhile.
    pub(super) fn take(&self, question: u64) -> Option<Waiter> {
        self.0.lock().remove(&question)
    }

    /// Takes all callbacks.
    pub(super) fn take_all(&self) -> Vec<Waiter> {
        std::mem::take(&mut *self.0.lock()).into_values().collect()
    }
}
