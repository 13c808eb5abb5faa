//! A server that is stopped for a moment, as by Ctrl-Z, so that its files can be copied as a kill would leave them.

use std::fs::{self, DirEntry};
use std::process::Command;
use std::time::Instant;

use crate::DEADLINE;
use crate::server::Server;

/// A server of which no thread runs until this is dropped.
pub struct Paused(u32);

impl Server {
    /// Stops all threads of the server, and waits until they have stopped.
    #[track_caller]
    pub fn pause(&self) -> Paused {
        let paused = Paused(self.id());
        paused.signal("STOP");
        let is_stopped = |task: DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("State:\tT"))
        };
        let tasks = || fs::read_dir(format!("/proc/{}/task", self.id())).expect("the server runs");
        let deadline = Instant::now() + DEADLINE;
        while !tasks().all(|task| is_stopped(task.expect("the server runs"))) {
            assert!(Instant::now() < deadline, "the server does not stop: {}", self.log());
            std::thread::yield_now();
        }
        paused
    }
}

impl Paused {
    fn signal(&self, name: &str) {
        let status = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &self.0.to_string()]).status();
        assert!(status.expect("sh runs").success(), "cannot send {name}");
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.signal("CONT");
    }
}
