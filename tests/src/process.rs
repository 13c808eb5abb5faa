//! A child process whose output is collected while it runs, and which is killed when it is dropped.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::DEADLINE;
use crate::server::on_etcd;
use crate::windows::on_windows;

/// The output of a process on one of its streams so far.
#[derive(Clone, Default)]
pub struct Output {
    shared: Arc<(Mutex<Written>, Condvar)>,
}

#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    ended: bool,
}

impl Output {
    fn collect(mut stream: impl Read + Send + 'static) -> Self {
        let output = Self::default();
        let shared = Arc::clone(&output.shared);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let read = stream.read(&mut buffer).unwrap_or(0);
                let (written, changed) = &*shared;
                let mut written = written.lock().expect("no holder of this lock panics");
                written.bytes.extend_from_slice(&buffer[..read]);
                written.ended = read == 0;
                changed.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        output
    }

    /// Returns the output so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.0.lock().expect("no holder of this lock panics").bytes).into_owned()
    }

    /// Waits until `wanted` holds for what was written, or the stream has ended, or the deadline has passed. Says
    /// whether it holds.
    pub fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.wait(Instant::now() + DEADLINE, |written| wanted(&String::from_utf8_lossy(&written.bytes)))
    }

    fn wait_for_end(&self, deadline: Instant) -> bool {
        self.wait(deadline, |written| written.ended)
    }

    fn wait(&self, deadline: Instant, holds: impl Fn(&Written) -> bool) -> bool {
        let (written, changed) = &*self.shared;
        let mut written = written.lock().expect("no holder of this lock panics");
        loop {
            if holds(&written) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if written.ended || left.is_zero() {
                return false;
            }
            written = changed.wait_timeout(written, left).expect("no holder of this lock panics").0;
        }
    }
}

/// A child process. It is killed when it is dropped.
pub struct Running {
    child: Child,
    what: String,
    /// Standard output.
    pub stdout: Output,
    /// Standard error.
    pub stderr: Output,
}

impl Running {
    /// Starts a command, without anything on its standard input.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        Self::start_with_stderr(command, Stdio::piped())
    }

    /// Starts a command with this as its standard error, which is collected only where it is a new pipe.
    #[track_caller]
    pub fn start_with_stderr(command: &mut Command, stderr: Stdio) -> Self {
        Self::start_with(command, Stdio::null(), stderr)
    }

    /// Starts a command with this as its standard input.
    #[track_caller]
    pub fn start_with_stdin(command: &mut Command, stdin: Stdio) -> Self {
        Self::start_with(command, stdin, Stdio::piped())
    }

    #[track_caller]
    fn start_with(command: &mut Command, stdin: Stdio, stderr: Stdio) -> Self {
        let what = format!("{command:?}");
        command.stdin(stdin).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {what}: {error}"));
        let stdout = Output::collect(child.stdout.take().expect("it is piped"));
        let stderr = match child.stderr.take() {
            Some(stderr) => Output::collect(stderr),
            None => Output::collect(std::io::empty()),
        };
        Self { child, what, stdout, stderr }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended, and with it its output.
    pub fn has_ended(&self) -> bool {
        let now = Instant::now();
        self.stdout.wait_for_end(now) && self.stderr.wait_for_end(now)
    }

    /// Sends a signal by its name. The shell has `kill` built in wherever there is one. Wine makes Ctrl-C of INT, which
    /// is how a program for Windows is stopped.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let name = if on_windows() && name == "TERM" { "INT" } else { name };
        let status = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &self.id().to_string()]).status();
        assert!(status.expect("sh runs").success(), "cannot send {name} to {}", self.what);
    }

    /// Waits for the process to end.
    #[track_caller]
    pub fn wait(self) -> Exit {
        self.wait_at_most(DEADLINE)
    }

    /// The same, for a process that needs longer than [`DEADLINE`].
    #[track_caller]
    pub fn wait_at_most(mut self, longest: Duration) -> Exit {
        let deadline = Instant::now() + longest;
        let ended = self.stdout.wait_for_end(deadline) && self.stderr.wait_for_end(deadline);
        // Its streams are closed, so it ends soon. std has no wait with a timeout.
        let status = loop {
            match self.child.try_wait().expect("a child can be waited for") {
                Some(status) => break status,
                None if !ended || Instant::now() > deadline => {
                    panic!("{} is still running\n{}", self.what, self.stderr.text())
                }
                None => std::thread::park_timeout(Duration::from_millis(1)),
            }
        };
        Exit { what: self.what.clone(), status, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both can fail only because the child has ended, which is the goal.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that ended.
pub struct Exit {
    what: String,
    /// The exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Exit {
    /// Asserts the exit status.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "the exit status of {self}");
        self
    }

    /// Asserts that standard error is exactly one line, `vkog: …`, and returns it. The plugin that has the stores of all servers is
    /// loaded before others fail.
    #[track_caller]
    pub fn one_error(&self) -> &str {
        let mut lines = self.stderr.lines().filter(|line| !on_etcd() || !line.contains("libvkog_etcd"));
        let line = lines.next().unwrap_or_default();
        assert!(line.starts_with("vkog: ") && lines.next().is_none(), "one line `vkog: …` on standard error of {self}");
        line
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, status, stdout, stderr } = self;
        write!(f, "{what}\n--- {status}\n--- standard output\n{stdout}\n--- standard error\n{stderr}")
    }
}
