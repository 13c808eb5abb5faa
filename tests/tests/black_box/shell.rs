//! The client in a shell: it creates and replaces, guards a terminal, prints what a batch found, and stops waiting for a silent
//! server. The examples of the help work as they are.
//!
//! Provoked with the program against real servers, a pseudoterminal, and servers that send prepared responses or nothing.

use std::io::Write as _;
use std::net::TcpListener;

#[cfg(unix)]
use vkog_tests::on_terminal;
use vkog_tests::{Exit, Running, Server, Setup, answer, answering, bytes, conflict, put_in_place, ttl};

use super::reference::{COMMANDS, help};

/// Runs a shell command in which `vkog` uses this server.
#[track_caller]
fn run(setup: &Setup, server: &Server, line: &str) -> Exit {
    Running::start(setup.shell(line).env("VKOG_URL", format!("http://{}", server.address()))).wait()
}

/// A server with the plugins of the README, and without any.
fn servers() -> [Setup; 2] {
    [[bytes(), conflict(), ttl()].iter().fold(Setup::new(), Setup::load), Setup::new()]
}

#[test]
fn put_creates_and_replaces_and_is_strict_on_request() {
    for setup in servers() {
        let server = setup.start();
        std::fs::write(setup.folder().join("in"), "from a file").expect("it is ours");
        for (line, status, value) in [
            ("vkog put k --update 0", 4, None),
            ("vkog put k 1", 0, Some("1")),
            ("vkog put k 2", 0, Some("2")),
            ("vkog put k --create 3", 4, Some("2")),
            ("vkog put k --update 4", 0, Some("4")),
            ("vkog delete k", 0, None),
            ("vkog put k --create --file in", 0, Some("from a file")),
            ("vkog delete k && vkog put k --file in --content-type a/b", 0, Some("from a file")),
            ("vkog delete k && printf piped | vkog put k", 0, Some("piped")),
            ("vkog put k --create --update 5", 2, Some("piped")),
            ("vkog put k --create --if-match 5 5", 2, Some("piped")),
        ] {
            run(&setup, &server, line).expect(status);
            match value {
                Some(value) => _ = server.get("k").expect(200).is(value),
                None => _ = server.get("k").expect(404),
            }
        }
    }
}

#[test]
fn put_follows_other_clients_that_create_and_delete_its_key() {
    let setup = Setup::new();
    let refusal = |status: &str| answer(status, "text/plain", "No\n");
    let (absent, present) = (refusal("404 Not Found"), refusal("412 Precondition Failed"));
    let done = "HTTP/1.1 200 OK\r\nETag: \"7\"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOk".to_owned();
    let (url, answered) = answering(vec![absent.clone(), present.clone(), absent.clone(), done]);
    let exit = Running::start(setup.shell("vkog put k v").env("VKOG_URL", url)).wait().expect(0);
    assert_eq!(exit.stdout, "7\n", "{exit}");
    let creates: Vec<bool> = answered
        .join()
        .expect("four requests")
        .iter()
        .map(|it| it.to_lowercase().contains("if-none-match: *"))
        .collect();
    assert_eq!(creates, [false, true, false, true]);
    // Not without an end.
    let (url, answered) =
        answering(vec![absent.clone(), present.clone(), absent.clone(), present, absent.clone(), absent]);
    Running::start(setup.shell("vkog put k v").env("VKOG_URL", url)).wait().expect(3);
    answered.join().expect("six requests");
}

#[test]
fn a_value_may_begin_with_a_hyphen() {
    let setup = Setup::new();
    let server = setup.start();
    for (line, value) in [
        ("vkog put n -5", "-5"),
        ("vkog put n '- buy milk'", "- buy milk"),
        ("vkog put n -0.5 --content-type text/plain", "-0.5"),
        ("vkog post n -6", "-6"),
        ("vkog put n -- --two", "--two"),
        ("vkog put -- n -h", "-h"),
    ] {
        run(&setup, &server, line).expect(0);
        server.get("n").expect(200).is(value);
    }
    let exit = run(&setup, &server, "vkog put n --if-mach 5").expect(2);
    assert!(exit.one_error().contains("'--if-match'") && exit.one_error().contains("vkog put --help"), "{exit}");
    for command in ["put", "post"] {
        assert!(help(command).contains("follows --: vkog"), "vkog {command} --help does not name --");
    }
}

