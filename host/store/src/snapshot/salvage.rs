//! Salvage of a damaged snapshot.
//!
//! A chunk of `KV` whose checksum is right is intact, regardless of other damage. Where the checksums themselves are lost, everything
//! that can be read as an entry counts as one, and is reported as unverified. A revision is trusted only if its checksum is
//! right; an entry without one has revision 0, and the caller assigns it a new one.

use super::super::damage::Damage;
use super::super::disk::File;
use super::super::entry::{DEFAULT_CONTENT_TYPE, Entry, NewEntry};
use super::super::invalid::{LeftOut, check_entry};
use super::super::map::{Map, SHARDS};
use super::super::repair::Lost;
use super::{FORMAT, FORMAT_1, Loader, Meta, Progress, Row, is_first, take_bytes, take_row};

/// The program that wrote a file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Own,
    Go,
    /// It has nothing that belongs to a store.
    Unknown,
}

/// The intact part of a snapshot.
pub(crate) struct Found {
    pub(crate) map: Map,
    pub(crate) kind: Kind,
    /// The head, if it is whole.
    pub(crate) meta: Option<Meta>,
    /// The highest revision that was or may have been assigned.
    pub(crate) revision: u64,
    /// The number of whole chunks, and of their entries.
    pub(crate) chunks: u64,
    pub(crate) whole: u64,
    /// The number of other entries.
    pub(crate) unverified: u64,
    /// The checksum of media types, details and revisions is wrong.
    pub(crate) directory_is_damaged: bool,
    /// The parts that could not be read.
    pub(crate) holes: Vec<Lost>,
    /// The entries of a Go file that cannot be in a store.
    pub(crate) left_out: Vec<LeftOut>,
}

/// A higher revision was never assigned: it comes from damaged bytes.
const REVISION_MAX: u64 = 1 << 53;
/// The name of the directory.
const HEADING: &[u8] = b"\xa6Chunks";

/// Reads what is whole. `seed` is for a map whose file has none.
pub(crate) fn salvage(file: &dyn File, seed: u64, progress: Progress<'_>) -> Result<Found, Damage> {
    let mut head = vec![0; head_len(FORMAT).min(file.len()? as usize)];
    file.read_at(0, &mut head)?;
    let head_len = head_len(if is_first(&head) { FORMAT_1 } else { FORMAT });
    let mut found = Found {
        map: Map::new(seed),
        kind: Kind::Unknown,
        meta: None,
        revision: 0,
        chunks: 0,
        whole: 0,
        unverified: 0,
        directory_is_damaged: false,
        holes: Vec::new(),
        left_out: Vec::new(),
    };
    if is_own(&head) {
        found.kind = Kind::Own;
        match Meta::decode(file) {
            Ok(Some(meta)) => found.meta = Some(meta),
            Err(damage @ Damage::At { .. }) if is_of_another_format(&head) => return Err(damage),
            Err(Damage::Io(error)) => return Err(error.into()),
            _ => {}
        }
        if let Some(meta) = found.meta {
            found.map = Map::new(meta.seed);
            found.revision = meta.revision;
        }
        found.salvage_own(file, head_len as u64, progress)?;
    } else {
        found.salvage_go(file)?;
    }
    Ok(found)
}

fn lost(at: u64, bytes: u64, entries: Option<u64>) -> Lost {
    Lost { at, bytes, entries, is_tail: false }
}

fn head_len(format: u64) -> usize {
    Meta { format, ..Meta::default() }.encode().len()
}

/// Whether a head is one of this program: it begins or continues as such a head does.
fn is_own(head: &[u8]) -> bool {
    let own = Meta::default().encode();
    [0..6, 7..14].into_iter().any(|part| head.get(part.clone()).is_some_and(|bytes| bytes == &own[part]))
}

/// Whether a head was written in another format, and is not damaged where it says so.
fn is_of_another_format(head: &[u8]) -> bool {
    // The number follows the name, which is at the same place in every format.
    let Some(mut number) = head.get(14..23) else { return false };
    let Ok(format) = rmp::decode::read_u64(&mut number) else { return false };
    if format <= FORMAT || format > u8::MAX.into() {
        return false;
    }
    // With a known format's number in its place it is that format's head if the checksum says so. The checksum is the number
    // before `clean`, its mark, `KVSize`, its number, `KV` and the head of its map.
    let is_of = |(known, clean): (u64, usize)| {
        let mut own = head.to_vec();
        own[22] = known as u8;
        let crc_at = head_len(known).saturating_sub(clean + 7 + 9 + 3 + 5 + 9);
        let Some((own, mut crc)) = own.split_at_checked(crc_at) else { return false };
        rmp::decode::read_u64(&mut crc).is_ok_and(|crc| crc == u64::from(crc32c::crc32c(own)))
    };
    ![(FORMAT_1, 0), (FORMAT, 6 + 1)].into_iter().any(is_of)
}

