//! A barrier for threads like [`std::sync::Barrier`], but with a deadline: if one thread has failed, the others fail
//! too instead of waiting forever.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::DEADLINE;

/// A point at which a number of threads wait for each other, repeatedly.
pub struct Barrier {
    threads: usize,
    /// The number of arrivals of all threads in all rounds.
    arrived: Mutex<usize>,
    changed: Condvar,
}

impl Barrier {
    /// Creates a barrier for this number of threads.
    pub fn new(threads: usize) -> Self {
        Self { threads, arrived: Mutex::new(0), changed: Condvar::new() }
    }

    /// Waits until all threads have arrived as often as this one. Panics after [`DEADLINE`].
    #[track_caller]
    pub fn wait(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut arrived = self.arrived.lock().expect("no holder of this lock panics");
        let all = (*arrived / self.threads + 1) * self.threads;
        *arrived += 1;
        self.changed.notify_all();
        while *arrived < all {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                drop(arrived);
                panic!("the other threads did not arrive");
            }
            arrived = self.changed.wait_timeout(arrived, left).expect("no holder of this lock panics").0;
        }
    }
}
