#![forbid(unsafe_code)]
//! A shared library that exports no plugin, because it lacks `export_plugin!`.

/// A function, so that the library is not empty.
pub fn answer() -> u32 {
    42
}
