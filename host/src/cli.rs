//! The command line.

mod definition;
mod usage;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

use crate::commands::plugins::new::CrateName;
use crate::commands::shared::SharedArgs;
use crate::commands::{self, client, export, plugins, shell};
use crate::config::{Config, ConfigError, DEFAULT_FILE, File, LogFormat, Options};
use crate::failure::Failure;
use crate::logging;
use crate::serve;

use self::usage::UsageError;

/// A small key-value server that is extended by native plugins
#[derive(Parser)]
#[command(
    name = "vkog",
    version,
    args_conflicts_with_subcommands = true,
    // `vkog serve --help` lists the options of the server.
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
Without a command, vkog starts the server; vkog serve --help lists its options.

Example:
  vkog --plugin-dir ./plugins -f notes.vkog -s 256MiB
  vkog put greeting hello
  vkog get greeting";

const SERVE: &str = "\
Sizes: bytes, or a number with KiB, MiB, GiB, KB, MB or GB. Intervals: 100ms, 1s, 5m.
Each option is also an environment variable (VKOG_FILE) and a key of the --config file.

Example:
  vkog --plugin-dir ./plugins -f notes.vkog -s 256MiB";

const GET: &str = "\
On a terminal, control characters and bytes that are not text are printed as escapes.
With --if-none-match, a get of the current revision prints nothing and succeeds.

Example:
  vkog get photos/cat.jpg -o cat.jpg";

const PUT: &str = "\
A value that begins with two hyphens, or a key that begins with one, follows --: vkog put -- -key --value

Example:
  vkog put greeting hello
  vkog put greeting 'good day' --update
  vkog put photos/cat.jpg --file cat.jpg --content-type image/jpeg
  vkog put greeting hi --if-match \"$(vkog get --revision greeting)\"";

const POST: &str = "\
A value that begins with two hyphens, or a key that begins with one, follows --: vkog post -- -key --value

Example:
  vkog post note 'buy milk'";

const DELETE: &str = "\
A deletion by prefix takes several requests. Repeat it if it was interrupted.

Example:
  vkog delete greeting
  vkog delete --prefix photos/ --dry-run
  vkog delete --prefix photos/ --yes";

const TOUCH: &str = "\
Example:
  vkog touch session --ttl 30m";

const LS: &str = "\
On a terminal, control characters in keys are printed as escapes. For scripts, --null and --json are unambiguous.

Example:
  vkog ls photos/ --long
  vkog ls --count";

const WATCH: &str = "\
Each line is put or delete, the revision, and the key. After a lost connection, the watch reconnects and resumes without missing a change.

Example:
  vkog watch photos/";

const BATCH: &str = "\
The client sends up to --lines lines as one batch, and fewer if they are long. A batch succeeds or fails as a whole. Each get prints its line \
number in the input, its key and its value, with escapes for control characters. With --json, each operation prints its result.

Example:
  printf '%s\\n' '{\"op\":\"post\",\"key\":\"a\",\"value\":\"1\"}' '{\"op\":\"get\",\"key\":\"b\"}' | vkog batch";

const BACKUP: &str = "\
The file gets its name when the backup is complete and on disk. The server needs a token with the right admin.

Example:
  vkog backup monday.backup
  vkog backup --since monday.backup tuesday.backup";

const RESTORE: &str = "\
Example:
  vkog restore monday.backup tuesday.backup --file notes.vkog";

const HEALTH: &str = "\
Without --url, the address is the first one in VKOG_LISTEN or in the configuration file, and its certificate is not verified. \
The check sends no token.

Exit status: 0 ready; 1 another failure; 2 wrong command line; 3 a file does not exist; 4 live but not ready; 6 unreachable, or no \
response in time.

Example:
  vkog health
  vkog health --url https://vkog.example --timeout 2s";

const TOP: &str = "\
q or Ctrl-C quits. After a restart of the server, the view continues. A token needs the right read and no prefix.

Example:
  vkog top
  vkog top --once --url https://vkog.example --token-file token";

const CHECK: &str = "\
A damaged store is status 1. A missing log, which loses its changes, is status 3.

Example:
  vkog check notes.vkog";

const REPAIR: &str = "\
Example:
  vkog repair notes.vkog";

const EXPORT: &str = "\
An export loads no plugins, so it has no fields of theirs, such as expires of ttl. The details that \
plugins stored with an entry are in details_base64, and an import restores them. vkog ls --json \
shows the fields, from a server.

Example:
  vkog export -f notes.vkog notes.json
  vkog export --store etcd://10.0.0.1:2379/vkog notes.json";

const IMPORT: &str = "\
Example:
  vkog import -f copy.vkog notes.json
  vkog import --store etcd://10.0.0.1:2379/vkog notes.json";

