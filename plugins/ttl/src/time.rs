//! Times as text.

use std::time::{Duration, UNIX_EPOCH};

use humantime::format_rfc3339_millis;

/// The last millisecond of the year 9999, after which RFC 3339 has no form.
pub(crate) const LAST: u64 = 253_402_300_799_999;

/// Returns a time in milliseconds since 1970 in the form of RFC 3339, in UTC; `None` after the year 9999.
pub(crate) fn rfc3339(millis: u64) -> Option<String> {
    (millis <= LAST).then(|| format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_milliseconds_and_the_year_9999_is_the_last() {
        assert_eq!(rfc3339(1_767_225_600_007).as_deref(), Some("2026-01-01T00:00:00.007Z"));
        assert_eq!(rfc3339(LAST).as_deref(), Some("9999-12-31T23:59:59.999Z"));
        assert_eq!(rfc3339(LAST + 1), None);
        assert_eq!(rfc3339(u64::MAX), None);
    }
}
