//! `/export`: all entries as they are at one revision, or the changes after a revision, as lines of JSON.
//!
//! A thread with the lowest priority encodes the lines, and waits while the client has not read the pieces before. So a client
//! that reads slowly holds a few pieces, and no writer waits for it.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::problem::{ErrorFormat, Problem};
use super::query::parameters;
use super::watch;
use crate::any_store::{AnyStore, Engine, SharedHost};
use crate::http::{Body, Response, Stream};
use crate::schema::export::{EntryLine, FORMAT, RemovalLine, Start, Writer};
use vkog_runtime::lower_priority;
use vkog_store::{LocalStore, Store, Unviewable, Unwatchable, View, Watch};

/// The length of a piece, in bytes. It ends with a line unless that is longer.
const PIECE: usize = 64 << 10;
/// The number of pieces that wait for the client.
const PIECES_MAX: usize = 2;
/// The number of pieces after which the thread pauses, because requests have priority.
const PAUSE_EVERY: u32 = 4;
/// See [`PAUSE_EVERY`].
const PAUSE: Duration = Duration::from_millis(1);

/// The export that is running, and the counts of those that have ended.
#[derive(Default)]
pub(super) struct Exports {
    /// There is one at a time.
    running: AtomicBool,
    /// The number of exports for each [`Outcome`].
    ended: [AtomicU64; Outcome::ALL.len()],
    /// The length of the pieces that were encoded for clients, in bytes.
    bytes: AtomicU64,
}

/// How an export has ended.
#[derive(Copy, Clone)]
pub(super) enum Outcome {
    /// All lines were encoded, and the client received all but the last pieces.
    Completed,
    /// The server could not complete it.
    Failed,
    /// The client closed the connection before.
    Interrupted,
}

impl Outcome {
    /// All outcomes, in the order of their numbers, with their names in `/metrics`.
    pub(super) const ALL: [(Self, &str); 3] =
        [(Self::Completed, "completed"), (Self::Failed, "failed"), (Self::Interrupted, "interrupted")];
}

impl Exports {
    fn begin(self: &Arc<Self>) -> Option<Running> {
        let begun = !self.running.swap(true, Ordering::AcqRel);
        begun.then(|| Running { exports: Arc::clone(self), outcome: None })
    }

    /// Whether an export is running.
    pub(super) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Returns the number of exports that have ended this way.
    pub(super) fn ended(&self, outcome: Outcome) -> u64 {
        self.ended[outcome as usize].load(Ordering::Relaxed)
    }

    /// Returns the number of bytes in the bodies of all exports.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// The export that is running. Dropping it counts its outcome, and lets another one begin.
struct Running {
    exports: Arc<Exports>,
    /// Nothing while the export has not been started, and for the head of a response.
    outcome: Option<Outcome>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome {
            self.exports.ended[outcome as usize].fetch_add(1, Ordering::Relaxed);
        }
        self.exports.running.store(false, Ordering::Release);
    }
}

/// Parses the query: the revision of `since`, if the query has one.
///
/// # Errors
///
/// It is repeated, or no revision.
pub(super) fn parse_query(query: &str) -> Result<Option<u64>, Problem> {
    let [since] = parameters(query, ["since"])?;
    since.map(|text| watch::revision("since", text)).transpose()
}

