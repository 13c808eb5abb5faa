//! Five plugins that do what the headers and the values of a request say.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use vkog_plugin_api::*;

/// Limits the number of entries. It makes room by removing an entry whose key starts with "spare".
pub(crate) struct Quota {
    host: Host,
    count: AtomicI64,
    entries: Gauge,
    made_room: Counter,
}

const ENTRIES_MAX: i64 = 10;

impl Plugin for Quota {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Accounting;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        let entries = host.gauge("entries", "Entries.");
        let made_room = host.counter("made_room", "Entries that were removed to make room.");
        Ok(Self { host, count: AtomicI64::new(0), entries, made_room })
    }
}

impl Quota {
    fn change(&self, difference: i64) -> i64 {
        let count = self.count.fetch_add(difference, SeqCst) + difference;
        self.entries.set(count);
        count
    }

    fn reserve(&self, entry: Option<Entry<'_>>) -> Verdict {
        if entry.is_none() && self.change(1) > ENTRIES_MAX {
            self.change(-1);
            return Err(Refusal::new(413, format!("no room: {ENTRIES_MAX} entries are the most")));
        }
        Ok(())
    }

    fn release(&self, entry: Option<Entry<'_>>) {
        if entry.is_none() {
            self.change(-1);
        }
    }
}

impl GuardPost for Quota {
    fn guard_post(&self, post: &mut Guard<'_, Post>) -> Verdict {
        self.reserve(post.entry())
    }
}

impl GuardPut for Quota {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        self.reserve(put.entry())
    }
}

impl UndoPost for Quota {
    fn undo_post(&self, post: &Undo<'_, Post>) {
        self.release(post.entry());
    }
}

impl UndoPut for Quota {
    fn undo_put(&self, put: &Undo<'_, Put>) {
        self.release(put.entry());
    }
}

impl AfterDelete for Quota {
    fn after_delete(&self, _: &After<'_, Delete>) {
        self.change(-1);
    }
}

impl MakeRoom for Quota {
    fn make_room(&self) -> bool {
        let mut spare: Vec<String> = Vec::new();
        let each = |key: &str, _: Entry<'_>| {
            spare.push(key.to_owned());
            ControlFlow::Continue(())
        };
        let listed = self.host.for_each("spare", each).is_ok();
        spare.sort();
        let removed = listed && spare.first().is_some_and(|key| self.host.delete(key).unwrap_or(false));
        self.made_room.add(removed.into());
        removed
    }
}

/// Counts the guards that no undo and no after has followed yet; refuses where a request says so; and counts in an entry's
/// details how often it was written.
pub(crate) struct Bookkeeper {
    open: Gauge,
}

impl Plugin for Bookkeeper {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self { open: host.gauge("open", "Guards that nothing has followed.") })
    }
}

fn refuse(phase: &str, asked: Option<&[u8]>) -> Verdict {
    match (phase, asked) {
        ("before", Some(b"before")) => Err(Refusal::new(403, "not for you").with_header("X-Reason", "before")),
        ("guard", Some(b"guard")) => Err(Refusal::new(422, "not this entry").with_header("X-Reason", "guard")),
        _ => Ok(()),
    }
}

macro_rules! bookkeeper {
    ($($operation:ident: $before:ident $before_hook:ident, $guard:ident $guard_hook:ident, $undo:ident $undo_hook:ident,
       $after:ident $after_hook:ident, $details:expr;)*) => {$(
        impl $before for Bookkeeper {
            fn $before_hook(&self, call: &mut Before<'_, $operation>) -> Verdict {
                refuse("before", call.header("X-Refuse"))
            }
        }
        impl $guard for Bookkeeper {
            fn $guard_hook(&self, call: &mut Guard<'_, $operation>) -> Verdict {
                refuse("guard", call.header("X-Refuse"))?;
                self.open.add(1);
                let details: fn(&mut Guard<'_, $operation>) = $details;
                details(call);
                Ok(())
            }
        }
        impl $undo for Bookkeeper {
            fn $undo_hook(&self, _: &Undo<'_, $operation>) {
                self.open.add(-1);
            }
        }
        impl $after for Bookkeeper {
            fn $after_hook(&self, call: &After<'_, $operation>) {
                self.open.add(-1);
                if let Some(writes) = call.entry_after().and_then(|entry| entry.details().first().copied()) {
                    call.add_header("X-Writes", &writes.to_string());
                }
            }
        }
    )*};
}

fn counted(entry: Option<Entry<'_>>) -> [u8; 1] {
    [entry.and_then(|entry| entry.details().first().copied()).unwrap_or(0).wrapping_add(1)]
}

bookkeeper! {
    Get: BeforeGet before_get, GuardGet guard_get, UndoGet undo_get, AfterGet after_get, |_| {};
    Post: BeforePost before_post, GuardPost guard_post, UndoPost undo_post, AfterPost after_post,
        |post| post.set_details(&counted(post.entry()));
    Put: BeforePut before_put, GuardPut guard_put, UndoPut undo_put, AfterPut after_put,
        |put| put.set_details(&counted(put.entry()));
    Delete: BeforeDelete before_delete, GuardDelete guard_delete, UndoDelete undo_delete, AfterDelete after_delete, |_| {};
}

/// Writes values in capital letters that start with "up:".
pub(crate) struct Transform;

impl Plugin for Transform {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Transform;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self)
    }
}

