//! The examples of the documents work: every fenced `console` session is run and its output is compared.
//!
//! The line of a session that starts `vkog` becomes a server with the same options on a free port. Each `curl`, and
//! each command of the client, runs in a shell, with that server's address instead of the default one. `cat` and `cut`
//! run in the server's folder. A line `...` of the expected output matches any lines. Revisions, which start with the
//! time, are compared by their distance from the first one of the session. A `toml` block before the session is its
//! `vkog.toml`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vkog_tests::{
    Running, Server, Setup, artefacts, bytes, conflict, markdown, target_folder, ttl, workspace, written_plugin,
};

/// Commands that are not run here, because they build or install.
const NOT_RUN: [&str; 9] = [
    "cargo xtask serve",
    "cargo install",
    "cargo build",
    "cargo test",
    "cargo new",
    "cargo add",
    "cp ",
    "git clone ",
    "cd ",
];
const DEFAULT_ADDRESS: &str = "127.0.0.1:3110";
/// The commands that send requests to a server.
const ASKING: [&str; 12] = [
    "curl ",
    "vkog get ",
    "vkog put ",
    "vkog post ",
    "vkog delete ",
    "vkog touch ",
    "vkog ls",
    "vkog watch",
    "vkog batch",
    "vkog backup ",
    // These two work beside a server.
    "vkog restore ",
    "vkog export ",
];

/// The tutorial that goes from an empty folder to a plugin.
const GUIDE: &str = "docs/tutorial/first-plugin.md";

/// The guide to tests of plugins, whose examples test the plugin of the tutorial.
const TESTING_GUIDE: &str = "docs/how-to/test-a-plugin.md";

/// One command of a session and the lines it should print.
struct Step {
    command: String,
    expected: Vec<String>,
}

impl Step {
    fn asks(&self) -> bool {
        ASKING.iter().any(|start| self.command.starts_with(start))
    }
}

struct Session {
    /// Its position, for messages.
    place: String,
    /// The `toml` block before it.
    config: Option<String>,
    steps: Vec<Step>,
}

