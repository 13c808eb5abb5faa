//! Finds entries by a field of their JSON values. Decides which terms a value has; each is an index entry, which is written in
//! the same step as the entry. The terms are also the entry's details, so that the next write knows which index entries to
//! remove.

#![forbid(unsafe_code)]

mod areas;
mod build;
mod terms;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

use areas::{Areas, PREFIX};
use build::LeftOut;
use terms::{Terms, term};

/// The plugin's name, by which it recognises its own writes.
const NAME: &str = "index";
/// The time until a build that failed is retried.
const RETRY: Duration = Duration::from_secs(10);
/// The time until entries that were left out are tried again.
const RETRY_LEFT_OUT: Duration = Duration::from_secs(60);
/// The time between ticks of a complete index.
const NEVER: Duration = Duration::from_secs(24 * 3600);

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
    areas: Areas,
    /// Every entry is indexed, except those that are left out.
    is_built: AtomicBool,
    /// The keys of the entries that cannot be indexed.
    left_out: Mutex<BTreeSet<String>>,
    complete: Gauge,
    left_out_count: Gauge,
}

impl Plugin for Index {
    type Settings = Settings;
    // Before the transforms, because the fields are those of the value that the client sent.
    const STAGE: Stage = Stage::Access;

    fn create(host: Host, Settings { fields, prefixes }: Settings) -> Result<Self, CreateError> {
        let is_name = |field: &String| !field.is_empty() && !field.contains(['/', '%', '\n']);
        if fields.is_empty() {
            return Err("fields has no names; give the name of a field, such as fields = [\"city\"]".into());
        }
        if let Some(field) = fields.iter().find(|field| !is_name(field)) {
            return Err(
                format!("fields has {field:?}; give names without slashes, percent signs and line breaks").into()
            );
        }
        let complete = host.gauge("complete", "Whether every entry is indexed.");
        let left_out_count =
            host.gauge("left_out", "Entries that are not indexed, because they cannot be read or written.");
        let (areas, is_built, left_out) = (Areas::new(prefixes)?, AtomicBool::new(false), Mutex::default());
        Ok(Index { host, fields, areas, is_built, left_out, complete, left_out_count })
    }
}

impl Index {
    /// Refuses requests for index entries: of clients, and writes of other plugins. The status keeps the entries out of listings
    /// and watches as well.
    fn protect(&self, request: &Request<'_>) -> Verdict {
        let may = |asker| request.verb() == Verb::Get || asker == NAME;
        if self.areas.is_index(request.key()) && !request.asker().is_some_and(may) {
            return Err(Refusal::new(403, "Index entries belong to the plugin index: use GET /x/index/FIELD/VALUE"));
        }
        Ok(())
    }

    /// Finds the terms of the value that the client sent, before other plugins replace it.
    fn prepare<O: Write>(&self, write: &Before<'_, O>) -> Verdict {
        self.protect(write)?;
        if self.areas.is_index(write.key()) || write.origin() == Origin::Touch {
            return Ok(());
        }
        let terms = Terms::of(&self.fields, write.value());
        self.areas.check(&terms, write.key())?;
        write.set_state(terms);
        Ok(())
    }

    fn write<O: Write>(&self, write: &Guard<'_, O>) -> Verdict {
        if self.areas.is_index(write.key()) {
            return Ok(());
        }
        let before = Terms::stored(write.entry().map_or(&[], |entry| entry.details()));
        let terms = match write.origin() {
            // A touch writes the value that the entry has.
            Origin::Touch => before.clone(),
            _ => write.state::<Terms>().unwrap_or_default(),
        };
        write.set_details(terms.as_details());
        self.replace(write, &before, &terms)
    }

    /// Adds the writes that replace the index entries of an entry.
    fn replace<O: vkog_plugin_api::Change>(&self, guard: &Guard<'_, O>, before: &Terms, after: &Terms) -> Verdict {
        let key = guard.key();
        for term in before.iter().filter(|term| !after.has(term)) {
            guard.add(&Ask::delete(&self.areas.index_key(term, key)))?;
        }
        let is_indexed = self.is_built.load(SeqCst) && !self.is_left_out(key);
        for term in after.iter().filter(|term| !is_indexed || !before.has(term)) {
            let index_key = self.areas.index_key(term, key);
            guard.add(&Ask::put(&index_key, key.as_bytes()).content_type("text/plain").upsert())?;
        }
        Ok(())
    }
}

