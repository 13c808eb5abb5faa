//! HTTP/2 with prior knowledge: a client by the crate h2 that does not ask for each answer before the next request, and frames
//! as they are, for what no library sends.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::LazyLock;

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;
use ureq::http::{Request, Response};

use crate::DEADLINE;

/// The first bytes of a client: the preface, and settings that change none.
pub const HTTP2_START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime can be made")
});

/// One connection.
#[derive(Clone)]
pub struct Http2(SendRequest<Bytes>);

/// A request whose answer has not come, and whose body can be sent.
pub struct Exchange {
    response: ResponseFuture,
    /// Sends the body.
    pub body: SendStream<Bytes>,
}

impl Http2 {
    /// Connects.
    ///
    /// # Errors
    ///
    /// No process listens, or it does not support HTTP/2.
    pub fn connect(address: &str) -> io::Result<Self> {
        Self::connect_by(address, &h2::client::Builder::new())
    }

    /// Connects with other settings.
    ///
    /// # Errors
    ///
    /// No process listens, or it does not support HTTP/2.
    pub fn connect_by(address: &str, builder: &h2::client::Builder) -> io::Result<Self> {
        let connecting = async {
            let stream = tokio::net::TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (send, connection): (_, Connection<_, Bytes>) =
                builder.handshake(stream).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(Self(send))
        };
        RUNTIME.block_on(async { timeout(DEADLINE, connecting).await? })
    }

    /// Whether a request can still be sent.
    pub fn is_open(&self) -> bool {
        RUNTIME.block_on(async { timeout(DEADLINE, self.0.clone().ready()).await }).is_ok_and(|ready| ready.is_ok())
    }

    /// Sends the head of a request.
    ///
    /// # Errors
    ///
    /// The connection has ended, or no further request may be sent before the deadline.
    pub fn open(&self, head: Request<()>, has_body: bool) -> Result<Exchange, h2::Error> {
        let ready = RUNTIME.block_on(async { timeout(DEADLINE, self.0.clone().ready()).await });
        let (response, body) = ready
            .unwrap_or_else(|_| panic!("{head:?} may not be sent"))
            .and_then(|mut send| send.send_request(head, !has_body))?;
        Ok(Exchange { response, body })
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    ///
    /// The connection or the request was ended.
    pub fn request(&self, request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, h2::Error> {
        let (head, body) = request.into_parts();
        let mut exchange = self.open(Request::from_parts(head, ()), !body.is_empty())?;
        if !body.is_empty() {
            // The answer may come before all of the body was sent.
            exchange.body.send_data(body.into(), true)?;
        }
        exchange.response()
    }
}

impl Exchange {
    /// Waits for the head of the answer.
    ///
    /// # Errors
    ///
    /// The connection or the request was ended.
    pub fn head(self) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
        let Self { response, body } = self;
        let head = RUNTIME.block_on(async { timeout(DEADLINE, response).await });
        Ok((head.expect("no answer comes")?, body))
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    ///
    /// The connection or the request was ended.
    pub fn response(self) -> Result<Response<Vec<u8>>, h2::Error> {
        let (response, _body) = self.head()?;
        let (head, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        while let Some(piece) = next_piece(&mut incoming)? {
            body.extend(piece);
        }
        Ok(Response::from_parts(head, body))
    }

    /// Waits for `100 Continue`, and says whether it came before the answer.
    pub fn proceeds(&mut self) -> bool {
        let response = &mut self.response;
        let informed = std::future::poll_fn(|context| response.poll_informational(context));
        let informed = RUNTIME.block_on(async { timeout(DEADLINE, informed).await });
        matches!(informed.expect("no answer comes"), Some(Ok(head)) if head.status() == 100)
    }
}

/// Waits for the next piece of a body; none at its end.
///
/// # Errors
///
/// The connection or the request was ended.
pub fn next_piece(body: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let piece = RUNTIME.block_on(async { timeout(2 * DEADLINE, body.data()).await });
    let Some(piece) = piece.expect("nothing comes").transpose()? else { return Ok(None) };
    body.flow_control().release_capacity(piece.len())?;
    Ok(Some(piece))
}

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The frame of a GET, which ends its stream.
pub fn get_frame(stream: u32, path: &str) -> Vec<u8> {
    frame(1, 5, stream, &fields(0x82, path))
}

/// The frame of a PUT, whose body follows.
pub fn put_frame(stream: u32, path: &str) -> Vec<u8> {
    let mut fields = fields(0x83, path);
    // `:method` as a literal in place of POST.
    fields.splice(..1, *b"\x02\x03PUT");
    frame(1, 4, stream, &fields)
}

/// The fields of a head, with the method by its index.
fn fields(method: u8, path: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("it is short");
    let host = "localhost";
    let mut fields = vec![method, 0x86, 0x04, length(path)];
    fields.extend(path.bytes());
    fields.extend([0x01, length(host)]);
    fields.extend(host.bytes());
    fields
}

/// A frame that has been received.
#[derive(Debug)]
pub struct Frame {
    /// Its kind.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Connects for frames as they are, and sends the [start](HTTP2_START).
///
/// # Errors
///
/// No process listens.
pub fn connect_raw(address: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(3 * DEADLINE))?;
    stream.set_write_timeout(Some(3 * DEADLINE))?;
    stream.write_all(HTTP2_START)?;
    Ok(stream)
}

/// Reads a frame.
///
/// # Errors
///
/// The connection has ended, or nothing comes.
pub fn read_frame(stream: &mut TcpStream) -> io::Result<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [a, b, c, kind, flags, d, e, f, g] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    stream.read_exact(&mut payload)?;
    Ok(Frame { kind, flags, stream: u32::from_be_bytes([d, e, f, g]), payload })
}
