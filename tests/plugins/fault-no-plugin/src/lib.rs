#![forbid(unsafe_code)]
//! A shared library that exports no plugin: what a crate is before it has `export_plugin!`.

/// Something to be in the library.
pub fn answer() -> u32 {
    42
}
