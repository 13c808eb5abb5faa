//! An export of a server as lines of JSON: a start line, a line for each entry or removal, and an end line.
//!
//! The end line has the number of lines and the checksum of everything before it, so that an export that was cut off is never
//! taken for a complete one. Empty lines, which keep a slow connection alive, count for nothing.

use std::io::{self, Write};

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

use vkog_store::{DEFAULT_CONTENT_TYPE, Entry};

/// The version of the format.
pub const FORMAT: u32 = 1;
/// The maximum length of a start line or an end line, in bytes.
const FRAME_MAX: usize = 4096;

/// A line that is no record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Frame {
    Start(Start),
    End(End),
    Failed(Failed),
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The version of the format.
    pub format: u32,
    /// The id of the store, which copies of its files share.
    pub store: String,
    /// The export has all changes up to this revision, and no later one.
    pub revision: u64,
    /// The timeline that assigned that revision.
    pub timeline: String,
    /// An incremental export has only the changes after this revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The timeline that assigned the revision `since`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_timeline: Option<String>,
    /// The key prefix of the client, which the keys of the lines do not have; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key_prefix: String,
}

impl Start {
    /// Whether an incremental export continues the state at the end of another export of the same store. Revisions alone do not
    /// show that, because copies of a store can assign the same ones.
    pub fn continues(&self, before: &Self) -> bool {
        // All changes of an incremental export are of one opening. So it passes through each state of that, and through no
        // other one but its first.
        self.timeline == before.timeline
            || self.since == Some(before.revision) && self.since_timeline.as_ref() == Some(&before.timeline)
    }
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    /// The number of lines between the start line and this one.
    lines: u64,
    /// The CRC-32C of all lines before this one.
    crc32c: u32,
}

/// The last line of an export that the server could not complete.
#[derive(Debug, Serialize, Deserialize)]
struct Failed {
    reason: String,
}

/// An entry as a line.
#[derive(Serialize)]
pub struct EntryLine<'a> {
    key: &'a str,
    /// A value that is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    /// A value that is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<Base64<'a>>,
    /// The media type, if it is not the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    revision: u64,
    /// The details that plugins store with the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    details_base64: Option<Base64<'a>>,
}

/// A removal as a line of an incremental export.
#[derive(Serialize)]
pub struct RemovalLine<'a> {
    op: Op,
    key: &'a str,
    revision: u64,
}

/// The operation of a line that is no entry.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// The entry was removed.
    Delete,
}

/// Bytes that are encoded while they are written, without a copy in memory.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

impl<'a> From<&'a Entry> for EntryLine<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self::new(entry.key(), entry)
    }
}

impl<'a> EntryLine<'a> {
    /// The entry under another key.
    pub fn new(key: &'a str, entry: &'a Entry) -> Self {
        let text = str::from_utf8(entry.value()).ok();
        Self {
            key,
            value: text,
            value_base64: if text.is_none() { Some(Base64(entry.value())) } else { None },
            content_type: Some(entry.content_type()).filter(|name| *name != DEFAULT_CONTENT_TYPE),
            revision: entry.revision(),
            details_base64: Some(entry.details()).filter(|details| !details.is_empty()).map(Base64),
        }
    }
}

impl<'a> RemovalLine<'a> {
    /// The removal of a key.
    pub fn new(key: &'a str, revision: u64) -> Self {
        Self { op: Op::Delete, key, revision }
    }
}

/// Writes an export. Without [`finish`](Self::finish) it counts as cut off.
pub struct Writer<W> {
    out: W,
    /// A part of the line that is being written. The serializer writes every name and every comma on its own.
    part: Vec<u8>,
    crc: u32,
    lines: u64,
}

/// The length of a part of a line, in bytes.
const PART: usize = 16 << 10;

impl<W: Write> Writer<W> {
    /// Writes the start line.
    ///
    /// # Errors
    ///
    /// It cannot be written. The same holds for the other functions.
    pub fn new(out: W, start: Start) -> io::Result<Self> {
        let mut writer = Self { out, part: Vec::with_capacity(2 * PART), crc: 0, lines: 0 };
        writer.line(&Frame::Start(start))?;
        Ok(writer)
    }