/// Begins an export of the keys with a prefix, which its lines do not have. Blocks until its revision is durable.
pub(super) fn begin(
    engine: &Arc<Engine>,
    exports: &Arc<Exports>,
    since: Option<u64>,
    prefix: String,
    format: ErrorFormat,
) -> Response {
    let Some(running) = exports.begin() else { return busy().reply(format) };
    let store = engine.store();
    let source = match (since, store) {
        (None, _) => store.view().map(Source::View).map_err(|_| busy()),
        (Some(since), AnyStore::Local(store)) => {
            changes(store, since).map_err(|unwatchable| watch::gone(unwatchable, "make a full one"))
        }
        (Some(_), AnyStore::Shared(shared)) => Err(only_in_files(shared)),
    };
    let source = match source {
        Ok(source) => source,
        Err(problem) => return problem.reply(format),
    };
    let revision = source.revision();
    let timeline = |revision| match store {
        AnyStore::Local(store) => format!("{:016x}", store.timeline(revision)),
        // An engine whose state was restored has begun another one, which this server cannot notice.
        AnyStore::Shared(_) => "shared".to_owned(),
    };
    let start = Start {
        format: FORMAT,
        store: match store {
            AnyStore::Local(store) => format!("{:016x}", store.id()),
            AnyStore::Shared(shared) => shared.url().id(),
        },
        revision,
        timeline: timeline(revision),
        since,
        since_timeline: since.map(timeline),
        key_prefix: prefix.clone(),
    };
    let mut reply = Response::new(200, &b""[..])
        .with_header("Content-Type", "application/x-ndjson")
        .with_header("Vkog-Revision", revision.to_string())
        // A proxy that compresses or collects the stream would hold it in memory.
        .with_cache_control("no-store, no-transform")
        .with_header("X-Accel-Buffering", "no")
        .inert();
    let job = Box::new(Job { source, start, prefix, running });
    reply.body = Body::Stream(Box::new(Pieces::Waiting(Some(job))));
    reply
}

/// The problem of an incremental export of a shared store. After its engine was restored, the same revision can be another state.
fn only_in_files(shared: &SharedHost) -> Problem {
    let fact = format!("{} has no incremental exports, because only a store in files has timelines", shared.url());
    Problem::new(501, format!("{fact}; make a full one, without since"))
}

fn busy() -> Problem {
    Problem::busy("Another export is in progress; try again when it has ended")
}

/// The data of an export.
enum Source {
    View(View),
    /// The changes up to the revision.
    Changes(Watch, u64),
}

impl Source {
    fn revision(&self) -> u64 {
        match self {
            Self::View(view) => view.revision(),
            Self::Changes(_, revision) => *revision,
        }
    }
}

fn changes(store: &LocalStore, since: u64) -> Result<Source, Unwatchable> {
    let last = store.watch(String::new(), None)?.revision();
    let watch = store.watch(String::new(), Some(since))?;
    Ok(Source::Changes(watch, last.max(since)))
}

/// Why an export ends early.
enum Ended {
    /// The client has closed the connection.
    Unread,
    /// The export cannot be completed, for this reason.
    Failed(String),
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Unread
    }
}

/// An export that has not begun to be encoded.
struct Job {
    source: Source,
    start: Start,
    prefix: String,
    running: Running,
}

impl Job {
    /// Encodes all lines. Returns when the client has read them, or has gone.
    fn run(self, pieces: Sender<Bytes>) {
        let Self { mut source, start, prefix, mut running } = self;
        lower_priority();
        let exports = Arc::clone(&running.exports);
        let out = Buffer { pieces, exports, buffer: Vec::with_capacity(2 * PIECE), count: 0 };
        let Ok(mut writer) = Writer::new(out, start) else { return };
        let written = match &mut source {
            Source::View(view) => write_view(view, &prefix, &mut writer),
            Source::Changes(watch, last) => write_changes(watch, *last, &prefix, &mut writer),
        };
        running.outcome = Some(match &written {
            Ok(()) => Outcome::Completed,
            Err(Ended::Failed(_)) => Outcome::Failed,
            Err(Ended::Unread) => Outcome::Interrupted,
        });
        // Before the end is sent, so that a client that has read it can begin the next export.
        drop((source, running));
        // An error means that the client has gone.
        let _ = match written {
            Ok(()) => writer.finish(),
            Err(Ended::Failed(reason)) => writer.fail(reason),
            Err(Ended::Unread) => Ok(()),
        };
    }
}

