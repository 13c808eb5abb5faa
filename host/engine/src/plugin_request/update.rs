//! Updates of plugins: the value of an entry is replaced by what a plugin makes of the current one, in one step.
//!
//! An update reads the entry, also one that is not durable yet, and writes it on the condition that it has not changed. So
//! updates of one key need not wait for the disk one after the other: the log has their records in this order, and if one is
//! rolled back, so are those that depend on it.

use std::borrow::Cow;
use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::hint;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::Guard;
use crossbeam_channel::{Sender, bounded};
use parking_lot::{Mutex, MutexGuard};

use super::{checked, conditions, respond_with};
use crate::attempts::{attempts_max, is_alone};
use crate::transforms::{self, is_transformed};
use crate::{Engine, ExtraHeaders, Outcome, check_key, host_refusal, view};
use vkog_plugin_host::{Chain, EntryView, PluginRequest, PluginResponse, Refusal, Verb};
use vkog_runtime::{Detached, Mailbox};
use vkog_store::{Entry, Reads, Store};

/// The number of locks, over which the keys are spread.
const LOCKS: usize = 256;
/// The maximum time to wait for another update of the key. A hook may hold a lock for long, or wait for this thread.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// The number of times that a thread looks for it before it sleeps.
const SPINS_MAX: usize = 1000;

/// Let updates of one key take turns, so that they do not conflict. An update is right without its lock: it may only have to
/// be tried again.
pub(crate) struct UpdateLocks {
    locks: [Mutex<()>; LOCKS],
    hasher: RandomState,
}

thread_local! {
    /// Whether this thread holds a lock. A hook of the write may update another entry: a second lock could deadlock.
    static HOLDS: Cell<bool> = const { Cell::new(false) };
}

/// A lock that is held.
pub(super) struct Turn<'a> {
    _lock: MutexGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        HOLDS.set(false);
    }
}

impl Default for UpdateLocks {
    fn default() -> Self {
        Self { locks: [const { Mutex::new(()) }; LOCKS], hasher: RandomState::new() }
    }
}

impl UpdateLocks {
    /// Waits for the turn of a key. Returns none if this thread has a turn already, or if the wait takes too long.
    pub(super) fn take(&self, key: &str) -> Option<Turn<'_>> {
        self.take_within(key, WAIT_MAX)
    }

    /// As [`take`](Self::take), for an event loop: never sleeps.
    pub(super) fn take_soon(&self, key: &str) -> Option<Turn<'_>> {
        self.take_within(key, Duration::ZERO)
    }

    fn take_within(&self, key: &str, wait_max: Duration) -> Option<Turn<'_>> {
        if HOLDS.get() {
            return None;
        }
        let lock = &self.locks[self.hasher.hash_one(key) as usize % LOCKS];
        // It is held for some microseconds, and a thread that sleeps takes longer to wake.
        let soon = (0..SPINS_MAX).find_map(|_| {
            hint::spin_loop();
            lock.try_lock()
        });
        let lock = match soon {
            None if wait_max.is_zero() => None,
            None => lock.try_lock_for(wait_max),
            lock => lock,
        }?;
        HOLDS.set(true);
        Some(Turn { _lock: lock })
    }
}

/// The beginning of an attempt.
enum Begun<T> {
    /// A write, whose outcome follows.
    Writes,
    /// Nothing: the update ends with this outcome, or without one, because of what this ticket stands for.
    Ended(Option<Outcome>, T),
}

/// The result of one attempt.
enum Attempt {
    /// The update has ended with this outcome, or without one because the plugin gave it up.
    Ended(Option<Outcome>),
    /// The entry has changed meanwhile.
    Conflict,
}

