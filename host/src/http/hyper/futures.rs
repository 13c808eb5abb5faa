//! Two futures that save work for nearly every request.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// A future that is polled only after its own wake-ups, not whenever its task is polled.
pub(super) struct WakeFiltered<T> {
    future: Pin<Box<dyn Future<Output = T> + Send>>,
    wakes: Arc<WakeFlag>,
    /// The waker of the task. It changes when the connection moves to another event loop.
    waker: Waker,
}

/// Remembers a wake-up and passes it on to the task.
struct WakeFlag {
    is_woken: AtomicBool,
    waker: Mutex<Waker>,
}

impl<T> WakeFiltered<T> {
    pub(super) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        let waker = Waker::noop().clone();
        let wakes = WakeFlag { is_woken: AtomicBool::new(true), waker: Mutex::new(waker.clone()) };
        Self { future: Box::pin(future), wakes: Arc::new(wakes), waker }
    }
}

impl<T> Future for WakeFiltered<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if !self.waker.will_wake(context.waker()) {
            self.waker.clone_from(context.waker());
            self.wakes.waker.lock().clone_from(context.waker());
        } else if !self.wakes.is_woken.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        self.wakes.is_woken.swap(false, Ordering::Acquire);
        let waker = Waker::from(Arc::clone(&self.wakes));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        let waker = self.waker.lock().clone();
        waker.wake();
    }
}

/// A value that is available at once, or a future on the heap. Most requests need no allocation for it.
pub(super) enum ReadyOr<T> {
    /// `None` after the value was returned.
    Ready(Option<T>),
    Later(Pin<Box<dyn Future<Output = T> + Send>>),
}

impl<T> ReadyOr<T> {
    pub(super) fn ready(value: T) -> Self {
        Self::Ready(Some(value))
    }

    pub(super) fn later(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self::Later(Box::pin(future))
    }

    /// Waits for the value.
    pub(super) async fn value(self) -> T {
        match self {
            Self::Ready(Some(value)) => value,
            Self::Later(future) => future.await,
            // Only a poll returns the value and leaves nothing, and this consumes what was never polled.
            Self::Ready(None) => std::future::pending().await,
        }
    }
}

impl<T: Unpin> Future for ReadyOr<T> {
    type Output = Result<T, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Ready(value) => value.take().map_or(Poll::Pending, |value| Poll::Ready(Ok(value))),
            Self::Later(future) => future.as_mut().poll(context).map(Ok),
        }
    }
}
