//! The parameters of a query.

use percent_encoding::percent_decode_str;

use super::path::bad_escape;
use super::problem::Problem;

/// Parses a query of these parameters as form data, which browsers and client libraries send. Others are ignored, because
/// some clients and proxies add parameters.
///
/// # Errors
///
/// A parameter is repeated, or not percent-encoded correctly.
pub(super) fn parameters<const N: usize>(query: &str, names: [&str; N]) -> Result<[Option<String>; N], Problem> {
    let mut values = [const { None }; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode_str(name).decode_utf8_lossy();
        let Some(at) = names.iter().position(|known| *known == name) else { continue };
        if values[at].is_some() {
            return Err(Problem::new(400, format!("The parameter {name} is repeated; send it once")));
        }
        values[at] = Some(decode(&name, value)?);
    }
    Ok(values)
}

/// Returns the first parameter that has none of these names.
pub(super) fn unknown(query: &str, names: &[&str]) -> Option<String> {
    let named = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next().unwrap_or(pair));
    let mut decoded = named.map(|name| percent_decode_str(name).decode_utf8_lossy().into_owned());
    decoded.find(|name| !names.contains(&name.as_str()))
}

/// Returns the query without a parameter.
pub(super) fn without(query: &str, parameter: &str) -> String {
    let is_other = |pair: &&str| {
        let (name, _) = pair.split_once('=').unwrap_or((pair, ""));
        percent_decode_str(name).decode_utf8_lossy() != parameter
    };
    query.split('&').filter(is_other).collect::<Vec<_>>().join("&")
}

/// Decodes a value once. A plus sign stands for a space, unlike in a path.
fn decode(name: &str, value: &str) -> Result<String, Problem> {
    if let Some(at) = bad_escape(value) {
        let fact = format!("{name} is not percent-encoded correctly at byte {at}; write % as %25");
        return Err(Problem::new(400, fact));
    }
    let spaced = value.replace('+', " ");
    let text = percent_decode_str(&spaced).decode_utf8();
    text.map(Into::into).map_err(|_| Problem::new(400, format!("{name} is not UTF-8; encode it as UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_without_a_parameter_keeps_the_others() {
        for (query, rest) in [
            ("ticket=a", ""),
            ("a=1&ticket=b&ttl=5m", "a=1&ttl=5m"),
            ("%74icket=b&tickets=1", "tickets=1"),
            ("values&ticket", "values"),
        ] {
            assert_eq!(without(query, "ticket"), rest, "{query}");
        }
    }
}