fn write_view(view: &mut View, prefix: &str, writer: &mut Writer<Buffer>) -> Result<(), Ended> {
    while let Some(entries) = view.next_shard().map_err(lost)? {
        for entry in entries {
            if let Some(key) = entry.key().strip_prefix(prefix) {
                writer.record(&EntryLine::new(key, &entry))?;
            }
        }
    }
    Ok(())
}

fn lost(unviewable: Unviewable) -> Ended {
    Ended::Failed(match unviewable {
        Unviewable::Lost(bytes) => format!(
            "writers replaced more than {bytes} bytes before the client had read them; use a faster connection, or raise \
             watch-history"
        ),
        Unviewable::Busy => "another export took its place".to_owned(),
    })
}

fn write_changes(watch: &mut Watch, last: u64, prefix: &str, writer: &mut Writer<Buffer>) -> Result<(), Ended> {
    while watch.revision() < last {
        // The changes are there already, so this never waits.
        let events = match watch.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(events)) if !events.is_empty() => events,
            Poll::Ready(Err(Unwatchable::Forgotten(begins))) => {
                return Err(Ended::Failed(format!(
                    "changes up to revision {begins} left the history before the client had read them; make a full one"
                )));
            }
            _ => return Err(Ended::Failed("the server stops; try again later".to_owned())),
        };
        for event in events.iter().filter(|event| event.revision() <= last) {
            let Some(key) = event.entry().key().strip_prefix(prefix) else { continue };
            match event.is_removal() {
                true => writer.record(&RemovalLine::new(key, event.revision()))?,
                false => writer.record(&EntryLine::new(key, event.entry()))?,
            }
        }
    }
    Ok(())
}

/// Collects lines and passes them on in pieces.
struct Buffer {
    pieces: Sender<Bytes>,
    exports: Arc<Exports>,
    buffer: Vec<u8>,
    count: u32,
}

impl Buffer {
    /// Waits until there is room for another piece.
    fn send(&mut self, piece: Bytes) -> io::Result<()> {
        self.exports.bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe)?;
        self.count += 1;
        if self.count.is_multiple_of(PAUSE_EVERY) {
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn send_all(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(2 * PIECE));
        if piece.is_empty() { Ok(()) } else { self.send(piece.into()) }
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(PIECE)];
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() >= PIECE && (taken.ends_with(b"\n") || self.buffer.len() >= 2 * PIECE) {
            self.send_all()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_all()
    }
}

/// The body of the response.
enum Pieces {
    /// The client has not begun to read. A response to HEAD never does.
    Waiting(Option<Box<Job>>),
    Running {
        pieces: Receiver<Bytes>,
        /// The last piece ended with a line.
        at_line_end: bool,
    },
}

impl Pieces {
    fn start(mut job: Job) -> Self {
        job.running.outcome = Some(Outcome::Failed);
        let (sender, pieces) = channel(PIECES_MAX);
        let spawned = thread::Builder::new().name("export".to_owned()).spawn(move || job.run(sender));
        if let Err(error) = spawned {
            // The response ends without its end line.
            tracing::error!("no export: cannot start a thread: {error}");
        }
        Self::Running { pieces, at_line_end: true }
    }
}

impl Stream for Pieces {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Self::Waiting(job) = self {
            let Some(job) = job.take() else { return Poll::Ready(None) };
            *self = Self::start(*job);
        }
        let Self::Running { pieces, at_line_end } = self else { return Poll::Ready(None) };
        let piece = pieces.poll_recv(context);
        if let Poll::Ready(Some(piece)) = &piece {
            *at_line_end = piece.last() == Some(&b'\n');
        }
        piece
    }

    /// Sends an empty line, which counts for nothing, unless a line is unfinished.
    fn heartbeat(&mut self) -> Option<Bytes> {
        match self {
            Self::Running { at_line_end: true, .. } => Some(Bytes::from_static(b"\n")),
            _ => None,
        }
    }

    fn is_finite(&self) -> bool {
        true
    }
}
