//! The definition of the command line: that of the derive macros, with the exit statuses in each help text, and without
//! environment variables that are empty.

use clap::Command;

use crate::config::without_empty_variables;
use crate::failure::Status;

/// Completes the definition of the program.
pub(super) fn complete(root: Command) -> Command {
    let root = without_empty_variables(root);
    let root = with_statuses(root, &Status::ALL);
    root.mut_subcommands(|command| match command.get_name() {
        "plugins" => command.mut_subcommands(|command| match command.get_name() {
            "check" | "ls" | "rm" => with_statuses(command, &Status::ALL[..=3]),
            "add" => with_statuses(command, &Status::ALL),
            _ => with_statuses(command, &Status::ALL[..=4]),
        }),
        "check" => with_statuses(command, &Status::ALL[..=3]),
        "serve" | "repair" | "restore" => with_statuses(command, &Status::ALL[..=4]),
        "export" | "import" => with_statuses(command, &[&Status::ALL[..=4], &[Status::Unreachable]].concat()),
        // Its help has them, in its own words.
        "health" => command,
        "completions" | "man" | "version" => with_statuses(command, &[Status::Success, Status::Usage]),
        _ => with_statuses(command, &Status::ALL),
    })
}

/// Adds the exit statuses to the text after the options.
fn with_statuses(command: Command, statuses: &[Status]) -> Command {
    let statuses: Vec<String> =
        statuses.iter().map(|status| format!("{} {}", *status as u8, status.meaning())).collect();
    let statuses = format!("Exit status: {}.", statuses.join("; "));
    let text = match command.get_after_help() {
        Some(text) => format!("{statuses}\n\n{text}"),
        None => statuses,
    };
    command.after_help(text)
}
