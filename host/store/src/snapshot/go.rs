//! A file of the Go program: `KV` and `KVSize`, nothing else.

use super::super::damage::{Damage, Defect};
use super::super::disk::File;
use super::super::entry::{DEFAULT_CONTENT_TYPE, Entry, NewEntry};
use super::super::invalid::{LeftOut, check_entry};
use super::super::map::Map;
use super::{Meta, Progress, is_cut_off, take_bytes};

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
    let no_map = |rest: &[u8]| match is_cut_off(rest) {
        true => Damage::at(data.len() as u64, Defect::CutOff),
        false => Damage::at(at(rest), Defect::NotAStore),
    };
    let mut left_out = Vec::new();
    let map = Map::new(seed);
    let mut meta = Meta { seed, ..Meta::default() };
    let mut scratch = Vec::new();
    for _ in 0..rmp::decode::read_map_len(&mut rest).map_err(|_| Damage::at(0, Defect::NotAStore))? {
        let start = rest;
        match take_bytes(&mut rest) {
            Some(b"KV") => {
                let start = rest;
                let count = rmp::decode::read_map_len(&mut rest).map_err(|_| no_map(start))?;
                meta.revision = meta.revision.max(before(count.into()));
                for _ in 0..count {
                    let start = rest;
                    let key = take_bytes(&mut rest).ok_or_else(|| no_map(start))?;
                    let value_start = rest;
                    let value = take_bytes(&mut rest).ok_or_else(|| no_map(value_start))?;
                    let key = match check_entry(key, value) {
                        Ok(key) => key,
                        Err(reason) => {
                            left_out.push(LeftOut { at: at(start), key: key.into(), value: value.into(), reason });
                            continue;
                        }
                    };
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
                let start = rest;
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
    match left_out.first() {
        None => Ok((map, meta)),
        Some(first) => Err(Damage::at(first.at, Defect::Entries(left_out))),
    }
}
