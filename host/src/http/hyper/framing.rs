//! Which fields of a head say where its body ends, noted from the bytes: of a request that has both Transfer-Encoding and
//! Content-Length hyper shows the first alone, and of two equal Content-Lengths one.

use smallvec::SmallVec;

use crate::http::BodyFault;

/// The longest start of a line that is looked at.
const START: usize = "transfer-encoding:".len();

/// The fields of the head that is being received. A head that begins behind another request in the same read is not looked
/// at: the client has sent it ahead.
pub(super) struct Framing {
    /// Whether a head is being received, and not a body, or what is behind the head.
    active: bool,
    begun: bool,
    /// The start of the line that has not ended.
    line: SmallVec<[u8; START]>,
    encodings: u32,
    lengths: u32,
}

impl Default for Framing {
    fn default() -> Self {
        Self { active: true, begun: false, line: SmallVec::new(), encodings: 0, lengths: 0 }
    }
}

impl Framing {
    /// Notes bytes that have arrived.
    pub(super) fn note(&mut self, mut bytes: &[u8]) {
        while self.active && !bytes.is_empty() {
            let (line, rest, ends) = match memchr::memchr(b'\n', bytes) {
                Some(at) => (&bytes[..at], &bytes[at + 1..], true),
                None => (bytes, &[][..], false),
            };
            self.line.extend_from_slice(&line[..line.len().min(START - self.line.len())]);
            if ends {
                self.line_ends();
            }
            bytes = rest;
        }
    }

    fn line_ends(&mut self) {
        let is = |name: &[u8]| self.line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
        if is(b"transfer-encoding:") {
            self.encodings += 1;
        } else if is(b"content-length:") {
            self.lengths += 1;
        } else if matches!(&self.line[..], b"" | b"\r") {
            // Empty lines before a request are nothing.
            self.active = !self.begun;
        }
        self.begun |= !matches!(&self.line[..], b"" | b"\r");
        self.line.clear();
    }

    /// Ends the head. Nothing is noted until [`begin`](Self::begin).
    ///
    /// # Errors
    ///
    /// More than one field says where the body ends.
    pub(super) fn end(&mut self) -> Result<(), BodyFault> {
        self.active = false;
        match (self.encodings, self.lengths) {
            (0, 0 | 1) | (_, 0) => Ok(()),
            (0, _) => Err(BodyFault::BadLength),
            _ => Err(BodyFault::TwoLengths),
        }
    }

    /// Another head begins.
    pub(super) fn begin(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(pieces: &[&[u8]]) -> Option<BodyFault> {
        let mut framing = Framing::default();
        pieces.iter().for_each(|piece| framing.note(piece));
        framing.end().err()
    }

    #[test]
    fn two_fields_about_the_end_of_a_body_are_found_however_the_head_arrives() {
        let start = "PUT / HTTP/1.1\r\nHost: a\r\n";
        for (fields, expected) in [
            ("Content-Length: 5\r\n", None),
            ("Transfer-Encoding: chunked\r\n", None),
            ("X-Content-Length: 5\r\nTransfer-Encodings: x\r\nTransfer-Encoding: chunked\r\n", None),
            ("content-length:5\r\ntransfer-encoding:chunked\r\n", Some(BodyFault::TwoLengths)),
            ("TRANSFER-ENCODING: chunked\r\nA: b\r\nCONTENT-LENGTH: 5\r\n", Some(BodyFault::TwoLengths)),
            ("Content-Length: 5\nContent-Length: 5\n", Some(BodyFault::BadLength)),
        ] {
            let head = format!("{start}{fields}\r\n");
            let head = head.as_bytes();
            for at in 0..head.len() {
                assert_eq!(fault(&[&head[..at], &head[at..]]), expected, "{fields} in two at {at}");
            }
            let bytes: Vec<&[u8]> = head.chunks(1).collect();
            assert_eq!(fault(&bytes), expected, "{fields} byte by byte");
        }
    }

    #[test]
    fn what_follows_the_head_is_none_of_its_fields() {
        let head = b"\r\n\nPUT / HTTP/1.1\r\nContent-Length: 5\r\n\r\nContent-Length: 5\r\n";
        assert_eq!(fault(&[head, b"Transfer-Encoding: chunked\r\n"]), None);
    }
}
