//! The stream of a connection as hyper and h2 use it. It reports what is read and written, yields to other connections after a
//! number of bytes, and closes so that the client does not lose the last response.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A connection times out after this many checks in a row that found no progress of the client.
pub(super) const CHECKS_MAX: u32 = 3;
/// The interval between two checks.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The stream yields to other connections of its event loop after this many bytes.
const YIELD_AFTER: usize = 64 << 10;
/// Maximum number of bytes of one write.
const WRITE_MAX: usize = 256 << 10;
/// Maximum number of bytes that are copied together before they are written: a vectored write costs the system more.
const COPIED_WRITE_MAX: usize = 1 << 10;
/// After the response that ends a connection, the rest of the request is read until the client has sent nothing for this
/// long, and for at most [`LINGER_MAX`]. A client may read no response before it has sent everything, and a connection that
/// is closed with bytes unread is reset, which discards the response.
pub(super) const LINGER: Duration = Duration::from_secs(2);
pub(super) const LINGER_MAX: Duration = Duration::from_secs(30);

/// The first bytes of an HTTP/2 client.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// As the number of bytes moved: the first read is still to come.
const UNREAD: usize = usize::MAX;

/// Waits until the client has made no progress for [`CHECKS_MAX`] checks while the server waited for it.
pub(super) async fn timed_out(progress: &AtomicU32, awaits_server: impl Fn() -> bool) {
    let (mut checks, mut seen) = (0, 0);
    while checks < CHECKS_MAX {
        sleep(CHECK_INTERVAL).await;
        let progress = progress.load(Ordering::Relaxed);
        let is_active = progress != seen || awaits_server();
        checks = if is_active { 0 } else { checks + 1 };
        seen = progress;
    }
}

/// Receives the events of a stream.
pub(super) trait Observer {
    /// Bytes have been received.
    fn received(&self, bytes: &[u8]);

    /// Bytes have been sent.
    fn sent(&self);

    /// Returns whether the last response was sent while the client may still be sending.
    fn lingers(&self) -> bool;
}

/// See the module documentation.
pub(super) struct IdleTrackingStream<I, O> {
    stream: I,
    observer: Arc<O>,
    lingering: Option<Linger>,
    /// The number of bytes read and written since the last yield, or [`UNREAD`].
    moved: usize,
    start: Start,
}

/// The bytes that the first reads return.
enum Start {
    /// This many bytes of the preface of HTTP/2, which are held back until the next bytes come: hyper recognizes only a whole
    /// preface.
    Preface(usize),
    /// Bytes that have already been read.
    Read(Bytes),
}

/// The timeouts of a lingering close.
struct Linger {
    idle: Pin<Box<Sleep>>,
    deadline: Instant,
}

impl<I, O: Observer> IdleTrackingStream<I, O> {
    pub(super) fn new(stream: I, observer: Arc<O>) -> Self {
        Self { stream, observer, lingering: None, moved: UNREAD, start: Start::Preface(0) }
    }

    /// A stream of which these bytes have already been read.
    pub(super) fn resume(stream: I, observer: Arc<O>, read: Bytes) -> Self {
        Self { start: Start::Read(read), ..Self::new(stream, observer) }
    }

    /// Returns the stream itself.
    pub(super) fn into_inner(self) -> I {
        self.stream
    }

    /// Returns whether to yield to other connections. Then the task is woken again after theirs.
    fn yields(&mut self, context: &Context<'_>) -> bool {
        let over = self.moved >= YIELD_AFTER && self.moved != UNREAD;
        if over {
            self.moved = 0;
            context.waker().wake_by_ref();
        }
        over
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = &written {
            // It stays `UNREAD`: h2 writes before it reads.
            self.moved = self.moved.saturating_add(result.as_ref().copied().unwrap_or_default());
            self.observer.sent();
        }
        written
    }
}

