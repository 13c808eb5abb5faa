//! Tasks that take more than one cargo command: `cargo xtask serve | dist | test | layers | semver | windows | bench`.

mod bench;
mod build;
mod dist;
mod layers;
mod mutants;
mod semver;
mod serve;
mod test;
mod windows;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask serve [OPTION…]   build, put the plugins into ./plugins and serve with them; options are those of vkog serve
cargo xtask dist [--target=TRIPLE] [--profile=NAME]
                              make a release in target/dist: a folder and an archive of it
cargo xtask layers            check which package and which module imports which
cargo xtask semver            compare the public API of vkog-plugin-api with the kept 1.0.0 (needs cargo-semver-checks)
cargo xtask test [--full]     run all tests; with --full all amounts, and Windows by Wine, miri, fuzzing and mutants
cargo xtask windows [--quick] run the black-box tests of the program for Windows, by Wine (needs VKOG_WINDOWS); --quick for some
cargo xtask bench attack      measure how long a client waits while others try to exhaust the server
cargo xtask bench http [--quick] [--profile=NAME] [--against=PROGRAM] [PART…]
                              measure requests beside nginx, Webdis and Redis, with plugins, many entries, many connections
                              (needs wrk; a peer that is not installed is left out); parts are reads, writes, durable,
                              batches, plugins, entries, connections
cargo xtask bench store [--quick] [--profile=NAME] [--against=PROGRAM]
                              measure the store beside Redis: writes, start, snapshot, memory (needs redis-server and wrk)

--against=PROGRAM compares with another vkog, such as that of the commit before, instead of with the peers. Both programs
take turns in every round; the ratios of their medians are printed.";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", ..] => serve::serve(&arguments[1..]),
        ["dist", options @ ..] => dist::dist(options),
        ["test"] => test::run(false),
        ["test", "--full"] => test::run(true),
        ["layers"] => layers::check(),
        ["semver"] => semver::check(),
        ["windows"] => windows::test(false),
        ["windows", "--quick"] => windows::test(true),
        ["bench", "attack"] => bench::attack::run(),
        ["bench", "http", options @ ..] => bench::http::run(options),
        ["bench", "store", options @ ..] => bench::store::run(options),
        ["--help" | "help"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
