//! The Prometheus text format, as far as `/metrics` uses it.

use std::collections::BTreeMap;

/// One line: a metric with its labels.
#[derive(Debug, PartialEq)]
pub(super) struct Metric<'a> {
    pub(super) name: &'a str,
    pub(super) labels: BTreeMap<&'a str, String>,
    pub(super) value: f64,
}

impl Metric<'_> {
    pub(super) fn label(&self, name: &str) -> Option<&String> {
        self.labels.get(name)
    }
}

/// Returns the metrics of a text. Leaves out comments and lines that cannot be parsed.
pub(super) fn metrics(text: &str) -> impl Iterator<Item = Metric<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(parse)
}

fn parse(line: &str) -> Option<Metric<'_>> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(after) = rest.strip_prefix('{') {
        rest = after;
        while !rest.starts_with('}') {
            let (name, after) = rest.split_once("=\"")?;
            let (value, after) = unquote(after)?;
            labels.insert(name.trim_start_matches(','), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    // A timestamp or an exemplar may follow.
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Metric { name, labels, value })
}

/// Takes the value of a label up to its closing quotation mark. Returns it without escapes, and the rest of the line.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_name_with_labels_and_a_value() {
        let text = "# HELP a b\na 1\na_bucket{le=\"+Inf\",x=\"q\\\"}\\n\\\\\"} 2.5 1700000000\nbroken{\nbroken{a=\"}\nbroken x\n";
        let found: Vec<Metric<'_>> = metrics(text).collect();
        let labels = BTreeMap::from([("le", "+Inf".to_owned()), ("x", "q\"}\n\\".to_owned())]);
        assert_eq!(
            found,
            [
                Metric { name: "a", labels: BTreeMap::new(), value: 1.0 },
                Metric { name: "a_bucket", labels, value: 2.5 },
            ]
        );
    }
}