#[test]
fn a_batch_prints_the_results_of_its_gets_and_with_json_of_everything() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("raw", [0, 255]).expect(200);
    let lines = [
        r#"{"op":"post","key":"a","value":"1\n2\u001b"}"#,
        "",
        r#"{"op":"get","key":"a"}"#,
        r#"{"op":"get","key":"absent"}"#,
        r#"{"op":"get","key":"raw"}"#,
    ];
    std::fs::write(setup.folder().join("in"), lines.join("\n")).expect("it is ours");
    let exit = run(&setup, &server, "vkog batch in").expect(0);
    let expected = "line 3: a = 1\\n2\\u{1b}\nline 4: absent does not exist\nline 5: raw = \\x00\\xff\n";
    assert_eq!((&*exit.stdout, &*exit.stderr), (expected, "in: completed 4 operations\n"), "{exit}");
    let exit = run(&setup, &server, "vkog batch --json < in").expect(0);
    let results: Vec<serde_json::Value> =
        exit.stdout.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let of = |name: &str| results.iter().map(|result| result[name].to_string()).collect::<Vec<_>>();
    assert_eq!(of("line"), ["1", "3", "4", "5"]);
    assert_eq!(of("key"), [r#""a""#, r#""a""#, r#""absent""#, r#""raw""#]);
    assert_eq!(of("status"), ["200", "200", "404", "200"]);
    assert_eq!((&*of("value")[1], &*of("base64")[3]), (r#""1\n2\u001b""#, r#""AP8=""#));
    assert!(results[0]["revision"].is_u64(), "{exit}");
    // Without a reader, the operations still run.
    run(&setup, &server, "{ vkog batch --json; echo $? > status; } < in | true; exit $(cat status)").expect(0);
}

#[test]
fn a_batch_counts_its_lines_from_1_in_every_message() {
    let setup = Setup::new();
    let server = setup.start();
    for (wrong, message) in [
        (
            r#"{"op":"gett","key":"a"}"#,
            "line 2: cannot be read: op is \"gett\"; use get, post, put, patch or delete (400)",
        ),
        (r#"{"op":"put","key":"a"}"#, "line 2: No content provided (400)"),
        ("[]", "line 2 is not a JSON object"),
    ] {
        std::fs::write(setup.folder().join("in"), format!("{{\"op\":\"get\",\"key\":\"a\"}}\n{wrong}\n"))
            .expect("it is ours");
        let exit = run(&setup, &server, "vkog batch in");
        assert_ne!(exit.status.code(), Some(0), "{exit}");
        let line = exit.one_error();
        assert!(line.contains(message) && !line.contains("Operation") && !line.contains("column 6"), "{exit}");
    }
}

#[test]
#[cfg(unix)]
fn a_terminal_gets_no_control_characters_of_keys_and_values() {
    let setup = Setup::new();
    let server = setup.start();
    let key = "a\u{1b}[31m\nb\u{202e}c";
    let value = b"one\ttwo\n\x1b]0;title\x07\xff\xc2";
    server.put(key, value).expect(200);
    let url = format!("http://{}", server.address());
    let shown = |arguments: &[&str]| {
        let mut command = setup.vkog();
        String::from_utf8(on_terminal(command.args(arguments).env("VKOG_URL", &url))).expect("text")
    };
    assert_eq!(shown(&["get", key]), "one\ttwo\n\\u{1b}]0;title\\u{7}\\xff\\xc2");
    assert_eq!(shown(&["ls"]), "a\\u{1b}[31m\\nb\\u{202e}c\n");
    server.put("k", "\u{1b}[31m").expect(200);
    assert_eq!(shown(&["get", "k", "--raw"]), "\u{1b}[31m");
    // Elsewhere, both are as they are.
    assert_eq!(run(&setup, &server, "vkog get k").expect(0).stdout, "\u{1b}[31m");
    assert_eq!(run(&setup, &server, "vkog ls").expect(0).stdout, format!("{key}\nk\n"));
    assert_eq!(run(&setup, &server, "vkog ls -0").expect(0).stdout, format!("{key}\0k\0"));
    let columns = shown(&["ls", "--long"]);
    assert!(columns.lines().count() == 2 && !columns.contains('\u{1b}'), "{columns}");
}

#[test]
fn a_client_waits_for_a_silent_server_only_until_its_timeout() {
    let setup = Setup::new();
    // Connections end in its queue.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it is bound");
    std::fs::write(setup.folder().join("in"), "{\"op\":\"get\",\"key\":\"k\"}\n").expect("it is ours");
    std::fs::write(setup.folder().join("big"), vec![b'x'; 30 << 20]).expect("it is ours");
    for line in ["get k", "put k v", "put k --file big", "post k v", "delete k", "ls", "watch", "batch in"] {
        for scheme in ["http", "https"] {
            let line = format!("vkog {line} --timeout 300ms --url {scheme}://{address}");
            let exit = Running::start(&mut setup.shell(&line)).wait().expect(6);
            assert!(exit.one_error().contains(&format!("no progress for 300ms at {scheme}://{address}; ")), "{exit}");
        }
    }
    for wrong in ["0s", "5", "soon"] {
        Running::start(&mut setup.shell(&format!("vkog ls --timeout {wrong}"))).wait().expect(2);
    }
}

#[test]
fn a_client_waits_for_the_rest_of_a_response_only_until_its_timeout() {
    let setup = Setup::new();
    std::fs::write(setup.folder().join("in"), "{\"op\":\"get\",\"key\":\"k\"}\n").expect("it is ours");
    for (line, start) in [("get k", "v"), ("get k -o out", "v"), ("ls", "{"), ("batch in", "[{")] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let line = format!("vkog {line} --timeout 300ms --url http://{address}");
        let client = Running::start(&mut setup.shell(&line));
        let (mut stream, _) = listener.accept().expect("it connects");
        let part = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{start}");
        stream.write_all(part.as_bytes()).expect("it is connected");
        let exit = client.wait().expect(6);
        assert!(exit.stderr.contains("no progress for 300ms"), "{exit}");
    }
}

#[test]
fn an_empty_environment_variable_is_unset() {
    let setup = Setup::new();
    let variables: Vec<String> = setup
        .run(["serve", "--help"])
        .expect(0)
        .stdout
        .split("--")
        .filter_map(|rest| {
            let name: String = rest.chars().take_while(|char| char.is_ascii_lowercase() || *char == '-').collect();
            (!name.is_empty() && name != "help").then(|| format!("VKOG_{}", name.to_uppercase().replace('-', "_")))
        })
        .collect();
    assert!(variables.len() > 15 && variables.contains(&"VKOG_CONFIG".to_owned()), "{variables:?}");
    let empty = variables.iter().fold(setup, |setup, name| setup.env(name, ""));
    empty.write_config("listen = \"127.0.0.1:0\"\n");
    let server = empty.start_with(["--no-plugins", "--file", "s.vkog", "--config", "vkog.toml"]);
    server.put("k", "v").expect(200);
    let line = format!("VKOG_TOKEN= vkog get k --url http://{}", server.address());
    assert_eq!(Running::start(&mut empty.shell(&line)).wait().expect(0).stdout, "v");
    server.stop().expect(0);
    let exit = empty.run(["--no-plugins", "--listen", "127.0.0.1:0", "--file", "absent/s.vkog"]).expect(3);
    assert!(exit.stderr.contains("absent/s.vkog"), "{exit}");
    let exit =
        Running::start(&mut empty.shell("VKOG_URL= vkog get k --timeout 1ms --token-file absent")).wait().expect(1);
    assert!(exit.one_error().contains("cannot read absent"), "{exit}");
}

/// Prepares the files that the examples of the help name, in the folder of a setup.
fn with_files(setup: &Setup) {
    let file = |name: &str, contents: &[u8]| {
        let path = setup.folder().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("it is ours");
        std::fs::write(path, contents).expect("it is ours");
    };
    file("cat.jpg", b"\xff\xd8");
    file("vkog.toml", b"plugin-dir = \"plugins\"\n");
    std::fs::create_dir_all(setup.folder().join(".local/share/bash-completion/completions")).expect("it is ours");
    std::fs::create_dir_all(setup.folder().join(".local/share/man/man1")).expect("it is ours");
    std::fs::create_dir_all(setup.folder().join("plugins")).expect("it is ours");
    vkog_tests::only_ours(&setup.folder().join("plugins"));
    for library in [bytes(), conflict(), ttl()] {
        put_in_place(&library, &setup.folder().join("plugins").join(library.file_name().expect("a name")));
    }
    put_in_place(&ttl(), &setup.folder().join("libvkog_ttl.so"));
    let made = setup.clone().store(setup.folder().join("notes.vkog")).start();
    made.post("k", "v").expect(200);
    made.stop().expect(0);
}

#[test]
#[cfg(unix)]
fn each_example_of_the_help_works_on_the_server_of_the_readme() {
    let setup = [bytes(), conflict(), ttl()].iter().fold(Setup::new(), Setup::load);
    with_files(&setup);
    let server = setup.start();
    server.post("photos/cat.jpg", "cat").expect(200);
    server.post("session", "Ada").expect(200);
    let mut ran = 0;
    for command in COMMANDS.iter().chain(&["plugins"]) {
        let help = help(command);
        let Some((_, examples)) = help.split_once("Example:\n") else {
            assert_eq!(*command, "version", "vkog {command} --help has no example");
            continue;
        };
        for line in examples.lines().map(str::trim) {
            // The server of the example runs already; a watch and a view have no end; a backup needs a token, and a restore
            // its files, which the how-to guide has.
            let left_out = ["vkog --plugin-dir", "vkog watch", "vkog top", "vkog backup", "vkog restore"];
            // Other machines, and a plugin that is not built.
            let unavailable = ["vkog.example", "plugins.example", "etcd://", "target/release"];
            if !left_out.iter().any(|start| line.starts_with(start))
                && !unavailable.iter().any(|part| line.contains(part))
            {
                let line = format!("HOME=\"$PWD\"; {line}");
                run(&setup, &server, &line).expect(0);
                ran += 1;
            }
        }
    }
    assert!(ran >= 20, "only {ran} examples");
}
