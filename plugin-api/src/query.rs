//! The parameters of a query.

use std::borrow::Cow;

use crate::call::{Refusal, Request};

impl<'a> Request<'a> {
    /// Returns a parameter of the [query](Self::query), decoded as form data: a plus sign stands for a space. `None` if the
    /// query does not have it; empty if it has no value, as in `?draft`. The errors can be passed on to the client. Since 1.5.
    ///
    /// ```
    /// # use vkog_plugin_api::*;
    /// fn is_draft(put: &Before<'_, Put>) -> Result<bool, Refusal> {
    ///     Ok(put.query_parameter("draft")?.is_some())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// 400 if the parameter is repeated, or is not percent-encoded UTF-8.
    pub fn query_parameter(&self, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
        let pairs = self.query().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let mut values = pairs.filter(|(own, _)| decoded(own).is_ok_and(|own| *own == *name.as_bytes()));
        let Some((_, value)) = values.next() else { return Ok(None) };
        if values.next().is_some() {
            return Err(Refusal::new(400, format!("The parameter {name} is repeated; send it once")));
        }
        let bytes = decoded(value).map_err(|at| {
            Refusal::new(400, format!("{name} is not percent-encoded correctly at byte {at}; write % as %25"))
        })?;
        let text = match bytes {
            Cow::Borrowed(_) => Ok(Cow::Borrowed(value)),
            Cow::Owned(bytes) => String::from_utf8(bytes).map(Cow::Owned),
        };
        text.map(Some).map_err(|_| Refusal::new(400, format!("{name} is not UTF-8; encode it as UTF-8")))
    }
}

/// Decodes a name or a value of form data. The error is the position of a percent sign without two hexadecimal digits.
fn decoded(text: &str) -> Result<Cow<'_, [u8]>, usize> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, behind @ ..] = rest {
        let (decoded, behind) = match (byte, behind) {
            (b'+', _) => (b' ', behind),
            (b'%', [high, low, behind @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, behind),
                _ => return Err(text.len() - rest.len()),
            },
            (b'%', _) => return Err(text.len() - rest.len()),
            (byte, _) => (*byte, behind),
        };
        bytes.push(decoded);
        rest = behind;
    }
    Ok(Cow::Owned(bytes))
}

fn digit(letter: u8) -> Option<u8> {
    char::from(letter).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}
