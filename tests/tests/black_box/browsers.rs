//! Pages in a browser cannot read or write a store that requires no token, and cannot read a token. Ambiguous requests
//! are rejected instead of guessed.
//!
//! Provoked byte by byte on both engines, with the headers that browsers and reverse proxies send; and, in chromium.rs,
//! with a real Chromium where it is installed.

use vkog_tests::{ENGINES, Reply, Server, Setup, TOKEN, Wire, administered, description};

/// Method, target, body and success status of every route that needs a permission.
const DATA: [(&str, &str, &str, u16); 14] = [
    ("GET", "/k/a", "", 200),
    ("HEAD", "/k/a", "", 200),
    ("POST", "/k/a", "old", 200),
    ("PUT", "/k/a", "old", 200),
    ("DELETE", "/k/b", "", 404),
    ("GET", "/keys", "", 200),
    ("HEAD", "/keys?count", "", 200),
    ("POST", "/batch", r#"[{"op":"put","key":"a","value":"old"}]"#, 200),
    ("GET", "/watch?since=999999999", "", 410),
    ("HEAD", "/watch", "", 200),
    ("POST", "/watch/tickets", "", 200),
    ("GET", "/plugins", "", 200),
    ("GET", "/metrics", "", 200),
    ("HEAD", "/metrics", "", 200),
];

/// Sends a request with these header lines, and checks that `/openapi.json` lists the status of the reply.
#[track_caller]
fn ask(wire: &mut Wire, method: &str, target: &str, headers: &str, body: &str) -> Reply {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let json = if target == "/batch" { "Content-Type: application/json\r\n" } else { "" };
    let reply = wire.send(format!("{method} {target} HTTP/1.1\r\n{headers}{json}{length}\r\n{body}")).reply();
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let path = if path.starts_with("/k/") { "/k/{key}" } else { path };
    let responses = &description()["paths"][path][method.to_lowercase()]["responses"];
    assert!(responses.get(reply.status.to_string()).is_some(), "not a status of /openapi.json: {reply}");
    reply
}

/// Requests all of [`DATA`] with these header lines. Expects success or this refusal, and that a refused request wrote nothing.
#[track_caller]
fn ask_all(server: &Server, headers: &str, refusal: Option<(u16, &str)>) {
    let mut wire = server.wire();
    for (method, target, body, success) in DATA {
        let reply = ask(&mut wire, method, target, headers, &body.replace("old", "new"));
        match refusal {
            None => assert_eq!(reply.status, success, "{headers}{reply}"),
            Some((status, words)) => {
                assert_eq!(reply.status, status, "{headers}{reply}");
                assert!(method == "HEAD" || reply.text().contains(words), "{headers}{reply}");
            }
        }
    }
    let value = if refusal.is_some() { "old" } else { "new" };
    ask(&mut wire, "GET", "/k/a", "Host: localhost\r\n", "").expect(200).is(value);
    ask(&mut wire, "PUT", "/k/a", "Host: localhost\r\n", "old").expect(200);
}

/// Starts a server with one entry.
fn serving(setup: &Setup) -> Server {
    let server = setup.start();
    server.put("a", "old").expect(200);
    server
}

#[test]
fn a_loopback_server_without_tokens_rejects_foreign_hosts() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let port = server.address().rsplit(':').next().expect("an address has a port").to_owned();
        for host in [
            format!("127.0.0.1:{port}"),
            "127.0.0.1".to_owned(),
            "127.1.2.3:80".to_owned(),
            format!("localhost:{port}"),
            "LocalHost:8080".to_owned(),
            "vkog.localhost:8080".to_owned(),
            format!("[::1]:{port}"),
            "[::1]".to_owned(),
            String::new(),
        ] {
            ask_all(&server, &format!("Host: {host}\r\n"), None);
        }
        for host in [
            "evil.example",
            &format!("evil.example:{port}"),
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evillocalhost",
            "10.0.0.1:3110",
            "0.0.0.0",
            "[::2]:3110",
            "2130706433",
        ] {
            ask_all(&server, &format!("Host: {host}\r\n"), Some((421, "allowed-hosts")));
        }
        // These routes reveal nothing of the store.
        let mut wire = server.wire();
        for target in ["/", "/livez", "/readyz", "/openapi.json"] {
            ask(&mut wire, "GET", target, "Host: evil.example\r\n", "").expect(200);
        }
        // HTTP/1.0 needs no Host, and browsers do not use it.
        server.wire().send("GET /k/a HTTP/1.0\r\n\r\n").reply().expect(200).is("old");
        server.wire().send("GET /k/a HTTP/1.0\r\nHost: evil.example\r\n\r\n").reply().expect(421);
    }
}

