//! How many operations of clients to expect: a client whose operation has just ended sends the next one soon. Operations that wait
//! for it share a round trip to etcd with it.

use std::time::{Duration, Instant};

/// How long operations wait for the next ones of clients, if that is less than the time that the last round trip took.
const LINGER_MAX: Duration = Duration::from_millis(5);

/// The operations that clients are expected to send.
#[derive(Default)]
pub(crate) struct Returning {
    /// The number of operations that were open when the last round trip ended.
    operations: usize,
    /// When they are not expected any more.
    until: Option<Instant>,
}

impl Returning {
    /// Expects as many operations as were open when a round trip ended, for some time.
    pub(crate) fn expect(&mut self, operations: usize, within: Duration) {
        *self = Self { operations, until: Instant::now().checked_add(within) };
    }

    /// Returns how many operations to expect while this number is open.
    pub(crate) fn expected(&mut self, open: usize) -> usize {
        if self.until.is_some_and(|until| Instant::now() < until) {
            return self.operations.max(open);
        }
        self.until = None;
        open
    }

    /// Returns when no more operations are expected than are open. None if that is so now.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// Returns how long to wait for operations after a round trip that has begun at this time.
pub(crate) fn linger_after(began: Instant) -> Duration {
    began.elapsed().min(LINGER_MAX)
}

/// Returns how many of the operations that are expected are enough. The last ones may be late.
pub(crate) fn most_of(expected: usize) -> usize {
    expected - expected / 8
}
