//! Permissions: for every endpoint, token and spelling of a key, the status is that of the tables below, and a rejected
//! request changes nothing.
//!
//! Provoked byte by byte, because a client library would normalise paths. Each test starts both engines.

use vkog_tests::{ENGINES, Reply, Server, Setup, Wire, artefacts};

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    Read,
    Write,
    Admin,
}
use Right::{Admin, Read, Write};

/// Method, target, body, the right it takes (none: open to all), and the status when it is done. A target or a body with
/// `{}` stands for every key of [`KEYS`]; the others concern the whole server.
const ENDPOINTS: [(&str, &str, &str, Option<Right>, u16); 38] = [
    ("GET", "/k/{}", "", Some(Read), 200),
    ("HEAD", "/k/{}", "", Some(Read), 200),
    ("POST", "/k/{}", "new", Some(Write), 200),
    ("PUT", "/k/{}", "new", Some(Write), 200),
    ("PATCH", "/k/{}", "", Some(Write), 200),
    ("DELETE", "/k/{}", "", Some(Write), 200),
    ("OPTIONS", "/k/{}", "", None, 204),
    ("GET", "http://elsewhere/k/{}", "", Some(Read), 200),
    ("GET", "/keys?prefix={}", "", Some(Read), 200),
    ("GET", "/keys?count&prefix={}", "", Some(Read), 200),
    ("GET", "/keys?delimiter=/&after=a/", "", Some(Read), 200),
    ("DELETE", "/keys?prefix={}", "", Some(Write), 200),
    ("DELETE", "/keys?dry_run&prefix={}", "", Some(Write), 200),
    ("HEAD", "/keys", "", Some(Read), 200),
    ("POST", "/batch", r#"[{"op":"get","key":"{}"}]"#, Some(Read), 200),
    ("POST", "/batch", r#"[{"op":"get","key":"a/1"},{"op":"put","key":"{}","value":"new"}]"#, Some(Write), 200),
    (
        "POST",
        "/batch",
        r#"[{"op":"put","key":"a/1","value":"1"},{"op":"post","key":"{}","value":"new"}]"#,
        Some(Write),
        200,
    ),
    ("POST", "/batch", r#"[{"op":"delete","key":"{}"},{"op":"get","key":"a/1"}]"#, Some(Write), 200),
    // A watch has no end, so it starts at a future revision, which a permitted client gets refused.
    ("GET", "/watch?since=999999999&prefix={}", "", Some(Read), 410),
    ("HEAD", "/watch?prefix={}", "", Some(Read), 200),
    ("POST", "/watch/tickets?prefix={}", "", Some(Read), 200),
    ("GET", "/metrics", "", Some(Read), 200),
    ("HEAD", "/metrics", "", Some(Read), 200),
    ("GET", "/plugins", "", Some(Read), 200),
    ("POST", "/plugins/reload", "", Some(Admin), 200),
    ("GET", "/export?since=999999999", "", Some(Admin), 410),
    ("HEAD", "/export", "", Some(Admin), 200),
    ("GET", "/livez", "", None, 200),
    ("GET", "/readyz", "", None, 200),
    ("GET", "/nothing", "", None, 404),
    // Routes of a plugin: that of a key reads or writes its entry.
    ("GET", "/x/serves/k/{}", "", Some(Read), 200),
    ("HEAD", "/x/serves/k/{}", "", Some(Read), 200),
    ("PUT", "/x/serves/k/{}", "new", Some(Write), 204),
    ("GET", "/x/serves/hello/all", "", None, 200),
    ("OPTIONS", "/x/serves/admin", "", None, 204),
    ("GET", "/x/serves/admin", "", Some(Admin), 200),
    ("HEAD", "/x/serves/admin", "", Some(Admin), 200),
    ("GET", "/x/serves/nothing", "", None, 404),
];

/// Keys as they may be written in a target, and as they are stored.
const KEYS: [(&str, &str); 14] = [
    ("a/x", "a/x"),
    ("%61/x", "a/x"),
    ("a%2fx", "a/x"),
    ("a%2F..", "a/.."),
    ("a/../b/x", "a/../b/x"),
    ("a/%2e%2e/b/x", "a/../b/x"),
    ("a", "a"),
    ("ab", "ab"),
    ("b/x", "b/x"),
    ("b%2Fx?a/x", "b/x"),
    ("../a/x", "../a/x"),
    ("/a/x", "/a/x"),
    ("%2561/x", "%61/x"),
    ("A/x", "A/x"),
];

/// The value of `Authorization`, and the permission and prefix of its token, if the token is known.
type Sent = (Option<&'static str>, Option<(Right, &'static str)>);

const SENT: [Sent; 13] = [
    (None, None),
    (Some(""), None),
    (Some("Bearer"), None),
    (Some("Bearer unknown"), None),
    (Some("Bearer reader2"), None),
    (Some("Basic reader"), None),
    (Some("reader"), None),
    (Some("Bearer reader"), Some((Read, ""))),
    (Some("bearer writer"), Some((Write, ""))),
    (Some("Bearer operator"), Some((Admin, ""))),
    (Some("Bearer reader-of-a"), Some((Read, "a/"))),
    (Some("Bearer writer-of-a"), Some((Write, "a/"))),
    // The SHA-256 of a token, which is not itself a token.
    (Some("Bearer 06e55b633481f7bb072957eabcf110c972e86691c3cfedabe088024bffe42f23"), None),
];

const CONFIG: &str = r#"
[[access.tokens]]
name = "dashboards"
token = "reader"
right = "read"

[[access.tokens]]
name = "importer"
token = "writer"
right = "write"

[[access.tokens]]
name = "operator"
token_sha256 = "06e55b633481f7bb072957eabcf110c972e86691c3cfedabe088024bffe42f23"
right = "admin"

[[access.tokens]]
name = "a's dashboards"
token = "reader-of-a"
right = "read"
prefix = "a/"

[[access.tokens]]
name = "a's importer"
token = "writer-of-a"
right = "write"
prefix = "a/"
"#;

/// A token with all permissions.
const OPERATOR: Option<&str> = Some("Bearer operator");

fn ask(wire: &mut Wire, sent: Option<&str>, method: &str, target: &str, body: &str) -> Reply {
    let authorization = sent.map(|sent| format!("Authorization: {sent}\r\n")).unwrap_or_default();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let json = if target == "/batch" { "Content-Type: application/json\r\n" } else { "" };
    wire.send(format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{authorization}{json}{length}\r\n{body}"))
        .reply()
}

/// Returns a key for a target, with every byte encoded.
fn encoded(key: &str) -> String {
    key.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[test]
fn every_endpoint_checks_the_permission_of_every_token_for_every_key() {
    for engine in ENGINES {
        let server = Setup::new().load(artefacts().library("serves")).config(CONFIG).args(["--http", engine]).start();
        let mut operator = server.wire();
        let mut asked = 0;
        for (sent, token) in SENT {
            let mut wire = server.wire();
            for (method, target, body, right, done) in ENDPOINTS {
                let about_keys = target.contains("{}") || body.contains("{}");
                // Requests about the whole server belong to no prefix.
                let keys = if about_keys { &KEYS[..] } else { &[("", "")] };
                for (spelled, key) in keys {
                    let entry = format!("/k/{}", encoded(key));
                    if about_keys {
                        ask(&mut operator, OPERATOR, "PUT", &entry, "old").expect(200);
                    }
                    let target = target.replace("{}", spelled);
                    // A body is not a URL: it contains the key as it is stored.
                    let reply = ask(&mut wire, sent, method, &target, &body.replace("{}", key));
                    let expected = match (right, token) {
                        (None, _) => done,
                        (Some(_), None) => 401,
                        (Some(right), Some((has, prefix))) if has >= right && key.starts_with(prefix) => done,
                        _ => 403,
                    };
                    assert_eq!(reply.status, expected, "{engine}: {sent:?} {method} {target}, {reply}");
                    asked += 1;
                    if expected == 401 {
                        assert_eq!(reply.header("WWW-Authenticate"), Some("Bearer realm=\"vkog\""), "{reply}");
                    }
                    if expected == 401 || expected == 403 {
                        assert!(!reply.text().contains("old"), "{engine}: {reply}");
                        if about_keys {
                            ask(&mut operator, OPERATOR, "GET", &entry, "").expect(200).is("old");
                        }
                    }
                }
            }
        }
        let about_keys = |(_, target, body, ..): &&(_, &str, &str, _, _)| target.contains("{}") || body.contains("{}");
        let about_keys = ENDPOINTS.iter().filter(about_keys).count();
        assert_eq!(asked, SENT.len() * (about_keys * KEYS.len() + ENDPOINTS.len() - about_keys));
        assert!(!server.log().contains("writer-of-a"), "a secret in the log:\n{}", server.log());
        server.logs(&["a's importer", "write keys that begin with", "refused"]);
        server.logs(&["operator", "administers", "/plugins/reload"]);
    }
}

#[test]
fn a_public_address_requires_tokens_or_open() {
    let setup = Setup::new();
    let served = |server: &Server, sent: Option<&str>| ask(&mut server.wire(), sent, "PUT", "/k/k", "v").status;
    for engine in ENGINES {
        for listen in ["0.0.0.0:0", "[::]:0"] {
            let exit = setup.run(["--no-plugins", "--http", engine, "--listen", listen]).expect(1);
            let told: Vec<_> = exit.stderr.lines().filter(|line| line.starts_with("vkog: ")).collect();
            assert!(told.len() == 1 && told[0].contains("[[access.tokens]]") && told[0].contains("--open"), "{exit}");
            assert_eq!(exit.stdout, "", "{exit}");
        }
        let others = ["--no-plugins", "--http", engine, "--listen", "0.0.0.0:0"];
        let open = setup.clone().env("VKOG_OPEN", "true").start_with(others);
        assert_eq!(served(&open, None), 200);
        open.logs(&["--open", "every client"]);
        open.stop().expect(0);
        setup.write_config(CONFIG);
        let known = setup.start_with(others.into_iter().chain(["--config", "vkog.toml"]));
        assert_eq!((served(&known, None), served(&known, Some("Bearer writer"))), (401, 200));
        known.stop().expect(0);
    }
}

#[test]
fn an_open_server_requires_a_token_only_for_administration() {
    for engine in ENGINES {
        let server = Setup::new().config(CONFIG).args(["--open", "--http", engine]).start();
        let mut wire = server.wire();
        // A plugin may require tokens that the host does not know.
        for sent in [None, Some("Bearer unknown"), Some("Bearer reader-of-a")] {
            ask(&mut wire, sent, "PUT", "/k/b", "v").expect(200);
            ask(&mut wire, sent, "GET", "/plugins", "").expect(200);
        }
        for (sent, status) in
            [(None, 401), (Some("Bearer unknown"), 401), (Some("Bearer writer"), 403), (OPERATOR, 200)]
        {
            ask(&mut wire, sent, "POST", "/plugins/reload", "").expect(status);
        }
    }
}

#[test]
fn a_reload_replaces_all_tokens_or_none() {
    for engine in ENGINES {
        let setup = Setup::new().config(CONFIG).args(["--http", engine]);
        let server = setup.start();
        let mut wire = server.wire();
        ask(&mut wire, Some("Bearer writer"), "PUT", "/k/k", "v").expect(200);
        setup.write_config(&CONFIG.replace("\"writer\"", "\"replaced\"").replace("a/", "b/"));
        ask(&mut wire, Some("Bearer operator"), "POST", "/plugins/reload", "").expect(200);
        ask(&mut wire, Some("Bearer writer"), "GET", "/k/k", "").expect(401);
        ask(&mut wire, Some("Bearer replaced"), "GET", "/k/k", "").expect(200);
        ask(&mut wire, Some("Bearer writer-of-a"), "PUT", "/k/a/x", "v").expect(403);
        ask(&mut wire, Some("Bearer writer-of-a"), "PUT", "/k/b/x", "v").expect(200);
        setup.write_config(&CONFIG.replace("right = \"read\"", "right = \"all\""));
        server.signal("HUP");
        server.logs(&["nothing was reloaded", "all"]);
        ask(&mut wire, Some("Bearer replaced"), "GET", "/k/k", "").expect(200);
        setup.write_config(CONFIG);
        server.signal("HUP");
        let told = |log: &str| log.matches("reloaded access tokens").count() == 2;
        assert!(server.logged(told), "{}", server.log());
        ask(&mut wire, Some("Bearer replaced"), "GET", "/k/k", "").expect(401);
        ask(&mut wire, Some("Bearer writer"), "GET", "/k/k", "").expect(200);
    }
}

#[cfg(unix)]
#[test]
fn configured_tokens_are_required_on_a_unix_socket_too() {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    for engine in ENGINES {
        let setup = Setup::new();
        setup.write_config(CONFIG);
        let socket = setup.folder().join("socket");
        let listen = format!("unix:{}", socket.display());
        let mut command = setup.vkog();
        command.args(["--no-plugins", "--config", "vkog.toml", "--listen", &listen, "--http", engine]);
        let running = vkog_tests::Running::start(&mut command);
        assert!(running.stdout.wait_for(|text| text.contains(&listen)), "{}", running.stderr.text());
        for (sent, status) in [("unknown", "401"), ("writer", "403"), ("operator", "200")] {
            let mut stream = UnixStream::connect(&socket).expect("it listens");
            let head = format!(
                "POST /plugins/reload HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {sent}\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).expect("it reads");
            let mut reply = String::new();
            stream.read_to_string(&mut reply).expect("it answers and closes");
            assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{engine}: {sent}: {reply}");
        }
    }
}
