//! The command line: a mistake is one line `vkog: …` and an exit status, the help fits a screen, a flag takes
//! precedence over the environment, and the environment over the file.
//!
//! Provoked by running the program; refusals of the bytes plugin show which limit applies.

use std::net::TcpListener;

use vkog_tests::{Exit, Running, Server, Setup, artefacts, as_library, bytes, conflict, only_ours, put_in_place};

#[test]
fn a_wrong_option_is_one_line_and_exit_status_2() {
    let setup = Setup::new();
    let wrong: [&[&str]; 13] = [
        &["--max-sise", "5"],
        &["--max-size", "much"],
        &["--max-size", "-5"],
        &["-s"],
        &["--listen", "nowhere"],
        &["--listen", "127.0.0.1:99999"],
        &["--log-format", "xml"],
        &["fly"],
        &["plugins", "check"],
        &["plugins", "fly"],
        &["plugins", "new"],
        &["plugins", "new", "9lives"],
        &["plugins", "new", "../elsewhere"],
    ];
    for arguments in wrong {
        let exit = setup.run(arguments.iter().copied()).expect(2);
        exit.one_error();
        assert_eq!(exit.stdout, "", "standard output of {exit}");
    }
    let exit = setup.run(["--max-sise", "5"]).expect(2);
    assert!(exit.one_error().contains("--max-sise") && exit.one_error().contains("--max-size"), "{exit}");
    let exit = setup.run(["--max-size", "much"]).expect(2);
    assert!(exit.one_error().contains("much") && exit.one_error().contains("MiB"), "{exit}");
}

#[test]
fn a_missing_plugin_folder_and_a_file_in_its_place_have_different_ways_out() {
    let setup = Setup::new();
    std::fs::write(setup.store_file(), "").expect("a file can be written");
    for (listed, status, way_out) in
        [(setup.folder().join("none"), 3, "create it"), (setup.store_file(), 1, "give the folder")]
    {
        let exit = setup.run(["--plugin-dir".into(), listed.clone().into_os_string()]).expect(status);
        assert!(exit.one_error().contains(&listed.display().to_string()), "{exit}");
        assert!(exit.one_error().contains(way_out), "{exit}");
        assert_eq!(exit.stdout, "", "standard output of {exit}");
    }
}

#[test]
fn an_address_in_use_is_one_line_and_exit_status_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = taken.local_addr().expect("it listens").to_string();
    let setup = Setup::new();
    let exit = setup.run(["--no-plugins", "--file", "store.vkog", "--listen", &address]).expect(1);
    let told: Vec<_> = exit.stderr.lines().filter(|line| line.starts_with("vkog: ")).collect();
    assert!(told.len() == 1 && told[0].contains(&address), "one line with the address in {exit}");
    assert_eq!(exit.stdout, "", "standard output of {exit}");
}

#[test]
fn an_unusable_configuration_is_one_line_with_file_and_position() {
    let setup = Setup::new();
    let told = |text: &str, words: &[&str]| {
        let exit: Exit = setup.clone().config(text).fail().expect(1);
        for word in words {
            assert!(exit.one_error().contains(word), "{word} in {exit}");
        }
    };
    told("max-size = = 5\n", &["vkog.toml", ":1: "]);
    told("max-sise = 5\n", &["vkog.toml", "max-sise", "max-size"]);
    told("max-size = \"much\"\n", &["vkog.toml", "MiB"]);
    told("[plugins]\nbytes = 5\n", &["vkog.toml", "plugins"]);
    let exit = setup.run(["--config", "missing.toml"]).expect(3);
    assert!(exit.one_error().contains("missing.toml"), "{exit}");
}

#[test]
fn help_fits_a_screen_and_shows_an_example() {
    let setup = Setup::new();
    for arguments in [&["--help"][..], &["-h"], &["serve", "--help"]] {
        let exit = setup.run(arguments.iter().copied()).expect(0);
        let count = exit.stdout.lines().count();
        assert!((20..=50).contains(&count), "{count} lines of {exit}");
        assert!(exit.stdout.lines().all(|line| line.chars().count() <= 100), "a line over 100 columns of {exit}");
        let options = [
            "--file",
            "--max-size",
            "--plugin-dir",
            "--no-plugins",
            "--listen",
            "--max-value",
            "--config",
            "--log-format",
        ];
        let commands = ["serve", "get", "put", "post", "delete", "ls", "watch", "batch", "check", "repair", "export"];
        let words = if arguments[0] == "serve" { &options[..] } else { &commands };
        for word in words {
            assert!(exit.stdout.contains(word), "{word} in {exit}");
        }
        let example = exit.stdout.split("Example").nth(1).unwrap_or_default();
        assert!(example.contains("vkog --plugin-dir"), "an example in {exit}");
        assert_eq!(exit.stderr, "", "standard error of {exit}");
    }
    let exit = setup.run(["--version"]).expect(0);
    assert_eq!(exit.stdout, "vkog 0.1.0\n");
}

