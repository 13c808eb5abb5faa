//! Scans the bytes that hyper reads for what hyper hides: it drops the fragment of a request target, of two equal
//! Content-Length fields it shows one, and of Content-Length beside Transfer-Encoding it shows Transfer-Encoding alone.
//!
//! The scanner follows the framing from message to message, so it sees pipelined requests too. It does not validate: hyper
//! and [`RequestHead::body_len`](crate::http::RequestHead::body_len) reject malformed messages, and a rejected message ends
//! the connection.

use std::collections::VecDeque;

use memchr::memchr;

use crate::http::{BodyFault, BodyLength};

/// Maximum number of buffered bytes of a line that is split across reads.
const PARTIAL_MAX: usize = 256;

/// The scanner of one connection.
#[derive(Default)]
pub(super) struct RequestScanner {
    state: State,
    /// The start and the last byte of a line whose end has not been read yet.
    partial: Vec<u8>,
    /// The head that is being read.
    head: ScannedHead,
    /// The complete heads whose requests hyper has not returned yet, oldest first.
    heads: VecDeque<ScannedHead>,
}

/// The next part of the connection.
#[derive(Default)]
enum State {
    #[default]
    RequestLine,
    Fields,
    /// This many bytes of a body.
    Body(u64),
    ChunkSize,
    /// This many bytes of a chunk and of the line end behind it.
    Chunk(u64),
    Trailers,
    /// A line that hyper may read differently: no later head is reported.
    Lost,
}

/// The fields of a request head that the scanner needs.
#[derive(Default)]
pub(super) struct ScannedHead {
    /// Whether the request target has a fragment.
    pub(super) has_fragment: bool,
    transfer_encodings: u32,
    content_lengths: u32,
    /// The value of the last Content-Length.
    length: u64,
}

impl RequestScanner {
    /// Scans the next bytes of the connection.
    pub(super) fn scan(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Body(left) => {
                    bytes = skip(bytes, left);
                    if *left == 0 {
                        self.state = State::RequestLine;
                    }
                }
                State::Chunk(left) => {
                    bytes = skip(bytes, left);
                    if *left == 0 {
                        self.state = State::ChunkSize;
                    }
                }
                State::Lost => return,
                State::RequestLine | State::Fields | State::ChunkSize | State::Trailers => {
                    let Some(end) = memchr(b'\n', bytes) else { return self.keep(bytes) };
                    let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
                    if self.partial.is_empty() {
                        self.end_line(line);
                    } else {
                        self.keep(line);
                        let mut whole = std::mem::take(&mut self.partial);
                        self.end_line(&whole);
                        whole.clear();
                        self.partial = whole;
                    }
                    bytes = rest;
                }
            }
        }
    }

    /// Removes the oldest head and returns it. Returns `None` where the scanner lost track.
    pub(super) fn next_head(&mut self) -> Option<ScannedHead> {
        self.heads.pop_front()
    }

    /// Keeps a part of a line whose end comes with a later read. A long line loses its middle, where nothing is looked for
    /// but a fragment.
    fn keep(&mut self, part: &[u8]) {
        if let State::RequestLine = self.state {
            self.head.has_fragment |= part.contains(&b'#');
        }
        let room = PARTIAL_MAX - self.partial.len();
        self.partial.extend_from_slice(&part[..part.len().min(room)]);
        if part.len() > room
            && let (Some(kept), Some(last)) = (self.partial.last_mut(), part.last())
        {
            *kept = *last;
        }
    }

    fn end_line(&mut self, line: &[u8]) {
        let stripped = line.strip_suffix(b"\r");
        match self.state {
            // Empty lines before a request mean nothing.
            State::RequestLine if matches!(line, b"" | b"\r") => {}
            State::RequestLine => {
                self.head.has_fragment |= memchr(b'#', line).is_some();
                self.state = State::Fields;
            }
            State::Fields => match line {
                b"" | b"\r" => self.end_head(),
                [b'c' | b'C', ..] => {
                    if let Some(value) = value_of("content-length:", line) {
                        self.head.content_lengths += 1;
                        let digits = value.iter().filter(|byte| byte.is_ascii_digit());
                        let digits = digits.map(|digit| u64::from(digit - b'0'));
                        self.head.length =
                            digits.fold(0, |value, digit| value.saturating_mul(10).saturating_add(digit));
                    }
                }
                [b't' | b'T', ..] => {
                    self.head.transfer_encodings += u32::from(value_of("transfer-encoding:", line).is_some());
                }
                _ => {}
            },
            // hyper rejects a bare line feed behind a chunk size, and takes one in a trailer for a part of its value.
            State::ChunkSize | State::Trailers if stripped.is_none() => self.state = State::Lost,
            State::ChunkSize => {
                let digits = line.iter().map_while(|&byte| char::from(byte).to_digit(16)).map(u64::from);
                let size = digits.fold(0u64, |size, digit| size.saturating_mul(16).saturating_add(digit));
                self.state = if size == 0 { State::Trailers } else { State::Chunk(size.saturating_add(2)) };
            }
            State::Trailers if stripped == Some(b"") => self.state = State::RequestLine,
            State::Trailers | State::Body(_) | State::Chunk(_) | State::Lost => {}
        }
    }

    fn end_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.state = match head.body_len() {
            BodyLength::Known(0) => State::RequestLine,
            BodyLength::Known(length) => State::Body(length),
            BodyLength::Chunked => State::ChunkSize,
        };
        self.heads.push_back(head);
    }
}

