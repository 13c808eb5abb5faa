//! Reads the arguments, runs the command, prints what went wrong, sets the exit status.

use std::process::ExitCode;

use vkog::{cli, logging};

fn main() -> ExitCode {
    let code = cli::parse().and_then(cli::run).unwrap_or_else(|failure| {
        for line in failure.lines() {
            logging::say(&format!("vkog: {line}"));
        }
        ExitCode::from(failure.status())
    });
    logging::flush(logging::PATIENCE);
    code
}
