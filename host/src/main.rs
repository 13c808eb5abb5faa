//! Reads the arguments, runs the command, prints what went wrong, sets the exit status.

use std::process::ExitCode;

use vkog::cli;

fn main() -> ExitCode {
    let failure = match cli::parse().and_then(cli::run) {
        Ok(code) => return code,
        Err(failure) => failure,
    };
    for line in failure.lines() {
        eprintln!("vkog: {line}");
    }
    ExitCode::from(failure.status())
}
