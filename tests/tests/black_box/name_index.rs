//! The index of names lists every option, configuration key, variable, metric, status, load code and header, each with a link to
//! the section that documents it. A name without such a section fails the test.
//!
//! With `VKOG_BLESS=1`, the page is written instead of compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use vkog_tests::workspace;

use super::reference::{
    COMMAND_LINE, COMMANDS, CONFIGURATION, ERRORS, HTTP, METRICS, TABLES, help, known_keys, load_codes, metrics,
    options, read, statuses_and_headers,
};

const INDEX: &str = "docs/reference/name-index.md";
const TTL: &str = "plugins/ttl/README.md";

/// Returns a link to the section of a page with a table row, or a line of help, that begins with a name.
fn link(page: &str, name: &str) -> String {
    let text = read(page);
    let mut heading = "";
    for line in text.lines() {
        if line.starts_with('#') {
            heading = line.trim_start_matches('#').trim();
        }
        let first = line.strip_prefix("| ").map(|row| row.split(" | ").next().unwrap_or_default());
        let is_named = first.is_some_and(|cell| {
            let is_status = name.parse::<u16>().is_ok();
            cell.split('`').skip(1).step_by(2).any(|text| text == name)
                || is_status && cell.split(", ").any(|text| text == name)
        });
        if is_named {
            return linked(page, heading, heading);
        }
    }
    panic!("no table row documents {name} in {page}");
}

fn linked(page: &str, text: &str, heading: &str) -> String {
    let is_kept = |letter: &char| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter);
    let anchor: String = heading.to_lowercase().chars().filter(is_kept).collect();
    let page = page.strip_prefix("docs/reference/").map_or_else(|| format!("../../{page}"), str::to_owned);
    format!("[{text}]({page}#{})", anchor.replace(' ', "-"))
}

/// A section with a table of names and links.
fn section(title: &str, page: &str, names: impl IntoIterator<Item = (String, String)>) -> String {
    let rows: String = names.into_iter().map(|(name, links)| format!("| `{name}` | {links} |\n")).collect();
    let name = title.trim_end_matches('s').to_lowercase();
    format!("\n## {title}\n\n| {name} | section in {page} |\n|---|---|\n{rows}")
}

/// The options of all commands, each with links to the commands that have it.
fn command_line_options() -> BTreeMap<String, String> {
    let mut links: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for command in COMMANDS.into_iter().filter(|command| !command.is_empty()) {
        for line in help(command).lines().filter(|line| line.starts_with("  ")) {
            let words = line.trim_start();
            let words = words.strip_prefix('-').filter(|rest| !rest.starts_with('-')).map_or(words, |rest| &rest[1..]);
            let words = words.trim_start_matches([',', ' ']);
            let Some(option) = words.strip_prefix("--") else { continue };
            let option: String =
                option.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '-').collect();
            let heading = format!("vkog {command}");
            links.entry(format!("--{option}")).or_default().push(linked(COMMAND_LINE, command, &heading));
        }
    }
    links.into_iter().map(|(option, links)| (option, links.join(", "))).collect()
}

#[test]
fn each_name_is_in_the_index_with_the_section_that_documents_it() {
    let of = |page: &'static str| move |name: String| (name.clone(), link(page, &name));
    let mut keys: BTreeSet<String> = options().into_iter().collect();
    for config in TABLES {
        keys.extend(known_keys(config));
    }
    keys.extend(["sha256", "required", "on_failure", "budget", "order"].map(str::to_owned));
    let mut variables: BTreeSet<String> =
        options().iter().map(|key| format!("VKOG_{}", key.to_uppercase().replace('-', "_"))).collect();
    variables.extend(
        [
            "VKOG_CONFIG",
            "VKOG_URL",
            "VKOG_TOKEN",
            "VKOG_CERT",
            "VKOG_KEY",
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "TMPDIR",
            "TMP",
        ]
        .map(str::to_owned),
    );
    let configuration = read(CONFIGURATION);
    let variables = variables.into_iter().map(|variable| {
        let row = configuration.lines().find(|line| line.starts_with("| ") && line.contains(&format!("`{variable}`")));
        let row = row.unwrap_or_else(|| panic!("no table row documents {variable} in {CONFIGURATION}"));
        let name = row.split('`').nth(1).unwrap_or_default();
        (variable, link(CONFIGURATION, name))
    });
    let (mut statuses, headers) = statuses_and_headers();
    statuses.retain(|status| status.parse::<u16>().is_ok());
    let metrics = metrics().into_keys().map(|name| {
        let page = if name.starts_with("vkog_plugin_ttl_") { TTL } else { METRICS };
        let place = link(page, &name);
        (name, place)
    });
    let mut page = "# Index of names\n\n\
        This page is generated: it lists every name that you can meet in a command, a file, a request or a response, with the\n\
        section that documents it.\n"
        .to_owned();
    page += &section("Command-line options", "[Command line](command-line.md)", command_line_options());
    page +=
        &section("Configuration keys", "[Configuration](configuration.md)", keys.into_iter().map(of(CONFIGURATION)));
    page += &section("Environment variables", "[Configuration](configuration.md)", variables);
    page += &section("Metrics", "[Metrics](metrics.md)", metrics);
    page += &section("Headers", "[HTTP API](http.md)", headers.into_iter().map(of(HTTP)));
    page += &section("Statuses", "[Errors](errors.md)", statuses.into_iter().map(of(ERRORS)))
        .replace("| statuse |", "| status |");
    page += &section("Load codes", "[Errors](errors.md)", load_codes().into_iter().map(of(ERRORS)));
    if std::env::var_os("VKOG_BLESS").is_some() {
        fs::write(workspace().join(INDEX), &page).expect("the page can be written");
    }
    assert!(read(INDEX) == page, "{INDEX} is out of date; run this test with VKOG_BLESS=1");
}
