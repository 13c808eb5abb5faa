//! The log: lines on standard error that never hold up the thread that logs, and never end the process.
//!
//! A line goes into a queue of limited size, and one thread writes the queue to standard error. Where standard error is
//! closed, full, or not read, lines are dropped and counted; the first line that can be written again is followed by one that
//! says how many are missing.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::debug_fn;

use crate::config::LogFormat;

/// Maximum size of the lines that wait to be written, in bytes: some thousand of them.
const QUEUE_MAX: usize = 1 << 20;
/// How long [`flush`] waits at the end of the process for a reader that stands still.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// A descriptor that does not block is tried again after this pause while it is full.
const RETRY: Duration = Duration::from_millis(20);

thread_local! {
    /// This thread writes the queue. Its own line, on how many were dropped, finds room in a full queue.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

static QUEUE: LazyLock<Queue> = LazyLock::new(|| {
    let started = thread::Builder::new().name("log".to_owned()).spawn(|| QUEUE.run(&mut Standard));
    // The process cannot have even one more thread: then lines are written where they are logged.
    Queue { has_writer: started.is_ok(), ..Queue::default() }
});

/// Logs events to standard error from now on, and panics as events. The default format is text on a terminal, else JSON.
pub fn start(format: Option<LogFormat>) {
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let log = tracing_subscriber::fmt().with_writer(|| Line).with_target(false).log_internal_errors(false);
    match format {
        LogFormat::Text => {
            let field = debug_fn(|to, field, value| match field.name() {
                "message" => write!(Escaped(to), "{value:?}"),
                name => write!(Escaped(to), "{name}={value:?}"),
            });
            log.fmt_fields(field.delimited(" ")).with_ansi(terminal).init();
        }
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    log_panics();
}

/// Has the panics of this program logged. The standard library would print them past the log, and panic once more where that
/// is not possible.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let place = info.location().map(ToString::to_string);
        let backtrace = std::backtrace::Backtrace::capture();
        let is_captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        let backtrace = is_captured.then(|| backtrace.to_string());
        let said = info.payload_as_str().unwrap_or("a panic without a message");
        tracing::error!(thread = name, place, backtrace, "panicked: {said}");
        // Its panic ends the process.
        if name == "main" {
            flush(PATIENCE);
        }
    }));
}

/// Prints one line to standard error that is not an event: what the program says before it ends.
pub fn say(line: &str) {
    let mut text = String::with_capacity(line.len() + 1);
    let _ = Escaped(&mut text).write_str(line);
    text.push('\n');
    QUEUE.push(text.as_bytes());
}

/// Waits until all lines are written or dropped, for a limited time. Returns whether they are.
pub fn flush(patience: Duration) -> bool {
    QUEUE.flush(patience)
}

/// The number of lines that were dropped because they could not be written.
pub fn dropped() -> u64 {
    QUEUE.dropped.load(Relaxed)
}

/// Lines that wait for the thread that writes them.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    dropped: AtomicU64,
    has_writer: bool,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    /// The writer has taken lines and not written them yet.
    writes: bool,
}

impl Queue {
    fn push(&self, line: &[u8]) {
        if !self.has_writer {
            let _ = Standard.write(line);
            return;
        }
        let mut waiting = self.waiting.lock();
        if waiting.lines.len() + line.len() > QUEUE_MAX && !IS_WRITER.get() {
            drop(waiting);
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        let was_empty = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if was_empty {
            self.changed.notify_all();
        }
    }

    fn flush(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut waiting = self.waiting.lock();
        while waiting.writes || !waiting.lines.is_empty() {
            if self.changed.wait_until(&mut waiting, deadline).timed_out() {
                return false;
            }
        }
        true
    }

    /// Writes lines, for as long as the process runs.
    fn run(&self, to: &mut impl Write) {
        IS_WRITER.set(true);
        // How many dropped lines were reported in lines that were written, and with the line that is on its way.
        let (mut reported, mut reporting) = (0, 0);
        let mut lines = Vec::new();
        loop {
            let mut waiting = self.waiting.lock();
            while waiting.lines.is_empty() {
                self.changed.wait(&mut waiting);
            }
            std::mem::swap(&mut lines, &mut waiting.lines);
            waiting.writes = true;
            drop(waiting);
            match write_all(to, &lines) {
                Ok(()) => {
                    reported = reporting;
                    let dropped = self.dropped.load(Relaxed);
                    if dropped > reported {
                        let lines = dropped - reported;
                        tracing::warn!(lines, "log lines were dropped: standard error was not read, full or closed");
                        reporting = dropped;
                    }
                }
                Err(unwritten) => {
                    reporting = reported;
                    self.dropped.fetch_add(unwritten, Relaxed);
                }
            }
            lines.clear();
            self.waiting.lock().writes = false;
            self.changed.notify_all();
        }
    }
}

/// Writes lines. The error is how many of them were not written.
fn write_all(to: &mut impl Write, mut lines: &[u8]) -> Result<(), u64> {
    while !lines.is_empty() {
        match to.write(lines) {
            Ok(written) if written > 0 => lines = &lines[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            _ => return Err(lines.iter().filter(|byte| **byte == b'\n').count() as u64),
        }
    }
    Ok(())
}

/// Standard error as it is. The standard library's reports success where the descriptor is closed.
struct Standard;

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(unix)]
        {
            Ok(rustix::io::write(rustix::stdio::stderr(), bytes)?)
        }
        #[cfg(not(unix))]
        {
            io::stderr().write(bytes)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One event, which is formatted before it is written.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        QUEUE.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes control characters, so that no text can pretend to be another line, or tell a terminal what to do.
struct Escaped<'a, W>(&'a mut W);

impl<W: fmt::Write> fmt::Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(char::is_control) {
            let (plain, control) = rest.split_at(at);
            self.0.write_str(plain)?;
            let mut characters = control.chars();
            if let Some(character) = characters.next() {
                write!(self.0, "{}", character.escape_default())?;
            }
            rest = characters.as_str();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_nothing_else_is() {
        let mut text = String::new();
        Escaped(&mut text).write_str("a\nb\r\t\u{1b}[2J\u{7f}\u{85}é \"q\" \\").expect("a text takes all");
        assert_eq!(text, "a\\nb\\r\\t\\u{1b}[2J\\u{7f}\\u{85}é \"q\" \\");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        struct Broken(usize);

        impl Write for Broken {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let written = self.0.min(bytes.len());
                self.0 -= written;
                if written == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(written) }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        assert_eq!(write_all(&mut Broken(100), b"one\ntwo\nthree\n"), Ok(()));
        assert_eq!(write_all(&mut Broken(5), b"one\ntwo\nthree\n"), Err(2));
    }

    #[test]
    fn a_full_queue_drops_the_next_line_and_keeps_what_it_has() {
        let queue = Queue { has_writer: true, ..Queue::default() };
        let line = [b'x'; QUEUE_MAX / 2];
        for _ in 0..3 {
            queue.push(&line);
        }
        assert_eq!((queue.waiting.lock().lines.len(), queue.dropped.load(Relaxed)), (QUEUE_MAX, 1));
        assert!(!queue.flush(Duration::ZERO));
    }
}
