//! Salvage of a damaged log: every record whose checksum is right, also behind damage.

use super::super::damage::Damage;
use super::super::disk::File;
use super::super::repair::Lost;
use super::super::snapshot::Progress;
use super::{FRAME, Head, Next, Reader, Record, Start, take};

/// The intact records of a log.
pub(crate) struct Found {
    /// The head, if it is whole.
    pub(crate) head: Option<Head>,
    /// The number of changes.
    pub(crate) records: u64,
    /// The parts without a whole record.
    pub(crate) holes: Vec<Lost>,
}

/// Calls a function for every whole change, in order. `wanted` is called first, with the head if it is whole; if it returns
/// false, the log is not read.
pub(crate) fn salvage(
    file: &dyn File,
    progress: Progress<'_>,
    wanted: impl FnOnce(Option<&Head>) -> bool,
    mut each: impl FnMut(Record<'_>),
) -> Result<Found, Damage> {
    let mut found = Found { head: None, records: 0, holes: Vec::new() };
    let Some(mut reader) = found.open(file)? else { return Ok(found) };
    if !wanted(found.head.as_ref()) {
        return Ok(found);
    }
    while reader.at < reader.len {
        let at = reader.at;
        match reader.frame_at(at)?.map(<[u8]>::len) {
            Some(length) => {
                reader.at += (FRAME + length) as u64;
                let start = (at - reader.window_at) as usize + FRAME;
                let mut rest = &reader.window[start..start + length];
                while !rest.is_empty() {
                    match take(&mut rest) {
                        Some(Next::Change(record)) => {
                            found.records += 1;
                            each(record);
                        }
                        Some(_) => {}
                        None => {
                            found.holes.push(Lost {
                                at,
                                bytes: (FRAME + length) as u64,
                                entries: None,
                                is_tail: false,
                            });
                            break;
                        }
                    }
                }
            }
            None => {
                let next = reader.next_whole(at + 1, progress)?;
                let end = next.map_or_else(|| reader.end_of_data(at), Ok)?;
                // What is left may be room alone.
                if end > at {
                    found.holes.push(Lost { at, bytes: end - at, entries: None, is_tail: next.is_none() });
                }
                reader.at = next.unwrap_or(reader.len);
            }
        }
        progress(reader.at, reader.len);
    }
    Ok(found)
}

impl Found {
    /// Opens a log, also one whose head is damaged. Returns `None` for one that was never used.
    fn open<'a>(&mut self, file: &'a dyn File) -> Result<Option<Reader<'a>>, Damage> {
        match Reader::open(file) {
            Ok(Start::Log(reader)) => {
                self.head = Some(reader.head);
                Ok(Some(reader))
            }
            Ok(Start::Unused) => Ok(None),
            Err(Damage::Io(error)) => Err(error.into()),
            Err(damage) => {
                let mut reader = Reader::without_head(file)?;
                // Its checksum is right: it is of another format.
                if reader.frame_at(0)?.is_some() {
                    return Err(damage);
                }
                self.holes.push(Lost { at: 0, bytes: Head::LEN, entries: None, is_tail: false });
                reader.guess_salt()?;
                Ok(Some(reader))
            }
        }
    }
}

impl<'a> Reader<'a> {
    /// A reader of a log whose head is damaged.
    fn without_head(file: &'a dyn File) -> Result<Self, Damage> {
        let head = Head { generation: 0, store: 0, base: 0, salt: 0 };
        Ok(Self { file, len: file.len()?, head, at: Head::LEN, window: Vec::new(), window_at: 0, rest: 0..0 })
    }

    /// Takes the salt from a damaged head: as it stands there, or with the one bit changed that makes the first record
    /// whole.
    fn guess_salt(&mut self) -> Result<(), Damage> {
        let Some(&[a, b, c, d]) = self.bytes(Head::LEN - 4, 4)? else { return Ok(()) };
        let salt = u32::from_be_bytes([a, b, c, d]);
        for flip in std::iter::once(0).chain((0..u32::BITS).map(|bit| 1 << bit)) {
            self.head.salt = salt ^ flip;
            if self.frame_at(Head::LEN)?.is_some() {
                return Ok(());
            }
        }
        self.head.salt = salt;
        Ok(())
    }

