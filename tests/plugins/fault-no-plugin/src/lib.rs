#![forbid(unsafe_code)]
//! A shared library that exports no plugin: what a crate is before it has `export_plugin!`.

/// A function, so that the library is not empty.
pub fn answer() -> u32 {
    42
}
