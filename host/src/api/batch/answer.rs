//! The answer of a batch: put together at once where it is short; else a stream of pieces that are made as the client takes
//! them, so that no answer is in memory as a whole, however much JSON adds to it.

use bytes::Bytes;
use std::task::{Context, Poll};
use std::vec;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rmp::encode::{write_array_len, write_bin_len, write_map_len, write_str, write_uint};
use serde::Serialize;
use serde::ser::Serializer;

use super::Format;
use crate::http::{Body, Response, Stream};
use vkog_engine::{ExtraHeaders, Outcome};
use vkog_store::Entry;

/// A piece ends after this many bytes.
const PIECE: usize = 64 << 10;
/// How many bytes of a value are encoded at once. Whole groups of three, so that base64 needs no padding in between.
const PART: usize = 24 << 10;

/// The answer in one piece.
pub(super) fn whole(done: &[(Outcome, ExtraHeaders)], format: Format) -> Response {
    let done: Vec<Done<'_>> = done.iter().map(|done| Done::new(done, format)).collect();
    let body = match format {
        Format::Json => {
            let mut body = serde_json::to_vec(&done).unwrap_or_default();
            body.push(b'\n');
            body
        }
        Format::MessagePack => rmp_serde::to_vec_named(&done).unwrap_or_default(),
    };
    described(Response::new(200, body), format)
}

/// The answer as a stream. Looks through all values once, so that this is not for an event loop.
pub(super) fn streamed(done: Vec<(Outcome, ExtraHeaders)>, format: Format) -> Response {
    let mut reply = described(Response::new(200, &b""[..]), format);
    reply.body = Body::Stream(Box::new(Pieces::new(done, format)));
    reply
}

fn described(reply: Response, format: Format) -> Response {
    let content_type = match format {
        Format::Json => "application/json",
        Format::MessagePack => "application/msgpack",
    };
    reply.with_header("Content-Type", content_type).inert()
}

/// What an operation did.
#[derive(Serialize)]
struct Done<'a> {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Value<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty", serialize_with = "map")]
    headers: &'a [(String, String)],
}

/// A value that goes out.
enum Value<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => to.serialize_str(text),
            Self::Bytes(bytes) => to.serialize_bytes(bytes),
        }
    }
}

fn map<S: Serializer>(fields: &[(String, String)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(fields.iter().map(|(name, value)| (name, value)))
}

impl<'a> Done<'a> {
    fn new((answer, headers): &'a (Outcome, ExtraHeaders), format: Format) -> Self {
        let mut done = Self { status: 200, revision: None, content_type: None, value: None, base64: None, headers };
        match answer {
            Outcome::Found(entry) => {
                (done.revision, done.content_type) = (Some(entry.revision()), Some(entry.content_type()));
                match format {
                    Format::MessagePack => done.value = Some(Value::Bytes(entry.value())),
                    Format::Json => match str::from_utf8(entry.value()) {
                        Ok(text) => done.value = Some(Value::Text(text)),
                        Err(_) => done.base64 = Some(BASE64.encode(entry.value())),
                    },
                }
            }
            Outcome::Written(revision) | Outcome::Removed(revision) => done.revision = Some(*revision),
            // A get found nothing. Whatever else is not done, the whole batch is not.
            _ => done.status = 404,
        }
        done
    }
}

/// Header fields as a map.
#[derive(Serialize)]
#[serde(transparent)]
struct Fields<'a>(#[serde(serialize_with = "map")] &'a [(String, String)]);

/// How a value is written.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Encoding {
    Text,
    Base64,
    Raw,
}

/// A value of which a part has been written, at least none.
struct Open {
    entry: Entry,
    added: ExtraHeaders,
    encoding: Encoding,
    at: usize,
}

/// The pieces of an answer.
struct Pieces {
    format: Format,
    rest: vec::IntoIter<(Outcome, ExtraHeaders, Encoding)>,
    open: Option<Open>,
    begun: bool,
    /// Whether something has been written that a comma follows.
    separates: bool,
    ended: bool,
}

impl Pieces {
    fn new(done: Vec<(Outcome, ExtraHeaders)>, format: Format) -> Self {
        let encoding = |answer: &Outcome| match (format, answer) {
            (Format::Json, Outcome::Found(entry)) if str::from_utf8(entry.value()).is_ok() => Encoding::Text,
            (Format::Json, _) => Encoding::Base64,
            (Format::MessagePack, _) => Encoding::Raw,
        };
        let with_encoding = |(answer, added)| {
            let encoding = encoding(&answer);
            (answer, added, encoding)
        };
        let rest = done.into_iter().map(with_encoding).collect::<Vec<_>>().into_iter();
        Self { format, rest, open: None, begun: false, separates: false, ended: false }
    }