#[test]
fn completions_and_man_page_have_every_command_and_option() {
    let setup = Setup::new();
    for arguments in [&["completions", "bash"][..], &["completions", "zsh"], &["completions", "fish"], &["man"]] {
        let exit = setup.run(arguments.iter().copied()).expect(0);
        // The manual page escapes its hyphens.
        let told = exit.stdout.replace('\\', "");
        for word in ["max-size", "plugin-dir", "repair", "plugins", "completions"] {
            assert!(told.contains(word), "{word} in {exit}");
        }
    }
    let exit = setup.run(["completions", "ksh"]).expect(2);
    assert!(exit.one_error().contains("zsh"), "{exit}");
}

/// Returns the limit of the bytes plugin.
fn limit(server: &Server) -> String {
    let refusal = server.post("k", vec![b'x'; 200_000]).expect(413).has("Vkog-Plugin", "bytes").text();
    let (_, rest) = refusal.split_once(" of ").unwrap_or_else(|| panic!("no limit in {refusal}"));
    rest.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let file = Setup::new().load(bytes()).config("max-size = \"1KiB\"\nmax-value = 1000000\n");
    assert_eq!(limit(&file.start()), "1024");
    let environment = file.env("VKOG_MAX_SIZE", "2KiB");
    assert_eq!(limit(&environment.start()), "2048");
    for flag in ["-s", "--max-size"] {
        assert_eq!(limit(&environment.clone().args([flag, "3KiB"]).start()), "3072");
    }
    // A plugin's own setting takes precedence over the host's.
    let own = file_with_own_limit();
    assert_eq!(limit(&own.start()), "512");
}

fn file_with_own_limit() -> Setup {
    Setup::new().load(bytes()).config("max-value = 1000000\n[plugins.bytes]\nmax_size = 512\n")
}

#[test]
fn every_option_can_be_an_environment_variable_or_a_line_of_the_file() {
    let setup = Setup::new().load(bytes());
    let folder = setup.plugin_folder();
    let variables = setup
        .clone()
        .env("VKOG_FILE", "other.vkog")
        .env("VKOG_LISTEN", "127.0.0.1:0")
        .env("VKOG_PLUGIN_DIR", folder.clone())
        .env("VKOG_MAX_SIZE", "100")
        .env("VKOG_MAX_VALUE", "300000")
        .env("VKOG_LOG_FORMAT", "text");
    let config = format!(
        "file = \"other.vkog\"\nlisten = \"127.0.0.1:0\"\nplugin-dir = {folder:?}\nmax-size = 100\nmax-value = \"300kB\"\n\
         log-format = \"text\"\n"
    );
    std::fs::write(setup.folder().join("all.toml"), config).expect("the configuration can be written");
    let ways: [&dyn Fn() -> Server; 3] =
        [&|| variables.start_with::<&str>([]), &|| setup.start_with(["--config", "all.toml"]), &|| {
            setup.clone().env("VKOG_CONFIG", "all.toml").start_with(["serve"])
        }];
    for (number, start) in ways.into_iter().enumerate() {
        let server = start();
        assert_eq!(limit(&server), "100");
        server.post("k", vec![b'x'; 300_001]).expect(413).says("300001");
        assert!(!server.log().trim_start().starts_with('{'), "JSON in the log:\n{}", server.log());
        server.put("k", number.to_string()).expect(200);
        server.stop().expect(0);
        let stored = setup.clone().store(setup.folder().join("other.vkog")).start();
        stored.get("k").expect(200).is(number.to_string());
        stored.stop().expect(0);
    }
    Setup::new().env("VKOG_NO_PLUGINS", "true").start_with(["--listen", "127.0.0.1:0"]).put("k", "v").expect(200);
}

#[test]
fn sizes_are_parsed_with_common_units() {
    for (written, bytes_meant) in
        [("2000", "2000"), ("2KiB", "2048"), ("2KB", "2000"), ("2kB", "2000"), ("0.125MiB", "131072")]
    {
        let server = Setup::new().load(bytes()).args(["-s", written, "--max-value", "1MiB"]).start();
        assert_eq!(limit(&server), bytes_meant, "{written}");
    }
}

#[test]
fn the_log_is_json_without_a_terminal_and_text_on_request() {
    let setup = Setup::new().load(bytes()).load(conflict()).load(artefacts().library("fault-panics"));
    let setup = setup.config("[plugins.fault-panics]\nwhere = \"before_get\"\n");
    let server = setup.start();
    server.get("k").expect(500);
    server.logs(&["fault-panics", "before_get"]);
    let exit = server.stop().expect(0);
    for line in exit.stderr.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?} is not JSON, {error}, in {exit}"));
        assert!(value.is_object(), "{line:?} in {exit}");
    }
    let exit = setup.clone().args(["--log-format", "text"]).start().stop().expect(0);
    assert!(exit.stderr.lines().count() > 0 && !exit.stderr.lines().any(|line| line.starts_with('{')), "{exit}");
    assert!(!exit.stderr.contains('\x1b'), "colours where no terminal is, in {exit}");
}

