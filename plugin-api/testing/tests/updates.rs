//! The hook `serve_update`: what it sees, what becomes of what it returns, and how it fails.
//!
//! Provoked with a plugin that has a route for each behaviour.

use vkog_plugin_api::*;
use vkog_plugin_testing::{Setup, TestHost, plugin};

struct Updates {
    host: Host,
}

impl Plugin for Updates {
    type Settings = NoSettings;

    fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Updates { host })
    }
}

impl ServeUpdate for Updates {
    const ROUTES: &'static [Route] = &[Route::new("POST", "/{how}/{*key}", Permission::Write, "Update an entry.")];

    fn serve_update(&self, request: &UpdateRequest<'_>) -> Result<Vec<u8>, Refusal> {
        let before = request.entry().map_or(&[][..], |entry| entry.value());
        match request.parameter("how").unwrap_or_default() {
            "append" => {
                request.set_value_type("text/plain");
                request.add_header("X-Key", request.key());
                let revision = request.entry().map(|entry| entry.revision());
                request.respond(201, "text/csv", format!("{revision:?},{}", request.query()).as_bytes());
                request.respond(500, "text/plain", b"a second response");
            }
            "silent" => request.add_header("X-Silent", "1"),
            "empty" => return Ok(Vec::new()),
            "type" => request.set_value_type("no type"),
            "refuse" => return Err(Refusal::new(418, "on purpose").with_header("X-Purpose", "tea")),
            "panic" => panic!("on purpose"),
            _ => _ = self.host.get("other")?,
        }
        Ok([before, request.body()].concat())
    }
}

/// Stores values with all their bits changed, under the keys that begin with `flip`.
struct Flip;

impl Plugin for Flip {
    type Settings = NoSettings;
    const STAGE: Stage = Stage::Transform;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Flip)
    }
}

fn flip(value: &[u8]) -> Vec<u8> {
    value.iter().map(|byte| !byte).collect()
}

impl BeforePut for Flip {
    fn before_put(&self, put: &mut Before<'_, Put>) -> Verdict {
        if put.key().starts_with("flip") {
            put.replace_value(&flip(put.value()));
        }
        Ok(())
    }
}

impl ReadGet for Flip {
    fn read_get(&self, read: &mut Read<'_>) -> Verdict {
        read.replace_value(&flip(read.value()));
        Ok(())
    }
}

/// Limits values to eight bytes, and sees who writes.
struct Short;

impl Plugin for Short {
    type Settings = NoSettings;

    fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> {
        Ok(Short)
    }
}

impl GuardPut for Short {
    fn guard_put(&self, put: &mut Guard<'_, Put>) -> Verdict {
        if put.value().len() > 8 {
            let (asker, origin) = (put.asker().unwrap_or_default(), put.origin());
            return Err(Refusal::new(413, format!("{asker} {origin:?} is too long")));
        }
        Ok(())
    }
}

fn start() -> TestHost {
    let setup = Setup::new().load_other(plugin!(Updates, "updates"));
    setup.load_other(plugin!(Flip, "flip")).load_other(plugin!(Short, "short")).start()
}

#[test]
fn an_update_sees_the_entry_and_writes_what_the_plugin_makes_of_it() {
    let host = start();
    let reply = host.route("POST", "/x/updates/append/a/1?q=1").body("ab").send().expect(201).is("None,q=1");
    reply.has("Content-Type", "text/csv").has("X-Key", "a/1");
    host.get("a/1").expect(200).is("ab").has("Content-Type", "text/plain");
    let reply = host.route("POST", "/x/updates/append/a/1").body("cd").send().expect(201);
    assert!(reply.text().starts_with("Some("), "{reply}");
    host.get("a/1").is("abcd");
    host.route("POST", "/x/updates/silent/a/1").body("e").send().expect(204).has("X-Silent", "1");
    host.get("a/1").is("abcde").has("Content-Type", "application/octet-stream");
}

#[test]
fn an_update_of_a_transformed_value_sees_it_as_it_was_sent() {
    let host = start();
    for (body, value) in [("ab", "ab"), ("cd", "abcd")] {
        host.route("POST", "/x/updates/append/flip").body(body).send().expect(201);
        host.get("flip").is(value);
        assert_eq!(host.stored("flip"), Some(flip(value.as_bytes())));
    }
}

#[test]
fn an_update_that_fails_leaves_the_entry_as_it_is() {
    let host = start();
    host.put("k", "v").expect(200);
    for (how, status, words) in [
        ("refuse", 418, "on purpose"),
        ("panic", 500, "plugin \"updates\" failed in serve_update"),
        ("empty", 500, "plugin \"updates\" made an empty value"),
        ("type", 500, "plugin \"updates\" set the media type"),
        ("store", 508, "the function of an update cannot send requests"),
    ] {
        let reply = host.route("POST", &format!("/x/updates/{how}/k")).body("w").send().refused(status, words);
        reply.has("Vkog-Plugin", "updates");
        host.get("k").is("v");
    }
    let reply = host.route("POST", "/x/updates/append/k").body("12345678").send();
    reply.refused(413, "updates Plugin is too long").has("Vkog-Plugin", "short");
    host.fail_writes(1);
    host.route("POST", "/x/updates/append/k").body("w").send().expect(503);
    host.get("k").is("v");
    let long = format!("/x/updates/append/{}", "k".repeat(1025));
    host.route("POST", &long).body("w").send().refused(414, "Key too long");
    host.route("POST", "/x/updates/append/k").body("w").send().expect(201);
    host.get("k").is("vw");
}
