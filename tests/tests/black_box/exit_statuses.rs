//! Every command ends with each of its exit statuses, its help lists them, and so does docs/reference/errors.md.
//!
//! Provoked with real servers and stores, and for the client with a server that sends prepared responses.

use std::collections::{BTreeMap, BTreeSet};

use vkog_tests::{Exit, Running, Setup, always_answering, answer, artefacts, workspace};

use super::reference::{COMMANDS, ERRORS, help, read};

/// The commands of the client, each with arguments that need a response.
const CLIENT: [(&str, &str); 7] = [
    ("get", "get k"),
    ("put", "put k v"),
    ("post", "post k v"),
    ("delete", "delete k"),
    ("ls", "ls"),
    ("watch", "watch"),
    ("batch", "batch in"),
];

type Statuses = BTreeSet<i32>;

/// Returns the statuses in the help of a command.
fn in_help(command: &str) -> Statuses {
    let help = help(command);
    let (_, listed) = help.split_once("Exit status: ").unwrap_or_else(|| panic!("vkog {command} --help: no statuses"));
    let listed = listed.split("\n\n").next().unwrap_or_default().replace('\n', " ");
    numbers(&listed)
}

/// Returns the number at the start of each part of a list.
fn numbers(listed: &str) -> Statuses {
    listed.split(';').filter_map(|part| part.trim().chars().next()?.to_digit(10)).map(|digit| digit as i32).collect()
}

/// Returns the statuses of each command in the reference.
fn documented() -> BTreeMap<String, Statuses> {
    let page = read(ERRORS);
    let (_, section) = page.split_once("| command | statuses |").expect("a table of statuses");
    let mut documented = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let (commands, statuses) = row.trim_matches('|').split_once('|').expect("two cells");
        for command in commands.split('`').skip(1).step_by(2) {
            let command = command.trim_start_matches("vkog").trim();
            documented.insert(command.to_owned(), numbers(statuses));
        }
    }
    documented
}

#[test]
fn the_help_and_the_reference_list_the_same_exit_statuses() {
    let documented = documented();
    for command in COMMANDS {
        let listed = documented.get(command).unwrap_or_else(|| panic!("no row for vkog {command} in {ERRORS}"));
        // Without a command, the program serves; its help lists the statuses of all commands.
        let expected = if command.is_empty() { (0..=6).collect() } else { listed.clone() };
        assert_eq!(in_help(command), expected, "vkog {command} --help and {ERRORS}");
    }
}

/// Runs each line and asserts its status. Returns the statuses by command.
fn run(setup: &Setup, url: &str, lines: &[(&str, &str, i32)]) -> BTreeMap<String, Statuses> {
    let mut seen: BTreeMap<String, Statuses> = BTreeMap::new();
    for (command, line, status) in lines {
        let exit: Exit = Running::start(setup.shell(line).env("VKOG_URL", url)).wait();
        let exit = exit.expect(*status);
        assert!(*status == 0 || !(exit.stderr.is_empty() && exit.stdout.is_empty()), "{exit}");
        seen.entry((*command).to_owned()).or_default().insert(*status);
    }
    seen
}

