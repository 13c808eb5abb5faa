//! Entries that expire. Decides until when an entry lives, and hides it from then on. The expiry is stored in the
//! entry's details, so it outlives the plugin. Expired entries are removed through the hook chain.
//!
//! An entry lives while the host's clock shows less than its expiry. A read is judged under the entry's lock. A write
//! or removal is judged in its before-hook: an entry that has expired is removed first, so that all plugins find the
//! key absent. If the entry expires after that and before the write, the other plugins have already seen it, so the
//! write is refused. When the client repeats it, the key is absent.
//!
//! Of several hosts that share the store, the one that leads removes entries when they are due. The others know of them, for
//! the case that they lead next. Every removal requires the revision that has expired, so that an entry expires once.

#![forbid(unsafe_code)]

mod index;
mod period;
mod time;

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use vkog_plugin_api::serde::Deserialize;
use vkog_plugin_api::*;

use index::{Due, Index};
use period::{ACCEPTED, Period};

/// The plugin's name, by which it recognises its own store calls.
const NAME: &str = "ttl";
/// The header of requests and of responses.
const HEADER: &str = "Vkog-TTL";
/// The header of responses with the expiry, which is the field `expires` of listings.
const EXPIRES: &str = "Vkog-Expires";
/// The header of a removal, from which the host learns the reason.
const REASON: &str = "Vkog-Reason";
/// The maximum number of entries that are removed together and share the wait for the disk. Between two batches the
/// plugin can be stopped.
const BATCH: usize = 8192;
/// The maximum time between two ticks, because the clock may be set. It is not more than the shortest time to live, so that a
/// tick before the expiry of an entry knows of it: the entry is removed in the millisecond of its expiry.
const LOOK: Duration = Duration::from_secs(1);
/// The time until a refused removal is retried, in milliseconds.
const RETRY: u64 = 10_000;
/// The maximum number of attempts to remove an entry that changes meanwhile.
const TRIES: usize = 8;

#[derive(Deserialize)]
#[serde(crate = "vkog_plugin_api::serde")]
struct Settings {
    /// The time to live of new entries that set none.
    #[serde(default)]
    default: Option<Period>,
    /// The maximum time to live.
    #[serde(default)]
    max: Option<Period>,
}

struct Ttl {
    host: Host,
    default: Option<Period>,
    max: Option<Period>,
    index: Mutex<Index>,
    /// Locked while due entries are removed.
    pass: Mutex<()>,
    /// The number of times that this removed an entry.
    passes: AtomicU64,
    expired: Counter,
    entries: Gauge,
}

impl Plugin for Ttl {
    type Settings = Settings;
    const STAGE: Stage = Stage::Policy;

    fn create(host: Host, Settings { default, max }: Settings) -> Result<Self, CreateError> {
        if let (Some(default), Some(max)) = (default, max)
            && default > max
        {
            return Err(format!("default is {default} and max is {max}; set default to at most max").into());
        }
        let name = if default.is_some() { "default" } else { "max, the default," };
        let default = default.or(max);
        if let Some(default) = default.filter(|default| expiry_after(milliseconds(host.now()), *default).is_none()) {
            return Err(format!("{name} is {default}: entries must expire before the year 10000; set less").into());
        }
        Ok(Ttl {
            host,
            default,
            max,
            index: Mutex::default(),
            pass: Mutex::default(),
            passes: AtomicU64::new(0),
            expired: host.counter("expired_total", "Expired entries that were removed."),
            entries: host.gauge("entries", "Entries that will expire."),
        })
    }
}

/// The time to live that a request sets.
enum Wish {
    /// The request sets none.
    Nothing,
    Never,
    For(Period),
}

/// Returns the request that removes an entry with this revision, because it has expired.
fn removal(due: &Due, revision: u64) -> Ask<'_> {
    Ask::delete(&due.key).if_revision(revision).header(REASON, "expired")
}

/// Returns the expiry in an entry's details, in milliseconds since 1970.
fn expiry(details: &[u8]) -> Option<u64> {
    details.try_into().ok().map(u64::from_be_bytes)
}

/// Returns the milliseconds since 1970.
fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the expiry of an entry that is written now; `None` after the year 9999.
fn expiry_after(now: u64, period: Period) -> Option<u64> {
    now.checked_add(period.millis).filter(|until| *until <= time::LAST)
}

impl Ttl {
    fn index(&self) -> MutexGuard<'_, Index> {
        // The host catches a panic under this lock. The content of the index is checked against the store before each
        // use.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time of the host's clock, in milliseconds since 1970.
    fn now(&self) -> u64 {
        milliseconds(self.host.now())
    }