impl<S: Store> Engine<S> {
    /// Implements [`StoreAccess::update`](vkog_plugin_host::StoreAccess::update).
    pub(super) fn update(
        self: &Arc<Self>,
        request: &PluginRequest<'_>,
        value_of: &mut dyn FnMut(Option<EntryView<'_>>) -> Option<Vec<u8>>,
        respond: &mut dyn FnMut(PluginResponse<'_>),
    ) {
        // This thread blocks until the outcome comes, so it must not come to its mailbox.
        let detached = Mailbox::detach();
        let chain = request.scope.chain.clone().unwrap_or_else(|| self.plugins.acquire_blocking());
        let is_alone = is_alone(&self.store);
        let _turn = if is_alone { None } else { self.update_turns.wait(request.key, &detached) };
        let mut is_confirmed = is_alone;
        for _ in 0..attempts_max(&self.store) {
            match self.attempt_update(&chain, request, value_of, &detached) {
                // Another host may have changed what the plugin has seen.
                Ok(Attempt::Ended(None | Some(Outcome::PreconditionFailed(_)))) if !is_confirmed => {
                    is_confirmed = true;
                    detached.hand_over();
                    if let Err(refusal) = self.wait_until_current(Reads::Linearizable) {
                        return respond(PluginResponse::Refused(Cow::Owned(refusal)));
                    }
                }
                Ok(Attempt::Conflict) => {}
                Ok(Attempt::Ended(None)) => return,
                Ok(Attempt::Ended(Some(outcome))) => return respond_with(outcome, respond),
                Err(refusal) => return respond(PluginResponse::Refused(Cow::Owned(refusal))),
            }
        }
        let fact = "Entry changed again and again while it was updated: send the request again";
        respond(PluginResponse::Refused(Cow::Owned(host_refusal(409, fact))));
    }

    fn attempt_update(
        self: &Arc<Self>,
        chain: &Arc<Chain>,
        request: &PluginRequest<'_>,
        value_of: &mut dyn FnMut(Option<EntryView<'_>>) -> Option<Vec<u8>>,
        detached: &Detached,
    ) -> Result<Attempt, Refusal> {
        let (send, outcome) = bounded(1);
        let begun = {
            let _turn = self.update_locks.take(request.key);
            self.begin_update(chain, request, value_of, send)?
        };
        Ok(match begun {
            // What the plugin has seen must not be rolled back any more.
            Begun::Ended(ended, ticket) if self.waits_for(ticket) => Attempt::Ended(ended),
            Begun::Ended(..) => Attempt::Conflict,
            Begun::Writes => match self.received(&outcome, detached)? {
                Outcome::PreconditionFailed(_) => Attempt::Conflict,
                outcome => Attempt::Ended(Some(outcome)),
            },
        })
    }

    /// Reads the entry and begins to write it. The write is decided when this returns.
    fn begin_update(
        self: &Arc<Self>,
        chain: &Arc<Chain>,
        request: &PluginRequest<'_>,
        value_of: &mut dyn FnMut(Option<EntryView<'_>>) -> Option<Vec<u8>>,
        send: Sender<Outcome>,
    ) -> Result<Begun<S::Ticket>, Refusal> {
        check_key(request.key)?;
        let (stored, ticket) = self.store.read(request.key, |entry| entry.cloned());
        let revision = stored.as_ref().map(Entry::revision);
        if let Err(failed) = conditions(request).check(revision) {
            return Ok(Begun::Ended(Some(Outcome::PreconditionFailed(failed)), ticket));
        }
        let current = match stored {
            Some(entry) if is_transformed(&entry) => Some(self.sent(chain, request, entry)?),
            other => other,
        };
        let Some(value) = value_of(current.as_ref().map(view)) else { return Ok(Begun::Ended(None, ticket)) };
        let put = PluginRequest {
            verb: Verb::Put,
            value: &value,
            if_revision: revision,
            if_absent: revision.is_none(),
            upserts: false,
            keeps_coding: request.keeps_coding && revision.is_some(),
            ..request.clone()
        };
        let put = checked(self, &put)?;
        self.run_in(Guard::from_inner(Arc::clone(chain)), put, move |outcome, _: ExtraHeaders| {
            let _ = send.send(outcome);
        });
        Ok(Begun::Writes)
    }

    /// Returns the entry to update with its value as it was sent.
    pub(super) fn sent(&self, chain: &Arc<Chain>, request: &PluginRequest<'_>, entry: Entry) -> Result<Entry, Refusal> {
        let get = checked(self, &PluginRequest { verb: Verb::Get, ..request.clone() })?;
        let sent = transforms::sent(chain, &get.op_context(), &entry)?;
        Ok(sent.map_or(entry, |(sent, _)| sent))
    }

    /// Waits until a read is durable. Returns whether it was not rolled back.
    fn waits_for(&self, ticket: S::Ticket) -> bool {
        if self.store.is_durable(ticket) {
            return true;
        }
        let (send, durable) = bounded(1);
        self.store.when_durable(ticket, move |result| _ = send.send(result.is_ok()));
        durable.recv().unwrap_or(false)
    }
}
