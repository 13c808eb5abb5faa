use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::server::conn::http1;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
use tokio::sync::watch;
use tokio::time::sleep;

use super::connection::{self, Connection};
use super::event_loops::EventLoops;
use super::idle::IdleTrackingStream;
use super::{READ_MAX, Shared};
use crate::http::{BodyFault, Budget, RequestHead, Responder, Response, Service};

/// Responds to each body with its length, and to each fault with a status of its own.
struct Echo;

impl Service for Echo {
    type Admitted = ();

    fn admit(&self, _: Arc<RequestHead>) -> Result<(), Response> {
        Ok(())
    }

    fn budget(&self) -> &'static Budget {
        Budget::new(1 << 20)
    }

    fn body_max(&self, (): &()) -> u64 {
        1 << 20
    }

    fn refuse_body(&self, (): (), fault: BodyFault) -> Response {
        Response::new(if fault == BodyFault::TooSlow { 408 } else { 400 }, &b""[..])
    }

    fn serve(&self, (): (), body: Vec<u8>, responder: Responder) {
        responder.respond(Response::new(200, body.len().to_string().into_bytes()));
    }
}

/// What the event loops share, and the sender that keeps the server from stopping.
fn shared<S: Service>(service: S) -> (watch::Sender<bool>, Arc<Shared<S>>) {
    let (stop, stopping) = watch::channel(false);
    let mut builder = http1::Builder::new();
    builder.header_read_timeout(None).half_close(true);
    let shared = Shared {
        service: Arc::new(service),
        tls: None,
        connections: Arc::default(),
        builder,
        stopping,
        connections_max: 1,
        event_loops: Arc::new(EventLoops::new(Vec::new())),
    };
    (stop, Arc::new(shared))
}

/// Whether a connection times out within a minute in which this happens every second.
async fn times_out(each_second: impl Fn(&Connection<Echo>)) -> bool {
    let (_stop, shared) = shared(Echo);
    let connection = Arc::new(Connection::new(shared, None));
    let seconds = async {
        for _ in 0..60 {
            sleep(Duration::from_secs(1)).await;
            each_second(&connection);
        }
    };
    tokio::select! {
        () = connection.timed_out() => true,
        () = seconds => false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_times_out_only_without_progress() {
    assert!(times_out(|_| {}).await);
    assert!(!times_out(Connection::note_progress).await);
}

/// The first line of the response to an upload in this number of pieces of so many bytes, with a pause after each.
async fn response_to_upload(chunked: bool, pieces: usize, bytes: usize, pause: Duration) -> String {
    let (_stop, shared) = shared(Echo);
    let (client, server) = duplex(1 << 20);
    tokio::spawn(connection::serve(shared, server, None));
    let (mut responses, mut client) = tokio::io::split(client);
    let framing = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {}", pieces * bytes),
    };
    let piece = match chunked {
        true => format!("{bytes:x}\r\n{}\r\n", "x".repeat(bytes)),
        false => "x".repeat(bytes),
    };
    let upload = async {
        let head = format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        let _ = client.write_all(head.as_bytes()).await;
        for _ in 0..pieces {
            let _ = client.write_all(piece.as_bytes()).await;
            sleep(pause).await;
        }
        if chunked {
            let _ = client.write_all(b"0\r\n\r\n").await;
        }
        std::future::pending::<()>().await;
    };
    let mut line = [0; 12];
    tokio::select! {
        () = upload => {}
        read = responses.read_exact(&mut line) => assert!(read.is_ok(), "no response"),
    }
    String::from_utf8_lossy(&line).into_owned()
}

#[tokio::test(start_paused = true)]
async fn a_body_below_the_minimum_rate_is_408() {
    let pause = Duration::from_secs(9);
    for chunked in [false, true] {
        assert_eq!(response_to_upload(chunked, 100 << 10, 1, pause).await, "HTTP/1.1 408", "{chunked}");
        assert_eq!(response_to_upload(chunked, 13, 8 << 10, pause).await, "HTTP/1.1 408", "{chunked}");
        assert_eq!(response_to_upload(chunked, 10, 10 << 10, pause).await, "HTTP/1.1 200", "{chunked}");
    }
}

/// A client that always has more to send, and reads everything.
struct Endless;

impl AsyncRead for Endless {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        into.put_slice(&vec![b'x'; into.remaining()]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Endless {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_busy_connection_yields_to_others() {
    let (_stop, shared) = shared(Echo);
    let connection = Arc::new(Connection::new(shared, None));
    let mut stream = IdleTrackingStream::new(Endless, connection);
    let mut context = Context::from_waker(Waker::noop());
    let mut buffer = vec![0; READ_MAX];
    let data = vec![b'x'; 100 << 20];
    for writes in [false, true] {
        for _ in 0..3 {
            let mut moved = 0;
            loop {
                let polled = if writes {
                    Pin::new(&mut stream).poll_write(&mut context, &data)
                } else {
                    let mut buffer = ReadBuf::new(&mut buffer);
                    let read = Pin::new(&mut stream).poll_read(&mut context, &mut buffer);
                    read.map_ok(|()| buffer.filled().len())
                };
                match polled {
                    Poll::Ready(count) => moved += count.expect("it never fails"),
                    Poll::Pending => break,
                }
            }
            assert!((1..=256 << 10).contains(&moved), "{moved} bytes before a yield");
        }
    }
}
