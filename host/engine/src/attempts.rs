//! The attempts of a write or a batch: after plugins have made room for it or added writes to it, it is decided again.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Outcome;
use vkog_plugin_host::Chain;
use vkog_runtime::ThreadPool;
use vkog_store::{Reads, Store};

/// The maximum number of times that plugins make room for an operation.
const ROOM_MADE_MAX: usize = 256;

/// Returns the maximum number of attempts of an operation that is decided again with other writes, because another client has written
/// an entry meanwhile: the writes that guards add to it, or the new value of an update. On a shared store, other hosts are faster more
/// often.
pub(super) fn attempts_max<S: Store>(store: &S) -> usize {
    if is_alone(store) { 64 } else { 1024 }
}

/// Whether no other host writes to a store, so that its entries are always current.
pub(super) fn is_alone<S: Store>(store: &S) -> bool {
    store.is_current(Reads::Linearizable)
}

type Job = Box<dyn FnOnce() + Send>;

/// The attempts of an operation so far.
#[derive(Default)]
pub(super) struct Attempts {
    room_made: usize,
    plans: usize,
    /// The loop of further attempts that run on the thread of the caller, from the first of them on.
    further: Option<Arc<Further>>,
}

/// Runs the further attempts of one operation in a loop. An attempt that fails starts the next one from its completion, so
/// 256 of them could overflow a stack.
#[derive(Default)]
struct Further(Mutex<State>);

#[derive(Default)]
struct State {
    is_running: bool,
    /// The attempt after the one that is running. There is at most one, because each attempt starts at most one.
    next: Option<Job>,
}

impl Attempts {
    /// Whether a plugin refused the operation for lack of room, and plugins may make room once more.
    pub(super) fn may_make_room(&self, outcome: &Outcome) -> bool {
        let is_full =
            matches!(outcome, Outcome::Refused(refusal) if refusal.status == 413 && !refusal.plugin.is_empty());
        is_full && self.room_made < ROOM_MADE_MAX
    }

    /// Calls the `make_room` hooks of the plugins, then `then`: with the attempts to continue with, or with none if no plugin
    /// made room. Without a pool, both run on this thread, perhaps after this has returned to an earlier attempt. `depth` is
    /// the nesting depth of the operation, which limits what the hooks may cause by their own requests.
    #[cold]
    pub(super) fn make_room(
        mut self,
        chain: Arc<Chain>,
        depth: u32,
        pool: Option<&ThreadPool>,
        then: impl FnOnce(Option<Self>) + Send + 'static,
    ) {
        self.room_made += 1;
        self.continue_on(pool, move |this| then(chain.make_room(depth).then_some(this)));
    }

    /// Calls `then`, as [`make_room`](Self::make_room) does: with the attempts to continue with, or with none if there were more than
    /// [`attempts_max`].
    #[cold]
    pub(super) fn plan(
        mut self,
        max: usize,
        pool: Option<&ThreadPool>,
        then: impl FnOnce(Option<Self>) + Send + 'static,
    ) {
        self.plans += 1;
        self.continue_on(pool, move |this| then((this.plans <= max).then_some(this)));
    }

    fn continue_on(mut self, pool: Option<&ThreadPool>, then: impl FnOnce(Self) + Send + 'static) {
        let further = Arc::clone(self.further.get_or_insert_default());
        let job = move || then(self);
        match pool {
            Some(pool) => pool.run(job),
            None => further.run(Box::new(job)),
        }
    }
}

impl Further {
    /// Runs an attempt and those that it starts, or leaves it to the thread that does so.
    fn run(&self, job: Job) {
        let mut state = self.0.lock();
        if state.is_running {
            state.next = Some(job);
            return;
        }
        state.is_running = true;
        state.next = Some(job);
        while let Some(job) = state.next.take() {
            drop(state);
            job();
            state = self.0.lock();
        }
        state.is_running = false;
    }
}
