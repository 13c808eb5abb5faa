//! The memory limit. Decides when bytes are reserved and released; knows no other plugin, and leaves the counting to
//! `ledger`.
//!
//! A write reserves its growth in the guard. When it is durable, the reservation is replaced by what the entry takes: the
//! bytes by which it shrinks are released then, because if they were released earlier, another write could take the space
//! of a value that is rolled back. Details that plugins after this one set, and those of the host, are counted then too.
//!
//! Writes of other hosts that share the store are counted when they are applied here. Until then this host does not know of
//! them, so the limit can be exceeded by what others are writing.
//!
//! With `evict`, a refused write records in `evict` what it lacks. The host then calls `make_room`, which removes entries
//! through the chain, and decides the write again.

#![forbid(unsafe_code)]

mod access;
mod cost;
mod evict;
mod ledger;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

use access::Policy;
use cost::{Costs, Count, OVERHEAD, Parts};
use evict::Evictor;
use ledger::{Full, Ledger};

/// The size of the head of all details, in bytes.
const MAP_HEAD: u64 = 1;
/// The size of the host's details of a content coding beside the coding, in bytes.
const CODING: u64 = 20;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
pub(crate) struct Settings {
    /// Bytes; overrides the server's `--max-size`.
    max_size: Option<u64>,
    /// The part of an entry that is counted.
    #[serde(default)]
    count: Count,
    /// The memory that plugins need for an entry of which they store details, in bytes.
    overhead: Option<u64>,
    /// Which entries are removed for a write that does not fit. Without it, such a write is refused.
    evict: Option<Policy>,
}

pub(crate) struct Bytes {
    host: Host,
    costs: Costs,
    ledger: Ledger,
    evictor: Option<Evictor>,
}

impl Plugin for Bytes {
    type Settings = Settings;
    const STAGE: Stage = Stage::Accounting;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        let Settings { max_size, count, overhead, evict } = settings;
        if count == Count::Payload && overhead.is_some() {
            return Err("overhead belongs to count = \"memory\"; set that, or remove overhead".into());
        }
        let ledger = Ledger::new(max_size.unwrap_or_else(|| host.max_size()));
        let evictor = evict.map(|policy| Evictor::new(host, policy, ledger.limit()));
        if evictor.is_none() {
            // They would do nothing.
            host.switch_off("after_get");
            host.switch_off("make_room");
        }
        Ok(Bytes { host, costs: Costs { count, overhead: overhead.unwrap_or(OVERHEAD) }, ledger, evictor })
    }
}

impl Bytes {
    /// Returns the cost of a stored entry; 0 if there is none.
    fn size(&self, key: &str, entry: Option<Entry<'_>>) -> u64 {
        let Some(entry) = entry else { return 0 };
        let details = entry.details_size();
        self.costs.of(Parts {
            key,
            content_type: entry.content_type(),
            value: entry.value(),
            details: details.all,
            is_indexed: details.plugins > 0,
        })
    }

    /// Returns the cost of the entry that a write makes, as far as its guard knows it.
    fn size_after(&self, write: &Request<'_>) -> u64 {
        let of_plugins = write.earlier_details_size();
        // The host stores the content coding with the entry, unless it changes nothing.
        let coding = write.header("content-encoding").map_or(0, |coding| CODING + coding.len() as u64);
        self.costs.of(Parts {
            key: write.key(),
            content_type: write.content_type(),
            value: write.value(),
            details: if of_plugins + coding > 0 { MAP_HEAD + of_plugins + coding } else { 0 },
            is_indexed: of_plugins > 0,
        })
    }

    /// Returns the bytes that the guard of a write reserves. The undo and the after of that write calculate the same.
    fn growth(&self, write: &Request<'_>, entry: Option<Entry<'_>>) -> u64 {
        self.size_after(write).saturating_sub(self.size(write.key(), entry))
    }

