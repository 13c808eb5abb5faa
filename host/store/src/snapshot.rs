//! The snapshot, FILE: all entries as one MessagePack map that any MessagePack library can read.
//!
//! | key | value |
//! |---|---|
//! | `VKOG` | the head: format, generation, revision, position of the chunks, checksums |
//! | `KVSize` | the sum of `len(key) + len(value)`, as the Go program counted |
//! | `KV` | key → value; text as *str*, other bytes as *bin* |
//! | `Chunks` | the directory, an array with a row for each chunk of `KV`: its length in bytes, the number of its entries, the CRC-32C of its bytes, the lowest revision, the offsets of the revisions from that, and rows of index, media type and details for the entries that have them |
//!
//! `VKOG` also identifies the log that follows by its salt, and records whether the store was stopped cleanly since. Then the log
//! is empty and may be missing. This clean flag is one byte outside the checksum, so that it can be changed in place: a write
//! of one byte leaves the old value, the new one, or one that counts as "not stopped cleanly". (Format 1 had neither, and
//! complete revisions in its rows. It can be read.)
//!
//! All numbers before `KV` have a fixed width, because they are known only when the rest has been written. A file of the Go
//! program has only `KV` and `KVSize`, and every value is a *str*.

mod go;
pub(super) mod salvage;

use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rmp::Marker;
use rmp::encode;

use super::damage::{Damage, Defect};
use super::disk::File;
use super::entry::{DEFAULT_CONTENT_TYPE, Entry, NewEntry};
use super::map::{Map, SHARDS, Shard};

/// The version of the format.
const FORMAT: u64 = 2;
/// The format without the name of the log.
const FORMAT_1: u64 = 1;
/// The position of the clean flag, from the end of the head: `KVSize` and the head of `KV` follow it.
const CLEAN_FROM_END: usize = 25;
/// A chunk of `KV` is closed when it has this many bytes: one read, one checksum, one thread's work.
const CHUNK_BYTES: usize = 256 * 1024;

/// The head of a snapshot.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    format: u64,
    /// The generation of the log that follows it.
    pub(super) generation: u64,
    /// The random number that the files of the store share.
    pub(super) store: u64,
    /// The seed of the map's hash.
    pub(super) seed: u64,
    /// No revision up to this one may be assigned again.
    pub(super) revision: u64,
    /// The salt of the log that follows; 0 if it is unknown.
    pub(super) log: u32,
    /// The store was stopped cleanly, and not opened since: its log is empty.
    pub(super) clean: bool,
    entries: u64,
    size: u64,
    chunks: u64,
    chunks_at: u64,
    end: u64,
    chunks_crc: u32,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            format: FORMAT,
            generation: 0,
            store: 0,
            seed: 0,
            revision: 0,
            log: 0,
            clean: false,
            entries: 0,
            size: 0,
            chunks: 0,
            chunks_at: 0,
            end: 0,
            chunks_crc: 0,
        }
    }
}

/// Called with the progress of long work: bytes done, and bytes in total.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

// Writing to a vector cannot fail, but rmp's functions return a result.
macro_rules! put {
    ($function:ident($out:expr $(, $value:expr)*)) => {
        let _ = encode::$function($out $(, $value)*);
    };
}

/// A string or a byte string: text as text.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    match str::from_utf8(bytes) {
        Ok(text) => {
            put!(write_str(out, text));
        }
        Err(_) => {
            put!(write_bin(out, bytes));
        }
    }
}

