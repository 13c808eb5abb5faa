//! The two text formats of metrics: OpenMetrics, and the format 0.0.4 of Prometheus, which is older and the default.

use crate::http::RequestHead;

/// The format of a response with metrics.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Exposition {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Exposition {
    /// Chooses the format by `Accept`: OpenMetrics if it is named, and not less preferred than plain text.
    pub(super) fn of(head: &RequestHead) -> Self {
        let values: Vec<&str> = head.headers.all("accept").filter_map(|value| str::from_utf8(value).ok()).collect();
        Self::accepted(&values.join(","))
    }

    fn accepted(accept: &str) -> Self {
        let ranges: Vec<(&str, u32)> = accept.split(',').filter_map(range).collect();
        let quality =
            |wanted: &str| ranges.iter().filter(|(range, _)| range.eq_ignore_ascii_case(wanted)).map(|(_, q)| *q).max();
        let text = ["text/plain", "text/*", "*/*"].into_iter().find_map(quality).unwrap_or(0);
        match quality("application/openmetrics-text") {
            Some(quality @ 1..) if quality >= text => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// Returns the media type.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A media range of `Accept` and its quality in thousandths. A quality that is no number counts as 1.
fn range(text: &str) -> Option<(&str, u32)> {
    let mut parts = text.split(';').map(str::trim);
    let range = parts.next().filter(|range| !range.is_empty())?;
    let quality = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    let quality = quality.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(1.0_f32);
    Some((range, (quality.clamp(0.0, 1.0) * 1000.0) as u32))
}

/// Converts OpenMetrics text, as the encoder writes it, to the format 0.0.4: the name of a counter's family has its suffix,
/// help texts escape no quotation marks, and there are neither units nor an end mark.
pub(super) fn to_prometheus(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(family) = line.strip_prefix("# HELP ") {
            help = family.split_once(' ');
        } else if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap_or((family, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                let help = help.replace("\\\"", "\"");
                text.extend(["# HELP ", name, suffix, " ", &help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_is_for_clients_that_name_it() {
        use Exposition::{OpenMetrics, Prometheus};
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
            text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            ("", Prometheus),
            ("*/*", Prometheus),
            ("text/html, application/*", Prometheus),
            ("text/plain;version=0.0.4;q=1,*/*;q=0.1", Prometheus),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; version=0.0.1, */*;q=0.5", OpenMetrics),
            ("application/openmetrics-text;q=0", Prometheus),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.5", Prometheus),
            ("application/openmetrics-text;q=0.5, text/plain;q=0.5", OpenMetrics),
            // What names the type more precisely decides.
            ("application/openmetrics-text;q=0.5, text/plain;q=0.1, */*", OpenMetrics),
            ("application/openmetrics-text;q=x", OpenMetrics),
            (prometheus_3, OpenMetrics),
        ] {
            assert_eq!(Exposition::accepted(accept), expected, "{accept}");
        }
    }

    #[test]
    fn the_older_format_names_counters_with_their_suffix() {
        let open_metrics = "# HELP a Quotes \\\" and \\\\.\n# TYPE a counter\na_total{b=\"\\\"\"} 1\n\
            # HELP c_seconds Times.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\nc_seconds_sum 2.0\n# EOF\n";
        let expected = "# HELP a_total Quotes \" and \\\\.\n# TYPE a_total counter\na_total{b=\"\\\"\"} 1\n\
            # HELP c_seconds Times.\n# TYPE c_seconds histogram\nc_seconds_sum 2.0\n";
        assert_eq!(to_prometheus(open_metrics), expected);
    }
}
