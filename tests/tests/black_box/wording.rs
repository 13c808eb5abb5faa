//! No text that a person reads has a turn of phrase that hides who does what: not the documents, the help of each command, the
//! description of the HTTP interface, the web UI, and not the doc comments and string literals of any crate.

use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use vkog_tests::{description, prose, workspace};

use super::reference::{COMMANDS, documents, help, read};

/// Turns of phrase that hide who does what, or that stand where a usual term exists.
const BANNED: [&str; 72] = [
    "told",
    "tells",
    "whoever",
    "whatever",
    "goes on",
    "go on",
    "gone on",
    "going on",
    "so many",
    "so long",
    "that much",
    "patience",
    "comes again",
    "came again",
    "begins anew",
    "begin anew",
    "start anew",
    "takes in",
    "take in",
    "took in",
    "taken in",
    "given up",
    "gives up",
    "one's own",
    "under way",
    "by itself",
    "by themselves",
    "of its own",
    "the moment",
    "for people",
    "mend",
    "mended",
    "undone",
    "kept",
    "not done",
    "ought to",
    "nobody",
    "agrees on a secret",
    "agreed on a secret",
    "talks in secret",
    "asks for",
    "for ever",
    "who comes",
    "who watches",
    "who asks",
    "in the place of",
    "in place of",
    "is there",
    "there is not",
    "has it",
    "at most so",
    "pleases",
    "takes the place",
    "take the place",
    "of the own",
    "said of",
    "says of",
    "does it",
    "made anew",
    "tell",
    "telling",
    "asked",
    "is answered",
    "are answered",
    "was answered",
    "has patience",
    "of their own",
    "at the moment",
    "in the moment",
    "give up",
    "not there",
    "be there",
];

/// The banned turns in a text, with their line numbers.
fn banned(text: &str) -> Vec<(usize, String)> {
    let mut words: Vec<(usize, &str, String)> = Vec::new();
    let prose = prose(text);
    for (number, line) in (1..).zip(prose.lines()) {
        let is_heading = line.starts_with('#');
        // A placeholder is a name of the source, not a word of the text.
        for raw in line.split_whitespace().filter(|_| !is_heading) {
            let word = raw.trim_matches(|letter: char| !letter.is_alphanumeric()).to_lowercase();
            let word = if raw.contains('{') { "{}".to_owned() } else { word };
            if !word.is_empty() {
                words.push((number, raw, word));
            }
        }
    }
    let mut found = Vec::new();
    for turn in BANNED {
        let turn: Vec<&str> = turn.split(' ').collect();
        let here = words.windows(turn.len()).filter(|window| window.iter().map(|(_, _, word)| word).eq(&turn));
        found.extend(here.map(|window| (window[0].0, turn.join(" "))));
    }
    let ends = |raw: &str| raw.ends_with(['.', ':', ';', '!', '?']);
    for at in 0..words.len() {
        let (number, raw, word) = &words[at];
        let begins = at == 0 || ends(words[at - 1].1);
        let has_infinitive = words.get(at + 1).is_some_and(|(_, _, word)| word == "to");
        if begins && ["Who", "What"].contains(raw) && !has_infinitive {
            let last = words[at..].iter().find(|(_, raw, _)| ends(raw));
            if !last.is_some_and(|(_, raw, _)| raw.ends_with('?')) {
                found.push((*number, format!("{raw} … as a subject")));
            }
        }
        if word == "descriptors" && (at == 0 || words[at - 1].2 != "file") {
            found.push((*number, "descriptors".to_owned()));
        }
    }
    found.sort();
    found
}

/// Turns with the place where they were found.
fn findings(place: &str, first_line: usize, text: &str) -> Vec<String> {
    banned(text).into_iter().map(|(number, turn)| format!("{place}:{}: {turn}", first_line + number - 1)).collect()
}

/// The path of a file within the repository.
fn shown(path: &Path) -> String {
    path.strip_prefix(workspace()).unwrap_or(path).display().to_string()
}

