//! With the configurations of docs/how-to/reverse-proxy.md, each reverse proxy passes the API on: the table of `/k/{key}`, keys,
//! entity tags, uploads, watches at once, the client's address; and no cache serves an old value, or a value without a token.
//!
//! Provoked with the real proxies, each with the block of the document in which the addresses are replaced. A proxy that is not
//! installed is skipped with a line.

#![cfg(unix)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, Socket, Type};
use vkog_tests::{
    Browser, Client, DEADLINE, ENGINES, Event, Proxy, Server, Setup, amount, bytes, conflict, free_port, pattern,
    workspace,
};

use crate::chromium;
use crate::rows::{self, With};

const PAGE: &str = "docs/how-to/reverse-proxy.md";

/// A configuration of Varnish without any of ours: it caches by default.
const VARNISH_THAT_CACHES: &str = "vcl 4.1;\nbackend default { .host = \"127.0.0.1\"; .port = \"3110\"; }\n";

/// Returns the block of the document in this language.
fn documented(language: &str) -> String {
    let page = fs::read_to_string(workspace().join(PAGE)).expect("the page can be read");
    let start = format!("```{language}\n");
    let (_, rest) = page.split_once(&start).unwrap_or_else(|| panic!("no {language} in {PAGE}"));
    rest.split_once("\n```").expect("a block has an end").0.to_owned() + "\n"
}

/// Returns the configuration of a proxy that caches responses for ten minutes unless the server says otherwise.
fn caching(language: &str) -> String {
    match language {
        "nginx" => {
            let cache = "location / {\n proxy_cache vkog;\n proxy_cache_valid any 10m;\n proxy_cache_lock on;\n";
            documented(language).replace("location / {\n", cache)
        }
        _ => VARNISH_THAT_CACHES.to_owned(),
    }
}

fn through(language: &str, server: &Server) -> Option<(Proxy, Client)> {
    started(language, &documented(language), server)
}

fn started(language: &str, block: &str, server: &Server) -> Option<(Proxy, Client)> {
    let proxy = Proxy::start(language, block, server.address())?;
    let client = server.client_through(proxy.address());
    Some((proxy, client))
}

/// Connects to a proxy from another address of this machine.
fn connected(proxy: &Proxy, from: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be made");
    let address = |text: &str| text.parse::<SocketAddr>().expect("it is an address");
    socket.bind(&address(&format!("{from}:0")).into()).expect("the whole network is this machine's");
    socket.connect(&address(proxy.address()).into()).expect("it listens");
    socket.into()
}

fn the_table_passes(language: &str) {
    for with in [With { bytes: true, conflict: true }, With { bytes: false, conflict: false }] {
        let mut setup = Setup::new().args(["--max-size", "1000", "--max-value", "1000000", "--fsync", "never"]);
        if with.bytes {
            setup = setup.load(bytes());
        }
        if with.conflict {
            setup = setup.load(conflict());
        }
        let server = setup.start();
        let Some((_proxy, client)) = through(language, &server) else { return };
        for (name, row) in rows::ALL {
            eprintln!("{language}: {name}");
            row(&client, with);
            for key in ["k", "photo"] {
                server.delete(key);
            }
        }
    }
}

fn keys_stay_intact(language: &str) {
    let server = Setup::new().args(["--fsync", "never"]).start();
    let Some((_proxy, client)) = through(language, &server) else { return };
    let paths = [
        "/k/a//b",
        "/k//a",
        "/k/a/",
        "/k/a%2Fc",
        "/k/a%2F%2Fc",
        "/k/a%25",
        "/k/a%252F",
        "/k/a%20b",
        "/k/a+b",
        "/k/%C3%BC%E2%98%83%F0%9F%94%91",
        "/k/a%3Fb",
        "/k/a%23b",
        "/k/a;b=c&d",
        "/k/a:b@c!$'()*,",
        "/k/a%5Cb",
        "/k/%22quoted%22",
    ];
    for path in paths {
        let put = client.path("PUT", path).body(path).send();
        assert_eq!(put.status, 200, "{language}: {put}");
        // What arrived is what the server has under that path.
        server.path("GET", path).send().expect(200).is(path);
        client.path("GET", path).send().expect(200).is(path);
    }
    server.path("GET", "/keys?count").send().expect(200).says(&format!("\"count\": {}", paths.len()));
    for path in paths {
        client.path("DELETE", path).send().expect(200);
    }
    server.path("GET", "/keys?count").send().expect(200).says("\"count\": 0");
}

