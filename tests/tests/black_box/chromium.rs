//! The rules of browsers.rs hold in a real browser: a page of another origin or with a rebound DNS name can neither
//! read nor write, a stored page cannot read the token, and the web UI works.
//!
//! Provoked with Chromium and the requests that a page can make. Where Chromium is not installed (apt-get install
//! chromium), the tests print that they are skipped.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::Value;
use vkog_tests::{Browser, Certificate, ENGINES, Proxy, Server, Setup, TOKEN, Tab, administered};

const SECRET: &str = "what only this machine may read";

/// All attempts that a page can make; returns what it could read. `SERVER` is the target, `OWN` whether that is its own origin.
const ATTACK: &str = r#"
const read = [];
const attempt = async what => { try { read.push(String(await what())); } catch { /* Refused by the browser. */ } };
const text = (path, init) => attempt(async () => (await fetch(SERVER + path, init)).text());
for (const path of ["/k/secret", "/keys", "/metrics", "/plugins"]) await text(path);
for (const mode of ["no-cors", "cors"]) {
  for (const path of ["/k/secret", "/k/new"]) {
    await text(path, { method: "POST", mode, body: "written" });
    await text(path, { method: "POST", mode, headers: { "Content-Type": "text/plain" }, body: "written" });
    for (const method of ["PUT", "DELETE"]) await text(path, { method, mode, body: method == "PUT" ? "written" : undefined });
  }
}
const batch = JSON.stringify([{ op: "put", key: "new", value: "written" }]);
await text("/batch", { method: "POST", headers: { "Content-Type": "application/json" }, body: batch });
await text("/batch", { method: "POST", mode: "no-cors", body: batch });
const loaded = (name, attributes) => new Promise(done => {
  const element = Object.assign(document.createElement(name), attributes);
  element.onload = element.onerror = () => done(element);
  document.documentElement.append(element);
});
await attempt(async () => (await loaded("iframe", { src: SERVER + "/k/secret" })).contentDocument.body.textContent);
await loaded("img", { src: SERVER + "/k/secret" });
await loaded("script", { src: SERVER + "/k/secret" });
for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
  const frame = document.createElement("iframe");
  frame.name = "into-" + enctype;
  document.documentElement.append(frame);
  const form = Object.assign(document.createElement("form"), { method: "POST", action: SERVER + "/k/form", enctype, target: frame.name });
  form.append(Object.assign(document.createElement("input"), { name: "a", value: "written" }));
  document.documentElement.append(form);
  const done = new Promise(done => frame.onload = done);
  form.submit();
  await done;
  await attempt(() => frame.contentDocument.documentElement.textContent);
}
await attempt(() => new Promise((done, failed) => {
  const events = new EventSource(SERVER + "/watch?since=0&values");
  events.onerror = failed;
  events.addEventListener("put", event => done(event.data));
}));
return read;
"#;

/// Starts a server of the attacker with an empty page. Returns its port.
pub(crate) fn attacker() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // A browser may connect ahead of a request, and then send none.
            std::thread::spawn(move || {
                let page = "<!doctype html><title>attacker</title><body>";
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    page.len()
                );
                let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(format!("{head}{page}").as_bytes()));
            });
        }
    });
    port
}

fn browser() -> Option<Browser> {
    let browser = Browser::start("MAP evil.example 127.0.0.1");
    if browser.is_none() {
        eprintln!("skipped: chromium is not installed (apt-get install chromium)");
    }
    browser
}

fn serving(engine: &str) -> Server {
    let server = Setup::new().config(administered("")).args(["--http", engine, "--fsync", "never"]).start();
    server.put("secret", SECRET).expect(200);
    server
}

/// A configuration in which every request needs [`TOKEN`].
fn closed(config: &str) -> String {
    administered(config).replace("open = true\n", "")
}

