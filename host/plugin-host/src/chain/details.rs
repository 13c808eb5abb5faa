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
    fn damaged_details_count_as_none() {
        let all = join(&[("ttl", vec![1, 2, 3])]);
        for cut in 0..all.len() {
            assert_eq!(find(&all[..cut], "ttl"), b"");
        }
    }
}