/// A string or a byte string, whichever it is.
pub(super) fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (&marker, after) = rest.split_first()?;
    let (width, fixed) = match Marker::from_u8(marker) {
        Marker::FixStr(length) => (0, usize::from(length)),
        Marker::Str8 | Marker::Bin8 => (1, 0),
        Marker::Str16 | Marker::Bin16 => (2, 0),
        Marker::Str32 | Marker::Bin32 => (4, 0),
        _ => return None,
    };
    let (length, after) = after.split_at_checked(width)?;
    let length = length.iter().fold(fixed, |length, byte| length << 8 | usize::from(*byte));
    let (bytes, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

/// Whether a text or a byte string that [`take_bytes`] does not find at the start of `rest` begins there, and continues after
/// the end of the file.
pub(super) fn is_cut_off(rest: &[u8]) -> bool {
    use Marker::{Bin8, Bin16, Bin32, FixStr, Str8, Str16, Str32};
    let is_bytes =
        |marker: &u8| matches!(Marker::from_u8(*marker), FixStr(_) | Str8 | Str16 | Str32 | Bin8 | Bin16 | Bin32);
    rest.first().is_none_or(is_bytes)
}

impl Meta {
    /// The head of a new snapshot. `log` is the salt of the log that follows.
    pub(super) fn new(generation: u64, store: u64, log: u32) -> Self {
        Self { generation, store, log, ..Self::default() }
    }

    /// The file up to and including the head of `KV`. Its length is the same for all values.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        put!(write_map_len(&mut out, 4));
        put!(write_str(&mut out, "VKOG"));
        let numbers = [
            ("format", self.format),
            ("generation", self.generation),
            ("store", self.store),
            ("seed", self.seed),
            ("revision", self.revision),
            ("entries", self.entries),
            ("chunks", self.chunks),
            ("chunks_at", self.chunks_at),
            ("end", self.end),
            ("chunks_crc", self.chunks_crc.into()),
            ("log", self.log.into()),
        ];
        let is_first = self.format == FORMAT_1;
        let numbers = &numbers[..numbers.len() - usize::from(is_first)];
        put!(write_map_len(&mut out, numbers.len() as u32 + if is_first { 1 } else { 2 }));
        for (name, number) in numbers {
            put!(write_str(&mut out, name));
            put!(write_u64(&mut out, *number));
        }
        put!(write_str(&mut out, "head_crc"));
        let crc = crc32c::crc32c(&out);
        put!(write_u64(&mut out, crc.into()));
        if !is_first {
            put!(write_str(&mut out, "clean"));
            put!(write_bool(&mut out, self.clean));
        }
        put!(write_str(&mut out, "KVSize"));
        put!(write_u64(&mut out, self.size));
        put!(write_str(&mut out, "KV"));
        out.push(Marker::Map32.to_u8());
        out.extend_from_slice(&(self.entries as u32).to_be_bytes());
        out
    }

    /// Reads the head of a file; `None` if it is not one of this program's.
    fn decode(file: &dyn File) -> Result<Option<Self>, Damage> {
        let own = &Self::default().encode()[..6];
        let len = file.len()?;
        let mut head = vec![0; Self::default().encode().len().min(len as usize)];
        file.read_at(0, &mut head)?;
        if !head.starts_with(own) {
            return Ok(None);
        }
        let mut meta = Self { format: if is_first(&head) { FORMAT_1 } else { FORMAT }, ..Self::default() };
        let head_len = meta.encode().len();
        if head.len() < head_len {
            return Err(Damage::at(len, Defect::HeadCutOff));
        }
        head.truncate(head_len);
        // The numbers are at the same places in every file: what precedes one is its name, whose length is known.
        let mut rest = &head[own.len() + 1..];
        let mut number = || {
            let number = take_bytes(&mut rest).and_then(|_name| rmp::decode::read_u64(&mut rest).ok());
            number.ok_or_else(|| Damage::at(6, Defect::Head))
        };
        let format = number()?;
        if format != meta.format {
            return Err(Damage::at(6, Defect::Format { found: format, known: "1 and 2" }));
        }
        for field in [
            &mut meta.generation,
            &mut meta.store,
            &mut meta.seed,
            &mut meta.revision,
            &mut meta.entries,
            &mut meta.chunks,
            &mut meta.chunks_at,
            &mut meta.end,
        ] {
            *field = number()?;
        }
        meta.chunks_crc = number()? as u32;
        if format != FORMAT_1 {
            meta.log = number()? as u32;
            let clean = &mut head[head_len - CLEAN_FROM_END];
            meta.clean = *clean == Marker::True.to_u8();
            // Anything else that a torn write has left there.
            *clean = if meta.clean { Marker::True } else { Marker::False }.to_u8();
        }
        // head_crc and KVSize follow; of these only the size is new.
        let mut tail = &head[head.len() - 17..head.len() - 8];
        meta.size = rmp::decode::read_u64(&mut tail).unwrap_or_default();
        if meta.encode() != head {
            return Err(Damage::at(6, Defect::Head));
        }
        Ok(Some(meta))
    }

    /// Whether the file records whether the store was stopped cleanly.
    pub(super) fn has_clean_flag(&self) -> bool {
        self.log != 0
    }
}

