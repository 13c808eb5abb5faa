//! What takes more than one cargo command: `cargo xtask serve | floors`.

mod build;
mod floors;
mod serve;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask serve [OPTION…]   build, put the plugins into ./plugins and serve with them; options are vkog's
cargo xtask floors            hold who may import whom";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let done = match arguments.next().as_deref() {
        Some("serve") => serve::serve(arguments.collect()),
        Some("floors") => floors::check(),
        Some("--help" | "help") => {
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
