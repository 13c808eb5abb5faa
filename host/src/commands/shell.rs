//! `vkog completions` and `vkog man`: a shell completion script and the manual page, from the definition of the command line.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

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
/// Its template failed.
pub fn man(command: Command) -> io::Result<ExitCode> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(print(&page))
}

/// Prints to standard output. A reader that has gone is no error.
fn print(bytes: &[u8]) -> ExitCode {
    let _ = io::stdout().write_all(bytes);
    ExitCode::SUCCESS
}