impl Found {
    fn salvage_own(&mut self, file: &dyn File, head_len: u64, progress: Progress<'_>) -> Result<(), Damage> {
        let len = file.len()?;
        let mut all = Vec::new();
        let (directory, trusted) = self.directory(file, len)?;
        self.directory_is_damaged = !trusted;
        // Only a file without a directory needs more than a chunk at a time.
        if !trusted {
            all.resize(len as usize, 0);
            file.read_at(0, &mut all)?;
        }
        let (pieces_end, count, mut rest) = match self.meta {
            Some(meta) if trusted => (meta.chunks_at, meta.chunks, directory.as_slice()),
            Some(meta) => {
                let heading_len = super::heading(meta.chunks as u32).len() as u64;
                let pieces_end = meta.chunks_at.saturating_sub(heading_len);
                (pieces_end.min(len), meta.chunks, &all[meta.chunks_at.min(len) as usize..])
            }
            None => find_directory(&all, head_len).unwrap_or((len, 0, &[])),
        };
        let pieces = &all[..(pieces_end as usize).min(all.len())];
        let mut loader = Loader { map: &self.map, room: 0, scratch: Vec::new(), bytes: Vec::new() };
        let mut at = head_len;
        for _ in 0..count {
            let Some(row) = take_row(&mut rest, at) else { break };
            let (length, entries) = (row.length, row.entries);
            // Revision 0 for all, if theirs cannot be trusted.
            let zeros = if trusted { Vec::new() } else { vec![0; entries as usize] };
            let (least, revisions) = if trusted { (row.least, row.revisions) } else { (0, &zeros[..]) };
            if self.meta.is_none() {
                self.revision = self.revision.max(greatest(row.least, row.revisions));
            }
            let fits = length <= pieces_end.saturating_sub(at);
            if fits && loader.load(file, &Row { least, revisions, ..row }).is_ok() {
                self.chunks += 1;
                self.whole += u64::from(entries);
                at += length;
            } else if let Some(end) = take_piece(pieces, at as usize, entries, &self.map) {
                self.unverified += u64::from(entries);
                at = end as u64;
            } else if fits {
                self.holes.push(lost(at, length, Some(entries.into())));
                at += length;
            } else {
                break;
            }
            progress(at, pieces_end);
        }
        // The bytes that no row covers.
        if !trusted && at < pieces_end {
            let scan = scan(pieces, at as usize, u64::MAX, &self.map, false);
            self.unverified += scan.taken;
            self.holes.extend(scan.holes);
            if scan.end < pieces.len() {
                self.holes.push(lost(scan.end as u64, (pieces.len() - scan.end) as u64, None));
            }
        }
        self.note_missing_end(head_len, len);
        Ok(())
    }

    /// Reads the directory that the head names. Returns it, and whether its checksum is right.
    fn directory(&self, file: &dyn File, len: u64) -> Result<(Vec<u8>, bool), Damage> {
        let Some(meta) = self.meta.filter(|meta| meta.end <= len) else { return Ok((Vec::new(), false)) };
        let mut directory = vec![0; meta.end.saturating_sub(meta.chunks_at) as usize];
        file.read_at(meta.chunks_at, &mut directory)?;
        let trusted = crc32c::crc32c(&directory) == meta.chunks_crc;
        Ok((directory, trusted))
    }

    /// Notes the missing end of a file that is shorter than its head, or than the head says.
    fn note_missing_end(&mut self, head_len: u64, len: u64) {
        let missing = match self.meta {
            Some(meta) if len < meta.end => {
                let known: u64 = self.holes.iter().filter_map(|hole| hole.entries).sum();
                Some(meta.entries.saturating_sub(self.whole + self.unverified + known))
            }
            None if len < head_len => None,
            _ => return,
        };
        match self.holes.last_mut() {
            _ if missing == Some(0) => {}
            Some(last) if last.at + last.bytes == len && last.entries.is_none() => last.entries = missing,
            _ => self.holes.push(lost(len, 0, missing)),
        }
    }

