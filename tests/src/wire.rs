//! HTTP byte by byte, for requests that no client library would send, and for tests of a single connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::DEADLINE;
use crate::client::Reply;
use crate::process::Output;

/// A connection.
pub struct Wire {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    log: Output,
    last: String,
}

impl Wire {
    #[track_caller]
    pub(crate) fn connect(address: &str, log: &Output) -> Self {
        let stream = TcpStream::connect(address)
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}\n--- server log\n{}", log.text()));
        Self::over(stream, log)
    }

    /// Over a connection that the test has made.
    #[track_caller]
    pub(crate) fn over(stream: TcpStream, log: &Output) -> Self {
        let prepare = |stream: TcpStream| {
            stream.set_read_timeout(Some(DEADLINE))?;
            stream.set_write_timeout(Some(DEADLINE))?;
            stream.set_nodelay(true)?;
            let reader = BufReader::new(stream.try_clone()?);
            io::Result::Ok((stream, reader))
        };
        let (stream, reader) =
            prepare(stream).unwrap_or_else(|error| panic!("no connection: {error}\n--- server log\n{}", log.text()));
        Self { stream, reader, log: log.clone(), last: String::new() }
    }

    /// Sets a shorter timeout for replies than [`DEADLINE`].
    pub fn patience(self, patience: Duration) -> Self {
        self.stream.set_read_timeout(Some(patience)).expect("an open connection has a timeout");
        self
    }

    /// Sends raw bytes.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.last = bytes[..bytes.len().min(1000)].escape_ascii().to_string();
        if let Err(error) = self.try_send(bytes) {
            panic!("cannot send {}: {error}\n--- server log\n{}", self.last, self.log.text());
        }
        self
    }

    /// Sends raw bytes, although the server may have closed the connection.
    ///
    /// # Errors
    ///
    /// The server has closed the connection.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends one request with its body, and reads the reply.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Reply {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        self.send(bytes).reply()
    }

    /// Closes the sending side of the connection; replies can still be read.
    pub fn finish(&mut self) -> &mut Self {
        // It fails if the server has already closed the connection.
        let _ = self.stream.shutdown(Shutdown::Write);
        self
    }

    /// Waits until a reply comes, and reads its first line only.
    #[track_caller]
    pub fn begin_reply(&mut self) -> String {
        self.line().unwrap_or_else(|error| panic!("{} got no reply: {error}", self.last))
    }

    /// Reads up to the end of a line, of a body that has no length. The line has its line feed.
    #[track_caller]
    pub fn body_line(&mut self) -> String {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        assert!(read.is_ok_and(|length| length > 0), "{} ended\n--- server log\n{}", self.last, self.log.text());
        line
    }

    /// Reads one reply.
    #[track_caller]
    pub fn reply(&mut self) -> Reply {
        self.try_reply()
            .unwrap_or_else(|error| panic!("{} got no reply: {error}\n--- server log\n{}", self.last, self.log.text()))
    }

    /// Reads one reply, if one arrives.
    ///
    /// # Errors
    ///
    /// The connection was closed, or nothing came before the deadline.
    pub fn try_reply(&mut self) -> io::Result<Reply> {
        let mut reply = self.try_head()?;
        let status = reply.status;
        let headless = self.last.starts_with("HEAD ") || status == 204 || status == 304 || status < 200;
        if headless {
            return Ok(reply);
        }
        if reply.header("Transfer-Encoding").is_some() {
            reply.body = self.chunks()?;
        } else {
            let length = reply.header("Content-Length").and_then(|text| text.parse().ok());
            let length: usize = length.ok_or_else(|| io::Error::other(format!("no length of the body: {reply}")))?;
            reply.body = self.exactly(length)?;
        }
        Ok(reply)
    }

    /// Reads the head of a reply.
    ///
    /// # Errors
    ///
    /// As those of [`try_reply`](Self::try_reply).
    pub fn try_head(&mut self) -> io::Result<Reply> {
        let status_line = self.line()?;
        let status = status_line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5))
            .and_then(|digits| digits.parse::<u16>().ok())
            .ok_or_else(|| io::Error::other(format!("no status line: {status_line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(format!("no header: {line:?}")))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Reply { request: self.last.clone(), status, headers, body: Vec::new(), log: self.log.clone() })
    }

    /// Reads until the server closes the connection.
    ///
    /// # Errors
    ///
    /// The server did not close it before the timeout.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            // A connection with unread data ends with a reset.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(rest),
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::Error::other(format!("the connection ended after {line:?}"))),
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        Ok(body)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                return Ok(body);
            }
            body.extend(chunk);
        }
    }

    /// Reads a chunk of a body; the last one is empty.
    ///
    /// # Errors
    ///
    /// The connection was closed, or nothing came before the deadline.
    pub fn chunk(&mut self) -> io::Result<Vec<u8>> {
        let line = self.line()?;
        let size = usize::from_str_radix(&line, 16).map_err(|_| io::Error::other(format!("no size: {line:?}")))?;
        let chunk = self.exactly(size)?;
        self.line()?;
        Ok(chunk)
    }
}
