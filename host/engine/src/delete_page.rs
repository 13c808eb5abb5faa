//! Deletion by prefix: the keys of one page of a listing, each by a separate delete. No lock is held for all of them, and
//! they share few syncs of the log.

use std::sync::Arc;

use arc_swap::Guard;
use crossbeam_channel::bounded;

use super::{Engine, ExtraHeaders, Listing, Outcome, RequestContext, host_refusal};
use vkog_plugin_host::{Cause, Verb};
use vkog_store::Store;

/// The result of a deletion of one page of keys.
#[derive(Default)]
pub struct DeletedPage {
    /// The number of entries that were removed.
    pub deleted: u64,
    /// The keys whose removal a plugin refused, in byte order, with the refusals.
    pub refused: Vec<(String, Outcome)>,
    /// The last key of the page, if more follow.
    pub next: Option<String>,
}

impl<S: Store> Engine<S> {
    /// Deletes the keys that [`list`](Self::list) returns for this page. Each deletion runs the hooks of a delete by this client;
    /// one that a plugin refuses does not affect the others. Blocks as `list` does.
    ///
    /// # Errors
    ///
    /// Those of `list`, before anything is deleted. Or the store cannot be written; a part of the page may be deleted then.
    pub fn delete_page(self: &Arc<Self>, listing: &Listing, client: &RequestContext) -> Result<DeletedPage, Outcome> {
        let page = self.list_for(listing, client, Cause::DeletePrefix).map_err(Outcome::Refused)?;
        let keys: Vec<&str> = page.entries.iter().map(|listed| listed.entry.key()).collect();
        let mut deleted = DeletedPage { next: page.next, ..DeletedPage::default() };
        for (key, outcome) in keys.iter().zip(self.delete_each(&keys, client)) {
            match outcome {
                Some(Outcome::Removed(_)) => deleted.deleted += 1,
                Some(refused @ Outcome::Refused(_)) => deleted.refused.push(((*key).to_owned(), refused)),
                Some(failed @ Outcome::StoreFailed(_)) => return Err(failed),
                // Another client has deleted it meanwhile.
                Some(_) => {}
                // The host panicked, which was logged.
                None => return Err(Outcome::Refused(host_refusal(500, "Internal error; see the log of the server"))),
            }
        }
        Ok(deleted)
    }

    /// Deletes keys, each on its own. Returns the outcomes in the order of the keys; none where the host panicked.
    fn delete_each(self: &Arc<Self>, keys: &[&str], client: &RequestContext) -> Vec<Option<Outcome>> {
        let mut outcomes: Vec<Option<Outcome>> = keys.iter().map(|_| None).collect();
        let (send, done) = bounded(keys.len());
        // All of them start before this thread waits for the first, so that they share few syncs of the log.
        for (index, key) in keys.iter().enumerate() {
            let send = send.clone();
            let request = client.request(Verb::Delete, key, self.revision(), Cause::DeletePrefix);
            let chain = self.plugins.acquire_blocking();
            self.run_in(Guard::from_inner(chain), request, move |outcome, _: ExtraHeaders| {
                let _ = send.send((index, outcome));
            });
        }
        drop(send);
        for (index, outcome) in done {
            outcomes[index] = Some(outcome);
        }
        outcomes
    }
}
