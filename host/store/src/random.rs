//! Random numbers that no client can predict.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A random number: the standard library seeds its hash keys from the system's generator.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The salt of a log; never 0, which means none.
pub(crate) fn random_salt() -> u32 {
    (random() as u32).max(1)
}