/// Whether a head is of format 1, also where one bit of it is not as it was: it says so, or has as many numbers as that.
fn is_first(head: &[u8]) -> bool {
    head.get(6) == Some(&0x8b) || head.get(22) == Some(&(FORMAT_1 as u8))
}

/// Sets the clean flag of a snapshot, and syncs it.
pub(super) fn set_clean(file: &dyn File, clean: bool) -> io::Result<()> {
    let at = Meta::default().encode().len() - CLEAN_FROM_END;
    file.write_at(at as u64, &[if clean { Marker::True } else { Marker::False }.to_u8()])?;
    file.sync()
}

/// Writes the map to an empty file, while other threads read and write the map: the entries of a shard are shared under its lock,
/// and encoded and written without it. Returns the number of bytes. Does not sync the file.
///
/// `meta` identifies the store and the log that follows. `revision` is called last: no entry in the file has a higher one.
/// `pause` is the pause after each chunk.
pub(super) fn write(
    map: &Map,
    file: &dyn File,
    mut meta: Meta,
    revision: impl FnOnce() -> u64,
    pause: Duration,
) -> io::Result<u64> {
    meta.seed = map.seed();
    let mut at = meta.encode().len() as u64;
    let mut chunk = Chunk::default();
    let mut directory = Vec::new();
    let mut shared: Vec<Entry> = Vec::new();
    for shard in 0..SHARDS {
        shared.extend(map.read(shard).iter().cloned());
        for entry in shared.drain(..) {
            chunk.add(&entry);
            meta.entries += 1;
            meta.size += entry.size();
            if chunk.bytes.len() >= CHUNK_BYTES {
                at += chunk.close(file, at, &mut directory)?;
                meta.chunks += 1;
                thread::sleep(pause);
            }
        }
    }
    if chunk.entries > 0 {
        at += chunk.close(file, at, &mut directory)?;
        meta.chunks += 1;
    }
    if meta.entries > u32::MAX.into() {
        return Err(io::Error::other("a MessagePack map has at most 4,294,967,295 entries"));
    }
    let heading = heading(meta.chunks as u32);
    file.write_at(at, &heading)?;
    meta.chunks_at = at + heading.len() as u64;
    file.write_at(meta.chunks_at, &directory)?;
    meta.chunks_crc = crc32c::crc32c(&directory);
    meta.end = meta.chunks_at + directory.len() as u64;
    meta.revision = revision();
    file.write_at(0, &meta.encode())?;
    Ok(meta.end)
}

/// The heading between `KV` and its directory.
fn heading(chunks: u32) -> Vec<u8> {
    let mut out = Vec::new();
    put!(write_str(&mut out, "Chunks"));
    put!(write_array_len(&mut out, chunks));
    out
}

/// A chunk of `KV` that is being written.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    entries: u32,
    revisions: Vec<u64>,
    extras: Vec<u8>,
    extra_entries: u32,
}

impl Chunk {
    fn add(&mut self, entry: &Entry) {
        put_bytes(&mut self.bytes, entry.key_bytes());
        put_bytes(&mut self.bytes, entry.value());
        self.revisions.push(entry.revision());
        if entry.content_type() != DEFAULT_CONTENT_TYPE || !entry.details().is_empty() {
            put!(write_array_len(&mut self.extras, 3));
            put!(write_uint(&mut self.extras, self.entries.into()));
            put!(write_str(&mut self.extras, entry.content_type()));
            put!(write_bin(&mut self.extras, entry.details()));
            self.extra_entries += 1;
        }
        self.entries += 1;
    }

    /// Writes the piece and its row, and empties it. Returns its length.
    fn close(&mut self, file: &dyn File, at: u64, directory: &mut Vec<u8>) -> io::Result<u64> {
        file.write_at(at, &self.bytes)?;
        let length = self.bytes.len() as u64;
        put!(write_array_len(directory, 6));
        put!(write_uint(directory, length));
        put!(write_uint(directory, self.entries.into()));
        put!(write_uint(directory, crc32c::crc32c(&self.bytes).into()));
        // Entries that were written at about the same time have close revisions, and revisions are large.
        let least = self.revisions.iter().copied().min().unwrap_or(0);
        put!(write_uint(directory, least));
        put!(write_array_len(directory, self.entries));
        for revision in self.revisions.drain(..) {
            put!(write_uint(directory, revision - least));
        }
        put!(write_array_len(directory, self.extra_entries));
        directory.append(&mut self.extras);
        (self.entries, self.extra_entries) = (0, 0);
        self.bytes.clear();
        Ok(length)
    }
}

