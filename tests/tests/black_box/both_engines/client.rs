//! `vkog get|put|post|delete|ls|watch|batch` transfer values byte for byte, and report a failure in one line.
//!
//! Provoked with the program against real servers; and, for lost connections and rare responses, against a server that
//! only reads requests and sends prepared responses.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use vkog_tests::{Exit, Running, Server, Setup, answer, answering, bytes, conflict, pattern};

use super::ENGINE;

/// Runs a shell command in which `vkog` uses this server.
#[track_caller]
fn run(setup: &Setup, server: &Server, line: &str) -> Exit {
    run_at(setup, &format!("http://{}", server.address()), line)
}

#[track_caller]
fn run_at(setup: &Setup, url: &str, line: &str) -> Exit {
    Running::start(setup.shell(line).env("VKOG_URL", url)).wait()
}

/// Quotes a word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[test]
fn values_from_arguments_files_and_pipes_are_exact() {
    let setup = Setup::on(ENGINE);
    let server = setup.start();
    let value = pattern(300_000);
    std::fs::write(setup.folder().join("in"), &value).expect("it is ours");
    for (line, key, expected) in [
        ("vkog put a 'one value'", "a", &b"one value"[..]),
        ("vkog post b --file in", "b", &value),
        ("vkog put c < in", "c", &value),
        ("cat in | vkog put d", "d", &value),
        ("cat in | vkog put e --file -", "e", &value),
        ("vkog put f -- -5", "f", b"-5"),
        ("printf '\\000\\377\\r\\n' | vkog put g", "g", b"\0\xff\r\n"),
    ] {
        let exit = run(&setup, &server, line).expect(0);
        let reply = server.get(key).expect(200).is(expected);
        assert_eq!((exit.stdout.trim(), &*exit.stderr), (&*reply.revision().to_string(), ""), "{exit}");
        for line in
            [format!("vkog get {key} > out"), format!("vkog get {key} -o out"), format!("vkog get {key} | cat > out")]
        {
            let exit = run(&setup, &server, &line).expect(0);
            assert_eq!((&*exit.stdout, &*exit.stderr), ("", ""), "{exit}");
            let got = std::fs::read(setup.folder().join("out")).expect("it was written");
            assert!(got == expected, "{line}: {} bytes came", got.len());
        }
    }
    run(&setup, &server, "vkog get b | head -c 5 > out").expect(0);
    run(&setup, &server, "vkog put a '{}' --content-type application/json -H 'X-A: b'").expect(0);
    server.get("a").expect(200).has("Content-Type", "application/json");
    run(&setup, &server, "vkog delete a").expect(0);
    server.get("a").expect(404);
}

#[test]
fn a_large_value_is_sent_from_a_pipe_and_got_into_a_file() {
    const LEN: usize = 48 << 20;
    let setup = Setup::on(ENGINE);
    let server = setup.start();
    let value = pattern(LEN);
    std::fs::write(setup.folder().join("in"), &value).expect("it is ours");
    for line in ["cat in | vkog put big && vkog get big -o out", "vkog put big -f in && vkog get big | cat > out"] {
        run(&setup, &server, line).expect(0);
        let got = std::fs::read(setup.folder().join("out")).expect("it was written");
        assert!(got == value, "{line}: {} bytes came", got.len());
    }
}