#[test]
fn each_client_command_ends_with_each_of_its_statuses() {
    let setup = Setup::new();
    let operation = r#"{"op":"get","key":"k"}"#;
    std::fs::write(setup.folder().join("in"), operation).expect("it is ours");
    let server = setup.start();
    server.put("k", "v").expect(200);
    let url = format!("http://{}", server.address());
    // More lines than a pipe holds after its reader has ended.
    let event = "event: put\ndata: {\"key\":\"k\",\"revision\":1}\n\n".repeat(20_000);
    let events = always_answering(answer("200 OK", "text/event-stream", &event));
    let mut seen: BTreeMap<String, Statuses> = BTreeMap::new();
    for (command, arguments) in CLIENT {
        let success = match command {
            "post" => "vkog post new v".to_owned(),
            "watch" => {
                format!("{{ vkog watch --url {events}; echo $? > status; }} | head -n 1; exit $(cat status)")
            }
            _ => format!("vkog {arguments}"),
        };
        server.put("k", "v").expect(200);
        let line = format!("vkog {arguments}");
        let ended = run(&setup, &url, &[(command, &success, 0), (command, &format!("{line} --nonsense"), 2)]);
        seen.entry(command.to_owned()).or_default().extend(&ended[command]);
        for (response, status) in [
            ("500 Internal Server Error", 1),
            ("404 Not Found", 3),
            ("409 Conflict", 4),
            ("412 Precondition Failed", 4),
            ("401 Unauthorized", 5),
            ("403 Forbidden", 5),
            ("503 Service Unavailable", 6),
        ] {
            if command == "watch" && status == 6 {
                continue;
            }
            let url = always_answering(answer(response, "text/plain", "No\n"));
            let ended = run(&setup, &url, &[(command, &line, status)]);
            seen.entry(command.to_owned()).or_default().extend(&ended[command]);
        }
        let missing = format!("{line} --token-file absent");
        let ended = run(&setup, "http://127.0.0.1:1", &[(command, &line, 6), (command, &missing, 1)]);
        seen.entry(command.to_owned()).or_default().extend(&ended[command]);
    }
    let documented = documented();
    for (command, statuses) in seen {
        assert_eq!(Some(&statuses), documented.get(&command), "vkog {command}");
    }
}

#[test]
fn each_store_command_ends_with_each_of_its_statuses() {
    let setup = Setup::new();
    std::fs::write(setup.folder().join("gate.toml"), "[plugins.faults]\ngate = \"gate\"\n").expect("it is ours");
    // Its backend waits for a file that never exists.
    let backend = Setup::new().load(artefacts().library("vkog-faults"));
    let plugins = backend.plugin_folder();
    let unreachable = format!("--store faults://x --plugin-dir '{}' --config gate.toml", plugins.display());
    let server = setup.start();
    server.put("k", "v").expect(200);
    server.stop().expect(0);
    let store = std::fs::read(setup.store_file()).expect("a store");
    for (name, contents) in [
        ("good.vkog", &store[..]),
        ("half.vkog", &store[..store.len() / 2]),
        ("text.vkog", b"no store"),
        ("entry.json", b"{\"key\":\"a\",\"value\":\"1\"}\n"),
    ] {
        std::fs::write(setup.folder().join(name), contents).expect("it is ours");
    }
    let server = setup.start();
    let lines = [
        ("check", "vkog check good.vkog", 0),
        ("check", "vkog check half.vkog", 1),
        ("check", "vkog check", 2),
        ("check", "vkog check absent.vkog", 3),
        ("repair", "vkog repair good.vkog", 0),
        ("repair", "vkog repair text.vkog", 1),
        ("repair", "vkog repair", 2),
        ("repair", "vkog repair absent.vkog", 3),
        ("repair", "vkog repair store.vkog", 4),
        ("export", "vkog export -f good.vkog", 0),
        ("export", "vkog export -f text.vkog", 1),
        ("export", "vkog export --format xml", 2),
        ("export", "vkog export -f absent.vkog", 3),
        ("export", "vkog export -f good.vkog absent/out", 3),
        ("export", "vkog export -f good.vkog text.vkog", 4),
        ("import", "vkog import -f new.vkog entry.json", 0),
        ("import", "vkog import -f new.vkog text.vkog", 1),
        ("import", "vkog import a b", 2),
        ("import", "vkog import -f new.vkog absent.json", 3),
        ("import", "vkog import -f store.vkog entry.json", 4),
        ("export", &format!("vkog export {unreachable}"), 6),
        ("import", &format!("vkog import {unreachable} entry.json"), 6),
    ];
    let documented = documented();
    for (command, statuses) in run(&setup, "", &lines) {
        assert_eq!(Some(&statuses), documented.get(&command), "vkog {command}");
    }
    server.stop().expect(0);
}

