//! The reference pages are complete: they document every option, configuration key, metric, header, status, message and
//! load code. Every link works, and every example parses.
//!
//! The expected items come from the program where possible: its help, its messages, `/metrics` and `/openapi.json`.
//! With `VKOG_BLESS=1`, the generated page is written instead of compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vkog_tests::{Setup, artefacts, bytes, conflict, dead_links, description, markdown, ttl, workspace};

pub(crate) const COMMANDS: [&str; 26] = [
    "",
    "serve",
    "get",
    "put",
    "post",
    "delete",
    "touch",
    "ls",
    "watch",
    "batch",
    "backup",
    "restore",
    "health",
    "top",
    "check",
    "repair",
    "export",
    "import",
    "plugins new",
    "plugins check",
    "plugins add",
    "plugins ls",
    "plugins rm",
    "completions",
    "man",
    "version",
];

pub(crate) const COMMAND_LINE: &str = "docs/reference/command-line.md";
pub(crate) const CONFIGURATION: &str = "docs/reference/configuration.md";
pub(crate) const ERRORS: &str = "docs/reference/errors.md";
pub(crate) const HTTP: &str = "docs/reference/http.md";
pub(crate) const METRICS: &str = "docs/reference/metrics.md";

pub(crate) fn read(document: impl AsRef<Path>) -> String {
    let path = workspace().join(document);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Runs the program and returns its standard output and standard error.
fn vkog(words: &[&str]) -> (String, String) {
    let output = Command::new(artefacts().vkog()).args(words).env_remove("COLUMNS").output().expect("vkog runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("vkog prints UTF-8");
    (text(output.stdout), text(output.stderr))
}

pub(crate) fn help(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
    vkog(&words).0
}

/// The documents that users read.
pub(crate) fn documents() -> Vec<PathBuf> {
    let mut documents = markdown(&workspace().join("docs"));
    for folder in ["plugins", "examples", "plugin-api", ".github"] {
        documents.extend(markdown(&workspace().join(folder)));
    }
    let root = ["README.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "ARCHITECTURE.md"];
    documents.extend(root.map(|name| workspace().join(name)));
    documents
}

/// The rows of all tables of a document: their cells.
fn rows(text: &str) -> Vec<Vec<String>> {
    let cells = |row: &str| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    text.lines().filter(|line| line.starts_with("| ")).map(cells).collect()
}

/// A fenced block: where it begins, its language, its text without the indentation of a list.
struct Block {
    place: String,
    language: String,
    text: String,
    is_indented: bool,
}

fn blocks(path: &Path) -> Vec<Block> {
    let text = fs::read_to_string(path).expect("a document can be read");
    let mut blocks = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let Some(language) = line.trim_start().strip_prefix("```") else { continue };
        let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
        let inside: Vec<&str> = inside.map(|line| line.get(indent..).unwrap_or_default()).collect();
        blocks.push(Block {
            place: format!("{}:{number}", path.display()),
            language: language.to_owned(),
            text: inside.join("\n") + "\n",
            is_indented: indent > 0,
        });
    }
    blocks
}

#[test]
fn the_command_line_page_equals_the_help_of_each_command() {
    let mut page = "# Command line\n\n\
        This page is generated from `--help`. Without a command, `vkog` runs the server with the options of `vkog serve`.\n\
        [Configuration](configuration.md) explains each server option, [Errors](errors.md#exit-statuses) the exit statuses.\n"
        .to_owned();
    for command in COMMANDS {
        page += format!("\n## vkog {command}").trim_end();
        page += &format!("\n\n```text\n{}\n```\n", help(command).trim_end());
    }
    // The list contains every command of the overview.
    let listed = |of: &str| {
        let help = help(of);
        let words = help.lines().filter_map(|line| line.strip_prefix("  ")?.split_once("  ").map(|(word, _)| word));
        let words = words.filter(|word| word.chars().all(|letter| letter.is_ascii_lowercase()) && *word != "help");
        words.map(|word| format!("{of} {word}").trim_start().to_owned()).collect::<Vec<_>>()
    };
    for command in [listed(""), listed("plugins")].concat() {
        let known = COMMANDS.contains(&command.as_str()) || command == "plugins";
        assert!(known, "a command without a section in {COMMAND_LINE}: {command}");
    }
    if std::env::var_os("VKOG_BLESS").is_some() {
        fs::write(workspace().join(COMMAND_LINE), &page).expect("the page can be written");
    }
    assert!(read(COMMAND_LINE) == page, "{COMMAND_LINE} is out of date; run this test with VKOG_BLESS=1");
}

/// The names in backticks that the program lists for a configuration with a key that it does not know.
pub(crate) fn known_keys(config: &str) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("vkog.toml");
    fs::write(&file, config).expect("it is ours");
    let (_, stderr) = vkog(&["--config", &file.display().to_string()]);
    let (_, listed) = stderr.split_once("expected").unwrap_or_else(|| panic!("no list of keys: {stderr}"));
    listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// A configuration for each table, with an unknown key. No message lists the keys of a plugin's table.
pub(crate) const TABLES: [&str; 4] =
    ["[access]\nunknown = 1", "[cors]\nunknown = 1", "[proxy]\nunknown = 1", "[[access.tokens]]\nunknown = 1"];

/// The options of the server. All but one are keys of the configuration; in the file, `cors-origins` is the table `[cors]`.
pub(crate) fn options() -> Vec<String> {
    let mut options = known_keys("unknown = 1");
    options.retain(|key| !["access", "cors", "plugins", "proxy"].contains(&key.as_str()));
    options.push("cors-origins".to_owned());
    assert!(options.len() >= 17, "{options:?}");
    options
}

#[test]
fn each_configuration_key_is_documented_with_its_default_and_variable() {
    let rows = rows(&read(CONFIGURATION));
    let row = |key: &str| {
        let named = [format!("`{key}`"), format!("[`{key}`]")];
        let of_key = |cells: &&Vec<String>| {
            named.iter().any(|name| cells[0] == *name || cells[0].starts_with(&format!("{name}(")))
        };
        rows.iter().find(of_key).unwrap_or_else(|| panic!("no row for {key} in {CONFIGURATION}"))
    };
    let options = options();
    let serve = help("serve").split_whitespace().collect::<Vec<_>>().join(" ");
    for key in options.iter().map(String::as_str).chain(["config"]) {
        let cells = row(key).join(" | ");
        let variable = format!("`VKOG_{}`", key.to_uppercase().replace('-', "_"));
        assert!(cells.contains(&variable), "no {variable} beside {key} in {CONFIGURATION}");
        let about = serve.split_once(&format!("--{key} ")).unwrap_or_else(|| panic!("no --{key} in the help")).1;
        let about = about.split(" --").next().unwrap_or_default();
        let default =
            about.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']')).map(|(default, _)| default);
        if let Some(default) = default.filter(|default| !default.contains(' ')) {
            assert!(cells.contains(&format!("`{default}`")), "{key}: not the default {default} in {CONFIGURATION}");
        }
    }
    for config in TABLES {
        known_keys(config).iter().for_each(|key| {
            row(key);
        });
    }
    // No message lists the server's own keys of a plugin's table.
    for key in ["sha256", "required", "on_failure", "budget", "order"] {
        row(key);
    }
    let of_the_client = help("get");
    for variable in of_the_client.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_') {
        if variable.starts_with("VKOG_") {
            row(variable);
        }
    }
}

