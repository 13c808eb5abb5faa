//! The example plugins do what their READMEs say.
//!
//! Provoked by loading the built libraries into a server.

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vkog_tests::{DEADLINE, ENGINES, Setup, artefacts, bytes, conflict};

#[test]
fn json_only_refuses_invalid_json_with_422_and_its_position() {
    let server = Setup::new().load(artefacts().library("vkog-json-only")).start();
    for value in ["{\"name\": \"Ada\"}", "[1, 2.5, null]", "\"text\"", "7"] {
        server.post("k", value).expect(200);
        server.put("k", value).expect(200);
        server.get("k").expect(200).is(value);
    }
    for value in ["{\"name\": Ada}", "{", "text", "1 2", "\u{feff}1"] {
        for reply in [server.post("k", value), server.put("k", value), server.post("new", value)] {
            reply.refused(422, "Value is not JSON: ").has("Vkog-Plugin", "json-only").says("line 1 column ");
        }
    }
    server.put("k", b"\"\xff\"").refused(422, "Value is not JSON: ");
    server.get("k").expect(200).is("7");
    server.get("new").expect(404);
}

#[test]
fn json_only_refuses_before_anything_is_reserved() {
    let plugins = artefacts();
    let setup = Setup::new().load(bytes()).load(conflict()).load(plugins.library("vkog-json-only"));
    let server = setup.args(["-s", "100", "--max-value", "1MiB"]).start();
    for _ in 0..10 {
        server.post("k", "no JSON, and twenty bytes").refused(422, "Value is not JSON: ");
    }
    server.post("k", format!("\"{}\"", "x".repeat(97))).expect(200);
}

#[test]
fn bearer_accepts_only_requests_with_the_token() {
    let config = "[plugins.bearer]\ntoken = \"s3cret\"\nrealm = \"the shop\"\n";
    let server = Setup::new().load(artefacts().library("vkog-bearer")).load(conflict()).config(config).start();
    let ask = |method: &str, token: &str| {
        let request = server.key(method, "k");
        let request = if token.is_empty() { request } else { request.header("Authorization", token) };
        if method == "POST" || method == "PUT" { request.body(method).send() } else { request.send() }
    };
    for method in ["GET", "POST", "PUT", "DELETE"] {
        for token in ["", "s3cret", "Bearer", "Bearer wrong", "Bearer s3cret2", "Bearer S3CRET", "Basic s3cret"] {
            let reply = ask(method, token).refused(401, "");
            reply.has("Vkog-Plugin", "bearer").has("WWW-Authenticate", "Bearer realm=\"the shop\"");
        }
    }
    ask("HEAD", "").expect(401).has("WWW-Authenticate", "Bearer realm=\"the shop\"");
    ask("POST", "Bearer s3cret").expect(200);
    ask("GET", "bearer s3cret").expect(200).is("POST");
    ask("HEAD", "Bearer s3cret").expect(200);
    ask("PUT", "Bearer s3cret").expect(200);
    ask("DELETE", "Bearer s3cret").expect(200);
    ask("GET", "Bearer s3cret").expect(404);
    assert!(!server.log().contains("s3cret"), "the token is in the log:\n{}", server.log());
}

#[test]
fn bearer_accepts_store_calls_of_plugins_and_no_client_that_claims_to_be_one() {
    let config = "[plugins.bearer]\ntoken = \"s3cret\"\n";
    let plugins = artefacts();
    let server =
        Setup::new().load(plugins.library("vkog-bearer")).load(plugins.library("drill")).config(config).start();
    let ask = |token: &str, asked: &str| {
        let request = server.path("PUT", &format!("/k/k?ask={asked}:other")).header("Authorization", token);
        request.header("Vkog-Plugin", "drill").body("v").send()
    };
    for asked in ["post", "put", "get", "delete"] {
        ask("Bearer wrong", &format!("before_put:{asked}")).expect(401).has("Vkog-Plugin", "bearer");
        ask("Bearer s3cret", &format!("before_put:{asked}")).expect(200);
    }
    server.logs_no(&["before_put: refused"]);
    ask("Bearer s3cret", "after_put:post").expect(200).has("X-Asked", "done");
    ask("Bearer s3cret", "after_put:get").expect(200).has("X-Asked", "found sent");
    server.get("other").expect(401);
}