    fn reserve<O: Write>(&self, write: &Guard<'_, O>) -> Verdict {
        let needs = self.growth(write, write.entry());
        self.ledger.reserve(needs).map_err(|Full { free, lacks }| {
            let (key, limit) = (write.key(), self.ledger.limit());
            if let Some(evictor) = self.evictor.as_ref().filter(|_| self.size_after(write) <= limit) {
                if write.entry().is_some() {
                    // Otherwise the entry that is written may be removed for its own write.
                    evictor.accessed(key);
                }
                evictor.want(write.arrived(), needs, lacks);
            }
            // Escape the key: it may contain a line break, and a message is one line.
            Refusal::new(413, format!("Max size exceeded: {key:?} needs {needs} bytes, {free} of {limit} are free"))
        })
    }

    /// Replaces the cost of the entry before a write, and what its guard reserved, by the cost of the entry after it.
    fn settle<O: Write>(&self, write: &After<'_, O>) {
        let (key, before) = (write.key(), write.entry_before());
        let held = self.size(key, before) + self.growth(write, before);
        self.ledger.settle(held, self.size(key, write.entry_after()));
        if let Some(evictor) = &self.evictor {
            evictor.accessed(key);
        }
    }
}

impl Start for Bytes {
    fn start(&self, stored: &Stored<'_>) -> Result<(), String> {
        let mut held = 0;
        stored.for_each(|key, entry| held += self.size(key, Some(entry)));
        self.ledger.open(held);
        let limit = self.ledger.limit();
        if held > limit {
            let effect = if self.evictor.is_some() { "remove entries" } else { "are rejected" };
            let line = format!("the store has {held} bytes, the limit is {limit}: writes that grow it {effect}");
            self.host.log(Level::Warn, &line);
        }
        Ok(())
    }
}

impl GuardPost for Bytes {
    fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
        self.reserve(post)
    }
}

impl GuardPut for Bytes {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.reserve(put)
    }
}

impl UndoPost for Bytes {
    fn undo_post(&self, post: &Undo<'_, Post>) {
        self.ledger.release(self.growth(post, post.entry()));
    }
}

impl UndoPut for Bytes {
    fn undo_put(&self, put: &Undo<'_, Put>) {
        self.ledger.release(self.growth(put, put.entry()));
    }
}

impl AfterPost for Bytes {
    fn after_post(&self, post: &After<'_, Post>) {
        self.settle(post);
    }
}

impl AfterPut for Bytes {
    fn after_put(&self, put: &After<'_, Put>) {
        self.settle(put);
    }
}

impl AfterDelete for Bytes {
    fn after_delete(&self, delete: &After<'_, Delete>) {
        let size = self.size(delete.key(), delete.entry_before());
        self.ledger.release(size);
        if let Some(evictor) = &self.evictor {
            evictor.freed(size);
        }
    }
}

impl Applied for Bytes {
    fn applied(&self, change: &AppliedChange<'_>) {
        let (key, after) = (change.key(), change.entry_after());
        let size = self.size(key, change.entry_before());
        // Another host has checked its own count, so this may exceed the limit.
        self.ledger.settle(size, self.size(key, after));
        match &self.evictor {
            Some(evictor) if after.is_some() => evictor.accessed(key),
            Some(evictor) => evictor.freed(size),
            None => {}
        }
    }
}

impl AfterGet for Bytes {
    fn after_get(&self, get: &After<'_, Get>) {
        // Only reads of clients by key count: listings, watches and store calls of plugins may read every entry.
        let is_access = matches!(get.origin(), Origin::Request | Origin::Batch);
        if let Some(evictor) = self.evictor.as_ref().filter(|_| is_access) {
            evictor.accessed(get.key());
        }
    }
}

impl MakeRoom for Bytes {
    fn make_room(&self) -> bool {
        let cost = |key: &str, entry: Entry<'_>| self.size(key, Some(entry));
        self.evictor.as_ref().is_some_and(|evictor| evictor.make_room(|| self.ledger.free(), cost))
    }
}

// Without one of them the count would drift. An older host calls no `make_room`, and writes that do not fit are refused.
export_plugin!(
    Bytes,
    required: [start, guard_post, guard_put, undo_post, undo_put, after_post, after_put, after_delete]
);

#[cfg(test)]
mod tests;