#[test]
fn allowed_hosts_are_accepted_from_the_option_the_variable_and_the_file() {
    let names = "vkog.example,Other.Example:8080";
    let setups = [
        Setup::new().args(["--allowed-hosts", names]),
        Setup::new().env("VKOG_ALLOWED_HOSTS", names),
        Setup::new().config("allowed-hosts = [\"vkog.example\", \"Other.Example:8080\"]\n"),
    ];
    for setup in setups {
        let server = serving(&setup);
        for host in ["vkog.example", "VKOG.example:3110", "other.example:8080", "localhost"] {
            ask_all(&server, &format!("Host: {host}\r\n"), None);
        }
        for host in ["other.example", "other.example:80", "a.vkog.example", "evil.example"] {
            ask_all(&server, &format!("Host: {host}\r\n"), Some((421, "allowed-hosts")));
        }
        // Behind a proxy that sends another Host, a page has one of these names.
        ask_all(&server, "Host: 127.0.0.1\r\nOrigin: https://vkog.example\r\n", None);
        ask_all(&server, "Host: 127.0.0.1\r\nOrigin: http://other.example\r\n", Some((403, "allowed-hosts")));
    }
    let setup = Setup::new();
    for name in ["http://vkog.example", "vkog.example/", "a b", "*.example", "vkog.example:port", ""] {
        let exit = setup.run(["--no-plugins", "--allowed-hosts", name]).expect(2);
        assert!(exit.one_error().contains("host"), "{exit}");
    }
}

#[test]
fn cross_site_requests_are_rejected_on_every_route_with_data() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let same = "Host: localhost:3110\r\n";
        for headers in [
            "Origin: http://localhost:3110\r\n",
            "Origin: https://LOCALHOST:3110\r\n",
            "Sec-Fetch-Site: same-origin\r\n",
            "Sec-Fetch-Site: none\r\n",
            // A proxy may rewrite Host; a browser compares the original addresses.
            "Sec-Fetch-Site: same-origin\r\nOrigin: https://vkog.example\r\n",
        ] {
            ask_all(&server, &format!("{same}{headers}"), None);
        }
        for headers in [
            "Origin: http://evil.example\r\n",
            "Origin: http://localhost:3111\r\n",
            "Origin: http://localhost\r\n",
            "Origin: http://localhost:3110.evil.example\r\n",
            "Origin: null\r\n",
            "Origin: \r\n",
            "Origin: localhost:3110\r\n",
            "Origin: http://localhost:3110\r\nOrigin: http://evil.example\r\n",
            "Sec-Fetch-Site: cross-site\r\n",
            "Sec-Fetch-Site: same-site\r\n",
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n",
            "Sec-Fetch-Site: cross-site\r\nOrigin: http://localhost:3110\r\n",
            "Sec-Fetch-Site: something new\r\n",
            "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site\r\n",
        ] {
            ask_all(&server, &format!("{same}{headers}"), Some((403, "another site")));
        }
        // A link to the page works like any other link.
        let linked = format!("{same}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n");
        ask(&mut server.wire(), "GET", "/", &linked, "").expect(200);
        // A preflight request is not permitted.
        let preflight = format!("{same}Origin: http://evil.example\r\nAccess-Control-Request-Method: PUT\r\n");
        let reply = ask(&mut server.wire(), "OPTIONS", "/k/a", &preflight, "").expect(204);
        assert_eq!(reply.header("Access-Control-Allow-Origin"), None, "{reply}");
    }
}

#[test]
fn requests_with_tokens_may_name_any_host_and_come_from_any_site() {
    let config = "[[access.tokens]]\nname = \"a\"\ntoken = \"s3cret\"\nright = \"write\"\n";
    for engine in ENGINES {
        let server = Setup::new().config(config).args(["--http", engine, "--fsync", "never"]).start();
        let mut wire = server.wire();
        let foreign = "Host: vkog.example\r\nOrigin: https://app.example\r\nSec-Fetch-Site: cross-site\r\n";
        ask(&mut wire, "PUT", "/k/a", foreign, "v").expect(401);
        let with_token = format!("{foreign}Authorization: Bearer s3cret\r\n");
        ask(&mut wire, "PUT", "/k/a", &with_token, "v").expect(200);
        ask(&mut wire, "GET", "/k/a", &with_token, "").expect(200).is("v");
    }
}