/// Makes all attempts on a page, and asserts that nothing was read or written.
#[track_caller]
fn attack(browser: &mut Browser, page: &str, target: &str, server: &Server) {
    let tab = browser.tab();
    browser.go(&tab, page);
    let read = browser.run(&tab, &format!("const SERVER = {target:?};\n{ATTACK}"));
    let read = read.as_array().unwrap_or_else(|| panic!("no list: {read}"));
    let learnt = |text: &Value| {
        let text = text.as_str().unwrap_or_default();
        [SECRET, "\"keys\"", "vkog_", "\"plugins\"", "Ok"].iter().any(|secret| text.contains(secret))
    };
    assert!(!read.iter().any(learnt), "{page} reads {target}: {read:?}\n{}", server.log());
    server.get("secret").expect(200).is(SECRET);
    server.path("GET", "/keys?count").send().expect(200).says("\"count\": 1");
}

#[test]
fn a_page_of_another_origin_can_neither_read_nor_write() {
    let Some(mut browser) = browser() else { return };
    let port = attacker();
    for engine in ENGINES {
        let server = serving(engine);
        let target = format!("http://{}", server.address());
        attack(&mut browser, &format!("http://evil.example:{port}/"), &target, &server);
        // Another port of this machine is another origin, and the same site.
        attack(&mut browser, &format!("http://127.0.0.1:{port}/"), &target, &server);
    }
}

#[test]
fn a_page_with_a_rebound_dns_name_can_neither_read_nor_write() {
    let Some(mut browser) = browser() else { return };
    for engine in ENGINES {
        let server = serving(engine);
        let port = server.address().rsplit(':').next().expect("an address has a port").to_owned();
        // The attacker's page was loaded from this very origin before the name was bound to this machine.
        let rebound = format!("http://evil.example:{port}");
        attack(&mut browser, &format!("{rebound}/livez"), &rebound, &server);
    }
}

/// Returns the status and the ETag of each request of a page to the server, or the error of the browser.
const USE: &str = r#"
const used = [];
const send = async (method, path, init) => {
  try {
    const reply = await fetch(SERVER + path, { method, ...init });
    used.push(`${method} ${reply.status} ${reply.headers.get("ETag") ?? ""} ${method == "GET" ? await reply.text() : ""}`);
    return reply;
  } catch { used.push(`${method} failed`); }
};
const headers = { Authorization: TOKEN };
const put = await send("PUT", "/k/a", { headers: { ...headers, "Content-Type": "text/plain" }, body: "value" });
await send("PUT", "/k/a", { headers: { ...headers, "If-Match": put?.headers.get("ETag") ?? "*" }, body: "other" });
await send("GET", "/k/a", { headers });
await send("GET", "/k/absent", { headers });
await send("DELETE", "/k/a", { headers });
const issued = await send("POST", "/watch/tickets", { headers });
const { ticket } = issued ? await issued.json() : {};
const events = new EventSource(`${SERVER}/watch?since=0&ticket=${ticket}`);
used.push(await new Promise(done => {
  events.onerror = () => done("watch failed");
  events.addEventListener("delete", event => done(event.data));
}));
events.close();
return used;
"#;

#[test]
fn a_page_of_a_listed_origin_can_use_the_server_and_no_other_page_can() {
    let Some(mut browser) = browser() else { return };
    let port = attacker();
    for engine in ENGINES {
        let cors = format!("[cors]\norigins = [\"http://127.0.0.1:{port}\"]\n");
        for config in [closed(&cors), cors.clone()] {
            let server = Setup::new().config(config).args(["--http", engine, "--fsync", "never"]).start();
            let target = format!("http://{}", server.address());
            let page = format!("const SERVER = {target:?}, TOKEN = \"Bearer {TOKEN}\";\n{USE}");
            let tab = browser.tab();
            browser.go(&tab, &format!("http://127.0.0.1:{port}/"));
            let used = browser.run(&tab, &page);
            let used: Vec<&str> = used.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let begins =
                ["PUT 200 \"", "PUT 200 \"", "GET 200 \"", "GET 404 ", "DELETE 200 ", "POST 200 ", "{\"key\":\"a\""];
            let is_used =
                used.len() == begins.len() && used.iter().zip(begins).all(|(used, begin)| used.starts_with(begin));
            assert!(
                is_used && used[2].ends_with(" other") && used[3].ends_with(" Not Found\n"),
                "{used:?}\n{}",
                server.log()
            );
            let tab = browser.tab();
            browser.go(&tab, &format!("http://evil.example:{port}/"));
            let used = browser.run(&tab, &page);
            let failed = |used: &Value| used.as_str().is_some_and(|used| used.ends_with("failed"));
            assert!(used.as_array().is_some_and(|used| used.iter().all(failed)), "{used}\n{}", server.log());
        }
    }
}