/// The metrics of a server with the bundled plugins, and of one on a shared store, by the names that samples have, with their
/// types.
pub(crate) fn metrics() -> BTreeMap<String, String> {
    let in_files = [bytes(), conflict(), ttl()].iter().fold(Setup::new(), Setup::load);
    let in_files = in_files.config("[plugins.bytes]\nevict = \"lru\"\n");
    let shared = Setup::new().load(artefacts().library("vkog-faults")).shared_store("faults://entries");
    let of = |setup: Setup| {
        let server = setup.start();
        server.post("k", "v").expect(200);
        let text = server.path("GET", "/metrics").send().expect(200).text();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect::<Vec<_>>()
    };
    of(in_files).into_iter().chain(of(shared)).collect()
}

#[test]
fn each_metric_is_documented_with_its_type() {
    let metrics = metrics();
    assert!(metrics.len() >= 25, "{metrics:?}");
    let rows = rows(&read(METRICS));
    for (name, kind) in &metrics {
        let row = rows.iter().find(|cells| cells[0] == format!("`{name}`"));
        let row = row.unwrap_or_else(|| panic!("no row for {name} in {METRICS}"));
        assert!(row[1].starts_with(kind.as_str()), "{name} is a {kind}, not {}", row[1]);
    }
    for page in [METRICS, "docs/how-to/monitoring.md", "plugins/ttl/README.md"] {
        let text = read(page);
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        for word in words.filter(|word| word.starts_with("vkog_") && *word != "vkog_plugin_") {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            assert!(metrics.contains_key(base), "{page} names {word}, which the server does not have");
        }
    }
}

