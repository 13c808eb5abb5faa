//! The plugin. It logs each HTTP request and each operation.
//!
//! | header | effect |
//! |---|---|
//! | `X-Prefix` | the key prefix of the request |
//! | `X-Refuse` | the status of a refusal |
//! | `X-Panic` | a panic |
//! | `X-Ask` | the key of a put that the hook requests of the store |
//! | `X-Lock` | guards refuse writes with a message and a header that have the whole key |
//! | `X-Type` | the media type of what is written |
//!
//! Each hook of an operation keeps a state; two metrics count the states and their drops. After-hooks return the number of hooks
//! that have handed on the state in `X-Hooks`, and the whole key in `X-Key`.

use vkog_plugin_api::*;

pub(crate) struct Requests {
    host: Host,
    made: Counter,
    dropped: Counter,
}

/// The state: the number of hooks so far.
struct Kept {
    hooks: u32,
    dropped: Counter,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.dropped.add(1);
    }
}

impl Plugin for Requests {
    type Settings = NoSettings;

    const STAGE: Stage = Stage::Access;
    const BLOCKS: bool = crate::BLOCKS;

    fn create(host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
        let made = host.counter("states_made_total", "States that hooks have set.");
        let dropped = host.counter("states_dropped_total", "States that were dropped.");
        Ok(Self { host, made, dropped })
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

impl BeforeRequest for Requests {
    fn before_request(&self, request: &mut HttpRequest<'_>) -> Verdict {
        let token = request.token().unwrap_or("-");
        let (method, path, query) = (request.method(), request.path(), request.query());
        self.host.log(Level::Info, &format!("request {method} {path}?{query} by {token} of {:?}", request.client_ip()));
        assert!(request.header("x-panic").is_none(), "on purpose");
        if let Some(status) = request.header("x-refuse") {
            let status = text(status).parse().unwrap_or(500);
            return Err(Refusal::new(status, "refused on purpose").with_header("Retry-After", "7"));
        }
        if let Some(prefix) = request.header("x-prefix") {
            request.set_key_prefix(&text(prefix));
        }
        if let Some(key) = request.header("x-ask") {
            self.host.put(&text(key), b"1")?;
        }
        Ok(())
    }
}

impl Requests {
    /// Hands on the state. Returns the number of hooks that have done so.
    fn pass(&self, call: &Request<'_>) -> u32 {
        let hooks = call.take_state::<Kept>().map_or(0, |kept| kept.hooks) + 1;
        self.made.add(1);
        call.set_state(Kept { hooks, dropped: self.dropped });
        hooks
    }

    fn before(&self, call: &Request<'_>) -> Verdict {
        let (verb, key, token) = (call.verb().method(), call.key(), call.token().unwrap_or("-"));
        let (origin, address) = (call.origin(), call.client_ip());
        self.host.log(Level::Info, &format!("operation {origin:?} {verb} {key} by {token} of {address:?}"));
        self.pass(call);
        Ok(())
    }

    fn guard(&self, call: &Request<'_>) -> Verdict {
        self.pass(call);
        match call.header("x-lock") {
            Some(_) if call.verb() != Verb::Get => {
                let key = call.key().to_owned();
                Err(Refusal::new(423, format!("the key \"{key}\" is locked")).with_header("X-Key", key))
            }
            _ => Ok(()),
        }
    }
}

macro_rules! hooks {
    ($($operation:ident: $before:ident $before_hook:ident, $guard:ident $guard_hook:ident, $undo:ident $undo_hook:ident,
       $after:ident $after_hook:ident, $label:expr;)*) => {$(
        impl $before for Requests {
            fn $before_hook(&self, call: &mut Before<'_, $operation>) -> Verdict {
                let label: fn(&Before<'_, $operation>) = $label;
                label(call);
                self.before(call)
            }
        }
        impl $guard for Requests {
            fn $guard_hook(&self, call: &mut Guard<'_, $operation>) -> Verdict {
                self.guard(call)
            }
        }
        impl $undo for Requests {
            fn $undo_hook(&self, call: &Undo<'_, $operation>) {
                self.pass(call);
            }
        }
        impl $after for Requests {
            fn $after_hook(&self, call: &After<'_, $operation>) {
                call.add_header("X-Hooks", &self.pass(call).to_string());
                call.add_header("X-Key", call.key());
            }
        }
    )*};
}

fn label<O: Write>(call: &Before<'_, O>) {
    if let Some(kind) = call.header("x-type") {
        call.replace_content_type(&text(kind));
    }
}

hooks! {
    Get: BeforeGet before_get, GuardGet guard_get, UndoGet undo_get, AfterGet after_get, |_| {};
    Post: BeforePost before_post, GuardPost guard_post, UndoPost undo_post, AfterPost after_post, label;
    Put: BeforePut before_put, GuardPut guard_put, UndoPut undo_put, AfterPut after_put, label;
    Delete: BeforeDelete before_delete, GuardDelete guard_delete, UndoDelete undo_delete, AfterDelete after_delete, |_| {};
}
