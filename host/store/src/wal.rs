//! The write-ahead log, FILE.log: the changes since the snapshot, one record after the other.
//!
//! A record is a length (u32, little endian), a CRC-32C (u32, little endian) of the length and the payload, and the
//! payload, MessagePack arrays:
//!
//! | payload | meaning |
//! |---|---|
//! | `[0, "VKOG", format, generation, store, base, salt]` | the head, the first record |
//! | `[1, revision, key, value, media type, details]` | an entry was written |
//! | `[2, revision, key]` | an entry was removed |
//! | `[3, offset]` | a durable-offset record: when it was written, the log was on disk up to that offset |
//!
//! A record has one array for each change of one update, under one checksum: a crash leaves all of them or none. (Format 1 had
//! one array in each record. Such a log is read and continued.)
//!
//! The checksums of all records but the head start from the salt, a random number, so that no value from a client can look like
//! a record.
//!
//! After a power cut the end of a log may hold anything: what was written and never synced can be missing, whole or torn, page by
//! page. So the first record that is not whole ends the log, unless a durable-offset record behind it proves that it had been
//! on disk. Then it was damaged later, and the log is refused.
//!
//! The log is preallocated: zeros may follow the last record, and later records overwrite them. The sync of a file that does not
//! grow takes two thirds of the time. No record has a length of zero.

pub(super) mod salvage;

use std::io;
use std::ops::Range;

use rmp::encode;

use super::damage::{Damage, Defect};
use super::disk::File;
use super::entry::{DEFAULT_CONTENT_TYPE, Entry, NewEntry};
use super::snapshot::{put_bytes, take_bytes};
use super::update::Change;

const FORMAT: u64 = 2;
/// Length and checksum.
const FRAME: usize = 8;
/// The longest payload that is accepted. A MessagePack value has at most 4 GiB.
const PAYLOAD_MAX: u32 = u32::MAX - FRAME as u32;
/// The maximum size of a value, in bytes: what the 32 bits of a length leave beside a key, a media type, details and the other
/// operations of a batch.
pub const VALUE_MAX: u64 = PAYLOAD_MAX as u64 - (64 << 20);

/// The head of a log.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The generation of the snapshot that it follows.
    pub(super) generation: u64,
    /// The store's random number.
    pub(super) store: u64,
    /// The length of the file that it follows, where that has no generation: a file of the Go program, or none.
    pub(super) base: u64,
    /// The start of the checksums. The snapshot that the log follows identifies it by its salt.
    pub(super) salt: u32,
}

/// A change in the log.
pub(super) enum Record<'a> {
    Write { revision: u64, key: &'a str, draft: NewEntry<'a> },
    Remove { revision: u64, key: &'a str },
}

// Writing to a vector cannot fail, but rmp's functions return a result.
macro_rules! put {
    ($function:ident($out:expr, $value:expr)) => {
        let _ = encode::$function($out, $value);
    };
}

impl Head {
    /// The length of the encoded head, in bytes.
    pub(super) const LEN: u64 = (FRAME + 1 + 1 + 5 + 5 * 9) as u64;

    /// The length of a log without changes, in bytes. It has a durable-offset record, which distinguishes it from one that was cut
    /// off.
    pub(super) const EMPTY_LEN: u64 = Self::LEN + FRAME as u64 + 3;

    /// The head as the first record of a file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        frame(&mut out, 0, |out| {
            put!(write_array_len(out, 7));
            put!(write_uint(out, 0));
            put!(write_str(out, "VKOG"));
            for number in [FORMAT, self.generation, self.store, self.base, self.salt.into()] {
                put!(write_u64(out, number));
            }
        });
        debug_assert_eq!(out.len() as u64, Self::LEN);
        out
    }

    fn decode(payload: &[u8]) -> Option<Result<Self, u64>> {
        let rest = &mut &payload[..];
        let is_head = rmp::decode::read_array_len(rest).is_ok_and(|columns| columns == 7)
            && rmp::decode::read_int(rest).is_ok_and(|kind: u64| kind == 0)
            && take_bytes(rest) == Some(b"VKOG");
        let mut number = || rmp::decode::read_int::<u64, _>(rest).ok();
        let format = number().filter(|_| is_head)?;
        if !(1..=FORMAT).contains(&format) {
            return Some(Err(format));
        }
        Some(Ok(Self { generation: number()?, store: number()?, base: number()?, salt: number()? as u32 }))
    }
}

