//! The body of a response: bytes that are there, or a stream that is asked for a piece when the one before has been sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use crate::http::{Body, SILENCE, Stream};

/// The body of a response.
pub(super) enum Payload {
    Whole(Bytes),
    Stream(Flow),
}

/// A body that comes piece by piece. hyper would take many before the client takes the first.
pub(super) struct Flow {
    /// None at the end.
    stream: Option<Box<dyn Stream>>,
    /// Until when it may say nothing.
    silence: Pin<Box<Sleep>>,
    /// Shared with the piece that is on its way, if one is.
    unsent: Arc<Mutex<Option<Waker>>>,
}

impl Payload {
    pub(super) fn new(body: Body) -> Self {
        match body {
            Body::Stream(stream) => {
                let (silence, unsent) = (Box::pin(sleep(SILENCE)), Arc::default());
                Self::Stream(Flow { stream: Some(stream), silence, unsent })
            }
            Body::Whole(bytes) => Self::Whole(bytes),
        }
    }
}

impl Flow {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        if Arc::strong_count(&self.unsent) > 1 {
            *self.unsent.lock() = Some(context.waker().clone());
            return Poll::Pending;
        }
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let bytes = match stream.poll(context) {
            Poll::Ready(bytes) => bytes,
            Poll::Pending => {
                ready!(self.silence.as_mut().poll(context));
                stream.silent()
            }
        };
        self.silence.as_mut().reset(Instant::now() + SILENCE);
        if bytes.is_none() {
            self.stream = None;
        }
        let unsent = || Some(Unsent(Arc::clone(&self.unsent)));
        Poll::Ready(bytes.map(|bytes| Piece { bytes, _unsent: unsent() }))
    }
}

/// Lets the next piece come when this one is sent.
struct Unsent(Arc<Mutex<Option<Waker>>>);

impl Drop for Unsent {
    fn drop(&mut self) {
        self.0.lock().take().into_iter().for_each(Waker::wake);
    }
}

impl http_body::Body for Payload {
    type Data = Piece;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Infallible>>> {
        let piece = match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => None,
            Self::Whole(bytes) => Some(Piece { bytes: std::mem::take(bytes), _unsent: None }),
            Self::Stream(flow) => ready!(flow.poll(context)),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(flow) => flow.stream.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// What of a body is still to be sent.
pub(super) struct Piece {
    bytes: Bytes,
    _unsent: Option<Unsent>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}
