//! Web pages of the configured origins may use the server, and no others.
//!
//! Provoked with the requests that browsers send: preflight requests, requests with an origin, and both from foreign origins;
//! chromium.rs does the same with a browser.

use vkog_tests::{Reply, Server, Setup, administered};

use super::ENGINE;

const PAGE: &str = "https://app.example";
const TOKENS: &str = "[[access.tokens]]\nname = \"a\"\ntoken = \"s3cret\"\nright = \"write\"\n";
const AUTHORIZATION: &str = "Authorization: Bearer s3cret\r\n";

fn allowing(origins: &str) -> Setup {
    Setup::on(ENGINE).config(format!("[cors]\norigins = [{origins}]\n"))
}

#[track_caller]
fn ask(server: &Server, method: &str, target: &str, fields: &str, body: &str) -> Reply {
    let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    server.wire().send(format!("{head}{fields}\r\n{body}")).reply()
}

fn from(origin: &str) -> String {
    format!("Origin: {origin}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\n")
}

fn preflight(server: &Server, origin: &str) -> Reply {
    let asked = "Access-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: authorization,if-match\r\n";
    ask(server, "OPTIONS", "/k/a", &format!("{}{asked}", from(origin)), "")
}

const FIELDS: [&str; 5] = [
    "Access-Control-Allow-Origin",
    "Access-Control-Expose-Headers",
    "Access-Control-Allow-Methods",
    "Access-Control-Allow-Headers",
    "Access-Control-Max-Age",
];

#[track_caller]
fn grants_nothing(reply: &Reply) {
    for field in FIELDS {
        assert_eq!(reply.header(field), None, "{reply}");
    }
}

