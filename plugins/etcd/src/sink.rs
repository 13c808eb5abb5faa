//! What the plugin reports to: the host's store, or a test.

use crate::api::{Change, CommitOutcome, Loaded};

/// The functions of the host's feed. `load`, `loaded` and `apply` are called by one thread.
pub trait Sink: Send + Sync + 'static {
    /// Passes a page of the state. An empty page begins the load again.
    fn load(&self, page: &[Loaded<'_>]);
    /// Ends the pages, which were the state at this revision.
    fn loaded(&self, revision: u64);
    /// Passes the changes of one revision.
    fn apply(&self, revision: u64, own: bool, changes: &[Change<'_>]);
    /// Reports the outcome of a write.
    fn outcome(&self, id: u64, outcome: CommitOutcome);
    /// Reports the last committed revision, or why it is unknown.
    fn confirmed(&self, id: u64, revision: Result<u64, &str>);
    /// Reports a sign of life, or why there is none.
    fn connected(&self, state: Result<(), &str>);
    /// Logs what went wrong, and is tried again.
    fn log(&self, text: &str);
}