    /// A file of the Go program: nothing in it has a checksum.
    fn salvage_go(&mut self, file: &dyn File) -> Result<(), Damage> {
        const NAME: &[u8] = b"\xa2KV";
        // `KV` is the first key or the second.
        const NEAR: usize = 32;
        let mut all = vec![0; file.len()? as usize];
        file.read_at(0, &mut all)?;
        let near = &all[..all.len().min(NEAR)];
        let Some(at) = near.windows(NAME.len()).position(|name| name == NAME) else { return Ok(()) };
        let mut rest = &all[at + NAME.len()..];
        let Ok(count) = rmp::decode::read_map_len(&mut rest) else { return Ok(()) };
        self.kind = Kind::Go;
        let scan = scan(&all, all.len() - rest.len(), count.into(), &self.map, true);
        self.unverified = scan.taken;
        (self.holes, self.left_out) = (scan.holes, scan.left_out);
        let missing = u64::from(count) - scan.read;
        if missing > 0 {
            self.holes.push(lost(scan.end as u64, (all.len() - scan.end) as u64, Some(missing)));
        }
        Ok(())
    }
}

/// Assigns every entry without a revision a new one, and removes a media type that cannot have been written.
pub(crate) fn give_revisions(map: &Map, revision: &mut u64) {
    let mut scratch = Vec::new();
    for index in 0..SHARDS {
        let mut shard = map.write(index);
        let without: Vec<Entry> = shard.iter().filter(|entry| entry.revision() == 0).cloned().collect();
        for entry in without {
            *revision += 1;
            let content_type = Some(entry.content_type()).filter(|content_type| may_be_sent(content_type));
            let draft = NewEntry {
                value: entry.value(),
                content_type: content_type.unwrap_or(DEFAULT_CONTENT_TYPE),
                details: entry.details().to_vec(),
            };
            let again = Entry::with_revision(entry.key(), &draft, *revision, &mut scratch);
            map.insert(&mut shard, map.hash(entry.key_bytes()), again);
        }
    }
}