fn entity_tags_stay_strong(language: &str) {
    let server = Setup::new().args(["--fsync", "never"]).start();
    let Some((_proxy, client)) = through(language, &server) else { return };
    let value = "<p>compressible</p>".repeat(1000);
    server.key("PUT", "page").header("Content-Type", "text/html").body(&value).send().expect(200);
    let tag = server.get("page").header("ETag").expect("a value has a tag").to_owned();
    let wire = || server.wire_over(TcpStream::connect(_proxy.address()).expect("it listens"));
    let get = |fields: &str| {
        let mut wire = wire();
        wire.send(format!("GET /k/page HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}\r\n")).reply()
    };
    let compressed = get("Accept-Encoding: gzip, deflate, br\r\n").expect(200).has("ETag", &tag);
    assert!(compressed.header("Content-Encoding").is_none(), "{language}: {compressed}");
    client.key("GET", "page").header("If-None-Match", &tag).send().expect(304);
    client.key("GET", "page").header("If-Match", "\"7\"").send().expect(412);
    client.key("GET", "page").header("Range", "bytes=1-3").send().expect(206).is(&value[1..4]);
    client.key("PUT", "page").header("If-Match", "\"7\"").body("other").send().expect(412);
    client.key("PUT", "page").header("If-None-Match", "*").body("other").send().expect(412);
    client.key("PUT", "page").header("If-Match", &tag).body("other").send().expect(200);
    server.get("page").expect(200).is("other");
}

fn a_watch_delivers_each_event_at_once(language: &str) {
    let server = Setup::new().args(["--fsync", "never"]).start();
    let Some((proxy, client)) = through(language, &server) else { return };
    let wire = || server.wire_over(TcpStream::connect(proxy.address()).expect("it listens"));
    // An event that waits for the next one never arrives.
    let watching = server.try_watch_over(wire(), "prefix=w", "");
    let mut watching = watching.unwrap_or_else(|refused| panic!("{language}: {refused}\n{}", proxy.log()));
    for round in 0..5 {
        client.put(&format!("w{round}"), "v").expect(200);
        let Event { data, .. } = watching.event().expect("the stream continues");
        assert_eq!(data["key"], format!("w{round}"), "{language}");
    }
    let last = watching.last_id.expect("an event has an id");
    drop(watching);
    client.delete("w0").expect(200);
    let resumed = server.try_watch_over(wire(), "prefix=w", &format!("Last-Event-ID: {last}\r\n"));
    let event = resumed.unwrap_or_else(|refused| panic!("{language}: {refused}")).event();
    assert_eq!(event.expect("the stream continues").name, "delete", "{language}");
}

