//! The current chain, and its replacement by another one while operations run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use crossbeam_channel::bounded;
use parking_lot::Mutex;
use vkog_runtime::ThreadPool;

use crate::chain::Chain;

/// Holds the current chain. Acquiring it never blocks and writes nothing that another core reads, so event loops
/// may do it.
/// While the swap is closed, operations queue up as closures and run when it opens.
pub(crate) struct ChainSwap {
    /// The chain for new operations; equal to `closed` while the swap is closed.
    open: ArcSwap<Chain>,
    /// An empty chain that marks the swap as closed.
    closed: Arc<Chain>,
    /// The current chain, whether the swap is open or closed.
    current: Mutex<Arc<Chain>>,
    /// Whether the current chain has `before_request` hooks.
    sees_requests: AtomicBool,
    waiting: Mutex<Vec<Waiting>>,
    /// Runs the operations that waited.
    threads: ThreadPool,
}

/// A reference to the chain that an operation began in. A reload that drains the chain waits until it is dropped.
pub type ChainGuard = Guard<Arc<Chain>>;

type Waiting = Box<dyn FnOnce(ChainGuard) + Send>;

impl ChainSwap {
    pub(crate) fn new(chain: Arc<Chain>) -> Self {
        let open = ArcSwap::new(Arc::clone(&chain));
        let closed = Arc::new(Chain::new(Vec::new(), &[]));
        let sees_requests = AtomicBool::new(chain.has_before_request());
        let (current, threads) = (Mutex::new(chain), ThreadPool::new("reload"));
        Self { open, closed, current, sees_requests, waiting: Mutex::default(), threads }
    }

    /// Returns the current chain for inspection.
    pub(crate) fn current(&self) -> Arc<Chain> {
        Arc::clone(&self.current.lock())
    }

    /// Whether HTTP requests have to pass `before_request` hooks.
    #[inline]
    pub(crate) fn sees_requests(&self) -> bool {
        self.sees_requests.load(Relaxed)
    }

    /// Returns the chain for a new operation, or `None` while the swap is closed.
    #[inline]
    pub(crate) fn acquire(&self) -> Option<ChainGuard> {
        let chain = self.open.load();
        (!Arc::ptr_eq(&chain, &self.closed)).then_some(chain)
    }

    /// Runs an operation in the chain: now on this thread, or on another thread when the swap opens.
    pub(crate) fn when_available(&self, then: impl FnOnce(ChainGuard) + Send + 'static) {
        match self.acquire() {
            Some(chain) => then(chain),
            None => self.wait(Box::new(then)),
        }
    }

    /// Returns the chain for a new operation. Blocks while the swap is closed.
    pub(crate) fn acquire_blocking(&self) -> Arc<Chain> {
        let (sender, receiver) = bounded(1);
        self.when_available(move |chain| {
            let _ = sender.send(Guard::into_inner(chain));
        });
        receiver.recv().unwrap_or_else(|_| self.current())
    }

    #[cold]
    fn wait(&self, then: Waiting) {
        let mut waiting = self.waiting.lock();
        // `open` publishes the chain first and takes the queue afterwards. So either this thread sees the chain, or
        // `open` sees the queued operation.
        match self.acquire() {
            None => waiting.push(then),
            Some(chain) => {
                drop(waiting);
                then(chain);
            }
        }
    }

    /// Closes the swap, and waits until no operation is in flight in the chain. Returns `false` after the timeout.
    pub(crate) fn drain(&self, timeout: Duration) -> bool {
        // From the swap on, each guard holds a reference that is counted.
        drop(self.open.swap(Arc::clone(&self.closed)));
        wait_until(timeout, || Arc::strong_count(&self.current.lock()) == 1)
    }

    /// Drops the current chain, after the swap was closed for good.
    pub(crate) fn release(&self) {
        let none = Arc::clone(&self.closed);
        drop(std::mem::replace(&mut *self.current.lock(), none));
    }

    /// Makes a chain the current one, opens the swap, and runs the operations that waited. Returns the previous chain.
    pub(crate) fn open(&self, chain: Arc<Chain>) -> Arc<Chain> {
        let sees_requests = chain.has_before_request();
        // True before the chain is open, so that no request passes it without its hooks.
        self.sees_requests.fetch_or(sees_requests, Relaxed);
        let previous = std::mem::replace(&mut *self.current.lock(), Arc::clone(&chain));
        drop(self.open.swap(Arc::clone(&chain)));
        self.sees_requests.store(sees_requests, Relaxed);
        let waiting = std::mem::take(&mut *self.waiting.lock());
        if !waiting.is_empty() {
            let each = move |then: Waiting| then(Guard::from_inner(Arc::clone(&chain)));
            self.threads.run(move || waiting.into_iter().for_each(each));
        }
        previous
    }
}

/// Waits until a condition holds. Returns `false` if it does not after the timeout.
pub(crate) fn wait_until(timeout: Duration, holds: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    // Polled: a notification would cost every operation, and reloads are rare.
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[test]
    fn an_operation_that_is_queued_just_after_the_swap_opened_runs() {
        let swap = ChainSwap::new(Arc::new(Chain::new(Vec::new(), &[])));
        let ran = Arc::new(AtomicUsize::new(0));
        let running = Arc::clone(&ran);
        // As `when_available` does if the swap opens between its two steps.
        swap.wait(Box::new(move |_| {
            running.fetch_add(1, SeqCst);
        }));
        assert_eq!(ran.load(SeqCst), 1);
    }
    #[test]
    fn a_drain_ends_with_the_last_operation_and_queued_operations_run_when_the_swap_opens() {
        let swap = ChainSwap::new(Arc::new(Chain::new(Vec::new(), &[])));
        let operation = swap.acquire().expect("it is open");
        assert!(!swap.drain(Duration::ZERO), "an operation is in flight");
        drop(operation);
        assert!(swap.drain(Duration::from_secs(60)));
        assert!(swap.acquire().is_none());
        let (sender, queued) = bounded(1);
        swap.when_available(move |_| sender.send(()).expect("the test waits"));
        assert!(queued.try_recv().is_err());
        drop(swap.open(Arc::new(Chain::new(Vec::new(), &[]))));
        assert_eq!(queued.recv_timeout(Duration::from_secs(60)), Ok(()));
        let chain = swap.current();
        swap.drain(Duration::ZERO);
        swap.release();
        // The thread of the queued operation may still be about to drop the chain.
        assert!(wait_until(Duration::from_secs(60), || Arc::strong_count(&chain) == 1));
    }

    #[test]
    fn a_wait_ends_when_its_condition_holds_or_after_the_timeout() {
        let calls = AtomicUsize::new(0);
        assert!(wait_until(Duration::from_secs(60), || calls.fetch_add(1, SeqCst) == 2));
        assert_eq!(calls.load(SeqCst), 3);
        assert!(!wait_until(Duration::ZERO, || false));
    }
}