#[test]
fn bearer_does_not_start_without_a_token() {
    let setup = Setup::new().load(artefacts().library("vkog-bearer"));
    let exit = setup.fail().expect(1);
    let way_out = "correct [plugins.bearer] in the file of --config [bad-settings]";
    assert!(exit.one_error().contains("token") && exit.one_error().ends_with(way_out), "{exit}");
    let exit = setup.config("[plugins.bearer]\ntoken = \"\"\n").fail().expect(1);
    assert!(exit.one_error().contains("token is empty") && exit.one_error().ends_with("[create-failed]"), "{exit}");
}

#[test]
fn limit_refuses_requests_beyond_its_rate_with_429() {
    let config = "[plugins.limit]\nrate = 1\nburst = 3\nby = \"ip\"\n";
    for engine in ENGINES {
        let setup = Setup::new().args(["--http", engine]).load(artefacts().library("vkog-limit")).config(config);
        let server = setup.start();
        let batch = r#"[{"op":"put","key":"a","value":"1"},{"op":"get","key":"a"},{"op":"get","key":"b"}]"#;
        let batch = || server.path("POST", "/batch").header("Content-Type", "application/json").body(batch).send();
        batch().expect(200);
        let refused = (0..100).map(|_| server.get("a")).find(|reply| reply.status != 200);
        let refused = refused.expect("a refusal").has("Retry-After", "1").has("Vkog-Plugin", "limit");
        refused.refused(429, "Too many requests: 1 per second are allowed; try again later");
        // These are not limited.
        for path in ["/livez", "/readyz", "/plugins", "/"] {
            server.path("GET", path).send().expect(200);
        }
        let metrics = server.path("GET", "/metrics").send().expect(200).text();
        let total = metrics.lines().find(|line| line.starts_with("vkog_plugin_limit_limited_total"));
        let total = total.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
        assert!(total.is_some_and(|total| total >= 1), "{metrics}");
        server.stop().expect(0);
    }
}

#[test]
fn tenant_keeps_the_entries_of_tokens_apart() {
    let token = |name: &str, rest: &str| {
        format!("[[access.tokens]]\nname = {name:?}\ntoken = \"{name}-secret\"\nright = \"write\"\n{rest}\n")
    };
    let tokens = token("ann", "prefix = \"ann/\"") + &token("bob", "") + &token("eve", "");
    let tenants = "[plugins.tenant.tokens]\nann = \"ann/\"\nbob = \"bob/\"\n";
    for engine in ENGINES {
        let setup = Setup::new().args(["--http", engine]).load(artefacts().library("vkog-tenant")).load(conflict());
        let setup = setup.config(format!("{tokens}{tenants}"));
        let server = setup.start();
        let send = |token: &str, method: &str, path: &str, body: &str| {
            let request = server.path(method, path).header("Authorization", format!("Bearer {token}-secret"));
            if body.is_empty() { request.send() } else { request.body(body).send() }
        };
        for name in ["ann", "bob"] {
            send(name, "POST", "/k/a", &format!("of {name}")).expect(200);
            send(name, "POST", "/k/a/1", name).expect(200);
            send(name, "POST", "/k/a", "again").expect(409);
        }
        for name in ["ann", "bob"] {
            send(name, "GET", "/k/a", "").expect(200).is(format!("of {name}"));
            send(name, "GET", &format!("/k/{name}/a"), "").expect(404);
            let listed = send(name, "GET", "/keys?delimiter=/", "").expect(200);
            let listed: Value = serde_json::from_slice(&listed.body).expect("it is JSON");
            assert_eq!((&listed["keys"][0]["key"], &listed["prefixes"]), (&json!("a"), &json!(["a/"])), "{listed}");
            send(name, "GET", "/keys?count", "").expect(200).says("2");
        }
        send("ann", "DELETE", "/keys?all", "").expect(200).says("\"deleted\": 2");
        send("bob", "GET", "/keys?count", "").expect(200).says("2");
        send("eve", "GET", "/k/bob/a", "").refused(403, "Not allowed: send an access token that has entries here");
        server.path("GET", "/k/a").send().expect(401);
        server.stop().expect(0);
        // Whole keys.
        let setup =
            Setup::new().args(["--http", engine]).load(artefacts().library("vkog-tenant")).store(setup.store_file());
        let server = setup.config(format!("{tokens}[plugins.tenant]\nothers = \"whole\"\n{tenants}")).start();
        let get = |path: &str| server.path("GET", path).header("Authorization", "Bearer eve-secret").send();
        get("/k/bob/a").expect(200).is("of bob");
        get("/keys?count").expect(200).says("2");
        server.stop().expect(0);
    }
}

