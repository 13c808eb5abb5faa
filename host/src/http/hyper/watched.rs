//! The stream of a connection as hyper sees it: notes progress and framing, moves a bounded number of bytes between two turns
//! of other connections, and is closed only when the client cannot lose an answer by it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::Connection;
use crate::http::Service;

/// After this many bytes, other connections of the event loop have their turn.
const TURN: usize = 64 << 10;
/// The most bytes of one write.
const WRITE_MAX: usize = 256 << 10;
/// An answer of so many bytes is put together before it is written: to gather its parts costs the system more.
const ONE_PIECE_MAX: usize = 1 << 10;
/// For how long the rest of a request is read after the answer that ends its connection: until the client has been silent
/// for this long, and for [`LINGER_MAX`] in all. The client may read no answer before it has sent everything, and a
/// connection that is closed with bytes unread is reset, which discards the answer.
pub(super) const LINGER: Duration = Duration::from_secs(2);
const LINGER_MAX: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct Watched<I, S: Service> {
    stream: I,
    connection: Arc<Connection<S>>,
    lingering: Option<Lingering>,
    /// How many bytes were moved in this turn.
    moved: usize,
}

/// The end of a connection.
struct Lingering {
    silence: Pin<Box<Sleep>>,
    until: Instant,
}

impl<I, S: Service> Watched<I, S> {
    pub(super) fn new(stream: I, connection: Arc<Connection<S>>) -> Self {
        Self { stream, connection, lingering: None, moved: 0 }
    }

    /// Whether the turn is over. Then the connection is asked again after the others.
    fn yields(&mut self, context: &Context<'_>) -> bool {
        let over = self.moved >= TURN;
        if over {
            self.moved = 0;
            context.waker().wake_by_ref();
        }
        over
    }

    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = &written {
            self.moved += result.as_ref().copied().unwrap_or_default();
            self.connection.progresses();
        }
        written
    }
}

impl<I: AsyncRead + Unpin, S: Service> AsyncRead for Watched<I, S> {
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
            this.connection.scanner.lock().scan(came);
        }
        read
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, S: Service> AsyncWrite for Watched<I, S> {
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
        let written = if length <= ONE_PIECE_MAX {
            let mut whole = SmallVec::<[u8; ONE_PIECE_MAX]>::new();
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
            if !this.connection.lingers.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let begin = || Lingering { silence: Box::pin(sleep(LINGER)), until: Instant::now() + LINGER_MAX };
        let lingering = this.lingering.get_or_insert_with(begin);
        let (mut rest, mut read) = ([0; 8 << 10], 0);
        while lingering.silence.as_mut().poll(context).is_pending() {
            if read >= TURN {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut rest = ReadBuf::new(&mut rest);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut rest))?;
            if rest.filled().is_empty() {
                break;
            }
            read += rest.filled().len();
            lingering.silence.as_mut().reset((Instant::now() + LINGER).min(lingering.until));
        }
        Poll::Ready(Ok(()))
    }
}

/// The first bytes of several parts.
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
    fn a_write_of_several_parts_is_cut_where_it_is_too_long() {
        let parts = [IoSlice::new(b"head"), IoSlice::new(b"body"), IoSlice::new(b"more")];
        let cut = |max| first(&parts, max).iter().map(|part| part.to_vec()).collect::<Vec<_>>();
        assert_eq!(cut(100), [b"head", b"body", b"more"]);
        assert_eq!(cut(6), [&b"head"[..], b"bo"]);
        assert_eq!(cut(4), [b"head"]);
        assert_eq!(cut(1), [b"h"]);
    }
}
