//! Mailboxes: queues that bring jobs back to the thread that started an operation.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::thread_pool::ThreadPool;

/// Work for another thread.
pub type Job = Box<dyn FnOnce() + Send>;

/// Long work in short steps; ready after the last one.
pub type Steps = Box<dyn FnMut() -> Poll<()> + Send>;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Mailbox>>> = const { RefCell::new(None) };
    /// The jobs that this thread has taken and not started.
    static DUE: RefCell<VecDeque<Job>> = const { RefCell::new(VecDeque::new()) };
}

/// Runs the jobs of threads that block.
static ELSEWHERE: LazyLock<ThreadPool> = LazyLock::new(|| ThreadPool::new("elsewhere"));

/// Runs jobs on this thread, in their order. If one of them [blocks](Detached::hand_over), the rest runs on another thread. A panic ends
/// a job alone.
pub fn run_jobs(jobs: impl IntoIterator<Item = Job>) {
    DUE.with_borrow_mut(|due| due.extend(jobs));
    while let Some(job) = DUE.with_borrow_mut(VecDeque::pop_front) {
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}

/// The jobs that other threads send to a thread, which runs them as a future of its event loop.
#[derive(Default)]
pub struct Mailbox {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// Wakes the thread.
    waker: Option<Waker>,
    jobs: Vec<Job>,
    steps: VecDeque<Steps>,
    closed: bool,
    /// The thread waits for something that these jobs may have to do first.
    blocked: bool,
}

impl Mailbox {
    /// The mailbox of this thread, if it has one.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Makes this the mailbox of this thread.
    pub fn attach(self: &Arc<Self>) {
        CURRENT.set(Some(Arc::clone(self)));
    }

    /// Detaches this thread from its mailbox until the returned guard is dropped. Operations that start meanwhile complete on
    /// other threads, so that this one may block until they do, after [`hand_over`](Detached::hand_over).
    pub fn detach() -> Detached {
        Detached(CURRENT.take())
    }

    /// Sends a job to the thread. Returns the job if the mailbox is closed, or its thread blocks: it must run on another thread.
    pub fn send(&self, job: Job) -> Option<Job> {
        let mut queue = self.queue.lock();
        if queue.closed || queue.blocked {
            return Some(job);
        }
        queue.jobs.push(job);
        // Many jobs wake the thread once.
        let waker = if queue.jobs.len() == 1 { queue.waker.clone() } else { None };
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// Sends long work to the thread, which runs one step, then all jobs that have arrived, then the next step. Returns the
    /// work if the mailbox is closed.
    pub fn send_steps(&self, steps: Steps) -> Option<Steps> {
        let mut queue = self.queue.lock();
        if queue.closed {
            return Some(steps);
        }
        queue.steps.push_back(steps);
        let waker = queue.waker.clone();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// Closes the mailbox. Completions that were sent before still run.
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Runs what was sent. Ready when the mailbox is closed and empty.
    pub fn poll(&self, context: &Context<'_>) -> Poll<()> {
        loop {
            let mut queue = self.queue.lock();
            if queue.jobs.is_empty() {
                if let Some(mut steps) = queue.steps.pop_front() {
                    drop(queue);
                    let stepped = catch_unwind(AssertUnwindSafe(&mut steps)).unwrap_or(Poll::Ready(()));
                    let mut queue = self.queue.lock();
                    if stepped.is_pending() {
                        queue.steps.push_back(steps);
                    }
                    if queue.closed {
                        continue;
                    }
                    queue.waker = Some(context.waker().clone());
                    drop(queue);
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if queue.closed {
                    return Poll::Ready(());
                }
                if !queue.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    queue.waker = Some(context.waker().clone());
                }
                return Poll::Pending;
            }
            let jobs = std::mem::take(&mut queue.jobs);
            drop(queue);
            run_jobs(jobs);
        }
    }
}

/// Attaches the thread to its mailbox again when it is dropped. See [`Mailbox::detach`].
pub struct Detached(Option<Arc<Mailbox>>);

impl Detached {
    /// Hands the jobs of this thread over to other threads until this is dropped. Call it before this thread blocks: it may wait for
    /// what one of them does.
    pub fn hand_over(&self) {
        let mut jobs = DUE.take();
        if let Some(mailbox) = &self.0 {
            let mut queue = mailbox.queue.lock();
            queue.blocked = true;
            jobs.extend(queue.jobs.drain(..));
        }
        if !jobs.is_empty() {
            ELSEWHERE.run(move || run_jobs(jobs));
        }
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        if let Some(mailbox) = &self.0 {
            mailbox.queue.lock().blocked = false;
        }
        CURRENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_of_a_thread_that_blocks_run_on_other_threads() {
        let mailbox = Arc::<Mailbox>::default();
        let (sender, receiver) = std::sync::mpsc::channel();
        let job = |name: &'static str| -> Job {
            let sender = sender.clone();
            Box::new(move || sender.send(name).unwrap_or_default())
        };
        mailbox.attach();
        let (own, later) = (Arc::clone(&mailbox), job("sent while it runs"));
        let (blocked, on_time) = (job("sent while it blocks"), job("sent when it runs again"));
        let blocks = move || {
            let detached = Mailbox::detach();
            assert!(own.send(later).is_none());
            detached.hand_over();
            let blocked = own.send(blocked).expect("its thread blocks");
            for name in ["taken with it", "sent while it runs"] {
                assert_eq!(receiver.recv_timeout(std::time::Duration::from_secs(60)), Ok(name));
            }
            blocked();
            assert_eq!(receiver.try_recv(), Ok("sent while it blocks"));
            drop(detached);
            assert!(own.send(on_time).is_none());
            assert!(receiver.try_recv().is_err(), "it runs on this thread");
        };
        let (ended, has_ended) = std::sync::mpsc::channel();
        let blocks: Job = Box::new(move || {
            blocks();
            let _ = ended.send(());
        });
        assert!(mailbox.send(blocks).is_none() && mailbox.send(job("taken with it")).is_none());
        let _ = mailbox.poll(&Context::from_waker(Waker::noop()));
        assert_eq!(has_ended.try_recv(), Ok(()), "an assertion of the job that blocks failed");
    }

    #[test]
    fn jobs_run_before_the_next_step_of_long_work() {
        let mailbox = Mailbox::default();
        let (done, told) = std::sync::mpsc::channel();
        let mut left = 3;
        let step = done.clone();
        let steps: Steps = Box::new(move || {
            left -= 1;
            let _ = step.send("step");
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        });
        assert!(mailbox.send_steps(steps).is_none());
        let context = Context::from_waker(Waker::noop());
        for ran in [&["job", "step"][..], &["job", "step"], &["job", "step"], &["job"]] {
            let done = done.clone();
            assert!(mailbox.send(Box::new(move || done.send("job").unwrap_or_default())).is_none());
            assert_eq!(mailbox.poll(&context), Poll::Pending);
            assert_eq!(told.try_iter().collect::<Vec<_>>(), ran);
        }
        mailbox.close();
        assert_eq!(mailbox.poll(&context), Poll::Ready(()));
        assert!(mailbox.send_steps(Box::new(|| Poll::Ready(()))).is_some());
    }
}
