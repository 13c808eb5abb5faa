//! The stream of a connection as hyper uses it. It notes the client's progress, scans what is read, yields to other
//! connections after a number of bytes, and closes so that the client does not lose the last response.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::connection::Connection;
use crate::http::Service;

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
const LINGER_MAX: Duration = Duration::from_secs(30);

/// See the module documentation.
pub(super) struct IdleTrackingStream<I, S: Service> {
    stream: I,
    connection: Arc<Connection<S>>,
    lingering: Option<Linger>,
    /// The number of bytes read and written since the last yield.
    moved: usize,
}

/// The timeouts of a lingering close.
struct Linger {
    idle: Pin<Box<Sleep>>,
    deadline: Instant,
}

impl<I, S: Service> IdleTrackingStream<I, S> {
    pub(super) fn new(stream: I, connection: Arc<Connection<S>>) -> Self {
        Self { stream, connection, lingering: None, moved: 0 }
    }

    /// Returns whether to yield to other connections. Then the task is woken again after theirs.
    fn yields(&mut self, context: &Context<'_>) -> bool {
        let over = self.moved >= YIELD_AFTER;
        if over {
            self.moved = 0;
            context.waker().wake_by_ref();
        }
        over
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = &written {
            self.moved += result.as_ref().copied().unwrap_or_default();
            self.connection.note_progress();
        }
        written
    }
}

impl<I: AsyncRead + Unpin, S: Service> AsyncRead for IdleTrackingStream<I, S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.yields(context) {
            return Poll::Pending;
        }
        let this = &mut *self;
        let before = into.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, into);
        let came = &into.filled()[before..];
        if !came.is_empty() {
            this.moved += came.len();
            this.connection.scan(came);
        }
        read
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, S: Service> AsyncWrite for IdleTrackingStream<I, S> {
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
            if !this.connection.lingers() {
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
