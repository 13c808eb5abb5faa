//! Writes that guards add to the step of their operation. A guard runs under a lock, so its first run only shows which keys the
//! step needs. Their before-hooks run without a lock, and then the step is decided again, with all its keys locked.

use std::sync::Arc;

use super::batch::{BatchFailure, BatchOutcome, Reads, Run};
use super::plugin_request::checked;
use super::step::{Added, Operations, Step};
use super::{Engine, ExtraHeaders, Outcome, Request, host_refusal};
use crate::attempts::{Attempts, attempts_max};
use vkog_plugin_host::{AddedWrite, Chain, DEPTH_MAX, Refusal, Verb, misused};
use vkog_store::{Entry, Store};

/// Why the store changes nothing.
pub(super) enum Rejected<F> {
    /// The operation fails.
    Failed(F),
    /// Guards add writes that the step does not have, or no longer add those that it has. Each with the index of its operation.
    Adds(Vec<(usize, AddedWrite)>),
    /// Gets, by their indices, found transformed values. They are turned back without a lock, and the step is decided again.
    Stored(Vec<(usize, Entry)>),
}

/// Decides a write again, with the writes that its guards add.
#[cold]
pub(super) fn write_with<S: Store>(
    engine: Arc<Engine<S>>,
    chain: Arc<Chain>,
    request: Arc<Request>,
    added: Vec<AddedWrite>,
    attempts: Attempts,
    on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
) {
    let pool = engine.pool_for(&chain, &request);
    let operations = Arc::new(Operations::Requests(vec![(request, false)]));
    let run = Run { engine, chain, step: Arc::new(Step { operations, added: Vec::new() }), pool };
    let added = added.into_iter().map(|write| (0, write)).collect();
    run.plan(Reads::new(usize::MAX), attempts, added, move |outcome: BatchOutcome| match outcome {
        Ok(done) => {
            if let Some((outcome, headers)) = done.into_iter().next() {
                on_done(outcome, headers);
            }
        }
        Err(failure) => on_done(failure.outcome, Vec::new()),
    });
}

impl<S: Store> Run<S> {
    /// Runs the before-hooks of the writes that guards add, and then decides the step with them.
    #[cold]
    pub(super) fn plan(
        mut self,
        reads: Reads,
        attempts: Attempts,
        added: Vec<(usize, AddedWrite)>,
        on_done: impl FnOnce(BatchOutcome) + Send + 'static,
    ) {
        // A plugin's request stays on the thread that waits for it.
        if added.iter().any(|(_, write)| self.chain.blocks(write.verb)) && self.step.depth(0) == 0 {
            self.pool = self.engine.blocking_pool.clone();
        }
        let pool = self.pool.clone();
        attempts.plan(attempts_max(&self.engine.store), pool.as_deref(), move |further| {
            let Some(attempts) = further else {
                let fact = "Entries changed again and again while plugins added writes: send the request again";
                let outcome = Outcome::Refused(host_refusal(503, fact));
                return self.end(Err(BatchFailure { at: None, outcome }), on_done);
            };
            match self.planned(added) {
                Ok(step) => {
                    self.step = Arc::new(step);
                    self.write(reads, attempts, on_done);
                }
                Err(failure) => self.end(Err(failure), on_done),
            }
        });
    }

    /// Returns the step with these added writes. Those that it has already are not prepared again.
    fn planned(&self, added: Vec<(usize, AddedWrite)>) -> Result<Step, BatchFailure> {
        let mut before: Vec<Option<Arc<Added>>> = self.step.added.iter().cloned().map(Some).collect();
        let added = added.into_iter().map(|(of, write)| {
            let is_same = |added: &&mut Option<Arc<Added>>| {
                added.as_ref().is_some_and(|added| added.of == of && added.write == write)
            };
            match before.iter_mut().find(is_same).and_then(Option::take) {
                Some(added) => Ok(added),
                None => self.prepare_added(of, write).map(Arc::new),
            }
        });
        let added = added.collect::<Result<_, _>>()?;
        // The step does not make these any more.
        before.iter().flatten().for_each(|added| added.request.states.clear());
        Ok(Step { operations: Arc::clone(&self.step.operations), added })
    }

    fn prepare_added(&self, of: usize, write: AddedWrite) -> Result<Added, BatchFailure> {
        let prepared = self.request_of(of, &write).and_then(|mut request| {
            let prepared = self.chain.before(&request.op_context())?;
            request.take_over(prepared);
            Ok(request)
        });
        match prepared {
            Ok(request) => Ok(Added { of, write, request: Arc::new(request) }),
            Err(refusal) => Err(self.step.failure(of, Outcome::Refused(refusal))),
        }
    }

    /// Returns an added write as a request of its plugin, one level deeper than its operation.
    fn request_of(&self, of: usize, write: &AddedWrite) -> Result<Request, Refusal> {
        if write.verb == Verb::Get {
            return Err(misused(write.plugin, "added a get to a write"));
        }
        if write.key == self.step.member(of).key() {
            return Err(misused(write.plugin, "added a write of the key that is being written"));
        }
        let depth = self.step.depth(of) + 1;
        if depth > DEPTH_MAX {
            return Err(host_refusal(508, format!("requests of plugins are nested more than {DEPTH_MAX} deep")));
        }
        checked(&self.engine, &write.as_request(depth)).map_err(|refusal| match refusal.status {
            503 => refusal,
            _ => misused(write.plugin, &format!("added an invalid write: {}", refusal.message)),
        })
    }
}
