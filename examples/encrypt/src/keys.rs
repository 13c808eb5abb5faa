//! The key file: one key per line, its name and 64 hexadecimal digits. The first key encrypts, and all decrypt.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use ring::aead::{CHACHA20_POLY1305, LessSafeKey, UnboundKey};

/// The maximum length of the name of a key, in bytes. The stored value holds the length in one byte.
const NAME_MAX: usize = 64;
/// A longer file is not a key file, in bytes.
const FILE_MAX: u64 = 1 << 20;
/// The length of a key, in bytes.
const KEY_LEN: usize = 32;

/// The keys, by name. There is at least one.
pub(crate) struct Keys(Vec<(String, LessSafeKey)>);

/// Why the keys cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    #[error("key_file: cannot read {path:?}: {source}; create the file, or correct the path")]
    Unreadable { path: PathBuf, source: io::Error },
    #[cfg(unix)]
    #[error("the key file {} is accessible to other users (mode {mode:03o}); run chmod 600 on it", path.display())]
    Accessible { path: PathBuf, mode: u32 },
    #[error("{}: {fault}", path.display())]
    Malformed { path: PathBuf, fault: Fault },
}

/// A fault of the content of the file. Messages never contain a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("no key; add a line with a name and 64 hexadecimal digits")]
    NoKey,
    #[error("not a text, or over {FILE_MAX} bytes; give a name and 64 hexadecimal digits per line")]
    NotText,
    #[error("line {line}: expected a name and 64 hexadecimal digits")]
    NotAKey { line: usize },
    #[error("line {line}: the name has over {NAME_MAX} bytes")]
    LongName { line: usize },
    #[error("line {line}: the name \"{name}\" is used twice")]
    Repeated { line: usize, name: String },
}

impl Keys {
    /// Reads the keys of a file.
    pub(crate) fn read(path: &Path) -> Result<Self, KeyFileError> {
        let unreadable = |source| KeyFileError::Unreadable { path: path.to_owned(), source };
        let malformed = |fault| KeyFileError::Malformed { path: path.to_owned(), fault };
        let file = File::open(path).map_err(unreadable)?;
        check_mode(path, &file)?;
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let text = str::from_utf8(&bytes).ok().filter(|text| text.len() as u64 <= FILE_MAX);
        Self::parse(text.ok_or_else(|| malformed(Fault::NotText))?).map_err(malformed)
    }

    fn parse(text: &str) -> Result<Self, Fault> {
        let mut keys: Vec<(String, LessSafeKey)> = Vec::new();
        for (line, content) in (1..).zip(text.lines()) {
            if content.trim().is_empty() || content.starts_with('#') {
                continue;
            }
            let mut words = content.split_ascii_whitespace();
            let (Some(name), Some(digits), None) = (words.next(), words.next(), words.next()) else {
                return Err(Fault::NotAKey { line });
            };
            if name.len() > NAME_MAX {
                return Err(Fault::LongName { line });
            }
            if keys.iter().any(|(other, _)| other == name) {
                return Err(Fault::Repeated { line, name: name.to_owned() });
            }
            let key = from_hex(digits).and_then(|bytes| UnboundKey::new(&CHACHA20_POLY1305, &bytes).ok());
            keys.push((name.to_owned(), LessSafeKey::new(key.ok_or(Fault::NotAKey { line })?)));
        }
        if keys.is_empty() { Err(Fault::NoKey) } else { Ok(Self(keys)) }
    }

    /// Returns the key that encrypts, with its name.
    pub(crate) fn first(&self) -> (&str, &LessSafeKey) {
        let (name, key) = &self.0[0];
        (name, key)
    }

    /// Returns the key with this name.
    pub(crate) fn named(&self, name: &str) -> Option<&LessSafeKey> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, key)| key)
    }
}

fn from_hex(digits: &str) -> Option<[u8; KEY_LEN]> {
    let mut key = [0; KEY_LEN];
    if digits.len() != 2 * KEY_LEN || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

/// Refuses a file that other users than its owner can read or write.
#[cfg(unix)]
fn check_mode(path: &Path, file: &File) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(|source| KeyFileError::Unreadable { path: path.to_owned(), source })?;
    match metadata.permissions().mode() & 0o777 {
        mode if mode & 0o077 == 0 => Ok(()),
        mode => Err(KeyFileError::Accessible { path: path.to_owned(), mode }),
    }
}

/// The access lists of Windows are not checked.
#[cfg(not(unix))]
fn check_mode(_: &Path, _: &File) -> Result<(), KeyFileError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    #[test]
    fn the_first_key_encrypts_and_all_are_found_by_name() {
        let keys = Keys::parse(&format!("# new\r\nb  {KEY}\r\n\n \na\t{KEY}\n")).expect("two keys");
        assert_eq!(keys.first().0, "b");
        assert!(keys.named("a").is_some() && keys.named("b").is_some() && keys.named("c").is_none());
    }

    #[test]
    fn hexadecimal_digits_of_either_case_are_a_key() {
        assert_eq!(from_hex(KEY), Some(std::array::from_fn(|index| index as u8)));
        assert_eq!(from_hex(&KEY[1..]), None);
        assert_eq!(from_hex(&KEY.replace('0', "+")), None);
        assert_eq!(from_hex(&"\u{e4}".repeat(32)), None);
    }

    #[test]
    fn a_malformed_file_is_refused_with_its_line_and_without_its_keys() {
        let long = "n".repeat(NAME_MAX + 1);
        for (text, expected) in [
            ("".to_owned(), "no key; add a line with a name and 64 hexadecimal digits"),
            ("# nothing\n\n".to_owned(), "no key; add a line with a name and 64 hexadecimal digits"),
            (format!("{KEY}\n"), "line 1: expected a name and 64 hexadecimal digits"),
            (format!("a {KEY}\nb {KEY}0\n"), "line 2: expected a name and 64 hexadecimal digits"),
            (format!("a {KEY} b\n"), "line 1: expected a name and 64 hexadecimal digits"),
            (format!("\n{long} {KEY}\n"), "line 2: the name has over 64 bytes"),
            (format!("a {KEY}\na {KEY}\n"), "line 2: the name \"a\" is used twice"),
        ] {
            let fault = Keys::parse(&text).err().expect("it is refused").to_string();
            assert_eq!(fault, expected);
            assert!(!fault.contains(KEY));
        }
    }
}