impl BeforeGet for Index {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        self.protect(get)
    }
}

impl BeforePost for Index {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        self.prepare(post)
    }
}

impl BeforePut for Index {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        self.prepare(put)
    }
}

impl BeforeDelete for Index {
    fn before_delete(&self, delete: &mut Before<'_, Delete>) -> Verdict {
        self.protect(delete)
    }
}

impl GuardPost for Index {
    fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
        self.write(post)
    }
}

impl GuardPut for Index {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.write(put)
    }
}

impl GuardDelete for Index {
    fn guard_delete(&self, delete: &mut Guard<'_, Delete>) -> Verdict {
        if self.areas.is_index(delete.key()) {
            return Ok(());
        }
        let before = Terms::stored(delete.entry().map_or(&[], |entry| entry.details()));
        self.replace(delete, &before, &Terms::default())
    }
}

impl Tick for Index {
    fn tick(&self) -> Duration {
        let before = self.left_out().len();
        let built = match self.is_built.load(SeqCst) {
            true if before == 0 => return NEVER,
            true => {
                let keys = self.left_out().clone();
                self.build_left_out(&keys)
            }
            false => self.build(),
        };
        match built {
            Ok(left_out) => self.complete(left_out, before),
            Err(refusal) => {
                self.host.log(Level::Warn, &format!("cannot build the index yet: {}", refusal.message()));
                RETRY
            }
        }
    }
}

impl Index {
    fn left_out(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_left_out(&self, key: &str) -> bool {
        self.left_out().contains(key)
    }

    /// Serves the index from now on, without the entries that are left out. `before` is the number of those until now. Returns the
    /// time until the next attempt.
    fn complete(&self, LeftOut { keys, first }: LeftOut, before: usize) -> Duration {
        let count = keys.len();
        *self.left_out() = keys;
        self.left_out_count.set(count as i64);
        self.complete.set(i64::from(count == 0));
        let is_first = !self.is_built.swap(true, SeqCst);
        match first {
            None => self.host.log(Level::Info, "the index is complete"),
            // Once, and not in each attempt.
            Some(first) if is_first || count > before => {
                let fact = "entries that cannot be read or written are left out of the index";
                let line = format!("{fact}: {count}, the first is {first}");
                self.host.log(Level::Warn, &line);
            }
            Some(_) => {}
        }
        if count == 0 { NEVER } else { RETRY_LEFT_OUT }
    }

    /// Returns the keys of the entries with this value of the field, in byte order. The store calls of a route have the key prefix of
    /// its client, so these are the entries behind it.
    fn find(&self, field: &str, value: &str) -> Result<Vec<String>, Refusal> {
        if !self.fields.iter().any(|own| own == field) {
            return Err(Refusal::new(404, format!("No index of the field {field:?}")));
        }
        if !self.is_built.load(SeqCst) {
            return Err(Refusal::new(503, "The index is being built: try again later").with_header("Retry-After", "1"));
        }
        let keys = RefCell::new(Vec::new());
        let prefix = format!("{PREFIX}{}/", term(field, value));
        let add = |index_key: &str| keys.borrow_mut().extend(index_key.strip_prefix(&prefix).map(str::to_owned));
        let each = |index_key: &str, _: Entry<'_>| {
            add(index_key);
            ControlFlow::Continue(())
        };
        // The key says it all.
        self.host.for_each_readable(&KeyRange::new(&prefix), each, |index_key, _| add(index_key))?;
        Ok(keys.into_inner())
    }
}

impl Serve for Index {
    const ROUTES: &'static [Route] =
        &[Route::new("GET", "/{field}/{value}", Permission::Read, "List the keys of entries by the value of a field.")];

    fn serve(&self, request: &RouteRequest<'_>) -> Verdict {
        let parameter = |name| request.parameter(name).unwrap_or_default();
        let keys = self.find(parameter("field"), parameter("value"))?;
        let left_out = self.left_out().len();
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
    required: [
        tick, before_get, before_post, before_put, before_delete, guard_post, guard_put, guard_delete, serve
    ]
);
