//! Finds entries by a field of their JSON values. Decides which terms a value has; each is an index entry, which is written in
//! the same step as the entry. The terms are also the entry's details, so that the next write knows which index entries to
//! remove.

#![forbid(unsafe_code)]

mod build;
mod keys;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

use keys::{PREFIX, stored, term, terms_of};

/// The maximum length of a key, in bytes.
const KEY_MAX: usize = 1024;
/// The maximum size of the terms of an entry, which are its details, in bytes.
const TERMS_MAX: usize = 4096;
/// The time until the next build, if that failed or left entries out.
const RETRY: Duration = Duration::from_secs(60);
/// The time between ticks of a complete index.
const NEVER: Duration = Duration::from_secs(24 * 3600);
/// The number of entries that are left out, until the index is built.
const UNKNOWN: usize = usize::MAX;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    /// The names of the fields.
    fields: Vec<String>,
    /// The key prefixes that each have a separate index.
    #[serde(default)]
    prefixes: Vec<String>,
}

struct Index {
    host: Host,
    fields: Vec<String>,
    /// The prefixes of the areas. One of them is empty.
    areas: Vec<String>,
    /// The number of entries that are not indexed. Until it is 0, each write adds all index entries of its entry.
    left_out: AtomicUsize,
    complete: Gauge,
    not_indexed: Gauge,
}

impl Plugin for Index {
    type Settings = Settings;
    // Before the transforms, because the fields are those of the value that the client sent.
    const STAGE: Stage = Stage::Access;

    fn create(host: Host, Settings { fields, prefixes: mut areas }: Settings) -> Result<Self, CreateError> {
        if fields.is_empty() || fields.iter().any(|field| field.is_empty() || field.contains(['/', '%', '\n'])) {
            return Err(format!("fields is {fields:?}; give names without slashes, percent signs or newlines").into());
        }
        areas.push(String::new());
        let complete = host.gauge("complete", "Whether every entry is indexed.");
        let not_indexed = host.gauge("left_out", "Entries that are left out: they cannot be read or written.");
        Ok(Index { host, fields, areas, left_out: AtomicUsize::new(UNKNOWN), complete, not_indexed })
    }
}

impl Index {
    /// Refuses requests for index entries: of clients, and writes of other plugins. The status keeps the entries out of listings
    /// and watches as well.
    fn protect(&self, request: &Request<'_>) -> Verdict {
        // The plugin recognises its own writes by its name.
        let may = |asker| request.verb() == Verb::Get || asker == "index";
        if self.is_index(request.key()) && !request.asker().is_some_and(may) {
            return Err(Refusal::new(403, "Index entries belong to the plugin index: use GET /x/index/FIELD/VALUE"));
        }
        Ok(())
    }

    /// Finds the terms of the value that the client sent, before other plugins replace it.
    fn prepare<O: Write>(&self, write: &Before<'_, O>) -> Verdict {
        self.protect(write)?;
        if self.is_index(write.key()) || write.origin() == Origin::Touch {
            return Ok(());
        }
        let terms = terms_of(&self.fields, write.value());
        if terms.len() > TERMS_MAX || terms.lines().any(|term| self.index_key(term, write.key()).len() > KEY_MAX) {
            return Err(Refusal::new(422, "The fields are too long for an index"));
        }
        write.set_state(terms);
        Ok(())
    }

    fn write<O: Write>(&self, write: &Guard<'_, O>) -> Verdict {
        // A touch writes the value that the entry has. An index entry has no terms.
        let before = write.entry().map_or("", |entry| stored(entry.details()));
        let after = write.state::<String>().unwrap_or_else(|| before.to_owned());
        write.set_details(after.as_bytes());
        self.replace(write, &after)
    }

    fn remove(&self, delete: &Guard<'_, Delete>) -> Verdict {
        self.replace(delete, "")
    }

    /// Adds the writes that replace the index entries of an entry.
    fn replace<O: Change>(&self, guard: &Guard<'_, O>, after: &str) -> Verdict {
        let key = guard.key();
        let before = guard.entry().map_or("", |entry| stored(entry.details()));
        let has = |terms: &str, term: &str| terms.lines().any(|own| own == term);
        for term in before.lines().filter(|term| !has(after, term)) {
            guard.add(&Ask::delete(&self.index_key(term, key)))?;
        }
        let is_complete = self.left_out.load(SeqCst) == 0;
        for term in after.lines().filter(|term| !is_complete || !has(before, term)) {
            guard.add(&Ask::put(&self.index_key(term, key), key.as_bytes()).content_type("text/plain").upsert())?;
        }
        Ok(())
    }
}

