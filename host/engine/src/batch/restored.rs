//! The transformed values that a batch reads. They are turned back without a lock: if the batch also writes, it is decided, rejected
//! with the values that it found, and decided again.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Batch, BatchFailure, size, too_large};
use crate::{ExtraHeaders, Outcome, host_refusal, transforms};
use vkog_plugin_host::Chain;
use vkog_store::Entry;

/// The maximum number of times that values are turned back for one batch. Each time after the first, entries have changed.
const ATTEMPTS_MAX: u32 = 64;

/// The transformed values that a batch reads, turned back.
#[derive(Default)]
pub(super) struct Restored {
    /// By the index of the get: the entry as it is stored, as it was sent, and the headers that its plugins add.
    pub(super) entries: HashMap<usize, (Entry, Entry, ExtraHeaders)>,
    attempts: u32,
}

impl Restored {
    /// Returns the entry that a get found as it was sent, if it was turned back.
    pub(super) fn of(&self, index: usize, found: &Entry) -> Option<&Entry> {
        let (stored, sent, _) = self.entries.get(&index)?;
        // An entry that the batch itself writes is another one in each attempt.
        let is_same = stored.value() == found.value() && stored.details() == found.details();
        is_same.then_some(sent)
    }
}

impl Batch {
    /// Turns values back that gets have found, besides those that were turned back before.
    pub(super) fn restore(
        &self,
        chain: &Arc<Chain>,
        before: &Restored,
        found: Vec<(usize, Entry)>,
    ) -> Result<Restored, BatchFailure> {
        let mut restored = Restored { entries: before.entries.clone(), attempts: before.attempts + 1 };
        if restored.attempts > ATTEMPTS_MAX {
            let fact = "Entries changed again and again while the batch was in flight; send it again";
            return Err(BatchFailure { at: None, outcome: Outcome::Refused(host_refusal(503, fact)) });
        }
        let mut sum: usize = restored.entries.values().map(|(_, sent, _)| size(sent)).sum();
        for (index, stored) in found {
            let sent = self.with_context(index, |context| transforms::sent(chain, context, &stored));
            match sent {
                Ok(sent) => {
                    let (entry, headers) = sent.unwrap_or_else(|| (stored.clone(), Vec::new()));
                    sum += size(&entry);
                    restored.entries.insert(index, (stored, entry, headers));
                }
                Err(refusal) => return Err(self.failure(index, Outcome::Refused(refusal))),
            }
            if sum > self.values_max {
                return Err(self.failure(index, too_large(self.values_max)));
            }
        }
        Ok(restored)
    }
}
