//! What is done with plugins that are not being served.

pub mod check;
pub mod new;
