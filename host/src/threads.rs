//! Threads for work that may have to wait for somebody: one more whenever all are busy, gone when idle. And homes, for work
//! that goes back to the thread on which it began.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use once_cell::race::OnceNonZeroUsize;
use parking_lot::{Condvar, Mutex};

/// How long a thread waits for the next job.
const IDLE: Duration = Duration::from_secs(5);

/// Something to be done.
pub type Job = Box<dyn FnOnce() + Send>;

/// Long work in short steps; ready when there is no further one.
pub type Steps = Box<dyn FnMut() -> Poll<()> + Send>;

/// Returns the number of threads that the process can run at once, as the system reports it. 2 where it does not; the next
/// call asks again then.
pub fn cores() -> usize {
    static CORES: OnceNonZeroUsize = OnceNonZeroUsize::new();
    // The system looks it up in files, so it is asked once.
    CORES.get_or_try_init(thread::available_parallelism).map_or(2, usize::from)
}

/// From now on this thread, and each that it starts, runs once the core is free, where it would have interrupted another one
/// on it. Many threads that pass each other small work so do all that has come before they make room for one another. Linux
/// alone knows this; where it is forbidden they run as others do.
pub fn schedule_as_batch() {
    #[cfg(target_os = "linux")]
    {
        let none = libc::sched_param { sched_priority: 0 };
        // SAFETY: the call reads the parameter, which lives until it is over, and changes this thread alone.
        if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none) } != 0 {
            tracing::debug!("threads interrupt each other: {}", std::io::Error::last_os_error());
        }
    }
}

/// Lets this thread run when no other has to: a snapshot may take its time, requests may not. Linux alone has priorities
/// of single threads; elsewhere the system shares as it likes.
pub fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(19) {
        tracing::debug!("a snapshot runs beside requests as one of them: {error}");
    }
}

/// Runs a job on a thread of its own. Returns `None` where it has not returned within this time, or has panicked: it is left
/// to itself then, and what it returns is dropped on its thread.
pub fn within<T: Send + 'static>(
    name: &str,
    patience: Duration,
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    // Without room: either it is handed over, or the other keeps it.
    let (give, given) = bounded(0);
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = give.send(job());
    });
    if let Err(error) = spawned {
        tracing::error!("no thread for {name}: {error}");
    }
    given.recv_timeout(patience).ok()
}

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
    steps: VecDeque<Steps>,
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

    /// Has the thread do long work beside what else it does: a step, then all that has come meanwhile, then the next step.
    /// Returns it where the home has ended.
    pub fn post_steps(&self, steps: Steps) -> Option<Steps> {
        let mut post = self.post.lock();
        if post.ended {
            return Some(steps);
        }
        post.steps.push_back(steps);
        let waker = post.waker.clone();
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
                if let Some(mut steps) = post.steps.pop_front() {
                    drop(post);
                    let stepped = catch_unwind(AssertUnwindSafe(&mut steps)).unwrap_or(Poll::Ready(()));
                    let mut post = self.post.lock();
                    if stepped.is_pending() {
                        post.steps.push_back(steps);
                    }
                    if post.ended {
                        continue;
                    }
                    post.waker = Some(context.waker().clone());
                    drop(post);
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
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
    max: usize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    work: Mutex<Work>,
    /// A thread that waits may have something to do.
    come: Condvar,
}

#[derive(Default)]
struct Work {
    /// What no thread has begun.
    jobs: VecDeque<Job>,
    threads: usize,
    /// How many of them wait.
    idle: usize,
}

impl Threads {
    /// No thread yet, and never one too few.
    pub fn new(name: &'static str) -> Self {
        Self::at_most(name, usize::MAX)
    }

    /// No thread yet, and never more than so many: what comes when all are busy waits for one.
    pub fn at_most(name: &'static str, max: usize) -> Self {
        Self { name, max, shared: Arc::default() }
    }

    /// Runs a job now, beside whatever runs, unless there are as many threads as there may be. A panic ends the job alone.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut work = self.shared.work.lock();
        work.jobs.push_back(Box::new(job));
        if work.jobs.len() <= work.idle {
            drop(work);
            self.shared.come.notify_one();
        } else if work.threads < self.max {
            work.threads += 1;
            drop(work);
            self.start();
        }
    }

    fn start(&self) {
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new().name(self.name.to_owned()).spawn(move || shared.work());
        if let Err(error) = spawned {
            let mut work = self.shared.work.lock();
            work.threads -= 1;
            // Where others go on, one of them will come to it.
            if work.threads == 0 {
                let jobs = std::mem::take(&mut work.jobs);
                drop(work);
                tracing::error!("{} jobs were dropped: no thread: {error}", jobs.len());
            }
        }
    }
}

impl Shared {
    /// Does jobs until there has been none for a while.
    fn work(&self) {
        let mut work = self.work.lock();
        loop {
            while let Some(job) = work.jobs.pop_front() {
                drop(work);
                let _ = catch_unwind(AssertUnwindSafe(job));
                work = self.work.lock();
            }
            work.idle += 1;
            let idle = self.come.wait_for(&mut work, IDLE).timed_out();
            work.idle -= 1;
            if idle && work.jobs.is_empty() {
                work.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crossbeam_channel::bounded;

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

    #[test]
    fn a_home_does_a_step_of_long_work_at_a_time_and_jobs_first() {
        let home = Home::default();
        let (done, told) = std::sync::mpsc::channel();
        let mut left = 3;
        let step = done.clone();
        let steps: Steps = Box::new(move || {
            left -= 1;
            let _ = step.send("step");
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        assert!(home.post_steps(steps).is_none());
        let context = Context::from_waker(Waker::noop());
        for ran in [&["job", "step"][..], &["job", "step"], &["job", "step"], &["job"]] {
            let done = done.clone();
            assert!(home.post(Box::new(move || done.send("job").unwrap_or_default())).is_none());
            assert_eq!(home.poll(&context), Poll::Pending);
            assert_eq!(told.try_iter().collect::<Vec<_>>(), ran);
        }
        home.end();
        assert_eq!(home.poll(&context), Poll::Ready(()));
        assert!(home.post_steps(Box::new(|| Poll::Ready(()))).is_some());
    }

    #[test]
    fn all_jobs_are_done_by_no_more_threads_than_there_may_be() {
        let threads = Threads::at_most("test", 3);
        let (done, finished) = bounded(100);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..100 {
            let (now, most, done) = (Arc::clone(&now), Arc::clone(&most), done.clone());
            threads.run(move || {
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
