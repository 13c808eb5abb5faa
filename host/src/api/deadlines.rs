//! The deadlines of responses: of the routes of plugins, and of requests to a shared store. A thread waits for the next one
//! while there is any.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// A response that may still be missing at its deadline.
pub(super) trait Timed: Send + Sync {
    /// Sends another response, unless one was sent. Called once, on the thread of the deadlines.
    fn time_out(&self);
}

/// The time that the thread waits for another call before it ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The calls that have not ended, and when each must have its response. All have the same timeout.
#[derive(Default)]
pub(super) struct Deadlines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a call again.
    added: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order of their deadlines, because all calls have the same time.
    calls: BTreeMap<u64, (Instant, Weak<dyn Timed>)>,
    next: u64,
    thread: Thread,
}

/// The state of the thread.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Thread {
    #[default]
    None,
    /// It waits for a call.
    Idle,
    /// It waits for a deadline, which is never after that of a new call.
    Waiting,
}

/// The deadline of a call. Dropping it removes the deadline.
pub(super) struct Deadline {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.shared.state.lock().calls.remove(&self.number);
    }
}

impl Deadlines {
    /// Adds the deadline of a call, `timeout` from now.
    pub(super) fn add<T: Timed + 'static>(&self, timeout: Duration, response: &Arc<T>) -> Deadline {
        let response: Weak<T> = Arc::downgrade(response);
        let shared = Arc::clone(&self.0);
        let mut state = shared.state.lock();
        let number = state.next;
        state.next += 1;
        state.calls.insert(number, (Instant::now() + timeout, response));
        let thread = std::mem::replace(&mut state.thread, Thread::Waiting);
        drop(state);
        match thread {
            Thread::None => {
                let timed = Arc::clone(&shared);
                let spawned = thread::Builder::new().name("deadlines".to_owned()).spawn(move || timed.watch());
                if let Err(error) = spawned {
                    tracing::warn!("a request may get its response late, because no thread could be started: {error}");
                    shared.state.lock().thread = Thread::None;
                }
            }
            Thread::Idle => _ = shared.added.notify_one(),
            Thread::Waiting => {}
        }
        Deadline { shared, number }
    }
}

impl Shared {
    /// Times out calls at their deadlines, until there has been none for [`IDLE_TIMEOUT`].
    fn watch(&self) {
        let mut state = self.state.lock();
        loop {
            let Some((&number, &(deadline, ref response))) = state.calls.first_key_value() else {
                state.thread = Thread::Idle;
                if self.added.wait_for(&mut state, IDLE_TIMEOUT).timed_out() && state.calls.is_empty() {
                    state.thread = Thread::None;
                    return;
                }
                state.thread = Thread::Waiting;
                continue;
            };
            if Instant::now() < deadline {
                self.added.wait_until(&mut state, deadline);
                continue;
            }
            let response = response.upgrade();
            state.calls.remove(&number);
            drop(state);
            if let Some(response) = response {
                response.time_out();
            }
            state = self.state.lock();
        }
    }
}