#[test]
fn an_open_public_address_accepts_any_host_and_rejects_cross_site_requests() {
    for engine in ENGINES {
        let setup = Setup::new();
        let arguments = ["--no-plugins", "--http", engine, "--open", "--listen", "0.0.0.0:0"];
        let server = setup.start_with(arguments);
        server.put("a", "old").expect(200);
        ask_all(&server, "Host: vkog.example\r\n", None);
        ask_all(&server, "Host: vkog.example\r\nOrigin: http://vkog.example\r\n", None);
        ask_all(&server, "Host: vkog.example\r\nOrigin: http://evil.example\r\n", Some((403, "another site")));
        ask_all(&server, "Host: vkog.example\r\nSec-Fetch-Site: cross-site\r\n", Some((403, "another site")));
        server.stop().expect(0);
        let server = setup.start_with(arguments.into_iter().chain(["--allowed-hosts", "vkog.example"]));
        ask_all(&server, "Host: vkog.example\r\n", None);
        ask_all(&server, "Host: evil.example\r\n", Some((421, "allowed-hosts")));
    }
}

#[cfg(unix)]
#[test]
fn a_unix_socket_accepts_any_host_and_rejects_cross_site_requests() {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    for engine in ENGINES {
        let setup = Setup::new();
        let socket = setup.folder().join("socket");
        let listen = format!("unix:{}", socket.display());
        let mut command = setup.vkog();
        command.args(["--no-plugins", "--listen", &listen, "--http", engine]);
        let running = vkog_tests::Running::start(&mut command);
        assert!(running.stdout.wait_for(|text| text.contains(&listen)), "{}", running.stderr.text());
        for (headers, status) in
            [("Host: docker", "404"), ("Host: a\r\nOrigin: http://a", "404"), ("Host: a\r\nOrigin: http://b", "403")]
        {
            let mut stream = UnixStream::connect(&socket).expect("it listens");
            let head = format!("GET /k/a HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).expect("it reads");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).expect("it answers and closes");
            assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{engine}: {headers}: {reply}");
        }
    }
}

#[test]
fn a_request_without_a_host_or_with_a_bad_one_is_400() {
    for engine in ENGINES {
        for setup in [Setup::new(), Setup::new().config(administered(""))] {
            let server = serving(&setup.args(["--http", engine, "--fsync", "never"]));
            for (version, hosts) in [
                ("1.1", ""),
                ("1.1", "Host: localhost\r\nHost: localhost\r\n"),
                ("1.0", "Host: localhost\r\nHost: evil.example\r\n"),
                ("1.1", "Host: localhost, evil.example\r\n"),
                ("1.1", "Host: a b\r\n"),
                ("1.1", "Host: http://localhost\r\n"),
                ("1.1", "Host: user@localhost\r\n"),
                ("1.1", "Host: localhost/\r\n"),
                ("1.1", "Host: localhost:port\r\n"),
                ("1.1", "Host: [::1\r\n"),
            ] {
                for (method, target, body, _) in
                    DATA.into_iter().chain([("GET", "/", "", 200), ("GET", "/no", "", 404)])
                {
                    let length = format!("Content-Length: {}\r\n", body.len());
                    let request = format!("{method} {target} HTTP/{version}\r\n{hosts}{length}\r\n{body}");
                    let reply = server.wire().send(request).reply().expect(400);
                    assert!(method == "HEAD" || reply.text().contains("Host"), "{engine}: {hosts}{reply}");
                }
            }
            server.wire().send("GET /k/a HTTP/1.0\r\n\r\n").reply().expect(200).is("old");
        }
    }
}

#[test]
fn a_target_with_a_fragment_is_400_and_not_about_another_key() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let head = |method: &str, target: &str| format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        for target in ["/k/a#b", "/k/a#", "/k/a?q#b", "/k/a##", "http://localhost/k/a#b"] {
            for method in ["GET", "DELETE"] {
                let reply = server.wire().send(format!("{}\r\n", head(method, target))).reply();
                reply.refused(400, "").says("%23");
            }
            for method in ["PUT", "POST"] {
                let request = format!("{}Content-Length: 3\r\n\r\nnew", head(method, target));
                server.wire().send(request).reply().refused(400, "").says("%23");
            }
        }
        // In pieces, and sent ahead: also behind a body that looks like such a request.
        let mut wire = server.wire();
        for piece in ["DELE", "TE /k/a", "#b HT", "TP/1.1\r\nHost: local", "host\r\n\r\n"] {
            wire.send(piece);
        }
        wire.reply().expect(400);
        let body = "DELETE /k/a#b HTTP/1.1\r\n";
        let ahead = [
            format!("{}Content-Length: {}\r\n\r\n{body}", head("PUT", "/k/text"), body.len()),
            format!("{}\r\n", head("GET", "/k/a")),
            format!("{}\r\n", head("DELETE", "/k/a#b")),
            format!("{}X-Text: # DELETE /k/a#b\r\n\r\n", head("GET", "/k/a")),
        ];
        let mut wire = server.wire();
        wire.send(ahead.concat());
        for status in [200, 200, 400, 200] {
            wire.reply().expect(status);
        }
        server.get("text").expect(200).is(body);
        server.get("a").expect(200).is("old");
        server.put("a#b", "v").expect(200);
        server.get("a").expect(200).is("old");
    }
}

