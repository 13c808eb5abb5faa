//! The path of a request and the key in it.

use percent_encoding::percent_decode_str;

use super::problem::Problem;
use vkog_engine::check_key;

/// Returns the position of the first `%` that two hexadecimal digits do not follow.
pub(super) fn bad_escape(encoded: &str) -> Option<usize> {
    let is_hex = |hex: &[u8]| hex.iter().all(u8::is_ascii_hexdigit);
    let mut escapes = encoded.match_indices('%').map(|(at, _)| at);
    escapes.find(|at| !encoded.as_bytes().get(at + 1..at + 3).is_some_and(is_hex))
}

/// Decodes the key of a path, once.
///
/// # Errors
///
/// The key is not percent-encoded correctly, not UTF-8, empty or too long.
pub(super) fn decode_key(encoded: &str) -> Result<String, Problem> {
    let key = if encoded.contains('%') { decode(encoded)? } else { encoded.to_owned() };
    check_key(&key)?;
    Ok(key)
}

fn decode(encoded: &str) -> Result<String, Problem> {
    if let Some(at) = bad_escape(encoded) {
        let fact = format!("Key is not percent-encoded correctly at byte {at}; write % as %25");
        return Err(Problem::new(400, fact));
    }
    let key = percent_decode_str(encoded).decode_utf8().map_err(|error| {
        Problem::new(400, format!("Key is not UTF-8 at byte {}; encode it as UTF-8", error.valid_up_to()))
    })?;
    Ok(key.into_owned())
}

#[cfg(test)]
mod tests {
    use vkog_engine::KEY_MAX;

    use super::*;

    #[test]
    fn a_key_is_decoded_once_and_keeps_its_slashes() {
        assert_eq!(decode_key("a%2Fb").ok().as_deref(), Some("a/b"));
        assert_eq!(decode_key("a/b").ok().as_deref(), Some("a/b"));
        assert_eq!(decode_key("100%2525").ok().as_deref(), Some("100%25"));
        assert_eq!(decode_key("a+b%20c").ok().as_deref(), Some("a+b c"));
    }

    #[test]
    fn an_invalid_key_is_refused_with_its_status() {
        let long = "k".repeat(KEY_MAX + 1);
        for (key, status) in
            [("%", 400), ("a%2", 400), ("%zz", 400), ("%+1", 400), ("%ff", 400), ("", 400), (long.as_str(), 414)]
        {
            assert_eq!(decode_key(key).err().map(|problem| problem.status()), Some(status), "{key}");
        }
        assert!(decode_key(&"k".repeat(KEY_MAX)).is_ok());
    }
}
