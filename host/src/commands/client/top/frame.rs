//! A frame of `vkog top`: lines of printable ASCII characters.

use std::time::Duration;

use bytesize::ByteSize;

use super::sample::{Plugin, Quantile, Rates, Sample};
use crate::commands::{count, entries};

/// The content of a frame.
pub(super) enum State<'a> {
    /// A sample, and the one before it.
    Reached { now: &'a Sample, before: Option<&'a Sample> },
    /// Why there is no sample.
    Unreachable(&'a str),
    /// There is no response yet.
    Waiting,
}

/// Returns the lines of a frame.
pub(super) fn frame(url: &str, state: &State<'_>) -> Vec<String> {
    let status = match state {
        State::Reached { .. } => "up".to_owned(),
        State::Unreachable(reason) => format!("unreachable: {reason}"),
        State::Waiting => "waiting".to_owned(),
    };
    let mut lines = vec![format!("vkog top   {url}   {status}")];
    if let State::Reached { now, before } = state {
        lines.extend(totals(now));
        lines.push(String::new());
        lines.push(row(["OPERATION", "PER S", "FAILED/S", "P50", "P99", ""]));
        lines.extend(now.operations(*before).map(|(method, rates)| operation(method, &rates)));
        if !now.plugins.is_empty() {
            lines.push(String::new());
            lines.push(row(["PLUGIN", "CALLS/S", "PER CALL", "P99", "REFUSED", "ERRORS"]));
            lines.extend(now.plugins.iter().map(|each| plugin(each, &now.hooks_of(each, *before))));
        }
    }
    lines.iter().map(|line| plain(line).trim_end().to_owned()).collect()
}

/// Replaces everything but printable ASCII characters: names and messages come from the server.
fn plain(text: &str) -> String {
    text.chars().map(|char| if char == ' ' || char.is_ascii_graphic() { char } else { '?' }).collect()
}

fn totals(now: &Sample) -> Vec<String> {
    let number = |name: &str| now.number(name).unwrap_or_default();
    let size = |name: &str| ByteSize(number(name) as u64).to_string();
    let memory =
        now.number("process_resident_memory_bytes").map_or("?".to_owned(), |bytes| ByteSize(bytes as u64).to_string());
    let is_writable = number("vkog_writable") == 1.0;
    vec![
        format!(
            "memory {memory}   {} of {}   log {}   history {}{}",
            entries(number("vkog_entries") as u64),
            size("vkog_entry_bytes"),
            size("vkog_log_bytes"),
            size("vkog_watch_history_bytes"),
            if is_writable { "" } else { "   READ-ONLY" },
        ),
        format!(
            "{}   {} in flight   {}   revision {}",
            count(number("vkog_connections") as u64, "connection", "connections"),
            // The request for the metrics is one of them. The conversion of a negative number is 0.
            count((number("vkog_requests_under_way") - 1.0) as u64, "request", "requests"),
            count(number("vkog_watchers") as u64, "watcher", "watchers"),
            number("vkog_revision"),
        ),
    ]
}

fn row([name, rest @ ..]: [&str; 6]) -> String {
    let [a, b, c, d, e] = rest;
    format!("{name:<20} {a:>10} {b:>10} {c:>10} {d:>10} {e:>10}")
}

fn operation(method: &str, rates: &Rates) -> String {
    let Rates { per_second, failed_per_second, p50, p99, .. } = rates;
    row([method, &rate(*per_second), &rate(*failed_per_second), &quantile(*p50), &quantile(*p99), ""])
}

fn plugin(plugin: &Plugin, rates: &Rates) -> String {
    let name = plain(&format!("{} {}", plugin.name, plugin.version));
    let mean = rates.mean.map_or("-".to_owned(), duration);
    let (refusals, errors) = (plugin.refusals().to_string(), plugin.errors().to_string());
    let line = row([&name, &rate(rates.per_second), &mean, &quantile(rates.p99), &refusals, &errors]);
    if plugin.quarantined { format!("{line} QUARANTINED") } else { line }
}

fn rate(per_second: f64) -> String {
    if per_second < 1000.0 { format!("{per_second:.1}") } else { format!("{per_second:.0}") }
}

fn quantile(quantile: Option<Quantile>) -> String {
    match quantile {
        None => "-".to_owned(),
        Some(Quantile::About(value)) => duration(value),
        Some(Quantile::Over(value)) => format!(">{}", duration(value)),
    }
}

/// Writes a duration with two or three digits.
fn duration(value: Duration) -> String {
    let seconds = value.as_secs_f64();
    let (value, unit) = match seconds {
        seconds if seconds < 1e-6 => (seconds * 1e9, "ns"),
        seconds if seconds < 1e-3 => (seconds * 1e6, "us"),
        seconds if seconds < 1.0 => (seconds * 1e3, "ms"),
        seconds => (seconds, "s"),
    };
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// Cuts a frame to the size of a terminal.
pub(super) fn cut(lines: Vec<String>, columns: usize, rows: usize) -> Vec<String> {
    let mut lines: Vec<_> = lines.into_iter().map(|line| line.chars().take(columns).collect()).collect();
    if lines.len() > rows {
        lines.truncate(rows);
        if let Some(last) = lines.last_mut() {
            *last = "...".chars().take(columns).collect();
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::sample::tests::sample;
    use super::*;

    #[test]
    fn a_frame_is_printable_ascii_whatever_the_server_returns() {
        let plugins = "{\"plugins\":[{\"name\":\"b\\u001b[2Jad\\u00e9\\u202e\",\"version\":\"1\\n2\",\
                        \"quarantined\":true,\"hooks\":[]}]}";
        let now = sample("vkog_entries 3\nvkog_requests_total{method=\"GET\",status=\"2xx\"} 4\n", plugins);
        let state = State::Reached { now: &now, before: None };
        let lines = frame("http://a\u{1b}b", &state);
        assert!(lines.iter().all(|line| line.chars().all(|char| char == ' ' || char.is_ascii_graphic())), "{lines:?}");
        assert!(lines[0].starts_with("vkog top   http://a?b   up"), "{lines:?}");
        let last = lines.last().expect("a line");
        assert!(last.starts_with("b?[2Jad?? 1?2 ") && last.ends_with(" QUARANTINED"), "{last}");
        let lines = frame("http://a", &State::Unreachable("gone\u{7}"));
        assert_eq!(lines, ["vkog top   http://a   unreachable: gone?"]);
    }

    #[test]
    fn a_frame_is_cut_to_the_terminal() {
        let lines = || vec!["abc".to_owned(), "d".to_owned(), "e".to_owned()];
        assert_eq!(cut(lines(), 2, 3), ["ab", "d", "e"]);
        assert_eq!(cut(lines(), 9, 2), ["abc", "..."]);
        assert_eq!(cut(lines(), 1, 1), ["."]);
        assert!(cut(lines(), 5, 0).is_empty());
    }

    #[test]
    fn durations_have_a_fitting_unit() {
        for (nanoseconds, text) in [
            (0, "0.0 ns"),
            (450, "450 ns"),
            (7_000, "7.0 us"),
            (2_000_000, "2.0 ms"),
            (12_300_000, "12 ms"),
            (2_000_000_000, "2.0 s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanoseconds)), text);
        }
        assert_eq!(quantile(Some(Quantile::Over(Duration::from_secs(1)))), ">1.0 s");
    }
}
