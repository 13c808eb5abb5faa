//! `vkog completions`, `vkog man` and `vkog version`: texts that are generated from the definition of the command line.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

/// Prints the completion script of a shell.
pub fn completions(mut command: Command, shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "vkog", &mut script);
    print(&script)
}

/// Prints the manual page, as roff.
///
/// # Errors
///
/// Its template failed.
pub fn man(command: Command) -> io::Result<ExitCode> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(print(&page))
}

/// Prints the version, as `vkog --version`.
pub fn version(command: &Command) -> ExitCode {
    print(command.render_version().as_bytes())
}

/// Prints to standard output. A closed standard output is not an error.
fn print(bytes: &[u8]) -> ExitCode {
    let _ = io::stdout().write_all(bytes);
    ExitCode::SUCCESS
}
