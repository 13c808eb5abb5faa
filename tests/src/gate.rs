//! A meeting point of threads, as [`std::sync::Barrier`] is one, but with a deadline: where one thread has failed, the
//! others do not wait for it for ever.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::DEADLINE;

/// Where a number of threads wait for each other, again and again.
pub struct Gate {
    threads: usize,
    /// How many have come, all rounds together.
    come: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    /// A gate for so many threads.
    pub fn new(threads: usize) -> Self {
        Self { threads, come: Mutex::new(0), changed: Condvar::new() }
    }

    /// Waits until all have come as often as this one.
    #[track_caller]
    pub fn wait(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut come = self.come.lock().expect("no holder of this lock panics");
        let all = (*come / self.threads + 1) * self.threads;
        *come += 1;
        self.changed.notify_all();
        while *come < all {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                drop(come);
                panic!("the other threads did not come");
            }
            come = self.changed.wait_timeout(come, left).expect("no holder of this lock panics").0;
        }
    }
}
