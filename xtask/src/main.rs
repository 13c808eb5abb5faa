//! Tasks that take more than one cargo command.

mod bench;
mod black_box;
mod build;
mod dist;
mod etcd;
mod layers;
mod mutants;
mod serve;
mod test;
mod windows;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Tasks that take more than one cargo command
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
enum Task {
    /// Build, put the plugins into ./plugins and serve with them; the options are those of vkog serve
    Serve,
    /// Make a release in target/dist: a folder, its archive, a Debian package, a bill of materials and checksums
    Dist(dist::Options),
    /// Check licenses, sources and known vulnerabilities of all dependencies (needs cargo-deny)
    Deny,
    /// Check which package and which module imports which
    Layers,
    /// Compare the public API of vkog-plugin-api with version 1.0.0 (needs cargo-semver-checks)
    Semver,
    /// Run all tests
    Test {
        /// All amounts, and Windows by Wine, miri, fuzzing and mutants: for hours
        #[arg(long)]
        full: bool,
    },
    /// Run the black-box tests with the stores of all servers in etcd (needs etcd)
    Etcd {
        /// Only the tests whose outcome depends on the store most
        #[arg(long)]
        quick: bool,
    },
    /// Run the black-box tests of the program for Windows, by Wine (needs VKOG_WINDOWS)
    Windows {
        /// Only the tests whose outcome depends on the system most
        #[arg(long)]
        quick: bool,
    },
    /// Measure, and print tables for docs/explanation/performance.md
    #[command(subcommand)]
    Bench(bench::Bench),
}

fn main() -> ExitCode {
    let tasks = Task::command().mut_subcommand("serve", serve::with_options);
    let matches = tasks.get_matches_from(serve::without_separator(std::env::args()));
    let task = Task::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = match task {
        Task::Serve => serve::serve(&matches),
        Task::Dist(options) => dist::dist(&options),
        Task::Deny => test::run_deny(),
        Task::Layers => layers::check(),
        Task::Semver => test::run_semver(),
        Task::Test { full } => test::run(full),
        Task::Etcd { quick } => etcd::test(quick),
        Task::Windows { quick } => windows::test(quick),
        Task::Bench(bench) => bench.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
