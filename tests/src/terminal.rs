//! A command whose standard output is a terminal.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Runs a command and returns what it wrote to its terminal, with simple line ends.
#[track_caller]
pub fn on_terminal(command: &mut Command) -> Vec<u8> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("the system has pseudoterminals");
    grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("it is ours");
    let name = ptsname(&ours, Vec::new()).expect("it has a name");
    let theirs = File::options().read(true).write(true).open(std::ffi::OsStr::from_bytes(name.to_bytes()));
    let theirs = theirs.expect("it can be opened");
    let mut child = command.stdin(Stdio::null()).stdout(theirs).stderr(Stdio::null()).spawn().expect("it runs");
    // Drops the handle of this process, so that the end of the child ends the output.
    command.stdout(Stdio::null());
    let mut written = Vec::new();
    // Linux reports the end as an error.
    let _ = File::from(ours).read_to_end(&mut written);
    child.wait().expect("a child can be waited for");
    String::from_utf8(written).expect("text").replace("\r\n", "\n").into_bytes()
}
