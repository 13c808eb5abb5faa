//! A reusable cell for the one response that a connection waits for.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::http::Response;

/// Receives a response from any thread. Each connection has one, since it serves one request at a time.
#[derive(Default)]
pub(super) struct Oneshot(Mutex<State>);

#[derive(Default)]
struct State {
    response: Option<Response>,
    /// Wakes the connection, if it waits.
    waker: Option<Waker>,
}

impl Oneshot {
    /// Delivers the response.
    pub(super) fn send(&self, response: Response) {
        let mut state = self.0.lock();
        state.response = Some(response);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the response if it has been delivered.
    pub(super) fn try_receive(&self) -> Option<Response> {
        self.0.lock().response.take()
    }

    /// Waits for the response.
    pub(super) fn poll(&self, context: &Context<'_>) -> Poll<Response> {
        let mut state = self.0.lock();
        if let Some(response) = state.response.take() {
            return Poll::Ready(response);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}
