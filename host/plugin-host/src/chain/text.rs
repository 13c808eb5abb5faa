//! Checks of the text and headers that plugins produce, before they reach the log or a client.

use std::borrow::Cow;

use vkog_plugin_api::abi::HOOK_NAMES;

/// Returns a text as one line. Control characters and line separators, which could forge a line of the log or change a
/// terminal, are escaped.
pub fn one_line(text: &str) -> Cow<'_, str> {
    let breaks = |char: char| char.is_control() || matches!(char, '\u{2028}' | '\u{2029}');
    if !text.contains(breaks) {
        return text.into();
    }
    let mut line = String::with_capacity(text.len() + 8);
    for char in text.chars() {
        if breaks(char) { line.extend(char.escape_default()) } else { line.push(char) }
    }
    line.into()
}

/// Logs a panic of a plugin.
pub(super) fn log_panic(plugin: &str, id: usize, message: &str) {
    let (hook, message) = (HOOK_NAMES[id], one_line(message));
    tracing::error!(plugin, hook, "plugin \"{plugin}\" failed in {hook}: {message}");
}

/// Whether a text is a token of HTTP, such as the name of a header field or of a content coding (RFC 9110, section 5.6.2).
pub fn is_token(text: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_part)
}

/// The maximum length of a media type, in bytes.
pub const MEDIA_TYPE_MAX: usize = 255;

/// Whether a text is a media type: a type and a subtype, and perhaps parameters (RFC 9110, section 8.3.1).
pub(super) fn is_media_type(text: &str) -> bool {
    let is_printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let names = text.split(';').next().unwrap_or_default().trim_end().split_once('/');
    let are_tokens = names.is_some_and(|(kind, subtype)| is_token(kind.as_bytes()) && is_token(subtype.as_bytes()));
    text.len() <= MEDIA_TYPE_MAX && is_printable && are_tokens
}

/// Whether a header from a plugin is well-formed (RFC 9110, section 5) and does not concern the connection or the framing of the
/// response, which belong to the host. HTTP/2 permits no field of a connection (RFC 9113, section 8.2.2).
pub(super) fn may_be_sent((name, value): &(String, String), plugin: &str, id: usize) -> bool {
    const RESERVED: [&str; 9] = [
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vkog-plugin",
    ];
    let sent = is_token(name.as_bytes())
        && value.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\t')
        && !RESERVED.iter().any(|reserved| name.eq_ignore_ascii_case(reserved));
    if !sent {
        tracing::warn!(plugin, hook = HOOK_NAMES[id], name, "dropped an invalid header; use visible ASCII characters");
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_with_line_breaks_and_escapes_becomes_one_line() {
        assert_eq!(
            one_line("a \u{1b}[31m\r\nERROR b\u{2028}\u{85}\0"),
            "a \\u{1b}[31m\\r\\nERROR b\\u{2028}\\u{85}\\u{0}"
        );
        assert!(matches!(one_line("caf\u{e9} \"x\" \\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_media_type_has_a_type_and_a_subtype() {
        for good in ["text/plain", "text/plain; charset=utf-8", "application/vnd.a+json ;q=\"1\""] {
            assert!(is_media_type(good), "{good}");
        }
        let long = format!("text/{}", "a".repeat(MEDIA_TYPE_MAX - 4));
        for bad in ["", "text", "text/", "/plain", "te xt/plain", "text/plain\n", "text/pl\u{e9}", "a/b/c", &long] {
            assert!(!is_media_type(bad), "{bad}");
        }
        assert!(is_media_type(&long[..MEDIA_TYPE_MAX]));
    }

    #[test]
    fn a_header_that_would_break_the_response_is_not_sent() {
        let may_be_sent = |name: &str, value: &str| may_be_sent(&(name.to_owned(), value.to_owned()), "mine", 0);
        assert!(may_be_sent("WWW-Authenticate", "Bearer realm=\"vkog\""));
        assert!(!may_be_sent("X-Two\r\nLines", "1"));
        assert!(!may_be_sent("X-Split", "1\r\nSet-Cookie: a"));
        assert!(!may_be_sent("", "1"));
        for reserved in ["content-LENGTH", "Keep-Alive", "Proxy-Connection", "TE", "Vkog-Plugin"] {
            assert!(!may_be_sent(reserved, "1"), "{reserved}");
        }
    }
}
