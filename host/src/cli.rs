//! The command line.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use ureq::http::Method;

use crate::commands::plugins::new::CrateName;
use crate::commands::{self, client, export, shell};
use crate::config::{Config, ConfigError, DEFAULT_FILE, File, LogFormat, Options};
use crate::failure::Failure;
use crate::logging;
use crate::serve;

/// A small key-value server that is extended by native plugins
#[derive(Parser)]
#[command(
    name = "vkog",
    version,
    args_conflicts_with_subcommands = true,
    // `--help` says the same, and the help has to fit a screen.
    disable_help_subcommand = true,
    // The options of the server have a help of their own.
    help_template = "{about-with-newline}\n{usage-heading} {usage}\n\nCommands:\n{subcommands}{after-help}",
    after_help = EXAMPLE
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    serve: ServeArgs,
}

const EXAMPLE: &str = "\
Without a command vkog serves; vkog serve --help tells its options. Each command has a --help.

Example:
  vkog --plugin-dir ./plugins -f notes.vkog -s 256MiB
  vkog post greeting hello
  vkog get greeting";

const SERVE: &str = "\
Every option is also a variable (VKOG_FILE) and a line of the --config file (file = \"...\").

Example:
  vkog --plugin-dir ./plugins -f notes.vkog -s 256MiB";

const GET: &str = "\
Exit status: 0 done, or nothing new; 1 not done, with the reason on standard error; 2 wrong usage.

Example:
  vkog get photos/cat.jpg -o cat.jpg";

const PUT: &str = "\
Example:
  vkog put greeting hello
  vkog put photos/cat.jpg --file cat.jpg --content-type image/jpeg
  vkog put counter 6 --if-match \"$(vkog get --revision counter)\"";

const POST: &str = "\
Example:
  vkog post greeting hello";

const DELETE: &str = "\
Example:
  vkog delete greeting";

const LS: &str = "\
Example:
  vkog ls photos/ --long
  vkog ls --count";

const WATCH: &str = "\
A line is put or delete, the revision, and the key. Lost connections are made again; nothing is missed.

Example:
  vkog watch photos/";

const BATCH: &str = "\
Up to 1,024 lines are one batch, which is done as a whole or not at all.

Example:
  printf '%s\\n' '{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}' '{\"op\":\"delete\",\"key\":\"b\"}' | vkog batch";

const CHECK: &str = "\
Exit status: 0 whole; 1 damaged, or it cannot be read; 2 wrong usage; 3 the log is missing, and with it the last changes.

Example:
  vkog check notes.vkog";

#[derive(Subcommand)]
enum Command {
    /// Serve a store; this is what vkog does without a command
    #[command(after_help = SERVE)]
    Serve(ServeArgs),
    /// Get a value from a server
    #[command(after_help = GET)]
    Get(client::get::Get),
    /// Put a value; prints its revision
    #[command(after_help = PUT)]
    Put(client::write::Write),
    /// Post a value, which with the conflict plugin only creates; prints its revision
    #[command(after_help = POST)]
    Post(client::write::Write),
    /// Delete an entry
    #[command(after_help = DELETE)]
    Delete(client::delete::Delete),
    /// List keys
    #[command(after_help = LS)]
    Ls(client::ls::Ls),
    /// Tell what changes, as it changes
    #[command(after_help = WATCH)]
    Watch(client::watch::Watch),
    /// Do many operations, from lines of JSON
    #[command(after_help = BATCH)]
    Batch(client::batch::Batch),
    /// Say what a store holds, and whether it is whole; changes nothing
    #[command(after_help = CHECK)]
    Check {
        /// The store
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Salvage what is whole in a damaged store; the damaged files are kept beside it
    Repair {
        /// The store
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Write all entries to a new file, or to standard output
    Export {
        #[command(flatten)]
        store: StoreArg,

        /// JSON, an entry a line, or the MessagePack map that the Go program writes
        #[arg(long, value_name = "json|msgpack", default_value = "json", hide_possible_values = true)]
        format: export::Format,

        /// The new file; - is standard output
        #[arg(value_name = "OUTPUT")]
        output: Option<PathBuf>,
    },
    /// Add the entries of an export, all or none; no plugin is asked
    Import {
        #[command(flatten)]
        store: StoreArg,

        /// The export, in either format; - is standard input
        #[arg(value_name = "INPUT")]
        input: Option<PathBuf>,
    },
    /// Make a plugin, or say what plugin libraries are
    #[command(subcommand)]
    Plugins(PluginsCommand),
    /// Print what completes vkog in a shell
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    options: Options,

    /// TOML with the same options, and a table for each plugin
    #[arg(long, value_name = "FILE", env = "VKOG_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
struct StoreArg {
    /// The store
    #[arg(short, long, value_name = "FILE", env = "VKOG_FILE", hide_env = true, default_value = DEFAULT_FILE)]
    file: PathBuf,
}

#[derive(Subcommand)]
enum PluginsCommand {
    /// Make the crate of a small plugin that builds, tests and loads
    New {
        /// The crate's name, and the plugin's
        #[arg(value_name = "NAME")]
        name: CrateName,

        /// Make it in this folder [default: the current one]
        #[arg(long, value_name = "DIR")]
        path: Option<PathBuf>,

        /// Depend on this vkog-plugin-api instead of a copy of the one that this host has
        #[arg(long, value_name = "PATH")]
        api: Option<PathBuf>,
    },
    /// Say what libraries are, which hooks they have, and whether this host would load them
    Check {
        /// The libraries
        #[arg(required = true, value_name = "LIBRARY")]
        libraries: Vec<PathBuf>,

        /// A TOML file with the plugins' settings
        #[arg(long, value_name = "FILE", env = "VKOG_CONFIG", hide_env = true)]
        config: Option<PathBuf>,

        /// Say it in one JSON document
        #[arg(long)]
        json: bool,
    },
}

/// A parsed command line.
pub struct Invocation(Cli);

/// A command line that cannot be parsed. Its text is clap's report without the usage and the line breaks.
#[derive(Debug)]
struct UsageError(clap::Error);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0.to_string();
        let lines = report.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
        let fact = lines.join(" ").replacen("error: ", "", 1).replace(" tip: ", "; ");
        write!(f, "{fact}; see vkog --help")
    }
}

impl Error for UsageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// Parses the command line and the environment. Help and version are printed here and end the program.
///
/// # Errors
///
/// The command line is wrong.
pub fn parse() -> Result<Invocation, Failure> {
    Cli::try_parse().map(Invocation).map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        Failure::usage(UsageError(error))
    })
}