#[test]
fn a_malformed_list_of_entity_tags_is_400() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let mut wire = server.wire();
        let revision = server.get("a").expect(200).revision();
        for name in ["If-Match", "If-None-Match"] {
            for value in [
                "1",
                "abc",
                "",
                "\"1",
                "1\"",
                "\"*",
                "\"1\" \"2\"",
                "\"1\", 2",
                "*, \"1\"",
                "*, *",
                "**",
                "w/\"1\"",
                "W/1",
                "W/",
                "W/ \"1\"",
                ",",
                "\"1\"x",
                "'1'",
                "\"1\", *",
                "\"",
                "\"\"\"",
            ] {
                for (method, body) in [("GET", ""), ("HEAD", ""), ("PUT", "new"), ("POST", "new"), ("DELETE", "")] {
                    let headers = format!("Host: localhost\r\n{name}: {value}\r\n");
                    let reply = ask(&mut wire, method, "/k/a", &headers, body);
                    assert_eq!(reply.status, 400, "{engine}: {headers}{reply}");
                    assert!(method == "HEAD" || reply.text().contains(name), "{engine}: {headers}{reply}");
                }
            }
            let twice = format!("Host: localhost\r\n{name}: \"9999\"\r\n{name}: 1\r\n");
            ask(&mut wire, "DELETE", "/k/a", &twice, "").expect(400);
            for condition in ["\"1\"", "[\"1\"]", "\"\"", "\"*, 1\"", "1.5", "-1", "true"] {
                let field = name.to_lowercase().replace('-', "_");
                let batch = format!(r#"[{{"op":"put","key":"a","value":"new","{field}":{condition}}}]"#);
                ask(&mut wire, "POST", "/batch", "Host: localhost\r\n", &batch).expect(400);
            }
        }
        let reply = server.get("a").expect(200).is("old");
        assert_eq!(reply.revision(), revision);
    }
}

#[test]
fn a_part_of_a_value_or_an_encoded_batch_is_not_stored_as_the_whole() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let mut wire = server.wire();
        for method in ["PUT", "POST"] {
            for range in ["bytes 0-2/10", "bytes */10", "", "lines 1-2/3"] {
                let headers = format!("Host: localhost\r\nContent-Range: {range}\r\n");
                ask(&mut wire, method, "/k/a", &headers, "new").refused(400, "").says("Content-Range");
            }
            for coding in ["aws-chunked", "gzip, aws-chunked", "gzip;q=1", "a b", "gzip\r\nContent-Encoding: br"] {
                let headers = format!("Host: localhost\r\nContent-Encoding: {coding}\r\n");
                let reply = ask(&mut wire, method, "/k/a", &headers, "new").refused(415, "").says("Content-Encoding");
                assert_eq!(reply.header("Accept-Encoding"), Some("identity"), "{reply}");
            }
        }
        let batch = r#"[{"op":"put","key":"a","value":"new"}]"#;
        ask(&mut wire, "POST", "/batch", "Host: localhost\r\nContent-Encoding: gzip\r\n", batch).expect(415);
        ask(&mut wire, "POST", "/batch", "Host: localhost\r\nContent-Range: bytes 0-1/2\r\n", batch).expect(400);
        for field in ["Content-Encoding", "content-range"] {
            let batch = format!(r#"[{{"op":"put","key":"a","value":"new","headers":{{"{field}":"a b"}}}}]"#);
            ask(&mut wire, "POST", "/batch", "Host: localhost\r\n", &batch).expect(400);
        }
        server.get("a").expect(200).is("old");
        for coding in ["identity", "Identity", ""] {
            let headers = format!("Host: localhost\r\nContent-Encoding: {coding}\r\n");
            ask(&mut wire, "PUT", "/k/a", &headers, "new").expect(200);
        }
    }
}

