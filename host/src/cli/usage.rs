//! A command line that cannot be parsed, in one line with the help that explains it.

use std::error::Error;
use std::ffi::OsString;
use std::fmt;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::suggest::similar;
use crate::urls::{without_credentials, without_credentials_in};

/// A command line that cannot be parsed.
#[derive(Debug)]
pub(super) struct UsageError {
    /// The commands of the line, as in `vkog plugins check`.
    command: String,
    fact: String,
    source: clap::Error,
}

impl UsageError {
    /// Explains an error of `arguments` for the program `root`.
    pub(super) fn new(source: clap::Error, root: Command, arguments: &[OsString]) -> Self {
        let (mut names, mut current) = (vec![root.get_name().to_owned()], &root);
        for argument in arguments.iter().skip(1) {
            let Some(command) = current.find_subcommand(argument) else { break };
            names.push(command.get_name().to_owned());
            current = command;
        }
        let mut command = names.join(" ");
        let fact = match source.kind() {
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                let names: Vec<_> =
                    current.get_subcommands().map(Command::get_name).filter(|name| *name != "help").collect();
                format!("{command} needs a command: {}", names.join(", "))
            }
            _ => match source.get(ContextKind::InvalidSubcommand) {
                Some(ContextValue::String(word)) => unknown(word, current),
                _ => needs_files(&source, &command, current)
                    .or_else(|| hyphen_value(&source, current, arguments))
                    .unwrap_or_else(|| report(&source)),
            },
        };
        let fact = shown(fact, &source);
        // Without a command, the options are those of the server.
        if names.len() == 1 && arguments.get(1).is_some_and(|word| word.to_string_lossy().starts_with('-')) {
            command += " serve";
        }
        Self { command, fact, source }
    }
}

/// Removes the credentials of URLs from the report of an error.
fn shown(fact: String, error: &clap::Error) -> String {
    let fact = match error.get(ContextKind::InvalidValue) {
        // It may have characters at which a URL in a text ends.
        Some(ContextValue::String(value)) if value.contains("://") => fact.replace(value, &without_credentials(value)),
        _ => fact,
    };
    without_credentials_in(&fact)
}

/// Reports a command that does not exist, with the most similar one that does.
fn unknown(word: &str, parent: &Command) -> String {
    match similar(word, parent.get_subcommands().map(Command::get_name)) {
        Some(name) => format!("unknown command {word}; a similar command exists: {name}"),
        None => format!("unknown command {word}"),
    }
}

/// Reports a shared store that is given to a command on files.
fn needs_files(error: &clap::Error, name: &str, command: &Command) -> Option<String> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return None };
    let is_shared = error.kind() == ErrorKind::UnknownArgument && word == "--store";
    let instead = match command.get_name() {
        "check" | "repair" => "use the tools of its engine, such as etcdctl",
        "restore" => "use vkog import --store",
        _ => return None,
    };
    is_shared.then(|| format!("{name} works on the files of a store, and a shared store has none; {instead}"))
}

/// Reports an option whose value begins with a hyphen, for which clap advises `--`.
fn hyphen_value(error: &clap::Error, command: &Command, arguments: &[OsString]) -> Option<String> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return None };
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let at = arguments.iter().position(|argument| argument.to_string_lossy().starts_with(word.as_str()))?;
    let (option, value) = (arguments[at.checked_sub(1)?].to_str()?, arguments[at].to_string_lossy());
    let long = option.strip_prefix("--")?;
    let mut options = command.get_arguments().filter(|argument| argument.get_action().takes_values());
    options.find(|argument| argument.get_long() == Some(long))?;
    Some(format!("{option} needs a value; for one that begins with a hyphen, write {option}={value}"))
}

/// Returns the report of clap without its usage and its line breaks.
fn report(error: &clap::Error) -> String {
    let report = error.to_string();
    let lines = report.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
    lines.join(" ").replacen("error: ", "", 1).replace(" tip: ", "; ")
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; see {} --help", self.fact, self.command)
    }
}

impl Error for UsageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}