/// A row of the directory.
struct Row<'a> {
    at: u64,
    length: u64,
    entries: u32,
    crc: u32,
    /// The number to add to all revisions.
    least: u64,
    revisions: &'a [u8],
    extras: &'a [u8],
}

/// The rows of a directory whose checksum was right.
fn rows<'a>(meta: &Meta, head: u64, mut rest: &'a [u8]) -> Option<Vec<Row<'a>>> {
    let mut at = head;
    let mut rows = Vec::new();
    for _ in 0..meta.chunks {
        let row = take_row(&mut rest, at)?;
        at += row.length;
        rows.push(row);
    }
    rest.is_empty().then_some(rows)
}

/// The row of the piece at an offset.
fn take_row<'a>(rest: &mut &'a [u8], at: u64) -> Option<Row<'a>> {
    let columns = rmp::decode::read_array_len(rest).ok().filter(|columns| matches!(columns, 5 | 6))?;
    let length = rmp::decode::read_int(rest).ok()?;
    let entries = rmp::decode::read_int(rest).ok()?;
    let crc = rmp::decode::read_int(rest).ok()?;
    let least = if columns == 6 { rmp::decode::read_int(rest).ok()? } else { 0 };
    rmp::decode::read_array_len(rest).ok().filter(|revisions| *revisions == entries)?;
    let start = *rest;
    for _ in 0..entries {
        rmp::decode::read_int::<u64, _>(rest).ok()?;
    }
    let revisions = &start[..start.len() - rest.len()];
    let start = *rest;
    for _ in 0..rmp::decode::read_array_len(rest).ok()? {
        take_extra(rest)?;
    }
    let extras = &start[..start.len() - rest.len()];
    Some(Row { at, length, entries, crc, least, revisions, extras })
}

/// An entry's place in its piece, its media type and details.
fn take_extra<'a>(rest: &mut &'a [u8]) -> Option<(u32, &'a str, &'a [u8])> {
    rmp::decode::read_array_len(rest).ok().filter(|columns| *columns == 3)?;
    let place = rmp::decode::read_int(rest).ok()?;
    let content_type = str::from_utf8(take_bytes(rest)?).ok()?;
    Some((place, content_type, take_bytes(rest)?))
}

/// Reads a file of this program, or of the Go program, into a new map. `seed` is for a file that has none, and `before` gives,
/// for this number of entries without revisions, the revision before the first of them.
pub(super) fn read(
    file: &dyn File,
    seed: u64,
    before: &dyn Fn(u64) -> u64,
    progress: Progress<'_>,
) -> Result<(Map, Meta), Damage> {
    match Meta::decode(file)? {
        Some(meta) => Ok((read_own(file, &meta, progress)?, meta)),
        None => go::read(file, seed, before, progress),
    }
}

fn read_own(file: &dyn File, meta: &Meta, progress: Progress<'_>) -> Result<Map, Damage> {
    let head = meta.encode().len() as u64;
    let len = file.len()?;
    if len != meta.end {
        return Err(Damage::at(len.min(meta.end), Defect::Length { found: len, expected: meta.end }));
    }
    let directory_len = meta.end.checked_sub(meta.chunks_at).unwrap_or(u64::MAX);
    if directory_len > len {
        return Err(Damage::at(6, Defect::Head));
    }
    let mut directory = vec![0; directory_len as usize];
    file.read_at(meta.chunks_at, &mut directory)?;
    if crc32c::crc32c(&directory) != meta.chunks_crc {
        return Err(Damage::at(meta.chunks_at, Defect::Directory));
    }
    let damaged = || Damage::at(meta.chunks_at, Defect::InvalidDirectory);
    let rows = rows(meta, head, &directory).ok_or_else(damaged)?;
    let heading = heading(meta.chunks as u32);
    let pieces_end = rows.last().map_or(head, |row| row.at + row.length);
    let mut found = vec![0; heading.len()];
    if pieces_end + found.len() as u64 != meta.chunks_at
        || rows.iter().map(|row| u64::from(row.entries)).sum::<u64>() != meta.entries
    {
        return Err(damaged());
    }
    file.read_at(pieces_end, &mut found)?;
    if found != heading {
        return Err(Damage::at(pieces_end, Defect::Heading));
    }

    let map = Map::new(meta.seed);
    load_all(file, meta, &rows, &map, progress)?;
    let totals = map.totals();
    if totals != (meta.entries, meta.size) {
        return Err(Damage::at(6, Defect::Totals { found: totals, expected: (meta.entries, meta.size) }));
    }
    Ok(map)
}