impl ScannedHead {
    fn body_len(&self) -> BodyLength {
        if self.transfer_encodings > 0 { BodyLength::Chunked } else { BodyLength::Known(self.length) }
    }

    /// Checks that the head declares the length of its body once, and as hyper shows it.
    ///
    /// # Errors
    ///
    /// Another reader could find the end of the body elsewhere.
    pub(super) fn check(&self, shown: BodyLength) -> Result<(), BodyFault> {
        match (self.transfer_encodings, self.content_lengths) {
            (1.., 1..) => Err(BodyFault::TwoLengths),
            (0, 2..) => Err(BodyFault::BadLength),
            _ if self.body_len() != shown => Err(BodyFault::BadLength),
            _ => Ok(()),
        }
    }
}

/// Skips bytes of a body of which this many are left.
fn skip<'a>(bytes: &'a [u8], left: &mut u64) -> &'a [u8] {
    let skipped = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *left -= skipped as u64;
    &bytes[skipped..]
}

/// Returns the value of a header field, if the line is one with this name and colon.
fn value_of<'a>(name: &str, line: &'a [u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of heads that are found, and which have a fragment or an ambiguous length.
    fn found(reads: &[&[u8]]) -> (Vec<bool>, Vec<Option<BodyFault>>) {
        let mut scanner = RequestScanner::default();
        reads.iter().for_each(|read| scanner.scan(read));
        let heads = std::iter::from_fn(|| scanner.next_head());
        heads.map(|head| (head.has_fragment, head.check(head.body_len()).err())).unzip()
    }

    /// Asserts that the same is found however the bytes are split into two reads, and byte by byte.
    #[track_caller]
    fn finds(text: &str, fragments: &[bool], faults: &[Option<BodyFault>]) {
        let expected = (fragments.to_vec(), faults.to_vec());
        let bytes = text.as_bytes();
        for at in 0..=bytes.len() {
            assert_eq!(found(&[&bytes[..at], &bytes[at..]]), expected, "{text:?} split at {at}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(found(&single), expected, "{text:?} byte by byte");
    }

    #[test]
    fn two_fields_about_the_end_of_a_body_are_found_however_the_head_is_split() {
        for (fields, fault) in [
            ("Content-Length: 5\r\n", None),
            ("Transfer-Encoding: chunked\r\n", None),
            ("X-Content-Length: 5\r\nTransfer-Encodings: x\r\nContent: 1\r\nTransfer-Encoding: chunked\r\n", None),
            ("content-length:5\r\ntransfer-encoding:chunked\r\n", Some(BodyFault::TwoLengths)),
            ("TRANSFER-ENCODING: chunked\r\nA: b\r\nCONTENT-LENGTH: 5\r\n", Some(BodyFault::TwoLengths)),
            ("Content-Length: 5\nContent-Length: 5\n", Some(BodyFault::BadLength)),
        ] {
            finds(&format!("\r\n\nPUT /k/a HTTP/1.1\r\nHost: a\r\n{fields}\r\n"), &[false], &[fault]);
        }
    }

    #[test]
    fn pipelined_heads_are_found_behind_every_kind_of_body() {
        let hidden = "GET /hidden#x HTTP/1.1\r\n\r\n";
        let length = hidden.len();
        let text = format!(
            "GET /a HTTP/1.1\r\nX: #\r\n\r\n\
             PUT /b HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{hidden}\
             DELETE /c#d HTTP/1.1\n\n\
             PUT /e HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
             {length:X};name=\"value\"\r\n{hidden}\r\n1\r\n#\r\n0\r\nTrailer: #\r\n\r\n\
             PUT /f?# HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"
        );
        let faults = [None, None, None, None, Some(BodyFault::BadLength)];
        finds(&text, &[false, false, true, false, true], &faults);
    }

    #[test]
    fn a_long_line_is_scanned_however_it_is_split() {
        let long = "x".repeat(2 * PARTIAL_MAX);
        let text = format!(
            "PUT /{long}#{long} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
             1;{long}\r\nx\r\n0\r\nTrailer: {long}\r\n\r\n\
             PUT /{long} HTTP/1.1\r\nX-Long: {long}\r\n\r\n"
        );
        finds(&text, &[true, false], &[None, None]);
    }

    #[test]
    fn no_head_is_found_behind_a_trailer_that_hyper_reads_differently() {
        let start = "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for rest in ["0\r\nA: b\n\r\nGET / HTTP/1.1\r\n\r\n", "0\n\r\nGET / HTTP/1.1\r\n\r\n"] {
            finds(&format!("{start}{rest}"), &[false], &[None]);
        }
    }

    #[test]
    fn a_length_other_than_the_one_that_hyper_shows_is_refused() {
        let mut scanner = RequestScanner::default();
        scanner.scan(b"PUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\n");
        let head = scanner.next_head().expect("it is complete");
        assert_eq!(head.check(BodyLength::Known(5)), Ok(()));
        assert_eq!(head.check(BodyLength::Known(6)), Err(BodyFault::BadLength));
        assert_eq!(head.check(BodyLength::Chunked), Err(BodyFault::BadLength));
    }
}
