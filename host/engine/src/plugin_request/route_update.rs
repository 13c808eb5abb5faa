//! Requests to routes that update an entry: it is read, the plugin makes the new value, and that is written on the condition that
//! the entry has not changed. No thread waits meanwhile: the outcome is reported when the write is durable.

use std::sync::Arc;

use arc_swap::Guard;

use super::checked;
use crate::attempts::{Attempts, attempts_max, is_alone};
use crate::transforms::{LARGE, is_transformed};
use crate::update_turns::Turn;
use crate::{Engine, ExtraHeaders, Outcome, Request, check_key, host_refusal, view};
use vkog_plugin_host::{CallScope, Chain, EntryView, Member, NewValue, PluginRequest, Refusal, Verb};
use vkog_runtime::ThreadPool;
use vkog_store::{Entry, Reads, Store};

/// An update that has not ended.
struct RouteUpdate<V, D> {
    plugin: &'static str,
    key: String,
    value_of: V,
    on_done: D,
    /// The pool on which it runs: hooks may block, or the value is large.
    pool: Option<Arc<ThreadPool>>,
    /// The entries were confirmed to be current after it had begun: a refusal is certain.
    is_confirmed: bool,
    /// Its turn, on a shared store.
    turn: Option<Turn>,
}

impl<S: Store> Engine<S> {
    /// Replaces the value of an entry by what a plugin of the chain makes of it, in one step. Does not block.
    ///
    /// Calls `value_of` without a lock, and again after each conflict: on this thread or, if hooks may block or the entry is
    /// large, on the blocking pool. Calls `on_done` once, as [`run`](Self::run) does: when the write is durable, with what
    /// `value_of` returned last beside the value; or with the failure.
    pub fn update_entry<R: Send + 'static>(
        self: &Arc<Self>,
        chain: Arc<Chain>,
        member: &Member,
        key: String,
        value_of: impl FnMut(&Arc<Chain>, Option<EntryView<'_>>) -> Result<(NewValue, R), Refusal> + Send + 'static,
        on_done: impl FnOnce(Result<R, Outcome>) + Send + 'static,
    ) {
        if let Err(error) = check_key(&key) {
            return on_done(Err(Outcome::Refused(error.into())));
        }
        let pool = self.blocking_pool.as_ref().filter(|_| chain.blocks_update(member)).cloned();
        let is_alone = is_alone(&self.store);
        let mut update =
            RouteUpdate { plugin: member.name(), key, value_of, on_done, pool, is_confirmed: is_alone, turn: None };
        if is_alone {
            return update.begin(self, chain, Attempts::default());
        }
        let engine = Arc::clone(self);
        let key = update.key.clone();
        self.update_turns.enter(&key, move |turn| {
            update.turn = Some(turn);
            update.begin(&engine, chain, Attempts::default());
        });
    }
}

impl<V, D, R> RouteUpdate<V, D>
where
    V: FnMut(&Arc<Chain>, Option<EntryView<'_>>) -> Result<(NewValue, R), Refusal> + Send + 'static,
    D: FnOnce(Result<R, Outcome>) + Send + 'static,
    R: Send + 'static,
{
    /// Attempts the update on the thread on which it has to run.
    fn begin<S: Store>(self, engine: &Arc<Engine<S>>, chain: Arc<Chain>, attempts: Attempts) {
        match self.pool.clone() {
            Some(pool) => self.attempt_on(&pool, engine, chain, attempts),
            None => self.attempt(engine, chain, attempts),
        }
    }

    fn attempt<S: Store>(mut self, engine: &Arc<Engine<S>>, chain: Arc<Chain>, attempts: Attempts) {
        let locks = &engine.update_locks;
        let _turn = if self.pool.is_some() { locks.take(&self.key) } else { locks.take_soon(&self.key) };
        let (stored, ticket) = engine.store.read(&self.key, |entry| entry.cloned());
        let is_large = stored.as_ref().is_some_and(|entry| entry.value().len() > LARGE);
        if let Some(pool) = engine.blocking_pool.as_ref().filter(|_| is_large && self.pool.is_none()) {
            return self.attempt_on(pool, engine, chain, attempts);
        }
        let again = Arc::clone(engine);
        match self.put(engine, &chain, stored) {
            Ok((put, result)) => {
                let guard = Guard::from_inner(Arc::clone(&chain));
                engine.run_in(guard, put, move |outcome, _: ExtraHeaders| match outcome {
                    Outcome::Written(_) => self.end(Ok(result)),
                    Outcome::PreconditionFailed(_) => self.attempt_again(again, chain, attempts),
                    outcome => self.end(Err(outcome)),
                });
            }
            // Another host may have changed what the plugin has seen.
            Err(_) if !self.is_confirmed => engine.store.when_current(Reads::Linearizable, move |current| {
                self.is_confirmed = true;
                match current {
                    Ok(()) => self.begin(&again, chain, attempts),
                    Err(error) => self.end(Err(Outcome::StoreFailed(error))),
                }
            }),
            // It must not be rolled back any more.
            Err(refusal) => engine.store.when_durable(ticket, move |durable| match durable {
                Ok(()) => self.end(Err(Outcome::Refused(refusal))),
                Err(_) => self.attempt_again(again, chain, attempts),
            }),
        }
    }

    /// Leaves the turn to the next update, and reports the outcome.
    fn end(self, outcome: Result<R, Outcome>) {
        drop(self.turn);
        (self.on_done)(outcome);
    }

    /// Continues on a pool.
    fn attempt_on<S: Store>(
        mut self,
        pool: &Arc<ThreadPool>,
        engine: &Arc<Engine<S>>,
        chain: Arc<Chain>,
        attempts: Attempts,
    ) {
        self.pool = Some(Arc::clone(pool));
        let engine = Arc::clone(engine);
        pool.run(move || self.attempt(&engine, chain, attempts));
    }

    /// Attempts the update again, because the entry has changed.
    #[cold]
    fn attempt_again<S: Store>(self, engine: Arc<Engine<S>>, chain: Arc<Chain>, attempts: Attempts) {
        let pool = self.pool.clone();
        attempts.plan(attempts_max(&engine.store), pool.as_deref(), move |further| match further {
            Some(attempts) => self.attempt(&engine, chain, attempts),
            None => {
                let fact = "Entry changed again and again while it was updated: send the request again";
                self.end(Err(Outcome::Refused(host_refusal(409, fact))));
            }
        });
    }

    /// Returns the write of what the plugin makes of the entry, and what it returns beside the value.
    fn put<S: Store>(
        &mut self,
        engine: &Engine<S>,
        chain: &Arc<Chain>,
        stored: Option<Entry>,
    ) -> Result<(Request, R), Refusal> {
        let revision = stored.as_ref().map(Entry::revision);
        let request = PluginRequest {
            verb: Verb::Put,
            key: &self.key,
            value: &[],
            content_type: "",
            query: "",
            headers: Vec::new(),
            if_revision: revision,
            if_absent: revision.is_none(),
            upserts: false,
            keeps_coding: false,
            // No hook waits for it.
            scope: CallScope { plugin: self.plugin, depth: 0, chain: None },
        };
        let current = match stored {
            Some(entry) if is_transformed(&entry) => Some(engine.sent(chain, &request, entry)?),
            other => other,
        };
        let (NewValue { value, content_type }, result) = (self.value_of)(chain, current.as_ref().map(view))?;
        let put = checked(engine, &PluginRequest { value: &value, content_type: &content_type, ..request })?;
        Ok((put, result))
    }
}
