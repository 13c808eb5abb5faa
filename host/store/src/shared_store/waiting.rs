//! Callbacks that wait: for a revision to be in the map, or for a confirmation of the last committed one.

use std::collections::BTreeMap;
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
    /// Adds callbacks. Returns them, with their outcome, if they need not wait: the revision is in the map, or, where `ends` says that
    /// this ends the wait, there is no connection.
    pub(super) fn add(
        &self,
        revision: u64,
        ends: bool,
        waiters: Vec<Waiter>,
        applied: impl FnOnce() -> u64,
        closed: impl FnOnce() -> Option<Arc<StoreError>>,
    ) -> (Vec<Waiter>, Outcome) {
        let mut by_revision = self.0.lock();
        if revision <= applied() {
            return (waiters, Ok(()));
        }
        if ends && let Some(error) = closed() {
            return (waiters, Err(error));
        }
        for waiter in waiters {
            let number = by_revision.arrived;
            by_revision.arrived += 1;
            by_revision.waiters.insert((revision, number), (ends, waiter));
        }
        (Vec::new(), Ok(()))
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

/// The rounds of confirmations: one question to the backend serves all callbacks that wait. A callback never joins a
/// round whose question was put before.
///
/// A question is put by the thread of one of those that it answers, and not by the one that reports the answer to the question
/// before: the backend may report with a lock.
#[derive(Default)]
pub(super) struct Rounds(Mutex<Round>);

/// A question that is to be put.
pub(super) struct Question {
    pub(super) number: u64,
    /// The mailbox on which it is put, if any.
    pub(super) mailbox: Option<Arc<Mailbox>>,
}

#[derive(Default)]
struct Round {
    /// The number of the question that is open, and those that it answers.
    running: Option<(u64, Vec<Waiter>)>,
    next: Vec<Waiter>,
    /// The number of questions that were put.
    asked: u64,
}

impl Rounds {
    /// Adds a callback of this thread. Returns the number of the question that the caller must put now, if no other is open. Returns
    /// the callback if there is no connection.
    pub(super) fn add(
        &self,
        waiter: Waiter,
        closed: impl FnOnce() -> Option<Arc<StoreError>>,
    ) -> Result<Option<u64>, (Waiter, Arc<StoreError>)> {
        let mut round = self.0.lock();
        if let Some(error) = closed() {
            return Err((waiter, error));
        }
        round.next.push(waiter);
        Ok(if round.running.is_none() { round.begin() } else { None })
    }

    /// Ends the round of a question. Returns its callbacks, and the next question, if there is one.
    pub(super) fn end(&self, question: u64) -> (Vec<Waiter>, Option<Question>) {
        let mut round = self.0.lock();
        // Otherwise it was given up.
        let Some((_, waiters)) = round.running.take_if(|(number, _)| *number == question) else {
            return (Vec::new(), None);
        };
        let mailbox = round.next.first().and_then(|waiter| waiter.mailbox.clone());
        (waiters, round.begin().map(|number| Question { number, mailbox }))
    }

    /// Gives all questions up. Returns all callbacks.
    pub(super) fn give_up(&self) -> Vec<Waiter> {
        let mut round = self.0.lock();
        let (_, mut waiters) = round.running.take().unwrap_or_default();
        waiters.append(&mut round.next);
        waiters
    }
}

impl Round {
    fn begin(&mut self) -> Option<u64> {
        if self.next.is_empty() {
            return None;
        }
        self.asked += 1;
        self.running = Some((self.asked, std::mem::take(&mut self.next)));
        Some(self.asked)
    }
}