/// The statuses and headers of the interface, from its description; the headers also from the sources of the server.
pub(crate) fn statuses_and_headers() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut statuses, mut headers) = (BTreeSet::new(), BTreeSet::new());
    let document = description();
    for path in document["paths"].as_object().expect("paths").values() {
        for operation in path.as_object().expect("a path").values().filter_map(|it| it["responses"].as_object()) {
            statuses.extend(operation.keys().cloned());
        }
    }
    let components = &document["components"];
    for parameter in components["parameters"].as_object().expect("parameters").values() {
        if parameter["in"] == "header" {
            headers.insert(parameter["name"].as_str().expect("a name").to_owned());
        }
    }
    for response in components["responses"].as_object().expect("responses").values() {
        headers.extend(response["headers"].as_object().into_iter().flatten().map(|(name, _)| name.clone()));
    }
    for path in ["host/src/api", "host/src/http"].iter().flat_map(|folder| sources(&workspace().join(folder))) {
        let code = read(path);
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        for start in ["with_header(\"", "add_header(\"", "headers.get(\"", "headers.all(\"", "headers.push((\""] {
            headers.extend(code.split(start).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
        }
    }
    // Names of headers are case-insensitive; the description and the responses have the usual case.
    let mut usual: BTreeMap<String, String> = BTreeMap::new();
    for header in headers.into_iter().rev() {
        usual.insert(header.to_ascii_lowercase(), header);
    }
    let usual = usual.into_values().map(|name| if name.contains(char::is_uppercase) { name } else { capitals(&name) });
    (statuses, usual.collect())
}

/// Capitalizes each word of the name of a header.
fn capitals(name: &str) -> String {
    let words = name.split('-').map(|word| word[..1].to_ascii_uppercase() + &word[1..]);
    words.collect::<Vec<_>>().join("-")
}

#[test]
fn each_status_and_header_of_the_interface_is_documented() {
    let (statuses, headers) = statuses_and_headers();
    assert!(statuses.len() >= 20 && headers.len() >= 20, "{statuses:?} {headers:?}");
    let documented: String = rows(&read(ERRORS)).into_iter().map(|cells| format!(" {},", cells[0])).collect();
    for status in statuses {
        assert!(documented.contains(&format!(" {status},")), "no row for {status} in {ERRORS}");
    }
    let page = read(HTTP);
    let (_, table) = page.split_once("\n## Headers\n").expect("a table of headers");
    for header in headers {
        assert!(table.contains(&format!("`{header}`")), "no row for {header} under Headers in {HTTP}");
    }
}

