use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, Reason, SendStream};
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::super::connection;
use super::super::convert::Peer;
use super::super::tests::{DEADLINE, Echo, shared};
use super::STREAMS_MAX;

/// A client with prior knowledge, and its connection.
struct Client {
    send: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
    /// Stops the server.
    stop: watch::Sender<bool>,
}

/// A server whose service responds after this time, and its client.
async fn client_by(
    delay: Duration,
    builder: &h2::client::Builder,
    prepare: impl FnOnce(&mut Connection<DuplexStream, Bytes>),
) -> Client {
    let (stop, shared) = shared(Echo(delay));
    let (stream, server) = duplex(1 << 16);
    tokio::spawn(connection::serve(shared, server, Peer::default()));
    let (send, mut connection) = builder.handshake(stream).await.expect("the server speaks HTTP/2");
    prepare(&mut connection);
    Client { send, connection: tokio::spawn(connection), stop }
}

async fn client(delay: Duration) -> Client {
    client_by(delay, &h2::client::Builder::new(), |_| {}).await
}

impl Client {
    /// Sends the head of a PUT.
    async fn begin_put(&mut self) -> (ResponseFuture, SendStream<Bytes>) {
        let head = Request::put("http://localhost/").body(()).expect("it is a request");
        let mut send = self.send.clone().ready().await.expect("the connection is open");
        send.send_request(head, false).expect("the connection is open")
    }

    /// Sends the head of a PUT whose response body is not read.
    async fn put(&mut self) -> (impl Future<Output = Result<Response<()>, h2::Error>> + use<>, SendStream<Bytes>) {
        let (response, body) = self.begin_put().await;
        (async { response.await.map(|response| response.map(drop)) }, body)
    }

    /// Sends a whole PUT every 5 s, and asserts that each succeeds.
    async fn keep_putting(&mut self) {
        loop {
            sleep(Duration::from_secs(5)).await;
            let (response, mut body) = self.put().await;
            body.send_data(Bytes::from_static(b"all"), true).expect("it is open");
            assert_eq!(response.await.expect("the server responds").status(), 200);
        }
    }
}

