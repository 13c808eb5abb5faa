//! How a thread is scheduled, and jobs that are abandoned after a timeout.

#![allow(unsafe_code)]

use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use once_cell::race::OnceNonZeroUsize;

/// Returns the number of threads that the process can run at once, as the system reports it. 2 where it does not; the next
/// call asks again then.
pub fn cores() -> usize {
    static CORES: OnceNonZeroUsize = OnceNonZeroUsize::new();
    // The system reads it from files, so it is determined once.
    CORES.get_or_try_init(thread::available_parallelism).map_or(2, usize::from)
}

/// Puts this thread, and each that it starts, into the scheduling class for batch jobs: it runs when the core is free, and
/// does not interrupt another thread. Many threads that pass small work to each other then finish what has arrived before they
/// make room for one another. Only Linux has this class; where it is forbidden, threads run as usual.
pub fn set_sched_batch() {
    #[cfg(target_os = "linux")]
    {
        let none = libc::sched_param { sched_priority: 0 };
        // SAFETY: the call reads the parameter, which outlives it, and changes this thread only.
        if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none) } != 0 {
            tracing::debug!(
                "cannot set SCHED_BATCH, so threads may preempt each other: {}",
                std::io::Error::last_os_error()
            );
        }
    }
}

/// Whether this much memory can be allocated now, in bytes. A failed allocation ends the process in most code, so work that
/// copies a large value asks first. Another thread may take the memory in between.
pub fn can_allocate(bytes: usize) -> bool {
    let mut probe = Vec::<u8>::new();
    // An allocation that nothing sees could be optimised away.
    std::hint::black_box(&mut probe).try_reserve_exact(bytes).is_ok()
        && std::hint::black_box(&probe).capacity() >= bytes
}

/// Gives this thread the lowest priority: a snapshot may take its time, requests may not. Only Linux has priorities of single
/// threads; elsewhere the system shares as it likes.
pub fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(19) {
        tracing::debug!("cannot lower the priority of snapshots, so they compete with requests: {error}");
    }
}

/// Runs a job on its own thread. Returns `None` if the job has not returned within the timeout, or has panicked. Its
/// thread is abandoned then: it continues, and drops what the job returns.
pub fn run_with_timeout<T: Send + 'static>(
    name: &str,
    timeout: Duration,
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    // Without capacity: a result is either received here or dropped there.
    let (send, result) = bounded(0);
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = send.send(job());
    });
    if let Err(error) = spawned {
        tracing::error!("cannot start a thread for {name}: {error}");
    }
    result.recv_timeout(timeout).ok()
}