#[test]
fn stored_values_are_sent_so_that_a_browser_executes_none() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let html = "<script>fetch('/k/a', {method: 'DELETE'})</script>";
        server.key("PUT", "page").header("Content-Type", "text/html").body(html).send().expect(200);
        let safe = |reply: Reply| {
            let policy = reply.header("Content-Security-Policy");
            assert_eq!((policy, reply.header("X-Content-Type-Options")), (Some("sandbox"), Some("nosniff")), "{reply}");
            reply
        };
        safe(server.get("page")).expect(200).is(html).has("Content-Type", "text/html");
        safe(server.key("HEAD", "page").send()).expect(200);
        safe(server.key("GET", "page").header("Range", "bytes=0-7").send()).expect(206).is("<script>");
        safe(server.key("GET", "page").header("Range", "bytes=999-").send()).expect(416);
        safe(server.get("<script>")).expect(404);
        safe(server.path("GET", "/keys?prefix=page").send()).expect(200);
        safe(server.path("GET", "/keys?limit=%3Cscript%3E").send()).expect(400);
        safe(server.path("GET", "/plugins").send()).expect(200);
        safe(server.path("GET", "/watch?since=999999999").send()).expect(410);
        safe(server.path("GET", "/%3Cscript%3E").send()).expect(404);
        let batch = server.path("POST", "/batch").header("Content-Type", "application/json");
        safe(batch.body(r#"[{"op":"get","key":"page"}]"#).send()).expect(200);
        safe(server.wire().send("HEAD /watch HTTP/1.1\r\nHost: localhost\r\n\r\n").reply()).expect(200);
    }
}

#[test]
fn the_page_keeps_the_token_unreadable_for_other_pages() {
    let page = Setup::new().start().path("GET", "/").send().expect(200).text();
    for storage in ["sessionStorage", "localStorage", "indexedDB", "document.cookie", "caches", "window.name"] {
        assert!(!page.contains(storage), "the page uses {storage}");
    }
}

#[test]
fn a_request_through_a_proxy_does_not_count_as_local() {
    let operator = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    for engine in ENGINES {
        let server = Setup::new().config(administered("")).args(["--http", engine, "--fsync", "never"]).start();
        let mut wire = server.wire();
        let mut reload = |headers: &str| ask(&mut wire, "POST", "/plugins/reload", headers, "");
        reload(&operator).expect(200);
        for header in [
            "X-Forwarded-For: 203.0.113.7\r\n",
            "x-forwarded-for: 127.0.0.1\r\n",
            "X-Forwarded-For: \r\n",
            "Forwarded: for=127.0.0.1\r\n",
            "X-Real-IP: 127.0.0.1\r\n",
            "Via: 1.1 proxy\r\n",
        ] {
            // With a token, or without one.
            reload(&format!("{operator}{header}")).refused(403, "Administration").says("[proxy]");
            reload(&format!("Host: localhost\r\n{header}")).refused(401, "Send a token");
        }
    }
}

