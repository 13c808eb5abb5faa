//! One request over HTTP/2, from its head to the end of its response.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http_body::Body as _;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use super::super::body::{Chunk, ResponseBody};
use super::super::convert::{http2_request_head, hyper_response};
use super::super::event_loops::CountGuard;
use super::super::idle::{CHECK_INTERVAL, CHECKS_MAX, LINGER, LINGER_MAX};
use super::super::stopped;
use super::{Connection, Piece};
use crate::http::response::date;
use crate::http::{Body, BodyBuffer, BodyFault, BodyLength, RequestHead, Response, Service, Share};
use vkog_runtime::Oneshot;

/// A client that sends nothing of a body, or reads nothing of one, times out after this time.
const STALL_TIMEOUT: Duration = CHECK_INTERVAL.saturating_mul(CHECKS_MAX);
/// Maximum number of header fields of a request: hyper has this limit for HTTP/1.
const FIELDS_MAX: usize = 100;

/// Serves a request.
pub(super) async fn serve<S: Service>(
    connection: Arc<Connection<S>>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Piece<S>>,
) {
    let (parts, mut body) = request.into_parts();
    let (method, expects) = (parts.method.clone(), parts.headers.contains_key(header::EXPECT));
    let response = match parts.headers.len() > FIELDS_MAX {
        true => {
            connection.count_rejected();
            Response::new(431, Bytes::new())
        }
        false => {
            let head = http2_request_head(&parts, &connection.peer);
            // Not held beside the converted head.
            drop(parts);
            response_to(&connection, head, expects, &mut body, &mut respond).await
        }
    };
    if let Err(error) = send(&connection, &method, respond, response).await {
        return tracing::debug!("a request over HTTP/2 was cancelled: {error}");
    }
    // A client may read no response before it has sent everything. What is still not sent then is cancelled.
    if !body.is_end_stream() && !expects {
        let _ = timeout(LINGER_MAX, async {
            while let Ok(Some(Ok(_))) = timeout(LINGER, receive_piece(&connection, &mut body)).await {}
        })
        .await;
    }
}

/// Receives a request and runs it. `expects` is whether the client expects `100 Continue` first.
async fn response_to<S: Service>(
    connection: &Arc<Connection<S>>,
    head: Arc<RequestHead>,
    expects: bool,
    body: &mut RecvStream,
    respond: &mut SendResponse<Piece<S>>,
) -> Response {
    let service = &connection.shared.service;
    let length = body_len(&head, body);
    let admitted = match connection.shared.admit(head) {
        Ok(admitted) => admitted,
        Err(response) => return response,
    };
    let buffer = length.and_then(|length| BodyBuffer::new(length, service.body_max(&admitted), service.budget()));
    let received = match buffer {
        Ok(buffer) => {
            if expects && !body.is_end_stream() {
                let mut proceed = hyper::Response::new(());
                *proceed.status_mut() = StatusCode::CONTINUE;
                // This fails if the client has cancelled the request; the next read reports that.
                let _ = respond.send_informational(proceed);
            }
            receive(connection, body, buffer).await
        }
        Err(fault) => Err(fault),
    };
    match received {
        Ok((bytes, share)) => run(connection, admitted, bytes, share).await,
        Err(fault) => service.refuse_body(admitted, fault),
    }
}

/// The length of a body. Over HTTP/2 a body whose length is not declared ends with its stream, like a chunked one.
fn body_len(head: &RequestHead, body: &RecvStream) -> Result<BodyLength, BodyFault> {
    match head.body_len()? {
        BodyLength::Known(0) if !body.is_end_stream() && head.headers.get("content-length").is_none() => {
            Ok(BodyLength::Chunked)
        }
        length => Ok(length),
    }
}

/// Receives a body to its end. h2 compares the declared length.
async fn receive<S: Service>(
    connection: &Connection<S>,
    body: &mut RecvStream,
    mut buffer: BodyBuffer,
) -> Result<(Vec<u8>, Share), BodyFault> {
    let mut began = None;
    while !body.is_end_stream() {
        let piece = match timeout(STALL_TIMEOUT, receive_piece(connection, body)).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(_))) => return Err(buffer.cut_off()),
            Ok(None) => break,
            Err(_) => return Err(BodyFault::TooSlow),
        };
        buffer.push(&piece)?;
        if !body.is_end_stream() {
            buffer.check_rate(began.get_or_insert_with(Instant::now).elapsed())?;
        }
    }
    buffer.finish()
}