    /// Writes an entry or a removal.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn record(&mut self, record: &impl Serialize) -> io::Result<()> {
        self.lines += 1;
        self.line(record)
    }

    /// Writes the end line.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.line(&Frame::End(End { lines: self.lines, crc32c: self.crc }))?;
        self.out.flush()
    }

    /// Writes the line of an export that cannot be completed.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn fail(mut self, reason: impl Into<String>) -> io::Result<()> {
        self.line(&Frame::Failed(Failed { reason: reason.into() }))?;
        self.out.flush()
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *self, line)?;
        self.part.push(b'\n');
        self.flush()
    }
}

/// Counts the bytes of the lines into the checksum.
impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(PART)];
        self.part.extend_from_slice(taken);
        if self.part.len() >= PART {
            self.flush()?;
        }
        Ok(taken.len())
    }

    /// Passes the part of the line on.
    fn flush(&mut self) -> io::Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, &self.part);
        self.out.write_all(&self.part)?;
        self.part.clear();
        Ok(())
    }
}

/// Why bytes are not a complete export.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Incomplete {
    /// The first line is no start line.
    #[error("it is not a backup")]
    NotABackup,
    /// The version of the format is unknown.
    #[error("it has format {0}, this program reads format {FORMAT}")]
    Format(u32),
    /// The end line is missing.
    #[error("it is cut off after line {0}")]
    CutOff(u64),
    /// The server has written why it could not complete the export.
    #[error("the server could not complete it: {0}")]
    Failed(String),
    /// The end line does not fit the lines before it.
    #[error("it is damaged: its end line does not fit the {0} lines before it")]
    Damaged(u64),
    /// Something follows the end line.
    #[error("it is damaged: something follows its end line")]
    Continued,
}

/// Verifies an export piece by piece.
#[derive(Default)]
pub struct Verifier {
    start: Option<Start>,
    /// The checksum and the number of all complete lines.
    crc: u32,
    lines: u64,
    /// The checksum of these and of the current line.
    line_crc: u32,
    /// The current line, up to [`FRAME_MAX`] bytes of it.
    line: Vec<u8>,
    ended: bool,
}

impl Verifier {
    /// Reads the next bytes.
    ///
    /// # Errors
    ///
    /// They show that the export is not complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), Incomplete> {
        while !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes).map(|at| at + 1);
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            self.line.extend_from_slice(&part[..part.len().min(FRAME_MAX.saturating_sub(self.line.len()))]);
            self.line_crc = crc32c::crc32c_append(self.line_crc, part);
            if end.is_some() {
                self.end_line()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), Incomplete> {
        let (line, line_crc) = (std::mem::take(&mut self.line), self.line_crc);
        self.line_crc = self.crc;
        if line == b"\n" {
            return Ok(());
        }
        if self.ended {
            return Err(Incomplete::Continued);
        }
        match (frame(&line), &self.start) {
            (Some(Frame::Start(start)), None) if start.format == FORMAT => self.start = Some(start),
            (Some(Frame::Start(start)), None) => return Err(Incomplete::Format(start.format)),
            (_, None) => return Err(Incomplete::NotABackup),
            (None, Some(_)) => self.lines += 1,
            (Some(Frame::End(End { lines, crc32c })), Some(_)) => {
                if (lines, crc32c) != (self.lines, self.crc) {
                    return Err(Incomplete::Damaged(self.lines));
                }
                self.ended = true;
                return Ok(());
            }
            (Some(Frame::Failed(Failed { reason })), Some(_)) => return Err(Incomplete::Failed(reason)),
            (Some(Frame::Start(_)), Some(_)) => return Err(Incomplete::Continued),
        }
        (self.crc, self.line_crc) = (line_crc, line_crc);
        Ok(())
    }

    /// Returns the start line, once it has been read.
    pub fn start(&self) -> Option<&Start> {
        self.start.as_ref()
    }

    /// Returns the number of entries and removals so far.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Returns the start line of the export, which is complete.
    ///
    /// # Errors
    ///
    /// It is not complete.
    pub fn finish(self) -> Result<Start, Incomplete> {
        match self.start {
            Some(start) if self.ended && self.line.is_empty() => Ok(start),
            Some(_) if self.ended => Err(Incomplete::Continued),
            Some(_) => Err(Incomplete::CutOff(self.lines)),
            None => Err(Incomplete::NotABackup),
        }
    }
}

