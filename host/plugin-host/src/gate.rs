//! The chain of the moment, and who waits for the next one while that is made.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Chain;
use arc_swap::{ArcSwap, Guard};
use crossbeam_channel::bounded;
use parking_lot::Mutex;

use vkog_runtime::ThreadPool;

/// What every request passes. Nobody waits here, so that a thread that serves others may come: who has to wait leaves
/// word. Nor does a request write anything that another core reads.
pub(crate) struct Gate {
    /// What requests begin in; `shut` while the gate is closed.
    open: ArcSwap<Chain>,
    shut: Arc<Chain>,
    /// The chain of the moment, whether the gate is open or not.
    chain: Mutex<Arc<Chain>>,
    waiting: Mutex<Vec<Waiting>>,
    /// For those who waited.
    threads: ThreadPool,
}

/// The chain that a request has begun in. Who closes the gate waits until it is dropped.
pub type Entered = Guard<Arc<Chain>>;

type Waiting = Box<dyn FnOnce(Entered) + Send>;

impl Gate {
    pub(crate) fn new(chain: Arc<Chain>) -> Self {
        let open = ArcSwap::new(Arc::clone(&chain));
        let shut = Arc::new(Chain::new(Vec::new(), &[]));
        Self { open, shut, chain: Mutex::new(chain), waiting: Mutex::default(), threads: ThreadPool::new("reload") }
    }

    /// The chain of the moment, to look at it.
    pub(crate) fn chain(&self) -> Arc<Chain> {
        Arc::clone(&self.chain.lock())
    }

    /// The chain for something that begins now, unless the gate is closed.
    pub(crate) fn enter(&self) -> Option<Entered> {
        let chain = self.open.load();
        (!Arc::ptr_eq(&chain, &self.shut)).then_some(chain)
    }

    /// Begins something in the chain: now, or on another thread when the gate is open again.
    pub(crate) fn when_open(&self, then: impl FnOnce(Entered) + Send + 'static) {
        match self.enter() {
            Some(chain) => then(chain),
            None => self.wait(Box::new(then)),
        }
    }

    /// Waits until the gate is open. Not for a thread that others wait for.
    pub(crate) fn wait_for_chain(&self) -> Arc<Chain> {
        let (tell, told) = bounded(1);
        self.when_open(move |chain| {
            let _ = tell.send(Guard::into_inner(chain));
        });
        told.recv().unwrap_or_else(|_| self.chain())
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
    pub(crate) fn close(&self, patience: Duration) -> bool {
        // Who has entered holds a reference of its own from now on, and so is counted.
        drop(self.open.swap(Arc::clone(&self.shut)));
        wait_until(patience, || Arc::strong_count(&self.chain.lock()) == 1)
    }

    /// Lets go of the chain, while the gate is closed for good.
    pub(crate) fn forget(&self) {
        let none = Arc::clone(&self.shut);
        drop(std::mem::replace(&mut *self.chain.lock(), none));
    }

    /// Lets everybody in, into this chain. Returns the one before.
    pub(crate) fn open(&self, chain: Arc<Chain>) -> Arc<Chain> {
        let before = std::mem::replace(&mut *self.chain.lock(), Arc::clone(&chain));
        drop(self.open.swap(Arc::clone(&chain)));
        let waiting = std::mem::take(&mut *self.waiting.lock());
        if !waiting.is_empty() {
            let each = move |then: Waiting| then(Guard::from_inner(Arc::clone(&chain)));
            self.threads.run(move || waiting.into_iter().for_each(each));
        }
        before
    }
}

/// Waits until something holds, and says whether it does.
pub(crate) fn wait_until(patience: Duration, holds: impl Fn() -> bool) -> bool {
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
