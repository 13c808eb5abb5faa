//! What the crates of the VKOG server share: threads for blocking work, mailboxes that bring completions back to the thread
//! that started an operation, and counters that many threads increment.

mod counts;
mod histogram;
pub mod threads;

pub use counts::Counts;
pub use histogram::Histogram;