/// Receives a piece of a body, and lets the client send as many further bytes.
async fn receive_piece<S: Service>(
    connection: &Connection<S>,
    body: &mut RecvStream,
) -> Option<Result<Bytes, h2::Error>> {
    let piece = body.data().await?;
    piece
        .and_then(|piece| {
            connection.note_progress();
            body.flow_control().release_capacity(piece.len()).map(|()| piece)
        })
        .into()
}

/// Runs the request and waits for its response.
async fn run<S: Service>(
    connection: &Arc<Connection<S>>,
    admitted: S::Admitted,
    body: Vec<u8>,
    share: Share,
) -> Response {
    let oneshot = Arc::new(Oneshot::default());
    let delivered = Arc::clone(&oneshot);
    connection.shared.run(admitted, body, Some(share), move |response| delivered.send(response));
    match oneshot.try_receive() {
        Some(response) => response,
        None => {
            let _awaits = CountGuard::new(&connection.awaiting);
            poll_fn(|context| oneshot.poll(context)).await
        }
    }
}

/// Sends a response.
async fn send<S: Service>(
    connection: &Arc<Connection<S>>,
    method: &Method,
    mut respond: SendResponse<Piece<S>>,
    response: Response,
) -> Result<(), h2::Error> {
    let is_endless = matches!(&response.body, Body::Stream(stream) if !stream.is_finite());
    let (mut parts, body) = hyper_response(response).into_parts();
    frame(&mut parts.headers, parts.status, &body);
    let has_ended = method == Method::HEAD || body.is_end_stream();
    let mut to = respond.send_response(hyper::Response::from_parts(parts, ()), has_ended)?;
    if has_ended {
        return Ok(());
    }
    if !is_endless {
        return send_body(connection, &mut to, body).await;
    }
    // When the server stops, the stream ends. A client that does not read the rest of it delays the stop no longer.
    let mut stopping = connection.shared.stopping.clone();
    let overdue = async {
        stopped(&mut stopping).await;
        sleep(LINGER).await;
    };
    tokio::select! {
        biased;
        sent = send_body(connection, &mut to, body) => sent,
        () = overdue => Ok(()),
    }
}

/// Adds the fields that hyper adds over HTTP/1.
fn frame(headers: &mut HeaderMap, status: StatusCode, body: &ResponseBody) {
    if let Some(now) = date(SystemTime::now())
        && let Ok(now) = HeaderValue::try_from(httpdate::fmt_http_date(now))
    {
        headers.insert(header::DATE, now);
    }
    if let Some(length) = body.size_hint().exact()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
}

/// Sends a body to its end.
async fn send_body<S: Service>(
    connection: &Arc<Connection<S>>,
    to: &mut SendStream<Piece<S>>,
    mut body: ResponseBody,
) -> Result<(), h2::Error> {
    let piece = |chunk| Piece { chunk, connection: Arc::clone(connection) };
    loop {
        let frame = poll_fn(|context| match to.poll_reset(context) {
            Poll::Ready(reason) => Poll::Ready(Err(reason.unwrap_or(Reason::CANCEL))),
            Poll::Pending => Pin::new(&mut body).poll_frame(context).map(Ok),
        });
        let frame = match frame.await? {
            Some(Ok(frame)) => frame,
            Some(Err(_)) => {
                to.send_reset(Reason::INTERNAL_ERROR);
                return Err(Reason::INTERNAL_ERROR.into());
            }
            None => return to.send_data(piece(Chunk::empty()), true),
        };
        let mut chunk = frame.into_data().unwrap_or_else(|_| Chunk::empty());
        while chunk.has_remaining() {
            let room = room_for(to, chunk.remaining()).await?;
            let next = chunk.split_to(room);
            connection.note_progress();
            to.send_data(piece(next), !chunk.has_remaining() && body.is_end_stream())?;
        }
        if body.is_end_stream() {
            return Ok(());
        }
    }
}

/// Waits until the client accepts some of these bytes, and returns how many.
async fn room_for<S: Service>(to: &mut SendStream<Piece<S>>, length: usize) -> Result<usize, h2::Error> {
    to.reserve_capacity(length);
    let room = match to.capacity() {
        0 => match timeout(STALL_TIMEOUT, poll_fn(|context| to.poll_capacity(context))).await {
            Ok(Some(room)) => room?,
            Ok(None) | Err(_) => 0,
        },
        room => room,
    };
    if room == 0 {
        to.send_reset(Reason::CANCEL);
        return Err(Reason::CANCEL.into());
    }
    Ok(room.min(length))
}
