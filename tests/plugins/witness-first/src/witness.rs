//! Logs every hook call with its arguments, as one line of JSON. The query of a request selects an action: `replace`,
//! `hide-before`, `hide-guard` or `details`, followed by a plugin's name if only that plugin acts. A key that contains `hidden`
//! is always hidden.

use serde_json::{Value, json};
use vkog_plugin_api::*;

pub(crate) struct Witness {
    host: Host,
}

impl Plugin for Witness {
    type Settings = NoSettings;
    const STAGE: Stage = crate::STAGE;

    fn create(host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
        Ok(Witness { host })
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn entry(entry: Option<Entry<'_>>) -> Value {
    entry.map_or(Value::Null, |entry| {
        json!([text(entry.value()), entry.content_type(), entry.revision(), text(entry.details())])
    })
}

impl Witness {
    fn tell(&self, hook: &str, request: &Request<'_>, entries: Value) {
        let told = json!({
            "hook": hook,
            "method": request.verb().method(),
            "key": request.key(),
            "value": text(request.value()),
            "content_type": request.content_type(),
            "query": request.query(),
            "header": request.header("X-WITNESS").map(text),
            "headers": request.headers().filter(|(name, _)| name.eq_ignore_ascii_case("x-witness")).count(),
            "client": request.client(),
            "asker": request.asker(),
            "arrived": request.arrived(),
            "entries": entries,
        });
        self.host.log(Level::Info, &format!("witness {told}"));
    }

    fn asked(&self, request: &Request<'_>, what: &str) -> bool {
        let own = format!("{what}-{}", env!("CARGO_PKG_NAME"));
        request.query().split('&').any(|asked| asked == what || asked == own)
    }
}

impl Start for Witness {
    fn start(&self, stored: &Stored<'_>) -> Result<(), String> {
        let mut keys = Vec::new();
        stored.for_each(|key, stored| keys.push(json!([key, entry(Some(stored))])));
        keys.sort_by_key(ToString::to_string);
        self.host.log(Level::Info, &format!("witness {}", json!({"hook": "start", "entries": keys})));
        Ok(())
    }
}

impl BeforeGet for Witness {
    fn before_get(&self, get: &mut Before<'_, Get>) -> Verdict {
        self.tell("before_get", get, Value::Null);
        if self.asked(get, "hide-before") || get.key().contains("hidden") {
            get.hide();
        }
        Ok(())
    }
}

impl GuardGet for Witness {
    fn guard_get(&self, get: &mut Guard<'_, Get>) -> Verdict {
        self.tell("guard_get", get, entry(get.entry()));
        if self.asked(get, "hide-guard") {
            get.hide();
        }
        Ok(())
    }
}

impl BeforeDelete for Witness {
    fn before_delete(&self, delete: &mut Before<'_, Delete>) -> Verdict {
        self.tell("before_delete", delete, Value::Null);
        Ok(())
    }
}

impl GuardDelete for Witness {
    fn guard_delete(&self, delete: &mut Guard<'_, Delete>) -> Verdict {
        self.tell("guard_delete", delete, entry(delete.entry()));
        Ok(())
    }
}

macro_rules! write {
    ($($operation:ident: $before:ident $before_hook:ident, $guard:ident $guard_hook:ident;)*) => {$(
        impl $before for Witness {
            fn $before_hook(&self, write: &mut Before<'_, $operation>) -> Verdict {
                self.tell(stringify!($before_hook), write, Value::Null);
                if self.asked(write, "replace") {
                    write.replace_value(format!("<{}>", text(write.value())).as_bytes());
                }
                Ok(())
            }
        }

        impl $guard for Witness {
            fn $guard_hook(&self, write: &mut Guard<'_, $operation>) -> Verdict {
                self.tell(stringify!($guard_hook), write, entry(write.entry()));
                if self.asked(write, "details") {
                    write.set_details(format!("{} of {}", env!("CARGO_PKG_NAME"), write.key()).as_bytes());
                }
                Ok(())
            }
        }
    )*};
}

write! {
    Post: BeforePost before_post, GuardPost guard_post;
    Put: BeforePut before_put, GuardPut guard_put;
}

macro_rules! told {
    ($($operation:ident: $after:ident $after_hook:ident, $undo:ident $undo_hook:ident;)*) => {$(
        impl $after for Witness {
            fn $after_hook(&self, done: &After<'_, $operation>) {
                let entries = json!([entry(done.entry_before()), entry(done.entry_after()), done.revision()]);
                self.tell(stringify!($after_hook), done, entries);
            }
        }

        impl $undo for Witness {
            fn $undo_hook(&self, undone: &Undo<'_, $operation>) {
                self.tell(stringify!($undo_hook), undone, entry(undone.entry()));
            }
        }
    )*};
}

told! {
    Get: AfterGet after_get, UndoGet undo_get;
    Post: AfterPost after_post, UndoPost undo_post;
    Put: AfterPut after_put, UndoPut undo_put;
    Delete: AfterDelete after_delete, UndoDelete undo_delete;
}