const PLUGINS: &str = "\
Example:
  vkog plugins new short-values
  vkog plugins add target/release/libshort_values.so --plugin-dir plugins
  vkog plugins ls --plugin-dir plugins";

const PLUGINS_NEW: &str = "\
Example:
  vkog plugins new short-values --path plugins";

const PLUGINS_CHECK: &str = "\
Example:
  vkog plugins check plugins/*.so --config vkog.toml";

const PLUGINS_ADD: &str = "\
Without --sha256, the file must not be writable by others. A server that runs loads the library when it reloads.

Example:
  vkog plugins add libvkog_ttl.so --plugin-dir plugins
  vkog plugins add https://plugins.example/libaudit.so --config vkog.toml --pin";

const PLUGINS_LS: &str = "\
The command makes the checks of a server, but creates no plugins. A library that fails them is no error.

Example:
  vkog plugins ls --config vkog.toml";

const PLUGINS_RM: &str = "\
By file name, no code of the library runs.

Example:
  vkog plugins rm bytes --config vkog.toml
  vkog plugins rm libvkog_ttl.so --plugin-dir plugins";

const COMPLETIONS: &str = "\
Example:
  vkog completions bash > ~/.local/share/bash-completion/completions/vkog";

const MAN: &str = "\
Example:
  vkog man > ~/.local/share/man/man1/vkog.1";

#[derive(Subcommand)]
enum Command {
    /// Start the server (the default command)
    #[command(after_help = SERVE)]
    Serve(ServeArgs),
    /// Print the value of a key
    #[command(after_help = GET)]
    Get(client::get::Get),
    /// Create or replace a value and print its revision
    #[command(after_help = PUT)]
    Put(client::put::Put),
    /// Create a value; with the conflict plugin, fail if the key exists
    #[command(after_help = POST)]
    Post(client::write::Write),
    /// Delete a key, or all keys with a prefix
    #[command(after_help = DELETE)]
    Delete(client::delete::Delete),
    /// Change the expiry of a key, not its value (ttl plugin)
    #[command(after_help = TOUCH)]
    Touch(client::touch::Touch),
    /// List keys
    #[command(after_help = LS)]
    Ls(client::ls::Ls),
    /// Print changes as they happen
    #[command(after_help = WATCH)]
    Watch(client::watch::Watch),
    /// Run many operations from lines of JSON
    #[command(after_help = BATCH)]
    Batch(client::batch::Batch),
    /// Back up a running server to a new file
    #[command(after_help = BACKUP)]
    Backup(client::backup::Backup),
    /// Make a store from a backup and the incremental backups after it
    #[command(after_help = RESTORE)]
    Restore {
        /// A full backup, and the incremental backups that follow it, in order; - is standard input
        #[arg(value_name = "BACKUP", required = true)]
        backups: Vec<PathBuf>,

        #[command(flatten)]
        store: StoreArg,

        /// Rename a store that exists, and put the restored one in its place
        #[arg(long)]
        force: bool,

        /// Put PREFIX before each key, instead of the key prefix with which a plugin limited the client
        #[arg(long, value_name = "PREFIX")]
        key_prefix: Option<String>,
    },
    /// Check whether a server is ready
    #[command(after_help = HEALTH)]
    Health(client::health::Health),
    /// Show operations, latencies, plugins and memory of a server, live
    #[command(after_help = TOP)]
    Top(client::top::Top),
    /// Verify a store and print a summary (read-only)
    #[command(after_help = CHECK)]
    Check {
        /// The file of the store
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Repair a damaged store and rename the damaged files
    #[command(after_help = REPAIR)]
    Repair {
        /// The file of the store
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Write all entries to a new file or to standard output
    #[command(after_help = EXPORT)]
    Export {
        #[command(flatten)]
        store: StoreArg,

        #[command(flatten)]
        shared: SharedArgs,

        /// Select JSON, one entry per line, or the MessagePack map of the Go program
        #[arg(long, value_name = "json|msgpack", default_value = "json", hide_possible_values = true)]
        format: export::Format,

        /// The new file; - or nothing is standard output
        #[arg(value_name = "OUTPUT")]
        output: Option<PathBuf>,
    },
    /// Add all entries of an export, or none (a shared store: one by one); calls no plugins
    #[command(after_help = IMPORT)]
    Import {
        #[command(flatten)]
        store: StoreArg,

        #[command(flatten)]
        shared: SharedArgs,

        /// The export, in either format; - or nothing is standard input
        #[arg(value_name = "INPUT")]
        input: Option<PathBuf>,
    },
    /// Create a plugin crate, check libraries, or manage the plugin folder
    #[command(subcommand, after_help = PLUGINS)]
    Plugins(PluginsCommand),
    /// Generate a shell completion script
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print the manual page in roff format
    #[command(after_help = MAN)]
    Man,
    /// Print the version
    Version,
}

#[derive(clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    options: Options,

    /// Read options, tokens and plugin settings from this TOML file
    #[arg(long, value_name = "FILE", env = "VKOG_CONFIG", hide_env = true)]
    config: Option<PathBuf>,
}

#[derive(clap::Args)]
struct StoreArg {
    /// Open the store in this file
    #[arg(short, long, value_name = "FILE", env = "VKOG_FILE", hide_env = true, default_value = DEFAULT_FILE)]
    file: PathBuf,
}

#[derive(Subcommand)]
enum PluginsCommand {
    /// Create the crate of a small plugin, with a test
    #[command(after_help = PLUGINS_NEW)]
    New {
        /// The name of the crate and of the plugin
        #[arg(value_name = "NAME")]
        name: CrateName,

        /// Create the crate in this folder [default: the current folder]
        #[arg(long, value_name = "DIR")]
        path: Option<PathBuf>,

        /// Depend on the vkog-plugin-api in this folder instead of a copy of it
        #[arg(long, value_name = "PATH")]
        api: Option<PathBuf>,
    },
    /// Print name, version and hooks of libraries, and whether this server would load them
    #[command(after_help = PLUGINS_CHECK)]
    Check {
        /// The library files
        #[arg(required = true, value_name = "LIBRARY")]
        libraries: Vec<PathBuf>,

        /// Read the settings of the plugins from this TOML file
        #[arg(long, value_name = "FILE", env = "VKOG_CONFIG", hide_env = true)]
        config: Option<PathBuf>,

        /// Print one JSON document
        #[arg(long)]
        json: bool,
    },
    /// Add a library to the plugin folder, from a file or from the web
    #[command(after_help = PLUGINS_ADD)]
    Add(plugins::add::Add),
    /// List the libraries in the plugin folder, and whether a server would load them
    #[command(after_help = PLUGINS_LS)]
    Ls(plugins::ls::Ls),
    /// Remove a library from the plugin folder, and its pin
    #[command(after_help = PLUGINS_RM)]
    Rm(plugins::rm::Rm),
}

/// A parsed command line.
pub struct Invocation(Cli);

/// Parses the command line and the environment. Help and version are printed here and end the program.
///
/// # Errors
///
/// The command line is wrong.
pub fn parse() -> Result<Invocation, Failure> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let matches = parse_arguments(&arguments);
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).map(Invocation).map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        Failure::usage(UsageError::new(error, command(), &arguments))
    })
}

/// Parses the arguments. The value of `put` and `post` may begin with a hyphen if that begins no option.
fn parse_arguments(arguments: &[OsString]) -> Result<ArgMatches, clap::Error> {
    command().try_get_matches_from(arguments).or_else(|error| {
        let unknown = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(argument)) if error.kind() == ErrorKind::UnknownArgument => argument,
            _ => return Err(error),
        };
        // It is rather a misspelt option than a value.
        if unknown.starts_with("--") {
            return Err(error);
        }
        let accept = |command: clap::Command| command.mut_arg("value", |value| value.allow_hyphen_values(true));
        command().mut_subcommand("put", accept).mut_subcommand("post", accept).try_get_matches_from(arguments)
    })
}

/// Returns the complete definition of the command line.
fn command() -> clap::Command {
    definition::complete(Cli::command())
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
        Some(Command::Put(put)) => client::put::put(put),
        Some(Command::Post(write)) => client::write::post(write),
        Some(Command::Delete(delete)) => client::delete::delete(delete),
        Some(Command::Touch(touch)) => client::touch::touch(touch),
        Some(Command::Ls(ls)) => client::ls::ls(ls),
        Some(Command::Watch(watch)) => client::watch::watch(watch),
        Some(Command::Health(health)) => client::health::health(health),
        Some(Command::Top(top)) => client::top::top(top),
        Some(Command::Batch(batch)) => client::batch::batch(batch),
        Some(Command::Backup(backup)) => client::backup::backup(backup),
        Some(Command::Restore { backups, store, force, key_prefix }) => {
            commands::restore::restore(&backups, &store.file, force, key_prefix.as_deref())
        }
        Some(Command::Plugins(command)) => run_plugins(command),
        Some(Command::Completions { shell }) => Ok(shell::completions(command(), shell)),
        Some(Command::Man) => Ok(shell::man(command())?),
        Some(Command::Version) => Ok(shell::version(&command())),
        Some(Command::Check { file }) => commands::check::check(&file),
        Some(Command::Repair { file }) => commands::repair::repair(&file),
        Some(Command::Export { store, shared, format, output }) => {
            // The plugin of a shared store writes to the log.
            logging::start(Some(LogFormat::Text));
            export::export(&store.file, shared, format, output.as_deref())
        }
        Some(Command::Import { store, shared, input }) => {
            // Recovery reports to the log.
            logging::start(Some(LogFormat::Text));
            commands::import::import(&store.file, shared, input.as_deref())
        }
    }
}

fn run_plugins(command: PluginsCommand) -> Result<ExitCode, Failure> {
    // The checks of libraries report warnings to the log.
    logging::start(Some(LogFormat::Text));
    match command {
        PluginsCommand::New { name, path, api } => Ok(plugins::new::new(&name, path.as_deref(), api.as_deref())?),
        PluginsCommand::Check { libraries, config, json } => {
            let config = Config::without_plugins(Options::default(), File::read_if_given(config.as_deref())?)?;
            Ok(plugins::check::check(&libraries, &config, json)?)
        }
        PluginsCommand::Add(add) => plugins::add::add(add),
        PluginsCommand::Ls(ls) => plugins::ls::ls(ls),
        PluginsCommand::Rm(rm) => plugins::rm::rm(rm),
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
    Config::new(options, File::read_if_given(file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_valid() {
        command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_is_reported_in_one_line_with_its_help() {
        for (words, expected) in [
            (
                "vkog --max-sise 5",
                "unexpected argument '--max-sise' found; a similar argument exists: '--max-size'; see vkog serve --help",
            ),
            (
                "vkog check --store etcd://a/b",
                "vkog check works on the files of a store, and a shared store has none; use the tools of its engine, such as \
                 etcdctl; see vkog check --help",
            ),
            (
                "vkog restore --store etcd://a/b",
                "vkog restore works on the files of a store, and a shared store has none; use vkog import --store; see vkog \
                 restore --help",
            ),
            ("vkog gte k", "unknown command gte; a similar command exists: get; see vkog --help"),
            ("vkog fly", "unknown command fly; see vkog --help"),
            (
                "vkog get k --if-mach 5",
                "unexpected argument '--if-mach' found; a similar argument exists: '--if-match'; see vkog get --help",
            ),
            ("vkog plugins", "vkog plugins needs a command: new, check, add, ls, rm; see vkog plugins --help"),
            ("vkog plugins chekc", "unknown command chekc; a similar command exists: check; see vkog plugins --help"),
            (
                "vkog plugins check",
                "the following required arguments were not provided: <LIBRARY>...; see vkog plugins check --help",
            ),
            (
                "vkog ls --after -x1",
                "--after needs a value; for one that begins with a hyphen, write --after=-x1; see vkog ls --help",
            ),
            (
                "vkog touch a --ttl -5",
                "--ttl needs a value; for one that begins with a hyphen, write --ttl=-5; see vkog touch --help",
            ),
            (
                "vkog delete --prefix -x",
                "--prefix needs a value; for one that begins with a hyphen, write --prefix=-x; see vkog delete --help",
            ),
            // An empty argument is between two spaces.
            ("vkog get ", "invalid value '' for '<KEY>': a key cannot be empty; give its name; see vkog get --help"),
            ("vkog put  v", "invalid value '' for '<KEY>': a key cannot be empty; give its name; see vkog put --help"),
            (
                "vkog post  v",
                "invalid value '' for '<KEY>': a key cannot be empty; give its name; see vkog post --help",
            ),
            (
                "vkog touch  --ttl 5m",
                "invalid value '' for '<KEY>': a key cannot be empty; give its name; see vkog touch --help",
            ),
            (
                "vkog delete ",
                "invalid value '' for '[KEY]': a key cannot be empty; give its name; see vkog delete --help",
            ),
            (
                "vkog get k --url http://user:secret@a",
                "invalid value 'http://a' for '--url <URL>': not the address of a server; write http://host:port, \
                 https://host or unix:PATH, and send other credentials than a token with --header; see vkog get --help",
            ),
            (
                "vkog serve --store etcd://user:se'cret@a\tb",
                "invalid value 'etcd://a\tb' for '--store <URL>': not the URL of a store; write SCHEME://ADDRESS such as \
                 etcd://10.0.0.1:2379,10.0.0.2:2379/vkog; see vkog serve --help",
            ),
            ("vkog http://user:secret@a", "unknown command http://a; see vkog --help"),
            (
                "vkog ls --limit 0",
                "invalid value '0' for '--limit <NUMBER>': 0 is not in 1..18446744073709551615; see vkog ls --help",
            ),
        ] {
            let arguments: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            let error = parse_arguments(&arguments).expect_err(words);
            assert_eq!(UsageError::new(error, command(), &arguments).to_string(), expected);
        }
    }
}
