//! The log: lines on standard error. Logging never blocks a thread for long and never ends the process.
//!
//! A line goes into a queue of limited size, and one thread writes the queue to standard error. While standard error is
//! closed, full, or not read, lines are dropped and counted; the first line that can be written again is followed by one with
//! the number of missing lines.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use once_cell::sync::OnceCell;
use parking_lot::{Condvar, Mutex};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::debug_fn;

use crate::config::LogFormat;

/// Maximum size of the lines that wait to be written, in bytes: some thousand of them.
const QUEUE_MAX: usize = 1 << 20;
/// The timeout of [`flush`] at the end of the process, for a reader that has stopped reading.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The delay before a full non-blocking file descriptor is tried again.
const RETRY: Duration = Duration::from_millis(20);

thread_local! {
    /// This thread writes the queue. Its own line, on how many were dropped, finds room in a full queue.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

static QUEUE: Queue = Queue::new();

/// Queues text for the writer, which the first text starts. While the process cannot have one more thread, text is written
/// by the thread that logs it, and the next text tries to start the writer again.
fn push(text: &[u8]) {
    static WRITER: OnceCell<()> = OnceCell::new();
    let start = || thread::Builder::new().name("log".to_owned()).spawn(|| QUEUE.run(&mut Standard));
    match WRITER.get_or_try_init(|| start().map(drop)) {
        Ok(()) => QUEUE.push(text),
        Err(_) => _ = Standard.write(text),
    }
}

/// Starts logging events, and panics as events, to standard error. The default format is text on a terminal, else JSON.
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

/// Logs panics as events. The standard library would print them directly, and panic again if it cannot.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("unnamed");
        let place = info.location().map(ToString::to_string);
        let backtrace = std::backtrace::Backtrace::capture();
        let is_captured = backtrace.status() == std::backtrace::BacktraceStatus::Captured;
        let backtrace = is_captured.then(|| backtrace.to_string());
        let message = info.payload_as_str().unwrap_or("a panic without a message");
        tracing::error!(thread = name, place, backtrace, "panicked: {message}");
        // Its panic ends the process.
        if name == "main" {
            flush(FLUSH_TIMEOUT);
        }
    }));
}

/// Prints a line that is not an event to standard error, such as the error that ends the program.
pub fn say(line: &str) {
    let mut text = String::with_capacity(line.len() + 1);
    let _ = Escaped(&mut text).write_str(line);
    text.push('\n');
    push(text.as_bytes());
}

/// Waits until all lines are written or dropped, or until the timeout. Returns whether they are.
pub fn flush(timeout: Duration) -> bool {
    QUEUE.flush(timeout)
}

/// Returns the number of lines that were dropped because they could not be written.
pub fn dropped() -> u64 {
    QUEUE.dropped.load(Relaxed)
}

/// Lines that wait for the writer.
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    dropped: AtomicU64,
}

struct Waiting {
    lines: Vec<u8>,
    /// The writer has taken lines and not written them yet.
    writes: bool,
}

impl Queue {
    const fn new() -> Self {
        let waiting = Waiting { lines: Vec::new(), writes: false };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new(), dropped: AtomicU64::new(0) }
    }

    fn push(&self, line: &[u8]) {
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

    fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
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
        // The number of dropped lines in the reports that were written, and with the report that is being written.
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
                        tracing::warn!(lines, "dropped log lines, because standard error was closed, full or not read");
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

/// Unbuffered standard error. That of the standard library reports success for a closed file descriptor.
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
        push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes control characters, so that no text can pretend to be another line or control a terminal.
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
        let queue = Queue::new();
        let line = [b'x'; QUEUE_MAX / 2];
        for _ in 0..3 {
            queue.push(&line);
        }
        assert_eq!((queue.waiting.lock().lines.len(), queue.dropped.load(Relaxed)), (QUEUE_MAX, 1));
        assert!(!queue.flush(Duration::ZERO));
    }
}