/// The first bytes of an export.
pub const START: &[u8] = br#"{"start":"#;

/// Whether a line is a start line, an end line or that of a failure.
pub fn is_frame(line: &[u8]) -> bool {
    [START, br#"{"end":"#, br#"{"failed":"#].iter().any(|start| line.starts_with(start))
}

fn frame(line: &[u8]) -> Option<Frame> {
    if is_frame(line) { serde_json::from_slice(line).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vkog_store::NewEntry;

    fn export() -> Vec<u8> {
        let start = Start {
            format: FORMAT,
            store: "1f".to_owned(),
            revision: 9,
            timeline: "2e".to_owned(),
            since: Some(5),
            since_timeline: None,
            key_prefix: String::new(),
        };
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out, start).expect("memory");
        let entry = NewEntry { value: b"\xff\n", content_type: "text/plain", details: vec![0x80] };
        writer.record(&EntryLine::from(&Entry::new("a", &entry))).expect("memory");
        writer.record(&RemovalLine::new("b\n", 9)).expect("memory");
        writer.finish().expect("memory");
        out
    }

    fn verify(bytes: &[u8], piece: usize) -> Result<Start, Incomplete> {
        let mut verifier = Verifier::default();
        bytes.chunks(piece).try_for_each(|piece| verifier.push(piece))?;
        verifier.finish()
    }

    #[test]
    fn an_export_is_complete_only_as_a_whole() {
        let whole = export();
        for piece in [1, 7, whole.len()] {
            assert_eq!(verify(&whole, piece).map(|start| (start.revision, start.since)), Ok((9, Some(5))));
        }
        for end in 0..whole.len() {
            assert!(verify(&whole[..end], 64).is_err(), "it is cut off at byte {end}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(verify(&damaged, 64).is_err(), "byte {at} is another one");
        }
        let twice = [whole.as_slice(), &whole].concat();
        assert_eq!(verify(&twice, 64), Err(Incomplete::Continued));
    }

    #[test]
    fn empty_lines_count_for_nothing() {
        let whole = String::from_utf8(export()).expect("JSON");
        assert!(verify(whole.replace('\n', "\n\n\n").as_bytes(), 5).is_ok());
    }

    #[test]
    fn an_incremental_export_continues_states_on_its_way_only() {
        let start = |timeline: &str, revision, since: Option<(&str, u64)>| Start {
            format: FORMAT,
            store: "1f".to_owned(),
            revision,
            timeline: timeline.to_owned(),
            since: since.map(|(_, revision)| revision),
            since_timeline: since.map(|(timeline, _)| timeline.to_owned()),
            key_prefix: String::new(),
        };
        for (timeline, revision, since, expected) in [
            ("a", 10, ("a", 10), true),
            // The server was restarted in between.
            ("b", 20, ("a", 10), true),
            // The export begins earlier in the same opening.
            ("a", 20, ("a", 9), true),
            ("a", 20, ("z", 5), true),
            // The other copy continued after the restart.
            ("b", 20, ("a", 9), false),
            ("b", 20, ("b", 10), false),
            ("b", 20, ("c", 10), false),
        ] {
            let found = start(timeline, revision, Some(since)).continues(&start("a", 10, None));
            assert_eq!(found, expected, "{since:?} to {timeline} {revision}");
        }
    }

    #[test]
    fn a_failure_is_reported_with_its_reason() {
        let start = Start {
            format: FORMAT,
            store: "1f".to_owned(),
            revision: 9,
            timeline: "2e".to_owned(),
            since: None,
            since_timeline: None,
            key_prefix: String::new(),
        };
        let mut out = Vec::new();
        Writer::new(&mut out, start).and_then(|writer| writer.fail("too slow")).expect("memory");
        assert_eq!(verify(&out, 64), Err(Incomplete::Failed("too slow".to_owned())));
    }
}
