//! A checksum that is always right, so that a fuzzer gets behind it.

/// Zero.
pub fn crc32c(_: &[u8]) -> u32 {
    0
}

/// Zero.
pub fn crc32c_append(_: u32, _: &[u8]) -> u32 {
    0
}