#[test]
fn a_trusted_proxy_supplies_the_client_address() {
    let operator = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    let proxy = |lines: &str| administered(&format!("[proxy]\ntrusted = [\"127.0.0.1\", \"10.0.0.0/8\"]\n{lines}"));
    let standard = proxy("header = \"Forwarded\"\n");
    for engine in ENGINES {
        let setup = Setup::new().args(["--http", engine, "--log-requests"]);
        let server = setup.clone().config(proxy("")).start();
        let mut wire = server.wire();
        let mut reload = |header: &str| ask(&mut wire, "POST", "/plugins/reload", &format!("{operator}{header}"), "");
        for (header, status) in [
            ("", 200),
            ("X-Forwarded-For: 127.0.0.1\r\n", 200),
            ("X-Forwarded-For: [::1]:4711\r\n", 200),
            ("X-Forwarded-For: 127.0.0.1, 127.0.0.1\r\n", 200),
            ("X-Forwarded-For: ::1\r\n", 200),
            ("X-Forwarded-For: 203.0.113.7, ::1\r\n", 403),
            // Another machine's own address.
            ("X-Forwarded-For: 127.0.0.1, 10.1.2.3\r\n", 403),
            ("X-Forwarded-For: 203.0.113.7\r\n", 403),
            ("X-Forwarded-For: 127.0.0.1, 203.0.113.7\r\n", 403),
            ("X-Forwarded-For: 127.0.0.1, 203.0.113.7, 10.1.2.3\r\n", 403),
            ("X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-For: 203.0.113.7\r\n", 403),
            ("X-Forwarded-For: 10.1.2.3\r\n", 403),
            ("X-Forwarded-For: unknown\r\n", 403),
            ("X-Forwarded-For: 127.0.0.1, unknown\r\n", 403),
            ("X-Forwarded-For: \r\n", 403),
            // The proxy does not send this header, so the client chose it.
            ("Forwarded: for=127.0.0.1\r\n", 403),
            ("X-Real-IP: 127.0.0.1\r\n", 403),
        ] {
            let reply = reload(header);
            assert_eq!(reply.status, status, "{engine}: {header}{reply}");
        }
        ask(&mut wire, "GET", "/k/1", "Host: localhost\r\nX-Forwarded-For: 1.1.1.1, 203.0.113.7\r\n", "").expect(404);
        server.logs(&["\"path\":\"/k/1\"", "\"client\":\"203.0.113.7:0\""]);
        ask(&mut wire, "GET", "/k/2", "Host: localhost\r\nX-Forwarded-For: 2001:db8::1\r\n", "").expect(404);
        server.logs(&["\"path\":\"/k/2\"", "\"client\":\"[2001:db8::1]:0\""]);
        ask(&mut wire, "GET", "/k/3", "Host: localhost\r\nX-Forwarded-For: unknown\r\n", "").expect(404);
        server.logs(&["\"path\":\"/k/3\"", "\"client\":\"unknown\""]);
        // A reload applies the table.
        setup.write_config(&standard);
        server.reload().expect(200);
        let mut wire = server.wire();
        let mut reload = |header: &str| ask(&mut wire, "POST", "/plugins/reload", &format!("{operator}{header}"), "");
        for (header, status) in [
            ("Forwarded: for=127.0.0.1\r\n", 200),
            ("Forwarded: by=10.0.0.1;For=\"[::1]:4711\";proto=https\r\n", 200),
            ("Forwarded: for=127.0.0.1, for=203.0.113.7\r\n", 403),
            ("Forwarded: for=\"127.0.0.1, for=203.0.113.7\r\n", 403),
            ("Forwarded: for=_hidden\r\n", 403),
            ("Forwarded: proto=https\r\n", 403),
            ("X-Forwarded-For: 127.0.0.1\r\n", 403),
        ] {
            let reply = reload(header);
            assert_eq!(reply.status, status, "{engine}: {header}{reply}");
        }
        ask(&mut wire, "GET", "/k/4", "Host: localhost\r\nForwarded: for=\"203.0.113.7:99\"\r\n", "").expect(404);
        server.logs(&["\"path\":\"/k/4\"", "\"client\":\"203.0.113.7:99\""]);
    }
    for (lines, words) in [
        ("[proxy]\ntrusted = [\"proxy.example\"]\n", "proxy.example"),
        ("[proxy]\ntrusted = []\n", "trusted"),
        ("[proxy]\ntrusted = [\"127.0.0.1\"]\nheader = \"Via\"\n", "X-Forwarded-For"),
        ("[proxy]\ntrust = [\"127.0.0.1\"]\n", "trusted"),
    ] {
        let exit = Setup::new().config(lines).fail().expect(1);
        assert!(exit.one_error().contains(": proxy") && exit.one_error().contains(words), "{exit}");
    }
}

