//! Threads for work that may have to wait for somebody: one more whenever all are busy, gone when idle.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

/// How long a thread waits for the next job.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

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
