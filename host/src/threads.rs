//! Threads for work that may have to wait for somebody: one more whenever all are busy, gone when idle. And homes, for work
//! that goes back to the thread on which it began.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;

/// How long a thread waits for the next job.
const IDLE: Duration = Duration::from_secs(5);

/// Something to be done.
pub type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    static HERE: RefCell<Option<Arc<Home>>> = const { RefCell::new(None) };
}

/// A thread that does jobs of others as a future of its own.
#[derive(Default)]
pub struct Home {
    post: Mutex<Post>,
}

#[derive(Default)]
struct Post {
    /// Wakes the thread.
    waker: Option<Waker>,
    jobs: Vec<Job>,
    ended: bool,
}

impl Home {
    /// The home that this thread is, if it is one.
    pub fn here() -> Option<Arc<Self>> {
        HERE.with_borrow(Clone::clone)
    }

    /// Until what is returned is dropped this thread is no home: what begins on it is done elsewhere, so that it may wait
    /// for that.
    pub fn away() -> Away {
        Away(HERE.take())
    }

    /// Makes this thread the home.
    pub fn settle(self: &Arc<Self>) {
        HERE.set(Some(Arc::clone(self)));
    }

    /// Has a job done by the thread. Returns it where the home has ended.
    pub fn post(&self, job: Job) -> Option<Job> {
        let mut post = self.post.lock();
        if post.ended {
            return Some(job);
        }
        post.jobs.push(job);
        // Many jobs wake the thread once.
        let waker = if post.jobs.len() == 1 { post.waker.clone() } else { None };
        drop(post);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// Ends the home; what was posted before is done.
    pub fn end(&self) {
        let mut post = self.post.lock();
        post.ended = true;
        let waker = post.waker.take();
        drop(post);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Does what was posted. Ready when the home has ended.
    pub fn poll(&self, context: &Context<'_>) -> Poll<()> {
        loop {
            let mut post = self.post.lock();
            if post.jobs.is_empty() {
                if post.ended {
                    return Poll::Ready(());
                }
                if !post.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    post.waker = Some(context.waker().clone());
                }
                return Poll::Pending;
            }
            let jobs = std::mem::take(&mut post.jobs);
            drop(post);
            for job in jobs {
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        }
    }
}

/// See [`Home::away`].
pub struct Away(Option<Arc<Home>>);

impl Drop for Away {
    fn drop(&mut self) {
        HERE.set(self.0.take());
    }
}

/// Threads that share a name and their jobs.
pub struct Threads {
    name: &'static str,
    hand_over: Sender<Job>,
    take: Receiver<Job>,
}

impl Threads {
    /// No thread yet.
    pub fn new(name: &'static str) -> Self {
        // Without a queue: a job is handed over only to a thread that waits for one.
        let (hand_over, take) = bounded(0);
        Self { name, hand_over, take }
    }

    /// Runs a job now, beside whatever runs. A panic ends the job alone.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.hand_over.try_send(Box::new(job))
        else {
            return;
        };
        let take = self.take.clone();
        let spawned = thread::Builder::new().name(self.name.to_owned()).spawn(move || {
            let mut next = Some(job);
            while let Some(job) = next {
                let _ = catch_unwind(AssertUnwindSafe(job));
                next = take.recv_timeout(IDLE).ok();
            }
        });
        if let Err(error) = spawned {
            tracing::error!("a job was dropped: no further thread: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_waits_keeps_no_other_from_running() {
        let threads = Threads::new("test");
        let (release, wait) = bounded::<()>(0);
        let (done, finished) = bounded(2);
        for job in 0..2 {
            let (wait, done) = (wait.clone(), done.clone());
            threads.run(move || {
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
}
