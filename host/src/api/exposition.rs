//! The two text formats of metrics: OpenMetrics, and the format 0.0.4 of Prometheus, which is older and the default.

use super::accept;
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
    /// Chooses the format by `Accept`: OpenMetrics if the client names it and prefers it to plain text.
    pub(super) fn of(head: &RequestHead) -> Self {
        let is_open = accept::prefers(head, &["application/openmetrics-text"], &["text/plain"]);
        if is_open { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Returns the media type.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
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
    use crate::http::{Headers, Method};

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
            let mut headers = Headers::default();
            headers.push("Accept", accept.as_bytes());
            let head = RequestHead::new(Method::Get, "/metrics".to_owned(), headers, None);
            assert_eq!(Exposition::of(&head), expected, "{accept}");
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
