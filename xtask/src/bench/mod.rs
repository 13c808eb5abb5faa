//! Benchmarks: this program and its peers, in turn, on this machine, in one run.

pub(crate) mod against;
pub(crate) mod attack;
pub(crate) mod http;
pub(crate) mod peers;
mod plugins;
pub(crate) mod store;

use std::path::PathBuf;

use crate::Result;

/// The options of a benchmark.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Fewer and shorter rounds.
    pub(crate) quick: bool,
    /// Another vkog, to compare with instead of the peers.
    pub(crate) against: Option<PathBuf>,
    /// The profile to build with. None is `release`.
    profile: Option<String>,
    /// The parts to run. Empty is all of them.
    parts: Vec<String>,
}

impl Options {
    /// Parses `[--quick] [--profile=NAME] [--against=PROGRAM] [PART…]`.
    ///
    /// # Errors
    ///
    /// An option or a part is unknown, or `--against` names no file.
    pub(crate) fn parse(words: &[&str], parts: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            match *word {
                "--quick" => options.quick = true,
                "--against" => options.against = Some(program(rest.next().unwrap_or(&""))?),
                word => match word.split_once('=') {
                    Some(("--against", path)) => options.against = Some(program(path)?),
                    Some(("--profile", name)) => options.profile = Some(name.to_owned()),
                    _ if parts.contains(&word) => options.parts.push(word.to_owned()),
                    _ if parts.is_empty() => return Err(format!("unexpected argument {word:?}").into()),
                    _ => return Err(format!("there is no part {word:?}; the parts are {}", parts.join(", ")).into()),
                },
            }
        }
        Ok(options)
    }

    /// Returns the profile to build with.
    pub(crate) fn profile(&self) -> &str {
        self.profile.as_deref().unwrap_or("release")
    }

    /// Returns true if a part is to be run.
    pub(crate) fn includes(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|name| name == part)
    }
}

/// Returns the absolute path of a program, so that it stays right in every folder.
fn program(path: &str) -> Result<PathBuf> {
    std::fs::canonicalize(path)
        .map_err(|error| format!("cannot compare with {path:?}: {error}; give --against the path of a vkog").into())
}

/// The value in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The results, as a table for docs/explanation/performance.md.
#[derive(Default)]
pub(crate) struct Table(Vec<[String; 5]>);

impl Table {
    /// Adds a row: what was measured, ours, the peer's, the ratio that was reached and the goal.
    pub(crate) fn row(&mut self, what: &str, ours: String, theirs: String, ratio: String, goal: &str) {
        eprintln!("{what}: {ours} | {theirs} | {ratio} | {goal}");
        self.0.push([what.to_owned(), ours, theirs, ratio, goal.to_owned()]);
    }

    pub(crate) fn print(&self, peer: &str) {
        println!("| what | vkog | {peer} | ratio | goal |\n|---|---|---|---|---|");
        for row in &self.0 {
            println!("| {} |", row.join(" | "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parsed_in_any_order() {
        let parsed = Options::parse(&["writes", "--against", "Cargo.toml", "--quick"], &["reads", "writes"]);
        let parsed = parsed.expect("they are right");
        assert!(parsed.quick && parsed.includes("writes") && !parsed.includes("reads"), "{parsed:?}");
        assert_eq!(parsed.against, std::fs::canonicalize("Cargo.toml").ok());
    }

    #[test]
    fn wrong_options_are_refused() {
        for words in [&["--fast"][..], &["--against"], &["--against=/no/such/vkog"], &["flights"]] {
            assert!(Options::parse(words, &["reads"]).is_err(), "{words:?}");
        }
    }
}
