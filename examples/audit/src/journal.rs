//! A thread that appends lines to a sink, fed through a bounded queue. Knows neither plugins nor the content of the
//! lines.

use std::io::{self, ErrorKind, Write};
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The maximum number of lines in the queue, and the maximum that the writer takes at once.
const QUEUE_LINES: usize = 4096;
/// The time until a failed write is retried.
const RETRY: Duration = Duration::from_millis(250);

/// The sending end of the queue. Dropping it waits until all lines are written.
pub(crate) struct Journal {
    queue: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The number of lines that were dropped because the queue was full, and that are not recorded in the sink yet.
    lost: AtomicU64,
    stopping: AtomicBool,
}

impl Journal {
    /// Starts the thread. `report` receives a line for each failure.
    pub(crate) fn start(sink: impl Write + Send + 'static, report: impl Fn(&str) + Send + 'static) -> io::Result<Self> {
        let (sender, queue) = sync_channel(QUEUE_LINES);
        let state = Arc::<State>::default();
        let writer = Writer { sink, report, state: Arc::clone(&state), lost_before: false };
        let thread = thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&queue))?;
        Ok(Self { queue: Some(sender), writer: Some(thread), state })
    }

    /// Queues a line. Never blocks: if the queue is full, the line is counted as lost.
    pub(crate) fn record(&self, line: String) {
        if self.queue.as_ref().is_none_or(|queue| queue.try_send(line).is_err()) {
            self.state.lost.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.state.stopping.store(true, Relaxed);
        // Without a sender, the queue and the thread end after the last line.
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            writer.thread().unpark();
            // A panic of the writer is in the log already.
            let _ = writer.join();
        }
    }
}

struct Writer<S, R> {
    sink: S,
    report: R,
    state: Arc<State>,
    lost_before: bool,
}

impl<S: Write, R: Fn(&str)> Writer<S, R> {
    fn run(mut self, queue: &Receiver<String>) {
        let mut unwritten = 0;
        while let Ok(first) = queue.recv() {
            let lines: Vec<String> = iter::once(first).chain(queue.try_iter()).take(QUEUE_LINES).collect();
            let lost = self.take_lost();
            // Never append to a truncated line.
            if unwritten > 0 || !self.append(&lines, lost) {
                unwritten += lines.len() as u64 + lost;
            }
        }
        let lost = self.take_lost();
        if unwritten > 0 || !self.append(&[], lost) {
            unwritten += lost;
        }
        if unwritten > 0 {
            (self.report)(&format!("stopped; lines not written: {unwritten}"));
        }
    }

    /// Returns the number of lines that were lost since the last call. Reports only the first loss; the file records
    /// all.
    fn take_lost(&mut self) -> u64 {
        let lost = self.state.lost.swap(0, Relaxed);
        if lost > 0 && !self.lost_before {
            (self.report)("lines are lost because the queue is full; the file says where and how many");
            self.lost_before = true;
        }
        lost
    }

    /// Appends lines and, if some were lost, a line with their number. Returns false if it was stopped before it
    /// succeeded.
    fn append(&mut self, lines: &[String], lost: u64) -> bool {
        let mut text = String::new();
        for line in lines {
            text.push_str(line);
            text.push('\n');
        }
        if lost > 0 {
            text.push_str(&format!("{{\"lost\":{lost}}}\n"));
        }
        self.write(text.as_bytes())
    }

    /// Writes all bytes, and retries after failures. While the journal is stopping, the first failure is final.
    fn write(&mut self, mut rest: &[u8]) -> bool {
        let mut failed_before = false;
        while !rest.is_empty() {
            let error = match self.sink.write(rest) {
                Ok(written @ 1..) => {
                    rest = &rest[written..];
                    continue;
                }
                Ok(0) => ErrorKind::WriteZero.into(),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if !failed_before {
                (self.report)(&format!("cannot write: {error}; lines wait in the queue and are lost when it is full"));
                failed_before = true;
            }
            if self.state.stopping.load(Relaxed) {
                return false;
            }
            thread::park_timeout(RETRY);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    /// The written text and the reports. Every write waits for the lock, so that a test can delay the writer.
    #[derive(Default)]
    struct Seen {
        text: String,
        failures_left: usize,
        reports: Vec<String>,
    }

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Seen>>);

    impl Sink {
        fn failing(times: usize) -> Self {
            let sink = Self::default();
            sink.lock().failures_left = times;
            sink
        }

        fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
            self.0.lock().expect("no test panics with the lock held")
        }

        fn journal(&self) -> Journal {
            let reports = self.clone();
            let report = move |line: &str| reports.lock().reports.push(line.to_owned());
            Journal::start(self.clone(), report).expect("a thread can be started")
        }
    }

    impl Write for Sink {
        /// Takes at most 3 bytes, so that a line takes several writes, and the rest of it fails first.
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut seen = self.lock();
            if seen.failures_left > 0 && !seen.text.is_empty() {
                seen.failures_left -= 1;
                return Err(ErrorKind::StorageFull.into());
            }
            let taken = &bytes[..bytes.len().min(3)];
            seen.text.push_str(str::from_utf8(taken).expect("ASCII"));
            Ok(taken.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn drop_returns_after_all_queued_lines_are_written_in_order() {
        let sink = Sink::default();
        let journal = sink.journal();
        (0..1000).for_each(|line| journal.record(line.to_string()));
        drop(journal);
        let seen = sink.lock();
        assert_eq!(seen.text, (0..1000).map(|line| format!("{line}\n")).collect::<String>());
        assert!(seen.reports.is_empty(), "{:?}", seen.reports);
    }

    #[test]
    fn a_full_queue_drops_lines_without_blocking_and_the_file_counts_them() {
        let sink = Sink::default();
        let journal = sink.journal();
        let held_up = sink.lock();
        // The writer holds at most one queue of lines in its hands, and another one waits: the third cannot fit.
        (0..3 * QUEUE_LINES).for_each(|line| journal.record(line.to_string()));
        drop(held_up);
        drop(journal);
        let seen = sink.lock();
        let (gaps, kept): (Vec<_>, Vec<_>) = seen.text.lines().partition(|line| line.starts_with('{'));
        let lost: usize = gaps
            .iter()
            .map(|gap| gap.trim_matches(|sign: char| !sign.is_ascii_digit()).parse::<usize>().expect("a number"))
            .sum();
        assert!(lost >= QUEUE_LINES, "{lost}");
        assert_eq!(kept.len() + lost, 3 * QUEUE_LINES);
        assert_eq!(seen.reports.len(), 1, "{:?}", seen.reports);
    }

    #[test]
    fn a_failed_write_is_retried_from_where_it_stopped() {
        let sink = Sink::failing(2);
        let journal = sink.journal();
        journal.record("123456".to_owned());
        let deadline = Instant::now() + Duration::from_secs(20);
        while sink.lock().text != "123456\n" {
            assert!(Instant::now() < deadline, "{:?}", sink.lock().text);
            thread::yield_now();
        }
        drop(journal);
        assert_eq!(sink.lock().text, "123456\n");
        assert_eq!(sink.lock().reports.len(), 1, "{:?}", sink.lock().reports);
    }

    #[test]
    fn a_sink_that_stays_broken_does_not_delay_the_stop() {
        let sink = Sink::failing(usize::MAX);
        let journal = sink.journal();
        (100_000..100_010).for_each(|line| journal.record(line.to_string()));
        drop(journal);
        let last = sink.lock().reports.pop().expect("the stop is reported");
        assert_eq!(last, "stopped; lines not written: 10");
    }
}
