//! The chain of the moment, and who waits for the next one while that is made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use parking_lot::{Mutex, RwLock};
use vkog_plugin_api::chain::Chain;

use crate::threads::Threads;

/// What every request passes. No lock of it is ever held for longer than a moment, so that a thread that serves others may
/// come here: who has to wait leaves word.
pub(super) struct Gate {
    state: RwLock<State>,
    waiting: Mutex<Vec<Waiting>>,
    /// For those who waited.
    threads: Threads,
}

struct State {
    chain: Arc<Chain>,
    closed: bool,
}

type Waiting = Box<dyn FnOnce(Arc<Chain>) + Send>;

impl Gate {
    pub(super) fn new(chain: Arc<Chain>) -> Self {
        let state = RwLock::new(State { chain, closed: false });
        Self { state, waiting: Mutex::default(), threads: Threads::new("reload") }
    }

    /// The chain of the moment, to look at it.
    pub(super) fn chain(&self) -> Arc<Chain> {
        Arc::clone(&self.state.read().chain)
    }

    /// Begins something in the chain: now, or on another thread when the gate is open again.
    pub(super) fn when_open(&self, then: impl FnOnce(Arc<Chain>) + Send + 'static) {
        match self.enter() {
            Some(chain) => then(chain),
            None => self.wait(Box::new(then)),
        }
    }

    /// Waits until the gate is open. Not for a thread that others wait for.
    pub(super) fn wait_for_chain(&self) -> Arc<Chain> {
        let (tell, told) = bounded(1);
        self.when_open(move |chain| {
            let _ = tell.send(chain);
        });
        told.recv().unwrap_or_else(|_| self.chain())
    }

    fn enter(&self) -> Option<Arc<Chain>> {
        let state = self.state.read();
        (!state.closed).then(|| Arc::clone(&state.chain))
    }

    #[cold]
    fn wait(&self, then: Waiting) {
        let mut waiting = self.waiting.lock();
        // Who opens the gate looks for those who wait afterwards: either they see that it is open, or are seen.
        match self.enter() {
            None => waiting.push(then),
            Some(chain) => {
                drop(waiting);
                then(chain);
            }
        }
    }

    /// Lets nobody in, and waits until nothing is under way in the chain, or for so long. Says whether it is so.
    pub(super) fn close(&self, patience: Duration) -> bool {
        self.state.write().closed = true;
        self.wait_until_alone(patience)
    }

    pub(super) fn wait_until_alone(&self, patience: Duration) -> bool {
        wait_until(patience, || Arc::strong_count(&self.state.read().chain) == 1)
    }

    /// Lets everybody in, into this chain. Returns the one before.
    pub(super) fn open(&self, chain: Arc<Chain>) -> Arc<Chain> {
        let mut state = self.state.write();
        state.closed = false;
        let before = std::mem::replace(&mut state.chain, Arc::clone(&chain));
        drop(state);
        let waiting = std::mem::take(&mut *self.waiting.lock());
        if !waiting.is_empty() {
            self.threads.run(move || waiting.into_iter().for_each(|then| then(Arc::clone(&chain))));
        }
        before
    }
}

/// Waits until something holds, and says whether it does.
pub(super) fn wait_until(patience: Duration, holds: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    // Looked at again and again: to be told would cost every request, and this is once in a long while.
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}
