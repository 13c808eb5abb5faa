//! Encodes the response to a batch: a short one in one piece, a long one as a stream of pieces that are made as the client
//! reads, so that no response is in memory as a whole, however much JSON escaping adds to it.

use std::task::{Context, Poll};
use std::vec;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use rmp::encode::{write_array_len, write_bin_len};
use serde::Serialize;
use serde::ser::Serializer;

use super::format::Format;
use crate::http::{Body, Response, Stream};
use vkog_engine::{ExtraHeaders, Outcome};
use vkog_store::Entry;

/// The length after which a piece ends, in bytes.
const PIECE: usize = 64 << 10;
/// How much of a value is encoded at once, in bytes. A multiple of three, so that base64 needs no padding in between.
const PART: usize = 24 << 10;

/// Encodes the response in one piece.
pub(super) fn whole(done: &[(Outcome, ExtraHeaders)], format: Format) -> Response {
    let results: Vec<_> = done.iter().map(|done| OperationResult::whole(done, format)).collect();
    let mut body = Vec::new();
    put(&mut body, &results, format);
    if format == Format::Json {
        body.push(b'\n');
    }
    Response::new(200, body).with_header("Content-Type", format.media_type()).inert()
}

/// Encodes the response as a stream. Reads all values once, so it must not run on an event loop.
pub(super) fn streamed(done: Vec<(Outcome, ExtraHeaders)>, format: Format) -> Response {
    let mut reply = Response::new(200, &b""[..]).with_header("Content-Type", format.media_type()).inert();
    reply.body = Body::Stream(Box::new(Results::new(done, format)));
    reply
}

/// Appends a document. Writing to memory does not fail, nor do the types of this file.
fn put(into: &mut Vec<u8>, document: &impl Serialize, format: Format) {
    match format {
        Format::Json => _ = serde_json::to_writer(into, document),
        Format::MessagePack => _ = rmp_serde::encode::write_named(into, document),
    }
}

/// The result of an operation.
#[derive(Serialize)]
struct OperationResult<'a> {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "map")]
    headers: &'a [(String, String)],
    // One of the last two fields is the value, before which a stream cuts the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

/// A value as text or as bytes.
#[derive(Serialize)]
#[serde(untagged)]
enum Value<'a> {
    Text(&'a str),
    Bytes(#[serde(serialize_with = "bytes")] &'a [u8]),
}

fn bytes<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bytes(bytes)
}

fn map<S: Serializer>(fields: &[(String, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(fields.iter().map(|(name, value)| (name, value)))
}

impl<'a> OperationResult<'a> {
    /// A result with its whole value.
    fn whole((answer, headers): &'a (Outcome, ExtraHeaders), format: Format) -> Self {
        match answer {
            Outcome::Found(entry) => Self::new(answer, headers).with(entry.value(), Encoding::of(entry, format)),
            _ => Self::new(answer, headers),
        }
    }

    /// A result without a value.
    fn new(answer: &'a Outcome, headers: &'a ExtraHeaders) -> Self {
        let mut result = Self { status: 200, revision: None, content_type: None, headers, value: None, base64: None };
        match answer {
            Outcome::Found(entry) => {
                (result.revision, result.content_type) = (Some(entry.revision()), Some(entry.content_type()));
            }
            Outcome::Written(revision) | Outcome::Removed(revision) => result.revision = Some(*revision),
            // A get found nothing. Every other failure fails the whole batch.
            _ => result.status = 404,
        }
        result
    }

    /// Adds a value.
    fn with(mut self, value: &'a [u8], encoding: Encoding) -> Self {
        match encoding {
            Encoding::Text => self.value = Some(Value::Text(str::from_utf8(value).unwrap_or_default())),
            Encoding::Base64 => self.base64 = Some(BASE64.encode(value)),
            Encoding::Raw => self.value = Some(Value::Bytes(value)),
        }
        self
    }
}

/// The encoding of a value.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Encoding {
    Text,
    Base64,
    Raw,
}

impl Encoding {
    fn of(entry: &Entry, format: Format) -> Self {
        match format {
            Format::MessagePack => Self::Raw,
            Format::Json if str::from_utf8(entry.value()).is_ok() => Self::Text,
            Format::Json => Self::Base64,
        }
    }
}

/// The results of a batch, encoded piece by piece.
struct Results {
    format: Format,
    rest: vec::IntoIter<(Outcome, ExtraHeaders, Encoding)>,
    /// A value of which a part may be written.
    open: Option<OpenValue>,
    started: bool,
    /// Whether a comma comes before the next result.
    separates: bool,
    ended: bool,
}

impl Results {
    fn new(done: Vec<(Outcome, ExtraHeaders)>, format: Format) -> Self {
        let with_encoding = |(answer, added)| {
            let encoding =
                if let Outcome::Found(entry) = &answer { Encoding::of(entry, format) } else { Encoding::Raw };
            (answer, added, encoding)
        };
        let rest = done.into_iter().map(with_encoding).collect::<Vec<_>>().into_iter();
        Self { format, rest, open: None, started: false, separates: false, ended: false }
    }

    /// Appends a result without its value, a part of a value, or the end.
    fn put_next(&mut self, piece: &mut Vec<u8>) {
        if !self.started {
            self.started = true;
            match self.format {
                Format::Json => piece.push(b'['),
                Format::MessagePack => _ = write_array_len(piece, self.rest.len() as u32),
            }
        }
        if let Some(open) = &mut self.open {
            if open.put_part(piece) {
                self.open = None;
            }
            return;
        }
        let Some((answer, added, encoding)) = self.rest.next() else {
            if self.format == Format::Json {
                piece.extend_from_slice(b"]\n");
            }
            self.ended = true;
            return;
        };
        if self.format == Format::Json && std::mem::replace(&mut self.separates, true) {
            piece.push(b',');
        }
        let result = OperationResult::new(&answer, &added);
        match answer {
            Outcome::Found(ref entry) => {
                put(piece, &result.with(&[], encoding), self.format);
                // The document ends with the empty value: "" and the brace in JSON, a type and a length in MessagePack.
                piece.truncate(piece.len() - 2);
                if encoding == Encoding::Raw {
                    let _ = write_bin_len(piece, entry.value().len() as u32);
                }
                self.open = Some(OpenValue { entry: entry.clone(), encoding, at: 0 });
            }
            _ => put(piece, &result, self.format),
        }
    }
}

impl Stream for Results {
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut piece = Vec::with_capacity(PIECE + 2 * PART);
        while !self.ended && piece.len() < PIECE {
            self.put_next(&mut piece);
        }
        Poll::Ready((!piece.is_empty()).then(|| piece.into()))
    }

    fn heartbeat(&mut self) -> Option<Bytes> {
        None
    }

    fn is_finite(&self) -> bool {
        true
    }
}