/// The status of an upload in this number of pieces of this number of bytes, with a pause after each.
async fn status_of_upload(pieces: usize, bytes: usize, pause: Duration) -> StatusCode {
    let mut client = client(Duration::ZERO).await;
    let (response, mut body) = client.put().await;
    let upload = async {
        for _ in 0..pieces {
            let _ = body.send_data(vec![b'x'; bytes].into(), false);
            sleep(pause).await;
        }
        let _ = body.send_data(Bytes::new(), true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = upload => unreachable!("it does not end"),
        response = response => response.expect("the server responds").status(),
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_body_below_the_minimum_rate_is_408() {
    let pause = Duration::from_secs(9);
    assert_eq!(status_of_upload(100 << 10, 1, pause).await, 408);
    assert_eq!(status_of_upload(13, 8 << 10, pause).await, 408);
    assert_eq!(status_of_upload(10, 10 << 10, pause).await, 200);
}

#[tokio::test(start_paused = true)]
async fn an_http2_body_that_stalls_is_408_and_others_continue() {
    let mut client = client(Duration::ZERO).await;
    let began = Instant::now();
    let (stalled, mut body) = client.put().await;
    body.send_data(Bytes::from_static(b"some"), false).expect("it is open");
    tokio::select! {
        () = client.keep_putting() => {}
        response = stalled => assert_eq!(response.expect("the server responds").status(), 408),
    }
    assert_eq!(began.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_that_opens_no_window_is_cancelled_and_others_continue() {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let mut client = client_by(Duration::ZERO, &builder, |_| {}).await;
    let began = Instant::now();
    let (response, mut body) = client.begin_put().await;
    body.send_data(Bytes::from_static(b"value"), true).expect("it is open");
    let mut stalled = response.await.expect("the server responds").into_body();
    let cancelled = async { stalled.data().await.expect("the body has not ended") };
    tokio::select! {
        () = client.keep_putting() => {}
        cancelled = cancelled => {
            let error = cancelled.expect_err("the client permits no byte");
            assert_eq!(error.reason(), Some(Reason::CANCEL));
        }
    }
    assert_eq!(began.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_without_requests_times_out_whatever_it_pings() {
    for pings in [false, true] {
        let mut ping_pong = None;
        let client = client_by(Duration::ZERO, &h2::client::Builder::new(), |connection| {
            ping_pong = connection.ping_pong();
        })
        .await;
        let began = Instant::now();
        let pinging = async {
            let mut ping_pong = ping_pong.expect("it is taken only once");
            while pings && ping_pong.ping(Ping::opaque()).await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = pinging => {}
            ended = client.connection => ended.expect("no panic").expect("it ends with GOAWAY"),
        }
        assert!((30..=42).contains(&began.elapsed().as_secs()), "{pings}: {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_that_waits_long_for_its_response_gets_it() {
    let mut client = client(Duration::from_secs(120)).await;
    // The connection stays open for the second.
    for _ in 0..2 {
        let (response, mut body) = client.put().await;
        body.send_data(Bytes::from_static(b"value"), true).expect("it is open");
        assert_eq!(response.await.expect("the server responds").status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_complete_when_the_server_stops() {
    let mut client = client(Duration::from_secs(20)).await;
    let (first, mut body) = client.put().await;
    body.send_data(Bytes::from_static(b"value"), true).expect("it is open");
    let (second, mut rest) = client.put().await;
    rest.send_data(Bytes::from_static(b"val"), false).expect("it is open");
    sleep(Duration::from_secs(1)).await;
    client.stop.send_replace(true);
    sleep(Duration::from_secs(1)).await;
    let head = Request::get("http://localhost/").body(()).expect("it is a request");
    assert!(
        client.send.clone().ready().await.and_then(|mut send| send.send_request(head, true)).is_err(),
        "a new request is sent"
    );
    rest.send_data(Bytes::from_static(b"ue"), true).expect("it is open");
    assert_eq!(first.await.expect("the server responds").status(), 200);
    assert_eq!(second.await.expect("the server responds").status(), 200);
    timeout(DEADLINE, client.connection).await.expect("the connection ends").expect("no panic").expect("with GOAWAY");
}

#[tokio::test(start_paused = true)]
async fn requests_that_their_client_cancelled_count_until_they_are_done() {
    let mut client = client(Duration::from_secs(20)).await;
    let began = Instant::now();
    for _ in 0..STREAMS_MAX {
        let (_, mut body) = client.put().await;
        body.send_data(Bytes::from_static(b"value"), true).expect("it is open");
        poll_fn(|context| body.poll_capacity(context)).await;
        // Time passes only when nothing else can be done.
        sleep(Duration::from_millis(1)).await;
        body.send_reset(Reason::CANCEL);
    }
    let (response, mut body) = client.put().await;
    body.send_data(Bytes::from_static(b"value"), true).expect("it is open");
    assert_eq!(response.await.expect("the server responds").status(), 200);
    assert!(began.elapsed().as_secs() >= 40, "a request was served beside {STREAMS_MAX} others");
}

#[tokio::test(start_paused = true)]
async fn a_preface_in_parts_is_recognized() {
    const START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for size in [1, 7, 23, 25] {
        let (_stop, shared) = shared(Echo(Duration::ZERO));
        let (mut client, server) = duplex(1 << 10);
        tokio::spawn(connection::serve(shared, server, Peer::default()));
        for part in START.chunks(size) {
            client.write_all(part).await.expect("the connection is open");
            sleep(Duration::from_secs(1)).await;
        }
        let mut head = [0; 9];
        client.read_exact(&mut head).await.expect("the connection is open");
        assert_eq!(head[3], 4, "{size}: no SETTINGS: {head:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_preface_is_a_request_of_http_1() {
    for (text, response) in [
        ("PRI * HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", "HTTP/1.1 400"),
        ("P", ""),
    ] {
        let (_stop, shared) = shared(Echo(Duration::ZERO));
        let (mut client, server) = duplex(1 << 10);
        tokio::spawn(connection::serve(shared, server, Peer::default()));
        for byte in text.as_bytes() {
            client.write_all(&[*byte]).await.expect("the connection is open");
            sleep(Duration::from_millis(1)).await;
        }
        client.shutdown().await.expect("the connection is open");
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.expect("the server ends the connection");
        assert!(got.starts_with(response.as_bytes()), "{text:?}: {}", got.escape_ascii());
    }
}

#[tokio::test(start_paused = true)]
async fn a_preface_behind_a_request_of_http_1_ends_the_connection() {
    let (_stop, shared) = shared(Echo(Duration::ZERO));
    let (mut client, server) = duplex(1 << 10);
    tokio::spawn(connection::serve(shared, server, Peer::default()));
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("the connection is open");
    sleep(Duration::from_secs(1)).await;
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("the connection is open");
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.expect("the server ends the connection");
    let text = String::from_utf8_lossy(&got);
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("\r\n\r\n0"), "{}", got.escape_ascii());
}