impl<I: AsyncRead + Unpin, O: Observer> IdleTrackingStream<I, O> {
    /// Reads the first bytes of the connection.
    #[cold]
    fn poll_first_read(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        match &mut self.start {
            Start::Read(rest) => {
                into.put_slice(&rest.split_to(rest.len().min(into.remaining())));
                if rest.is_empty() {
                    self.moved = 0;
                }
            }
            Start::Preface(held) => loop {
                into.put_slice(&PREFACE[..*held]);
                let read = Pin::new(&mut self.stream).poll_read(context, into);
                let came = &into.filled()[before..];
                let is_partial = came.len() > *held && came.len() < PREFACE.len() && PREFACE.starts_with(came);
                if is_partial {
                    *held = came.len();
                }
                if is_partial || !matches!(read, Poll::Ready(Ok(()))) {
                    into.set_filled(before);
                }
                if !is_partial {
                    ready!(read)?;
                    self.moved = into.filled().len() - before;
                    self.observer.received(&into.filled()[before..]);
                    break;
                }
            },
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin, O: Observer> AsyncRead for IdleTrackingStream<I, O> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.moved >= YIELD_AFTER {
            if self.moved == UNREAD {
                return self.poll_first_read(context, into);
            }
            self.yields(context);
            return Poll::Pending;
        }
        let this = &mut *self;
        let before = into.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, into);
        let came = &into.filled()[before..];
        if !came.is_empty() {
            this.moved += came.len();
            this.observer.received(came);
        }
        read
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, O: Observer> AsyncWrite for IdleTrackingStream<I, O> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.yields(context) {
            return Poll::Pending;
        }
        let data = &data[..data.len().min(WRITE_MAX)];
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.yields(context) {
            return Poll::Pending;
        }
        let length: usize = data.iter().map(|part| part.len()).sum();
        let written = if length <= COPIED_WRITE_MAX {
            let mut whole = SmallVec::<[u8; COPIED_WRITE_MAX]>::new();
            data.iter().for_each(|part| whole.extend_from_slice(part));
            Pin::new(&mut self.stream).poll_write(context, &whole)
        } else if length <= WRITE_MAX {
            Pin::new(&mut self.stream).poll_write_vectored(context, data)
        } else {
            let parts = first(data, WRITE_MAX);
            Pin::new(&mut self.stream).poll_write_vectored(context, &parts)
        };
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if !this.observer.lingers() {
                return Poll::Ready(Ok(()));
            }
        }
        let begin = || Linger { idle: Box::pin(sleep(LINGER)), deadline: Instant::now() + LINGER_MAX };
        let lingering = this.lingering.get_or_insert_with(begin);
        let (mut rest, mut read) = ([0; 8 << 10], 0);
        while lingering.idle.as_mut().poll(context).is_pending() {
            if read >= YIELD_AFTER {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut rest = ReadBuf::new(&mut rest);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut rest))?;
            if rest.filled().is_empty() {
                break;
            }
            read += rest.filled().len();
            lingering.idle.as_mut().reset((Instant::now() + LINGER).min(lingering.deadline));
        }
        Poll::Ready(Ok(()))
    }
}

/// Returns the first `max` bytes of several parts.
fn first<'a>(parts: &'a [IoSlice<'_>], mut max: usize) -> SmallVec<[IoSlice<'a>; 8]> {
    let cut = |part: &'a IoSlice<'_>| {
        let part = &part[..part.len().min(max)];
        max -= part.len();
        IoSlice::new(part)
    };
    parts.iter().map(cut).take_while(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vectored_write_is_cut_at_the_maximum_length() {
        let parts = [IoSlice::new(b"head"), IoSlice::new(b"body"), IoSlice::new(b"more")];
        let cut = |max| first(&parts, max).iter().map(|part| part.to_vec()).collect::<Vec<_>>();
        assert_eq!(cut(100), [b"head", b"body", b"more"]);
        assert_eq!(cut(6), [&b"head"[..], b"bo"]);
        assert_eq!(cut(4), [b"head"]);
        assert_eq!(cut(1), [b"h"]);
    }
}