    /// Parses the header or the query parameter.
    fn wish(&self, request: &Request<'_>) -> Result<Wish, Refusal> {
        let headers = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case(HEADER)).map(|(_, value)| value);
        let query = request.query().split('&').filter_map(|pair| pair.strip_prefix("ttl=")).map(str::as_bytes);
        let mut said = headers.chain(query);
        let Some(text) = said.next() else { return Ok(Wish::Nothing) };
        if said.next().is_some() {
            return Err(Refusal::new(400, format!("The time to live is repeated: send one {HEADER}, or one ttl=")));
        }
        let text = String::from_utf8_lossy(text);
        let period = Period::parse(&text);
        if period.is_none() && text != "none" {
            return Err(Refusal::new(400, format!("Not a time to live: {text:?}; use {ACCEPTED}, or none")));
        }
        match (period, self.max) {
            (None, Some(max)) => Err(Refusal::new(400, format!("Every entry must expire: use at most {max}"))),
            (Some(period), Some(max)) if period > max => {
                Err(Refusal::new(400, format!("Time to live too long: {period}; the maximum is {max}")))
            }
            (None, None) => Ok(Wish::Never),
            (Some(period), _) => Ok(Wish::For(period)),
        }
    }

    /// Removes an entry if it has expired according to the store; the index may be out of date.
    fn remove(&self, due: &Due) -> Verdict {
        self.removed(due, self.host.ask(&removal(due, due.revision)))
    }

    /// Handles the result of a removal. An entry that was written meanwhile is read and checked again.
    fn removed(&self, due: &Due, mut answer: Result<Answer, Refusal>) -> Verdict {
        for tried in 1.. {
            match answer {
                Ok(Answer::Done(_)) => {
                    self.expired.add(1);
                    return Ok(());
                }
                Ok(_) => break,
                Err(refusal) if refusal.status() != 412 || tried == TRIES => return Err(refusal),
                Err(_) => {}
            }
            // The entry was written or removed meanwhile.
            let Some(found) = self.host.get(&due.key)? else { break };
            let until = expiry(&found.details);
            if until.is_none_or(|until| until > self.now()) {
                self.index().learn(&due.key, found.revision, until);
                return Ok(());
            }
            answer = self.host.ask(&removal(due, found.revision));
        }
        self.index().gone(due);
        Ok(())
    }

    /// Removes the entry of a request if it has expired, so that the other plugins find the key absent.
    fn clear(&self, request: &Request<'_>) -> Verdict {
        if request.asker() == Some(NAME) {
            return Ok(());
        }
        let due = self.index().expired(request.key(), self.now());
        due.map_or(Ok(()), |due| self.remove(&due))
    }

    /// Sets the expiry of the entry to write, as its details.
    fn guard<O: Write>(&self, write: &Guard<'_, O>) -> Verdict {
        let now = self.now();
        let held = write.entry().and_then(|entry| expiry(entry.details()));
        if held.is_some_and(|held| held <= now) {
            return Err(Refusal::new(409, "Entry expired while the request was in flight: send it again"));
        }
        let after = |period: Period| {
            expiry_after(now, period).ok_or_else(|| {
                let fact = format!("Time to live too long: {period}; the entry must expire before the year 10000");
                Refusal::new(400, fact)
            })
        };
        let until = match self.wish(write)? {
            Wish::For(period) => Some(after(period)?),
            Wish::Never => None,
            Wish::Nothing if write.entry().is_some() => held,
            Wish::Nothing => self.default.map(after).transpose()?,
        };
        if let Some(until) = until {
            write.set_details(&until.to_be_bytes());
        }
        self.index().begun(write.key());
        Ok(())
    }

    fn done<O: Operation>(&self, after: &After<'_, O>) {
        let until = after.entry_after().and_then(|entry| expiry(entry.details()));
        let mut index = self.index();
        index.done(after.key(), after.revision(), until);
        self.show(&index);
    }

    /// Publishes the number of entries that expire.
    fn show(&self, index: &Index) {
        self.entries.set(i64::try_from(index.len()).unwrap_or(i64::MAX));
    }
}

impl Start for Ttl {
    fn start(&self, stored: &Stored<'_>) -> Result<(), String> {
        let mut index = self.index();
        stored.for_each(|key, entry| {
            if let Some(until) = expiry(entry.details()) {
                index.found(key, entry.revision(), until);
            }
        });
        self.show(&index);
        Ok(())
    }
}

impl BeforeGet for Ttl {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        // Only for a request with preconditions, because the host checks those before the guard hides the entry.
        let conditional = get.header("if-none-match").or_else(|| get.header("if-match")).is_some();
        if conditional && get.asker() != Some(NAME) && self.index().expired(get.key(), self.now()).is_some() {
            let found = self.host.get(get.key())?;
            let until = found.and_then(|found| expiry(&found.details));
            if until.is_some_and(|until| until <= self.now()) {
                get.hide();
            }
        }
        Ok(())
    }
}

