//! The memory limit. Decides when bytes are reserved and released; knows no other plugin, and leaves the counting to
//! `ledger`.
//!
//! A write reserves its growth in the guard. The bytes by which it shrinks are released when it is durable. If they
//! were released earlier, another write could take the space of a value that is rolled back.

#![forbid(unsafe_code)]

mod cost;
mod ledger;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

use cost::{Costs, Count};
use ledger::{Full, Ledger};

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    /// Bytes; overrides the server's `--max-size`.
    max_size: Option<u64>,
    /// The part of an entry that is counted.
    #[serde(default)]
    count: Count,
    /// Further bytes per entry.
    #[serde(default)]
    overhead: u64,
}

struct Bytes {
    host: Host,
    costs: Costs,
    ledger: Ledger,
}

impl Plugin for Bytes {
    type Settings = Settings;
    const STAGE: Stage = Stage::Accounting;

    fn create(host: Host, settings: Settings) -> Result<Self, CreateError> {
        let Settings { max_size, count, overhead } = settings;
        let ledger = Ledger::new(max_size.unwrap_or_else(|| host.max_size()));
        Ok(Bytes { host, costs: Costs { count, overhead }, ledger })
    }
}

impl Bytes {
    /// Returns the cost of a stored entry.
    fn size(&self, key: &str, entry: Entry<'_>) -> u64 {
        self.costs.of(key, entry.content_type(), entry.value())
    }

    /// Returns the cost of the key before and after a write.
    fn sizes(&self, write: &Request<'_>, entry: Option<Entry<'_>>) -> (u64, u64) {
        let before = entry.map_or(0, |entry| self.size(write.key(), entry));
        (before, self.costs.of(write.key(), write.content_type(), write.value()))
    }

    fn growth(&self, write: &Request<'_>, entry: Option<Entry<'_>>) -> u64 {
        let (before, after) = self.sizes(write, entry);
        after.saturating_sub(before)
    }

    fn shrinkage(&self, write: &Request<'_>, entry: Option<Entry<'_>>) -> u64 {
        let (before, after) = self.sizes(write, entry);
        before.saturating_sub(after)
    }

    fn reserve<O: Write>(&self, write: &Guard<'_, O>) -> Verdict {
        let needs = self.growth(write, write.entry());
        self.ledger.reserve(needs).map_err(|Full { free }| {
            let (key, limit) = (write.key(), self.ledger.limit());
            // Escape the key: it may contain a line break, and a message is one line.
            Refusal::new(413, format!("Max size exceeded: {key:?} needs {needs} bytes, {free} of {limit} are free"))
        })
    }
}

impl Start for Bytes {
    fn start(&self, stored: &Stored<'_>) -> Result<(), String> {
        let mut held = 0;
        stored.for_each(|key, entry| held += self.size(key, entry));
        self.ledger.open(held);
        let limit = self.ledger.limit();
        if held > limit {
            let line = format!("the store has {held} bytes, the limit is {limit}: writes that grow it are rejected");
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
        self.ledger.release(self.shrinkage(post, post.entry_before()));
    }
}

impl AfterPut for Bytes {
    fn after_put(&self, put: &After<'_, Put>) {
        self.ledger.release(self.shrinkage(put, put.entry_before()));
    }
}

impl AfterDelete for Bytes {
    fn after_delete(&self, delete: &After<'_, Delete>) {
        if let Some(entry) = delete.entry_before() {
            self.ledger.release(self.size(delete.key(), entry));
        }
    }
}

// Without one of them the count would drift.
export_plugin!(
    Bytes,
    required: [start, guard_post, guard_put, undo_post, undo_put, after_post, after_put, after_delete]
);