/// Whether a media type may be sent as it is.
fn may_be_sent(content_type: &str) -> bool {
    content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// The greatest revision in a row that can have been given.
fn greatest(least: u64, mut revisions: &[u8]) -> u64 {
    std::iter::from_fn(|| rmp::decode::read_int::<u64, _>(&mut revisions).ok())
        .filter_map(|more| least.checked_add(more))
        .filter(|revision| *revision < REVISION_MAX)
        .max()
        .unwrap_or(0)
}

/// Searches the directory without the head: returns the end of `KV`, the number of rows, and the rows. The rows of a
/// directory reach to the end of the file, and their lengths are those of the pieces before it.
fn find_directory(all: &[u8], head_len: u64) -> Option<(u64, u64, &[u8])> {
    let mut end = all.len();
    while let Some(at) = all[..end].windows(HEADING.len()).rposition(|name| name == HEADING) {
        end = at + HEADING.len() - 1;
        let mut rest = &all[at + HEADING.len()..];
        let Ok(count) = rmp::decode::read_array_len(&mut rest) else { continue };
        let directory = rest;
        let mut pieces_end = head_len;
        let mut rows = 0;
        while rows < count
            && let Some(row) = take_row(&mut rest, pieces_end)
        {
            pieces_end = pieces_end.saturating_add(row.length);
            rows += 1;
        }
        if rows == count && rest.is_empty() && pieces_end == at as u64 {
            return Some((pieces_end, count.into(), directory));
        }
    }
    None
}

/// A key and a value at an offset, and their end.
fn pair(data: &[u8], at: usize) -> Option<(&[u8], &[u8], usize)> {
    let mut rest = data.get(at..)?;
    let key = take_bytes(&mut rest)?;
    let value = take_bytes(&mut rest)?;
    Some((key, value, data.len() - rest.len()))
}

/// A key as it can have been written.
fn key(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok().filter(|key| key.len() <= u16::MAX.into())
}

/// Takes a piece's entries, all of them or none. Returns where the piece ends.
fn take_piece(pieces: &[u8], at: usize, entries: u32, map: &Map) -> Option<usize> {
    let mut end = at;
    for _ in 0..entries {
        let (bytes, _, next) = pair(pieces, end)?;
        key(bytes)?;
        end = next;
    }
    scan(pieces, at, entries.into(), map, false);
    Some(end)
}

/// The result of reading entries as far as they are valid.
struct Scan {
    /// The number of entries that were read.
    read: u64,
    /// The number of entries that were accepted.
    taken: u64,
    /// The offset at which reading ended.
    end: usize,
    /// The entries that were read and cannot have been written.
    holes: Vec<Lost>,
    /// The entries that were read and cannot be in a store.
    left_out: Vec<LeftOut>,
}

/// Reads entries. With `is_go`, the program that wrote them had other limits, so each is checked.
fn scan(data: &[u8], at: usize, most: u64, map: &Map, is_go: bool) -> Scan {
    let mut scan = Scan { read: 0, taken: 0, end: at, holes: Vec::new(), left_out: Vec::new() };
    let mut scratch = Vec::new();
    while scan.read < most
        && let Some((bytes, value, next)) = pair(data, scan.end)
    {
        let invalid = if is_go { check_entry(bytes, value).err() } else { None };
        match key(bytes) {
            _ if let Some(reason) = invalid => {
                let at = scan.end as u64;
                scan.left_out.push(LeftOut { at, key: bytes.into(), value: value.into(), reason });
            }
            Some(key) => {
                let hashed = map.hash(bytes);
                let mut shard = map.write(map.shard_of(hashed));
                // An entry with a valid checksum takes precedence.
                if shard.get(hashed).is_none() {
                    let draft = NewEntry { value, content_type: DEFAULT_CONTENT_TYPE, details: Vec::new() };
                    map.insert(&mut shard, hashed, Entry::with_revision(key, &draft, 0, &mut scratch));
                }
                scan.taken += 1;
            }
            None => {
                scan.holes.push(lost(scan.end as u64, (next - scan.end) as u64, Some(1)));
            }
        }
        scan.read += 1;
        scan.end = next;
    }
    scan
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::Duration;

    use super::*;

    const ENTRIES: u64 = 60;

    fn value(revision: u64) -> &'static [u8] {
        static PATTERN: LazyLock<Vec<u8>> =
            LazyLock::new(|| (0..30_000_u64).map(|at| ((at * at) >> 3) as u8).collect());
        &PATTERN[revision as usize..][..20_000]
    }

    fn content_type(revision: u64) -> &'static str {
        if revision.is_multiple_of(3) { "image/png" } else { DEFAULT_CONTENT_TYPE }
    }

    /// A snapshot of several pieces.
    fn snapshot() -> (Vec<u8>, Meta) {
        let map = Map::new(5);
        for revision in 1..=ENTRIES {
            let (key, value) = (format!("key-{revision}"), value(revision));
            let draft = NewEntry { value, content_type: content_type(revision), details: vec![0x80] };
            let hashed = map.hash(key.as_bytes());
            map.insert(
                &mut map.write(map.shard_of(hashed)),
                hashed,
                Entry::with_revision(&key, &draft, revision, &mut Vec::new()),
            );
        }
        let file = tempfile::tempfile().expect("a temporary file can be made");
        let len =
            super::super::write(&map, &file, Meta::new(3, 7, 9), || 1000, Duration::ZERO).expect("it can be written");
        let mut bytes = vec![0; len as usize];
        File::read_at(&file, 0, &mut bytes).expect("it can be read");
        let meta = Meta::decode(&file).ok().flatten().expect("it is whole");
        (bytes, meta)
    }

    fn salvaged(bytes: &[u8]) -> Found {
        let file = tempfile::tempfile().expect("a temporary file can be made");
        File::write_at(&file, 0, bytes).expect("it can be written");
        salvage(&file, 1, &|_, _| {}).unwrap_or_else(|damage| panic!("{damage}"))
    }

    /// Returns the number of entries, each of which must have the written value; with `all`, checks everything else, too.
    fn right(found: &Found, all: bool) -> u64 {
        let mut entries = 0;
        for shard in 0..SHARDS {
            for entry in found.map.read(shard).iter() {
                let revision = entry.key()["key-".len()..].parse().expect("a key of ours");
                assert!(entry.value() == value(revision), "the value of {}", entry.key());
                if all {
                    let rest = (entry.revision(), entry.content_type(), entry.details());
                    assert_eq!(rest, (revision, content_type(revision), &[0x80][..]));
                }
                entries += 1;
            }
        }
        entries
    }

    fn flip(bytes: &mut [u8], bit: usize) {
        bytes[bit / 8] ^= 1 << (bit % 8);
    }

    #[test]
    fn a_flipped_bit_in_a_piece_costs_that_piece() {
        let (mut bytes, meta) = snapshot();
        let head = meta.encode().len();
        assert!(meta.chunks >= 4, "{} pieces", meta.chunks);
        for bit in (8 * head..8 * meta.chunks_at as usize - 200).step_by(999_983) {
            flip(&mut bytes, bit);
            let found = salvaged(&bytes);
            let [hole] = found.holes[..] else { panic!("not one hole: {:?}", found.holes) };
            assert!((hole.at..hole.at + hole.bytes).contains(&(bit as u64 / 8)), "{hole:?} has not bit {bit}");
            assert_eq!(found.chunks, meta.chunks - 1);
            assert_eq!(right(&found, true), ENTRIES - hole.entries.expect("the directory says it"));
            assert_eq!((found.revision, found.unverified), (1000, 0));
            flip(&mut bytes, bit);
        }
    }

    #[test]
    fn a_flipped_bit_in_the_head_costs_no_entry_and_no_checksum() {
        let (mut bytes, meta) = snapshot();
        for bit in (0..8 * meta.encode().len()).step_by(13) {
            flip(&mut bytes, bit);
            let found = salvaged(&bytes);
            assert_eq!((found.whole, right(&found, false)), (ENTRIES, ENTRIES), "bit {bit}");
            // The size alone is not under the checksum, nor needed.
            let revision = if found.meta.is_some() { 1000 } else { ENTRIES };
            assert!(found.revision == revision && found.holes.is_empty(), "bit {bit}");
            flip(&mut bytes, bit);
        }
    }

    #[test]
    fn a_flipped_bit_in_the_directory_costs_no_entry() {
        let (mut bytes, meta) = snapshot();
        for bit in (8 * meta.chunks_at as usize..8 * bytes.len()).step_by(29) {
            flip(&mut bytes, bit);
            let found = salvaged(&bytes);
            assert_eq!((right(&found, false), found.whole + found.unverified), (ENTRIES, ENTRIES), "bit {bit}");
            assert!(found.directory_is_damaged && found.holes.is_empty(), "bit {bit}: {:?}", found.holes);
            assert_eq!(found.revision, 1000, "bit {bit}");
            flip(&mut bytes, bit);
        }
    }

    #[test]
    fn a_truncated_snapshot_is_distinguished_from_a_damaged_one() {
        let (bytes, meta) = snapshot();
        let found = salvaged(&bytes[..bytes.len() / 2]);
        let entries = right(&found, false);
        assert!(entries > ENTRIES / 3 && found.unverified == entries && found.whole == 0, "{entries} entries");
        let [hole] = found.holes[..] else { panic!("not one hole: {:?}", found.holes) };
        assert_eq!((hole.at + hole.bytes, hole.entries), (bytes.len() as u64 / 2, Some(ENTRIES - entries)));
        let mut revision = found.revision;
        give_revisions(&found.map, &mut revision);
        assert_eq!(revision, 1000 + entries);
        let found = salvaged(&bytes[..meta.chunks_at as usize]);
        assert_eq!(right(&found, false), ENTRIES);
    }

    #[test]
    fn an_entry_with_a_key_that_no_store_has_is_a_hole() {
        // The second key is no UTF-8.
        let (data, map) = (b"\xa1a\xa1v\xa1\xff\xa1v\xa1b\xa1v", Map::new(1));
        let scan = scan(data, 0, u64::MAX, &map, false);
        assert_eq!((scan.read, scan.taken, scan.end), (3, 2, data.len()));
        assert_eq!(scan.holes, [lost(4, 4, Some(1))]);
    }

    #[test]
    fn another_format_is_left_alone() {
        let (mut bytes, _) = snapshot();
        // Its checksum is its own.
        bytes[100] ^= 1;
        // No format has more than one byte: more is damage.
        for (format, is_left) in [(3_u64, true), (255, true), (256, false)] {
            bytes[15..23].copy_from_slice(&format.to_be_bytes());
            let file = tempfile::tempfile().expect("a temporary file can be made");
            File::write_at(&file, 0, &bytes).expect("it can be written");
            assert_eq!(salvage(&file, 1, &|_, _| {}).is_err(), is_left, "format {format}");
        }
    }
}