impl GuardGet for Ttl {
    fn guard_get(&self, get: &mut Guard<'_, Get>) -> Verdict {
        let until = get.entry().and_then(|entry| expiry(entry.details()));
        if until.is_some_and(|until| until <= self.now()) && get.asker() != Some(NAME) {
            get.hide();
        }
        Ok(())
    }
}

impl AfterGet for Ttl {
    fn after_get(&self, get: &After<'_, Get>) {
        if let Some(until) = get.entry_after().and_then(|entry| expiry(entry.details())) {
            let left = until.saturating_sub(self.now()).div_ceil(1000);
            get.add_header(HEADER, &left.to_string());
            if let Some(time) = time::rfc3339(until) {
                get.add_header(EXPIRES, &time);
            }
        }
    }
}

impl BeforePost for Ttl {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        self.wish(post)?;
        self.clear(post)
    }
}

impl BeforePut for Ttl {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        self.wish(put)?;
        self.clear(put)
    }
}

impl BeforeDelete for Ttl {
    fn before_delete(&self, delete: &mut Before<'_, Delete>) -> Verdict {
        self.clear(delete)
    }
}

impl GuardPost for Ttl {
    fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
        self.guard(post)
    }
}

impl GuardPut for Ttl {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.guard(put)
    }
}

impl GuardDelete for Ttl {
    fn guard_delete(&self, delete: &mut Guard<'_, Delete>) -> Verdict {
        self.index().begun(delete.key());
        Ok(())
    }
}

impl UndoPost for Ttl {
    fn undo_post(&self, post: &Undo<'_, Post>) {
        self.index().undone(post.key());
    }
}

impl UndoPut for Ttl {
    fn undo_put(&self, put: &Undo<'_, Put>) {
        self.index().undone(put.key());
    }
}

impl UndoDelete for Ttl {
    fn undo_delete(&self, delete: &Undo<'_, Delete>) {
        self.index().undone(delete.key());
    }
}

impl AfterPost for Ttl {
    fn after_post(&self, post: &After<'_, Post>) {
        self.done(post);
    }
}

impl AfterPut for Ttl {
    fn after_put(&self, put: &After<'_, Put>) {
        self.done(put);
    }
}

impl AfterDelete for Ttl {
    fn after_delete(&self, delete: &After<'_, Delete>) {
        self.done(delete);
    }
}

impl Applied for Ttl {
    fn applied(&self, change: &AppliedChange<'_>) {
        let until = change.entry_after().and_then(|entry| expiry(entry.details()));
        let mut index = self.index();
        index.applied(change.key(), change.revision(), until);
        self.show(&index);
    }
}

impl Ttl {
    /// Removes the first due entries. If another thread is removing them, waits for it. Returns whether an entry was
    /// removed since the call.
    fn remove_due(&self) -> bool {
        let before = self.passes.load(SeqCst);
        let _one = self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        if self.passes.load(SeqCst) != before {
            return true;
        }
        let due = self.index().due(self.now(), BATCH);
        let asks: Vec<_> = due.iter().map(|due| removal(due, due.revision)).collect();
        let mut refused = Vec::new();
        for (due, answer) in due.iter().zip(self.host.ask_each(&asks)) {
            if let Err(refusal) = self.removed(due, answer) {
                self.index().postpone(due, self.now().saturating_add(RETRY));
                refused.push((&due.key, refusal));
            }
        }
        if let Some((key, refusal)) = refused.first() {
            let (count, why) = (refused.len(), refusal.message());
            let line = format!("cannot remove {count} expired entries yet, such as {key:?}: {why}");
            self.host.log(Level::Warn, &line);
        }
        let removed = refused.len() < due.len();
        if removed {
            self.passes.fetch_add(1, SeqCst);
        }
        removed
    }
}

impl Tick for Ttl {
    fn tick(&self) -> Duration {
        // One of the hosts that share the store removes what has expired. Here it is hidden until then.
        if !self.host.leads() {
            return LOOK;
        }
        self.remove_due();
        let next = self.index().next();
        next.map_or(LOOK, |next| Duration::from_millis(next.saturating_sub(self.now())).min(LOOK))
    }
}

impl MakeRoom for Ttl {
    fn make_room(&self) -> bool {
        self.remove_due()
    }
}

// Without one of them, expired entries would be served, or never be removed.
export_plugin!(
    Ttl,
    required: [
        start, tick, before_get, before_post, before_put, before_delete, guard_get, guard_post, guard_put, guard_delete,
        undo_post, undo_put, undo_delete, after_get, after_post, after_put, after_delete
    ]
);

#[cfg(test)]
mod tests;