/// Puts all pieces into the map, on as many threads as there are cores. Returns the first damage in the file.
fn load_all(file: &dyn File, meta: &Meta, rows: &[Row<'_>], map: &Map, progress: Progress<'_>) -> Result<(), Damage> {
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let load = || {
        let room = meta.entries as usize / SHARDS;
        let mut loader = Loader { map, room, scratch: Vec::new(), bytes: Vec::new() };
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            loader.load(file, row)?;
            progress(done.fetch_add(row.length, Ordering::Relaxed) + row.length, meta.chunks_at);
        }
        Ok(())
    };
    let results: Vec<Result<(), Damage>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..vkog_runtime::cores().min(rows.len())).map(|_| scope.spawn(load)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        threads.into_iter().map(join).collect()
    });
    let offset = |damage: &Damage| if let Damage::At { offset, .. } = damage { *offset } else { 0 };
    results.into_iter().filter_map(Result::err).min_by_key(offset).map_or(Ok(()), Err)
}

/// Puts pieces into the map.
struct Loader<'a> {
    map: &'a Map,
    /// The approximate number of entries per shard.
    room: usize,
    scratch: Vec<u8>,
    bytes: Vec<u8>,
}

impl Loader<'_> {
    fn load(&mut self, file: &dyn File, row: &Row<'_>) -> Result<(), Damage> {
        self.bytes.resize(row.length as usize, 0);
        file.read_at(row.at, &mut self.bytes)?;
        if crc32c::crc32c(&self.bytes) != row.crc {
            let defect = Defect::Chunk { bytes: row.length, entries: row.entries.into() };
            return Err(Damage::at(row.at, defect));
        }
        let senseless = || Damage::at(row.at, Defect::InvalidChunk);
        let (mut revisions, mut extras) = (row.revisions, row.extras);
        let mut extras_left = rmp::decode::read_array_len(&mut extras).map_err(|_| senseless())?;
        let mut extra = None;
        let mut rest = self.bytes.as_slice();
        let mut held: Option<(usize, parking_lot::RwLockWriteGuard<'_, Shard>)> = None;
        for place in 0..row.entries {
            let key = take_bytes(&mut rest).and_then(|key| str::from_utf8(key).ok()).ok_or_else(senseless)?;
            let value = take_bytes(&mut rest).ok_or_else(senseless)?;
            let more: u64 = rmp::decode::read_int(&mut revisions).map_err(|_| senseless())?;
            let revision = row.least.checked_add(more).ok_or_else(senseless)?;
            if extra.is_none() && extras_left > 0 {
                extra = Some(take_extra(&mut extras).ok_or_else(senseless)?);
                extras_left -= 1;
            }
            let (content_type, details) = match extra {
                Some((at, content_type, details)) if at == place => {
                    extra = None;
                    (content_type, details)
                }
                _ => (DEFAULT_CONTENT_TYPE, &[][..]),
            };
            let entry = Entry::with_revision(
                key,
                &NewEntry { value, content_type, details: details.to_vec() },
                revision,
                &mut self.scratch,
            );
            let hashed = self.map.hash(key.as_bytes());
            let shard = self.map.shard_of(hashed);
            // The entries of a shard come in a row: its lock is held until those of the next shard come.
            if held.as_ref().is_none_or(|(index, _)| *index != shard) {
                drop(held.take());
                let mut guard = self.map.write(shard);
                if guard.iter().next().is_none() {
                    self.map.reserve(&mut guard, self.room);
                }
                held = Some((shard, guard));
            }
            if let Some((_, guard)) = &mut held {
                self.map.insert(guard, hashed, entry);
            }
        }
        if rest.is_empty() && extra.is_none() { Ok(()) } else { Err(senseless()) }
    }
}

#[cfg(test)]
mod tests;
