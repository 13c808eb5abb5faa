//! The commands for plugins: `new` and `check`.

pub mod check;
pub mod new;
