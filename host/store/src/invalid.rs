//! Which entries a store has: what a request can write. Files of other programs may hold others.

use std::fmt;

use super::wal::VALUE_MAX;

/// The maximum length of a key, in bytes.
pub const KEY_MAX: usize = 1024;

/// Why an entry cannot be in a store: no request could have written it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidEntry {
    /// The key is empty.
    EmptyKey,
    /// The key is longer than [`KEY_MAX`].
    LongKey {
        /// Its length, in bytes.
        bytes: usize,
    },
    /// The key is not UTF-8.
    KeyNotUtf8,
    /// The value is empty.
    EmptyValue,
    /// The value is longer than [`VALUE_MAX`].
    LongValue {
        /// Its length, in bytes.
        bytes: u64,
    },
}

/// An entry of a file that cannot be in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it starts, in bytes from the start of the file.
    pub at: u64,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// Why it is left out.
    pub reason: InvalidEntry,
}

/// Checks an entry of a file or of an import. Returns its key.
///
/// # Errors
///
/// No request could have written it.
pub fn check_entry<'a>(key: &'a [u8], value: &[u8]) -> Result<&'a str, InvalidEntry> {
    let text = str::from_utf8(key).map_err(|_| InvalidEntry::KeyNotUtf8)?;
    check_lengths(key.len(), value.len() as u64).map(|()| text)
}

/// Checks the lengths of a key and of a value, in bytes.
fn check_lengths(key: usize, value: u64) -> Result<(), InvalidEntry> {
    match (key, value) {
        (0, _) => Err(InvalidEntry::EmptyKey),
        (bytes, _) if bytes > KEY_MAX => Err(InvalidEntry::LongKey { bytes }),
        (_, 0) => Err(InvalidEntry::EmptyValue),
        (_, bytes) if bytes > VALUE_MAX => Err(InvalidEntry::LongValue { bytes }),
        _ => Ok(()),
    }
}

impl fmt::Display for InvalidEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyKey => f.write_str("the key is empty"),
            Self::LongKey { bytes } => write!(f, "the key has {bytes} bytes, {KEY_MAX} is the most"),
            Self::KeyNotUtf8 => f.write_str("the key is not UTF-8"),
            Self::EmptyValue => f.write_str("the value is empty"),
            Self::LongValue { bytes } => write!(f, "the value has {bytes} bytes, {VALUE_MAX} is the most"),
        }
    }
}

impl std::error::Error for InvalidEntry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_a_value_may_have_their_maximum_and_no_byte_more() {
        for (key, value, checked) in [
            (0, 1, Err(InvalidEntry::EmptyKey)),
            (1, 0, Err(InvalidEntry::EmptyValue)),
            (1, 1, Ok(())),
            (KEY_MAX, VALUE_MAX, Ok(())),
            (KEY_MAX + 1, 1, Err(InvalidEntry::LongKey { bytes: KEY_MAX + 1 })),
            (1, VALUE_MAX + 1, Err(InvalidEntry::LongValue { bytes: VALUE_MAX + 1 })),
        ] {
            assert_eq!(check_lengths(key, value), checked, "{key} and {value} bytes");
        }
        assert_eq!(check_entry(b"\xff", b"v"), Err(InvalidEntry::KeyNotUtf8));
        assert_eq!(check_entry(b"k", b"v"), Ok("k"));
    }
}
