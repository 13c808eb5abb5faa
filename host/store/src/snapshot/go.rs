//! A file of the Go program: `KV` and `KVSize`, nothing else.

use super::super::damage::{Damage, Defect};
use super::super::disk::File;
use super::super::entry::{DEFAULT_CONTENT_TYPE, Entry, NewEntry};
use super::super::map::Map;
use super::{Meta, Progress, take_bytes};

/// Reads such a file into a new map.
pub(super) fn read(
    file: &dyn File,
    seed: u64,
    before: &dyn Fn(u64) -> u64,
    progress: Progress<'_>,
) -> Result<(Map, Meta), Damage> {
    let mut data = vec![0; file.len()? as usize];
    file.read_at(0, &mut data)?;
    let mut rest = data.as_slice();
    let at = |rest: &[u8]| (data.len() - rest.len()) as u64;
    let no_map = |rest: &[u8]| Damage::at(at(rest), Defect::NotAStore);
    let map = Map::new(seed);
    let mut meta = Meta { seed, ..Meta::default() };
    let mut scratch = Vec::new();
    for _ in 0..rmp::decode::read_map_len(&mut rest).map_err(|_| no_map(&data))? {
        let start = rest;
        match take_bytes(&mut rest) {
            Some(b"KV") => {
                let count = rmp::decode::read_map_len(&mut rest).map_err(|_| no_map(start))?;
                meta.revision = meta.revision.max(before(count.into()));
                for _ in 0..count {
                    let start = rest;
                    let key = take_bytes(&mut rest).ok_or_else(|| no_map(start))?;
                    let value = take_bytes(&mut rest).ok_or_else(|| no_map(start))?;
                    let key = str::from_utf8(key)
                        .ok()
                        .filter(|key| key.len() <= u16::MAX.into())
                        .ok_or_else(|| Damage::at(at(start), Defect::Key))?;
                    // Every entry needs a revision; the order of the file is as good as any.
                    meta.revision += 1;
                    let draft = NewEntry { value, content_type: DEFAULT_CONTENT_TYPE, details: Vec::new() };
                    let entry = Entry::with_revision(key, &draft, meta.revision, &mut scratch);
                    let hashed = map.hash(key.as_bytes());
                    map.insert(&mut map.write(map.shard_of(hashed)), hashed, entry);
                    progress(at(rest), data.len() as u64);
                }
            }
            Some(b"KVSize") => {
                rmp::decode::read_int::<i64, _>(&mut rest).map_err(|_| no_map(start))?;
            }
            Some(other) => {
                let name = other.escape_ascii().to_string().chars().take(40).collect();
                return Err(Damage::at(at(start), Defect::UnknownPart(name)));
            }
            None => return Err(no_map(start)),
        }
    }
    if !rest.is_empty() {
        return Err(Damage::at(at(rest), Defect::TrailingBytes));
    }
    Ok((map, meta))
}