#[test]
fn the_client_prints_the_message_of_a_refusal() {
    let setup = Setup::on(ENGINE).load(bytes()).load(conflict()).args(["--max-size", "1000", "--max-value", "2000"]);
    let server = setup.start();
    server.post("k", "v").expect(200);
    for (line, told) in [
        ("vkog get absent", "vkog: cannot get absent: Not Found (404)"),
        ("vkog delete absent", "vkog: cannot delete absent: Not Found (404)"),
        ("vkog post k w", "vkog: cannot post k: Key already exists (409)"),
        (
            "vkog put absent w --update",
            "vkog: cannot put absent: Precondition failed: the entry is not as expected (412)",
        ),
        ("vkog put k ''", "vkog: cannot put k: No content provided (400)"),
        (
            "head -c 1500 /dev/zero | vkog put k",
            "vkog: cannot put k: Max size exceeded: \"k\" needs 1499 bytes, 998 of 1000 are free (413)",
        ),
        (
            "head -c 50000000 /dev/zero | vkog put k",
            "vkog: cannot put k: Value too large: 50000000 bytes; the maximum is 2000 (--max-value) (413)",
        ),
    ] {
        let status = if told.ends_with("(404)") { 3 } else { 4 };
        let exit = run(&setup, &server, line).expect(status);
        assert_eq!((exit.one_error(), &*exit.stdout), (told, ""), "{exit}");
    }
    server.get("k").expect(200).is("v");
}

#[test]
fn the_client_prints_a_response_that_arrives_before_its_body_is_sent() {
    let setup = Setup::on(ENGINE);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    let refusing = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody connects");
        stream.read_exact(&mut [0; 1000]).expect("a head, and some of the body");
        stream
            .write_all(answer("413 Content Too Large", "text/plain", "Too much\n").as_bytes())
            .expect("it is connected");
    });
    let exit = run_at(&setup, &url, "head -c 100000000 /dev/zero | vkog put k").expect(4);
    assert_eq!(exit.one_error(), "vkog: cannot put k: Too much (413)");
    refusing.join().expect("it refused");
}

#[test]
fn an_impossible_request_is_one_line_and_an_exit_status() {
    let setup = Setup::on(ENGINE);
    let (url, gone) = answering(Vec::new());
    gone.join().expect("it listens no more");
    let cannot: [(&str, i32, &[&str]); 9] = [
        ("vkog get k", 6, &["no server listens at http://127.0.0.1:"]),
        ("vkog put k --file absent", 1, &["cannot read absent"]),
        ("vkog get k --token-file absent", 1, &["cannot read absent"]),
        ("vkog get k --url unix:absent", 6, &["unix:absent"]),
        ("vkog get k --url 127.0.0.1:3110", 2, &["not the address of a server"]),
        ("vkog get", 2, &["KEY"]),
        ("vkog put k v --file f", 2, &["--file"]),
        ("vkog get k -H nonsense", 2, &["NAME: VALUE"]),
        ("vkog ls --count --json", 2, &["--count"]),
    ];
    for (line, status, words) in cannot {
        let exit = run_at(&setup, &url, line).expect(status);
        let told = exit.one_error();
        assert!(words.iter().all(|word| told.contains(word)), "{words:?} in {exit}");
    }
}

#[test]
fn any_key_can_be_written_listed_read_and_removed() {
    let setup = Setup::on(ENGINE);
    let server = setup.start();
    let keys =
        ["a/b/c", "a b", "100%", "%41", "?x=1&y#z", "\u{e9}\u{1f980}", "a+b", "..", "../x", "/", "//a", "it's \"so\""];
    for key in keys {
        let word = quoted(key);
        run(&setup, &server, &format!("vkog put {word} {word}")).expect(0);
        server.get(key).expect(200).is(key);
        assert_eq!(run(&setup, &server, &format!("vkog get {word}")).expect(0).stdout, key);
        let listed = run(&setup, &server, &format!("vkog ls {word} --limit 1")).expect(0);
        assert_eq!(listed.stdout, format!("{key}\n"));
    }
    let listed = run(&setup, &server, "vkog ls").expect(0).stdout;
    let in_order: Vec<_> = BTreeSet::from(keys).into_iter().collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), in_order);
    for key in keys {
        run(&setup, &server, &format!("vkog delete -- {}", quoted(key))).expect(0);
    }
    assert_eq!(run(&setup, &server, "vkog ls --count").expect(0).stdout, "0\n");
}

