//! The parameters of a query.

use percent_encoding::percent_decode_str;

use super::path::bad_escape;
use super::problem::Problem;

/// Parses a query of these parameters.
///
/// # Errors
///
/// A parameter is unknown, repeated, or not percent-encoded correctly.
pub(super) fn parameters<const N: usize>(query: &str, names: [&str; N]) -> Result<[Option<String>; N], Problem> {
    let mut values = [const { None }; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(at) = names.iter().position(|known| *known == name) else {
            let known = names.join(", ");
            return Err(Problem::new(400, format!("Unknown parameter \"{name}\"; use {known}")));
        };
        if values[at].is_some() {
            return Err(Problem::new(400, format!("The parameter {name} is repeated; send it once")));
        }
        values[at] = Some(decode(name, value)?);
    }
    Ok(values)
}

/// Decodes a value once. A plus sign stays one, so that a text is the same key in a path and in a query.
fn decode(name: &str, value: &str) -> Result<String, Problem> {
    if let Some(at) = bad_escape(value) {
        let fact = format!("{name} is not percent-encoded correctly at byte {at}; write % as %25");
        return Err(Problem::new(400, fact));
    }
    let text = percent_decode_str(value).decode_utf8();
    text.map(Into::into).map_err(|_| Problem::new(400, format!("{name} is not UTF-8; encode it as UTF-8")))
}