/// Appends a record whose payload a function writes.
fn frame(out: &mut Vec<u8>, salt: u32, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME]);
    payload(out);
    let length = (out.len() - start - FRAME) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(salt, length, &out[start + FRAME..]);
    out[start + 4..start + FRAME].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(salt: u32, length: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(salt, &length.to_le_bytes()), payload)
}

/// Appends the record of an update, if it has changes.
pub(super) fn put_changes<'a>(out: &mut Vec<u8>, salt: u32, changes: impl Iterator<Item = &'a Change>) {
    let mut changes = changes.peekable();
    if changes.peek().is_some() {
        frame(out, salt, |out| {
            for change in changes {
                match (&change.after, &change.before) {
                    (Some(entry), _) => put_write(out, entry),
                    (None, Some(before)) => put_remove(out, change.revision, before.key_bytes()),
                    (None, None) => {}
                }
            }
        });
    }
}

/// The maximum length of a change in a record, with the frame, in bytes.
pub(super) fn len_of(change: &Change) -> usize {
    const REST: usize = 64;
    change.after.as_ref().or(change.before.as_ref()).map_or(0, |entry| entry.len() + REST)
}

fn put_write(out: &mut Vec<u8>, entry: &Entry) {
    put!(write_array_len(out, 6));
    put!(write_uint(out, 1));
    put!(write_uint(out, entry.revision()));
    put_bytes(out, entry.key_bytes());
    put_bytes(out, entry.value());
    let content_type = entry.content_type();
    put!(write_str(out, if content_type == DEFAULT_CONTENT_TYPE { "" } else { content_type }));
    put!(write_bin(out, entry.details()));
}

fn put_remove(out: &mut Vec<u8>, revision: u64, key: &[u8]) {
    put!(write_array_len(out, 3));
    put!(write_uint(out, 2));
    put!(write_uint(out, revision));
    put_bytes(out, key);
}

/// Appends a durable-offset record: the log is on disk up to this offset.
pub(super) fn put_durable_offset(out: &mut Vec<u8>, salt: u32, synced: u64) {
    frame(out, salt, |out| {
        put!(write_array_len(out, 2));
        put!(write_uint(out, 3));
        put!(write_uint(out, synced));
    });
}

/// Decodes the next array of a payload; `None` if it is invalid.
fn take<'a>(rest: &mut &'a [u8]) -> Option<Next<'a>> {
    let columns = rmp::decode::read_array_len(rest).ok()?;
    let kind: u64 = rmp::decode::read_int(rest).ok()?;
    let number = rmp::decode::read_int(rest).ok()?;
    Some(match (kind, columns) {
        (1, 6) => {
            let key = str::from_utf8(take_bytes(rest)?).ok()?;
            let value = take_bytes(rest)?;
            let content_type = match str::from_utf8(take_bytes(rest)?).ok()? {
                "" => DEFAULT_CONTENT_TYPE,
                content_type => content_type,
            };
            let details = take_bytes(rest)?.to_vec();
            Next::Change(Record::Write { revision: number, key, draft: NewEntry { value, content_type, details } })
        }
        (2, 3) => Next::Change(Record::Remove { revision: number, key: str::from_utf8(take_bytes(rest)?).ok()? }),
        (3, 2) => Next::DurableOffset { synced: number },
        _ => return None,
    })
}

/// Reads a log from its start, a window at a time.
pub(super) struct Reader<'a> {
    file: &'a dyn File,
    len: u64,
    /// The head.
    pub(super) head: Head,
    /// The offset of the next record.
    pub(super) at: u64,
    window: Vec<u8>,
    window_at: u64,
    /// The part of the last record that was not returned yet, in the window.
    rest: Range<usize>,
}