/// Types the token into the web UI.
fn type_token(browser: &mut Browser, tab: &Tab) {
    browser.run(tab, &format!("$('token').value = {TOKEN:?}; $('token').dispatchEvent(new Event('change'))"));
}

#[test]
fn a_stored_page_cannot_read_the_token_or_the_store() {
    let Some(mut browser) = browser() else { return };
    let theft = r#"
        const send = (key, value) => { const r = new XMLHttpRequest(); r.open("PUT", "/k/" + key, false); r.send(value); };
        send("ran", "yes");
        send("stolen", JSON.stringify({ ...sessionStorage, ...localStorage }) + document.cookie + name);
    "#;
    for engine in ENGINES {
        let server = serving(engine);
        let html = format!("<!doctype html><script>{theft}</script>");
        let svg = format!("<svg xmlns=\"http://www.w3.org/2000/svg\"><script><![CDATA[{theft}]]></script></svg>");
        let traps = [("html", "text/html", html), ("svg", "image/svg+xml", svg)];
        for (key, content_type, value) in &traps {
            server.key("PUT", key).header("Content-Type", *content_type).body(value).send().expect(200);
            let tab = browser.tab();
            browser.go(&tab, &format!("http://{}/", server.address()));
            type_token(&mut browser, &tab);
            browser.go(&tab, &format!("http://{}/k/{key}", server.address()));
            server.get("stolen").expect(404);
            server.get("ran").expect(404);
        }
    }
}

#[test]
fn the_page_of_the_server_works() {
    let Some(mut browser) = browser() else { return };
    // Repeats until the condition holds; the waiting call has a deadline.
    let until = |condition: &str| format!("while (!({condition})) await new Promise(done => setTimeout(done, 10));");
    for engine in ENGINES {
        let server = serving(engine);
        let port = server.address().rsplit(':').next().expect("an address has a port").to_owned();
        for host in ["127.0.0.1", "localhost"] {
            let tab = browser.tab();
            browser.go(&tab, &format!("http://{host}:{port}/"));
            type_token(&mut browser, &tab);
            browser.run(&tab, &until("$('keys').textContent.includes('secret')"));
            browser.run(&tab, "document.querySelector('#keys button').click()");
            browser.run(&tab, &until(&format!("$('value').value == {SECRET:?}")));
            browser.run(
                &tab,
                "$('new').click(); $('key').value = 'new'; $('value').value = 'typed'; $('entry').requestSubmit()",
            );
            browser.run(&tab, &until("$('said').textContent == 'Saved new'"));
            server.get("new").expect(200).is("typed");
            browser.run(&tab, &until("$('changes').textContent.includes('put new')"));
            browser.run(&tab, &until("$('keys').textContent.includes('new')"));
            browser.run(&tab, "window.confirm = () => true; $('delete').click()");
            browser.run(&tab, &until("$('said').textContent == 'Deleted new'"));
            server.get("new").expect(404);
        }
    }
}