#[test]
fn each_other_command_ends_with_each_of_its_statuses() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let taken = taken.local_addr().expect("it listens");
    let setup = Setup::new();
    let server = setup.start();
    std::fs::write(setup.folder().join("text.so"), "no library").expect("it is ours");
    let library = vkog_tests::conflict();
    let [old, new] = ["versioned", "vkog-versioned"].map(|package| artefacts().library(package));
    let (refusing, zeros) = (always_answering(answer("401 Unauthorized", "text/plain", "No\n")), "0".repeat(64));
    let serving = "vkog serve --no-plugins --listen 127.0.0.1:0";
    let lines = [
        ("serve", format!("vkog serve --no-plugins --listen {taken}"), 1),
        ("serve", "vkog serve --max-sise 5".to_owned(), 2),
        ("serve", format!("{serving} -f absent/store.vkog"), 3),
        ("serve", format!("{serving} --config absent.toml"), 3),
        ("serve", "vkog serve --plugin-dir absent".to_owned(), 3),
        ("serve", format!("{serving} -f store.vkog"), 4),
        ("plugins check", format!("vkog plugins check '{}'", library.display()), 0),
        ("plugins check", "vkog plugins check text.so".to_owned(), 1),
        ("plugins check", "vkog plugins check".to_owned(), 2),
        ("plugins check", format!("vkog plugins check --config absent.toml '{}'", library.display()), 3),
        ("plugins add", format!("vkog plugins add '{}' --plugin-dir plugins", old.display()), 0),
        ("plugins add", "vkog plugins add text.so --plugin-dir plugins".to_owned(), 1),
        ("plugins add", "vkog plugins add http://127.0.0.1:1/x.so --plugin-dir plugins".to_owned(), 2),
        ("plugins add", "vkog plugins add absent.so --plugin-dir plugins".to_owned(), 3),
        ("plugins add", format!("vkog plugins add '{}' --plugin-dir plugins", new.display()), 4),
        ("plugins add", format!("vkog plugins add {refusing} --sha256 {zeros} --plugin-dir plugins"), 5),
        ("plugins add", format!("vkog plugins add http://127.0.0.1:1/x.so --sha256 {zeros} --plugin-dir plugins"), 6),
        ("plugins ls", "vkog plugins ls --plugin-dir plugins".to_owned(), 0),
        ("plugins ls", "vkog plugins ls --plugin-dir text.so".to_owned(), 1),
        ("plugins ls", "vkog plugins ls plugins".to_owned(), 2),
        ("plugins ls", "vkog plugins ls --plugin-dir absent".to_owned(), 3),
        ("plugins rm", "vkog plugins rm versioned --plugin-dir text.so".to_owned(), 1),
        ("plugins rm", "vkog plugins rm".to_owned(), 2),
        ("plugins rm", "vkog plugins rm absent --plugin-dir plugins".to_owned(), 3),
        ("plugins rm", "vkog plugins rm versioned --plugin-dir plugins".to_owned(), 0),
        ("plugins new", "vkog plugins new short".to_owned(), 0),
        ("plugins new", format!("vkog plugins new other --api '{}'", workspace().join("host").display()), 1),
        ("plugins new", "vkog plugins new 9lives".to_owned(), 2),
        ("plugins new", "vkog plugins new other --path absent".to_owned(), 3),
        ("plugins new", "vkog plugins new short".to_owned(), 4),
        ("completions", "vkog completions fish".to_owned(), 0),
        ("completions", "vkog completions ksh".to_owned(), 2),
        ("man", "vkog man".to_owned(), 0),
        ("man", "vkog man vkog".to_owned(), 2),
        ("version", "vkog version".to_owned(), 0),
        ("version", "vkog version 5".to_owned(), 2),
    ];
    let lines: Vec<_> = lines.iter().map(|(command, line, status)| (*command, line.as_str(), *status)).collect();
    let mut seen = run(&setup, "", &lines);
    server.stop().expect(0);
    seen.entry("serve".to_owned()).or_default().insert(0);
    let documented = documented();
    for (command, statuses) in seen {
        assert_eq!(Some(&statuses), documented.get(&command), "vkog {command}");
    }
}