/// The start of a log.
pub(super) enum Start<'a> {
    Log(Reader<'a>),
    /// It was created and never used: its head did not reach the disk.
    Unused,
}

/// The next part of a log.
pub(super) enum Next<'a> {
    Change(Record<'a>),
    /// When this was written, the log was on disk up to that offset.
    DurableOffset {
        synced: u64,
    },
    /// The log ends here. Behind it are `torn` bytes of writes that were never acknowledged, and perhaps preallocated zeros.
    End {
        torn: u64,
    },
}

const WINDOW: usize = 1 << 20;

impl<'a> Reader<'a> {
    /// Reads the head of a log.
    pub(super) fn open(file: &'a dyn File) -> Result<Start<'a>, Damage> {
        let head = Head { generation: 0, store: 0, base: 0, salt: 0 };
        let mut reader = Self { file, len: file.len()?, head, at: 0, window: Vec::new(), window_at: 0, rest: 0..0 };
        let len = reader.len;
        let decoded = match reader.frame_at(0)? {
            Some(payload) => Head::decode(payload),
            // The head is synced before the first record is written.
            None if len <= Head::EMPTY_LEN => return Ok(Start::Unused),
            None => None,
        };
        match decoded {
            Some(Ok(head)) => {
                reader.head = head;
                reader.at = Head::LEN;
                Ok(Start::Log(reader))
            }
            Some(Err(format)) => Err(Damage::at(0, Defect::Format { found: format, known: "1 to 2" })),
            None => Err(Damage::at(0, Defect::Head)),
        }
    }

    /// Reads the next change, durable offset, or the end.
    pub(super) fn next(&mut self) -> Result<Next<'_>, Damage> {
        let at = self.at;
        if self.rest.is_empty() {
            let Some(length) = self.frame_at(at)?.map(<[u8]>::len) else {
                let end = self.end_of_data(at)?;
                self.refuse_damage(at, end)?;
                return Ok(Next::End { torn: end - at });
            };
            self.at += (FRAME + length) as u64;
            // The record that was checked just now is in the window.
            let start = (at - self.window_at) as usize + FRAME;
            self.rest = start..start + length;
        }
        let mut rest = &self.window[self.rest.clone()];
        let next = take(&mut rest).ok_or_else(|| Damage::at(at, Defect::Record))?;
        self.rest.start = self.rest.end - rest.len();
        Ok(next)
    }

    /// The payload of the record at an offset, if it is whole.
    fn frame_at(&mut self, at: u64) -> Result<Option<&[u8]>, Damage> {
        let Some(head) = self.bytes(at, FRAME)? else { return Ok(None) };
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if length == 0 || length > PAYLOAD_MAX || at + FRAME as u64 + u64::from(length) > self.len {
            return Ok(None);
        }
        let salt = if at == 0 { 0 } else { self.head.salt };
        let payload = self.bytes(at, FRAME + length as usize)?.map(|frame| &frame[FRAME..]);
        Ok(payload.filter(|payload| checksum(salt, length, payload) == crc))
    }

    /// Bytes at an offset; `None` beyond the end of the file.
    fn bytes(&mut self, at: u64, count: usize) -> Result<Option<&[u8]>, Damage> {
        if at + count as u64 > self.len {
            return Ok(None);
        }
        let held = self.window_at..self.window_at + self.window.len() as u64;
        if at < held.start || at + count as u64 > held.end {
            let length = (count.max(WINDOW) as u64).min(self.len - at) as usize;
            self.window.resize(length, 0);
            self.file.read_at(at, &mut self.window)?;
            self.window_at = at;
        }
        let start = (at - self.window_at) as usize;
        Ok(Some(&self.window[start..start + count]))
    }

    /// From an offset on, the end of the data: only zeros follow.
    fn end_of_data(&mut self, from: u64) -> Result<u64, Damage> {
        let (mut at, mut end) = (from, from);
        while at < self.len {
            let count = (WINDOW as u64).min(self.len - at);
            match self.bytes(at, count as usize)?.map(without_zeros) {
                None | Some([]) => {}
                Some(data) => end = at + data.len() as u64,
            }
            at += count;
        }
        Ok(end)
    }

