#![forbid(unsafe_code)]
//! Serves routes, some of which behave badly: they panic, never return, or send more than a client reads.

use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use vkog_plugin_api::*;

const TEXT: &str = "text/plain";

struct Serves {
    host: Host,
}

impl Plugin for Serves {
    type Settings = NoSettings;

    fn create(host: Host, _settings: NoSettings) -> Result<Self, CreateError> {
        Ok(Serves { host })
    }
}

impl Serves {
    fn log(&self, line: &str) {
        self.host.log(Level::Info, line);
    }

    /// Waits until the store has the key `released`, so that a request can wait beyond a reload.
    fn wait(&self) -> Verdict {
        self.log("serve waits");
        let began = Instant::now();
        while self.host.get("released")?.is_none() {
            // Shorter than a test's timeout, so that a deadlock is reported here.
            if began.elapsed() > Duration::from_secs(30) {
                return Err(Refusal::new(500, "nothing released this request"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn entry(&self, request: &RouteRequest<'_>) -> Verdict {
        let key = request.parameter("key").unwrap_or_default();
        if request.method() == "PUT" {
            self.host.put(key, request.body())?;
            return Ok(());
        }
        let found = self.host.get(key)?.ok_or_else(|| Refusal::new(404, "Key not found"))?;
        request.respond(200, TEXT, &found.value);
        Ok(())
    }

    fn keys(&self, request: &RouteRequest<'_>) -> Verdict {
        let mut keys = Vec::new();
        self.host.for_each("", |key, _| {
            keys.push(format!("{key}\n"));
            ControlFlow::Continue(())
        })?;
        keys.sort();
        request.respond(200, TEXT, keys.concat().as_bytes());
        Ok(())
    }

    /// Sends parts of 64 KiB until it has sent them all, or the client has gone.
    fn stream(&self, request: &RouteRequest<'_>) -> Verdict {
        let count: usize = request.parameter("count").and_then(|count| count.parse().ok()).unwrap_or_default();
        request.start(200, TEXT);
        let sent = (0..count).take_while(|_| request.send(&[b'x'; 64 << 10])).count();
        self.log(&format!("sent {sent} of {count} parts"));
        Ok(())
    }
}

impl Serve for Serves {
    const ROUTES: &'static [Route] = &[
        Route::new("GET", "/hello/{name}", Permission::None, "Greet."),
        Route::new("GET", "/k/{*key}", Permission::Read, "Return a value."),
        Route::new("PUT", "/k/{*key}", Permission::Write, "Set a value."),
        Route::new("GET", "/keys", Permission::Read, "List the keys."),
        Route::new("POST", "/length", Permission::Write, "Return the length and the type of the body."),
        Route::new("GET", "/stream/{count}", Permission::Read, "Send parts."),
        Route::new("GET", "/admin", Permission::Admin, "Administer."),
        Route::new("GET", "/status/{status}", Permission::None, "Respond with a status."),
        Route::new("POST", "/behave/{how}", Permission::Write, "Behave in this way."),
    ];

    fn serve(&self, request: &RouteRequest<'_>) -> Verdict {
        let parameter = |name| request.parameter(name).unwrap_or_default();
        match request.path().split('/').nth(1).unwrap_or_default() {
            "hello" => {
                request.add_header("X-Method", request.method());
                request.add_header("X-Query", request.query());
                request.add_header("Content-Length", "7");
                request.respond(200, TEXT, format!("hello {}\n", parameter("name")).as_bytes());
            }
            "k" => return self.entry(request),
            "keys" => return self.keys(request),
            "length" => {
                let text = format!("{} of {:?}", request.body().len(), request.content_type());
                request.respond(200, TEXT, text.as_bytes());
            }
            "stream" => return self.stream(request),
            "admin" => request.respond(200, TEXT, b"administered"),
            "status" => request.respond(parameter("status").parse().unwrap_or_default(), TEXT, b"a body"),
            _ => match parameter("how") {
                "panic" => panic!("on purpose"),
                "refuse" => return Err(Refusal::new(418, "refused on purpose").with_header("X-Purpose", "tea")),
                "hang" => {
                    self.log("serve hangs");
                    loop {
                        thread::park();
                    }
                }
                "wait" => {
                    self.wait()?;
                    request.respond(200, TEXT, b"waited");
                }
                "break" => {
                    request.start(200, TEXT);
                    request.send(b"the first part");
                    panic!("on purpose");
                }
                "pause" => {
                    request.start(200, TEXT);
                    request.send(b"one ");
                    // Longer than the time after which other streams send a heartbeat.
                    thread::sleep(Duration::from_secs(11));
                    request.send(b"two");
                }
                "twice" => {
                    request.respond(200, TEXT, b"one");
                    request.respond(500, TEXT, b"two");
                    assert!(!request.send(b"three") && !request.start(500, TEXT));
                }
                // No response at all.
                _ => {}
            },
        }
        Ok(())
    }
}

impl ServeUpdate for Serves {
    const ROUTES: &'static [Route] =
        &[Route::new("POST", "/append/{*key}", Permission::None, "Append to a value, and return its length.")];

    fn serve_update(&self, request: &UpdateRequest<'_>) -> Result<Vec<u8>, Refusal> {
        let before = request.entry().map_or(&[][..], |entry| entry.value());
        let value = [before, request.body()].concat();
        request.add_header("X-Key", request.key());
        request.set_value_type(TEXT);
        request.respond(201, TEXT, value.len().to_string().as_bytes());
        Ok(value)
    }
}

export_plugin!(Serves);
