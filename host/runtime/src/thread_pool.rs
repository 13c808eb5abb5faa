//! Thread pools for work that may block: a pool starts a thread whenever all are busy, and ends those that are idle.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::mailbox::Job;

/// The time that an idle thread waits for a job before it ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// Threads that share a name and a queue of jobs.
pub struct ThreadPool {
    name: &'static str,
    threads_max: usize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// An idle thread may have something to do.
    queued: Condvar,
}

#[derive(Default)]
struct State {
    /// The jobs that no thread has started.
    jobs: VecDeque<Job>,
    threads: usize,
    /// The number of idle threads.
    idle: usize,
}

impl ThreadPool {
    /// A pool without a limit: every job starts at once.
    pub fn new(name: &'static str) -> Self {
        Self::bounded(name, usize::MAX)
    }

    /// A pool of at most this many threads: a job that comes when all are busy waits for one.
    pub fn bounded(name: &'static str, threads_max: usize) -> Self {
        Self { name, threads_max, shared: Arc::default() }
    }

    /// Runs a job on a thread of the pool. A panic ends the job alone.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(Box::new(job));
        if state.jobs.len() <= state.idle {
            drop(state);
            self.shared.queued.notify_one();
        } else if state.threads < self.threads_max {
            state.threads += 1;
            drop(state);
            self.start();
        }
    }

    fn start(&self) {
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new().name(self.name.to_owned()).spawn(move || shared.work());
        if let Err(error) = spawned {
            let mut state = self.shared.state.lock();
            state.threads -= 1;
            // A thread that is running will take the job later.
            if state.threads == 0 {
                let jobs = std::mem::take(&mut state.jobs);
                drop(state);
                tracing::error!("dropped {} jobs, because no thread could be started: {error}", jobs.len());
            }
        }
    }
}

impl Shared {
    /// Runs jobs until there has been none for [`IDLE_TIMEOUT`].
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            while let Some(job) = state.jobs.pop_front() {
                drop(state);
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.state.lock();
            }
            state.idle += 1;
            let timed_out = self.queued.wait_for(&mut state, IDLE_TIMEOUT).timed_out();
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crossbeam_channel::bounded;

    use super::*;

    #[test]
    fn a_job_that_blocks_delays_no_other() {
        let pool = ThreadPool::new("test");
        let (release, wait) = bounded::<()>(0);
        let (done, finished) = bounded(2);
        for job in 0..2 {
            let (wait, done) = (wait.clone(), done.clone());
            pool.run(move || {
                if job == 0 {
                    let _ = wait.recv();
                }
                let _ = done.send(job);
            });
        }
        assert_eq!(finished.recv_timeout(Duration::from_secs(10)), Ok(1));
        drop(release);
        assert_eq!(finished.recv_timeout(Duration::from_secs(10)), Ok(0));
    }

    #[test]
    fn a_bounded_pool_runs_all_jobs_on_no_more_threads_than_its_limit() {
        let pool = ThreadPool::bounded("test", 3);
        let (done, finished) = bounded(100);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..100 {
            let (now, most, done) = (Arc::clone(&now), Arc::clone(&most), done.clone());
            pool.run(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
                let _ = done.send(());
                panic!("a job ends alone");
            });
        }
        for _ in 0..100 {
            assert_eq!(finished.recv_timeout(Duration::from_secs(10)), Ok(()));
        }
        assert!((1..=3).contains(&most.load(Ordering::SeqCst)));
    }
}