/// The Rust sources of the host and the crates in its folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).expect("a folder can be read").flatten().map(|entry| entry.path()) {
        if path.is_dir() && !["tests", "fuzz", "benches", "target"].iter().any(|name| path.ends_with(name)) {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The load codes, from the sources of the loader.
pub(crate) fn load_codes() -> BTreeSet<String> {
    let all: Vec<String> = sources(&workspace().join("host")).iter().map(read).collect();
    let source = all.iter().find(|text| text.contains("=> \"world-writable\"")).expect("the load codes");
    let (_, function) = source.split_once("fn code(&self)").expect("a function that returns them");
    let (function, _) = function.split_once("\n    }\n").expect("its end");
    let codes = function.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned);
    let codes: BTreeSet<String> = codes.collect();
    assert!(codes.len() >= 34, "{codes:?}");
    codes
}

#[test]
fn each_load_code_is_documented_and_no_other() {
    let page = read(ERRORS);
    let (_, table) = page.split_once("\n## Plugin load codes\n").expect("a table of load codes");
    let (table, _) = table.split_once("\n## ").expect("its end");
    let rows = rows(table);
    let documented: BTreeSet<String> = rows.iter().skip(1).map(|cells| cells[0].trim_matches('`').to_owned()).collect();
    assert_eq!(load_codes(), documented, "{ERRORS}");
}

/// The statuses and first words of the server's own messages, as its sources have them.
fn messages() -> BTreeSet<(String, String)> {
    let mut messages = BTreeSet::new();
    for path in sources(&workspace().join("host")) {
        let text = fs::read_to_string(path).expect("a source");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for call in ["Problem::new(", "host_refusal("].iter().flat_map(|start| code.split(start).skip(1)) {
            let Some((status, rest)) = call.split_once(',') else { continue };
            let rest = rest.trim_start();
            let rest = rest.strip_prefix("format!(").unwrap_or(rest).trim_start();
            let Some(literal) = rest.strip_prefix('"') else { continue };
            let words: String =
                literal.chars().take_while(|letter| !['"', '{', '\\', ';', ':'].contains(letter)).collect();
            let words = words.trim();
            if status.trim().parse::<u16>().is_ok() && words.len() > 3 {
                messages.insert((status.trim().to_owned(), words.to_owned()));
            }
        }
    }
    messages
}

#[test]
fn each_message_of_the_server_is_documented_with_its_status() {
    let messages = messages();
    assert!(messages.len() >= 24, "{messages:?}");
    let rows = rows(&read(ERRORS));
    let missing: Vec<_> = messages
        .iter()
        .filter(|(status, words)| {
            let named = |cells: &Vec<String>| {
                let mut texts = cells[2..].iter().flat_map(|cell| cell.split('`').skip(1).step_by(2));
                cells[0] == *status && texts.any(|text| words.starts_with(text) || text.starts_with(words.as_str()))
            };
            !rows.iter().any(|cells| cells.len() > 2 && named(cells))
        })
        .collect();
    assert!(missing.is_empty(), "no row in {ERRORS} for {missing:?}");
}

#[test]
fn the_offsets_of_the_file_format_page_are_those_of_a_file() {
    let setup = Setup::new();
    let server = setup.start();
    server.post("a", "hello").expect(200);
    server.stop().expect(0);
    let file = fs::read(setup.store_file()).expect("a store was written");
    let page = read("docs/reference/file-format.md");
    let mut checked = 0;
    for cells in rows(&page) {
        let (Ok(offset), Some((_, name))) = (cells[0].parse::<usize>(), cells[1].split_once('"')) else { continue };
        let name = name.split('"').next().unwrap_or_default();
        let expected = [&[0xa0 + name.len() as u8], name.as_bytes()].concat();
        let found = file.get(offset..offset + expected.len());
        assert_eq!(found, Some(&expected[..]), "{name} is not at byte {offset}");
        checked += 1;
    }
    assert_eq!(checked, 16, "rows with a name and an offset");
    assert_eq!((file[0], file[6], file[212]), (0x84, 0x8d, 0xc3), "the map, the header, the mark of a clean stop");
    assert_eq!(&file[237..245], b"\xa1a\xa5hello", "the first entry");
}