    /// Where the next whole record starts, from an offset on.
    fn next_whole(&mut self, from: u64, progress: Progress<'_>) -> Result<Option<u64>, Damage> {
        for at in from..self.len {
            if at % (1 << 20) == 0 {
                progress(at, self.len);
            }
            let Some(start) = self.bytes(at, FRAME + 2)? else { break };
            // The checksum is only asked for what begins as one of the three kinds: an array, and its first number.
            if matches!(start[FRAME..], [0x96, 1] | [0x93, 2] | [0x92, 3])
                && self.frame_at(at)?.is_some_and(|mut payload| take(&mut payload).is_some())
            {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::entry::{DEFAULT_CONTENT_TYPE, Entry, NewEntry};
    use super::super::{put_changes, put_durable_offset};
    use super::*;
    use crate::update::Change;

    const HEAD: Head = Head { generation: 3, store: 7, base: 0, salt: 0xdead_beef };

    /// A log of ten writes and their marks, and where each write starts.
    fn log() -> (Vec<u8>, Vec<usize>) {
        let mut log = HEAD.encode();
        let mut starts = Vec::new();
        for revision in 1..=10 {
            starts.push(log.len());
            let draft = NewEntry { value: &[b'v'; 50], content_type: DEFAULT_CONTENT_TYPE, details: Vec::new() };
            let entry = Entry::with_revision(&format!("key-{revision}"), &draft, revision, &mut Vec::new());
            let change = Change { before: None, after: Some(entry), revision, expired: false };
            put_changes(&mut log, HEAD.salt, [change].iter());
            let synced = log.len() as u64;
            put_durable_offset(&mut log, HEAD.salt, synced);
        }
        (log, starts)
    }

    fn salvaged(log: &[u8]) -> (Vec<u64>, Found) {
        let file = tempfile::tempfile().expect("a temporary file can be made");
        File::write_at(&file, 0, log).expect("it can be written");
        let mut revisions = Vec::new();
        let found = salvage(
            &file,
            &|_, _| {},
            |_| true,
            |record| {
                let (Record::Write { revision, .. } | Record::Remove { revision, .. }) = record;
                revisions.push(revision);
            },
        );
        (revisions, found.unwrap_or_else(|damage| panic!("{damage}")))
    }

    #[test]
    fn records_after_a_damaged_record_are_found() {
        let (mut log, starts) = log();
        // Its length, its checksum, its payload.
        for place in [0, 5, 30] {
            log[starts[4] + place] ^= 0x10;
            let (revisions, found) = salvaged(&log);
            assert_eq!(revisions, [1, 2, 3, 4, 6, 7, 8, 9, 10]);
            let [hole] = found.holes[..] else { panic!("not one hole: {:?}", found.holes) };
            assert_eq!((hole.at, hole.is_tail), (starts[4] as u64, false));
            log[starts[4] + place] ^= 0x10;
        }
    }

    #[test]
    fn every_flipped_bit_of_the_head_costs_no_record() {
        let (mut log, _) = log();
        for bit in 0..8 * Head::LEN as usize {
            log[bit / 8] ^= 1 << (bit % 8);
            let (revisions, found) = salvaged(&log);
            assert_eq!(revisions.len(), 10, "bit {bit}");
            assert_eq!(found.head, None, "bit {bit}");
            log[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_record_of_no_known_kind_is_a_hole() {
        let (mut log, starts) = log();
        let end = log.len();
        super::super::frame(&mut log, HEAD.salt, |out| out.extend(b"\x93\x07\x01\x01"));
        let draft = NewEntry { value: b"v", content_type: DEFAULT_CONTENT_TYPE, details: Vec::new() };
        let entry = Entry::with_revision("key", &draft, 11, &mut Vec::new());
        put_changes(
            &mut log,
            HEAD.salt,
            [Change { before: None, after: Some(entry), revision: 11, expired: false }].iter(),
        );
        let (revisions, found) = salvaged(&log);
        assert_eq!((revisions.last(), found.records, starts.len()), (Some(&11), 11, 10));
        assert_eq!(found.holes, [Lost { at: end as u64, bytes: 12, entries: None, is_tail: false }]);
    }

    #[test]
    fn a_torn_tail_is_distinguished_from_damage() {
        let (mut log, starts) = log();
        let torn = Lost { at: starts[9] as u64, bytes: 20, entries: None, is_tail: true };
        for room in [0, 100] {
            let (revisions, found) = salvaged(&[&log[..starts[9] + 20], &vec![0; room]].concat());
            assert_eq!((revisions.last(), &found.holes[..]), (Some(&9), &[torn][..]), "{room} zeros");
        }
        log.extend([0; 100]);
        let (revisions, found) = salvaged(&log);
        assert_eq!((revisions.last(), &found.holes[..]), (Some(&10), &[][..]));
    }
}