/// Returns the lines of an audit file.
fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("the audit file exists");
    assert!(text.ends_with('\n'), "the last line is cut off: {text}");
    let value = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON, {error}: {line}"));
    text.lines().map(value).collect()
}

#[test]
fn audit_writes_exactly_one_line_for_every_change() {
    let setup = Setup::new().load(artefacts().library("vkog-audit")).load(conflict());
    let setup = setup.config("[plugins.audit]\nfile = \"audit.jsonl\"\n");
    let server = setup.start();
    let first = server.post("a \"key\"\n", "12345").expect(200).revision();
    let second = server.put("a \"key\"\n", "123").expect(200).revision();
    server.get("a \"key\"\n").expect(200);
    server.post("a \"key\"\n", "12345").expect(409);
    server.put("absent", "1").expect(404);
    server.delete("absent").expect(404);
    server.delete("a \"key\"\n").expect(200);
    server.stop().expect(0);
    let lines = lines(&setup.folder().join("audit.jsonl"));
    let told: Vec<_> = lines
        .iter()
        .map(|line| json!([line["method"], line["key"], line["before"], line["after"], line["value_bytes"]]))
        .collect();
    let key = "a \"key\"\n";
    let expected = [
        json!(["POST", key, null, first, 5]),
        json!(["PUT", key, first, second, 3]),
        json!(["DELETE", key, second, null, 0]),
    ];
    assert_eq!(told, expected);
    for line in &lines {
        assert!(line["client"].as_str().is_some_and(|client| client.starts_with("127.0.0.1:")), "{line}");
        assert!(line["time_ms"].as_u64().is_some_and(|time| time > 1_500_000_000_000), "{line}");
    }
}

#[test]
fn audit_records_every_write_of_many_clients_and_appends_after_a_restart() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 100;

    let setup = Setup::new().load(artefacts().library("vkog-audit")).load(bytes());
    let setup = setup.config("[plugins.audit]\nfile = \"audit.jsonl\"\n");
    for start in 1..=2 {
        let server = setup.start();
        thread::scope(|scope| {
            for (client, mut wire) in server.wires(CLIENTS).into_iter().enumerate() {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        wire.request("PUT", &format!("/k/{start}/{client}/{round}"), b"v").expect(200);
                    }
                });
            }
        });
        server.stop().expect(0);
        let lines = lines(&setup.folder().join("audit.jsonl"));
        assert_eq!(lines.len(), start * CLIENTS * ROUNDS);
        let keys: std::collections::BTreeSet<_> = lines.iter().map(|line| line["key"].to_string()).collect();
        assert_eq!(keys.len(), lines.len(), "a key comes twice");
    }
}

#[cfg(unix)]
#[test]
fn audit_writes_every_line_to_a_slow_file_before_the_stop_ends() {
    const CHANGES: usize = 2000;

    // A pipe buffers fewer bytes than these lines, so the plugin keeps the rest until the test reads.
    let setup = Setup::new().load(artefacts().library("vkog-audit")).args(["--fsync", "never"]);
    let setup = setup.config("[plugins.audit]\nfile = \"audit.jsonl\"\n");
    let pipe = setup.folder().join("audit.jsonl");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
    assert!(made.success(), "no pipe could be made");
    let (go, wait) = mpsc::channel::<()>();
    let reader = thread::spawn(move || {
        let mut file = std::fs::File::open(pipe).expect("the pipe can be opened");
        wait.recv().expect("the test says when to read");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut file, &mut text).expect("the pipe can be read");
        text.lines().count()
    });
    let server = setup.start();
    let mut wire = server.wire();
    for number in 0..CHANGES {
        wire.request("PUT", &format!("/k/{number}"), b"v").expect(200);
    }
    let (told, stopped) = mpsc::channel();
    let stopping = thread::spawn(move || told.send(server.stop()));
    let early = stopped.recv_timeout(Duration::from_millis(500));
    assert!(early.is_err(), "the server stops without waiting for the plugin's file");
    go.send(()).expect("the reader waits");
    assert_eq!(reader.join().expect("the pipe is read to its end"), CHANGES);
    stopped.recv_timeout(DEADLINE).expect("the server stops").expect(0);
    stopping.join().expect("it has sent a message").expect("a message was sent");
}
