//! The body of a response: bytes, or a stream that is polled for a chunk when the previous one has been sent.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use crate::http::{Body, HEARTBEAT_INTERVAL, Stream};

/// The body of a response as hyper polls it.
pub(super) enum ResponseBody {
    Whole(Bytes),
    Stream(StreamBody),
}

/// A body that is produced chunk by chunk. hyper alone would poll for many chunks before the client has read the first.
pub(super) struct StreamBody {
    /// `None` at the end.
    stream: Option<Box<dyn Stream>>,
    /// Until the next heartbeat.
    heartbeat: Pin<Box<Sleep>>,
    /// Shared with the permit of the chunk that is being sent, if one is. Wakes the stream when that chunk has been sent.
    sending: Arc<Mutex<Option<Waker>>>,
}

impl ResponseBody {
    pub(super) fn new(body: Body) -> Self {
        match body {
            Body::Stream(stream) => {
                let (heartbeat, sending) = (Box::pin(sleep(HEARTBEAT_INTERVAL)), Arc::default());
                Self::Stream(StreamBody { stream: Some(stream), heartbeat, sending })
            }
            Body::Whole(bytes) => Self::Whole(bytes),
        }
    }
}

/// The stream of a body has ended before its data.
#[derive(Debug, thiserror::Error)]
#[error("the stream of the response has failed")]
pub(super) struct Broken;

impl StreamBody {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, Broken>>> {
        if Arc::strong_count(&self.sending) > 1 {
            *self.sending.lock() = Some(context.waker().clone());
            return Poll::Pending;
        }
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let bytes = loop {
            let bytes = match stream.poll(context) {
                Poll::Ready(bytes) => bytes,
                Poll::Pending => {
                    ready!(self.heartbeat.as_mut().poll(context));
                    stream.heartbeat()
                }
            };
            self.heartbeat.as_mut().reset(Instant::now() + HEARTBEAT_INTERVAL);
            if bytes.as_ref().is_none_or(|bytes| !bytes.is_empty()) {
                break bytes;
            }
        };
        let Some(bytes) = bytes else {
            let is_broken = stream.is_broken();
            self.stream = None;
            return Poll::Ready(is_broken.then_some(Err(Broken)));
        };
        Poll::Ready(Some(Ok(Chunk { bytes, _permit: Some(SendPermit(Arc::clone(&self.sending))) })))
    }
}

/// The permit to send one chunk. Dropped when the chunk has been sent, it lets the stream produce the next one.
struct SendPermit(Arc<Mutex<Option<Waker>>>);

impl Drop for SendPermit {
    fn drop(&mut self) {
        self.0.lock().take().into_iter().for_each(Waker::wake);
    }
}

impl http_body::Body for ResponseBody {
    type Data = Chunk;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Broken>>> {
        let chunk = match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => None,
            Self::Whole(bytes) => Some(Ok(Chunk { bytes: std::mem::take(bytes), _permit: None })),
            Self::Stream(stream) => ready!(stream.poll(context)),
        };
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream(body) => body.stream.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// The unsent part of a chunk.
pub(super) struct Chunk {
    bytes: Bytes,
    _permit: Option<SendPermit>,
}

impl Chunk {
    /// No bytes.
    pub(super) fn empty() -> Self {
        Self { bytes: Bytes::new(), _permit: None }
    }

    /// Removes the first `count` bytes and returns them. The last part has the permit.
    pub(super) fn split_to(&mut self, count: usize) -> Self {
        if count == self.bytes.len() {
            std::mem::replace(self, Self::empty())
        } else {
            Self { bytes: self.bytes.split_to(count), _permit: None }
        }
    }
}

impl Buf for Chunk {
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