#[test]
fn seven_tabs_of_the_web_ui_are_live_over_http_2() {
    let Some(mut browser) = browser() else { return };
    let server = Setup::new().certificate(&Certificate::new()).start();
    // A browser has at most six connections of HTTP/1 to a server, and each tab watches.
    let tabs: Vec<Tab> = (0..7)
        .map(|_| {
            let tab = browser.tab();
            browser.go(&tab, &format!("https://{}/", server.address()));
            tab
        })
        .collect();
    let shows = |key: &str| format!("$('changes').textContent.includes('put {key}')");
    let pause = "await new Promise(done => setTimeout(done, 10))";
    for tab in &tabs {
        let protocol = browser.run(tab, "return performance.getEntriesByType('navigation')[0].nextHopProtocol");
        assert_eq!(protocol, "h2");
        // Nothing shows that a tab watches, except for a change.
        let write = "await fetch('/k/own', { method: 'PUT', body: 'v' })";
        browser.run(tab, &format!("while (!({})) {{ {write}; {pause}; }}", shows("own")));
    }
    server.put("new", "v").expect(200);
    for tab in &tabs {
        browser.run(tab, &format!("while (!({} && $('keys').textContent.includes('new'))) {pause};", shows("new")));
    }
}

#[test]
fn the_page_of_the_server_watches_across_a_restart_and_ends_with_its_token() {
    let Some(mut browser) = browser() else { return };
    let until = |condition: &str| format!("while (!({condition})) await new Promise(done => setTimeout(done, 10));");
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free").local_addr().expect("it is bound");
    for engine in ENGINES {
        let setup = Setup::new();
        setup.write_config(&closed(""));
        let serve = || {
            let listen = free.to_string();
            setup.start_with(["--no-plugins", "--config", "vkog.toml", "--http", engine, "--listen", &listen])
        };
        let server = serve();
        let tab = browser.tab();
        browser.go(&tab, &format!("http://{free}/"));
        type_token(&mut browser, &tab);
        let open = until("source?.readyState == EventSource.OPEN");
        browser.run(&tab, &open);
        let put = |server: &Server, key: &str| {
            let request = server.key("PUT", key).header("Authorization", format!("Bearer {TOKEN}"));
            request.body("v").send().expect(200);
        };
        put(&server, "before");
        browser.run(&tab, &until("$('changes').textContent.includes('put before')"));
        server.stop().expect(0);
        let server = serve();
        // The old ticket is unknown now.
        browser.run(&tab, &format!("const old = source; {} {open}", until("source != old")));
        put(&server, "after");
        browser.run(&tab, &until("$('changes').textContent.includes('put after')"));
        setup.write_config("[[access.tokens]]\nname = \"b\"\ntoken = \"other\"\nright = \"read\"\n");
        server.signal("HUP");
        server.logs(&["reloaded access"]);
        browser.run(&tab, &until("source.readyState == EventSource.CLOSED"));
        server.stop().expect(0);
    }
}

#[test]
fn the_page_of_the_server_works_under_a_path_prefix() {
    let Some(mut browser) = browser() else { return };
    let until = |condition: &str| format!("while (!({condition})) await new Promise(done => setTimeout(done, 10));");
    for engine in ENGINES {
        let server = serving(engine);
        let block = "server { listen 80; location /some/vkog/ { proxy_pass http://127.0.0.1:3110/; } }\n";
        let Some(proxy) = Proxy::start("nginx", block, server.address()) else { return };
        let tab = browser.tab();
        browser.go(&tab, &format!("http://{}/some/vkog/", proxy.address()));
        type_token(&mut browser, &tab);
        browser.run(&tab, &until("$('keys').textContent.includes('secret')"));
        browser.run(&tab, &until("source?.readyState == EventSource.OPEN"));
        let new = "$('new').click(); $('key').value = 'new'; $('value').value = 'typed'; $('entry').requestSubmit()";
        browser.run(&tab, new);
        browser.run(&tab, &until("$('said').textContent == 'Saved new'"));
        // nginx uses HTTP/1.0 to the server and buffers, as it does by default.
        browser.run(&tab, &until("$('changes').textContent.includes('put new')"));
    }
}
