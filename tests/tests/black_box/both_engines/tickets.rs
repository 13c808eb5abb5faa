//! A ticket stands for a token in the query of `/watch`, for a minute, and for nothing else.
//!
//! Provoked with tickets of several tokens and prefixes on every route, and with reloads that revoke or narrow the token.
//! tickets.rs of the server has the tests with a clock; chromium.rs those with a browser.

use serde_json::Value;
use vkog_tests::{Reply, Server, Setup, TOKEN, description};

use super::ENGINE;

fn tokens(prefix: &str) -> String {
    let token = |name: &str, token: &str, rest: &str| {
        format!("[[access.tokens]]\nname = {name:?}\ntoken = {token:?}\n{rest}\n")
    };
    token("operator", TOKEN, "right = \"admin\"")
        + &token("all", "all", "right = \"read\"")
        + &token("some", "some", &format!("right = \"read\"\nprefix = {prefix:?}"))
}

fn setup() -> Setup {
    Setup::on(ENGINE).config(tokens("a/")).args(["--fsync", "never", "--log-requests"])
}

#[track_caller]
fn ask(server: &Server, method: &str, target: &str, token: Option<&str>) -> Reply {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let reply = server.wire().send(format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{token}\r\n")).reply();
    let path = target.split('?').next().unwrap_or_default().replace("/k/a/1", "/k/{key}");
    let responses = &description()["paths"][path][method.to_lowercase()]["responses"];
    assert!(responses.get(reply.status.to_string()).is_some(), "not a status of /openapi.json: {reply}");
    reply
}

#[track_caller]
fn ticket(server: &Server, prefix: &str, token: &str) -> String {
    let reply = ask(server, "POST", &format!("/watch/tickets?prefix={prefix}"), Some(token)).expect(200);
    let issued: Value = serde_json::from_slice(&reply.body).unwrap_or_else(|error| panic!("{error}: {reply}"));
    assert_eq!(issued["expires_in"], 60, "{reply}");
    issued["ticket"].as_str().unwrap_or_else(|| panic!("no ticket in {reply}")).to_owned()
}

#[track_caller]
fn put(server: &Server, key: &str) {
    let request = server.key("PUT", key).header("Authorization", format!("Bearer {TOKEN}"));
    request.body("v").send().expect(200);
}

#[test]
fn a_ticket_opens_watches_of_its_prefix() {
    let server = setup().start();
    for (prefix, token) in [("", "all"), ("a/", "all"), ("a/", "some"), ("a/b", "some")] {
        let ticket = ticket(&server, prefix, token);
        assert!(ticket.len() >= 43 && ticket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        // More than once: a browser that loses its connection repeats the request.
        for _ in 0..2 {
            let mut watching = server.watch(&format!("prefix=a/b&ticket={ticket}"), "");
            put(&server, "a/c");
            put(&server, "a/b");
            assert_eq!(watching.events(1)[0].key(), "a/b");
        }
        let outside = format!("/watch?prefix=b/&ticket={ticket}");
        let status = if prefix.is_empty() { 200 } else { 403 };
        ask(&server, "HEAD", &outside, None).expect(status);
    }
}

#[test]
fn a_ticket_is_issued_for_what_its_token_may_read() {
    let server = setup().start();
    for (prefix, token, status) in [
        ("", None, 401),
        ("", Some("unknown"), 401),
        ("", Some("some"), 403),
        ("b/", Some("some"), 403),
        ("a", Some("some"), 403),
        ("b/", Some("all"), 200),
    ] {
        ask(&server, "POST", &format!("/watch/tickets?prefix={prefix}"), token).expect(status);
    }
    let long = "a".repeat(1025);
    ask(&server, "POST", &format!("/watch/tickets?prefix={long}"), Some("all")).refused(400, "prefix is longer");
}

#[test]
fn a_ticket_is_refused_on_every_other_route() {
    let server = setup().start();
    let ticket = ticket(&server, "", "all");
    for (method, target) in [
        ("GET", "/k/a/1"),
        ("PUT", "/k/a/1"),
        ("GET", "/keys"),
        ("POST", "/batch"),
        ("GET", "/metrics"),
        ("GET", "/plugins"),
        ("POST", "/plugins/reload"),
        ("POST", "/watch/tickets"),
    ] {
        ask(&server, method, &format!("{target}?ticket={ticket}"), None).expect(401);
        ask(&server, method, target, Some(&ticket)).expect(401);
    }
    ask(&server, "HEAD", "/watch", Some(&ticket)).expect(401);
}

#[test]
fn an_unknown_ticket_or_one_beside_a_token_is_refused() {
    let server = setup().start();
    let ticket = ticket(&server, "", "all");
    for wrong in ["", "x", &ticket[1..], &format!("{ticket}A"), &ticket.to_uppercase()] {
        let reply = ask(&server, "GET", &format!("/watch?ticket={wrong}"), None);
        let reply = reply.refused(401, "The ticket is unknown or has expired");
        let _ = reply.has("WWW-Authenticate", "Bearer realm=\"vkog\"");
    }
    ask(&server, "GET", &format!("/watch?ticket={ticket}"), Some("all")).refused(401, "Send either a ticket");
}

#[test]
fn a_ticket_dies_with_its_token_and_so_does_its_watch() {
    let setup = setup();
    let server = setup.start();
    let (all, some) = (ticket(&server, "", "all"), ticket(&server, "a/", "some"));
    let mut watches = [("", &all), ("a/", &some)]
        .map(|(prefix, ticket)| server.watch(&format!("prefix={prefix}&ticket={ticket}"), ""));
    // One token is revoked, the other is narrowed.
    setup.write_config(&tokens("a/b/").replace("token = \"all\"", "token = \"other\""));
    server.reload().expect(200);
    put(&server, "a/1");
    for (watching, status) in watches.iter_mut().zip([401, 403]) {
        let end = watching.event().unwrap_or_else(|| panic!("no event: {}", watching.head));
        assert_eq!((end.name.as_str(), &end.data["status"]), ("end", &Value::from(status)));
        assert_eq!(watching.event(), None);
    }
    ask(&server, "HEAD", &format!("/watch?ticket={all}"), None).expect(401);
    ask(&server, "HEAD", &format!("/watch?prefix=a/&ticket={some}"), None).expect(403);
    ask(&server, "HEAD", &format!("/watch?prefix=a/b/&ticket={some}"), None).expect(200);
}

#[test]
fn a_ticket_does_not_appear_in_the_log_or_in_errors() {
    let server = setup().start();
    let ticket = ticket(&server, "a/", "some");
    let _ = server.watch(&format!("prefix=a/&ticket={ticket}"), "");
    for target in [
        format!("/watch?prefix=b/&ticket={ticket}"),
        format!("/watch?ticket={ticket}x"),
        format!("/keys?ticket={ticket}"),
    ] {
        let reply = ask(&server, "GET", &target, None);
        assert!(reply.status >= 400 && !reply.text().contains(&ticket), "{reply}");
    }
    ask(&server, "GET", &format!("/watch?prefix=%zz&ticket={ticket}"), None).expect(400);
    // A client or a proxy has encoded the question mark, once or twice.
    for target in [format!("/watch%3fticket={ticket}"), format!("/watch%253Fprefix=a/&%2574icket%3D{ticket}")] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        server.wire().send(request).reply().expect(404);
    }
    server.logs(&["/watch%3fticket=\u{2026}", "404"]);
    server.logs(&["/watch?prefix=a/&ticket=\u{2026}", "404"]);
    server.logs(&["/watch/tickets"]);
    server.logs(&["/keys", "401"]);
    assert!(!server.log().contains(&ticket), "{}", server.log());
}

#[test]
fn a_server_without_tokens_issues_tickets_too() {
    let server = Setup::on(ENGINE).start();
    let reply = ask(&server, "POST", "/watch/tickets", None).expect(200);
    let issued: Value = serde_json::from_slice(&reply.body).expect("it is JSON");
    let ticket = issued["ticket"].as_str().expect("a ticket");
    let _ = server.watch(&format!("ticket={ticket}"), "");
    ask(&server, "HEAD", "/watch?ticket=x", None).expect(401);
    // A page of another site gets none.
    let foreign = "POST /watch/tickets HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n";
    server.wire().send(foreign).reply().expect(403);
}

#[test]
fn the_clients_of_a_server_without_tokens_share_one_limit_of_tickets() {
    let server = Setup::on(ENGINE).start();
    let first = ticket(&server, "", "0");
    ask(&server, "HEAD", &format!("/watch?ticket={first}"), None).expect(200);
    // Each sends another token, which the server does not need.
    let tickets: Vec<_> = (1..=256).map(|token| ticket(&server, "", &token.to_string())).collect();
    let last = tickets.last().expect("there are some").clone();
    ask(&server, "HEAD", &format!("/watch?ticket={last}"), None).expect(200);
    ask(&server, "HEAD", &format!("/watch?ticket={first}"), None).expect(401);
}
