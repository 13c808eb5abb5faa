//! Options that are text: parsed on the command line and in variables, and by serde in the file.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::error::ValueError;
use vkog_store::Fsync;

/// Parses when the log is synced.
pub(super) fn fsync(text: &str) -> Result<Fsync, ValueError> {
    match text {
        "always" => Ok(Fsync::Always),
        "never" => Ok(Fsync::Never),
        _ => timeout(text).map(Fsync::Every).map_err(|_| ValueError::Fsync),
    }
}

pub(super) fn fsync_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Fsync>, D::Error> {
    parsed(deserializer, fsync)
}

/// Parses a duration that is not zero.
pub(super) fn timeout(text: &str) -> Result<Duration, ValueError> {
    duration(text).ok().filter(|timeout| !timeout.is_zero()).ok_or(ValueError::Timeout)
}

/// Parses a duration that may be zero.
pub(super) fn duration(text: &str) -> Result<Duration, ValueError> {
    humantime::parse_duration(text).map_err(|_| ValueError::Timeout)
}

pub(super) fn duration_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parsed(deserializer, duration)
}

pub(super) fn timeout_from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parsed(deserializer, timeout)
}

pub(super) fn from_text<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    parsed(deserializer, str::parse)
}

/// Deserializes a text, and parses it.
fn parsed<'de, D: Deserializer<'de>, T, E: Display>(
    deserializer: D,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, D::Error> {
    parse(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}
