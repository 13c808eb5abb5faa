//! `vkog completions` and `vkog man`: what a shell and a reader are told of the command line, from its own definition.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use super::failure;
use crate::cli::Failure;

/// Prints the script that completes `vkog` in this shell.
pub fn completions(mut command: Command, shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "vkog", &mut script);
    print(&script)
}

/// Prints the manual page, as roff.
///
/// # Errors
///
/// It could not be made.
pub fn man(command: Command) -> Result<ExitCode, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(failure)?;
    Ok(print(&page))
}

/// Whoever reads may have read enough.
fn print(bytes: &[u8]) -> ExitCode {
    let _ = io::stdout().write_all(bytes);
    ExitCode::SUCCESS
}
