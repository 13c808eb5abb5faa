//! The tools that the crates of the VKOG server share: thread pools for blocking work, mailboxes that bring completions back to the
//! thread that started an operation, one-shot cells, and counters that many threads increment.

mod allocator;
mod counts;
mod histogram;
mod mailbox;
mod oneshot;
mod thread_pool;
mod threads;

pub use allocator::configure_allocator;
pub use counts::Counts;
pub use histogram::Histogram;
pub use mailbox::{Detached, Job, Mailbox, Steps, run_jobs};
pub use oneshot::Oneshot;
pub use thread_pool::ThreadPool;
pub use threads::{can_allocate, cores, lower_priority, run_with_timeout, set_sched_batch};
