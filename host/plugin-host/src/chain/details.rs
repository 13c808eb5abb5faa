//! The details that plugins store with an entry: one MessagePack map from plugin name to bytes, or nothing if there are none.
//! The host stores its own details under names that no plugin can have.

/// The maximum size of the details that one plugin stores with one entry, in bytes.
pub(super) const DETAILS_MAX: usize = 4096;

/// Returns the details of one plugin, or nothing if it has none or the map is damaged.
pub fn find<'a>(all: &'a [u8], plugin: &str) -> &'a [u8] {
    let mut rest = all;
    let Ok(count) = rmp::decode::read_map_len(&mut rest) else {
        return &[];
    };
    for _ in 0..count {
        let Some((name, after)) = text(rest) else { return &[] };
        let Some((details, after)) = binary(after) else { return &[] };
        if name == plugin.as_bytes() {
            return details;
        }
        rest = after;
    }
    &[]
}

/// Returns the name and the encoded size of each entry of the map, until the end or the first damaged one.
pub(super) fn sizes(all: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    let mut rest = all;
    let count = rmp::decode::read_map_len(&mut rest).unwrap_or_default();
    (0..count).map_while(move |_| {
        let (name, after) = text(rest)?;
        let (_, after) = binary(after)?;
        let size = rest.len() - after.len();
        rest = after;
        Some((name, size as u64))
    })
}

/// Returns the encoded size of the details of one plugin.
pub(super) fn size_of(plugin: &str, details: &[u8]) -> u64 {
    let name_head = match plugin.len() {
        ..32 => 1,
        32..256 => 2,
        _ => 3,
    };
    let head = if details.len() < 256 { 2 } else { 3 };
    (name_head + plugin.len() + head + details.len()) as u64
}

/// Returns the size of the map, and that of the details which plugins set.
pub(super) fn size(all: &[u8]) -> [u64; 2] {
    if all.is_empty() {
        return [0; 2];
    }
    let of_plugins = sizes(all).filter(|(name, _)| !name.starts_with(b":"));
    [all.len() as u64, of_plugins.map(|(_, size)| size).sum()]
}

/// Returns the details of several plugins as one map.
pub(super) fn join(each: &[(&str, Vec<u8>)]) -> Vec<u8> {
    if each.is_empty() {
        return Vec::new();
    }
    let mut all = Vec::with_capacity(each.iter().map(|(name, details)| name.len() + details.len() + 8).sum());
    // Writing to a vector cannot fail.
    let _ = rmp::encode::write_map_len(&mut all, each.len() as u32);
    for (name, details) in each {
        let _ = rmp::encode::write_str(&mut all, name);
        let _ = rmp::encode::write_bin(&mut all, details);
    }
    all
}

/// Adds the details of one name, which the map does not have yet. Replaces a damaged map.
pub fn insert(all: &[u8], name: &str, details: &[u8]) -> Vec<u8> {
    let mut rest = all;
    let count = rmp::decode::read_map_len(&mut rest).unwrap_or_default();
    let mut inserted = Vec::with_capacity(all.len() + name.len() + details.len() + 16);
    // Writing to a vector cannot fail.
    let _ = rmp::encode::write_map_len(&mut inserted, count + 1);
    if count > 0 {
        inserted.extend_from_slice(rest);
    }
    let _ = rmp::encode::write_str(&mut inserted, name);
    let _ = rmp::encode::write_bin(&mut inserted, details);
    inserted
}

fn text(mut rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = rmp::decode::read_str_len(&mut rest).ok()?;
    rest.split_at_checked(length as usize)
}

fn binary(mut rest: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = rmp::decode::read_bin_len(&mut rest).ok()?;
    rest.split_at_checked(length as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_plugin_finds_its_own_details_and_no_others() {
        let all = join(&[("ttl", vec![1, 2, 3]), ("owner", b"ann".to_vec())]);
        assert_eq!(find(&all, "ttl"), [1, 2, 3]);
        assert_eq!(find(&all, "owner"), b"ann");
        assert_eq!(find(&all, "own"), b"");
        assert_eq!(find(&join(&[]), "ttl"), b"");
    }

    #[test]
    fn an_inserted_name_is_found_beside_the_others() {
        let all = join(&[("ttl", vec![1, 2, 3])]);
        // The last one is no map.
        for before in [&all[..], &[], b"damaged"] {
            let inserted = insert(before, ":host", b"gzip");
            assert_eq!(find(&inserted, ":host"), b"gzip");
            assert_eq!(find(&inserted, "ttl"), find(before, "ttl"));
        }
    }

    #[test]
    fn the_size_of_a_map_is_that_of_its_entries_and_its_head() {
        let all = join(&[("ttl", vec![1; 8]), ("owner", b"ann".to_vec())]);
        let entries: Vec<_> = sizes(&all).collect();
        assert_eq!(entries, [(&b"ttl"[..], 4 + 2 + 8), (b"owner", 6 + 2 + 3)]);
        assert_eq!(size(&all), [1 + 14 + 11, 14 + 11]);
        for (name, len) in [(1, 0), (31, 255), (32, 256), (255, DETAILS_MAX), (256, 1)] {
            let (name, details) = ("n".repeat(name), vec![0; len]);
            let joined = join(&[(&name, details.clone())]);
            assert_eq!(sizes(&joined).map(|(_, size)| size).sum::<u64>(), size_of(&name, &details), "{len}");
        }
        let coded = insert(&all, ":host", b"gzip");
        assert_eq!(size(&coded), [coded.len() as u64, 14 + 11]);
        assert_eq!(size(&insert(&[], ":host", b"gzip"))[1], 0);
        assert_eq!(size(&[]), [0; 2]);
    }

    #[test]
    fn damaged_details_count_as_none() {
        let all = join(&[("ttl", vec![1, 2, 3])]);
        for cut in 0..all.len() {
            assert_eq!(find(&all[..cut], "ttl"), b"");
        }
    }
}