#[test]
fn no_document_has_a_banned_turn() {
    let found: Vec<String> = documents().iter().flat_map(|path| findings(&shown(path), 1, &read(path))).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_help_text_has_a_banned_turn() {
    let commands = COMMANDS.iter().chain(&["plugins"]);
    let found: Vec<String> =
        commands.flat_map(|command| findings(&format!("vkog {command} --help"), 1, &help(command))).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The texts of the summaries and descriptions in a JSON document.
fn descriptions(value: &serde_json::Value, texts: &mut Vec<String>) {
    if let Some(map) = value.as_object() {
        for (name, value) in map {
            match value.as_str() {
                Some(text) if ["summary", "description"].contains(&name.as_str()) => texts.push(text.to_owned()),
                _ => descriptions(value, texts),
            }
        }
    }
    value.as_array().into_iter().flatten().for_each(|value| descriptions(value, texts));
}

#[test]
fn neither_the_http_description_nor_the_web_ui_has_a_banned_turn() {
    let mut texts = Vec::new();
    descriptions(description(), &mut texts);
    assert!(texts.len() >= 60, "{texts:?}");
    let mut found: Vec<String> = texts.iter().flat_map(|text| findings(text, 1, text)).collect();
    found.extend(findings("page.html", 1, &read("host/src/api/page.html")));
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// The Rust sources of a folder, without build products, copies of old versions and this file, whose subject is the turns.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).expect("a folder can be read").flatten().map(|entry| entry.path()) {
        let is_left_out = ["target", "frozen", "wording.rs"].iter().any(|name| path.ends_with(name));
        if path.is_dir() && !is_left_out {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_left_out {
            found.push(path);
        }
    }
}

/// Collects the doc comments and string literals of a source, each with its line.
fn texts(tokens: TokenStream, found: &mut Vec<(usize, String)>) {
    // The last line of the doc comment that is being read.
    let mut doc_end = 0;
    for token in tokens {
        match token {
            TokenTree::Group(group) => match doc_comment(group.stream()) {
                Some((line, text)) if doc_end + 1 == line && !found.is_empty() => {
                    let (_, comment) = found.last_mut().expect("it is not empty");
                    comment.push('\n');
                    comment.push_str(&text);
                    doc_end = line;
                }
                Some((line, text)) => {
                    found.push((line, text));
                    doc_end = line;
                }
                None => texts(group.stream(), found),
            },
            TokenTree::Literal(literal) => {
                let line = literal.span().start().line;
                if let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                    found.push((line, text.value()));
                }
            }
            _ => {}
        }
    }
}

/// The line and the text of the attribute that a line of a doc comment is.
fn doc_comment(attribute: TokenStream) -> Option<(usize, String)> {
    let mut tokens = attribute.into_iter();
    let (Some(TokenTree::Ident(name)), Some(TokenTree::Punct(_)), Some(TokenTree::Literal(text))) =
        (tokens.next(), tokens.next(), tokens.next())
    else {
        return None;
    };
    let text = syn::parse_str::<syn::LitStr>(&text.to_string()).ok().filter(|_| name == "doc")?;
    Some((name.span().start().line, text.value()))
}

/// The crates whose doc comments and texts are checked: every folder with sources.
const CRATES: [&str; 6] = ["host", "plugin-api", "plugins", "examples", "tests", "xtask"];

#[test]
fn no_doc_comment_and_no_string_of_a_crate_has_a_banned_turn() {
    let mut paths = Vec::new();
    CRATES.iter().for_each(|folder| sources(&workspace().join(folder), &mut paths));
    assert!(paths.len() > 200, "{paths:?}");
    let mut found = Vec::new();
    for path in paths {
        let tokens: TokenStream = read(&path).parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut all = Vec::new();
        texts(tokens, &mut all);
        // A single word is a name, not prose.
        let prose = all.into_iter().filter(|(_, text)| text.trim().contains(' '));
        found.extend(prose.flat_map(|(line, text)| findings(&shown(&path), line, &text)));
    }
    assert!(found.is_empty(), "{} findings\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_banned_turn_is_found_across_lines_and_not_in_code() {
    let text = "The client is told.\n\n`told`\n\n```text\ntold\n```\nIt goes\non. What is sent is lost.\nWhat is sent? What to send.\n";
    let turns: Vec<_> = banned(text).into_iter().collect();
    let expected = [(1, "told"), (8, "goes on"), (9, "What … as a subject")];
    assert_eq!(turns, expected.map(|(line, turn)| (line, turn.to_owned())));
    let source = "//! It is\n//! told.\n\n/// Fine.\nfn f() { g(\"goes \\\n   on\"); } // told\n";
    let mut all = Vec::new();
    texts(source.parse().expect("valid Rust"), &mut all);
    let turns: Vec<String> = all.iter().flat_map(|(line, text)| findings("f.rs", *line, text)).collect();
    assert_eq!(turns, ["f.rs:2: told", "f.rs:5: goes on"]);
}
