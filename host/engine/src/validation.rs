//! The checks of every request, of clients and of plugins.

use crate::host_refusal;
use vkog_plugin_host::{Refusal, Verb};
use vkog_runtime::can_allocate;
use vkog_store::DEFAULT_CONTENT_TYPE;

pub use vkog_plugin_host::MEDIA_TYPE_MAX as CONTENT_TYPE_MAX;
pub use vkog_store::KEY_MAX;

/// Why a request is refused before any plugin sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// The key is empty.
    #[error("Key cannot be empty")]
    EmptyKey,
    /// The key is longer than [`KEY_MAX`].
    #[error("Key too long: {bytes} bytes; the maximum is {KEY_MAX}")]
    KeyTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The media type is longer than [`CONTENT_TYPE_MAX`].
    #[error("Content-Type too long: {bytes} bytes; the maximum is {CONTENT_TYPE_MAX}")]
    ContentTypeTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The media type has bytes other than printable ASCII characters and spaces.
    #[error("Content-Type must be ASCII text")]
    ContentTypeNotAscii,
    /// A post or put has no value.
    #[error("No content provided")]
    NoContent,
}

impl InvalidRequest {
    /// The HTTP status of the refusal.
    pub fn status(self) -> u16 {
        match self {
            Self::KeyTooLong { .. } => 414,
            _ => 400,
        }
    }
}

impl From<InvalidRequest> for Refusal {
    fn from(invalid: InvalidRequest) -> Self {
        host_refusal(invalid.status(), invalid.to_string())
    }
}

/// Checks the length of a key.
///
/// # Errors
///
/// The key is empty or too long.
#[inline]
pub fn check_key(key: &str) -> Result<(), InvalidRequest> {
    match key.len() {
        0 => Err(InvalidRequest::EmptyKey),
        1..=KEY_MAX => Ok(()),
        bytes => Err(InvalidRequest::KeyTooLong { bytes }),
    }
}

/// Returns the media type that a client names for a value; the default if it is empty.
///
/// # Errors
///
/// It is too long, or could not be sent back in a header.
#[inline]
pub fn media_type(name: &[u8]) -> Result<&str, InvalidRequest> {
    if name.len() > CONTENT_TYPE_MAX {
        return Err(InvalidRequest::ContentTypeTooLong { bytes: name.len() });
    }
    match str::from_utf8(name) {
        Ok("") => Ok(DEFAULT_CONTENT_TYPE),
        Ok(text) if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => Ok(text),
        _ => Err(InvalidRequest::ContentTypeNotAscii),
    }
}

/// Checks that a post or put has a value.
///
/// # Errors
///
/// It has none.
#[inline]
pub fn check_value(verb: Verb, value: &[u8]) -> Result<(), InvalidRequest> {
    if value.is_empty() && matches!(verb, Verb::Post | Verb::Put) { Err(InvalidRequest::NoContent) } else { Ok(()) }
}

/// Checks that there is memory for the copies of a large value that exist until its write is durable, beside the one that
/// was received: the store cannot abandon a write for lack of memory.
///
/// # Errors
///
/// The memory is not available now; the client may try again.
#[inline]
pub fn check_memory(len: usize) -> Result<(), Refusal> {
    /// Smaller values find memory, in bytes.
    const LARGE: usize = 64 << 10;
    /// The entry, and its record in the buffer of the log, which may have to grow by half for it.
    const COPIES: usize = 3;
    if len <= LARGE || can_allocate(len.saturating_mul(COPIES)) {
        return Ok(());
    }
    let mut refusal = host_refusal(503, "Not enough memory for this value; try again later");
    refusal.headers.push(("Retry-After".to_owned(), "1".to_owned()));
    Err(refusal)
}

/// Checks the key, the media type and the value of an operation.
///
/// # Errors
///
/// The first of them that is invalid.
pub fn check_operation(verb: Verb, key: &str, content_type: &str, value: &[u8]) -> Result<(), InvalidRequest> {
    check_key(key)?;
    media_type(content_type.as_bytes())?;
    check_value(verb, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_refused_for_its_key_first_then_its_media_type_then_its_value() {
        let long = "k".repeat(KEY_MAX + 1);
        let type_max = "t".repeat(CONTENT_TYPE_MAX);
        for (key, content_type, value, expected) in [
            ("", "\n", "", Err((400, "Key cannot be empty"))),
            (long.as_str(), "\n", "", Err((414, "Key too long: 1025 bytes; the maximum is 1024"))),
            (&long[1..], "text/\u{e9}", "", Err((400, "Content-Type must be ASCII text"))),
            ("k", "text\tplain", "1", Err((400, "Content-Type must be ASCII text"))),
            ("k", &format!("{type_max}t"), "1", Err((400, "Content-Type too long: 256 bytes; the maximum is 255"))),
            ("k", "text/plain", "", Err((400, "No content provided"))),
            (&long[1..], &type_max, "1", Ok(())),
        ] {
            let refused = check_operation(Verb::Put, key, content_type, value.as_bytes());
            let refused = refused.map_err(|invalid| (invalid.status(), invalid.to_string()));
            assert_eq!(refused, expected.map_err(|(status, text)| (status, text.to_owned())), "{key} {content_type}");
        }
        assert_eq!(check_operation(Verb::Delete, "k", "", b""), Ok(()));
        assert_eq!(media_type(b""), Ok(DEFAULT_CONTENT_TYPE));
    }
}