/// Returns the sessions of a document.
fn sessions(document: &Path) -> Vec<Session> {
    let text =
        std::fs::read_to_string(document).unwrap_or_else(|error| panic!("cannot read {}: {error}", document.display()));
    let mut sessions = Vec::new();
    let mut config = None;
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```") else { continue };
        let block: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        match language {
            // A manifest is not a configuration.
            "toml" if !block.iter().any(|line| ["[package]", "[lib]", "[dependencies]"].contains(line)) => {
                config = Some(block.join("\n"));
            }
            "console" => {
                let place = format!("{}:{}", document.display(), number + 1);
                sessions.push(Session { steps: steps(&block, &place), place, config: config.clone() });
            }
            _ => {}
        }
    }
    sessions
}

fn steps(block: &[&str], place: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut continued = false;
    for line in block {
        if continued {
            let step = steps.last_mut().expect("what is continued has begun");
            step.command.push_str(&format!("\n{line}"));
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), expected: Vec::new() });
        } else {
            let step = steps.last_mut().unwrap_or_else(|| panic!("{place}: output before the first command"));
            step.expected.push((*line).to_owned());
            continue;
        }
        continued = line.ends_with('\\');
    }
    steps
}

/// Whether the output is as expected, where a line `...` stands for any lines.
fn matches(expected: &[String], output: &[&str]) -> bool {
    match expected.split_first() {
        None => output.is_empty(),
        Some((line, rest)) if line == "..." => (0..=output.len()).any(|skip| matches(rest, &output[skip..])),
        Some((line, rest)) => output.first().is_some_and(|first| first == line) && matches(rest, &output[1..]),
    }
}

/// A text with other revisions in it: those of `from` and above become as much more than `to`. A revision has 16 digits.
fn shifted(text: &str, from: u64, to: u64) -> String {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (mut shifted, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(|letter: char| letter.is_ascii_digit()) {
        let (before, number) = rest.split_at(at);
        let (number, after) = number.split_at(digits(number));
        shifted.push_str(before);
        match number.parse::<u64>() {
            Ok(revision) if number.len() == 16 && revision >= from => {
                shifted.push_str(&(revision - from + to).to_string());
            }
            _ => shifted.push_str(number),
        }
        rest = after;
    }
    shifted + rest
}

/// Returns the first revision in a text.
fn first_revision(text: &str) -> Option<u64> {
    text.split(|letter: char| !letter.is_ascii_digit()).find(|number| number.len() == 16)?.parse().ok()
}

/// Starts the server of a line such as `vkog --plugin-dir ./plugins -s 16 &`.
fn serve(setup: &Setup, session: &Session, command: &str) -> Server {
    let line = command.trim_end_matches('&').trim();
    let mut arguments = vec!["--listen".to_owned(), "127.0.0.1:0".to_owned()];
    let mut words = line.split_whitespace().skip(1);
    while let Some(word) = words.next() {
        arguments.push(word.to_owned());
        match word {
            "--plugin-dir" => {
                words.next();
                arguments.push(setup.plugin_folder().display().to_string());
            }
            "--config" => {
                let file = words.next().unwrap_or_else(|| panic!("{}: no file in {command}", session.place));
                let config = session.config.as_ref();
                let config = config.unwrap_or_else(|| panic!("{}: no toml block before it", session.place));
                std::fs::write(setup.folder().join(file), config).expect("the configuration can be written");
                arguments.push(file.to_owned());
            }
            _ => {}
        }
    }
    setup.start_with(arguments)
}

fn run(session: &Session, setup: &Setup) {
    let mut server = None;
    // The first revision in the document, and in this run.
    let mut first = None;
    for step in &session.steps {
        let program = step.command.split_whitespace().next().unwrap_or_default();
        match program {
            "vkog" | "./vkog" if !step.asks() => {
                let started = serve(setup, session, &step.command);
                let line = format!("listening on http://{DEFAULT_ADDRESS}");
                let shown: Vec<_> = step.expected.iter().filter(|line| *line != "...").collect();
                assert!(shown.is_empty() || shown == [&line], "{}: the server prints {line:?}", session.place);
                server = Some(started);
            }
            // Makes a file that only its owner can read, before the server starts.
            "umask" => {
                let exit = Running::start(&mut setup.shell(&step.command)).wait();
                assert!(exit.expect(0).stdout.is_empty() && step.expected.is_empty(), "{}", session.place);
            }
            "vkog" | "curl" | "cat" | "cut" | "printf" => {
                // The document starts its server by a command that is not run here.
                let server = server.get_or_insert_with(|| setup.start());
                ask(session, step, server, setup.folder(), &mut first);
            }
            _ => {
                let known = NOT_RUN.iter().any(|start| step.command.starts_with(start));
                assert!(known, "{}: {} is neither run nor known", session.place, step.command);
            }
        }
    }
}

/// Runs a command that sends requests to a server, or reads files in its folder.
#[track_caller]
fn ask(session: &Session, step: &Step, server: &Server, folder: &Path, first: &mut Option<(u64, u64)>) {
    let command = step.command.replace(DEFAULT_ADDRESS, server.address());
    let command = first.map_or(command.clone(), |(shown, here)| shifted(&command, shown, here));
    let command = command.replacen("vkog ", &format!("{} ", artefacts().vkog().display()), 1);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(&command).current_dir(folder).env("VKOG_URL", format!("http://{}", server.address()));
        let exit = Running::start(&mut shell).wait();
        if first.is_none()
            && let (Some(shown), Some(here)) = (first_revision(&step.expected.join("\n")), first_revision(&exit.stdout))
        {
            *first = Some((shown, here));
        }
        let stdout = first.map_or(exit.stdout.clone(), |(shown, here)| shifted(&exit.stdout, here, shown));
        let output: Vec<&str> = stdout.lines().map(|line| line.trim_end_matches('\r')).collect();
        if matches(&step.expected, &output) {
            break;
        }
        // A file may be written shortly after the response.
        let again = !command.starts_with("curl") && Instant::now() < deadline;
        assert!(again, "{}: not {:?}\n{exit}\n{}", session.place, step.expected, server.log());
    }
}

/// Returns the crates in a folder of the workspace.
fn folders(of: &str) -> Vec<PathBuf> {
    let read = std::fs::read_dir(workspace().join(of)).expect("the folder exists");
    let mut folders: Vec<_> =
        read.flatten().map(|entry| entry.path()).filter(|path| path.join("Cargo.toml").is_file()).collect();
    folders.sort();
    folders
}

/// Runs all sessions of a document, with these plugins.
#[track_caller]
fn run_all(document: &Path, plugins: &[PathBuf]) {
    let sessions = sessions(document);
    assert!(!sessions.is_empty(), "{} shows no session", document.display());
    for session in &sessions {
        let asks = session.steps.iter().any(Step::asks);
        let setup = plugins.iter().fold(Setup::new(), Setup::load);
        run(session, &setup);
        eprintln!(
            "{}: {} commands, {}",
            session.place,
            session.steps.len(),
            if asks { "run" } else { "none of them asks" }
        );
    }
    let asks = sessions.iter().flat_map(|session| &session.steps).any(Step::asks);
    assert!(asks, "{}: no session asks", document.display());
}

#[test]
fn the_sessions_of_the_readme_run_as_shown() {
    run_all(&workspace().join("README.md"), &[bytes(), conflict(), ttl()]);
}

/// The plugin tutorial has its own test.
#[test]
fn the_sessions_of_the_documentation_run_as_shown() {
    let mut documents = markdown(&workspace().join("docs"));
    documents.retain(|path| !path.ends_with(GUIDE) && !sessions(path).is_empty());
    assert!(documents.len() >= 3, "{documents:?}");
    documents.iter().for_each(|document| run_all(document, &[bytes(), conflict(), ttl()]));
}

#[test]
fn the_session_of_every_plugin_readme_runs_as_shown() {
    for folder in folders("plugins").into_iter().chain(folders("examples")) {
        let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
        run_all(&folder.join("README.md"), &[artefacts().library(&format!("vkog-{name}"))]);
    }
}

/// Returns the fenced blocks of a document in this language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let path = workspace().join(document);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {document}: {error}"));
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if found == language {
                blocks.push(block.join("\n"));
            }
        }
    }
    blocks
}

/// The context of the recipes in the guide for plugin authors.
const AROUND_RECIPES: &str = "
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;
    use vkog_plugin_api::*;
    struct Mine { host: Host }
    impl Plugin for Mine {
        type Settings = NoSettings;
        fn create(host: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Mine { host }) }
    }
    struct Measured;
    impl Plugin for Measured {
        type Settings = NoSettings;
        fn create(_: Host, _: NoSettings) -> Result<Self, CreateError> { Ok(Measured) }
    }
    struct Remote;
";

/// One crate for both, because the build takes most of the time.
#[test]
fn the_plugin_of_the_readme_works_and_the_recipes_for_authors_compile() {
    let recipes = blocks("docs/how-to/write-a-plugin.md", "rust").join("\n");
    let plugin = &blocks("README.md", "rust")[0];
    let source = format!("{plugin}\n#[allow(dead_code)]\nmod recipes {{{AROUND_RECIPES}{recipes}}}\n");
    let manifest = "[package]\nname = \"readme-plugin\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n\
                    [dependencies]\nvkog-plugin-api = \"1\"\n";
    let server = Setup::new().load(written_plugin("readme-plugin", manifest, &source)).start();
    server.put("k", [b'x'; 4096]).expect(200);
    server.put("k", [b'x'; 4097]).expect(413).has("Vkog-Plugin", "readme-plugin");
}

/// A command that builds in a folder. Its products go to the folder of the guide; their dependencies are those that
/// the tests have built.
fn building<'a>(command: &'a mut Command, folder: &Path) -> &'a mut Command {
    command.env_remove("CARGO_TARGET_DIR").env("CARGO_BUILD_BUILD_DIR", target_folder());
    command.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only").env("CARGO_NET_OFFLINE", "true").current_dir(folder)
}

#[test]
fn the_plugin_tutorial_leads_from_an_empty_folder_to_a_rejected_put() {
    let sessions = sessions(&workspace().join(GUIDE));
    let [making, asking, changing] = &sessions[..] else { panic!("{GUIDE} makes a plugin, asks, and changes it") };
    assert_eq!(making.steps.len(), 4, "four commands in {}", making.place);
    let setup = Setup::new().env("VKOG_LISTEN", "127.0.0.1:0");
    let mut folder = setup.folder().to_owned();
    let (last, steps) = making.steps.split_last().expect("there are four");
    for Step { command, expected } in steps {
        let mut shell = setup.shell(&format!("umask 022; {command}"));
        // Without a deadline, like every build.
        let output =
            building(&mut shell, &folder).output().unwrap_or_else(|error| panic!("cannot run {command}: {error}"));
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let happened = output.status.success() && matches(expected, &stdout.lines().collect::<Vec<_>>());
        assert!(happened, "{}: {command}: not {expected:?} but {stdout}\n{stderr}", making.place);
        if let Some((_, inside)) = command.split_once(" && cd ") {
            folder.push(inside);
        }
    }
    let source = std::fs::read_to_string(folder.join("src/lib.rs")).expect("a crate has a source");
    let shown = &blocks(GUIDE, "rust")[0];
    let test = blocks(GUIDE, "rust").into_iter().find(|block| block.starts_with("#[cfg(test)]"));
    let test = test.unwrap_or_else(|| panic!("{GUIDE} shows the test"));
    assert_eq!(source, format!("{shown}\n\n{test}\n"), "the source that the guide shows");
    let own = shown.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//")).count();
    assert!(own <= 25, "{own} lines of a plugin's own");

    let library = folder.join("src/lib.rs");
    let guide = blocks(TESTING_GUIDE, "rust").join("\n");
    std::fs::write(&library, format!("{source}\n#[cfg(test)]\nmod guide {{\n{guide}\n}}\n")).expect("it is ours");
    let mut testing = setup.shell("cargo test --lib");
    let tested = building(&mut testing, &folder).output().expect("cargo runs");
    let said = String::from_utf8_lossy(&tested.stdout);
    let happened = tested.status.success() && said.contains("test tests::a_put_over_the_limit_is_refused ... ok");
    assert!(happened, "{said}\n{}", String::from_utf8_lossy(&tested.stderr));
    let examples = guide.matches("#[test]").count();
    assert!(
        examples >= 9 && said.matches(" guide::").count() == examples,
        "{TESTING_GUIDE}: {examples} tests in {said}"
    );

    let server = setup.start_by(setup.shell(&format!("exec {}", last.command)).current_dir(&folder));
    // Also run the session in the README of the crate.
    let readme = &self::sessions(&folder.join("README.md"))[0];
    let asked: Vec<_> = [asking, readme]
        .into_iter()
        .flat_map(|session| session.steps.iter().map(move |step| (session, step)))
        .filter(|(_, step)| step.command.starts_with("curl"))
        .collect();
    assert_eq!(asked.len(), 2, "a request in the guide and one in the README");
    asked.iter().for_each(|(session, step)| ask(session, step, &server, &folder, &mut None));
    let refusal = server.put("a", "much too long").expect(413).has("Vkog-Plugin", "short");
    assert!(asking.steps[0].expected.contains(&refusal.text().trim_end().to_owned()), "{refusal}");
    server.put("a", "short").expect(200);

    // Change the message, build, and reload.
    assert!(source.contains("at most"), "{source}");
    std::fs::write(&library, source.replace("at most", "no more than")).expect("it is ours");
    for Step { command, .. } in &changing.steps {
        let mut shell = setup.shell(&format!("umask 022; {command}"));
        let output = building(&mut shell, &folder).output().expect("a shell runs");
        assert!(output.status.success(), "{}: {command}: {output:?}", changing.place);
    }
    server.logs(&["reloaded short"]);
    server.put("a", "much too long").refused(413, "no more than 10 bytes");
    server.get("a").expect(200).is("short");
}

#[test]
fn three_dots_match_any_lines_and_other_lines_match_themselves() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let expected = lines("a\n...\nd");
    assert!(matches(&expected, &["a", "d"]) && matches(&expected, &["a", "b", "c", "d"]));
    assert!(!matches(&expected, &["a", "b"]) && !matches(&expected, &["d"]) && !matches(&expected, &["a", "d", "e"]));
    assert!(matches(&lines("..."), &[]) && !matches(&[], &["a"]) && !matches(&lines("a"), &[]));
}
