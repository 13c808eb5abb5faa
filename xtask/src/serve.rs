//! `cargo xtask serve`: builds the server and its plugins for a quick start, then runs the server.
//!
//! Checks the options before the build, against the help text in the reference of the command line: a test of the server
//! compares that with what the server prints. The server checks the rest when it starts.

use std::path::Path;
use std::process::Command;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches};

use crate::Result;
use crate::build::{self, Artifact, PLUGINS};

/// The profile that this builds with: see the workspace's Cargo.toml.
const PROFILE: &str = "quick";

/// The reference of the command line, which has all help texts.
const REFERENCE: &str = include_str!("../../docs/reference/command-line.md");

/// Adds the options of `vkog serve` to this task.
pub(crate) fn with_options(serve: clap::Command) -> clap::Command {
    let section = REFERENCE.split_once("\n## vkog serve\n\n```text\n").map_or("", |(_, section)| section);
    let help = section.split("```").next().unwrap_or_default();
    serve.override_help(help).args(help.lines().filter_map(option))
}

/// Reads an option from a line such as `  -s, --max-size <SIZE>  The limit`.
fn option(line: &'static str) -> Option<Arg> {
    let mut words = line.split_whitespace().peekable();
    let short = words.next_if(|word| word.ends_with(','));
    let name = words.next()?.strip_prefix("--").filter(|name| *name != "help")?;
    let value = words.next().and_then(|word| word.strip_prefix('<')?.strip_suffix('>'));
    let option = Arg::new(name).long(name).short(short.and_then(|short| short.chars().nth(1)));
    Some(match value {
        None => option.action(ArgAction::SetTrue),
        Some("SIZE") => option.value_name("SIZE").value_parser(size),
        Some(choices) if choices.contains('|') && choices == choices.to_lowercase() => {
            option.value_parser(PossibleValuesParser::new(choices.split('|')))
        }
        Some(name) => option.value_name(name),
    })
}

fn size(value: &str) -> std::result::Result<String, &'static str> {
    let starts_with_digit = value.starts_with(|char: char| char.is_ascii_digit());
    if starts_with_digit {
        Ok(value.to_owned())
    } else {
        Err("write bytes, or a number with KiB, MiB, GiB, KB, MB or GB")
    }
}

/// Removes the separator that cargo needs before the options of a program: `cargo xtask serve -- --listen ADDR`.
pub(crate) fn without_separator(arguments: impl Iterator<Item = String>) -> Vec<String> {
    let mut arguments: Vec<String> = arguments.collect();
    if arguments.get(1..3).is_some_and(|first| first == ["serve", "--"]) {
        arguments.remove(2);
    }
    arguments
}

/// Builds, installs the plugins into `./plugins` and serves. `task` has the options of `vkog serve`.
///
/// # Errors
///
/// The build fails, or the server cannot be started.
pub(crate) fn serve(task: &ArgMatches) -> Result<()> {
    let names_folder = task.subcommand_matches("serve").is_some_and(|serve| serve.contains_id("plugin-dir"));
    std::env::set_current_dir(build::root())?;
    let packages: Vec<&str> = PLUGINS.into_iter().chain(["vkog"]).collect();
    eprintln!("building vkog and its plugins; the first build takes about two minutes");
    let (programs, libraries): (Vec<Artifact>, Vec<Artifact>) =
        build::build(&packages, PROFILE, None)?.into_iter().partition(|artifact| artifact.package == "vkog");
    let program = programs.first().ok_or("cargo built no program for package vkog")?;
    for library in &libraries {
        install(&library.file)?;
    }
    remove_write_access("plugins".as_ref())?;
    let mut vkog = Command::new(&program.file);
    vkog.args(without_separator(std::env::args()).iter().skip(1));
    if !names_folder {
        vkog.args(["--plugin-dir", "./plugins"]);
    }
    run_in_place(&mut vkog)
}

/// Copies a library into `./plugins`. A rename replaces the old file, because a running server may have it mapped.
fn install(library: &Path) -> Result<()> {
    let target = Path::new("plugins").join(library.file_name().ok_or("cargo built a library without a name")?);
    let copy = target.with_extension("new");
    std::fs::copy(library, &copy)?;
    remove_write_access(&copy)?;
    Ok(std::fs::rename(&copy, &target)?)
}

/// Removes the write permissions of the group and of others. The server refuses plugins that other users can modify.
#[cfg(unix)]
pub(crate) fn remove_write_access(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path)?.permissions().mode() & !0o022;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?)
}

#[cfg(not(unix))]
pub(crate) fn remove_write_access(_: &Path) -> Result<()> {
    Ok(())
}

/// Replaces this process with the server, so that signals reach the server.
#[cfg(unix)]
fn run_in_place(vkog: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(vkog.exec().into())
}

/// Runs the server as a child, because Windows cannot replace a process.
#[cfg(not(unix))]
fn run_in_place(vkog: &mut Command) -> Result<()> {
    let status = vkog.status()?;
    if status.success() { Ok(()) } else { Err(format!("vkog: {status}").into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(arguments: &[&str]) -> std::result::Result<ArgMatches, String> {
        let words = ["xtask", "serve"].iter().chain(arguments).map(|word| (*word).to_owned());
        let task = clap::Command::new("xtask").subcommand(with_options(clap::Command::new("serve")));
        task.try_get_matches_from(without_separator(words)).map_err(|error| error.to_string())
    }

    #[test]
    fn right_options_pass() {
        for arguments in [
            &["--max-size", "5MiB", "-f", "notes.vkog"][..],
            &["--max-size=5MiB", "-fnotes.vkog", "--open", "--http=tiny"],
            &["-s=5MiB", "--fsync", "100ms", "--listen", "unix:/tmp/socket"],
            &["--", "--open", "--plugin-dir", "there"],
            &[],
        ] {
            let checked = checked(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            let serve = checked.subcommand_matches("serve").expect("the task");
            assert_eq!(serve.contains_id("plugin-dir"), arguments.contains(&"--plugin-dir"), "{arguments:?}");
        }
    }

    #[test]
    fn wrong_options_are_refused_before_the_build() {
        for (arguments, part) in [
            (&["--max-sise", "5"][..], "'--max-size'"),
            (&["fly"], "fly"),
            (&["-x"], "-x"),
            (&["--max-size"], "--max-size <SIZE>"),
            (&["-s", "--open"], "--max-size <SIZE>"),
            (&["--open=yes"], "unexpected value 'yes'"),
            (&["--open", "--open"], "multiple times"),
            (&["--http", "quick"], "[possible values: auto, tiny, hyper]"),
            (&["--max-size=much"], "MiB"),
        ] {
            let error = checked(arguments).expect_err(part);
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn a_misspelt_task_is_refused_with_the_right_one() {
        use clap::CommandFactory;

        let error = crate::Task::command().try_get_matches_from(["xtask", "sevre"]).expect_err("there is no such task");
        let text = error.to_string();
        assert!(text.contains("'sevre'") && text.contains("'serve'"), "{text}");
    }
}
