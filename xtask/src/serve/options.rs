//! Checks the options of `vkog serve` before the server is built, against the help text that the server prints.
//!
//! A test of the server compares the text with the server's own definition. This module checks values as far as the
//! help text describes them; the server checks the rest when it starts.

use crate::Result;

/// The output of `vkog serve --help`.
pub(super) const HELP: &str = include_str!("../../../host/src/serve-help.txt");

/// An option of the help text.
#[derive(Debug, PartialEq, Eq)]
struct Opt<'a> {
    short: Option<&'a str>,
    long: &'a str,
    /// The name of its value, as in `SIZE` or `text|json`. None is an option without a value.
    value: Option<&'a str>,
}

/// Returns true if the options request the help text.
pub(super) fn asks_for_help(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| ["-h", "--help"].contains(&argument.as_str()))
}

/// Returns true if an option is among the arguments. `long` is its name without hyphens.
pub(super) fn sets(arguments: &[String], long: &str) -> bool {
    let name = |argument: &str| argument.split('=').next().and_then(|name| name.strip_prefix("--")) == Some(long);
    arguments.iter().any(|argument| name(argument))
}

/// Checks arguments for `vkog serve`.
///
/// # Errors
///
/// The first argument that is unknown, is given twice, lacks its value, or has a value that cannot be right.
pub(super) fn check(arguments: &[String]) -> Result<()> {
    let known = parse_help(HELP);
    let mut seen = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let (name, inline) = split(argument);
        let Some(option) = known.iter().find(|option| option.is(name)) else {
            return Err(format!("unexpected argument {argument:?}; see cargo xtask serve --help").into());
        };
        let long = option.long;
        if seen.contains(&long) {
            return Err(format!("{long} is given twice; give it once").into());
        }
        seen.push(long);
        match (option.value, inline) {
            (None, Some(_)) => return Err(format!("{long} takes no value; leave it out").into()),
            (None, None) => {}
            (Some(kind), Some(value)) => check_value(long, kind, value)?,
            (Some(kind), None) => match rest.next() {
                Some(value) if value == "-" || !value.starts_with('-') => check_value(long, kind, value)?,
                _ => return Err(format!("{long} lacks its value; write {long} {kind}").into()),
            },
        }
    }
    Ok(())
}

/// Splits `--long=value`, `-svalue` and `-s=value` into the option and its value.
fn split(argument: &str) -> (&str, Option<&str>) {
    if argument.starts_with("--") {
        return argument.split_once('=').map_or((argument, None), |(name, value)| (name, Some(value)));
    }
    match argument.char_indices().nth(2) {
        Some((at, _)) if argument.starts_with('-') => {
            let value = &argument[at..];
            (&argument[..at], Some(value.strip_prefix('=').unwrap_or(value)))
        }
        _ => (argument, None),
    }
}

/// Checks a value by the name that the help text gives it.
fn check_value(long: &str, kind: &str, value: &str) -> Result<()> {
    let is_choice = kind.contains('|') && !kind.contains(|char: char| char.is_ascii_uppercase());
    if is_choice && !kind.split('|').any(|choice| choice == value) {
        return Err(format!("{long} cannot be {value:?}; write one of {kind}").into());
    }
    if kind == "SIZE" && !value.starts_with(|char: char| char.is_ascii_digit()) {
        return Err(
            format!("{long} cannot be {value:?}; write bytes, or a number with KiB, MiB, GiB, KB, MB or GB").into()
        );
    }
    Ok(())
}

/// Finds the options in a help text: lines such as `  -s, --max-size <SIZE>`.
fn parse_help(help: &str) -> Vec<Opt<'_>> {
    help.lines().filter_map(|line| Opt::parse(line.trim_start())).collect()
}

impl<'a> Opt<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let first = words.next()?;
        let (short, long) = match first.strip_suffix(',') {
            Some(short) => (Some(short), words.next()?),
            None => (None, first),
        };
        if !long.starts_with("--") {
            return None;
        }
        let value = words.next().and_then(|word| word.strip_prefix('<')).and_then(|word| word.strip_suffix('>'));
        Some(Self { short, long, value })
    }

    fn is(&self, name: &str) -> bool {
        name == self.long || Some(name) == self.short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(arguments: &[&str]) -> std::result::Result<(), String> {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        check(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn help_lines_become_options() {
        let help = "Options:\n  -s, --max-size <SIZE>\n          Limit\n      --open  Serve\n  -h, --help\n";
        let option = |short, long, value| Opt { short, long, value };
        assert_eq!(
            parse_help(help),
            [
                option(Some("-s"), "--max-size", Some("SIZE")),
                option(None, "--open", None),
                option(Some("-h"), "--help", None)
            ]
        );
    }

    #[test]
    fn right_options_pass() {
        for arguments in [
            &["--max-size", "5MiB", "-f", "notes.vkog"][..],
            &["--max-size=5MiB", "-fnotes.vkog", "--open", "--http=tiny"],
            &["-s=5MiB", "--fsync", "100ms", "--listen", "unix:/tmp/socket"],
            &[],
        ] {
            assert_eq!(checked(arguments), Ok(()), "{arguments:?}");
        }
    }

    #[test]
    fn wrong_options_are_refused_before_the_build() {
        for (arguments, part) in [
            (&["--max-sise", "5"][..], "--max-sise"),
            (&["fly"], "fly"),
            (&["-x"], "-x"),
            (&["--max-size"], "--max-size SIZE"),
            (&["-s", "--open"], "--max-size SIZE"),
            (&["--open=yes"], "takes no value"),
            (&["--open", "--open"], "twice"),
            (&["--http", "quick"], "auto|tiny|hyper"),
            (&["--max-size=much"], "MiB"),
        ] {
            let error = checked(arguments).expect_err(part);
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