/// A value that is written part by part.
struct OpenValue {
    entry: Entry,
    encoding: Encoding,
    /// How much is written, in bytes.
    at: usize,
}

impl OpenValue {
    /// Appends the next part of the value. Returns whether it was the last.
    fn put_part(&mut self, piece: &mut Vec<u8>) -> bool {
        let rest = &self.entry.value()[self.at..];
        let mut part = &rest[..rest.len().min(PART)];
        match self.encoding {
            Encoding::Raw => piece.extend_from_slice(part),
            Encoding::Base64 => piece.extend_from_slice(BASE64.encode(part).as_bytes()),
            Encoding::Text => {
                // A character that the part cuts in two belongs to the next one.
                let text = str::from_utf8(part).or_else(|cut| str::from_utf8(&part[..cut.valid_up_to()]));
                let text = text.unwrap_or_default();
                part = text.as_bytes();
                let at = piece.len();
                put(piece, &text, Format::Json);
                // Without the quotation marks, which are around the whole.
                piece.remove(at);
                piece.pop();
            }
        }
        self.at += part.len();
        let is_last = self.at == self.entry.value().len();
        if is_last && self.encoding != Encoding::Raw {
            piece.extend_from_slice(b"\"}");
        }
        is_last
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use vkog_store::{DEFAULT_CONTENT_TYPE, NewEntry};

    fn found(value: &[u8], content_type: &str) -> (Outcome, ExtraHeaders) {
        let entry = Entry::new("key", &NewEntry { value, content_type, details: Vec::new() });
        (Outcome::Found(entry), Vec::new())
    }

    /// The whole stream, of which no piece is large.
    fn all(reply: Response) -> Vec<u8> {
        let Body::Stream(mut stream) = reply.body else { unreachable!("it is a stream") };
        let mut bytes = Vec::new();
        while let Poll::Ready(Some(piece)) = stream.poll(&mut Context::from_waker(Waker::noop())) {
            assert!(piece.len() < PIECE + 6 * PART + 1000, "a piece of {} bytes", piece.len());
            bytes.extend(piece);
        }
        bytes
    }

    #[test]
    fn a_stream_has_the_bytes_of_a_response_in_one_piece() {
        let text = "\u{e9}\u{1f600}\"\\\n".repeat(20_000);
        let binary: Vec<u8> = (0..200_000_u32).map(|number| (number % 251) as u8).collect();
        let fields = || vec![("X-Added".to_owned(), "by \"a\" plugin".to_owned())];
        let done = || {
            vec![
                (Outcome::Absent, Vec::new()),
                found(text.as_bytes(), "text/plain"),
                (Outcome::Written(7), fields()),
                found(&binary, DEFAULT_CONTENT_TYPE),
                (found(&text.as_bytes()[1..], "text/\"x\"").0, fields()),
                found(b"", "text/plain"),
                found(&[1; PART], "text/plain"),
                (Outcome::Removed(u64::MAX), Vec::new()),
            ]
        };
        for format in [Format::Json, Format::MessagePack] {
            let (whole, pieces) = (whole(&done(), format), all(streamed(done(), format)));
            assert!(whole.body.as_ref() == pieces, "{format:?}");
        }
        assert_eq!(all(streamed(Vec::new(), Format::Json)), b"[]\n");
    }
}
