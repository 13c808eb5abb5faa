//! Reads the body of a request.

use std::io::{self, Read};

use chunked_transfer::Decoder;

use crate::http::BodyLength;

/// The body of a request, without the bytes that follow it on the connection.
pub(super) enum BodyReader<'a> {
    /// tiny_http finds the end.
    Framed(&'a mut dyn Read),
    /// The reader returns everything on the connection.
    Known(io::Take<&'a mut dyn Read>),
    Chunked(Decoder<&'a mut dyn Read>),
}

impl<'a> BodyReader<'a> {
    /// Creates the reader of a body of which nothing has been read. A client that expects it gets `100 Continue`.
    pub(super) fn new(request: &'a mut tiny_http::Request, length: BodyLength) -> Self {
        let is_unframed = is_unframed(request);
        let reader = request.as_reader();
        match length {
            _ if !is_unframed => Self::Framed(reader),
            BodyLength::Known(length) => Self::Known(reader.take(length)),
            BodyLength::Chunked => Self::Chunked(Decoder::new(reader)),
        }
    }
}

impl Read for BodyReader<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Framed(reader) => reader.read(into),
                Self::Known(reader) => reader.read(into),
                Self::Chunked(reader) => reader.read(into),
            };
            // Linux interrupts a read with a timeout when the process continues after SIGSTOP.
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }
}

/// Whether tiny_http leaves the whole connection to the request: it does for `Connection: upgrade`. The server never switches
/// protocols, so the request has an ordinary body, and the next request follows it.
pub(super) fn is_unframed(request: &tiny_http::Request) -> bool {
    // The first field only, as tiny_http does.
    let connection = request.headers().iter().find(|header| header.field.equiv("Connection"));
    connection.is_some_and(|header| header.value.as_str().to_ascii_lowercase().contains("upgrade"))
}