#[test]
fn a_listing_continues_over_pages_up_to_its_limit() {
    let setup = Setup::on(ENGINE);
    let server = setup.start();
    let mut keys: Vec<String> = (0..2_100).map(|number| format!("n/{number:05}")).collect();
    keys.push("z".to_owned());
    for key in &keys {
        server.put(key, "12345").expect(200);
    }
    let listed = |arguments: &str| run(&setup, &server, &format!("vkog ls {arguments}")).expect(0).stdout;
    assert_eq!(listed("").lines().collect::<Vec<_>>(), keys);
    assert_eq!(listed("n/ --limit 1500 --after n/00009").lines().collect::<Vec<_>>(), keys[10..1510]);
    assert_eq!((&*listed("--count"), &*listed("n/020 -c")), ("2101\n", "100\n"));
    assert_eq!((&*listed("--delimiter"), &*listed("--delimiter=5 n/020")), ("n/\nz\n".to_owned().as_str(), &*folded()));
    let revision = server.get("z").expect(200).revision();
    let long = listed("z --long");
    let columns: Vec<_> = long.split_whitespace().collect();
    assert_eq!(columns, ["5", &revision.to_string(), "application/octet-stream", "z"]);
    let json: serde_json::Value = serde_json::from_str(&listed("z --json")).expect("one object");
    assert_eq!((json["key"].as_str(), json["size"].as_u64()), (Some("z"), Some(5)));
    assert_eq!(listed("--json --delimiter / n").lines().next(), Some("{\"prefix\":\"n/\"}"));
    run(&setup, &server, "vkog ls | head -n 1").expect(0);
}

/// The prefix into which `n/02000` to `n/02099` are folded at the delimiter 5.
fn folded() -> String {
    let line = |number: u32| {
        let key = format!("n/{number:05}");
        let at = key["n/020".len()..].find('5').map(|at| "n/020".len() + at + 1);
        format!("{}\n", at.map_or(&*key, |at| &key[..at]))
    };
    (2000..2100).map(line).collect::<BTreeSet<_>>().into_iter().collect()
}

#[test]
fn conditions_take_revisions_and_an_existing_key_is_not_created() {
    let setup = Setup::on(ENGINE);
    let server = setup.start();
    let first = server.put("k", "1").expect(200).revision();
    run(&setup, &server, &format!("vkog put k 2 --if-match {first}")).expect(0);
    let exit = run(&setup, &server, &format!("vkog put k 3 --if-match {first}")).expect(4);
    assert_eq!(exit.one_error(), "vkog: cannot put k: Precondition failed: the entry is not as expected (412)");
    run(&setup, &server, "vkog put k 3 --if-match \"9999,$(vkog get --revision k)\"").expect(0);
    run(&setup, &server, "vkog put k 4 --if-none-match '*'").expect(4);
    run(&setup, &server, "vkog put new 1 --if-none-match '*'").expect(0);
    server.get("k").expect(200).is("3");
    let line = "vkog get k --if-none-match $(vkog get --revision k) -o out";
    assert_eq!(run(&setup, &server, line).expect(0).stdout, "");
    assert!(!setup.folder().join("out").exists());
    run(&setup, &server, &format!("vkog delete k --if-match {first}")).expect(4);
    run(&setup, &server, "vkog delete k --if-match '*'").expect(0);
}

#[test]
fn a_token_comes_from_the_environment_a_file_or_an_option() {
    let setup = Setup::on(ENGINE).config("[[access.tokens]]\nname = \"a\"\ntoken = \"s3cret\"\nright = \"write\"\n");
    let server = setup.start();
    std::fs::write(setup.folder().join("token"), "s3cret\n").expect("it is ours");
    for (line, status) in [
        ("vkog put k v", 5),
        ("vkog put k v --token wrong", 5),
        ("vkog put k v --token s3cret", 0),
        ("VKOG_TOKEN=s3cret vkog put k v", 0),
        ("VKOG_TOKEN=wrong vkog put k v --token-file token", 0),
        ("vkog put k v -H 'Authorization: Bearer s3cret'", 0),
    ] {
        let exit = run(&setup, &server, line).expect(status);
        assert!(status == 0 || exit.one_error().contains("in the header Authorization"), "{exit}");
        assert!(!exit.stderr.contains("s3cret"), "{exit}");
    }
}

