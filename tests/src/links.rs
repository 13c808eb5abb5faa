//! Links between Markdown documents, and between the HTML pages of a site: a link is dead if its file, or the heading
//! or element that its anchor names, does not exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Folders without documents of this project.
const SKIPPED: [&str; 4] = ["target", ".git", "vendor", "fuzz"];

/// Returns the Markdown documents in a folder and in the folders in it, sorted.
pub fn markdown(folder: &Path) -> Vec<PathBuf> {
    files(folder, ".md")
}

fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !path.is_symlink() && !SKIPPED.contains(&name.as_str()) {
            found.extend(files(&path, end));
        } else if name.ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the prose of a document: the same lines without fenced blocks, and with `x` for each code span.
pub fn prose(text: &str) -> String {
    let mut prose = String::with_capacity(text.len());
    let mut in_block = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            for (at, part) in line.split('`').enumerate() {
                prose.push_str(if at % 2 == 0 { part } else { "x" });
            }
        }
        prose.push('\n');
    }
    prose
}

/// Returns one line for each dead link in the documents of a folder: document, line and target.
pub fn dead_links(root: &Path) -> Vec<String> {
    let documents: BTreeMap<PathBuf, String> =
        markdown(root).into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap_or_default())).collect();
    let mut dead = Vec::new();
    for (path, text) in &documents {
        let folder = path.parent().unwrap_or(root);
        for (number, target) in links(text) {
            let (file, anchor) = target.split_once('#').map_or((target.as_str(), None), |(file, at)| (file, Some(at)));
            let file = if file.is_empty() { path.clone() } else { normal(&folder.join(file)) };
            let lives = file.starts_with(root)
                && match (anchor, documents.get(&file)) {
                    (None, _) => file.exists(),
                    (Some(anchor), Some(text)) => anchors(text).iter().any(|known| known == anchor),
                    (Some(_), None) => false,
                };
            if !lives {
                dead.push(format!("{}:{number}: {target}", path.strip_prefix(root).unwrap_or(path).display()));
            }
        }
    }
    dead
}

/// Returns one line for each dead link in the HTML pages of a folder and of the folders in it: page and target.
pub fn dead_links_of_site(root: &Path) -> Vec<String> {
    let pages: BTreeMap<PathBuf, String> = files(root, ".html")
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap_or_default()))
        .collect();
    let mut dead = Vec::new();
    for (path, text) in &pages {
        let folder = path.parent().unwrap_or(root);
        for target in attributes(text, "href").filter(|target| !target.contains(':')) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = file.split('?').next().unwrap_or_default();
            let file = if file.is_empty() { path.clone() } else { normal(&folder.join(file)) };
            // A range of lines of a source is found by a script.
            let is_lines = anchor.starts_with(|first: char| first.is_ascii_digit());
            let lives = file.starts_with(root)
                && if anchor.is_empty() || is_lines {
                    file.is_file()
                } else {
                    // A page that only redirects passes the anchor on.
                    let has_anchor = |text: &String| {
                        text.contains("http-equiv=\"refresh\"") || attributes(text, "id").any(|id| id == anchor)
                    };
                    pages.get(&file).is_some_and(has_anchor)
                };
            if !lives {
                dead.push(format!("{}: {target}", path.strip_prefix(root).unwrap_or(path).display()));
            }
        }
    }
    dead
}

/// The values of an attribute in an HTML page.
fn attributes<'a>(html: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let start = format!(" {name}=\"");
    let starts: Vec<usize> = html.match_indices(&start).map(|(at, found)| at + found.len()).collect();
    starts.into_iter().filter_map(|at| html[at..].split('"').next())
}

/// The targets of links in this repository, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in (1..).zip(prose(text).lines()) {
        for part in line.split("](").skip(1) {
            let target = part.split([')', ' ']).next().unwrap_or_default();
            if !target.contains("://") && !target.starts_with("mailto:") {
                links.push((number, target.to_owned()));
            }
        }
    }
    links
}

/// The anchors of the headings of a document, as GitHub makes them.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        in_block ^= line.trim_start().starts_with("```");
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        let Some(heading) = line.get(level..).and_then(|rest| rest.strip_prefix(' ')) else { continue };
        if in_block || level == 0 {
            continue;
        }
        let kept = |letter: &char| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter);
        let slug: String = heading.trim().to_lowercase().chars().filter(kept).collect();
        let slug = slug.replace(' ', "-");
        let same = anchors.iter().filter(|other| **other == slug).count();
        anchors.push(if same == 0 { slug } else { format!("{slug}-{same}") });
    }
    anchors
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}
