//! Content negotiation by `Accept` (RFC 9110, section 12.5.1).

use std::cmp::Reverse;

use crate::http::RequestHead;

/// Returns whether a client prefers a format to the default one. It has to name a media type of the format: wildcards stand for
/// the default. The higher quality decides, then the order in `Accept`.
pub(super) fn prefers(head: &RequestHead, format: &[&str], default: &[&str]) -> bool {
    let fields = head.headers.all("accept").filter_map(|field| str::from_utf8(field).ok());
    let mut wanted = None;
    // By its name, by a wildcard of its type, and by `*/*`: the most precise range decides.
    let mut of_default = [None; 3];
    for (at, (range, quality)) in fields.flat_map(|field| field.split(',')).map(media_range).enumerate() {
        let rank = Some((quality, Reverse(at)));
        if is_any(format, range) {
            wanted = wanted.max(rank);
        } else if let Some(precision) = precision(default, range) {
            of_default[precision] = of_default[precision].max(rank);
        }
    }
    wanted.is_some_and(|(quality, _)| quality > 0) && wanted > of_default.into_iter().flatten().next()
}

fn is_any(media_types: &[&str], range: &str) -> bool {
    media_types.iter().any(|media_type| media_type.eq_ignore_ascii_case(range))
}

/// Returns how a range names one of these media types, which have one type: 0 exactly, 1 by its type, 2 by `*/*`.
fn precision(media_types: &[&str], range: &str) -> Option<usize> {
    let is_type = |kind: &str| {
        media_types.iter().any(|known| known.split('/').next().is_some_and(|known| known.eq_ignore_ascii_case(kind)))
    };
    match range.strip_suffix("/*") {
        Some("*") => Some(2),
        Some(kind) if is_type(kind) => Some(1),
        Some(_) => None,
        None => is_any(media_types, range).then_some(0),
    }
}

/// Returns a media range without its parameters, and its quality in thousandths. A quality that is not a number counts as 1.
fn media_range(text: &str) -> (&str, u32) {
    let (range, parameters) = text.split_once(';').unwrap_or((text, ""));
    let mut parameters = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let quality = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    let quality = quality.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(1.0_f32);
    (range.trim(), (quality.clamp(0.0, 1.0) * 1000.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Headers, Method};

    /// A request with these `Accept` fields.
    fn accepting(fields: &[&str]) -> RequestHead {
        let mut headers = Headers::default();
        fields.iter().for_each(|field| headers.push("Accept", field.as_bytes()));
        RequestHead::new(Method::Get, "/".to_owned(), headers, None)
    }

    #[test]
    fn the_quality_decides_and_then_the_order() {
        const JSON: [&str; 2] = ["application/json", "application/problem+json"];
        for (fields, expected) in [
            (&[][..], false),
            (&["*/*"], false),
            (&["application/*"], false),
            (&["application/json"], true),
            (&["Application/Problem+JSON; charset=utf-8"], true),
            (&["application/json, text/plain, */*"], true),
            (&["text/plain, application/json"], false),
            (&["text/plain", "application/json"], false),
            (&["*/*, application/json"], false),
            (&["text/html, application/json;q=0.9, text/*;q=0.8"], true),
            (&["application/json;q=0.8, text/*;q=0.9"], false),
            (&["application/json;q=0.8, text/plain;q=0.5, text/*;q=0.9, */*"], true),
            (&["application/json;q=0"], false),
            (&["application/json;q=x"], true),
            (&["application/json ; Q=.2 , */*;q=0.1"], true),
            (&["", ",", ";q=1, application/json"], true),
        ] {
            assert_eq!(prefers(&accepting(fields), &JSON, &["text/plain"]), expected, "{fields:?}");
        }
    }
}