#[test]
fn a_trusted_proxy_says_which_address_the_browser_used() {
    let trusted = "[proxy]\ntrusted = [\"127.0.0.1\"]\n";
    let standard = "[proxy]\ntrusted = [\"127.0.0.1\"]\nheader = \"Forwarded\"\n";
    let allowed = "allowed-hosts = [\"vkog.example\"]\n";
    for engine in ENGINES {
        let asked = |arguments: &[&str], config: &str, headers: &str| {
            let setup =
                Setup::new().config(config).args(["--http", engine, "--fsync", "never"]).args(arguments.to_vec());
            let server = setup.start();
            let reply = ask(&mut server.wire(), "GET", "/k/k", headers, "");
            (reply.status, format!("{engine}: {config}{headers}{reply}"))
        };
        for (config, headers, status) in [
            // A proxy may have replaced the host that the browser sent.
            (trusted, "Host: localhost\r\nX-Forwarded-Host: evil.example\r\n", 421),
            (trusted, "Host: localhost\r\nX-Forwarded-Host: localhost, evil.example\r\n", 421),
            (trusted, "Host: localhost\r\nX-Forwarded-Host: localhost:8080\r\n", 404),
            (standard, "Host: localhost\r\nForwarded: for=1.1.1.1;host=\"evil.example:80\"\r\n", 421),
            (standard, "Host: localhost\r\nForwarded: for=1.1.1.1;host=localhost\r\n", 404),
            (&format!("{allowed}{trusted}"), "Host: localhost\r\nX-Forwarded-Host: vkog.example\r\n", 404),
            // What is no name says nothing, nor does a field that the proxy does not set.
            (trusted, "Host: localhost\r\nX-Forwarded-Host: a b, ,\r\nX-Forwarded-Proto: ,\r\n", 404),
            (standard, "Host: localhost\r\nX-Forwarded-Host: evil.example\r\n", 404),
            ("", "Host: localhost\r\nX-Forwarded-Host: evil.example\r\n", 404),
            // The scheme belongs to an origin.
            (trusted, "Host: localhost\r\nOrigin: http://localhost\r\nX-Forwarded-Proto: https\r\n", 403),
            (trusted, "Host: localhost\r\nOrigin: https://localhost\r\nX-Forwarded-Proto: HTTPS\r\n", 404),
            (standard, "Host: localhost\r\nOrigin: http://localhost\r\nForwarded: proto=https\r\n", 403),
            ("", "Host: localhost\r\nOrigin: http://localhost\r\nX-Forwarded-Proto: https\r\n", 404),
        ] {
            let (found, reply) = asked(&[], config, headers);
            assert_eq!(found, status, "{reply}");
        }
        // Where no host is known, the proxy's word is that of the page's own.
        let headers = "Host: inside:1\r\nX-Forwarded-Host: vkog.example\r\nOrigin: https://vkog.example\r\n";
        for (config, status) in [(trusted, 404), ("", 403)] {
            let (found, reply) = asked(&["--open", "--listen", "0.0.0.0:0"], config, headers);
            assert_eq!(found, status, "{reply}");
        }
    }
}

#[test]
fn the_host_of_an_absolute_target_is_checked_like_the_host_field() {
    for engine in ENGINES {
        let server = serving(&Setup::new().args(["--http", engine, "--fsync", "never"]));
        let send = |target: &str, fields: &str| {
            server.wire().send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")).reply()
        };
        for host in ["localhost", "127.0.0.1:3110", "[::1]:80"] {
            send(&format!("http://{host}/k/a"), "").expect(200).is("old");
            send(&format!("http://{host}/k/a"), &format!("Origin: http://{host}\r\n")).expect(200);
            // It takes precedence over Host.
            send("http://vkog.localhost/k/a", &format!("Origin: http://{host}\r\n")).expect(403);
        }
        for target in ["http://evil.example/k/a", "http://evil.example:80/k/a", "https://localhost.evil.example/k/a"] {
            send(target, "").refused(421, "").says("allowed-hosts");
        }
        send("http://evil.example?/k/a", "").expect(200);
        for target in ["http://localhost@evil.example/k/a", "http://a%b:c/k/a"] {
            assert_eq!(send(target, "").status, 400, "{engine}: {target}");
        }
        let foreign = "GET http://localhost/k/a HTTP/1.1\r\nHost: evil.example\r\n\r\n";
        server.wire().send(foreign).reply().expect(421);
    }
    let server = serving(&Setup::new().args(["--allowed-hosts", "vkog.example"]));
    let request = "GET http://vkog.example/k/a HTTP/1.1\r\nHost: localhost\r\n\r\n";
    server.wire().send(request).reply().expect(200).is("old");
}