#[test]
fn sigterm_and_sigint_finish_requests_and_write_the_store() {
    for signal in ["TERM", "INT"] {
        let setup = Setup::new().load(bytes()).load(conflict());
        let server = setup.start();
        server.post("k", "v").expect(200);
        // Its connection stays open and idle, and must not delay the stop.
        let mut idle = server.wire();
        idle.request("GET", "/k/k", b"").expect(200);
        server.stop_with(signal).expect(0);
        setup.start().get("k").expect(200).is("v");
    }
}

#[test]
fn paths_with_spaces_and_letters_of_any_language_work() {
    let setup = Setup::new();
    let folder = setup.folder().join("Käse & 日本 (1)");
    let plugins = folder.join("плагины eins");
    std::fs::create_dir_all(&plugins).expect("folders can be made");
    for made in [&folder, &plugins] {
        only_ours(made);
    }
    put_in_place(&bytes(), &plugins.join(as_library("große bytes")));
    let (config, store) = (folder.join("Größe ünd.toml"), folder.join("Läden 1.vkog"));
    std::fs::write(&config, "max-size = \"10\"\n").expect("a file can be written");
    let start = || {
        setup.start_with([
            "--listen".as_ref(),
            "127.0.0.1:0".as_ref(),
            "--plugin-dir".as_ref(),
            plugins.as_os_str(),
            "--config".as_ref(),
            config.as_os_str(),
            "--file".as_ref(),
            store.as_os_str(),
        ])
    };
    let server = start();
    server.post("k", "v").expect(200);
    server.post("l", [b'x'; 10]).expect(413).has("Vkog-Plugin", "bytes");
    server.stop().expect(0);
    start().get("k").expect(200).is("v");
    let exit = setup.run(["check".as_ref(), store.as_os_str()]).expect(0);
    assert!(exit.stdout.starts_with(&format!("{}: intact", store.display())), "{exit}");
}

#[test]
fn a_file_that_cannot_be_used_has_a_way_out_that_fits_the_reason() {
    let setup = Setup::new();
    let server = setup.start();
    server.put("k", "v").expect(200);
    server.stop().expect(0);
    std::fs::write(setup.folder().join("file"), "").expect("a file can be written");
    for (line, way_out) in [
        ("vkog --no-plugins --listen 127.0.0.1:0 -f absent/s.vkog", "create its folder"),
        ("vkog import -f absent/s.vkog file", "create its folder"),
        ("vkog export -f store.vkog absent/out", "create its folder"),
        ("vkog export -f store.vkog file", "remove it"),
        ("vkog import -f s.vkog absent", "correct its path"),
        ("vkog put k --file absent", "correct its path"),
        ("vkog --no-plugins --max-value 0", "choose a larger size"),
    ] {
        let exit = Running::start(&mut setup.shell(line)).wait();
        let errors: Vec<&str> = exit.stderr.lines().filter(|line| line.starts_with("vkog: ")).collect();
        assert!(
            exit.status.code() != Some(0) && errors.len() == 1 && errors[0].contains(way_out),
            "{way_out} in {exit}"
        );
    }
}

#[test]
fn a_server_without_a_plugin_folder_warns_once() {
    let setup = Setup::new();
    // A copy, because a folder may be beside the program of the tests. Another process makes it: a program that this
    // one has open for writing, or that a process it just forked inherited, cannot be run (ETXTBSY).
    let program = setup.folder().join("vkog");
    let copied = std::process::Command::new("cp").args([artefacts().vkog(), &*program]).status();
    assert!(copied.expect("cp runs").success());
    let arguments = ["--listen", "127.0.0.1:0", "--file", "s.vkog"];
    let warned = |more: &[&str]| {
        let mut command = setup.prepared(std::process::Command::new(&program));
        let server = setup.start_by(command.args(arguments).args(more));
        let exit = server.stop().expect(0);
        exit.stderr.lines().filter(|line| line.contains("WARN") && line.contains("without plugins")).count()
    };
    assert_eq!((warned(&[]), warned(&["--no-plugins"])), (1, 0));
    std::fs::create_dir(setup.folder().join("plugins")).expect("a folder can be made");
    only_ours(&setup.folder().join("plugins"));
    assert_eq!(warned(&[]), 0);
}

#[test]
fn a_misspelt_command_or_task_is_reported_with_the_right_one() {
    let setup = Setup::new();
    for (words, message) in [
        ("gte k", "vkog: unknown command gte; a similar command exists: get; see vkog --help"),
        ("plugins", "vkog: vkog plugins needs a command: new, check, add, ls, rm; see vkog plugins --help"),
        ("plugins chekc", "vkog: unknown command chekc; a similar command exists: check; see vkog plugins --help"),
    ] {
        let exit = setup.run(words.split(' ')).expect(2);
        assert_eq!(exit.one_error(), message);
    }
    let xtask = |words: &[&str]| {
        let mut command = std::process::Command::new(artefacts().program("xtask"));
        Running::start(command.args(words).current_dir(setup.folder())).wait().expect(2)
    };
    let exit = xtask(&["sevre"]);
    assert!(exit.stderr.starts_with("error: ") && exit.stderr.contains("'serve'"), "{exit}");
    let exit = xtask(&["serve", "--max-sise", "5"]);
    assert!(exit.stderr.contains("'--max-size'") && !exit.stderr.contains("building"), "{exit}");
}