    /// Refuses a log if a durable-offset record behind a record that is not whole proves that it once was.
    fn refuse_damage(&mut self, damaged: u64, end: u64) -> Result<(), Damage> {
        // A durable-offset record has at most 11 bytes of payload, which starts with an array of two and a 3.
        const PAYLOAD_LEN_MAX: u32 = 11;
        for at in damaged..end {
            let Some(start) = self.bytes(at, FRAME + 2)? else { break };
            let length = u32::from_le_bytes([start[0], start[1], start[2], start[3]]);
            if length > PAYLOAD_LEN_MAX || start[FRAME..] != [0x92, 3] {
                continue;
            }
            if let Some(mut payload) = self.frame_at(at)?
                && let Some(Next::DurableOffset { synced }) = take(&mut payload)
                && synced > damaged
            {
                return Err(Damage::at(damaged, Defect::DamagedRecord { later: at }));
            }
        }
        Ok(())
    }
}

/// The bytes before the zeros at the end.
fn without_zeros(mut bytes: &[u8]) -> &[u8] {
    // Mostly that is all of them, and many are compared as fast as a few.
    while let Some(rest) = bytes.strip_suffix(&[0; 4096]) {
        bytes = rest;
    }
    while let [rest @ .., 0] = bytes {
        bytes = rest;
    }
    bytes
}

