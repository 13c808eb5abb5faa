//! Reads of a shared store, whose entries other hosts change: first the store confirms how current its entries are, then they
//! are read. So no read is repeated. It is done before the request takes a plugin chain, so that a reload does not wait for it.

use std::sync::Arc;

use crossbeam_channel::bounded;

use super::{Batch, BatchFailure, BatchOutcome, Engine, ExtraHeaders, Outcome, Request, host_refusal};
use vkog_plugin_host::Refusal;
use vkog_runtime::Mailbox;
use vkog_store::{Reads, Store};

impl<S: Store> Engine<S> {
    /// Runs a get when the store is as current as it has to be.
    #[cold]
    pub(super) fn run_when_current(
        self: &Arc<Self>,
        request: Request,
        on_done: impl FnOnce(Outcome, ExtraHeaders) + Send + 'static,
    ) {
        let engine = Arc::clone(self);
        self.store.when_current(request.reads, move |current| match current {
            Ok(()) => engine.begin(request, on_done),
            Err(error) => on_done(Outcome::StoreFailed(error), Vec::new()),
        });
    }

    /// Runs a batch that only reads, when the store is as current as it has to be.
    #[cold]
    pub(super) fn run_batch_when_current(
        self: &Arc<Self>,
        batch: Batch,
        on_done: impl FnOnce(BatchOutcome) + Send + 'static,
    ) {
        let engine = Arc::clone(self);
        self.store.when_current(batch.reads, move |current| match current {
            Ok(()) => engine.begin_batch(batch, on_done),
            Err(error) => on_done(Err(BatchFailure { at: None, outcome: Outcome::StoreFailed(error) })),
        });
    }

    /// Waits until the store is as current as a read has to be. Blocks, unless it is: do not call it from an event loop.
    ///
    /// # Errors
    ///
    /// The store cannot find it out, so nothing may be read.
    pub fn wait_until_current(&self, reads: Reads) -> Result<(), Refusal> {
        if self.store.is_current(reads) {
            return Ok(());
        }
        // This thread blocks until the answer comes, so it must not come to its mailbox.
        let detached = Mailbox::detach();
        let (send, current) = bounded(1);
        self.store.when_current(reads, move |current| _ = send.send(current));
        detached.hand_over();
        match current.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let (status, message) = Outcome::StoreFailed(error).failure().unwrap_or((503, "Not now".into()));
                let headers = vec![("Retry-After".to_owned(), "1".to_owned())];
                Err(Refusal { headers, ..host_refusal(status, message) })
            }
            // The host panicked, which was logged.
            Err(_) => Err(host_refusal(500, "Internal error; see the log of the server")),
        }
    }
}
