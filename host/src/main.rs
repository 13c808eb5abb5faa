//! Parses the arguments, runs the command, prints its errors and sets the exit status.

#![deny(clippy::unwrap_used)]

use std::process::ExitCode;

use vkog::{cli, logging};

fn main() -> ExitCode {
    let code = cli::parse().and_then(cli::run).unwrap_or_else(|failure| {
        failure.report();
        failure.status().into()
    });
    logging::flush(logging::FLUSH_TIMEOUT);
    code
}