/// Writes the head of a new log and its first durable-offset record, and syncs them.
pub(super) fn begin(file: &dyn File, head: &Head) -> io::Result<u64> {
    let mut bytes = head.encode();
    put_durable_offset(&mut bytes, head.salt, 0);
    debug_assert_eq!(bytes.len() as u64, Head::EMPTY_LEN);
    file.write_at(0, &bytes)?;
    file.sync()?;
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head { generation: 3, store: 7, base: 0, salt: 9 };

    /// A log of this format with one write in it.
    fn log_of_format(format: u64) -> Vec<u8> {
        let mut log = HEAD.encode();
        let at = FRAME + 1 + 1 + 5 + 1;
        log[at..at + 8].copy_from_slice(&format.to_be_bytes());
        let crc = checksum(0, (log.len() - FRAME) as u32, &log[FRAME..]);
        log[4..FRAME].copy_from_slice(&crc.to_le_bytes());
        let draft = NewEntry { value: b"value", content_type: DEFAULT_CONTENT_TYPE, details: Vec::new() };
        let entry = Entry::with_revision("key", &draft, 1, &mut Vec::new());
        put_changes(
            &mut log,
            HEAD.salt,
            [Change { before: None, after: Some(entry), revision: 1, expired: false }].iter(),
        );
        log
    }

    #[test]
    fn preallocated_space_is_no_record_with_any_salt() {
        let head = Head { salt: 0x9be0_9bab, ..HEAD };
        assert_eq!(checksum(head.salt, 0, &[]), 0, "zeros could pass for a record");
        let mut log = head.encode();
        put_durable_offset(&mut log, head.salt, Head::LEN);
        let end = log.len();
        log.extend([0; 100]);
        for torn in [0, 41] {
            let file = tempfile::tempfile().expect("a temporary file can be made");
            log[end..][..torn].fill(1);
            File::write_at(&file, 0, &log).expect("it can be written");
            let Ok(Start::Log(mut reader)) = Reader::open(&file) else { panic!("it is no log") };
            assert!(matches!(reader.next(), Ok(Next::DurableOffset { synced: Head::LEN })));
            assert!(matches!(reader.next(), Ok(Next::End { torn: found }) if found == torn as u64), "{torn}");
        }
    }

    #[test]
    fn a_log_of_an_older_format_is_read_and_one_of_a_later_is_not() {
        for format in 0..4 {
            let file = tempfile::tempfile().expect("a temporary file can be made");
            File::write_at(&file, 0, &log_of_format(format)).expect("it can be written");
            match (format, Reader::open(&file)) {
                (1 | 2, Ok(Start::Log(mut reader))) => {
                    assert_eq!(reader.head, HEAD);
                    assert!(matches!(reader.next(), Ok(Next::Change(Record::Write { revision: 1, key: "key", .. }))));
                    assert!(matches!(reader.next(), Ok(Next::End { torn: 0 })));
                }
                (0 | 3, Err(Damage::At { offset: 0, defect: Defect::Format { found, .. } })) => {
                    assert_eq!(found, format)
                }
                _ => panic!("format {format} is read otherwise"),
            }
        }
    }

    fn file_of(bytes: &[u8]) -> std::fs::File {
        let file = tempfile::tempfile().expect("a temporary file can be made");
        File::write_at(&file, 0, bytes).expect("it can be written");
        file
    }

    fn reader(file: &dyn File) -> Reader<'_> {
        match Reader::open(file) {
            Ok(Start::Log(reader)) => reader,
            Ok(Start::Unused) => panic!("it was used"),
            Err(damage) => panic!("{damage}"),
        }
    }

    fn change(key: &str, value: &[u8], revision: u64, is_removal: bool) -> Change {
        let draft = NewEntry { value, content_type: "image/png", details: vec![0x80] };
        let entry = Some(Entry::with_revision(key, &draft, revision, &mut Vec::new()));
        let (before, after) = if is_removal { (entry, None) } else { (None, entry) };
        Change { before, after, revision, expired: false }
    }

    #[test]
    fn a_log_has_the_documented_bytes() {
        let head = Head { generation: 3, store: 7, base: 5, salt: 9 };
        let framed = |salt: u32, payload: &[u8]| {
            let len = (payload.len() as u32).to_le_bytes();
            let crc = crc32c::crc32c_append(salt, &[&len[..], payload].concat()).to_le_bytes();
            [&len[..], &crc, payload].concat()
        };
        let numbers: Vec<u8> =
            [2_u64, 3, 7, 5, 9].iter().flat_map(|number| [&[0xcf][..], &number.to_be_bytes()].concat()).collect();
        let mut expected = framed(0, &[b"\x97\0\xa4VKOG", &numbers[..]].concat());
        assert_eq!((expected.len() as u64, &head.encode()), (Head::LEN, &expected));
        expected.extend(framed(9, b"\x92\x03\0"));
        assert_eq!(expected.len() as u64, Head::EMPTY_LEN);
        let file = file_of(b"");
        assert_eq!(begin(&file, &head).expect("it can be written"), Head::EMPTY_LEN);
        let mut log = vec![0; Head::EMPTY_LEN as usize];
        File::read_at(&file, 0, &mut log).expect("it has as many bytes");
        put_changes(&mut log, 9, [change("k", b"v", 6, false), change("r", b"v", 7, true)].iter());
        put_changes(&mut log, 9, [].iter());
        expected.extend(framed(9, b"\x96\x01\x06\xa1k\xa1v\xa9image/png\xc4\x01\x80\x93\x02\x07\xa1r"));
        assert_eq!(log, expected);
        let file = file_of(&log);
        let mut reader = reader(&file);
        assert_eq!((reader.head, reader.at), (head, Head::LEN));
        assert!(matches!(reader.next(), Ok(Next::DurableOffset { synced: 0 })));
        let Ok(Next::Change(Record::Write { revision: 6, key: "k", draft })) = reader.next() else { panic!("a write") };
        assert_eq!((draft.value, draft.content_type, &draft.details[..]), (&b"v"[..], "image/png", &[0x80][..]));
        assert!(matches!(reader.next(), Ok(Next::Change(Record::Remove { revision: 7, key: "r" }))));
        assert!(matches!(reader.next(), Ok(Next::End { torn: 0 })));
    }

    #[test]
    fn a_log_that_ends_before_its_second_record_was_never_used() {
        let mut log = HEAD.encode();
        put_durable_offset(&mut log, HEAD.salt, 0);
        for len in 0..log.len() {
            let start = Reader::open(&file_of(&log[..len])).map(|start| matches!(start, Start::Unused)).ok();
            assert_eq!(start, Some(len < Head::LEN as usize), "{len} bytes");
        }
        log[0] ^= 1;
        assert!(matches!(Reader::open(&file_of(&log)), Ok(Start::Unused)));
        log.push(0);
        assert!(matches!(Reader::open(&file_of(&log)), Err(Damage::At { offset: 0, defect: Defect::Head })));
    }

    /// Records that are larger than a half of what is read at once, each followed by the offset up to which the log is on disk,
    /// and where each of them starts.
    fn large_log() -> (Vec<u8>, Vec<usize>) {
        let (mut log, mut starts) = (HEAD.encode(), Vec::new());
        for revision in 1..=5 {
            starts.push(log.len());
            put_changes(&mut log, HEAD.salt, [change("k", &[b'v'; 600_000], revision, false)].iter());
            let synced = log.len() as u64;
            put_durable_offset(&mut log, HEAD.salt, synced);
        }
        (log, starts)
    }

    /// Reads the revisions of a log to its end or to a damaged record, and returns that.
    fn read(log: &[u8]) -> (Vec<u64>, Result<u64, Damage>) {
        let file = file_of(log);
        let (mut reader, mut revisions) = (reader(&file), Vec::new());
        loop {
            match reader.next() {
                Ok(Next::Change(Record::Write { revision, draft, .. })) => {
                    assert!(draft.value.iter().all(|byte| *byte == b'v'));
                    revisions.push(revision);
                }
                Ok(Next::Change(Record::Remove { revision, .. })) => revisions.push(revision),
                Ok(Next::DurableOffset { .. }) => {}
                Ok(Next::End { torn }) => return (revisions, Ok(torn)),
                Err(damage) => return (revisions, Err(damage)),
            }
        }
    }

    #[test]
    fn a_long_log_is_read_up_to_its_end_or_to_a_record_that_was_on_disk() {
        let (mut log, starts) = large_log();
        log.resize(log.len() + (3 << 20), 0);
        assert!(matches!(read(&log), (revisions, Ok(0)) if revisions == [1, 2, 3, 4, 5]));
        for (record, start) in starts.iter().enumerate() {
            // Its length, its checksum, its payload.
            for byte in [2, 5, 300_000] {
                log[start + byte] ^= 1;
                let (revisions, Err(Damage::At { offset, defect })) = read(&log) else { panic!("record {record}") };
                assert_eq!(revisions.len(), record);
                let later = starts.get(record + 1).map_or(log.len() - (3 << 20), |next| *next) as u64 - 15;
                assert_eq!((offset, defect), (*start as u64, Defect::DamagedRecord { later }));
                log[start + byte] ^= 1;
            }
        }
    }

    #[test]
    fn a_record_that_is_not_whole_is_damaged_if_it_was_on_disk_and_else_the_end() {
        let (log, starts) = large_log();
        let start = starts[1];
        let end = start + 100;
        let at = start as u64;
        for (synced, is_damaged) in [(0, false), (at, false), (at + 1, true), (1 << 40, true), (u64::MAX, true)] {
            let mut log = log[..end].to_vec();
            put_durable_offset(&mut log, HEAD.salt, synced);
            // The zero at its end may be preallocated.
            let len = (log.len() - start) as u64 - u64::from(synced == 0);
            match read(&log) {
                (revisions, Err(Damage::At { offset, defect: Defect::DamagedRecord { later } })) if is_damaged => {
                    assert_eq!((&revisions[..], offset, later), (&[1][..], at, end as u64));
                }
                (revisions, Ok(torn)) if !is_damaged => assert_eq!((&revisions[..], torn), (&[1][..], len)),
                (_, other) => panic!("on disk up to {synced}: {other:?}"),
            }
        }
        // The sum of a record is right, and it is none.
        let mut log = HEAD.encode();
        frame(&mut log, HEAD.salt, |out| out.extend(b"\x93\x07\x01\x01"));
        let (_, Err(Damage::At { offset: Head::LEN, defect: Defect::Record })) = read(&log) else {
            panic!("no record")
        };
    }
}