/// Implements a hook by a method of the plugin.
macro_rules! hook {
    ($hook:ident, $method:ident, $call:ty => $own:ident) => {
        impl $hook for Index {
            fn $method(&self, call: &mut $call) -> Verdict {
                self.$own(call)
            }
        }
    };
}

hook!(BeforeGet, before_get, Before<'_, Get> => protect);
hook!(BeforePost, before_post, Before<'_, Post> => prepare);
hook!(BeforePut, before_put, Before<'_, Put> => prepare);
hook!(BeforeDelete, before_delete, Before<'_, Delete> => protect);
hook!(GuardPost, guard_post, Guard<'_, Post> => write);
hook!(GuardPut, guard_put, Guard<'_, Put> => write);
hook!(GuardDelete, guard_delete, Guard<'_, Delete> => remove);

impl Tick for Index {
    fn tick(&self) -> Duration {
        if self.left_out.load(SeqCst) == 0 {
            return NEVER;
        }
        let warn = |fact, refusal: &Refusal| self.host.log(Level::Warn, &format!("{fact}: {}", refusal.message()));
        let built = self.build().inspect_err(|refusal| warn("cannot build the index yet".to_owned(), refusal));
        let Ok(left_out) = built else { return RETRY };
        // From now on the index is served, without the entries that are left out.
        let before = self.left_out.swap(left_out.len(), SeqCst);
        self.not_indexed.set(left_out.len() as i64);
        self.complete.set(left_out.is_empty().into());
        let Some((key, refusal)) = left_out.first_key_value() else {
            self.host.log(Level::Info, "the index is complete");
            return NEVER;
        };
        if left_out.len() != before {
            let fact = "entries that cannot be read or written are left out of the index";
            warn(format!("{fact}: {}, the first is {key:?}", left_out.len()), refusal);
        }
        RETRY
    }
}

impl Index {
    /// Returns the keys behind a prefix in byte order, also of entries that cannot be read.
    fn keys(&self, prefix: &str) -> Result<Vec<String>, Refusal> {
        let keys = RefCell::new(Vec::new());
        let add = |key: &str| keys.borrow_mut().push(key.to_owned());
        let each = |key: &str, _: Entry<'_>| {
            add(key);
            ControlFlow::Continue(())
        };
        self.host.for_each_readable(&KeyRange::new(prefix), each, |key, _| add(key))?;
        Ok(keys.into_inner())
    }

    /// Returns the keys of the entries with this value of the field, in byte order. The store calls of a route have the key prefix of
    /// its client, so these are the entries behind it.
    fn find(&self, field: &str, value: &str) -> Result<Vec<String>, Refusal> {
        if !self.fields.iter().any(|own| own == field) {
            return Err(Refusal::new(404, format!("No index of the field {field:?}")));
        }
        if self.left_out.load(SeqCst) == UNKNOWN {
            return Err(Refusal::new(503, "The index is being built: try again later").with_header("Retry-After", "1"));
        }
        let prefix = format!("{PREFIX}{}/", term(field, value));
        let keys = self.keys(&prefix)?;
        Ok(keys.iter().filter_map(|index_key| index_key.strip_prefix(&prefix)).map(str::to_owned).collect())
    }
}

impl Serve for Index {
    const ROUTES: &'static [Route] =
        &[Route::new("GET", "/{field}/{value}", Permission::Read, "List the keys of entries by the value of a field.")];

    fn serve(&self, request: &RouteRequest<'_>) -> Verdict {
        let parameter = |name| request.parameter(name).unwrap_or_default();
        let keys = self.find(parameter("field"), parameter("value"))?;
        let left_out = self.left_out.load(SeqCst);
        if left_out > 0 {
            request.add_header("Index-Left-Out", &left_out.to_string());
        }
        request.respond(200, "application/json", serde_json::json!(keys).to_string().as_bytes());
        Ok(())
    }
}

// Without one of them the index would not be exact.
export_plugin!(
    Index,
    required: [tick, before_get, before_post, before_put, before_delete, guard_post, guard_put, guard_delete, serve]
);