    /// Adds a little to a piece.
    fn put(&mut self, piece: &mut Vec<u8>) {
        if !self.begun {
            self.begun = true;
            match self.format {
                Format::Json => piece.push(b'['),
                // Writing to a vector does not fail, here as below.
                Format::MessagePack => _ = write_array_len(piece, self.rest.len() as u32),
            }
        }
        match self.open.take() {
            Some(mut open) => {
                if open.put_part(piece) {
                    put_end(piece, &open.added, self.format);
                } else {
                    self.open = Some(open);
                }
            }
            None => match self.rest.next() {
                Some((answer, added, encoding)) => {
                    if self.format == Format::Json && std::mem::replace(&mut self.separates, true) {
                        piece.push(b',');
                    }
                    put_begin(piece, &answer, &added, encoding);
                    match answer {
                        Outcome::Found(entry) => self.open = Some(Open { entry, added, encoding, at: 0 }),
                        _ => put_end(piece, &added, self.format),
                    }
                }
                None => {
                    if self.format == Format::Json {
                        piece.extend_from_slice(b"]\n");
                    }
                    self.ended = true;
                }
            },
        }
    }
}

impl Stream for Pieces {
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut piece = Vec::with_capacity(PIECE + 2 * PART);
        while !self.ended && piece.len() < PIECE {
            self.put(&mut piece);
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

/// Writes what comes before a value, or all but the header fields where there is none.
fn put_begin(piece: &mut Vec<u8>, answer: &Outcome, added: &ExtraHeaders, encoding: Encoding) {
    let mut done = Done { status: 200, revision: None, content_type: None, value: None, base64: None, headers: &[] };
    let mut value_len = None;
    match answer {
        Outcome::Found(entry) => {
            (done.revision, done.content_type) = (Some(entry.revision()), Some(entry.content_type()));
            value_len = Some(entry.value().len());
        }
        Outcome::Written(revision) | Outcome::Removed(revision) => done.revision = Some(*revision),
        _ => done.status = 404,
    }
    if encoding == Encoding::Raw {
        let fields = [done.revision.is_some(), done.content_type.is_some(), value_len.is_some(), !added.is_empty()];
        let count = 1 + fields.into_iter().map(u32::from).sum::<u32>();
        let _ = write_map_len(piece, count).and_then(|_| write_str(piece, "status"));
        let _ = write_uint(piece, done.status.into());
        if let Some(revision) = done.revision {
            let _ = write_str(piece, "revision").and_then(|()| write_uint(piece, revision).map(drop));
        }
        if let Some(content_type) = done.content_type {
            let _ = write_str(piece, "content_type").and_then(|()| write_str(piece, content_type));
        }
        if let Some(len) = value_len {
            let _ = write_str(piece, "value").and_then(|()| write_bin_len(piece, len as u32).map(drop));
        }
        return;
    }
    let _ = serde_json::to_writer(&mut *piece, &done);
    // The object goes on.
    piece.pop();
    if value_len.is_some() {
        let name: &[u8] = if encoding == Encoding::Text { b",\"value\":\"" } else { b",\"base64\":\"" };
        piece.extend_from_slice(name);
    }
}

impl Open {
    /// Writes the next part of the value, and says whether it was the last.
    fn put_part(&mut self, piece: &mut Vec<u8>) -> bool {
        let rest = &self.entry.value()[self.at..];
        let mut part = &rest[..rest.len().min(PART)];
        match self.encoding {
            Encoding::Raw => piece.extend_from_slice(part),
            Encoding::Base64 => piece.extend_from_slice(BASE64.encode(part).as_bytes()),
            Encoding::Text => {
                // What a part cuts in two belongs to the next one.
                let text = str::from_utf8(part).or_else(|cut| str::from_utf8(&part[..cut.valid_up_to()]));
                let text = text.unwrap_or_default();
                part = text.as_bytes();
                let at = piece.len();
                let _ = serde_json::to_writer(&mut *piece, text);
                // Without the quotation marks, which are around the whole.
                piece.remove(at);
                piece.pop();
            }
        }
        self.at += part.len();
        let is_last = self.at == self.entry.value().len();
        if is_last && self.encoding != Encoding::Raw {
            piece.push(b'"');
        }
        is_last
    }
}

/// Writes what comes after a value.
fn put_end(piece: &mut Vec<u8>, added: &ExtraHeaders, format: Format) {
    let fields = Fields(added);
    match format {
        Format::Json => {
            if !added.is_empty() {
                piece.extend_from_slice(b",\"headers\":");
                let _ = serde_json::to_writer(&mut *piece, &fields);
            }
            piece.push(b'}');
        }
        Format::MessagePack if !added.is_empty() => {
            let _ = write_str(piece, "headers");
            let _ = rmp_serde::encode::write_named(piece, &fields);
        }
        Format::MessagePack => {}
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
    fn a_stream_has_the_bytes_of_an_answer_in_one_piece() {
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
