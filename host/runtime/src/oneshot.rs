//! A reusable cell for the one value that a task waits for.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Delivers a value from any thread to a task that waits for it. After it was received, the cell can be used again.
pub struct Oneshot<T>(Mutex<State<T>>);

struct State<T> {
    value: Option<T>,
    /// Wakes the task, if it waits.
    waker: Option<Waker>,
}

impl<T> Default for Oneshot<T> {
    fn default() -> Self {
        Self(Mutex::new(State { value: None, waker: None }))
    }
}

impl<T> Oneshot<T> {
    /// Delivers the value.
    pub fn send(&self, value: T) {
        let mut state = self.0.lock();
        state.value = Some(value);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the value if it has been delivered.
    pub fn try_receive(&self) -> Option<T> {
        self.0.lock().value.take()
    }

    /// Waits for the value.
    pub fn poll(&self, context: &Context<'_>) -> Poll<T> {
        let mut state = self.0.lock();
        if let Some(value) = state.value.take() {
            return Poll::Ready(value);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}