#[test]
fn no_link_of_the_repository_is_dead() {
    assert_eq!(dead_links(workspace()), [""; 0]);
}

#[test]
fn each_page_is_in_the_index() {
    let index = read("docs/README.md");
    for page in markdown(&workspace().join("docs")) {
        let page = page.strip_prefix(workspace().join("docs")).expect("it is in the folder").to_owned();
        let link = format!("]({})", page.display());
        assert!(page == Path::new("README.md") || index.contains(&link), "{} is not in docs/README.md", page.display());
    }
}

/// Asserts that a command accepts a text on its standard input.
#[track_caller]
fn accepted(program: &str, arguments: &[&str], block: &Block) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    child.stdin.take().expect("a pipe").write_all(block.text.as_bytes()).expect("it is read");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}: {}", block.place, String::from_utf8_lossy(&output.stderr));
}

/// Asserts that the program accepts a configuration, with the settings of all plugins of the repository.
fn configures(block: &Block) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("vkog.toml").display().to_string();
    fs::write(&file, &block.text).expect("it is ours");
    let names = [
        "bytes",
        "conflict",
        "ttl",
        "audit",
        "bearer",
        "compress",
        "counter",
        "encrypt",
        "index",
        "json-only",
        "limit",
        "tenant",
    ];
    let libraries = names.map(|name| artefacts().library(&format!("vkog-{name}")).display().to_string());
    let mut words = vec!["plugins", "check", "--config", &file];
    words.extend(libraries.iter().map(String::as_str));
    let mut check = Command::new(artefacts().vkog());
    let output = check.args(words).current_dir(folder.path()).output().expect("vkog runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!stderr.contains("cannot use"), "{}: {stderr}", block.place);
    let is_about = |name: &str| block.text.contains(&format!("[plugins.{name}]"));
    for (name, library) in names.iter().zip(&libraries).filter(|(name, _)| is_about(name)) {
        let line =
            [&stdout, &stderr].into_iter().flat_map(|text| text.lines()).find(|line| line.contains(library.as_str()));
        let line = line.unwrap_or_else(|| panic!("{}: no word on {name}: {stdout}{stderr}", block.place));
        assert!(!line.contains("[bad-settings]"), "{}: {line}", block.place);
    }
}

/// `console` blocks are run by documents.rs.
#[test]
fn each_fenced_block_parses() {
    let known = [
        "console",
        "toml",
        "json",
        "rust",
        "sh",
        "text",
        "yaml",
        "nginx",
        "dockerfile",
        "ini",
        "python",
        "apache",
        "haproxy",
        "caddyfile",
        "vcl",
        "squid",
    ];
    let mut counts = BTreeMap::new();
    for block in documents().iter().flat_map(|path| blocks(path)) {
        let place = &block.place;
        assert!(known.contains(&block.language.as_str()), "{place}: no language, or {:?}", block.language);
        match block.language.as_str() {
            "console" => assert!(!block.is_indented, "{place}: documents.rs does not find an indented session"),
            // documents.rs tests parts of a manifest.
            "toml" if block.text.contains("dependencies]") => {}
            "toml" => configures(&block),
            "json" => {
                let parsed: Result<serde_json::Value, _> = serde_json::from_str(&block.text);
                assert!(parsed.is_ok(), "{place}: {parsed:?}");
            }
            "rust" => accepted("rustfmt", &["--edition", "2024"], &block),
            "sh" => accepted("sh", &["-n"], &block),
            _ => {}
        }
        *counts.entry(block.language).or_insert(0) += 1;
    }
    for language in ["console", "toml", "json", "rust", "sh"] {
        assert!(counts.get(language) > Some(&0), "no {language} block: {counts:?}");
    }
}
