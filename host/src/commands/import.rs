//! `vkog import`: adds all entries of a file of JSON lines or of a MessagePack map, or none.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::entry::Line;
use super::shared::{Imported, SharedArgs, Target};
use super::{count, entries, read_way_out, say};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::schema::export::{Incomplete, Op, Verifier, is_frame};
use vkog_engine::CONTENT_TYPE_MAX;
use vkog_store::{DEFAULT_CONTENT_TYPE, Import, InvalidEntry, LocalDisk, Lock, NewEntry, Options, check_entry};

/// Why an import fails. A failed import changes nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
enum ImportError {
    #[error("cannot read {}: {source}; {}", .path.display(), read_way_out(.source))]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("cannot import {name}: {source}; nothing was changed, fix it and try again")]
    Malformed { name: String, source: InputError },
}

/// Why an input is not an export.
#[derive(Debug, Error)]
pub(super) enum InputError {
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error("line {number}: {source}")]
    Line { number: u64, source: Fault },
    #[error("line 1 is not an entry of an export: {0}")]
    NotAnExport(#[source] Fault),
    #[error("byte {at}: {source}")]
    Byte { at: usize, source: Fault },
    #[error("it is a store, not an export; export it first with `vkog export -f`")]
    Store,
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
}

/// The mistake at one position of an input.
#[derive(Debug, Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error("{}", without_line(.0))]
    Json(#[from] serde_json::Error),
    #[error("{name} is not base64: {source}")]
    Base64 { name: &'static str, source: base64::DecodeError },
    #[error("neither value nor value_base64 is present")]
    NoValue,
    #[error("both value and value_base64 are present")]
    TwoValues,
    #[error("it removes a key; apply an incremental backup with `vkog restore`")]
    Removal,
    #[error("the revision is missing")]
    NoRevision,
    #[error("content_type has {0} bytes, the maximum is {CONTENT_TYPE_MAX}")]
    LongContentType(usize),
    #[error("content_type must be ASCII text")]
    ContentTypeNotAscii,
    #[error("{0}; no request can write such an entry, either")]
    Invalid(#[source] InvalidEntry),
    #[error("the input ends within an entry")]
    CutOff,
    #[error("not a MessagePack map")]
    NotAMap,
    #[error("the key is not text")]
    KeyIsNotText,
    #[error("the value is neither text nor bytes")]
    NotAValue,
    #[error("KVSize is not a number")]
    SizeIsNotANumber,
    #[error("the field is neither KV nor KVSize")]
    UnknownField,
    #[error("bytes follow the map")]
    TrailingBytes,
}

/// Returns the message of a JSON error with its column only, because the line is known.
fn without_line(error: &serde_json::Error) -> String {
    let fact = error.to_string();
    fact.rsplit_once(" at line ").map_or(fact.clone(), |(fact, _)| format!("{fact} at column {}", error.column()))
}

/// An input, and its length in bytes; 0 if it is not known.
struct Input {
    name: String,
    reader: Box<dyn BufRead>,
    len: u64,
}

/// Adds all entries of a file, or of standard input, to a store, which is created if it does not exist. Calls no plugins.
///
/// # Errors
///
/// The input has a mistake, the store cannot be read or written, or another process uses it. Then nothing is changed, except in
/// a shared store, whose entries are written one by one.
pub fn import(path: &Path, shared: SharedArgs, input: Option<&Path>) -> Result<ExitCode, Failure> {
    if let Some(target) = shared.target() {
        return import_shared(target, input);
    }
    let lock = Lock::take(path)?;
    let input = Input::open(input)?;
    let name = input.name.clone();
    let import = input.read().map_err(|source| ImportError::Malformed { name: name.clone(), source })?;
    let shown = path.display();
    if import.is_empty() {
        say(&format!("{shown}: {name} has no entries; nothing was changed"));
        return Ok(ExitCode::SUCCESS);
    }
    let bar = Bar::new(format!("importing into {shown}"));
    let added = import.run(LocalDisk, lock.store(), Options::default(), &|done, total| bar.set(done, total))?;
    drop(bar);
    lock.keep();
    wait_for_clock(added.revision, added.new + added.overwritten);
    say(&format!(
        "{shown}: imported {}, {} of them new; {} now, revision {}",
        count(added.new + added.overwritten, "key", "keys"),
        added.new,
        entries(added.entries),
        added.revision
    ));
    Ok(ExitCode::SUCCESS)
}

/// Adds all entries to a shared store.
fn import_shared(target: Target, input: Option<&Path>) -> Result<ExitCode, Failure> {
    let input = Input::open(input)?;
    let name = input.name.clone();
    let import = input.read().map_err(|source| ImportError::Malformed { name, source })?;
    let shared = target.open()?;
    let Imported { new, written, entries: now, revision } = shared.import(import)?;
    let (written, now) = (count(written as u64, "entry", "entries"), entries(now));
    say(&format!("{}: imported {written}, {new} of them new; {now} now, revision {revision}", shared.url));
    Ok(ExitCode::SUCCESS)
}

/// Waits until the clock has passed the last revision of an import that assigned more than a million a second. A copy of the
/// store that is opened afterwards then begins after them. The revisions may have been ahead of the clock before; those are
/// not waited for.
fn wait_for_clock(revision: u64, entries: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    let ahead = revision.saturating_sub(u64::try_from(now).unwrap_or(u64::MAX));
    if ahead <= entries {
        thread::sleep(Duration::from_micros(ahead));
    }
}

impl Input {
    fn open(path: Option<&Path>) -> Result<Self, ImportError> {
        let Some(path) = path.filter(|path| *path != "-") else {
            let reader = Box::new(BufReader::with_capacity(1 << 20, io::stdin()));
            return Ok(Self { name: "standard input".to_owned(), reader, len: 0 });
        };
        let shown = path.display();
        let file = File::open(path).map_err(|source| ImportError::Unreadable { path: path.to_owned(), source })?;
        let len = file.metadata().map_or(0, |it| it.len());
        Ok(Self { name: shown.to_string(), reader: Box::new(BufReader::with_capacity(1 << 20, file)), len })
    }

    /// Reads all entries.
    fn read(self) -> Result<Import, InputError> {
        let Self { name, mut reader, len } = self;
        let bar = Bar::new(format!("reading {name}"));
        let first = reader.fill_buf()?.first().copied();
        match first {
            // The first byte of a map in MessagePack.
            Some(0x80..=0x8f | 0xde | 0xdf) => {
                let mut data = Vec::new();
                reader.read_to_end(&mut data)?;
                from_msgpack(&data, &bar)
            }
            _ => from_lines(reader, len, &bar),
        }
    }
}

fn from_lines(mut reader: impl BufRead, len: u64, bar: &Bar) -> Result<Import, InputError> {
    let mut import = Import::default();
    // An export of a server verifies itself.
    let mut verifier = None;
    let mut line = Vec::new();
    let mut done = 0;
    for number in 1_u64.. {
        line.clear();
        let fault = |source| InputError::Line { number, source };
        let read = reader.read_until(b'\n', &mut line).map_err(|error| fault(error.into()))?;
        if read == 0 {
            break;
        }
        done += read as u64;
        bar.set(done, len);
        if number == 1 && is_frame(&line) {
            verifier = Some(Verifier::default());
        }
        if let Some(verifier) = &mut verifier {
            verifier.push(&line)?;
            // The end of an export that is cut off is no line.
            if is_frame(&line) || line.last() != Some(&b'\n') {
                continue;
            }
        }
        // Some editors write a byte order mark.
        let text = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
        if !text.trim_ascii().is_empty() {
            let start = verifier.as_ref().and_then(Verifier::start);
            let key_prefix = start.map_or("", |start| &*start.key_prefix);
            add_line(&mut import, text, key_prefix).map_err(|source| match source {
                Fault::Json(_) if number == 1 => InputError::NotAnExport(source),
                _ => fault(source),
            })?;
        }
    }
    if let Some(verifier) = verifier {
        import.begin_after(verifier.finish()?.revision);
    }
    Ok(import)
}

fn add_line(import: &mut Import, text: &[u8], key_prefix: &str) -> Result<(), Fault> {
    match Record::parse(text)?.behind(key_prefix)? {
        Record::Entry { key, value, content_type, details, revision } => {
            import.begin_after(revision.unwrap_or(0));
            import.push(&key, &NewEntry { value: &value, content_type: &content_type, details });
            Ok(())
        }
        Record::Removal { .. } => Err(Fault::Removal),
    }
}

/// A line of an export or of a backup.
pub(super) enum Record<'a> {
    Entry {
        key: Cow<'a, str>,
        value: Cow<'a, [u8]>,
        content_type: Cow<'a, str>,
        details: Vec<u8>,
        revision: Option<u64>,
    },
    Removal {
        key: Cow<'a, str>,
    },
}

impl<'a> Record<'a> {
    /// Parses a line and checks that a request could have written its entry.
    pub(super) fn parse(text: &'a [u8]) -> Result<Self, Fault> {
        let line: Line<'a> = serde_json::from_slice(text)?;
        if line.op == Some(Op::Delete) {
            return Ok(Self::Removal { key: line.key });
        }
        let decode = |name, text: &str| STANDARD.decode(text).map_err(|source| Fault::Base64 { name, source });
        let value = match (line.value, line.value_base64) {
            (Some(Cow::Borrowed(value)), None) => Cow::Borrowed(value.as_bytes()),
            (Some(Cow::Owned(value)), None) => Cow::Owned(value.into_bytes()),
            (None, Some(text)) => Cow::Owned(decode("value_base64", &text)?),
            (None, None) => return Err(Fault::NoValue),
            (Some(_), Some(_)) => return Err(Fault::TwoValues),
        };
        let content_type = match line.content_type {
            None => DEFAULT_CONTENT_TYPE.into(),
            Some(text) if text.is_empty() => DEFAULT_CONTENT_TYPE.into(),
            Some(text) if text.len() > CONTENT_TYPE_MAX => return Err(Fault::LongContentType(text.len())),
            Some(text) if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => {
                return Err(Fault::ContentTypeNotAscii);
            }
            Some(text) => text,
        };
        check_entry(line.key.as_bytes(), &value).map_err(Fault::Invalid)?;
        let details = line.details_base64.map_or(Ok(Vec::new()), |text| decode("details_base64", &text))?;
        Ok(Self::Entry { key: line.key, value, content_type, details, revision: line.revision })
    }

    /// Returns the record with a prefix before its key.
    pub(super) fn behind(mut self, prefix: &str) -> Result<Self, Fault> {
        let (Self::Entry { key, .. } | Self::Removal { key }) = &mut self;
        if !prefix.is_empty() {
            *key = format!("{prefix}{key}").into();
            // The rest was checked.
            check_entry(key.as_bytes(), b"1").map_err(Fault::Invalid)?;
        }
        Ok(self)
    }
}

fn from_msgpack(data: &[u8], bar: &Bar) -> Result<Import, InputError> {
    let mut import = Import::default();
    let mut rest = data;
    let at = |rest: &[u8], source| InputError::Byte { at: data.len() - rest.len(), source };
    for _ in 0..rmp::decode::read_map_len(&mut rest).map_err(|_| at(data, Fault::NotAMap))? {
        let start = rest;
        match take_bytes(&mut rest) {
            Some(b"KV") => {
                let start = rest;
                for _ in 0..rmp::decode::read_map_len(&mut rest).map_err(|_| at(start, Fault::NotAMap))? {
                    let start = rest;
                    let key = take_bytes(&mut rest).ok_or_else(|| at(start, wrong(start, Fault::KeyIsNotText)))?;
                    let value_start = rest;
                    let value =
                        take_bytes(&mut rest).ok_or_else(|| at(value_start, wrong(value_start, Fault::NotAValue)))?;
                    let key = check_entry(key, value).map_err(|invalid| at(start, Fault::Invalid(invalid)))?;
                    import.push(key, &NewEntry { value, content_type: DEFAULT_CONTENT_TYPE, details: Vec::new() });
                    bar.set((data.len() - rest.len()) as u64, data.len() as u64);
                }
            }
            // The store counts itself.
            Some(b"KVSize") => {
                rmp::decode::read_int::<i64, _>(&mut rest).map_err(|_| at(start, Fault::SizeIsNotANumber))?;
            }
            // A store has media types beside its values, which an import does not read.
            Some(b"VKOG") => return Err(InputError::Store),
            _ => return Err(at(start, Fault::UnknownField)),
        }
    }
    if rest.is_empty() { Ok(import) } else { Err(at(rest, Fault::TrailingBytes)) }
}

/// Why no text and no byte string could be taken from the start of `rest`: it is something else, or it is cut off.
fn wrong(rest: &[u8], otherwise: Fault) -> Fault {
    use rmp::Marker::{Bin8, Bin16, Bin32, FixStr, Str8, Str16, Str32};
    let is_bytes =
        |marker: &u8| matches!(rmp::Marker::from_u8(*marker), FixStr(_) | Str8 | Str16 | Str32 | Bin8 | Bin16 | Bin32);
    if rest.first().is_none_or(is_bytes) { Fault::CutOff } else { otherwise }
}

/// A string or a byte string.
fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut after = *rest;
    let length = rmp::decode::read_str_len(&mut after).ok().or_else(|| {
        after = *rest;
        rmp::decode::read_bin_len(&mut after).ok()
    })?;
    let (bytes, after) = after.split_at_checked(length as usize)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Result<usize, String> {
        from_lines(text.as_bytes(), 0, &Bar::new("")).map(|import| import.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_wrong_line_is_reported_with_its_number_and_mistake() {
        let good = r#"{"key":"a","value":"1"}"#;
        assert_eq!(lines(&format!("\u{feff}{good}\r\n\n{good}")), Ok(2));
        for (bad, fact) in [
            ("{", "EOF"),
            ("[]", "invalid"),
            (r#"{"key":"a"}"#, "neither"),
            (r#"{"value":"a"}"#, "missing field `key`"),
            (r#"{"key":"a","value":"1","value_base64":"MQ=="}"#, "both"),
            (r#"{"key":"a","value_base64":"!"}"#, "not base64"),
            (r#"{"key":"a","value":1}"#, "invalid type"),
            (r#"{"key":"a","value":"1","vlaue":"2"}"#, "unknown field"),
            (r#"{"key":"","value":"1"}"#, "the key is empty"),
            (r#"{"key":"a","value":""}"#, "the value is empty"),
            (r#"{"key":"a","value":"1","content_type":"a\nb"}"#, "ASCII"),
        ] {
            let error = lines(&format!("{good}\n{good}\n{bad}\n")).expect_err(bad);
            assert!(error.starts_with("line 3: ") && error.contains(fact) && !error.contains("at line"), "{error}");
        }
        let long = format!(r#"{{"key":"{}","value":"1"}}"#, "k".repeat(vkog_store::KEY_MAX + 1));
        let expected = "line 1: the key has 1025 bytes, 1024 is the most; no request can write such an entry, either";
        assert_eq!(lines(&long), Err(expected.to_owned()));
    }

    #[test]
    fn a_map_is_read_whole_or_not_at_all() {
        let bar = Bar::new("");
        let read = |data: &[u8]| from_msgpack(data, &bar).map(|import| import.len()).map_err(|error| error.to_string());
        let map = b"\x82\xa2KV\x82\xa1a\xa11\xa1b\xc4\x01\xff\xa6KVSize\x04";
        assert_eq!(read(map), Ok(2));
        for end in 0..map.len() {
            let error = read(&map[..end]).expect_err("it is cut off");
            // Within the entries, it says so.
            assert!(!(5..13).contains(&end) || error.ends_with("the input ends within an entry"), "{end}: {error}");
        }
        assert_eq!(
            read(b"\x81\xa2KV\x81\xa0\xa11"),
            Err("byte 5: the key is empty; no request can write such an entry, either".to_owned())
        );
        assert!(read(b"\x81\xa4VKOG\x80").is_err_and(|fact| fact.contains("vkog export")));
        assert_eq!(read(b"\x81\xa2KV\x80\x00"), Err("byte 5: bytes follow the map".to_owned()));
    }
}
