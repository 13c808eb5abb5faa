//! A time to live in the form that clients write. Knows no request and no clock.

use std::fmt;

use vkog_plugin_api::serde::de::{Deserializer, Error, Visitor};
use vkog_plugin_api::serde::{self, Deserialize};

/// The accepted forms, for messages.
pub(crate) const ACCEPTED: &str = "seconds such as 60, or 60s, 5m, 2h, 7d";

/// The units, the largest first, in milliseconds.
const UNITS: [(&str, u64); 4] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];

/// A time to live: whole seconds, at least one.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period {
    pub(crate) millis: u64,
}

impl Period {
    /// Parses `60`, `60s`, `5m`, `2h` or `7d`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == if unit.is_empty() { "s" } else { unit })?;
        let millis = number.parse::<u64>().ok()?.checked_mul(*unit)?;
        (millis > 0).then_some(Self { millis })
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, unit)| self.millis.is_multiple_of(*unit));
        let (name, unit) = whole.unwrap_or(&("s", 1000));
        write!(f, "{}{name}", self.millis / unit)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = Period;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(ACCEPTED)
            }

            fn visit_u64<E: Error>(self, seconds: u64) -> Result<Period, E> {
                self.visit_str(&seconds.to_string())
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Period, E> {
                Period::parse(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_parsed_with_or_without_a_unit_and_malformed_text_is_not() {
        let millis = |text| Period::parse(text).map(|period| period.millis);
        let read = ["1", "60", "60s", "5m", "2h", "7d"].map(millis);
        assert_eq!(read, [1000, 60_000, 60_000, 300_000, 7_200_000, 604_800_000].map(Some));
        for text in
            ["", "0", "0m", "s", "-1", "+1", "1.5", "1e3", "5 m", " 5", "5M", "5min", "1h30m", "99999999999999999d"]
        {
            assert_eq!(millis(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_period_is_shown_in_the_largest_unit_that_it_is_a_multiple_of() {
        let shown =
            ["60", "90", "7200", "86400", "3601"].map(|text| Period::parse(text).map(|period| period.to_string()));
        assert_eq!(shown, ["1m", "90s", "2h", "1d", "3601s"].map(|text| Some(text.to_owned())));
    }
}