#[test]
#[cfg(unix)]
fn a_server_on_a_unix_socket_is_used_as_any_other() {
    let setup = Setup::on(ENGINE);
    let path = setup.folder().join("socket");
    let listen = format!("unix:{}", path.display());
    let server = Running::start(setup.vkog().args(["--no-plugins", "--file", "u.vkog", "--listen", &listen]));
    assert!(server.stdout.wait_for(|text| text.contains('\n')), "{}", server.stderr.text());
    let value = pattern(3 << 20);
    std::fs::write(setup.folder().join("in"), &value).expect("it is ours");
    run_at(&setup, &listen, "vkog put a/b -f in && vkog get a/b -o out && vkog get a/b > out2 && vkog ls").expect(0);
    for out in ["out", "out2"] {
        assert!(std::fs::read(setup.folder().join(out)).expect("it was written") == value, "{out}");
    }
}

#[test]
fn a_partial_value_replaces_no_file() {
    let setup = Setup::on(ENGINE);
    std::fs::write(setup.folder().join("out"), "before").expect("it is ours");
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf";
    let (url, answering) = answering(vec![half.to_owned()]);
    let exit = run_at(&setup, &url, "vkog get k -o out").expect(6);
    assert!(exit.one_error().starts_with("vkog: cannot get k: the connection was lost"), "{exit}");
    assert_eq!(std::fs::read_to_string(setup.folder().join("out")).expect("it exists"), "before");
    assert_eq!(std::fs::read_dir(setup.folder()).expect("a folder").count(), 1, "what was begun is left behind");
    answering.join().expect("one request");
}

#[test]
fn a_watch_resumes_after_its_last_revision_until_the_server_returns_410() {
    let setup = Setup::on(ENGINE);
    let stream = |events: &str| format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{events}");
    let (url, answering) = answering(vec![
        stream(
            "retry: 1000\nid: 41\n\nid: 42\nevent: put\ndata: {\"key\":\"a b\",\"revision\":42,\"size\":3}\n\n\
             id: 43\nevent: delete\ndata: {\"key\":\"a b\",\"rev",
        ),
        stream(
            ": nothing yet\n\nid: 43\nevent: delete\ndata: {\"key\":\"a b\",\"revision\":43}\n\n\
             id: 50\n\nid: 50\nevent: end\ndata: {\"status\":410}\n\n",
        ),
        answer("410 Gone", "text/plain", "The history begins at revision 60\n"),
    ]);
    let exit = run_at(&setup, &url, "vkog watch 'a ' --since 40").expect(4);
    assert_eq!(exit.stdout, "put 42 a b\ndelete 43 a b\n", "{exit}");
    let last = exit.stderr.lines().last();
    assert_eq!(last, Some("vkog: cannot watch a : The history begins at revision 60 (410)"), "{exit}");
    let requests = answering.join().expect("three requests");
    for (request, since) in requests.iter().zip(["40", "42", "50"]) {
        assert!(request.starts_with(&format!("GET /watch?prefix=a%20&since={since} ")), "{request}");
    }
}