#[test]
fn a_preflight_request_of_an_allowed_origin_is_granted() {
    let server = allowing(&format!("{PAGE:?}, \"http://localhost:8080\"")).start();
    for origin in [PAGE, "http://localhost:8080"] {
        let reply = preflight(&server, origin).expect(204).has("Access-Control-Allow-Origin", origin);
        let reply = reply.has("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
        let reply = reply.has("Vary", "Origin").has("Access-Control-Max-Age", "600");
        let fields = reply.header("Access-Control-Allow-Headers").unwrap_or_default();
        for field in ["Authorization", "Content-Type", "If-Match", "If-None-Match", "Last-Event-ID", "Range"] {
            assert!(fields.split(", ").any(|allowed| allowed == field), "{reply}");
        }
    }
}

#[test]
fn responses_to_an_allowed_origin_can_be_read_errors_too() {
    let server = allowing(&format!("{PAGE:?}")).start();
    for (method, target, body, status) in [
        ("PUT", "/k/a", "value", 200),
        ("GET", "/k/a", "", 200),
        ("GET", "/k/absent", "", 404),
        ("GET", "/k/%zz", "", 400),
        ("GET", "/keys", "", 200),
        ("GET", "/watch?since=999999999", "", 410),
        ("POST", "/watch/tickets", "", 200),
        ("POST", "/plugins/reload", "", 401),
        ("PATCH", "/k/a", "", 200),
        ("BREW", "/k/a", "", 405),
    ] {
        let reply = ask(&server, method, target, &from(PAGE), body).expect(status);
        let reply = reply.has("Access-Control-Allow-Origin", PAGE);
        let exposed = reply.header("Access-Control-Expose-Headers").unwrap_or_default();
        assert!(exposed.starts_with("ETag, "), "{reply}");
        assert!(reply.header("Vary").is_some_and(|vary| vary.contains("Origin")), "{reply}");
    }
    let error = ask(&server, "GET", "/k/absent", &from(PAGE), "");
    assert_eq!(error.header("Vary"), Some("Accept, Origin"), "{error}");
    // The page of the server itself sends no origin, and caches keep the two apart.
    let own = ask(&server, "GET", "/k/a", "", "").expect(200).has("Vary", "Origin");
    grants_nothing(&own);
}

#[test]
fn a_foreign_origin_is_granted_nothing() {
    let server = allowing(&format!("{PAGE:?}")).start();
    server.put("a", "old").expect(200);
    for origin in
        ["https://evil.example", "http://app.example", "https://app.example:8443", "https://x.app.example", "null"]
    {
        grants_nothing(&preflight(&server, origin).expect(204).has("Vary", "Origin"));
        for (method, body) in [("PUT", "new"), ("GET", "")] {
            let reply = ask(&server, method, "/k/a", &from(origin), body).expect(403);
            grants_nothing(&reply);
        }
    }
    // Two origins are none.
    let both = format!("{}{}", from(PAGE), from("https://evil.example"));
    grants_nothing(&ask(&server, "PUT", "/k/a", &both, "new").expect(403));
    server.get("a").expect(200).is("old");
}

#[test]
fn an_allowed_origin_does_not_make_a_foreign_host_valid() {
    let server = allowing(&format!("{PAGE:?}")).start();
    let fields = from(PAGE);
    let reply = server.wire().send(format!("GET /k/a HTTP/1.1\r\nHost: app.example\r\n{fields}\r\n")).reply();
    reply.expect(421);
}

#[test]
fn an_allowed_origin_needs_a_token_where_others_do() {
    for origins in [format!("{PAGE:?}"), "\"*\"".to_owned()] {
        let server = Setup::on(ENGINE).config(format!("{TOKENS}[cors]\norigins = [{origins}]\n")).start();
        let allowed = if origins == "\"*\"" { "*" } else { PAGE };
        let denied = ask(&server, "PUT", "/k/a", &from(PAGE), "v").expect(401);
        let _ = denied.has("Access-Control-Allow-Origin", allowed);
        let fields = format!("{}{AUTHORIZATION}", from(PAGE));
        ask(&server, "PUT", "/k/a", &fields, "v").expect(200).has("Access-Control-Allow-Origin", allowed);
        let reply = preflight(&server, PAGE).expect(204).has("Access-Control-Allow-Origin", allowed);
        assert_eq!(reply.header("Access-Control-Allow-Credentials"), None, "{reply}");
    }
}

#[test]
fn without_configured_origins_no_response_mentions_them() {
    let server = Setup::on(ENGINE).start();
    for reply in [preflight(&server, PAGE).expect(204), ask(&server, "GET", "/k/a", &from(PAGE), "").expect(403)] {
        grants_nothing(&reply);
        assert!(!reply.header("Vary").unwrap_or_default().contains("Origin"), "{reply}");
    }
}

#[test]
fn origins_come_from_the_option_the_variable_and_the_file() {
    let allowed = |setup: Setup| {
        let server = setup.start();
        preflight(&server, PAGE).expect(204).has("Access-Control-Allow-Origin", PAGE);
        preflight(&server, "http://b").expect(204).header("Access-Control-Allow-Origin").is_some()
    };
    let both = format!("{PAGE},http://b");
    assert!(allowed(Setup::on(ENGINE).args(["--cors-origins", &both])));
    assert!(allowed(Setup::on(ENGINE).env("VKOG_CORS_ORIGINS", &both)));
    // The option takes precedence over the file.
    assert!(!allowed(allowing("\"http://b\"").args(["--cors-origins", PAGE])));
}

#[test]
fn an_origin_that_no_browser_sends_is_refused_with_the_reason() {
    for (origin, words) in [
        ("app.example", "no scheme"),
        ("https://app.example/", "no path"),
        ("https://app.example/page", "no path"),
        ("null", "sandboxed"),
        ("https://*.example", "not a name"),
    ] {
        let exit = allowing(&format!("{origin:?}")).fail().expect(1);
        let error = exit.one_error();
        assert!(error.contains("cors.origins") && error.contains(origin) && error.contains(words), "{exit}");
        let exit = Setup::on(ENGINE).args(["--cors-origins", origin]).fail().expect(2);
        assert!(exit.stderr.contains("--cors-origins") && exit.stderr.contains(words), "{exit}");
    }
    let exit = allowing("").config("[cors]\norigin = []\n").fail().expect(1);
    assert!(exit.one_error().contains("cors.origin:") && exit.one_error().contains("`origins`"), "{exit}");
}

#[test]
fn all_origins_are_refused_where_no_token_is_needed() {
    for setup in [allowing("\"*\""), Setup::on(ENGINE).config(TOKENS).args(["--open", "--cors-origins", "*"])] {
        let exit = setup.fail().expect(1);
        assert!(exit.one_error().contains("cannot allow all origins without tokens"), "{exit}");
    }
}

#[test]
fn a_reload_applies_other_origins() {
    let config = |origins: &str| administered(&format!("[cors]\norigins = [{origins}]\n"));
    let setup = Setup::on(ENGINE).config(config(&format!("{PAGE:?}")));
    let server = setup.start();
    preflight(&server, PAGE).expect(204).has("Access-Control-Allow-Origin", PAGE);
    setup.write_config(&config("\"http://b\""));
    server.reload().expect(200);
    grants_nothing(&preflight(&server, PAGE).expect(204));
    setup.write_config(&config("\"*\""));
    server.reload().refused(409, "Nothing was reloaded").says("all origins");
    preflight(&server, "http://b").expect(204).has("Access-Control-Allow-Origin", "http://b");
}
