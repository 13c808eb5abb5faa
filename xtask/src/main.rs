//! What takes more than one cargo command: `cargo xtask serve | dist | layers | windows | bench`.

mod bench;
mod build;
mod dist;
mod layers;
mod serve;
mod windows;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask serve [OPTION…]   build, put the plugins into ./plugins and serve with them; options are vkog's
cargo xtask dist [--target=TRIPLE] [--profile=NAME]
                              what a user unpacks, in target/dist: a folder, and it packed
cargo xtask layers            check which package and which module imports which
cargo xtask bench attack      what another client waits while clients do what exhausts servers
cargo xtask windows           the black-box tests of the program for Windows, by Wine (wants VKOG_WINDOWS)
cargo xtask bench http [--quick] [PART…]
                              requests beside nginx, Webdis and Redis, with plugins, many entries, many connections (wants
                              wrk; a peer that is not installed is left out); parts are reads, writes, durable, batches,
                              plugins, entries, connections
cargo xtask bench store       the store beside Redis: writes, start, snapshot, memory (wants redis-server and wrk)";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["serve", ..] => serve::serve(&arguments[1..]),
        ["dist", options @ ..] => dist::dist(options),
        ["windows"] => windows::test(),
        ["layers"] => layers::check(),
        ["bench", "attack"] => bench::attack::run(),
        ["bench", "http", parts @ ..] => bench::http::run(parts),
        ["bench", "store"] => bench::store::run(),
        ["--help" | "help"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