fn chunked(value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in value.chunks(60_000) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

const CHUNKED_PUT: &str = "PUT /k/large HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n";

fn uploads_pass_up_to_the_limit(language: &str) {
    let server = Setup::new().args(["--fsync", "never", "--max-value", "20MiB"]).start();
    let Some((proxy, client)) = through(language, &server) else { return };
    let wire = || server.wire_over(TcpStream::connect(proxy.address()).expect("it listens"));
    let value = pattern(20_000_000);
    wire().send(format!("{CHUNKED_PUT}\r\n")).send(chunked(&value)).reply().expect(200);
    server.get("large").expect(200).is(&value);
    client.get("large").expect(200).is(&value);
    let mut expecting = wire();
    expecting.send(format!("{CHUNKED_PUT}Expect: 100-continue\r\n\r\n"));
    expecting.reply().expect(100);
    expecting.send("5\r\nhello\r\n0\r\n\r\n");
    // A proxy may send its own 100, and then the server's.
    let reply = std::iter::repeat_with(|| expecting.reply()).find(|reply| reply.status != 100).expect("it is endless");
    reply.expect(200);
    client.get("large").expect(200).is("hello");
    if ["caddyfile", "squid"].contains(&language) {
        // They end the connection while the client is still sending, as the document says.
        return;
    }
    // The client sees why, however the proxy takes the early response.
    let large = pattern(24 << 20);
    let refused = wire().send(format!("{CHUNKED_PUT}\r\n")).send(chunked(&large)).reply();
    assert_eq!(refused.status, 413, "{language}: {refused}");
    let head = format!("PUT /k/large HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n", large.len());
    let refused = wire().send(head).send(&large).reply();
    assert_eq!(refused.status, 413, "{language}: {refused}");
    client.get("large").expect(200).is("hello");
}

fn chunked_uploads_are_streamed(language: &str) {
    // Not VKOG, but a server that says what has arrived.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let upstream = listener.local_addr().expect("it is bound").to_string();
    let Some(proxy) = Proxy::start(language, &documented(language), &upstream) else { return };
    let mut client = TcpStream::connect(proxy.address()).expect("it listens");
    // Apache waits for 16 KiB.
    let first = "first".repeat(4000);
    client.write_all(format!("{CHUNKED_PUT}\r\n4e20\r\n{first}\r\n").as_bytes()).expect("it reads");
    let (sender, arrived) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sender) = (stream.expect("a connection"), sender.clone());
            std::thread::spawn(move || {
                let (mut text, mut piece) = (Vec::new(), [0; 4096]);
                while let Ok(length) = stream.read(&mut piece) {
                    text.extend_from_slice(&piece[..length]);
                    if length == 0 || text.windows(5).any(|five| five == b"first") && sender.send(()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    assert!(arrived.recv_timeout(DEADLINE).is_ok(), "{language} does not stream an upload\n{}", proxy.log());
}

fn the_host_and_the_client_reach_the_server(language: &str) {
    let config =
        "allowed-hosts = [\"vkog.example\"]\n[proxy]\ntrusted = [\"127.0.0.1\"]\nheader = \"X-Forwarded-For\"\n";
    let server = Setup::new().config(config).args(["--log-requests"]).start();
    let Some((proxy, _)) = through(language, &server) else { return };
    for forged in ["", "X-Forwarded-For: 192.0.2.1\r\n"] {
        let mut wire = server.wire_over(connected(&proxy, "127.0.0.2"));
        let id = format!("{language}-{}", forged.len());
        wire.send(format!(
            "PUT /k/k HTTP/1.1\r\nHost: vkog.example\r\nX-Request-Id: {id}\r\nContent-Length: 1\r\n{forged}\r\nv"
        ));
        wire.reply().expect(200);
        server.logs(&[&id, "127.0.0.2"]);
    }
    // A page whose name an attacker has bound to the proxy is refused.
    let mut wire = server.wire_over(connected(&proxy, "127.0.0.2"));
    let reply = wire.send("GET /k/k HTTP/1.1\r\nHost: evil.example\r\n\r\n").reply();
    assert_eq!(reply.status, 421, "{language}: {reply}");
}

/// A configuration with a token that may write, and one that may only read keys below `public/`.
const TOKENS: &str = "[[access.tokens]]\nname = \"writer\"\ntoken = \"k2J9vQ7mR4xW\"\nright = \"write\"\n\
    [[access.tokens]]\nname = \"reader\"\ntoken = \"vD4mZ8sT1yNq\"\nright = \"read\"\nprefix = \"public/\"\n";

fn no_value_is_served_without_its_token(language: &str, block: &str) {
    let server = Setup::new().config(TOKENS).start();
    let Some((_proxy, client)) = started(language, block, &server) else { return };
    let with = |token: &str, method: &str, key: &str| {
        client.key(method, key).header("Authorization", format!("Bearer {token}"))
    };
    for key in ["secret", "public/a"] {
        with("k2J9vQ7mR4xW", "PUT", key).body("value").send().expect(200);
    }
    for _ in 0..3 {
        for (key, readers) in [("secret", 403), ("public/a", 200)] {
            with("k2J9vQ7mR4xW", "GET", key).send().expect(200).is("value");
            client.get(key).expect(401);
            client.key("HEAD", key).send().expect(401);
            with("vD4mZ8sT1yNq", "GET", key).send().expect(readers);
            with("unknown", "GET", key).send().expect(401);
        }
        client.path("GET", "/keys").send().expect(401);
        client.path("GET", "/metrics").send().expect(401);
    }
}

fn no_old_value_is_served(language: &str, block: &str) {
    let server = Setup::new().args(["--fsync", "never"]).start();
    let Some((_proxy, client)) = started(language, block, &server) else { return };
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut expected: [Option<String>; 8] = Default::default();
    for step in 0..amount(2000, 10_000) {
        let number = random(8) as usize;
        let key = format!("k{number}");
        match random(4) {
            0 => {
                let value = format!("value {step}");
                client.put(&key, &value).expect(200);
                expected[number] = Some(value);
            }
            1 => {
                let status = if expected[number].take().is_some() { 200 } else { 404 };
                client.delete(&key).expect(status);
            }
            _ => match &expected[number] {
                Some(value) => drop(client.get(&key).expect(200).is(value)),
                None => drop(client.get(&key).expect(404)),
            },
        }
    }
}

/// The tests of one proxy, whose block in the document has this language.
macro_rules! tests_of {
    ($module:ident, $language:literal) => {
        mod $module {
            #[test]
            fn the_table_passes() {
                super::the_table_passes($language);
            }

            #[test]
            fn keys_stay_intact() {
                super::keys_stay_intact($language);
            }

            #[test]
            fn entity_tags_stay_strong() {
                super::entity_tags_stay_strong($language);
            }

            #[test]
            fn a_watch_delivers_each_event_at_once() {
                super::a_watch_delivers_each_event_at_once($language);
            }

            #[test]
            fn uploads_pass_up_to_the_limit() {
                super::uploads_pass_up_to_the_limit($language);
            }

            #[test]
            fn chunked_uploads_are_streamed() {
                super::chunked_uploads_are_streamed($language);
            }

            #[test]
            fn the_host_and_the_client_reach_the_server() {
                super::the_host_and_the_client_reach_the_server($language);
            }

            #[test]
            fn no_value_is_served_without_its_token() {
                super::no_value_is_served_without_its_token($language, &super::documented($language));
            }
        }
    };
}

tests_of!(nginx, "nginx");
tests_of!(apache, "apache");
tests_of!(haproxy, "haproxy");
tests_of!(caddy, "caddyfile");
tests_of!(varnish, "vcl");
tests_of!(squid, "squid");

#[test]
fn the_web_page_watches_through_nginx_across_a_restart() {
    let Some(mut browser) = Browser::start("") else {
        return eprintln!("skipped: chromium is not installed (apt-get install chromium)");
    };
    let address = format!("127.0.0.1:{}", free_port());
    let Some(proxy) = Proxy::start("nginx", &documented("nginx"), &address) else { return };
    let setup = Setup::new();
    let serve = || setup.start_with(["--no-plugins", "--file", "store.vkog", "--listen", &address]);
    let until = |condition: &str| format!("while (!({condition})) await new Promise(done => setTimeout(done, 10));");
    let server = serve();
    let tab = browser.tab();
    browser.go(&tab, &format!("http://{}/", proxy.address()));
    browser.run(&tab, &until("source?.readyState == EventSource.OPEN"));
    server.put("before", "v").expect(200);
    browser.run(&tab, &until("$('changes').textContent.includes('put before')"));
    server.stop().expect(0);
    // nginx answers for the server that is gone.
    browser.run(&tab, &until("await fetch('/livez').then(reply => reply.status == 502)"));
    let server = serve();
    browser.run(&tab, &until("source?.readyState == EventSource.OPEN"));
    server.put("after", "v").expect(200);
    browser.run(&tab, &until("$('changes').textContent.includes('put after')"));
    server.stop().expect(0);
}

/// The functions of a page of another origin that watches with tickets. `SERVER` is the address of the proxy.
const WATCHING: &str = r#"
globalThis.until = async condition => { while (!await condition()) await new Promise(done => setTimeout(done, 10)); };
const authorized = (path, method, body) =>
  fetch(SERVER + path, { method, body, headers: { Authorization: "Bearer k2J9vQ7mR4xW" } });
globalThis.send = (path, method, body) => authorized(path, method, body).then(reply => reply.status, () => "failed");
globalThis.watch = async () => {
  globalThis.ticket = (await (await authorized("/watch/tickets", "POST")).json()).ticket;
  globalThis.seen = [];
  globalThis.events = new EventSource(`${SERVER}/watch?ticket=${ticket}`);
  for (const name of ["put", "end"]) events.addEventListener(name, event => seen.push(name + " " + event.data));
  await until(() => events.readyState == EventSource.OPEN);
};
"#;

#[test]
fn a_page_of_a_listed_origin_watches_through_nginx_until_its_token_is_revoked() {
    let Some(mut browser) = Browser::start("MAP evil.example 127.0.0.1") else {
        return eprintln!("skipped: chromium is not installed (apt-get install chromium)");
    };
    let page = chromium::attacker();
    let cors = format!("[cors]\norigins = [\"http://127.0.0.1:{page}\"]\n[proxy]\ntrusted = [\"127.0.0.1\"]\n");
    for engine in ENGINES {
        let address = format!("127.0.0.1:{}", free_port());
        let Some(proxy) = Proxy::start("nginx", &documented("nginx"), &address) else { return };
        let setup = Setup::new();
        setup.write_config(&format!("{TOKENS}{cors}"));
        let serve = || {
            let arguments = ["--no-plugins", "--config", "vkog.toml", "--http", engine, "--listen", &address];
            setup.start_with(arguments)
        };
        let functions = format!("const SERVER = \"http://{}\";\n{WATCHING}", proxy.address());
        let server = serve();
        let [listed, foreign] = ["127.0.0.1", "evil.example"].map(|host| {
            let tab = browser.tab();
            browser.go(&tab, &format!("http://{host}:{page}/"));
            browser.run(&tab, &functions);
            tab
        });
        let sees_put = |key: &str| {
            let put = format!("const put = await send('/k/{key}', 'PUT', 'v')");
            format!("{put}; await until(() => seen.join().includes('put {{\"key\":\"{key}\"')); return put")
        };
        browser.run(&listed, "await watch()");
        assert_eq!(browser.run(&listed, &sees_put("before")), 200, "{engine}");

        // The foreign page has a token and a ticket, and the browser lets it read nothing.
        let ticket = browser.run(&listed, "return ticket");
        assert_eq!(browser.run(&foreign, "return await send('/k/before', 'GET')"), "failed", "{engine}");
        assert_eq!(browser.run(&foreign, "return await send('/k/foreign', 'PUT', 'v')"), "failed", "{engine}");
        let url = format!("http://{}/watch?since=0&ticket={}", proxy.address(), ticket.as_str().expect("it is text"));
        let refused = "return await new Promise(done => events.onopen = events.onerror = event => done(event.type))";
        let outcome = browser.run(&foreign, &format!("const events = new EventSource({url:?}); {refused}"));
        assert_eq!(outcome, "error", "{engine}");

        // nginx answers 502 meanwhile, which ends an EventSource, and the ticket is unknown afterwards.
        server.stop().expect(0);
        browser.run(&listed, "await until(() => events.readyState == EventSource.CLOSED)");
        let server = serve();
        assert_eq!(browser.run(&listed, "return await send('/k/foreign', 'GET')"), 404, "{engine}");
        browser.run(&listed, "await watch()");
        assert_eq!(browser.run(&listed, &sees_put("after")), 200, "{engine}");

        setup.write_config(&format!("{}{cors}", TOKENS.replace("k2J9vQ7mR4xW", "wN5bY8cL3fHt")));
        server.signal("HUP");
        server.logs(&["reloaded access"]);
        browser.run(&listed, "await until(() => events.readyState == EventSource.CLOSED)");
        let end = browser.run(&listed, "return seen.at(-1)");
        assert!(end.as_str().is_some_and(|end| end.starts_with("end ") && end.contains("401")), "{engine}: {end}");
        // A listed origin may read why.
        assert_eq!(browser.run(&listed, "return await send('/watch/tickets', 'POST')"), 401, "{engine}");
        server.stop().expect(0);
    }
}

#[test]
fn a_cache_of_nginx_serves_no_value_without_its_token() {
    no_value_is_served_without_its_token("nginx", &caching("nginx"));
}

#[test]
fn a_cache_of_varnish_serves_no_value_without_its_token() {
    no_value_is_served_without_its_token("vcl", &caching("vcl"));
}

#[test]
fn a_cache_of_nginx_serves_no_old_value() {
    no_old_value_is_served("nginx", &caching("nginx"));
}

#[test]
fn a_cache_of_varnish_serves_no_old_value() {
    no_old_value_is_served("vcl", &caching("vcl"));
}
