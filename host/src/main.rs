//! Reads the arguments, runs the command, prints what went wrong, sets the exit status.

use std::process::ExitCode;

use vkog::{cli, logging};

fn main() -> ExitCode {
    let code = cli::parse().and_then(cli::run).unwrap_or_else(|failure| {
        failure.report();
        ExitCode::from(failure.status())
    });
    logging::flush(logging::PATIENCE);
    code
}
