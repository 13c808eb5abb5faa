use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

use super::connection::{self, Connection};
use super::convert::Peer;
use super::event_loops::EventLoops;
use super::idle::IdleTrackingStream;
use super::{HyperServer, READ_MAX, Shared};
use crate::http::{BodyFault, Budget, ConnectionCounts, Listener, RequestHead, Responder, Response, Service};

/// How long anything may take that should take moments.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// Responds to each body with its length after this time, and to each fault with its own status.
pub(super) struct Echo(pub(super) Duration);

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
        let Self(delay) = *self;
        let respond = move || responder.respond(Response::new(200, body.len().to_string().into_bytes()));
        if delay.is_zero() {
            return respond();
        }
        tokio::spawn(async move {
            sleep(delay).await;
            respond();
        });
    }
}

/// The state that the event loops share, and the sender that keeps the server from stopping.
pub(super) fn shared(service: Echo) -> (watch::Sender<bool>, Arc<Shared<Echo>>) {
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
        streams: Arc::new(Semaphore::new(1000)),
        heads: Budget::new(1 << 20),
        event_loops: Arc::new(EventLoops::new(Vec::new())),
    };
    (stop, Arc::new(shared))
}

/// Whether a connection times out within a minute in which this happens every second.
async fn times_out(each_second: impl Fn(&Connection<Echo>)) -> bool {
    let (_stop, shared) = shared(Echo(Duration::ZERO));
    let connection = Arc::new(Connection::new(shared, Peer::default()));
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

/// The first line of the response to an upload in this number of pieces of this number of bytes, with a pause after each.
async fn response_to_upload(chunked: bool, pieces: usize, bytes: usize, pause: Duration) -> String {
    let (_stop, shared) = shared(Echo(Duration::ZERO));
    let (client, server) = duplex(1 << 20);
    tokio::spawn(connection::serve(shared, server, Peer::default()));
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

#[tokio::test(start_paused = true)]
async fn a_slow_upload_that_progresses_is_accepted() {
    for chunked in [false, true] {
        // A piece every 5 s for over 60 s.
        let line = response_to_upload(chunked, 13, 6 << 10, Duration::from_secs(5)).await;
        assert_eq!(line, "HTTP/1.1 200", "{chunked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_long_for_its_own_response_gets_it() {
    let (_stop, shared) = shared(Echo(Duration::from_secs(120)));
    let (mut client, server) = duplex(1 << 10);
    tokio::spawn(connection::serve(shared, server, Peer::default()));
    for request in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nv"] {
        client.write_all(request.as_bytes()).await.expect("the connection is open");
        let mut response = Vec::new();
        while !response.windows(4).any(|end| end == b"\r\n\r\n") {
            assert!(client.read_buf(&mut response).await.expect("the connection is open") > 0, "no response");
        }
        assert!(response.starts_with(b"HTTP/1.1 200"), "{}", response.escape_ascii());
    }
}

#[test]
fn the_connection_limit_is_exact() {
    const LIMIT: usize = 5;
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let counts = Arc::<ConnectionCounts>::default();
    let (listener, echo) = (vec![Listener::Tcp(listener)], Arc::new(Echo(Duration::ZERO)));
    let server = HyperServer::start_with_limit(listener, None, Arc::clone(&counts), echo, LIMIT).expect("it starts");
    let connect = |status: &str| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("it is not zero");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("it is open");
        let mut line = [0; 12];
        stream.read_exact(&mut line).expect("the server responds");
        assert_eq!(line.escape_ascii().to_string(), format!("HTTP/1.1 {status}"), "{counts:?}");
        stream
    };
    let mut served: Vec<_> = (0..LIMIT).map(|_| connect("200")).collect();
    connect("503");
    drop(served.pop());
    let since = Instant::now();
    while counts.ended.load(Ordering::Relaxed) == 0 {
        assert!(since.elapsed() < DEADLINE, "the connection has not ended");
        std::thread::yield_now();
    }
    served.push(connect("200"));
    connect("503");
    drop(served);
    assert!(server.stop(DEADLINE), "a connection has not ended");
    assert_eq!((counts.open(), counts.refused.load(Ordering::Relaxed)), (0, 2));
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
    let (_stop, shared) = shared(Echo(Duration::ZERO));
    let connection = Arc::new(Connection::new(shared, Peer::default()));
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