/// Runs the command and returns the exit status of the program.
///
/// # Errors
///
/// The command failed.
pub fn run(Invocation(cli): Invocation) -> Result<ExitCode, Failure> {
    match cli.command {
        None => serve_with(cli.serve),
        Some(Command::Serve(args)) => serve_with(args),
        Some(Command::Get(get)) => client::get::get(get),
        Some(Command::Put(write)) => client::write::write(Method::PUT, write),
        Some(Command::Post(write)) => client::write::write(Method::POST, write),
        Some(Command::Delete(delete)) => client::delete::delete(delete),
        Some(Command::Ls(ls)) => client::ls::ls(ls),
        Some(Command::Watch(watch)) => client::watch::watch(watch),
        Some(Command::Batch(batch)) => client::batch::batch(batch),
        Some(Command::Plugins(PluginsCommand::New { name, path, api })) => {
            Ok(commands::plugins::new::new(&name, path.as_deref(), api.as_deref())?)
        }
        Some(Command::Plugins(PluginsCommand::Check { libraries, config, json })) => {
            let config = configured(Options { no_plugins: true, ..Options::default() }, config.as_deref())?;
            logging::start(Some(LogFormat::Text));
            Ok(commands::plugins::check::check(&libraries, &config, json)?)
        }
        Some(Command::Completions { shell }) => Ok(shell::completions(Cli::command(), shell)),
        Some(Command::Man) => Ok(shell::man(Cli::command())?),
        Some(Command::Check { file }) => commands::check::check(&file),
        Some(Command::Repair { file }) => commands::repair::repair(&file),
        Some(Command::Export { store, format, output }) => export::export(&store.file, format, output.as_deref()),
        Some(Command::Import { store, input }) => {
            // What recovery has to say goes to the log.
            logging::start(Some(LogFormat::Text));
            commands::import::import(&store.file, input.as_deref())
        }
    }
}

fn serve_with(args: ServeArgs) -> Result<ExitCode, Failure> {
    let configured = move || configured(args.options.clone(), args.config.as_deref());
    let config = configured()?;
    logging::start(config.log_format);
    serve::serve(config, configured)?;
    Ok(ExitCode::SUCCESS)
}

fn configured(options: Options, file: Option<&Path>) -> Result<Config, ConfigError> {
    Config::new(options, file.map(File::read).transpose()?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_option_is_reported_in_one_line() {
        let error = Cli::try_parse_from(["vkog", "--max-sise", "5"]).err().expect("there is no such option");
        let told = "unexpected argument '--max-sise' found; a similar argument exists: '--max-size'; see vkog --help";
        assert_eq!(UsageError(error).to_string(), told);
    }
}