#[test]
fn a_watch_reconnects_while_a_proxy_has_no_server_and_ends_without_a_permission() {
    let setup = Setup::on(ENGINE);
    let event = "id: 42\nevent: put\ndata: {\"key\":\"a\",\"revision\":42,\"size\":3}\n\n";
    let stream = format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n{event}");
    let page = |status: &str| answer(status, "text/html", "<html>\n<body>nginx</body></html>\n");
    for (status, refused) in [("502 Bad Gateway", "401 Unauthorized"), ("504 Gateway Timeout", "404 Not Found")] {
        let (url, answering) = answering(vec![stream.clone(), page(status), answer(refused, "text/plain", "No\n")]);
        let status_of_refusal = if refused.starts_with("404") { 3 } else { 5 };
        let exit = run_at(&setup, &url, "vkog watch").expect(status_of_refusal);
        assert_eq!(exit.stdout, "put 42 a\n", "{exit}");
        let (code, reason) = status.split_once(' ').expect("a status line");
        let lines: Vec<&str> = exit.stderr.lines().collect();
        assert_eq!(lines[1], format!("vkog: {reason} ({code}); reconnecting in 2 s"), "{exit}");
        assert_eq!(lines[2], format!("vkog: cannot watch all keys: No ({})", &refused[..3]), "{exit}");
        for request in &answering.join().expect("three requests")[1..] {
            assert!(request.starts_with("GET /watch?prefix=&since=42 "), "{request}");
        }
    }
}

#[test]
fn a_long_batch_is_sent_in_parts_and_a_failure_names_its_line() {
    let setup = Setup::on(ENGINE);
    let mut lines: Vec<String> =
        (0..2_000).map(|number| format!("{{\"op\":\"put\",\"key\":\"{number}\",\"value\":\"v\"}}")).collect();
    lines.insert(5, String::new());
    std::fs::write(setup.folder().join("in"), lines.join("\n")).expect("it is ours");
    let done =
        |count| answer("200 OK", "application/json", &format!("[{}]", vec!["{\"status\":200}"; count].join(",")));
    let (url, parts) = answering(vec![done(1024), done(976)]);
    let exit = run_at(&setup, &url, "vkog batch in").expect(0);
    assert_eq!((&*exit.stdout, &*exit.stderr), ("", "in: completed 2000 operations\n"));
    let parts = parts.join().expect("two requests");
    let mut sent = Vec::new();
    for (part, expected) in parts.iter().zip([1024, 976]) {
        let (head, body) = part.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("POST /batch ") && head.to_lowercase().contains("content-type: application/json"));
        let operations: Vec<serde_json::Value> = serde_json::from_str(body).expect("an array");
        assert_eq!(operations.len(), expected);
        sent.extend(operations.into_iter().map(|operation| operation.to_string().len()));
    }
    assert_eq!(sent.len(), 2000);

    let problem = "{\"type\":\"about:blank\",\"title\":\"Key already exists\",\"status\":409,\"index\":1}";
    let (url, parts) = answering(vec![done(1024), answer("409 Conflict", "application/problem+json", problem)]);
    let exit = run_at(&setup, &url, "cat in | vkog batch").expect(4);
    let told = "vkog: standard input: line 1027: Key already exists (409); the first 1024 operations succeeded, nothing else was changed";
    assert_eq!((exit.one_error(), &*exit.stdout), (told, ""), "{exit}");
    parts.join().expect("two requests");

    let exit = run_at(&setup, &url, "printf '{\"op\":1}\\n{\"op\":2},\\n' | vkog batch").expect(1);
    assert!(exit.one_error().starts_with("vkog: standard input: line 2 is not a JSON object"), "{exit}");
    let exit = run_at(&setup, &url, "echo '{}' | vkog batch").expect(6);
    assert!(exit.one_error().contains("no server listens"), "{exit}");
}

#[test]
fn the_help_of_every_command_fits_a_screen_and_shows_an_example() {
    let setup = Setup::on(ENGINE);
    for command in ["serve", "get", "put", "post", "delete", "ls", "watch", "batch"] {
        let exit = setup.run([command, "--help"]).expect(0);
        assert!(exit.stdout.lines().count() <= 45, "{exit}");
        let example = exit.stdout.split("Example:").nth(1).unwrap_or_default();
        assert!(example.contains("vkog"), "an example in {exit}");
    }
}