fn louder(value: &[u8]) -> Option<Vec<u8>> {
    value.strip_prefix(b"up:").map(<[u8]>::to_ascii_uppercase)
}

impl BeforePost for Transform {
    fn before_post(&self, post: &mut Before<'_, Post>) -> Verdict {
        louder(post.value()).into_iter().for_each(|value| post.replace_value(&value));
        Ok(())
    }
}

impl BeforePut for Transform {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        louder(put.value()).into_iter().for_each(|value| put.replace_value(&value));
        Ok(())
    }
}

/// Hides entries: those whose value starts with "hidden", and all from a request that says so.
pub(crate) struct Veil;

impl Plugin for Veil {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Observe;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self)
    }
}

impl BeforeGet for Veil {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        if get.header("X-Veil").is_some() {
            get.hide();
        }
        Ok(())
    }
}

impl GuardGet for Veil {
    fn guard_get(&self, get: &mut Guard<'_, Get>) -> Verdict {
        if get.entry().is_some_and(|entry| entry.value().starts_with(b"hidden")) {
            get.hide();
        }
        Ok(())
    }
}

/// Makes the request that a header names: `X-Ask` before the operation, which a refusal fails, `X-Ask-After` after it.
pub(crate) struct Clerk {
    host: Host,
}

impl Plugin for Clerk {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Access;
    const BLOCKS: bool = true;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Self { host })
    }
}

impl Clerk {
    /// Makes the request "VERB KEY VALUE REST", and returns its outcome in words.
    fn ask(&self, text: &[u8]) -> Result<String, Refusal> {
        let text = String::from_utf8_lossy(text);
        let mut words = text.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_default();
        let (verb, key, value, rest) = (word(), word(), word(), word());
        let ask = match verb {
            "get" => Ask::get(key),
            "post" => Ask::post(key, value.as_bytes()),
            "put" => Ask::put(key, value.as_bytes()),
            "delete" => Ask::delete(key),
            _ => {
                let mut keys: Vec<String> = Vec::new();
                self.host.for_each(key, |key, _| {
                    keys.push(key.to_owned());
                    ControlFlow::Continue(())
                })?;
                keys.sort();
                return Ok(format!("listed {}", keys.join(" ")));
            }
        };
        let ask = if rest == "=" { ask.if_revision(u64::MAX) } else { ask.content_type(rest) };
        Ok(match self.host.ask(&ask)? {
            Answer::Found(found) => format!("found {} {:?}", String::from_utf8_lossy(&found.value), found.details),
            Answer::Done(_) => "done".to_owned(),
            Answer::Absent => "absent".to_owned(),
        })
    }

    fn before(&self, asked: Option<&[u8]>) -> Verdict {
        asked.map_or(Ok(()), |text| self.ask(text).map(drop))
    }

    fn after(&self, asked: Option<&[u8]>) -> Option<String> {
        let told = |refusal: Refusal| format!("refused {} {}", refusal.status(), refusal.message());
        asked.map(|text| self.ask(text).unwrap_or_else(told))
    }
}

macro_rules! clerk {
    ($($operation:ident: $before:ident $before_hook:ident, $after:ident $after_hook:ident;)*) => {$(
        impl $before for Clerk {
            fn $before_hook(&self, call: &mut Before<'_, $operation>) -> Verdict {
                self.before(call.header("X-Ask"))
            }
        }
        impl $after for Clerk {
            fn $after_hook(&self, call: &After<'_, $operation>) {
                if let Some(outcome) = self.after(call.header("X-Ask-After")) {
                    call.add_header("X-Asked", &outcome);
                }
            }
        }
    )*};
}

clerk! {
    Get: BeforeGet before_get, AfterGet after_get;
    Post: BeforePost before_post, AfterPost after_post;
    Put: BeforePut before_put, AfterPut after_put;
    Delete: BeforeDelete before_delete, AfterDelete after_delete;
}
